"""Rounds that train without dead channels: mechanics only, on made-up data, unless a test says otherwise."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from random_networks import EXAMPLES, GENERATIONS, drawn

import aimp_tf
from aimp_tf import GlobalMagnitudePruning, PruningConfig
from aimp_tf.compat.variables import resource_of
from aimp_tf.graph.model_graph import ModelGraph
from aimp_tf.masking import MaskedModel, mask_model
from aimp_tf.training.live_rounds import LiveNetwork
from experiments import models

SETTINGS = {"target_sparsity": 0.9, "rate": 0.5, "epochs": 3, "round_epochs": 2, "verbose": 0, "seed": 0}


def part_of(masked, multiple=1):
    network = LiveNetwork(ModelGraph.of(masked.original), masked)
    network._multiple = multiple
    return network.part()


def train(masked, inputs, targets, part=None, batch_size=4):
    """Trains a masked model, or a part of it, and gives losses, weights and slots. It is as before then."""
    before = masked.snapshot()
    if part is not None:
        masked.train_part(part.weights, part.attributes)
    history = masked.model.fit(inputs, targets, batch_size=batch_size, epochs=2, shuffle=False, verbose=0)
    masked.part.put_back()
    slots = {key: [np.array(slot.numpy()) for slot in slots] for key, slots in masked.optimizer.slots().items()}
    results = history.history["loss"], masked.snapshot(), slots
    masked.restore(before)
    masked.optimizer.reset()
    return results


def check_same(masked, inputs, targets, multiple=1, batch_size=4):
    """Checks that training the live part is training the whole model, but for rounding. Gives the part."""
    part, live = part_of(masked, multiple), part_of(masked)
    before = masked.snapshot()
    losses, weights, slots = train(masked, inputs, targets, None, batch_size)
    assume(np.isfinite(losses).all() and losses[-1] < 1e3)
    part_losses, part_weights, part_slots = train(masked, inputs, targets, part, batch_size)
    np.testing.assert_allclose(part_losses, losses, rtol=1e-4, atol=1e-6)
    stays, alive = (
        {id(resource_of(variable)): np.ix_(*indices) for variable, indices in either.weights} for either in (part, live)
    )
    variables = [variable for variable in masked.original.weights if hasattr(variable, "assign")]
    for variable, first, whole, small in zip(variables, before, weights, part_weights, strict=True):
        key = id(resource_of(variable))
        if "moving_" in variable.name:
            # Those that nothing reads matter to nobody: they move in the whole model, and where a part has them.
            gone = np.ones(whole.shape, bool)
            gone[stays.get(key, ...)] = False
            np.testing.assert_array_equal(small[gone], first[gone])
            whole, small = whole[alive.get(key, ...)], small[alive.get(key, ...)]
        np.testing.assert_allclose(small, whole, rtol=0, atol=1e-6 + 1e-4 * np.abs(whole).max(initial=0))
    for key, wholes in slots.items():  # Those of pruned weights matter to nobody.
        for whole, small in zip(wholes, part_slots[key], strict=True):
            whole, small = whole[alive.get(key, ...)], small[alive.get(key, ...)]
            np.testing.assert_allclose(small, whole, rtol=0, atol=1e-6 + 1e-3 * np.abs(whole).max(initial=0))
    return part


@pytest.mark.slow
@settings(
    max_examples=EXAMPLES // 2,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=[Phase.generate],
)
@given(data=st.data(), generation=st.sampled_from(GENERATIONS))
def test_any_network_trains_the_same(data, generation):
    model, keras = drawn(data, generation)
    for layer in model._flatten_layers():
        if type(layer).__name__ == "Dropout":
            layer.rate = 0.0  # What it draws depends on the number of channels.
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), "mse")
    masked = mask_model(model)
    masked.set_masks({path: weight != 0 for path, weight in masked.weights().items()})
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(10, 5, 5, 2)).astype(np.float32)
    targets = [np.zeros(np.shape(output), np.float32) for output in tf.nest.flatten(model(inputs))]
    check_same(masked, inputs, targets if len(targets) > 1 else targets[0], data.draw(st.sampled_from([1, 2])))


def mlp(keras, *between, optimizer="sgd", hidden=None, middle=None, **settings):
    """A compiled 6-12-8-2 network with layers in between, and with settings of the first two."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(12, activation="relu", name="hidden", **(hidden or {})),
            *between,
            layers.Dense(8, activation="relu", name="middle", **(middle or {})),
            layers.Dense(2, name="last"),
        ]
    )
    model.compile(optimizer, "mse", **settings)
    return model


