import keras
import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.masking import MaskedModel
from experiments import datasets
from experiments.run import compiled_model, train_dense

SETTINGS = {"target_sparsity": 0.75, "rate": 0.4, "epochs": 3, "round_epochs": 2, "verbose": 0, "seed": 1}


def test_prune_gives_back_the_pruned_model_and_its_story(make_mlp, blobs):
    model = make_mlp()
    result = aimp_tf.prune(model, blobs, validation_data=blobs, batch_size=16, **SETTINGS)
    assert result.model is model and MaskedModel.of(model) is None
    assert [round_.index for round_ in result.rounds] == [0, 1, 2, 3]
    assert [round_.epochs for round_ in result.rounds] == [2, 2, 2, 3]
    assert result.epochs == 3 * 2 + 3 and result.imp_epochs == 4 * 3
    assert set(result.rounds[-1].metrics) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert list(result.masks) == ["hidden/kernel", "logits/kernel"]
    kept = sum(mask.sum() for mask in result.masks.values())
    assert kept == result.rounds[-1].kept == 176 - 132
    assert result.sparsity == aimp_tf.sparsity(model) == 0.75
    for layer in ("hidden", "logits"):
        np.testing.assert_array_equal(model.get_layer(layer).kernel.numpy() != 0, result.masks[f"{layer}/kernel"])
    evaluated = model.evaluate(*blobs, verbose=0, return_dict=True)
    assert evaluated["accuracy"] == pytest.approx(result.rounds[-1].metrics["val_accuracy"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_result_twice(make_mlp, blobs):
    first, second = (aimp_tf.prune(make_mlp(), blobs, **SETTINGS).model.get_weights() for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    other = aimp_tf.prune(make_mlp(), blobs, **{**SETTINGS, "seed": 2}).model.get_weights()
    assert any(not np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_both_generations_give_the_same_masks(digits):
    """From the same initial weights on the same data: real digits, 90% sparse, branches and an own order of layers."""
    import tf_keras

    images, labels = digits
    masks, initial = {}, None
    for K in (keras, tf_keras):
        inputs = K.Input((64,))
        left = K.layers.Dense(24, activation="relu", name="left")(inputs)
        right = K.layers.Dense(24, activation="tanh", name="right")(inputs)
        model = K.Model(inputs, K.layers.Dense(10, name="logits")(K.layers.Add()([left, right])))
        if initial is None:
            initial = model.get_weights()
        model.set_weights(initial)
        model.compile(K.optimizers.SGD(0.05), K.losses.SparseCategoricalCrossentropy(from_logits=True))
        data = tf.data.Dataset.from_tensor_slices((images[:512], labels[:512])).batch(64)
        masks[K.__name__] = aimp_tf.prune(model, data, target_sparsity=0.9, epochs=4, verbose=0).masks
    assert list(masks["keras"]) == list(masks["tf_keras"]) == ["left/kernel", "right/kernel", "logits/kernel"]
    for path, mask in masks["keras"].items():
        np.testing.assert_array_equal(mask, masks["tf_keras"][path])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "K"),
    [("digits_mlp", "keras"), pytest.param("digits_cnn", "tf_keras", marks=pytest.mark.exhaustive)],
    indirect=["K"],
)
def test_digits_stay_within_half_a_point_of_dense(K, get_config, config):
    """Real data: three seeds, 90% sparse, the shipped configs."""
    experiment = get_config(config)
    experiment.keras = K.__name__
    data = datasets.load("digits")
    test = (data.test_images, data.test_labels)
    accuracies = {"dense": [], "pruned": []}
    for experiment.seed in range(3):
        dense, _ = train_dense(experiment, data, verbose=0)
        accuracies["dense"].append(dense.evaluate(*test, verbose=0)[1])
        pruned = aimp_tf.prune(
            compiled_model(experiment, data),
            (data.train_images, data.train_labels),
            config=experiment.pruning,
            batch_size=experiment.batch_size,
            verbose=0,
            seed=experiment.seed,
        )
        assert pruned.sparsity == pytest.approx(0.9, abs=1e-3)
        accuracies["pruned"].append(pruned.model.evaluate(*test, verbose=0)[1])
    assert np.mean(accuracies["dense"]) > 0.95
    assert np.mean(accuracies["pruned"]) >= np.mean(accuracies["dense"]) - 0.005, accuracies


def test_datasets_and_sequences_are_data_too(make_mlp, blobs, K):
    x, y = blobs
    dataset = tf.data.Dataset.from_tensor_slices(blobs).shuffle(64, seed=0).batch(16)
    assert aimp_tf.prune(make_mlp(), dataset, validation_data=dataset, **SETTINGS).sparsity == 0.75

    class Batches(getattr(K.utils, "PyDataset", None) or K.utils.Sequence):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            part = slice(16 * index, 16 * index + 16)
            return x[part], y[part]

    assert aimp_tf.prune(make_mlp(), Batches(), **SETTINGS).sparsity == 0.75


def test_arguments_of_fit_reach_fit(make_mlp, K, blobs):
    steps = []

    class Count(K.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            steps.append(batch)

    options = {"steps_per_epoch": None}
    assert aimp_tf.prune(make_mlp(), blobs, **options, **SETTINGS).sparsity == 0.75
    options = {"steps_per_epoch": 7, "batch_size": 16, "class_weight": {0: 1.0, 1: 2.0, 2: 1.0}}
    aimp_tf.prune(make_mlp(), blobs, callbacks=[Count()], **options, **SETTINGS)
    assert len(steps) == 7 * (3 * 2 + 3)


def test_model_without_weights_is_built_from_the_data(K, blobs):
    model = K.Sequential([K.layers.Dense(8, activation="relu"), K.layers.Dense(3)])
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert aimp_tf.prune(model, blobs, **SETTINGS).sparsity == pytest.approx(0.75, abs=0.01)


def test_a_config_and_overrides(make_mlp, blobs):
    config = aimp_tf.PruningConfig(0.5, rate=0.5, epochs=2, round_epochs=1, exclude=("logits/*",))
    result = aimp_tf.prune(make_mlp(), blobs, config=config, epochs=1, verbose=0)
    assert [round_.epochs for round_ in result.rounds] == [1, 1]
    assert list(result.masks) == ["hidden/kernel"] and result.sparsity == 0.5
    assert config.epochs == 2


def test_early_stopping_may_restore_weights_within_a_round(make_mlp, blobs, K):
    stopping = K.callbacks.EarlyStopping(monitor="loss", patience=0, restore_best_weights=True, min_delta=10.0)
    result = aimp_tf.prune(make_mlp(), blobs, callbacks=[stopping], **{**SETTINGS, "epochs": 4, "round_epochs": 4})
    assert [round_.epochs for round_ in result.rounds] == [2, 2, 2, 2]
    assert result.sparsity == 0.75


@pytest.fixture
def untouched(make_mlp):
    """A model, and the promise that what the test does to it does nothing."""
    model = make_mlp()
    weights = model.get_weights()
    yield model
    assert MaskedModel.of(model) is None
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target_sparsity": 1.5}, ValueError, "target_sparsity must lie in"),
        ({"round_epochs": 9}, ValueError, "round_epochs must lie between 1 and epochs=3"),
        ({"rewinding": "weights"}, TypeError, "no argument 'rewinding'. Did you mean 'rewind'"),
        ({"include": ("nothing/*",)}, ValueError, "matches no prunable variable"),
        ({"target_sparsity": 0.999}, ValueError, "leaves none of the 176"),
        ({"fit_options": {"shuffle": False}}, TypeError, "Write its entries as arguments of their own"),
        ({"batchsize": 3}, TypeError, "no argument 'batchsize'.*Did you mean 'batch_size'"),
        ({"x": None}, TypeError, "No training data came"),
        ({"x": iter([])}, TypeError, "training data must be"),
        (
            {"x": (np.zeros((4, 9)), np.zeros(4, int))},
            ValueError,
            r"nothing was trained. The training data gives .*\[None, 9\].*inputs of shape \(None, 8\)",
        ),
        ({"x": (np.zeros((4, 8)), np.zeros((4, 5, 2)))}, ValueError, r"got targets of shape \(4, 5, 2\)"),
        (
            {"validation_data": (np.zeros((4, 9)), np.zeros(4, int))},
            ValueError,
            "cannot be evaluated on validation_data",
        ),
    ],
)
def test_bad_input_is_refused_before_any_training(untouched, blobs, tmp_path, arguments, error, message):
    arguments = {"x": blobs, **SETTINGS, **arguments}
    with pytest.raises(error, match=message):
        aimp_tf.prune(untouched, workdir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_settings_that_cannot_be_left_out(untouched, blobs):
    with pytest.raises(TypeError, match="target_sparsity and epochs must be given"):
        aimp_tf.prune(untouched, blobs)


@pytest.mark.parametrize("thing", [None, "model", lambda x: x])
def test_models_of_other_kinds_are_refused(thing, blobs):
    with pytest.raises(TypeError, match="Expected a Keras model"):
        aimp_tf.prune(thing, blobs, **SETTINGS)


def test_a_model_that_is_not_compiled_is_refused(K, blobs):
    with pytest.raises(ValueError, match="not compiled. Call model.compile"):
        aimp_tf.prune(K.Sequential([K.Input((8,)), K.layers.Dense(3)]), blobs, **SETTINGS)


def test_a_failing_run_leaves_a_plain_model(make_mlp, K, blobs):
    class Fail(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise OSError("disk")

    model = make_mlp()
    with pytest.raises(OSError, match="disk"):
        aimp_tf.prune(model, blobs, callbacks=[Fail()], **SETTINGS)
    assert MaskedModel.of(model) is None
    assert all(variable.constraint is None for variable in model.trainable_variables)
    model.fit(*blobs, verbose=0)


def test_a_diverging_run_says_what_to_do(make_mlp, blobs):
    data = (*blobs, np.full(64, np.nan))
    with pytest.raises(RuntimeError, match="loss became nan in epoch 1 of round 1.*Lower the learning rate"):
        aimp_tf.prune(make_mlp(), data, **SETTINGS)


@pytest.mark.slow
def test_several_inputs_and_outputs(K):
    inputs = [K.Input((3,), name="a"), K.Input((5,), name="b")]
    hidden = K.layers.Concatenate()(inputs)
    model = K.Model(inputs, [K.layers.Dense(2, name="c")(hidden), K.layers.Dense(1, name="d")(hidden)])
    model.compile(K.optimizers.SGD(0.01), ["mse", "mae"])
    a, b, c, d = (np.ones((8, size), "float32") for size in (3, 5, 2, 1))
    for x, y in (([a, b], [c, d]), ((a, b), (c, d))):
        assert aimp_tf.prune(model, (x, y), validation_data=(x, y), **SETTINGS).sparsity == 0.75


@pytest.mark.slow
def test_metrics_of_several_numbers(make_mlp, K, blobs, tmp_path):
    x, y = blobs[0], np.eye(3, dtype="float32")[blobs[1]]
    model = make_mlp()
    model.compile("sgd", K.losses.CategoricalCrossentropy(from_logits=True), metrics=[K.metrics.F1Score()])
    result = aimp_tf.prune(model, (x, y), workdir=tmp_path / "run", **SETTINGS)
    assert len(result.rounds[-1].metrics["f1_score"]) == 3
    assert " ".join(f"{value:.4f}" for value in result.rounds[-1].metrics["f1_score"]) in result.summary()


@pytest.mark.slow
def test_numbers_of_numpy_are_numbers(make_mlp, blobs, tmp_path):
    settings = {**SETTINGS, "target_sparsity": np.float32(0.75), "epochs": np.int64(3)}
    result = aimp_tf.prune(make_mlp(), blobs, workdir=tmp_path / "run", **settings)
    assert [round_.epochs for round_ in result.rounds] == [2, 2, 2, 3]
    config = aimp_tf.PruningConfig.from_json((tmp_path / "run" / "config.json").read_text())
    assert config.target_sparsity == 0.75 and config.epochs == 3


def test_a_model_whose_layers_are_built_needs_no_building(blobs):
    class NoCall(keras.Model):
        """In the manner of keras.io's generative models: train_step alone says what is done."""

        def __init__(self):
            super().__init__()
            self.encoder = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)], name="encoder")

        def train_step(self, x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self.encoder(x) ** 2)
            variables = self.trainable_variables
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return {"loss": loss}

    model = NoCall()
    model.compile("sgd")
    data = tf.data.Dataset.from_tensor_slices(blobs[0]).batch(16)
    assert aimp_tf.prune(model, data, **SETTINGS).sparsity == 0.75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        # 3 rounds before the final training, or one where all is pruned at once.
        ({}, 3 * 2 + 6),
        ({"round_epochs": 6}, 3 * 6 + 6),
        ({"rate": 0.75, "round_epochs": 6}, 6 + 6),
        ({"rewind": "weights", "rewind_epoch": 1}, 3 * 2 + 6),
        ({"final_rewind": "reinitialize"}, 3 * 2 + 6),
        ({"scope": "layer"}, 3 * 2 + 6),
        ({"criterion": "lamp"}, 3 * 2 + 6),
        ({"criterion": "random"}, 3 * 2 + 6),
        ({"criterion": lambda weights, masks: {path: weight**2 for path, weight in weights.items()}}, 3 * 2 + 6),
        ({"method": "gradual", "rate": 0.2, "round_epochs": None}, 6),
        ({"method": "dense", "rate": 0.2, "round_epochs": None}, 6),
    ],
)
def test_every_arm_trains_for_the_epochs_of_the_formula(K, make_mlp, blobs, settings, epochs):
    counted = []

    class Count(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            counted.append(epoch)

    model = make_mlp()
    config = aimp_tf.PruningConfig(**{**SETTINGS_OF_CONFIG, **settings})
    result = aimp_tf.prune(model, blobs, config=config, callbacks=[Count()], verbose=0)
    assert len(counted) == result.epochs == epochs
    sparsity = 0.0 if settings.get("method") == "dense" else 0.75
    assert result.sparsity == aimp_tf.sparsity(model) == pytest.approx(sparsity)
    for path, mask in result.masks.items():
        layer, name = path.split("/")
        np.testing.assert_array_equal(getattr(model.get_layer(layer), name).numpy() != 0, mask)
    if settings.get("round_epochs") == 6:
        assert result.imp_epochs == epochs


SETTINGS_OF_CONFIG = {"target_sparsity": 0.75, "rate": 0.4, "epochs": 6, "round_epochs": 2, "seed": 1}


@pytest.mark.slow
def test_magnitudes_as_a_function_are_the_magnitude_criterion(make_mlp, blobs):
    def magnitudes(weights, masks):
        return {path: np.abs(weight) for path, weight in weights.items()}

    first, second = (
        aimp_tf.prune(make_mlp(), blobs, criterion=criterion, **SETTINGS).model.get_weights()
        for criterion in ("magnitude", magnitudes)
    )
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_gradual_pruning_of_real_digits_keeps_their_accuracy(K, digits):
    images, labels = digits
    model = K.Sequential([K.Input((64,)), K.layers.Dense(64, activation="relu"), K.layers.Dense(10)])
    model.compile(
        K.optimizers.SGD(0.05, momentum=0.9),
        K.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    train, test = (images[:1400], labels[:1400]), (images[1400:], labels[1400:])
    result = aimp_tf.prune(
        model, train, validation_data=test, method="gradual", target_sparsity=0.9, epochs=20, seed=0, verbose=0
    )
    assert result.sparsity == pytest.approx(0.9, abs=1e-3)
    assert result.rounds[-1].metrics["val_accuracy"] > 0.93


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_layer_survivors": 30}, "^max_layer_sparsity=None and min_layer_survivors=30 keep at least 60 weights"),
        ({"criterion": lambda weights, masks: {}}, "^criterion must return a dict"),
        ({"target_sparsity": 0.001}, "^target_sparsity=0.001 removes none"),
    ],
)
def test_what_the_model_cannot_give_is_said_before_any_training(make_mlp, blobs, tmp_path, settings, message):
    model = make_mlp()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        aimp_tf.prune(model, blobs, workdir=tmp_path / "run", **{**SETTINGS, **settings})
    assert MaskedModel.of(model) is None and not (tmp_path / "run").exists()
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 2])
def test_gradual_pruning_counts_the_batches_of_data_that_does_not_tell(K, make_mlp, blobs, epochs):
    """16 batches an epoch: half of all steps rise to the target, which is reached well before the last one."""
    batches = tf.data.Dataset.from_tensor_slices(blobs).batch(4)
    unknown = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=batches.element_spec)
    kept = {}
    for name, data in (("known", batches), ("unknown", unknown)):
        model, kept[name] = make_mlp(), []
        note = K.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs, name=name, model=model: kept[name].append(aimp_tf.sparsity(model))
        )
        aimp_tf.prune(model, data, target_sparsity=0.75, epochs=epochs, method="gradual", callbacks=note, verbose=0)
    assert kept["unknown"] == kept["known"] and len(kept["known"]) == 16 * epochs
    # Half of the steps, of which the last ones change next to nothing, along the cubic curve.
    assert kept["known"][4 * epochs - 1] == pytest.approx(0.75 * (1 - 0.5**3), abs=0.003)
    assert kept["known"][8 * epochs - 1] == 0.75 and len(set(kept["known"])) >= 7


