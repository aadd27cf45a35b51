import gc
import logging
import weakref

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.compat.callbacks import EpochCallback
from aimp_tf.graph.prunable import prunable_variables
from aimp_tf.masking import MaskedModel, mask_model
from aimp_tf.masking.masked_model import ConstrainedModel, WrappedModel
from aimp_tf.selection.ranking import keep_largest


def compiled(K, model, **options):
    model.compile(optimizer=K.optimizers.SGD(0.05, momentum=0.9), loss="mse", **options)
    return model


def functional(K, shape, body):
    inputs = K.Input(shape)
    return compiled(K, K.Model(inputs, body(K.layers, inputs)))


def prune_half(masked):
    masks = keep_largest(masked.weights(), masked.masks(), masked.total // 2)
    masked.set_masks(masks)
    return masks


def zeros_where_pruned(weights, masks):
    return all(not np.any(weights[path][~mask]) for path, mask in masks.items())


def attention_body(layers, x):
    y = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    return layers.LayerNormalization()(y + x)


def shared_body(layers, x):
    dense = layers.Dense(6, name="shared")
    return dense(dense(x))


def branched_body(layers, x):
    left = layers.Conv2D(4, 3, padding="same", name="left")(x)
    right = layers.Conv2D(4, 1, padding="same", name="right")(x)
    joined = layers.Concatenate()([left, right])
    joined = layers.DepthwiseConv2D(3, name="depthwise")(joined)
    joined = layers.SeparableConv2D(5, 3, name="separable")(joined)
    return layers.Conv2DTranspose(2, 3, name="transpose")(joined)


MODELS = {
    "dense": (
        (6,),
        lambda layers, x: layers.Dense(3, name="out")(layers.Dense(5, name="in")(x)),
        ["in/kernel", "out/kernel"],
    ),
    "shared": ((6,), shared_body, ["shared/kernel"]),
    "convolutions": (
        (8, 8, 3),
        branched_body,
        ["left/kernel", "right/kernel", "separable/pointwise_kernel", "transpose/kernel"],
    ),
    "attention": (
        (5, 6),
        attention_body,
        [f"attention/{name}/kernel" for name in ("query", "key", "value", "attention_output")],
    ),
    "lstm": (
        (5, 6),
        lambda layers, x: layers.LSTM(4, name="rnn")(x),
        ["rnn/lstm_cell/kernel", "rnn/lstm_cell/recurrent_kernel"],
    ),
    "stacked cells": (
        (5, 6),
        lambda layers, x: layers.RNN([layers.GRUCell(4, name="a"), layers.SimpleRNNCell(3, name="b")], name="rnn")(x),
        [f"rnn/stacked_rnn_cells/{cell}/{kernel}" for cell in "ab" for kernel in ("kernel", "recurrent_kernel")],
    ),
    "bidirectional": (
        (5, 6),
        lambda layers, x: layers.Bidirectional(layers.GRU(4, name="rnn"), name="both")(layers.Masking()(x)),
        [
            f"both/{way}_rnn/gru_cell/{kernel}"
            for way in ("forward", "backward")
            for kernel in ("kernel", "recurrent_kernel")
        ],
    ),
    "time distributed": (
        (5, 6),
        lambda layers, x: layers.TimeDistributed(layers.Dense(3, name="dense"), name="each")(x),
        ["each/dense/kernel"],
    ),
    "einsum": (
        (5, 6),
        lambda layers, x: layers.EinsumDense("abc,cd->abd", output_shape=(5, 3), name="einsum")(x),
        ["einsum/kernel"],
    ),
    "causal convolutions": (
        (9, 2),
        lambda layers, x: layers.Conv1DTranspose(3, 2, name="b")(layers.Conv1D(4, 2, padding="causal", name="a")(x)),
        ["a/kernel", "b/kernel"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_training_keeps_pruned_weights_zero(K, name):
    """Every kind of layer, in both generations: the same paths, zeros after each step, a plain model in the end."""
    shape, body, paths = MODELS[name]
    model = functional(K, shape, body)
    assert list(prunable_variables(model)) == paths
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype("float32")
    x[:4, 3:] = 0  # Steps that Masking leaves out.
    y = np.random.default_rng(1).normal(size=(8, *model.output_shape[1:])).astype("float32")
    names = [variable.name for variable in model.weights]
    before_wrapping = model.predict(x, verbose=0)

    masked = mask_model(model)
    np.testing.assert_array_equal(masked.model.predict(x, verbose=0), before_wrapping)
    masks = prune_half(masked)
    snapshot = dict(masked.weights())
    masked.model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    masked.check_sparse()
    assert any(np.any(masked.weights()[path] != snapshot[path]) for path in paths), "nothing was trained"
    trained = masked.model.predict(x, verbose=0)

    stripped = masked.strip()
    assert stripped is model
    assert [variable.name for variable in model.weights] == names
    np.testing.assert_array_equal(model.predict(x, verbose=0), trained)
    assert 0.5 <= aimp_tf.sparsity(model) < 0.6


def test_nested_models(K):
    layers = K.layers
    head = K.Sequential([K.Input((5,)), layers.Dense(4, name="dense"), layers.Dense(4, name="last")], name="head")
    inner_in = K.Input((4,))
    inner = K.Model(inner_in, layers.Dense(4, name="dense")(inner_in), name="inner")
    model = functional(K, (6,), lambda layers, x: inner(inner(head(layers.Dense(5, name="stem")(x)))))
    paths = ["stem/kernel", "head/dense/kernel", "head/last/kernel", "inner/dense/kernel"]
    assert list(prunable_variables(model)) == paths
    masked = mask_model(model)
    masks = prune_half(masked)
    masked.model.fit(np.ones((8, 6), "float32"), np.ones((8, 4), "float32"), epochs=2, verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    assert masked.strip() is model


def test_model_that_learns_its_shape_from_data(K):
    model = compiled(K, K.Sequential([K.layers.Dense(4, name="a"), K.layers.Dense(2, name="b")]))
    with pytest.raises(ValueError, match="has no weights yet"):
        aimp_tf.wrap(model)
    model(np.ones((2, 3), "float32"))
    masked = mask_model(model)
    masks = prune_half(masked)
    masked.model.fit(np.ones((8, 3), "float32"), np.ones((8, 2), "float32"), verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    assert masked.strip() is model


def test_layer_with_get_prunable_weights_decides_for_itself(K):
    class Scaled(K.layers.Layer):
        def build(self, input_shape):
            self.matrix = self.add_weight(shape=(input_shape[-1], 3), initializer="random_normal", name="matrix")
            self.scale = self.add_weight(shape=(3,), initializer="ones", name="scale")
            self.dense = K.layers.Dense(3)
            self.dense.build((None, 3))

        def call(self, inputs):
            return self.dense(inputs @ self.matrix * self.scale)

        def get_prunable_weights(self):
            return [self.matrix]

    model = functional(K, (4,), lambda layers, x: layers.Dense(2, name="out")(Scaled(name="own")(x)))
    assert list(prunable_variables(model)) == ["own/matrix", "out/kernel"]
    masked = mask_model(model, exclude=("out/*",))
    masks = prune_half(masked)
    assert list(masks) == ["own/matrix"]
    masked.model.fit(np.ones((8, 4), "float32"), np.ones((8, 2), "float32"), verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    layer = masked.strip().get_layer("own")
    assert layer.get_prunable_weights() == [layer.matrix]


def test_keras_3_subclassed_model_with_its_own_train_step(blobs):
    import keras

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [keras.layers.Dense(16, activation="relu", name="same") for _ in range(2)]
            self.out = keras.layers.Dense(3, name="out")

        def call(self, inputs):
            for block in self.blocks:
                inputs = block(inputs)
            return self.out(inputs)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    model = Own()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model(blobs[0])
    assert list(prunable_variables(model)) == ["same/kernel", "same/kernel_1", "out/kernel"]
    masked = mask_model(model)
    masks = prune_half(masked)
    masked.model.fit(*blobs, epochs=2, verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)


def test_tf_keras_subclassed_model_is_refused_with_ways_out(blobs):
    import tf_keras

    class Own(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = tf_keras.layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    model = Own()
    model.compile("adam", "mse")
    model(blobs[0])
    with pytest.raises(ValueError, match="subclassed tf_keras model.*Ways out.*Keras 3.*functional"):
        aimp_tf.wrap(model)
    assert MaskedModel.of(model) is None

    inputs = tf_keras.Input((8,))
    way_out = tf_keras.Model(inputs, model(inputs))
    way_out.compile("adam", "mse")
    masked = mask_model(way_out)
    masks = prune_half(masked)
    masked.model.fit(blobs[0], np.ones((64, 3), "float32"), verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)


def test_tf_keras_functional_subclass_keeps_its_train_step_and_attributes(blobs):
    import tf_keras

    class Own(tf_keras.Model):
        def train_step(self, data):
            return {**super().train_step(data), "mark": tf.constant(self.mark)}

    inputs = tf_keras.Input((8,))
    model = Own(inputs, tf_keras.layers.Dense(3)(inputs))
    model.mark = 7.0
    model.compile("sgd", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = aimp_tf.wrap(model).fit(*blobs, verbose=0)
    assert history.history["mark"] == [7.0]


@pytest.mark.parametrize("K", ["tf_keras"], indirect=True)
def test_tf_keras_layers_are_pruning_layers_on_prunable_layers_alone(make_mlp):
    from tensorflow_model_optimization.python.core.sparsity.keras.pruning_wrapper import PruneLowMagnitude

    model = make_mlp()
    wrapped = aimp_tf.wrap(model)
    assert [isinstance(layer, PruneLowMagnitude) for layer in wrapped.layers] == [True, False, True]
    assert [layer.name for layer in wrapped.layers] == [layer.name for layer in model.layers]
    aimp_tf.strip(wrapped)


def test_layers_are_left_as_they_were(K):
    inputs = K.Input((6,))
    hidden = K.layers.BatchNormalization(name="norm")(K.layers.Dense(5, name="in")(inputs))
    model = compiled(K, K.Model(inputs, K.layers.Dense(2, name="out")(hidden)))

    def nodes():
        return [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in model.layers]

    before = nodes()
    aimp_tf.strip(aimp_tf.wrap(model))
    assert nodes() == before, "a node more would keep the wrapped model alive"
    assert all(variable.constraint is None for variable in model.trainable_variables)
    features = K.Model(model.input, model.get_layer("norm").output)
    assert features(np.ones((2, 6), "float32")).shape == (2, 5)


def test_multiple_outputs_keep_their_names(K):
    inputs = K.Input((6,), name="x")
    outputs = {name: K.layers.Dense(2, name=name)(inputs) for name in ("first", "second")}
    model = K.Model(inputs, outputs)
    model.compile(
        "sgd",
        loss={"first": "mse", "second": K.losses.MeanAbsoluteError()},
        metrics={"first": [K.metrics.MeanSquaredError(name="error")]},
    )
    x, y = np.ones((8, 6), "float32"), {name: np.ones((8, 2), "float32") for name in outputs}
    expected = model.evaluate(x, y, verbose=0, return_dict=True)
    wrapped = aimp_tf.wrap(model)
    history = wrapped.fit(x, y, verbose=0)
    assert set(history.history) == set(expected)
    stripped = aimp_tf.strip(wrapped, unfinished=True)
    assert set(stripped.evaluate(x, y, verbose=0, return_dict=True)) == set(expected)


def test_losses_of_regularisers_are_counted_once(K):
    regulariser = K.regularizers.L2(0.1)
    body = lambda layers, x: layers.Dense(3, kernel_regularizer=regulariser, activity_regularizer=regulariser)(x)  # noqa: E731
    model = functional(K, (4,), body)
    x, y = np.ones((8, 4), "float32"), np.zeros((8, 3), "float32")
    plain = model.evaluate(x, y, verbose=0)
    wrapped = aimp_tf.wrap(model)
    assert wrapped.evaluate(x, y, verbose=0) == pytest.approx(plain, rel=1e-6)


def test_the_users_constraint_still_holds(K):
    body = lambda layers, x: layers.Dense(3, kernel_constraint=K.constraints.NonNeg(), name="d")(x)  # noqa: E731
    model = functional(K, (4,), body)
    masked = mask_model(model)
    masks = prune_half(masked)
    masked.model.fit(np.ones((8, 4), "float32"), -np.ones((8, 3), "float32"), epochs=3, verbose=0)
    assert (masked.weights()["d/kernel"] >= 0).all()
    assert zeros_where_pruned(masked.weights(), masks)
    constraint = masked.strip().get_layer("d").kernel.constraint
    assert isinstance(constraint, K.constraints.NonNeg)


def test_a_model_that_was_fitted_before_is_masked_all_the_same(make_mlp, blobs):
    """The train function traced by the first fit knows nothing of masks."""
    model = make_mlp()
    model.fit(*blobs, verbose=0)
    masked = mask_model(model)
    masks = prune_half(masked)
    masked.model.fit(*blobs, epochs=2, verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    model = masked.strip()
    model.fit(*blobs, epochs=2, verbose=0)
    assert aimp_tf.sparsity(model) < 0.1, "stripped weights must be free again"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_other_dtypes(K, policy, blobs):
    layers = [
        K.Input((8,)),
        K.layers.Dense(16, activation="relu", dtype=policy),
        K.layers.Dense(3, dtype="float64" if policy == "float64" else "float32"),
    ]
    model = K.Sequential(layers)
    model.compile("adam", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    masked = mask_model(model)
    masks = prune_half(masked)
    masked.model.fit(*blobs, epochs=2, verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    assert {weight.dtype.name for weight in masked.weights().values()} == {
        "float64" if policy == "float64" else "float32"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "initial_beside_zero"),
    [
        (lambda K: K.optimizers.SGD(0.1, momentum=0.9), set()),
        (lambda K: K.optimizers.SGD(0.1), set()),
        (lambda K: K.optimizers.Adam(0.01, amsgrad=True), set()),
        (lambda K: K.optimizers.Adagrad(0.01, initial_accumulator_value=0.25), {0.25}),
        (lambda K: K.optimizers.Nadam(0.01), {1.0}),
        (lambda K: K.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=1.0), set()),
        (lambda K: K.optimizers.RMSprop(0.01, centered=True, momentum=0.1), set()),
    ],
    ids=["momentum", "sgd", "adam", "adagrad", "nadam", "adamw", "rmsprop"],
)
@pytest.mark.parametrize("trained_before", [False, True])
def test_optimizer_reset(make_mlp, K, blobs, make, initial_beside_zero, trained_before):
    model = make_mlp(make(K))
    if trained_before:
        model.fit(*blobs, verbose=0)
    masked = mask_model(model)
    masks = prune_half(masked)
    rate = float(masked.model.optimizer.learning_rate.numpy())
    masked.model.fit(*blobs, epochs=2, verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    masked.model.optimizer.learning_rate.assign(rate / 10)
    assert masked.optimizer.steps > 0

    masked.optimizer.reset()
    slots = masked.optimizer._slots
    assert {value for slot in slots for value in np.unique(slot.numpy())} - {0.0} == initial_beside_zero
    assert masked.optimizer.steps == 0
    assert float(model.optimizer.learning_rate.numpy()) == np.float32(rate)
    masked.model.fit(*blobs, verbose=0)
    assert masked.optimizer.steps == 2


def test_legacy_tf_keras_optimizer(blobs):
    import tf_keras

    model = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(3)])
    schedule = tf_keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    optimizer = tf_keras.optimizers.legacy.Adam(schedule)
    model.compile(optimizer, tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    masked = mask_model(model)
    masks = prune_half(masked)
    masked.model.fit(*blobs, epochs=2, verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    assert any(slot.numpy().any() for slot in masked.optimizer._slots)
    masked.optimizer.reset()
    assert len(masked.optimizer._slots) == 4
    assert not any(slot.numpy().any() for slot in masked.optimizer._slots)
    assert masked.strip().optimizer.learning_rate is schedule


def test_loss_scale_survives_a_reset(K, blobs):
    model = K.Sequential([K.Input((8,)), K.layers.Dense(3, dtype="float32")])
    optimizer_class = getattr(K.optimizers, "LossScaleOptimizer", None) or K.mixed_precision.LossScaleOptimizer
    model.compile(optimizer_class(K.optimizers.Adam(0.01)), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    masked = mask_model(model)
    masked.model.fit(*blobs, verbose=0)
    scale = getattr(model.optimizer, "dynamic_scale", None)
    scale = model.optimizer.loss_scale if scale is None else scale
    before = float(scale)
    assert before > 1
    masked.optimizer.reset()
    assert float(scale) == before
    assert not any(slot.numpy().any() for slot in masked.optimizer._slots)
    assert masked.optimizer.steps == 0


def test_moving_average_optimizer_is_refused(make_mlp, K):
    model = make_mlp(K.optimizers.SGD(0.1, use_ema=True))
    with pytest.raises(ValueError, match="use_ema=True"):
        aimp_tf.wrap(model)
    assert MaskedModel.of(model) is None


def test_snapshot_restores_everything_but_pruned_weights(make_mlp, blobs):
    model = make_mlp()
    masked = mask_model(model)
    snapshot = masked.snapshot()
    masked.model.fit(*blobs, epochs=2, verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(masked.snapshot(), snapshot, strict=True)]
    assert all(changed) and len(changed) == 8, "moving statistics included"
    masks = prune_half(masked)
    masked.restore(snapshot)
    paths = {id(variable): path for path, variable in prunable_variables(model).items()}
    for variable, value in zip(model.weights, snapshot, strict=True):
        path = paths.get(id(variable))
        expected = value if path is None else np.where(masks[path], value, 0)
        np.testing.assert_array_equal(variable.numpy(), expected)


def test_check_sparse_names_the_variable(make_mlp):
    model = make_mlp()
    masked = mask_model(model)
    prune_half(masked)
    masked.check_sparse()
    kernel = model.get_layer("logits").kernel
    kernel.assign(np.ones(kernel.shape))
    with pytest.raises(RuntimeError, match="not zero in logits/kernel"):
        masked.check_sparse()


def test_include_and_exclude(make_mlp):
    assert list(mask_model(make_mlp(), include=("hid*",)).weights()) == ["hidden/kernel"]
    assert list(mask_model(make_mlp(), exclude=("log*",)).weights()) == ["hidden/kernel"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"include": ("dense/*",)}, "'dense/\\*' in include matches no prunable variable. They are: hidden/kernel"),
        ({"exclude": ("norm/*",)}, "'norm/\\*' in exclude matches no prunable variable"),
        ({"exclude": ("*",)}, "leave no prunable variable"),
    ],
)
def test_patterns_that_select_nothing_are_refused(make_mlp, patterns, message):
    with pytest.raises(ValueError, match=message):
        aimp_tf.wrap(make_mlp(), **patterns)


def test_models_without_prunable_weights_are_refused(K):
    model = compiled(K, K.Sequential([K.Input((4,)), K.layers.BatchNormalization()]))
    with pytest.raises(ValueError, match="no prunable weights"):
        aimp_tf.wrap(model)


@pytest.mark.parametrize("thing", [None, len, "model", object()])
def test_other_things_are_refused(thing):
    for function in (aimp_tf.wrap, aimp_tf.strip, aimp_tf.sparsity):
        with pytest.raises(TypeError, match="Expected a Keras model"):
            function(thing)


def test_misuse_is_refused(make_mlp, K):
    model = make_mlp()
    with pytest.raises(ValueError, match="carries no masks"):
        aimp_tf.strip(model)
    wrapped = aimp_tf.wrap(model)
    with pytest.raises(ValueError, match="masked already"):
        aimp_tf.wrap(wrapped)
    with pytest.raises(ValueError, match="not compiled"):
        aimp_tf.wrap(K.Sequential([K.Input((4,)), K.layers.Dense(2)]))


def test_sparsity_is_measured_on_the_weights(make_mlp):
    model = make_mlp()
    assert aimp_tf.sparsity(model) == 0.0
    kernel = model.get_layer("hidden").kernel
    value = kernel.numpy()
    value[:, :4] = 0
    kernel.assign(value)
    assert aimp_tf.sparsity(model) == 32 / (128 + 48)
    assert aimp_tf.sparsity(model, include=("hidden/*",)) == 0.25
    assert aimp_tf.sparsity(model, exclude=("hidden/*",)) == 0.0


def test_a_stripped_model_holds_no_masks_in_memory(make_mlp):
    masked = mask_model(make_mlp())
    reference = weakref.ref(masked)
    model = masked.strip()
    del masked
    gc.collect()
    assert reference() is None and model is not None


def test_a_masked_model_that_is_let_go_undoes_nothing_by_itself(K):
    """What was made of its layers since would change whenever memory is looked through."""
    hidden, logits, vector = K.layers.Dense(3), K.layers.Dense(1), K.Input((4,))
    model = K.Model(vector, logits(hidden(vector)))
    model.compile("sgd", "mse")
    wrapped = aimp_tf.wrap(model, mixed_precision="mixed_bfloat16")
    policy = hidden._dtype_policy.name
    other = K.Input((4,))
    later = K.Model(other, hidden(other))
    del model, wrapped
    gc.collect()
    assert hidden._dtype_policy.name == policy == "mixed_bfloat16"
    assert len(K.models.clone_model(later).layers) == 2


def test_a_model_is_not_masked_twice(make_mlp, blobs):
    """In tf_keras what `wrap` returns is another object than what it was given."""
    model = make_mlp()
    wrapped = aimp_tf.wrap(model)
    for again in (model, wrapped):
        with pytest.raises(ValueError, match="masked already"):
            aimp_tf.wrap(again)
    assert aimp_tf.strip(wrapped) is model
    aimp_tf.strip(aimp_tf.wrap(model))


def test_frozen_parts_stay_frozen(K):
    inner = K.Sequential([K.Input((6,)), K.layers.Dense(5, name="a"), K.layers.Dense(4, name="b")], name="inner")
    inner.trainable = False
    # tf_keras: in vain, for the model that holds the layer is frozen. Keras 3: it trains.
    inner.layers[-1].trainable = True
    inputs = K.Input((6,))
    model = compiled(K, K.Model(inputs, K.layers.Dense(2, name="head")(inner(inputs))))
    trainable = {id(variable) for variable in model.trainable_variables}
    frozen = [variable for variable in inner.weights if id(variable) not in trainable]
    assert len(frozen) == (2 if K.__name__ == "keras" else 4)
    masked = mask_model(model)
    assert {id(variable) for variable in masked.model.trainable_variables} == trainable
    masks = prune_half(masked)
    before = [variable.numpy() for variable in frozen]
    masked.model.fit(np.ones((8, 6), "float32"), np.ones((8, 2), "float32"), verbose=0)
    for variable, value in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert zeros_where_pruned(masked.weights(), masks)


def test_trainable_changed_since_training_is_refused(make_mlp, blobs):
    model = make_mlp()
    model.fit(*blobs, verbose=0)
    model.get_layer("hidden").trainable = False
    with pytest.raises(ValueError, match="Compile the model again before pruning"):
        aimp_tf.wrap(model)
    assert MaskedModel.of(model) is None


def test_a_layer_that_another_model_has_masked_is_refused(K):
    shared = K.layers.Dense(4, name="shared")
    first, second = (compiled(K, K.Sequential([K.Input((4,)), shared, K.layers.Dense(2)])) for _ in range(2))
    wrapped = aimp_tf.wrap(first)
    with pytest.raises(ValueError, match="shared/kernel is masked already, in another model"):
        aimp_tf.wrap(second)
    assert aimp_tf.strip(wrapped) is first
    aimp_tf.strip(aimp_tf.wrap(second))


def test_tf_keras_functional_subclass_with_its_own_constructor_is_refused():
    """It would run again, and the copy would train with what it made."""
    import tf_keras

    class Own(tf_keras.Model):
        def __init__(self, inputs, outputs, name=None, trainable=True):
            super().__init__(inputs, outputs, name=name, trainable=trainable)
            self.temperature = 1.0

    inputs = tf_keras.Input((8,))
    model = compiled(tf_keras, Own(inputs, tf_keras.layers.Dense(3)(inputs)))
    with pytest.raises(ValueError, match="Own is a subclassed tf_keras model"):
        aimp_tf.wrap(model)


def test_a_layer_outside_the_graph_is_masked_too(blobs):
    """Of a functional subclass whose train_step calls it."""
    import tf_keras

    class Own(tf_keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.aux(self(x, training=True)) ** 2)
            variables = self.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return {"loss": loss}

    inputs = tf_keras.Input((8,))
    model = Own(inputs, tf_keras.layers.Dense(3, name="out")(inputs))
    model.aux = tf_keras.layers.Dense(4, name="aux")
    model.aux.build((None, 3))
    model.compile("sgd", "mse")
    masked = mask_model(model)
    assert set(masked.masks()) == {"out/kernel", "aux/kernel"}
    masks = prune_half(masked)
    masked.model.fit(*blobs, epochs=2, verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    assert masked.strip() is model
    assert all(variable.constraint is None for variable in model.trainable_variables)


@pytest.mark.parametrize("owner", ["Layer", "Model"])
def test_a_failed_wrap_leaves_the_model_as_it_was(owner, monkeypatch):
    """It is called again to be rebuilt, and then compiled again."""
    import tf_keras

    def fail(*_, **__):
        raise RuntimeError("done again")

    inputs = tf_keras.Input((8,))
    model = tf_keras.Model(inputs, tf_keras.layers.Activation("relu")(tf_keras.layers.Dense(3, name="out")(inputs)))
    schedule = tf_keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    model.compile(tf_keras.optimizers.SGD(schedule), "mse")
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    if owner == "Layer":
        monkeypatch.setattr(tf_keras.layers.Activation, "call", fail)
    else:
        monkeypatch.setattr(tf_keras.Model, "compile", fail)
    with pytest.raises(RuntimeError, match="done again"):
        aimp_tf.wrap(model)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    assert MaskedModel.of(model) is None and model.get_layer("out").kernel.constraint is None
    assert not hasattr(model.get_layer("out"), "get_prunable_weights")
    assert model.optimizer._learning_rate is schedule


@pytest.mark.parametrize("failing", ["synchronize", "strip"])
def test_what_fails_late_leaves_no_masks(make_mlp, K, monkeypatch, failing):
    """Where other workers are asked, as one of them goes away: as the model is masked, and as it is stripped."""

    def fail(*_):
        raise RuntimeError("another worker is gone")

    model = make_mlp(K.optimizers.SGD(K.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)))
    rate, names = model.optimizer._learning_rate, set(vars(model))
    kind = ConstrainedModel if K.__name__ == "keras" else WrappedModel
    if failing == "synchronize":
        monkeypatch.setattr(kind, "synchronize", fail)
    else:
        monkeypatch.setattr(kind, "_zero_pruned", fail)
    with pytest.raises(RuntimeError, match="another worker is gone"):
        aimp_tf.strip(aimp_tf.wrap(model))
    assert MaskedModel.of(model) is None and set(vars(model)) <= names
    assert all(variable.constraint is None for variable in model.trainable_variables)
    assert model.optimizer._learning_rate is rate


def test_what_is_saved_in_training_is_the_plain_model(make_mlp, K, blobs, tmp_path):
    model = make_mlp(K.optimizers.SGD(K.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5), momentum=0.9))
    masked = mask_model(model)
    masks = prune_half(masked)
    checkpoints = [
        K.callbacks.ModelCheckpoint(str(tmp_path / "whole.keras")),
        K.callbacks.ModelCheckpoint(str(tmp_path / "only.weights.h5"), save_weights_only=True),
    ]
    masked.model.fit(*blobs, epochs=2, verbose=0, callbacks=checkpoints)
    expected = model.predict(blobs[0], verbose=0)
    whole = K.models.load_model(tmp_path / "whole.keras")
    assert type(whole.optimizer._learning_rate) is K.optimizers.schedules.ExponentialDecay
    only = make_mlp()
    only.load_weights(tmp_path / "only.weights.h5")
    for loaded in (whole, only):
        np.testing.assert_allclose(loaded.predict(blobs[0], verbose=0), expected, atol=1e-6)
        np.testing.assert_array_equal(loaded.get_layer("hidden").kernel.numpy() != 0, masks["hidden/kernel"])
    masked.model.load_weights(tmp_path / "only.weights.h5")


def test_lookup_tables_are_no_weights(K):
    text = K.layers.TextVectorization(max_tokens=9, output_sequence_length=4)
    text.adapt(tf.constant(["a b c", "d e f"]))
    inputs = K.Input((), dtype="string")
    model = compiled(K, K.Model(inputs, K.layers.Dense(2)(K.layers.Embedding(9, 3)(text(inputs)))))
    masked = mask_model(model)
    masked.restore(masked.snapshot())
    prune_half(masked)
    masked.model.fit(tf.constant(["a b", "c d"]), np.ones((2, 4, 2), "float32"), verbose=0)
    assert masked.strip() is model


def test_callbacks_find_a_layers_own_attributes(make_mlp):
    wrapped = aimp_tf.wrap(make_mlp())
    layer = wrapped.get_layer("hidden")
    assert layer.kernel.shape == (8, 16) and layer.units == 16
    assert not hasattr(layer, "no_such_thing")
    assert aimp_tf.sparsity(wrapped, include=("hidden/kernel",)) == 0.0


def test_stateful_layers_are_reset():
    import tf_keras

    model = tf_keras.Sequential([tf_keras.layers.LSTM(3, stateful=True, batch_input_shape=(2, 4, 5))])
    wrapped = aimp_tf.wrap(compiled(tf_keras, model))
    wrapped.predict(np.ones((2, 4, 5)), verbose=0)
    assert model.layers[0].states[0].numpy().any()
    wrapped.reset_states()
    assert not model.layers[0].states[0].numpy().any()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"jit_compile": True}, {"steps_per_execution": 3}, {"run_eagerly": True}])
def test_ways_to_run_a_step(make_mlp, blobs, options):
    masked = mask_model(make_mlp(**options))
    masks = prune_half(masked)
    masked.model.fit(*blobs, batch_size=10, epochs=2, verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    assert masked.optimizer.steps == 2 * 7


def test_gradient_accumulation(blobs):
    import keras

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.1, gradient_accumulation_steps=2), "mse")
    masked = mask_model(model)
    masks = prune_half(masked)
    masked.model.fit(blobs[0], np.ones((64, 3)), batch_size=16, epochs=2, verbose=0)
    assert zeros_where_pruned(masked.weights(), masks)
    masked.optimizer.reset()
    assert masked.optimizer.steps == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("ScheduleFreeAdamW", "starts from copies of the weights"), ("MultiOptimizer", "is made of several")],
)
def test_optimizers_that_cannot_be_reset_are_refused(name, message):
    import keras

    if not hasattr(keras.optimizers, name):
        pytest.skip(f"Keras {keras.__version__} has no {name}")
    parts = [[(keras.optimizers.SGD(0.1), lambda variable: True)]] if name == "MultiOptimizer" else []
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    model.compile(getattr(keras.optimizers, name)(*parts), "mse")
    with pytest.raises(ValueError, match=message):
        aimp_tf.wrap(model)
    assert MaskedModel.of(model) is None


def test_weights_are_read_when_asked_for_and_keep_their_value(K):
    model = functional(K, (4,), lambda layers, x: layers.Dense(3)(x))
    masked = mask_model(model)
    weights = masked.weights()
    (path,) = weights
    held = weights[path]
    before = held.copy()
    assert not held.flags.writeable
    masked.model.fit(np.ones((8, 4), "float32"), np.ones((8, 3), "float32"), verbose=0)
    np.testing.assert_array_equal(held, before)
    assert (weights[path] != before).all()


@pytest.mark.parametrize("trained", [False, True])
def test_strip_refuses_a_model_that_was_trained_without_the_callback(make_mlp, blobs, trained):
    model = make_mlp()
    wrapped = aimp_tf.wrap(model)
    if not trained:
        assert aimp_tf.strip(wrapped) is model
        return
    wrapped.fit(*blobs, verbose=0)
    with pytest.raises(RuntimeError, match=r"no GlobalMagnitudePruning was among the callbacks"):
        aimp_tf.strip(wrapped)
    assert aimp_tf.strip(wrapped, unfinished=True) is model and aimp_tf.sparsity(model) == 0


@pytest.mark.parametrize("value", [np.nan, 1e-8, -1.0])
def test_what_is_set_behind_the_masks_back_is_found_and_removed(make_mlp, value):
    masked = mask_model(make_mlp())
    masks = prune_half(masked)
    for path, variable in masked.variables.items():
        variable.assign(np.where(masks[path], variable.numpy(), value))
    with pytest.raises(RuntimeError, match="Pruned weights are not zero in hidden/kernel, logits/kernel"):
        aimp_tf.strip(masked.model)
    masked.set_masks(masks)
    assert zeros_where_pruned(masked.weights(), masks)
    model = aimp_tf.strip(masked.model)
    assert aimp_tf.sparsity(model) == pytest.approx(0.5, abs=0.01)


def test_minus_zero_becomes_zero(make_mlp):
    masked = mask_model(make_mlp())
    masks = prune_half(masked)
    for path, variable in masked.variables.items():
        variable.assign(np.where(masks[path], variable.numpy(), -0.0))
    model = aimp_tf.strip(masked.model)
    assert not np.signbit(np.array(model.get_layer("hidden").kernel)[~masks["hidden/kernel"]]).any()


def test_a_users_constraint_sees_what_is_left_and_moves_no_zero(K, blobs):
    class Shifted(K.constraints.Constraint):
        """The columns' largest magnitude is 1, and everything is moved by a tenth."""

        def __call__(self, w):
            w = tf.convert_to_tensor(w)
            return w / tf.reduce_max(abs(w), axis=0, keepdims=True) + 0.1

    layer = K.layers.Dense(16, kernel_constraint=Shifted(), name="hidden")
    model = K.Sequential([K.Input((8,)), layer, K.layers.Dense(3, name="logits")])
    model.compile(K.optimizers.SGD(0.01), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    layer.kernel.assign(np.arange(1.0, 129.0).reshape(8, 16) / 128)
    masked = mask_model(model)
    # The largest of each column is pruned.
    masks = {**masked.masks(), "hidden/kernel": np.repeat(np.arange(8) < 7, 16).reshape(8, 16)}
    masked.set_masks(masks)
    # It would be the largest again after each step.
    x, y = blobs
    masked.model.fit(x * np.array([1] * 7 + [1000], "float32"), y, verbose=0)
    kernel = np.array(layer.kernel)
    assert not kernel[7].any() and kernel.max(axis=0) == pytest.approx(1.1, abs=1e-6)
    masked.set_masks({**masks, "hidden/kernel": np.repeat(np.arange(8) < 6, 16).reshape(8, 16)})
    masked.constrain()
    kernel = np.array(layer.kernel)
    assert not kernel[6:].any() and kernel.max(axis=0) == pytest.approx(1.1, abs=1e-6)


def test_what_is_frozen_is_left_alone_unless_it_is_named(K, blobs, caplog):
    body = K.Sequential([K.Input((8,)), K.layers.Dense(6, name="a"), K.layers.Dense(5, name="b")], name="body")
    model = K.Sequential([K.Input((8,)), body, K.layers.Dense(3, name="head")])
    body.trainable = False
    model.compile("adam", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    with caplog.at_level(logging.WARNING):
        masked = mask_model(model)
    assert list(masked.variables) == ["head/kernel"]
    assert masked.left_dense == dict.fromkeys(["body/a/kernel", "body/b/kernel"], "frozen (trainable=False)")
    assert "Left dense: body/a/kernel, body/b/kernel (frozen (trainable=False))" in caplog.text
    masked.strip()
    assert list(mask_model(model, include=("body/b/*",)).variables) == ["body/b/kernel"]
    MaskedModel.of(model).strip()
    body.get_layer("a").kernel.assign(np.zeros((8, 6)))
    assert aimp_tf.sparsity(model) == 0 and aimp_tf.sparsity(model, include=("body/*",)) == pytest.approx(48 / 78)
    model.trainable = False
    assert aimp_tf.sparsity(model) == pytest.approx(48 / 93)  # A model for inference, all of which is frozen.
    model.compile("adam", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match=r"Everything prunable is frozen .*body/a/kernel.*name in include"):
        mask_model(model)


def test_matrices_that_no_rule_is_known_for_are_named(K, blobs, caplog):
    class Own(K.layers.Layer):
        def build(self, shape):
            self.matrix = self.add_weight(shape=(shape[-1], 4), name="matrix")
            self.own_bias = self.add_weight(shape=(4, 4), name="own_bias")
            self.table = self.add_weight(shape=(4, 4), name="table", trainable=False)
            super().build(shape)

        def call(self, inputs):
            return inputs @ self.matrix

    class Deciding(Own):
        def get_prunable_weights(self):
            return []

    layers = [Own(name="own"), Deciding(name="deciding"), K.layers.LayerNormalization(name="norm")]
    model = K.Sequential([K.Input((8,)), *layers, K.layers.Dense(3, name="head")])
    model.compile("adam", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = aimp_tf.prune(model, blobs, target_sparsity=0.5, rate=0.5, epochs=1, verbose=0)
    reason = "no rule for Own, which has no get_prunable_weights()"
    assert result.rounds[-1].left_dense == {"own/matrix": reason}
    assert f"Left dense ({reason}): own/matrix." in result.summary() and "own/matrix" in caplog.text
    # 6 of 32 + 16 + 16 weights of the first two layers twice, 8 of normalisation, 12 + 3 of the head.
    assert result.model_sparsity == pytest.approx(6 / (8 * 4 + 32 + 4 * 4 + 32 + 8 + 15))
    assert f"Of all weights of the model, {result.model_sparsity:.2%} were pruned." in result.summary()
    caplog.clear()
    aimp_tf.strip(aimp_tf.wrap(model, exclude=("own/*",), masks="zeros"))
    assert "own/matrix" not in caplog.text


def test_kernels_under_lora_and_quantized_ones_are_named(blobs):
    import keras

    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(6, name="lora"),
            keras.layers.Dense(4, name="int8"),
            keras.layers.Dense(3),
        ]
    )
    model.get_layer("lora").enable_lora(2)
    model.get_layer("int8").quantize("int8")
    model.compile("adam", "mse")
    masked = mask_model(model)
    assert len(masked.variables) == 1 and masked.left_dense == {
        "lora/kernel": "under LoRA, a sum of matrices; prune before enable_lora()",
        "int8/kernel": "quantized",
    }
    alone = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, name="lora")])
    alone.layers[0].enable_lora(2)
    alone.compile("adam", "mse")
    with pytest.raises(ValueError, match=r"no prunable weights.*lora/kernel \(under LoRA"):
        mask_model(alone)