def kill_units(masked):
    """Prunes all that leads on from units 0 to 5 of the first layer, and some of the rest."""
    masks = {path: np.random.default_rng(0).random(mask.shape) < 0.8 for path, mask in masked.masks().items()}
    masks["middle/kernel"][:6] = False
    masked.set_masks(masks)
    return masked


POINTS = np.random.default_rng(2).normal(size=(12, 6)).astype(np.float32)
TARGETS = np.random.default_rng(3).normal(size=(12, 2)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("K", "name"),
    [
        *(("keras", name) for name in ("SGD", "Adam", "AdamW", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Lion")),
        *(("tf_keras", name) for name in ("SGD", "Adam", "RMSprop", "Adagrad")),
    ],
    indirect=["K"],
)
def test_optimizers(K, name):
    kind = getattr(K.optimizers, name)
    settings = {"SGD": {"momentum": 0.9, "nesterov": True}, "RMSprop": {"momentum": 0.9, "centered": True}}.get(
        name, {}
    )
    if name == "AdamW":
        settings = {"weight_decay": 0.0}
    masked = kill_units(mask_model(mlp(K, optimizer=kind(0.01, clipvalue=0.5, **settings))))
    part = check_same(masked, POINTS, TARGETS)
    assert [len(indices[-1]) for _, indices in part.weights][:2] == [6, 6]


@pytest.mark.parametrize("K", ["tf_keras"], indirect=True)
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_legacy_optimizers(K, name):
    settings = {"momentum": 0.9} if name == "SGD" else {"amsgrad": True}
    optimizer = getattr(K.optimizers.legacy, name)(0.01, **settings)
    assert check_same(kill_units(mask_model(mlp(K, optimizer=optimizer))), POINTS, TARGETS).share < 1


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"run_eagerly": True}, {"steps_per_execution": 2}, {"jit_compile": True}])
def test_ways_to_run(K, settings):
    masked = kill_units(mask_model(mlp(K, **settings)))
    assert check_same(masked, POINTS, TARGETS).share < 1


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(K, policy):
    """Sums of float16 and bfloat16 numbers differ by far more than what zeros left out would."""
    masked = kill_units(mask_model(mlp(K), mixed_precision=policy))
    losses, weights, _ = train(masked, POINTS, TARGETS)
    part = part_of(masked)
    part_losses, part_weights, _ = train(masked, POINTS, TARGETS, part)
    assert part.share < 1
    np.testing.assert_allclose(part_losses, losses, rtol=0.01)
    for whole, small in zip(weights, part_weights, strict=True):
        np.testing.assert_allclose(small, whole, atol=0.01)
    masked.strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        *("activity", "constraint", "constraint of the reader", "regularizer", "regularizer of the reader", "softmax"),
        *("noise", "unknown", "decay", "zeros", "dropout", "shared dropout"),
    ],
)
def test_what_keeps_units_alive(K, what):
    """`hidden` has 12 units, of which the weights of `middle` do not read 6."""
    layers, dead = K.layers, 6
    between: list = []
    if what == "activity":
        between, dead = [layers.ActivityRegularization(l2=0.1)], 0
    elif what == "softmax":
        between, dead = [layers.Softmax()], 0
    elif what == "noise":
        between = [layers.GaussianNoise(1e-6)]
    elif what == "unknown":
        between, dead = [layers.LayerNormalization()], 0
    elif what == "dropout":
        between = [layers.Dropout(0.5), layers.Activation("gelu")]
    elif what == "shared dropout":
        between, dead = [layers.Dropout(0.5, noise_shape=(None, 12))], 0
    settings = {}
    if "constraint" in what:
        settings, dead = {"kernel_constraint": K.constraints.MaxNorm(0.5, axis=0 if "reader" in what else 1)}, 0
    elif "regularizer" in what:
        settings, dead = {"kernel_regularizer": K.regularizers.OrthogonalRegularizer(0.1)}, 0
    elif what == "decay":
        settings = {"kernel_regularizer": K.regularizers.L2(0.1)}
    model = mlp(K, *between, **{"middle" if "reader" in what else "hidden": settings})
    hidden = model.get_layer("hidden")
    masked = kill_units(mask_model(model))
    if what == "zeros":  # Units without inputs, but with a bias, are read all the same.
        masked.set_masks({**masked.masks(), "hidden/kernel": np.zeros((6, 12), bool)})
    part = part_of(masked)
    stays = {id(resource_of(variable)): indices for variable, indices in part.weights}
    assert len(stays.get(id(resource_of(hidden.kernel)), ((), range(12)))[1]) == 12 - dead
    if what not in ("noise", "dropout", "shared dropout", "decay"):
        check_same(masked, POINTS, TARGETS)