@pytest.mark.slow
@pytest.mark.parametrize(("share", "kept"), [(0, [0, 0, 0]), (0.1, [6, 6, 6]), (0.5, [26, 26, 26])])
def test_attention_that_starts_small_keeps_its_share(K, share, kept):
    """Ranked by raw magnitude, the kernels of an attention layer that starts a thousandth as large would all go."""
    inputs = K.Input((4, 8))
    attended = K.layers.MultiHeadAttention(2, 8, name="attention")(inputs, inputs)
    outputs = K.layers.Dense(1, name="output")(K.layers.Dense(64, name="wide")(K.layers.Flatten()(attended)))
    model = K.Model(inputs, outputs)
    small = [weight for weight in model.weights if {"query", "key", "value"} & set(weight.name.split("/"))]
    small = small or [
        weight for weight in model.weights if {"query", "key", "value"} & set(getattr(weight, "path", "").split("/"))
    ]
    for weight in small:
        weight.assign(weight * 1e-3)
    model.compile(K.optimizers.SGD(1e-9), "mse")
    data = np.ones((8, 4, 8), np.float32), np.zeros((8, 1), np.float32)
    result = aimp_tf.prune(model, data, target_sparsity=0.6, epochs=1, min_layer_share=share, verbose=0)
    layers = {layer.path.split("/")[-2]: layer for layer in result.rounds[-1].layers}
    assert [layers[name].kept for name in ("query", "key", "value")] == kept
    assert [layers[name].size for name in ("query", "key", "value")] == [128, 128, 128]
    # With the same number of weights in all: 0.4 of 3 * 128 + 128 + 32 * 64 + 64.
    assert result.rounds[-1].kept == 1050
    assert bool(result.rounds[-1].emptied) == (share == 0)