def test_locally_connected_layers_of_tf_keras_are_pruned(blobs):
    import tf_keras

    x, y = blobs[0][:, :, np.newaxis], blobs[1]
    layers = [
        tf_keras.layers.LocallyConnected1D(4, 3, name="rows"),
        tf_keras.layers.LocallyConnected1D(4, 3, implementation=2, name="masked"),
        tf_keras.layers.LocallyConnected1D(4, 3, implementation=3, name="sparse"),
    ]
    model = tf_keras.Sequential(
        [tf_keras.Input((8, 1)), *layers, tf_keras.layers.Flatten(), tf_keras.layers.Dense(3, name="head")]
    )
    model.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = aimp_tf.prune(model, (x, y), target_sparsity=0.8, rate=0.8, epochs=1, verbose=0)
    assert list(result.masks) == ["rows/kernel", "sparse/kernel", "head/kernel"]
    assert list(result.rounds[-1].left_dense) == ["masked/kernel"]
    for layer in (layers[0], layers[2]):
        assert np.mean(layer.kernel.numpy() == 0) > 0.3


def test_patterns_that_name_a_layer_say_how_to_name_its_variables(make_mlp):
    with pytest.raises(ValueError, match=r"pattern 'hidden' in exclude .* did you mean 'hidden/\*'\?"):
        mask_model(make_mlp(), exclude=("hidden",))