def test_units_without_bias_and_inputs_are_zero_for_good(K):
    model = K.Sequential(
        [
            K.Input((6,)),
            K.layers.Dense(5, use_bias=False, activation="tanh", name="hidden"),
            K.layers.Dense(2, name="last"),
        ]
    )
    model.compile("sgd", "mse")
    masked = mask_model(model)
    masks = masked.masks()
    masks["hidden/kernel"][:, :3] = False
    masked.set_masks(masks)
    part = check_same(masked, POINTS, TARGETS)
    assert [tuple(map(len, indices)) for _, indices in part.weights] == [(6, 2), (2, 2)]


def test_units_without_inputs_that_give_something_stay(K):
    """The sigmoid of zero is a half, and what reads it trains."""
    layers = K.layers
    hidden = layers.Dense(5, use_bias=False, activation="sigmoid", name="hidden")
    model = K.Sequential([K.Input((6,)), hidden, layers.Dense(2)])
    model.compile("sgd", "mse")
    masked = mask_model(model)
    masked.set_masks({path: np.full(mask.shape, "hidden" not in path) for path, mask in masked.masks().items()})
    assert not check_same(masked, POINTS, TARGETS).weights


def test_a_branch_of_zeros_stays_as_wide_as_the_other(K):
    layers = K.layers
    inputs = K.Input((6,))
    branches = layers.Dense(5, use_bias=False, name="zeros")(inputs), layers.Dense(5, activation="relu")(inputs)
    model = K.Model(inputs, layers.Dense(2, name="last")(layers.Add()(branches)))
    model.compile("sgd", "mse")
    masked = mask_model(model)
    masks = {path: np.full(mask.shape, "zeros" not in path) for path, mask in masked.masks().items()}
    masks["last/kernel"][:2] = False
    masked.set_masks(masks)
    part = check_same(masked, POINTS, TARGETS)
    assert [tuple(map(len, indices)) for _, indices in part.weights] == [(6, 3), (6, 3), (3,), (3, 2)]


@pytest.mark.parametrize("what", ["given statistics", "offsets"])
def test_layers_that_were_given_a_number_for_each_channel_stay_as_they_are(what, K):
    layers = K.layers
    given = (
        layers.Rescaling(2.0, np.arange(8.0)) if what == "offsets" else layers.Normalization(-1, range(8), [2.0] * 8)
    )
    names = "first", "second"
    dense = [layers.Dense(8, activation="relu", name=name) for name in names]
    model = K.Sequential([K.Input((4,)), dense[0], given, dense[1], layers.Dense(3)])
    model.compile(K.optimizers.SGD(0.01), "mse")
    masked = mask_model(model)
    masks = masked.masks()
    for path, mask in masks.items():
        if path.startswith("second"):
            mask[:, :5] = False
        elif not path.startswith("first"):
            mask[:5] = False
    masked.set_masks(masks)
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(8, 4)).astype(np.float32), generator.normal(size=(8, 3)).astype(np.float32)
    part = check_same(masked, x, y)
    assert part.weights and given not in [layer for layer, *_ in part.attributes]


