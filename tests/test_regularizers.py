"""Penalties on weights: on made-up data, where nothing else is said, and in both generations of Keras."""

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.compat.variables import resource_of
from aimp_tf.masking import MaskedModel, mask_model
from aimp_tf.training.regularizers import REGULARIZERS, TrainedWeights

SETTINGS = {
    "target_sparsity": 0.5,
    "rate": 0.3,
    "epochs": 2,
    "round_epochs": 1,
    "batch_size": 16,
    "seed": 0,
    "verbose": 0,
}


@pytest.fixture
def make_cnn(K):
    """A function that makes a compiled classifier of 8 x 8 images, always of the same weights."""

    def make(optimizer=None, loss="sparse_categorical_crossentropy"):
        K.utils.set_random_seed(2)
        L = K.layers
        model = K.Sequential(
            [
                K.Input((8, 8, 1)),
                L.Conv2D(6, 3, activation="relu", name="first"),
                L.BatchNormalization(name="norm"),
                L.Conv2D(4, 3, strides=2, activation="relu", name="second"),
                L.Flatten(),
                L.Dense(10, activation="softmax", name="head"),
            ]
        )
        model.compile(optimizer or K.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        return model

    return make


@pytest.fixture
def images(digits):
    return digits[0][:128].reshape(-1, 8, 8, 1), digits[1][:128]


def penalty_of(regularizer, masked):
    return regularizer.strength * float(regularizer.penalty(TrainedWeights(masked)))


def masked_with(model, kernels, **settings):
    """The model with these kernels, by their layers, masked."""
    for name, kernel in kernels.items():
        model.get_layer(name).kernel.assign(np.asarray(kernel, "float32"))
    return mask_model(model, **settings)


@pytest.fixture
def dense(K):
    model = K.Sequential([K.Input((2,)), K.layers.Dense(2, name="first"), K.layers.Dense(1, name="second")])
    model.compile("sgd", "mse")
    return model


def test_known_values(dense):
    """Those of the examples in the docstrings, and what goes with them, by hand."""
    masked = masked_with(dense, {"first": [[1, 4], [0, 0]], "second": [[2], [2]]})
    expected = {
        "group_lasso": 1 + 4 + 2 + 2,  # Single weights.
        "hierarchical": ((1 + 2) ** 2 / 2 + 5 / 2) + (np.sqrt(2) ** 2 / 2 * 2 + 4 / 2),
        "norm_loss": (1 - 1) ** 2 + (1 - 4) ** 2 + (1 - np.sqrt(8)) ** 2,
        "nuclear": (1 + 16 + 4 + 4) / 2,
    }
    for name, value in expected.items():
        assert penalty_of(REGULARIZERS[name](2.0), masked) == pytest.approx(2 * value, rel=1e-6)


def test_units_of_channels_are_all_that_is_tied_to_them(dense):
    masked = masked_with(dense, {"first": [[3, 0], [4, 1]], "second": [[0], [2]]}, granularity="channel")
    # Filters (3, 4) and (0, 1), and the rows 0 and 2 that read them: three weights each, for biases are not scored.
    expected = np.sqrt(3) * (5 + np.sqrt(5))
    assert penalty_of(REGULARIZERS["group_lasso"](1.0), masked) == pytest.approx(expected, rel=1e-6)


def test_units_of_blocks(K):
    model = K.Sequential([K.Input((4,)), K.layers.Dense(2, name="first")])
    model.compile("sgd", "mse")
    masked = masked_with(model, {"first": [[3, 0], [4, 0], [0, 0], [0, 2]]}, granularity="1x2")
    assert penalty_of(REGULARIZERS["group_lasso"](1.0), masked) == pytest.approx(np.sqrt(2) * (5 + 2), rel=1e-6)


@pytest.mark.parametrize("name", REGULARIZERS)
@pytest.mark.parametrize("granularity", ["unstructured", "channel"])
def test_gradients_are_differences(make_cnn, name, granularity):
    if name == "scale_l1" and granularity != "channel":
        pytest.skip("There are no scales among single weights.")
    masked = mask_model(make_cnn(), granularity=granularity)
    regularizer, rng = REGULARIZERS[name](1.0), np.random.default_rng(0)
    variables = [variable for variable in masked.variables.values() if "bias" not in variable.name]
    for variable in variables:  # Away from where absolute values have corners.
        variable.assign(rng.choice([-1, 1], variable.shape) * rng.uniform(0.3, 1.0, variable.shape))
    with tf.GradientTape() as tape:
        penalty = regularizer.penalty(TrainedWeights(masked))
    reads = [tf.convert_to_tensor(variable) for variable in variables]
    assert all(tensor.dtype == tf.float32 for tensor in reads) and penalty.shape == ()
    sources = [resource_of(variable) for variable in variables]
    gradients = tape.gradient(penalty, sources)
    checked = 0
    for variable, gradient in zip(variables, gradients, strict=True):
        if gradient is None:
            continue
        value, step = np.array(variable), rng.normal(size=variable.shape).astype("float32")
        ends = []
        for sign in (1, -1):
            variable.assign(value + sign * 1e-2 * step)
            ends.append(float(regularizer.penalty(TrainedWeights(masked))))
        variable.assign(value)
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(np.sum(gradient * step)), rel=0.01, abs=0.02)
        checked += 1
    assert checked >= (1 if name == "scale_l1" else 2)