def test_a_wrapped_model_is_not_cloned(blobs):
    import tf_keras

    model = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(3)])
    model.compile("adam", "mse")
    with pytest.raises(ValueError, match=r"aimp_tf.wrap has wrapped.*aimp_tf.strip\(model\)"):
        tf_keras.models.clone_model(aimp_tf.wrap(model))


def test_a_model_from_an_h5_file_is_pruned(K, make_mlp, blobs, tmp_path):
    model = make_mlp(K.optimizers.Adam(0.01))
    model.fit(*blobs, verbose=0)
    model.save(tmp_path / "model.h5")
    loaded = K.models.load_model(tmp_path / "model.h5")
    result = aimp_tf.prune(loaded, blobs, target_sparsity=0.75, rate=0.5, epochs=2, round_epochs=1, verbose=0)
    assert result.sparsity == 0.75


def own_adam(K):
    """Adam, whose averages are called otherwise, as in optimizers of one's own."""

    class OwnAdam(K.optimizers.Optimizer):
        def __init__(self, learning_rate=0.01, **settings):
            if K.__name__ == "keras":
                super().__init__(learning_rate=learning_rate, **settings)
            else:
                super().__init__(**{"name": "own", **settings})
                self._learning_rate = self._build_learning_rate(learning_rate)
            self.slow = 0.9

        def build(self, variables):
            super().build(variables)
            if not hasattr(self, "means"):
                self.means = [self.add_variable_from_reference(variable, "mean") for variable in variables]
                self._built = True

        def update_step(self, gradient, variable, learning_rate=None):
            mean = next(mean for mean in self.means if mean.shape == variable.shape)
            seen = tf.cast(self.iterations + 1, tf.float32)
            mean.assign(self.slow * mean + (1 - self.slow) * gradient)
            variable.assign(variable - 0.01 * mean / (1 - self.slow**seen))

        def get_config(self):
            return {**super().get_config(), "learning_rate": 0.01}

    return OwnAdam()