def test_a_trained_model_is_pruned_as_it_comes(make_mlp, K, blobs, tmp_path):
    """Its weights are what rewinding returns to, and the first ranking is theirs."""
    model = make_mlp()
    model.fit(*blobs, epochs=3, verbose=0)
    trained = {name: np.array(model.get_layer(name).kernel) for name in ("hidden", "logits")}
    anew = make_mlp()
    anew.set_weights(model.get_weights())
    begun = []

    class See(K.callbacks.Callback):
        def on_train_begin(self, logs=None):
            begun.append({name: np.array(model.get_layer(name).kernel) for name in trained})

    settings = {**SETTINGS, "start": "trained", "rewind": "weights", "min_layer_share": 0}
    result = aimp_tf.prune(model, *blobs, **settings, workdir=tmp_path / "run", callbacks=See())
    assert [round_.kept for round_ in result.rounds] == [106, 63, 44]
    assert [round_.epochs for round_ in result.rounds] == [2, 2, 3] and result.imp_epochs == 3 * 3
    threshold = np.sort(np.concatenate([np.abs(value).ravel() for value in trained.values()]))[-106]
    first = np.load(tmp_path / "run" / "round_000" / "masks.npz")
    for name, value in trained.items():
        np.testing.assert_array_equal(first[f"{name}/kernel"], np.abs(value) >= threshold)
    for values, folder in zip(begun, ("round_000", "round_001", "final"), strict=True):
        masks = np.load(tmp_path / "run" / folder / "masks.npz")
        for name, value in values.items():
            np.testing.assert_array_equal(value, np.where(masks[f"{name}/kernel"], trained[name], 0))
    again = aimp_tf.prune(anew, *blobs, **settings, workdir=tmp_path / "run", callbacks=See())
    assert again.rounds == result.rounds and len(begun) == 3
    with pytest.raises(ValueError, match="load that model anew"):
        aimp_tf.prune(model, *blobs, **settings, workdir=tmp_path / "run")