@pytest.mark.parametrize("K", ["tf_keras"], indirect=True)
def test_a_loss_off_the_way_to_the_outputs_is_heeded(K):
    """What only `add_loss` reads, and what leads there."""
    layers = K.layers
    inputs = K.Input((6,))
    hidden = layers.Dense(12, activation="relu", name="hidden")(inputs)
    beside = layers.Dense(8, activation="relu", name="beside")(hidden)
    model = K.Model(inputs, layers.Dense(2, name="last")(hidden))
    model.add_loss(tf.reduce_mean(layers.Dense(3, name="penalized")(beside) ** 2))
    model.compile("sgd", "mse")
    masked = mask_model(model)
    masks = {path: np.ones(mask.shape, bool) for path, mask in masked.masks().items()}
    masks["last/kernel"][:8] = masks["beside/kernel"][:4] = masks["penalized/kernel"][6:] = False
    masked.set_masks(masks)
    part = check_same(masked, POINTS, TARGETS)
    kept = {variable.name.split("/")[0]: len(indices[-1]) for variable, indices in part.weights if len(indices) == 1}
    assert kept == {"hidden": 8, "beside": 6}


def test_the_share_counts_layers_that_are_not_seen_through(K):
    """6 units of 12 go between a convolution in groups, which stays whole, and the last layer."""
    layers = K.layers
    model = K.Sequential(
        [
            K.Input((4, 4)),
            layers.Conv1D(8, 3, groups=2, name="grouped"),
            layers.Dense(12, activation="relu", name="hidden"),
            layers.Dense(2, name="last"),
        ]
    )
    model.compile("sgd", "mse")
    masked = mask_model(model)
    masks = {path: np.ones(mask.shape, bool) for path, mask in masked.masks().items()}
    masks["last/kernel"][:6] = False
    masked.set_masks(masks)
    grouped, hidden, last = 2 * (3 * 2 * 8), 2 * (8 * 12), 2 * (12 * 2)
    assert part_of(masked).share == (grouped + hidden / 2 + last / 2) / (grouped + hidden + last)


def test_noise_makes_something_of_zeros(K):
    """So that their weights train on it."""
    layers = K.layers
    model = K.Sequential(
        [K.Input((6,)), layers.Dense(5, use_bias=False, name="hidden"), layers.GaussianNoise(0.1), layers.Dense(2)]
    )
    model.compile("sgd", "mse")
    masked = mask_model(model)
    masked.set_masks({path: np.full(mask.shape, "hidden" not in path) for path, mask in masked.masks().items()})
    assert not part_of(masked).weights