@pytest.mark.parametrize(
    ("name", "steps"),
    [("SGD", 7), ("Lion", 7), ("RMSprop", 7), ("Adagrad", 7), ("Adam", 0), ("Nadam", 0), ("Adamax", 0)],
)
def test_only_optimizers_whose_first_step_depends_on_the_count_start_at_0(K, make_mlp, name, steps):
    if not hasattr(K.optimizers, name):
        pytest.skip(f"{K.__name__} has no {name}")
    masked = mask_model(make_mlp(getattr(K.optimizers, name)(0.01)))
    masked.optimizer.reset(7)
    assert masked.optimizer.steps == steps


def test_optimizers_of_ones_own_are_tried_and_not_known_by_their_names(K, make_mlp):
    masked = mask_model(make_mlp(own_adam(K)))
    masked.optimizer.reset(7)
    assert masked.optimizer.steps == 0


def test_optimizers_that_a_model_holds_are_reset_and_stretched(make_gan, blobs):
    """4 steps an epoch: the critic's rate falls to 0 after 9 of the 16 steps of the last training."""
    model, seen = make_gan(), []
    critic, generator = model.own["critic"], model.own["generator"]
    rate_before = critic._learning_rate

    class Watch(EpochCallback):
        def on_epoch_begin(self, epoch, logs=None):
            moments = [float(np.abs(slot.numpy()).sum()) for slot in (*critic._momentums, *generator.momentums)]
            seen.append(
                (int(critic.iterations), int(generator.iterations), float(critic.learning_rate), sum(moments) > 0)
            )

    result = aimp_tf.prune(
        model, (blobs[0], blobs[0]), batch_size=16, target_sparsity=0.75, rate=0.75, epochs=4,
        round_epochs=2, callbacks=Watch(), verbose=0,
    )  # fmt: skip
    rate = np.float32(0.01)
    assert seen == [
        *[(0, 0, rate, False), (4, 4, rate, True)],
        *[(0, 0, rate, False), (4, 4, rate, True), (8, 8, rate, True), (12, 12, 0.0, True)],
    ]
    assert result.sparsity == 0.75 and critic._learning_rate is rate_before