def test_what_is_pruned_has_no_gradient(make_cnn):
    """Where a norm is 0, its root has no derivative."""
    masked = mask_model(make_cnn(), granularity="channel")
    masked.set_masks(masked.units.expand(np.arange(masked.units.count) > 2))
    for name, kind in REGULARIZERS.items():
        with tf.GradientTape() as tape:
            penalty = kind(1.0).penalty(TrainedWeights(masked))
        sources = [resource_of(variable) for variable in masked.variables.values()]
        for gradient, mask in zip(tape.gradient(penalty, sources), masked.masks().values(), strict=True):
            if gradient is not None:
                assert np.isfinite(gradient).all() and not np.asarray(gradient)[~mask].any(), name


def test_a_step_goes_by_loss_and_penalty(make_cnn, images):
    """One step of plain gradient descent, by the gradients of a loss that was added up by hand."""
    x, y = images
    model, strength = make_cnn(), 0.01
    with tf.GradientTape() as tape:
        given = model(x, training=True)
        loss = -tf.reduce_mean(tf.math.log(tf.gather(given, y, batch_dims=1)))
        kernels = [model.get_layer(name).kernel for name in ("first", "second", "head")]
        total = loss + strength * sum(tf.reduce_sum(tf.abs(tf.convert_to_tensor(kernel))) for kernel in kernels)
    sources = [resource_of(kernel) for kernel in kernels]
    expected = [np.array(k) - 0.1 * np.array(g) for k, g in zip(kernels, tape.gradient(total, sources), strict=True)]
    penalty = (float(total) - float(loss)).real

    model = make_cnn()
    pruning = aimp_tf.GlobalMagnitudePruning(
        target_sparsity=0.5, rate=0.3, epochs=1, regularizer=aimp_tf.regularizers.GroupLasso(strength)
    )
    masked = aimp_tf.wrap(model)
    masked.fit(x, y, batch_size=len(x), validation_data=(x, y), callbacks=[pruning], verbose=0)
    for name, value in zip(("first", "second", "head"), expected, strict=True):
        np.testing.assert_allclose(np.asarray(model.get_layer(name).kernel), value, atol=1e-5)
    logs = pruning.epoch_logs[0]
    assert logs["penalty"] == pytest.approx(penalty, rel=1e-4) and penalty > 0.1
    # What is told of the loss is without it, and so is that of the validation data.
    assert logs["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert logs["val_loss"] == pytest.approx(model.evaluate(x, y, verbose=0)[0], rel=1e-4)


def test_it_ends_when_nothing_is_left_to_be_ranked(make_cnn, images):
    told = {}
    for name in ("group_lasso", "norm_loss"):
        result = aimp_tf.prune(make_cnn(), *images, regularizer=name, **SETTINGS)
        told[name] = [round_.metrics["penalty"] for round_ in result.rounds]
    assert all(value > 0 for value in told["group_lasso"][:-1]) and told["group_lasso"][-1] == 0
    assert all(value > 0 for value in told["norm_loss"])


def test_gradual_pruning_ends_it_with_its_ramp(make_cnn, images):
    logs = []

    class Noting(aimp_tf.GlobalMagnitudePruning):
        def on_epoch_end(self, epoch, logs_=None):
            super().on_epoch_end(epoch, logs_)
            logs.append(dict(logs_))

    pruning = Noting(target_sparsity=0.5, epochs=4, method="gradual", ramp=0.5, regularizer="group_lasso")
    masked = aimp_tf.wrap(make_cnn())
    masked.fit(*images, batch_size=16, epochs=4, callbacks=[pruning], verbose=0)
    told = [each["penalty"] for each in logs]
    assert told[0] > 0 and told[1] > 0 and told[2:] == [0, 0]


def test_what_is_excluded_or_frozen_is_left_alone(make_cnn):
    model = make_cnn()
    model.get_layer("second").trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    masked = mask_model(model, exclude=("head/*",), include=("first/*", "second/*"))
    assert list(TrainedWeights(masked).kernels) == ["first/kernel"]


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_all_kernels_count_in_half_precision(make_cnn, precision):
    masked = mask_model(make_cnn(), mixed_precision=precision)
    weights = TrainedWeights(masked)
    assert list(weights.kernels) == list(masked.variables) and len(weights.kernels) == 3
    assert all(kernel.dtype == tf.float32 for kernel in weights.kernels.values())


def test_outputs_of_every_kind_of_kernel(K):
    """In a transposed convolution they are the last axis but one; of attention, heads and their values together."""
    inputs = K.Input((4, 4, 3))
    flat = K.layers.Reshape((96, 1))(K.layers.Conv2DTranspose(6, 3, padding="same", name="up")(inputs))
    attended = K.layers.MultiHeadAttention(2, 4, name="attention")(flat, flat)
    model = K.Model(inputs, K.layers.LSTM(2, name="last")(attended))
    model.compile("sgd", "mse")
    kernels = TrainedWeights(mask_model(model)).kernels
    shapes = {path.split("/")[-2]: tuple(kernel.shape) for path, kernel in kernels.items() if "recurrent" not in path}
    assert shapes["up"] == (9, 3, 6) and shapes["query"] == (1, 1, 8) and shapes["attention_output"] == (2, 4, 1)
    up = np.asarray(model.get_layer("up").kernel)
    np.testing.assert_array_equal(kernels["up/kernel"][..., 2], up[:, :, 2].reshape(9, 3))


@pytest.mark.slow
def test_half_precision(make_cnn, images):
    """Losses are scaled in float16, and penalties with them: the kernels that it takes are the same, roughly."""
    kernels = {}
    for precision in (None, "mixed_bfloat16", "mixed_float16"):
        settings = SETTINGS | {"mixed_precision": precision, "target_sparsity": 0.2, "rate": 0.2}
        result = aimp_tf.prune(make_cnn(), *images, regularizer=aimp_tf.regularizers.Nuclear(0.05), **settings)
        kernels[precision] = np.linalg.norm(result.model.get_layer("head").kernel)
        assert result.rounds[0].metrics["penalty"] > 0
    without = aimp_tf.prune(make_cnn(), *images, **SETTINGS | {"target_sparsity": 0.2, "rate": 0.2})
    norm = np.linalg.norm(without.model.get_layer("head").kernel)
    assert kernels[None] < 0.97 * norm
    assert kernels["mixed_bfloat16"] == pytest.approx(kernels[None], rel=0.01)
    assert kernels["mixed_float16"] == pytest.approx(kernels[None], rel=0.01)


def test_replicas_share_it(K, strategy, blobs):
    weights = {}
    for replicas in (1, 2):
        with strategy.scope() if replicas == 2 else tf.distribute.get_strategy().scope():
            K.utils.set_random_seed(1)
            model = K.Sequential([K.Input((8,)), K.layers.Dense(16, activation="tanh"), K.layers.Dense(3)])
            model.compile(K.optimizers.SGD(0.1), K.losses.SparseCategoricalCrossentropy(from_logits=True))
        result = aimp_tf.prune(
            model, *blobs, regularizer=aimp_tf.regularizers.Nuclear(0.05), **SETTINGS | {"shuffle": False}
        )
        weights[replicas], told = model.get_weights(), result.rounds[0].metrics["penalty"]
        assert told == pytest.approx(0.366, rel=0.02)  # Of a step, each replica has the whole.
    for one, two in zip(weights[1], weights[2], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_replicas_tell_their_metrics_together(K, strategy, blobs):
    """Of counts, the mean of the replicas is half of them."""
    told = []
    for regularizer in (None, "group_lasso"):
        with strategy.scope():
            K.utils.set_random_seed(1)
            model = K.Sequential([K.Input((8,)), K.layers.Dense(16), K.layers.Dense(1, activation="sigmoid")])
            model.compile(K.optimizers.SGD(1e-9), "binary_crossentropy", metrics=[K.metrics.TruePositives(name="true")])
        result = aimp_tf.prune(model, blobs[0], (blobs[1] > 0).astype("float32"), regularizer=regularizer, **SETTINGS)
        told.append(result.rounds[0].metrics["true"])
    assert told[0] == told[1] > 0


def test_it_goes_on_where_it_stopped(make_cnn, images, tmp_path):
    class Stop(Exception):
        pass

    def prune(folder, stop=None):
        import keras
        import tf_keras

        module = keras if isinstance(model, keras.Model) else tf_keras

        class Stopping(module.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                if stop is not None and int(self.model.optimizer.iterations) == stop:
                    raise Stop

        settings = SETTINGS | {"round_epochs": 2}
        return aimp_tf.prune(
            model, *images, regularizer="group_lasso", workdir=tmp_path / folder, callbacks=[Stopping()], **settings
        )

    model = make_cnn()
    whole = [*prune("whole").model.get_weights()]
    model = make_cnn()
    with pytest.raises(Stop):
        prune("parts", stop=8)
    model = make_cnn()
    for one, two in zip(whole, prune("parts").model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_one_of_ones_own(make_cnn, images):
    class Biggest(aimp_tf.regularizers.Regularizer):
        def penalty(self, weights):
            return tf.add_n([tf.reduce_max(tf.abs(kernel)) for kernel in weights.kernels.values()])

    result = aimp_tf.prune(make_cnn(), *images, regularizer=Biggest(0.1), **SETTINGS)
    plain = aimp_tf.prune(make_cnn(), *images, **SETTINGS)
    assert "Biggest(strength=0.1)" in result.config.to_json()
    biggest = [max(np.abs(np.asarray(w)).max() for w in r.model.get_weights()[:1]) for r in (result, plain)]
    assert biggest[0] < biggest[1]


def test_nothing_is_left_on_the_model(make_cnn, images):
    model = make_cnn()
    before = set(vars(model))
    aimp_tf.prune(model, *images, regularizer="group_lasso", **SETTINGS)
    assert not {"compute_loss", "reset_metrics", "train_step"} & set(vars(model)) - before
    assert "penalty" not in model.fit(*images, verbose=0).history
    assert "update_state" not in vars(getattr(model, "_loss_tracker", model))


def test_a_run_takes_the_place_of_an_earlier_one(make_cnn, images):
    """On the same masked model, of which the first run was left: nothing of it goes on."""
    settings = {"target_sparsity": 0.5, "rate": 0.3, "epochs": 1, "round_epochs": 1}
    ends = []
    for left in (True, False):
        model = make_cnn()
        masked = aimp_tf.wrap(model)
        if left:
            projection = aimp_tf.projections.L1(radius=0.5, every="step")
            regularizer = aimp_tf.regularizers.Nuclear(10.0)
            first = aimp_tf.GlobalMagnitudePruning(regularizer=regularizer, projection=projection, **settings)
            first.begin(MaskedModel.of(masked))
        pruning = aimp_tf.GlobalMagnitudePruning(**settings)
        while not pruning.finished:
            masked.fit(*images, shuffle=False, callbacks=[pruning], verbose=0)
        ends.append(np.concatenate([weight.ravel() for weight in aimp_tf.strip(masked).get_weights()]))
    np.testing.assert_array_equal(*ends)


def test_compiled_again_with_the_same_optimizer(K, make_cnn, images):
    masked = aimp_tf.wrap(make_cnn(K.optimizers.SGD(1e-5)))
    pruning = aimp_tf.GlobalMagnitudePruning(
        target_sparsity=0.4, rate=0.3, epochs=1, regularizer=aimp_tf.regularizers.Nuclear(5.0)
    )
    masked.fit(*images, callbacks=[pruning], verbose=0)
    masked.compile(masked.optimizer, "sparse_categorical_crossentropy")
    masked.fit(*images, callbacks=[pruning], verbose=0)
    assert pruning.rounds[1].metrics["penalty"] > 10 > pruning.rounds[1].metrics["loss"]


def test_masked_again_between_rounds(make_cnn, images):
    """By the same run, which then penalises and projects the model as it is masked now."""
    settings = {"target_sparsity": 0.6, "rate": 0.3, "epochs": 1, "round_epochs": 1, "regularizer": "group_lasso"}
    ball = aimp_tf.projections.L1(radius=0.5, every="step")
    pruning = aimp_tf.GlobalMagnitudePruning(**settings, projection=ball)
    masked = aimp_tf.wrap(make_cnn())
    masked.fit(*images, callbacks=[pruning], verbose=0)
    masked.fit(*images, callbacks=[pruning], verbose=0)
    masks = MaskedModel.of(masked).masks()
    masked = aimp_tf.wrap(aimp_tf.strip(masked, unfinished=True), masks=masks)
    history = masked.fit(*images, callbacks=[pruning], verbose=0).history
    assert not pruning.finished and history["penalty"][0] > 0
    for path, kernel in MaskedModel.of(masked).weights().items():
        assert path not in MaskedModel.of(masked).prunable or np.abs(kernel).sum() < 0.5 + 1e-3


def test_compiled_again_between_rounds(make_cnn, images, K):
    model = make_cnn()
    pruning = aimp_tf.GlobalMagnitudePruning(target_sparsity=0.4, rate=0.3, epochs=1, regularizer="group_lasso")
    masked = aimp_tf.wrap(model)
    masked.fit(*images, callbacks=[pruning], verbose=0)
    masked.compile(K.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    before = pruning.rounds[0].metrics["penalty"]
    masked.fit(*images, callbacks=[pruning], verbose=0)
    assert 0 < pruning.rounds[1].metrics["penalty"] < before
    masked.fit(*images, callbacks=[pruning], verbose=0)
    assert pruning.finished and aimp_tf.strip(masked) is model


def test_a_step_of_ones_own_that_leaves_it_out_is_refused(K, images):
    class Own(K.Sequential):
        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self(data[0], training=True) ** 2)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    if K.__name__ == "tf_keras":
        pytest.skip("A subclass cannot be wrapped there.")
    model = Own([K.Input((8, 8, 1)), K.layers.Flatten(), K.layers.Dense(4)])
    model.compile("sgd")
    before = model.get_weights()
    with pytest.raises(RuntimeError, match="train_step of Own does not call self.compute_loss"):
        aimp_tf.prune(model, *images, regularizer="nuclear", **SETTINGS)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_step_of_ones_own_that_calls_compute_loss(K, images):
    class Own(K.Model):
        def train_step(self, data):
            x, y = data[:2]
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    inputs = K.Input((8, 8, 1))
    model = Own(inputs, K.layers.Dense(10)(K.layers.Flatten()(inputs)))
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = aimp_tf.prune(model, *images, regularizer="nuclear", **SETTINGS)
    assert result.rounds[0].metrics["penalty"] > 0


def test_mistakes_are_told_before_training(make_cnn, images):
    for settings, error, message in (
        ({"regularizer": "l1"}, ValueError, "regularizer must be None or one of 'group_lasso'"),
        ({"regularizer": aimp_tf.regularizers.GroupLasso}, ValueError, r"Write GroupLasso\(...\)"),
        ({"regularizer": "scale_l1"}, ValueError, "no channels that can go have one"),
        ({"regularizer": "nuclear", "method": "dense"}, ValueError, "method='dense' has no use for"),
        (
            {"regularizer": "nuclear", "compact_rounds": True},
            ValueError,
            "regularizer looks at whole layers. Leave out compact_rounds",
        ),
    ):
        model = make_cnn()
        before = model.get_weights()
        fields = SETTINGS | settings
        if settings.get("method") == "dense":
            fields = {name: value for name, value in fields.items() if name not in ("rate", "round_epochs")}
        with pytest.raises(error, match=message):
            aimp_tf.prune(model, *images, **fields)
        for one, two in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)

    class Vector(aimp_tf.regularizers.Regularizer):
        def penalty(self, weights):
            return tf.stack([tf.reduce_sum(kernel) for kernel in weights.kernels.values()])

    class Bare:
        def penalty(self, weights):
            return 0.0

    for regularizer, message in (
        (Vector(1.0), r"penalty of Vector must return a scalar; got a tensor of shape \(3,\)"),
        (Bare(), "got a Bare without strength"),
    ):
        with pytest.raises(ValueError, match=message):
            aimp_tf.prune(make_cnn(), *images, regularizer=regularizer, **SETTINGS)
    once = SETTINGS | {"start": "trained", "rate": 0.5}
    with pytest.raises(ValueError, match="regularizer and projection would do nothing: start='trained'"):
        aimp_tf.prune(make_cnn(), *images, regularizer="nuclear", projection="l1", **once)
    with pytest.raises(ValueError, match="strength of GroupLasso must be above 0; got 0"):
        aimp_tf.regularizers.GroupLasso(0)
    with pytest.raises(TypeError, match="got 'much'"):
        aimp_tf.regularizers.NormLoss("much")
    with pytest.raises(TypeError, match="one_shot does not heed regularizer"):
        aimp_tf.one_shot(make_cnn(), *images, target_sparsity=0.5, regularizer="nuclear")


@pytest.mark.slow
def test_group_lasso_makes_what_goes_small(make_cnn, digits):
    """On real data: the smaller half of the weights, which goes next, has less of the sum of all."""
    x, y = digits[0].reshape(-1, 8, 8, 1), digits[1]
    shares = []
    for regularizer in (None, aimp_tf.regularizers.GroupLasso(5e-3)):
        pruning = aimp_tf.GlobalMagnitudePruning(
            target_sparsity=0.5, rate=0.5, epochs=8, round_epochs=8, regularizer=regularizer
        )
        masked = aimp_tf.wrap(make_cnn())
        masked.fit(x, y, batch_size=32, epochs=8, callbacks=[pruning], verbose=0)
        weights = MaskedModel.of(masked).weights().values()
        magnitudes = np.sort(np.concatenate([np.abs(weight).ravel() for weight in weights]))
        shares.append(magnitudes[: magnitudes.size // 2].sum() / magnitudes.sum())
    assert shares[1] < 0.7 * shares[0]