def classifier(keras, *between, units=32, strategy=None, optimizer=None):
    """A compiled classifier of 8 numbers, of which rounds kill many units."""
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(3)
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((8,)),
                layers.Dense(units, activation="relu", name="first"),
                layers.BatchNormalization(name="norm"),
                *between,
                layers.Dense(units // 2, activation="relu", name="second"),
                layers.Dense(3, name="logits"),
            ]
        )
        model.compile(
            optimizer or keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    return model


def shapes_of(model):
    return [tuple(variable.shape) for variable in model.trainable_variables]


def shares(caplog):
    """What the log says is left of the multiplications, each time the model became smaller."""
    pattern = re.compile(r"Round \d+ trains without \d+ of \d+ channels, .*: ([\d.]+)% of the multiplications\.")
    matches = map(pattern.fullmatch, (record.getMessage() for record in caplog.records))
    return [float(match[1]) for match in matches if match]


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_run_on_digits_ends_alike(digits, K, caplog):
    """Real data: bit for bit the same masks, weights but for rounding, and moving statistics where they are read."""
    caplog.set_level("INFO", "aimp_tf")
    images, labels = digits
    results = []
    for compact_rounds in (False, True):
        K.utils.set_random_seed(0)
        model = models.build("lenet_300_100", K, (8, 8, 1), 10)
        model.compile(
            K.optimizers.Adam(), K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
        )
        data = images[:600].reshape(-1, 8, 8, 1), labels[:600]
        settings = {**SETTINGS, "target_sparsity": 0.98, "epochs": 12, "compact_rounds": compact_rounds}
        results.append(aimp_tf.prune(model, data, validation_data=data, **settings))
    whole, small = results
    smaller = shares(caplog)
    assert len(smaller) >= 2 and smaller == sorted(smaller, reverse=True) and smaller[-1] < 70
    assert small.sparsity == whole.sparsity and whole.rounds[-1].metrics["accuracy"] > 0.7
    for path, mask in whole.masks.items():
        np.testing.assert_array_equal(small.masks[path], mask)
    for here, there in zip(small.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(here, there, rtol=0, atol=1e-3)
    for here, there in zip(small.rounds, whole.rounds, strict=True):
        for name, value in there.metrics.items():
            assert here.metrics[name] == pytest.approx(value, abs=2e-3), name


@pytest.mark.slow
def test_all_but_batches_see_the_whole_model(K, blobs, tmp_path):
    class Sizes(K.callbacks.Callback):
        whole, batches = [], []

        def on_train_batch_end(self, batch, logs=None):
            self.batches.append(shapes_of(self.model))

        def look(self, *_):
            self.whole.append(shapes_of(self.model))

        on_train_begin = on_epoch_begin = on_epoch_end = on_train_end = on_test_begin = on_test_end = look

    model = classifier(K)
    shapes = shapes_of(model)
    saving = K.callbacks.ModelCheckpoint(str(tmp_path / "{epoch}.weights.h5"), save_weights_only=True)
    best = K.callbacks.EarlyStopping(monitor="loss", mode="max", patience=9, restore_best_weights=True)
    sizes = Sizes()
    result = aimp_tf.prune(
        model, blobs, validation_data=blobs, callbacks=[sizes, saving, best], compact_rounds=True, **SETTINGS
    )
    assert sizes.whole and all(seen == shapes for seen in sizes.whole)
    assert sizes.batches[0] == shapes and sizes.batches[-1] != shapes
    fresh = classifier(K)
    fresh.load_weights(str(tmp_path / "1.weights.h5"))
    # The loss falls, so its greatest value is that of the first epoch.
    for here, there in zip(fresh.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)
    assert aimp_tf.sparsity(result.model) == pytest.approx(0.9, abs=1e-3)


@pytest.mark.slow
def test_a_model_is_as_before_when_it_is_stripped(K, blobs, tmp_path):
    """Also where `fit` ended while it was smaller; and nothing of that is saved."""

    class Interrupts(K.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if shapes_of(self.model) != whole:
                raise KeyboardInterrupt

    def attributes(model):
        layers = [layer for layer in model._flatten_layers() if layer is not model]
        return [(sorted(vars(layer)), layer.input_spec and repr(layer.input_spec.axes)) for layer in layers]

    model = classifier(K, K.layers.Reshape((1, 32)), K.layers.Flatten())
    whole, before = shapes_of(model), attributes(model)
    with pytest.raises(KeyboardInterrupt):
        aimp_tf.prune(model, blobs, callbacks=[Interrupts()], compact_rounds=True, **SETTINGS)
    assert shapes_of(model) == whole and attributes(model) == before
    assert [layer.target_shape for layer in model.layers if hasattr(layer, "target_shape")] == [(1, 32)]
    assert model.get_layer("first").units == 32
    model.save(tmp_path / "model.keras")
    loaded = K.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(blobs[0], verbose=0), model.predict(blobs[0], verbose=0))
    model.fit(*blobs, verbose=0)


@pytest.mark.slow
def test_it_is_traced_only_when_a_tenth_is_needless(K, blobs, caplog):
    caplog.set_level("INFO", "aimp_tf")
    traced = []

    model = classifier(K, units=64)
    sparse = K.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(labels, logits):
        traced.append(str(shapes_of(model)))
        return sparse(labels, logits)

    model.compile(K.optimizers.SGD(0.1), loss)
    aimp_tf.prune(
        model, blobs, compact_rounds=True, **{**SETTINGS, "rate": 0.2, "round_epochs": 1, "target_sparsity": 0.98}
    )
    smaller = [100.0, *shares(caplog)]
    assert len(smaller) > 3 and all(
        after <= 0.9 * before + 0.1 for before, after in zip(smaller, smaller[1:], strict=False)
    )
    assert len(set(traced)) == len(smaller)


@pytest.mark.slow
def test_evaluation_between_batches_is_of_the_whole_model(K, blobs):
    """And what it traces is good for later ones. After the run, `fit` trains the whole model again."""

    class Evaluates(K.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            before = shapes_of(self.model)
            loss = self.model.evaluate(*blobs, verbose=0)[0]
            losses.append((before == whole, loss, loss_of(self.model)))

    def loss_of(model):
        loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
        return float(loss(blobs[1], model(blobs[0], training=False)))

    losses: list = []
    model = classifier(K)
    whole = shapes_of(model)
    config = PruningConfig(0.9, 0.5, epochs=2, round_epochs=1, compact_rounds=True)
    masked, pruning = aimp_tf.wrap(model), GlobalMagnitudePruning(config)
    while not pruning.finished:
        masked.fit(*blobs, epochs=pruning.next_epochs, verbose=0, callbacks=[pruning, Evaluates()])
    assert not all(was_whole for was_whole, *_ in losses)
    for _, evaluated, computed in losses:
        assert evaluated == pytest.approx(computed, rel=1e-4)
    masked.fit(*blobs, verbose=0)
    assert shapes_of(masked) == whole and aimp_tf.sparsity(aimp_tf.strip(masked)) == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("K", ["tf_keras"], indirect=True)
def test_the_compiled_step_of_an_optimizer_forgets_earlier_parts(K):
    """The one that tf_keras has on a GPU. `last/kernel` is as large in both parts."""
    results = []
    for compiled in (False, True):
        optimizer = K.optimizers.SGD(0.01, momentum=0.9)
        optimizer.jit_compile = compiled
        masked = kill_units(mask_model(mlp(K, optimizer=optimizer)))
        for dead in (6, 8):
            masked.set_masks({**masked.masks(), "middle/kernel": np.repeat(np.arange(12) >= dead, 8).reshape(12, 8)})
            results.append(train(masked, POINTS, TARGETS, part_of(masked)))
    for plain, fused in zip(results[:2], results[2:], strict=True):
        np.testing.assert_allclose(plain[0], fused[0], rtol=1e-4)
        for here, there in zip(plain[1], fused[1], strict=True):
            np.testing.assert_allclose(here, there, atol=1e-5)


def refused(message, model, blobs, error=ValueError, **settings):
    before = model.get_weights()
    with pytest.raises(error, match=message):
        aimp_tf.prune(model, blobs, **{**SETTINGS, "compact_rounds": True, **settings})
    for here, there in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)
    assert MaskedModel.of(model) is None


@pytest.mark.slow
def test_what_cannot_be_done_is_refused(K, blobs, tmp_path):
    for optimizer, what in [
        (K.optimizers.SGD(0.1, clipnorm=1.0), "with clipnorm"),
        (K.optimizers.Adam(global_clipnorm=1.0), "with global_clipnorm"),
        (K.optimizers.Ftrl(), "of the class Ftrl"),
        (K.optimizers.Adafactor(), "of the class Adafactor"),
        (type("Own", (K.optimizers.SGD,), {})(), "of the class Own"),
    ]:
        refused(f"The optimizer, {what}, looks at whole variables", classifier(K, optimizer=optimizer), blobs)
    saving = K.callbacks.ModelCheckpoint(str(tmp_path / "x.weights.h5"), save_weights_only=True, save_freq=3)
    refused("save_freq=3, but with compact_rounds", classifier(K), blobs, callbacks=[saving], workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    refused("True or False; got 1", classifier(K), blobs, TypeError, compact_rounds=1)


def test_a_train_step_of_ones_own(K, blobs, caplog):
    """With an optimizer of its own for the last layer. It is trusted where `compact_rounds` is asked for."""

    class Stepping(K.Model):
        def train_step(self, data):
            x, y = data[:2]
            sizes.append(tuple(self.get_layer("first").kernel.shape))
            with tf.GradientTape(persistent=True) as tape:
                loss = tf.reduce_mean(
                    K.losses.sparse_categorical_crossentropy(y, self(x, training=True), from_logits=True)
                )
            last = self.get_layer("logits").trainable_variables
            rest = [each for each in self.trainable_variables if not any(each is other for other in last)]
            for optimizer, variables in ((self.optimizer, rest), (self.other, last)):
                optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return {"loss": loss}

    caplog.set_level("INFO", "aimp_tf")
    results = []
    for compact_rounds in (None, True):
        plain, sizes = classifier(K), []
        model = Stepping(plain.inputs, plain.outputs)
        model.other = K.optimizers.Adam(0.01)
        model.other.build(model.get_layer("logits").trainable_variables)
        model.compile(K.optimizers.SGD(0.05, momentum=0.9))
        settings = {**SETTINGS, "granularity": "channel", "target_sparsity": 0.6, "compact_rounds": compact_rounds}
        results.append(aimp_tf.prune(model, blobs, **settings))
        assert (len(set(sizes)) > 2) == bool(compact_rounds)
    assert "What the train_step of Stepping looks at beside the model's outputs is not known" in caplog.text
    whole, small = results
    for path, mask in whole.masks.items():
        np.testing.assert_array_equal(small.masks[path], mask)
    for here, there in zip(small.rounds, whole.rounds, strict=True):
        assert here.metrics["loss"] == pytest.approx(there.metrics["loss"], abs=1e-4)


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_subclassed_model_is_refused(K, blobs):
    class Own(K.Model):
        def __init__(self):
            super().__init__()
            self.last = K.layers.Dense(3)

        def build(self, shape):
            self.factor = self.add_weight(name="factor", shape=(), initializer="ones")
            self.built = True

        def call(self, inputs):
            return self.factor * self.last(inputs)

    model = Own()
    model.compile("sgd", "mse")
    model(blobs[0][:1])
    refused("how the layers are connected. .* class Own", model, blobs)


def test_a_variable_of_two_layers_is_refused(K, blobs):
    class Reads(K.layers.Layer):
        def __init__(self, other):
            super().__init__()
            self.other = other

        def call(self, inputs):
            return tf.matmul(inputs, tf.convert_to_tensor(self.other.kernel), transpose_b=True)

    inputs, layer = K.Input((8,)), K.layers.Dense(16, name="first")
    model = K.Model(inputs, K.layers.Dense(3)(Reads(layer)(layer(inputs))))
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    refused("The layers 'first' and 'reads.*' hold the same variable", model, blobs)


@pytest.mark.slow
def test_one_device_of_a_strategy(K, blobs, caplog):
    caplog.set_level("INFO", "aimp_tf")
    model = classifier(K, strategy=tf.distribute.OneDeviceStrategy("CPU:1"))
    result = aimp_tf.prune(model, blobs, compact_rounds=True, **SETTINGS)
    assert shares(caplog) and result.sparsity == pytest.approx(0.9, abs=1e-3)


@pytest.mark.slow
def test_the_users_own_model_is_evaluated_whole(K, blobs):
    """In a batch of the part, by the object that `prune` was given, traced then or before; and afterwards."""

    class Evaluates(K.callbacks.Callback):
        batches, seen = 0, []

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1
            if shapes_of(self.model) != whole or self.batches == first:
                loss = model.loss(blobs[1], model(blobs[0], training=False))
                outputs = model.predict(blobs[0], verbose=0)
                self.seen.append((float(loss), model.evaluate(*blobs, verbose=0)[0], outputs))
                np.testing.assert_allclose(outputs, model(blobs[0], training=False), rtol=0, atol=1e-5)

    for first in (0, 1):
        model, evaluates = classifier(K), Evaluates()
        whole = shapes_of(model)
        settings = {**SETTINGS, "granularity": "channel", "target_sparsity": 0.6, "compact_rounds": True}
        aimp_tf.prune(model, blobs, callbacks=[evaluates], **settings)
        assert len(evaluates.seen) > 4
        for loss, evaluated, _ in evaluates.seen:
            assert evaluated == pytest.approx(loss, abs=1e-5)
        model.set_weights([np.zeros_like(weight) for weight in model.get_weights()])
        assert model.evaluate(*blobs, verbose=0)[0] == pytest.approx(np.log(3), abs=1e-5)


def test_a_loop_of_ones_own(K, blobs, caplog):
    """One that is interrupted while the model is smaller, and begins that round anew."""

    class Interrupts(K.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if shapes_of(self.model) != whole and not interrupted:
                interrupted.append(batch)
                raise KeyboardInterrupt

    caplog.set_level("INFO", "aimp_tf")
    config = PruningConfig(0.9, 0.5, epochs=3, round_epochs=2, compact_rounds=True, rewind="weights")
    model, interrupted = classifier(K), []
    whole = shapes_of(model)
    masked, pruning = aimp_tf.wrap(model), GlobalMagnitudePruning(config)
    while not pruning.finished:
        try:
            masked.fit(*blobs, epochs=pruning.next_epochs, verbose=0, callbacks=[pruning, Interrupts()])
        except KeyboardInterrupt:
            assert shapes_of(masked) != whole
        else:
            assert shapes_of(masked) == whole
    assert len(interrupted) == 1
    with pytest.raises(ValueError, match="save_freq=3, but with compact_rounds"):
        pruning.among([K.callbacks.ModelCheckpoint("x.weights.h5", save_weights_only=True, save_freq=3)])
    assert shares(caplog) and aimp_tf.strip(masked) is model and aimp_tf.sparsity(model) == pytest.approx(0.9, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [1, 8, 20])
def test_channels_stay_in_multiples_of_eight(K, dead):
    """For the speed of convolutions, as the benchmark shows."""
    layers = K.layers
    model = K.Sequential(
        [
            K.Input((4, 4, 3)),
            layers.Conv2D(20, 3, name="first"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(5, name="last"),
        ]
    )
    model.compile("sgd", "mse")
    masked = mask_model(model)
    masks = masked.masks()
    masks["last/kernel"][np.arange(80) % 20 < dead] = False
    masked.set_masks(masks)
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(8, 4, 4, 3)), generator.normal(size=(8, 5))
    part = check_same(masked, inputs.astype(np.float32), targets.astype(np.float32), multiple=8)
    (kept,) = {len(indices[0]) for variable, indices in part.weights if "gamma" in variable.name} or {20}
    assert kept == min(20, max(8, -(-(20 - dead) // 8) * 8))


@pytest.mark.parametrize(
    ("layer", "kernel", "pruned", "kept"),
    [
        ("Conv2D(4, 1, strides=2, name='skips')", "skips/kernel", np.s_[:, :, 3:], 3),
        ("Conv2D(4, 1, strides=(1, 3), padding='same', groups=2, name='skips')", "skips/kernel", np.s_[:, :, 3:], 6),
        ("Conv2DTranspose(4, 1, strides=2, name='skips')", "skips/kernel", np.s_[..., 3:], 3),
        ("SeparableConv2D(4, 1, strides=2, name='skips')", "skips/pointwise_kernel", np.s_[:, :, 3:], 3),
    ],
)
def test_convolutions_that_skip_places(K, layer, kernel, pruned, kept):
    layers = K.layers
    model = K.Sequential(
        [
            K.Input((28, 28, 1)),
            layers.Conv2D(20, 3, name="first"),
            eval(f"layers.{layer}"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ]
    )
    model.compile("sgd", "mse")
    masked = mask_model(model)
    masks = masked.masks()
    masks[kernel][pruned] = False
    masked.set_masks(masks)
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(64, 28, 28, 1)), generator.normal(size=(64, 2))
    part = check_same(masked, inputs.astype(np.float32), targets.astype(np.float32), batch_size=64)
    assert tuple(map(len, part.weights[0][1])) == (3, 3, 1, kept)


@pytest.mark.slow
def test_training_does_not_crash_where_tensorflow_computes_by_onednn():
    """It writes past its memory in the first case of the test before, unless skipped places are left out for it, and
    with a transposed layer in any model."""
    test = f"{__file__}::{test_convolutions_that_skip_places.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", test, "-k", "not Transpose"],
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1", "TF_NUM_INTRAOP_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