def test_optimizers_that_a_model_holds_go_on_at_steps_of_their_own(make_gan):
    import keras

    masked = mask_model(make_gan({"critic": keras.optimizers.SGD(), "generator": keras.optimizers.SGD()}))
    masked.optimizers.reset([5, 3, 2])
    assert masked.optimizers.steps == [5, 3, 2]
    masked.strip()


def test_optimizers_that_a_model_holds_are_checked(make_gan):
    import keras

    averaging = keras.optimizers.SGD(0.1, use_ema=True)
    with pytest.raises(ValueError, match=r"optimizer in own\['generator'\], SGD was made with use_ema=True"):
        mask_model(make_gan({"critic": keras.optimizers.SGD(), "generator": averaging}))
    with pytest.raises(ValueError, match=r"optimizer in spare\[0\]\[1\], SGD was made with use_ema=True"):
        mask_model(make_gan(spare=[(0, averaging)]))
    with pytest.raises(ValueError, match=r"the model holds others in own\['critic'\], own\['generator'\]"):
        mask_model(make_gan(), mixed_precision="mixed_float16")


def test_optimizers_that_nothing_trains_with_are_left_alone(make_mlp, K):
    model = make_mlp()
    model.spare = K.optimizers.SGD(0.1, use_ema=True)  # Keras' own train_step cannot know of it.
    assert len(mask_model(model).optimizers.steps) == 1