def test_examples_come_in_another_order_in_each_round(K):
    read = []

    class Reads(K.Model):
        def train_step(self, data):
            tf.py_function(lambda x: read.append(x.numpy()[:, 0].astype(int).tolist()), [data[0]], [])
            return super().train_step(data)

    def orders(seed):
        """Of the examples in each of three trainings of two epochs."""
        read.clear()
        inputs = K.Input((4,))
        model = Reads(inputs, K.layers.Dense(4)(inputs))
        model.compile(K.optimizers.SGD(1e-6), "mse")
        x = np.eye(4, dtype="float32")[np.zeros(12, int)] * np.arange(12)[:, None]
        aimp_tf.prune(
            model, x, x, target_sparsity=0.75, rate=0.5, epochs=2, round_epochs=2, batch_size=4, seed=seed, verbose=0
        )
        return np.reshape(read, (6, 12))

    first = orders(seed=1)
    np.testing.assert_array_equal(np.sort(first), np.tile(np.arange(12), (6, 1)))
    assert len({tuple(order) for order in first}) == 6
    np.testing.assert_array_equal(orders(seed=1), first)
    assert not np.array_equal(orders(seed=2), first)


def test_an_error_after_an_epoch_is_told_as_it_is(blobs):
    """Also where a step does without the optimizer, whose steps are counted."""

    class Own(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            variables = [weight.value for weight in self.trainable_variables]
            for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
                variable.assign_sub(0.01 * gradient)
            return {"loss": loss}

    def fail(epoch, logs):
        raise ValueError("mine")

    model = Own([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    failing = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    with pytest.raises(ValueError, match="^mine$"):
        aimp_tf.prune(model, blobs, target_sparsity=0.5, epochs=2, callbacks=[failing], verbose=0)