def test_what_is_to_follow_a_fit_follows_it_even_round_another(K, make_mlp, blobs):
    masked = mask_model(make_mlp())
    told = []

    class Nesting(K.callbacks.Callback):
        def __init__(self, name, nested=None):
            super().__init__()
            self.name, self.nested = name, nested

        def on_train_end(self, logs=None):
            masked.fits.when_over(lambda: told.append(f"after {self.name}"))
            if self.nested:
                masked.model.fit(*blobs, callbacks=[self.nested], verbose=0)
            told.append(f"end of {self.name}")

    masked.model.fit(*blobs, callbacks=[Nesting("outer", Nesting("inner"))], verbose=0)
    assert told == ["end of inner", "after inner", "end of outer", "after outer"]
    masked.fits.when_over(lambda: told.append("now"))
    assert told[-1] == "now"


def test_compiling_the_users_own_tf_keras_model_after_wrap_is_refused(blobs):
    import tf_keras

    model = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(3)])
    model.compile("adam", "mse")
    wrapped = aimp_tf.wrap(model)
    model.compile("sgd", "mse")
    pruning = aimp_tf.GlobalMagnitudePruning(aimp_tf.PruningConfig(0.5, epochs=1))
    with pytest.raises(ValueError, match="compiled after aimp_tf.wrap, which returned another one to train"):
        wrapped.fit(blobs[0], np.zeros((64, 3)), callbacks=[pruning], verbose=0)


def test_callbacks_get_and_set_the_weights_of_the_plain_model(make_mlp):
    model = make_mlp()
    before = [np.array(weight) for weight in model.get_weights()]
    wrapped = aimp_tf.wrap(model)
    assert [weight.shape for weight in wrapped.get_weights()] == [weight.shape for weight in before]
    wrapped.set_weights([weight + 1 for weight in before])
    assert MaskedModel.of(wrapped).kept == 176
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old + 1)
