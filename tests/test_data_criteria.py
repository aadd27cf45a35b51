"""Criteria by the training data, and repair: known answers on small models and made-up data, in both generations."""

import importlib
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.config.structure import OF_BLOCKS
from aimp_tf.graph.linear import Linear
from aimp_tf.graph.windows import sampled_rows
from aimp_tf.masking import mask_model
from aimp_tf.selection.activation_criteria import covariance, inverse_beside, log_determinant, standardized
from aimp_tf.selection.channel_layout import Channels, ChannelSet
from aimp_tf.selection.channels import ChannelUnits
from aimp_tf.selection.criteria import CRITERIA, criterion_of
from aimp_tf.selection.criterion import channel_scores_of, scores_of
from aimp_tf.selection.grams import Elimination, Gram, removal_costs_of_weights, repaired
from aimp_tf.selection.statistics import Statistics
from aimp_tf.training.statistics import ModelSample

OF_CHANNELS = sorted(set(CRITERIA) - {"magnitude", "lamp", "random", *OF_BLOCKS})
OF_WEIGHTS = ["taylor", "fisher", "gradient", "reconstruction"]


def network(K, **compiled):
    """A stream of channels that several layers read, a depthwise layer, normalisation, a Flatten, and strides."""
    K.utils.set_random_seed(5)
    L = K.layers
    image = K.Input((6, 6, 2))
    stream = L.ReLU()(L.BatchNormalization(name="stem_norm")(L.Conv2D(4, 3, padding="same", name="stem")(image)))
    x = L.ReLU()(L.BatchNormalization(name="inner_norm")(L.Conv2D(5, 3, padding="same", name="inner")(stream)))
    x = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = L.Add()([stream, L.BatchNormalization(name="back_norm")(L.Conv2D(4, 1, name="back")(x))])
    x = L.ReLU()(L.BatchNormalization(name="down_norm")(L.Conv2D(3, 3, strides=2, padding="same", name="down")(x)))
    model = K.Model(image, L.Dense(3, name="head")(L.Flatten()(x)))
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(**{"optimizer": "sgd", "loss": loss, **compiled})
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.shape.rank == 1 if hasattr(weight.shape, "rank") else len(weight.shape) == 1:
            weight.assign(np.abs(generator.normal(1, 0.2, tuple(weight.shape))))
    return model


@pytest.fixture
def images():
    generator = np.random.default_rng(1)
    return generator.normal(size=(24, 6, 6, 2)).astype(np.float32), generator.integers(0, 3, 24)


def batches_of(images, size=8):
    return [tuple(part[first : first + size] for part in images) for first in range(0, len(images[0]), size)]


def statistics_of(masked, batches, needs=(), masks=None):
    sample = ModelSample(masked, batches, len(batches))
    return Statistics(masked.weights(), masks or masked.masks(), np.random.default_rng(0), sample, needs)


def channels_of(model, batches, needs=()):
    masked = mask_model(model, granularity="channel")
    assert isinstance(masked.units, ChannelUnits)
    return masked, Channels(masked.units, statistics_of(masked, batches, needs))


def units_named(channels):
    """Name of each set -> its units."""
    return {each.name: each.units for each in channels.sets}


def loss_of(model, x, y, sample_weight=None):
    return float(model.evaluate(x, y, sample_weight=sample_weight, verbose=0, batch_size=len(x)))


# What is gathered


@pytest.mark.parametrize("scale", [1e-3])
def test_contributions_are_changes_of_the_loss_to_first_order(K, images, scale):
    """Of each example by itself, against finite differences: all that reads a channel gets a little less of it."""
    model = network(K)
    masked, channels = channels_of(model, batches_of(images))
    table = np.concatenate(channels.contributions)
    assert table.shape == (24, channels.units.count)
    read = {path: units for path, units in channels.units.read_by().items()}
    values = {path: masked.weights()[path].copy() for path in read}
    for unit in (0, 4, 9, 11):
        examples = [1, 17]
        losses = []
        for sign in (1, -1):
            for path, units in read.items():
                shape = [1] * values[path].ndim
                shape[channels.units.reads[path]] = -1
                factor = np.where(units == unit, 1 + sign * scale, 1.0).reshape(shape)
                masked.variables[path].assign((values[path] * factor).astype(np.float32))
            losses.append([loss_of(masked.model, images[0][i : i + 1], images[1][i : i + 1]) for i in examples])
        for path, value in values.items():
            masked.variables[path].assign(value)
        slopes = (np.array(losses[0]) - losses[1]) / (2 * scale)
        np.testing.assert_allclose(table[examples, unit], slopes, rtol=0.03, atol=2e-4)
    scores = channel_scores_of(criterion_of("taylor"), channels)
    np.testing.assert_allclose(scores, np.abs(table).mean(axis=0))
    np.testing.assert_allclose(channel_scores_of(criterion_of("fisher"), channels), (table**2).mean(axis=0) / 2)


def test_weights_times_gradients_over_the_rows_of_a_channel_are_its_contributions(K, images):
    """Identity 1, of channels that several layers read, some of them by a Flatten."""
    masked, channels = channels_of(network(K), batches_of(images))
    gradients, units = channels.statistics.gradients, channels.units
    sums = np.zeros(units.count)
    for path, read in units.read_by().items():
        product = np.moveaxis(masked.weights()[path] * gradients[path], units.reads[path], 0)
        np.add.at(sums, read[read >= 0], product.reshape(len(read), -1).sum(axis=1, dtype=float)[read >= 0])
    assert np.abs(sums).min() > 1e-4
    np.testing.assert_allclose(np.concatenate(channels.contributions).mean(axis=0), sums, rtol=1e-3, atol=1e-6)


def test_one_pass_gives_what_a_criterion_names(K, images):
    passes = []

    class Counted(ModelSample):
        def collect(self, names):
            passes.append(set(names))
            return super().collect(names)

    masked = mask_model(network(K), granularity="channel")
    sample = Counted(masked, batches_of(images), 2)
    needs = ("activations", "labels", "grams")
    statistics = Statistics(masked.weights(), masked.masks(), np.random.default_rng(0), sample, needs)
    assert len(statistics.labels) == len(statistics.activations["head/kernel"]) == 2 and statistics.grams
    assert passes == [set(needs)]
    assert statistics.gradients["stem/kernel"].shape == (3, 3, 2, 4) and passes == [set(needs), {"gradients"}]


def test_activations_and_densities(K, images):
    model = network(K)
    inputs = K.Model(model.inputs, [model.get_layer(name).input for name in ("inner", "down", "head")])
    expected = [np.asarray(value) for value in inputs(images[0])]
    masked, channels = channels_of(model, batches_of(images))
    statistics = channels.statistics
    for path, values in zip(("inner/kernel", "down/kernel", "head/kernel"), expected, strict=True):
        values = values.reshape(24, -1, values.shape[-1])
        np.testing.assert_allclose(np.concatenate(statistics.activations[path]), values.mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.concatenate(statistics.densities[path]), (values != 0).mean(1), rtol=1e-5)
    # A channel behind a Flatten is the mean over its positions, one that several layers read the mean of these.
    units = units_named(channels)
    table, flat = np.concatenate(channels.activations), expected[2].reshape(24, -1, 3)
    np.testing.assert_allclose(table[:, units["down"]], flat.mean(axis=1), rtol=1e-4, atol=1e-5)
    stem = next(found for name, found in units.items() if "stem" in name)
    both = (expected[0].mean(axis=(1, 2)) + expected[1].mean(axis=(1, 2))) / 2
    np.testing.assert_allclose(table[:, stem], both, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ("Dense(4)", (5,)),
        ("Dense(4)", (3, 5)),
        ("Conv1D(4, 3, padding='causal', dilation_rate=2)", (9, 3)),
        ("Conv1D(4, 2, strides=2, padding='causal')", (9, 3)),
        ("Conv2D(4, 3)", (6, 5, 2)),
        ("Conv2D(4, (3, 2), padding='same', strides=2)", (7, 6, 2)),
        ("Conv2D(4, 3, padding='same', dilation_rate=2)", (7, 6, 2)),
        ("Conv3D(2, 2, padding='same')", (3, 4, 3, 2)),
    ],
)
def test_rows_times_the_kernel_are_what_a_layer_gives(K, layer, shape):
    layer = eval(f"L.{layer}", {"L": K.layers})
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    outputs = np.asarray(layer(x)) - np.asarray(layer.bias)
    rows = np.asarray(sampled_rows(layer, tf.constant(x), tf.constant([3, 4])))
    kernel = np.asarray(layer.kernel).reshape(-1, outputs.shape[-1])
    per_example = outputs.reshape(2, -1, outputs.shape[-1])
    given = (rows @ kernel).reshape(2, -1, outputs.shape[-1])
    assert given.shape[1] == min(16, per_example.shape[1])
    for position in range(given.shape[1]):
        distances = np.abs(per_example - given[:, position : position + 1]).max(axis=(0, 2))
        assert distances.min() < 1e-4


def test_gram_matrices_are_means_of_outer_products(K, images):
    model = network(K)
    masked = mask_model(model)
    gram = statistics_of(masked, batches_of(images)).grams["head/kernel"]
    rows = np.asarray(K.Model(model.inputs, model.get_layer("head").input)(images[0]), np.float64)
    np.testing.assert_allclose(gram.moments, rows.T @ rows / 24, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gram.mean, rows.mean(axis=0), rtol=1e-4, atol=1e-5)
    assert gram.count == 24 and gram.intercept
    others = statistics_of(masked, batches_of(images)).grams
    assert not others["inner/kernel"].intercept and others["back/kernel"].intercept  # One sees borders.
    assert others["inner/kernel"].count == 24 * 16
    # The same bits, whenever it is asked for.
    np.testing.assert_array_equal(
        others["inner/kernel"].moments, statistics_of(masked, batches_of(images)).grams["inner/kernel"].moments
    )


def of_both_generations():
    """The same network in Keras 3 and in tf_keras."""
    models = [network(importlib.import_module(generation)) for generation in ("keras", "tf_keras")]
    models[1].set_weights(models[0].get_weights())
    return models


@pytest.mark.parametrize("name", OF_CHANNELS)
def test_both_generations_give_the_same_scores(name, images):
    scores = []
    for model in of_both_generations():
        masked = mask_model(model, granularity="channel", exclude=("head/kernel",))
        channels = Channels(masked.units, statistics_of(masked, batches_of(images)))
        scores.append(channel_scores_of(criterion_of(name), channels))
    assert np.ptp(scores[0]) > 0
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5, atol=1e-5 * np.abs(scores[0]).max())


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_both_generations_give_the_same_scores_of_weights(name, images):
    scores = [
        scores_of(criterion_of(name), statistics_of(mask_model(model), batches_of(images)))
        for model in of_both_generations()
    ]
    for path, score in scores[0].items():
        np.testing.assert_allclose(score, scores[1][path], rtol=1e-4, atol=1e-5 * np.abs(score).max())


@pytest.mark.parametrize("name", ["taylor", "fisher", "utility", "gradient"])
def test_gradients_in_half_precision_are_unscaled(K, images, name):
    scores = []
    for precision in (None, "mixed_bfloat16"):
        masked = mask_model(network(K), granularity="channel", mixed_precision=precision)
        channels = Channels(masked.units, statistics_of(masked, batches_of(images)))
        scores.append(channel_scores_of(criterion_of(name), channels))
    np.testing.assert_allclose(scores[1], scores[0], rtol=0.25, atol=0.05 * scores[0].max())


@pytest.mark.parametrize("name", ["taylor", "discriminant", "reconstruction"])
def test_two_replicas_give_the_same_scores(K, strategy, images, name):
    scores = []
    for each in (None, strategy):
        with each.scope() if each else tf.init_scope():
            model = network(K)
        _, channels = channels_of(model, batches_of(images))
        scores.append(channel_scores_of(criterion_of(name), channels))
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3, atol=1e-6)


# Known answers


def made_up(activations, labels=None, widths=(3,)):
    """Whole channels of a layer with these activations (examples, channels), read by one Dense kernel of ones."""
    count = activations.shape[1]
    units = ChannelUnits(
        axes={"first/kernel": (None, np.arange(count)), "second/kernel": (np.arange(count), np.full(2, -1))},
        shapes={"first/kernel": (4, count), "second/kernel": (count, 2)},
        sets=(aimp_tf.selection.channel_layout.ChannelSet("first", ("first",), np.arange(count)),),
        counted=frozenset(),
        scored=frozenset(),
        reads={"first/kernel": 0, "second/kernel": 0},
        products=(),
        other_products=0,
    )

    class Known:
        def collect(self, names):
            tables = {"activations": activations, "densities": activations != 0, "contributions": activations}
            known = {name: {"second/kernel": [table.astype(float)]} for name, table in tables.items()}
            known["labels"] = [labels]
            moments = activations.T @ activations / len(activations)
            known["grams"] = {"second/kernel": Gram(moments, activations.mean(axis=0), len(activations), False)}
            return known

    weights = {path: np.ones(shape, np.float32) for path, shape in units.shapes.items()}
    masks = {path: np.ones(shape, bool) for path, shape in units.shapes.items()}
    return Channels(units, Statistics(weights, masks, np.random.default_rng(0), Known()))


def test_votes_are_those_of_the_examples():
    channels = made_up(np.array([[3.0, 0, 0], [2, 4, 0]]))
    np.testing.assert_allclose(channel_scores_of(criterion_of("votes"), channels), [0.5, 0.5, 0])


@pytest.mark.parametrize("name", ["votes", "activation_density", "reconstruction", "taylor", "fisher"])
def test_a_channel_that_is_never_active_goes_first(name):
    activations = np.random.default_rng(0).random((40, 5)) * (np.arange(5) != 3)
    scores = channel_scores_of(criterion_of(name), made_up(activations))
    assert np.argmin(scores) == 3 and np.sort(scores)[1] > 10 * scores[3]


def test_utility_is_a_moving_mean():
    channels = made_up(np.zeros((1, 2)))
    channels.__dict__["contributions"] = [np.array([[-2.0, 1.0]]), np.array([[1.0, 1.0]])]
    np.testing.assert_allclose(channel_scores_of(criterion_of("utility"), channels), [1.6, 1.3])


def test_the_informative_channel_is_the_most_discriminant(images):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    activations = generator.normal(size=(300, 6))
    activations[:, 2] += 3 * labels
    scores = channel_scores_of(criterion_of("discriminant"), made_up(activations, labels))
    assert np.argmax(scores) == 2 and scores[2] > 5 * np.sort(scores)[-2]
    # By its definition: what tr((S + rho I)^-1 S_B) loses.
    x = (activations - activations.mean(axis=0)) / activations.std(axis=0)
    means = np.array([x[labels == label].mean(axis=0) * np.sqrt((labels == label).mean()) for label in range(3)])

    def information(chosen):
        total = x[:, chosen].T @ x[:, chosen] / len(x) + 0.01 * np.eye(len(chosen))
        return np.trace(np.linalg.solve(total, means[:, chosen].T @ means[:, chosen]))

    left, expected = list(range(6)), {}
    while left:
        drops = {i: information(left) - information([j for j in left if j != i]) for i in left}
        first = min(left, key=lambda i: drops[i])
        expected[first] = max([drops[first], *expected.values()])
        left.remove(first)
    expected = np.array([expected[i] for i in range(6)])
    np.testing.assert_allclose(scores, expected / expected.mean(), rtol=1e-6, atol=1e-9)


def test_examples_of_one_class_tell_none_apart():
    channels = made_up(np.random.default_rng(0).normal(size=(30, 4)), np.full(30, 2))
    with pytest.raises(ValueError, match="30 examples are all of one. Shuffle the training data, or raise"):
        channel_scores_of(criterion_of("discriminant"), channels)


def test_mutual_information_of_normal_variables():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(20000, 2))
    channels = made_up(x)
    weights = np.array([[0.6, 0.0], [0.0, 1e-6]])
    channels.statistics.weights["second/kernel"] = weights
    noisy = 0.6 * x[:, :1] + 0.8 * generator.normal(size=(20000, 1))
    criterion = criterion_of("mutual_information")
    criterion._made_of = lambda these, channels, centred: iter([noisy])
    scores = channel_scores_of(criterion, channels)
    assert scores[0] == pytest.approx(-np.log(1 - 0.36) / 2, abs=0.02) and scores[1] < 0.005
    # Of what a kernel gives, all that cannot go: the more of a channel is in it, the more it tells.
    assert channel_scores_of(criterion_of("mutual_information"), made_up(x))[0] > 1


def test_output_information_of_normal_variables():
    """Of a block that has a part in the outputs, at any scale, of a wide one that has none, and of one that is gone."""
    generator = np.random.default_rng(0)
    branches = [100 * generator.normal(size=(1000, 1)), generator.normal(size=(1000, 128)), np.zeros((1000, 3))]
    outputs = 0.6 * branches[0] / 100 + 0.8 * generator.normal(size=(1000, 1))

    class Known:
        def collect(self, names):
            named = {str(index): np.split(branch, 4) for index, branch in enumerate(branches)}
            return {"branches": named, "outputs": np.split(outputs, 4)}

    kernels = {f"{index}/kernel": np.ones((2, 2)) for index in range(3)}
    units = ChannelUnits(
        axes={path: (None, np.full(2, index)) for index, path in enumerate(kernels)},
        shapes=dict.fromkeys(kernels, (2, 2)),
        sets=[ChannelSet("all", ("0", "1", "2"), np.arange(3))],
        counted=frozenset(kernels),
        scored=frozenset(kernels),
        reads={},
        products=(),
        other_products=0,
        others=("0", "1", "2"),
        kinds=("block",),
    )
    masks = {path: kernel > 0 for path, kernel in kernels.items()}
    channels = Channels(units, Statistics(kernels, masks, generator, Known()))
    scores = channel_scores_of(criterion_of("output_information"), channels)
    assert scores == pytest.approx([-np.log(1 - 0.36) / 2, 0, 0], abs=0.03) and abs(scores[2]) < 1e-12


def test_determinants_by_variables_and_by_examples():
    values = np.random.default_rng(0).normal(size=(6, 4))
    values[:, 1] = np.finfo(np.float32).min  # As a class that is masked.
    for wide in (values, values.T):
        centred = standardized(wide)
        expected = np.linalg.slogdet(covariance(centred) / covariance(np.zeros_like(centred))[0, 0])[1]
        assert log_determinant(centred) == pytest.approx(expected)
    assert not standardized(values)[:, 1].any() and np.abs(standardized(values)).max() < 3


@pytest.mark.parametrize("examples", [10, 47, 90])
def test_inverses_beside_others_by_variables_and_by_examples(examples):
    """Of fewer examples than others, of more than these alone, and of more than all."""
    generator = np.random.default_rng(0)
    values = standardized(generator.normal(size=(examples, 8)) @ generator.normal(size=(8, 50)))
    expected = np.linalg.inv(covariance(values))[:5, :5]
    np.testing.assert_allclose(inverse_beside(values[:, :5], values[:, 5:]), expected, rtol=1e-8)


def test_what_many_outputs_tell_takes_no_square_of_their_number(K):
    x, y = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32), np.arange(24) % 3
    model = classifier(K, K.layers.Dense(8, activation="relu"), K.layers.Dense(4000), shape=(6,))
    _, channels = channels_of(model, batches_of((x, y)), ("activations",))
    assert len(channels.activations) == 3
    tracemalloc.start()
    scores = channel_scores_of(criterion_of("mutual_information"), channels)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4000**2 and np.ptp(scores) > 0


def test_reconstruction_of_independent_inputs_is_their_share():
    gram = Gram(np.diag([2.0, 1.0]), np.zeros(2), 10**9, False)
    kernel, alive, parts = np.ones((2, 1)), np.ones(2, bool), [np.array([0]), np.array([1])]
    costs = Elimination(gram, kernel, alive, parts).costs(np.arange(2))
    np.testing.assert_allclose(costs, [2 / 3, 1 / 3], rtol=1e-4)
    np.testing.assert_allclose(removal_costs_of_weights(gram, kernel, kernel > 0)[:, 0], [2 / 3, 1 / 3], rtol=1e-4)


def test_costs_are_those_of_the_best_repair():
    """Against least squares on the rows themselves, of a few channels of several rows."""
    generator = np.random.default_rng(0)
    rows, kernel = generator.normal(size=(500, 8)) @ generator.normal(size=(8, 8)), generator.normal(size=(8, 3))
    gram = Gram(rows.T @ rows / 500, rows.mean(axis=0), 10**9, False)
    parts = [np.array([0, 5]), np.array([1, 2]), np.array([3, 7]), np.array([4, 6])]
    outputs, gone = rows @ kernel, []
    reader = Elimination(gram, kernel, np.ones(8, bool), parts)
    for _ in range(3):
        expected = []
        for part in parts:
            stay = np.setdiff1d(np.arange(8), np.concatenate([*gone, part]))
            best, *_ = np.linalg.lstsq(rows[:, stay], outputs, rcond=None)
            expected.append(((rows[:, stay] @ best - outputs) ** 2).sum() / (outputs**2).sum())
        before = ((rows @ reader_kernel(gone, rows, outputs) - outputs) ** 2).sum() / (outputs**2).sum()
        left = [i for i, part in enumerate(parts) if not any(part is other for other in gone)]
        costs = reader.costs(np.array(left))
        np.testing.assert_allclose(costs, np.array(expected)[left] - before, rtol=1e-2, atol=1e-4)
        cheapest = left[int(np.argmin(costs))]
        reader.remove(cheapest)
        gone.append(parts[cheapest])


def reader_kernel(gone, rows, outputs):
    stay = np.setdiff1d(np.arange(8), np.concatenate([[], *gone]))
    kernel = np.zeros((8, outputs.shape[1]))
    kernel[stay.astype(int)] = np.linalg.lstsq(rows[:, stay.astype(int)], outputs, rcond=None)[0]
    return kernel


def test_one_of_two_equal_channels_goes_first_and_the_other_does_not_follow():
    generator = np.random.default_rng(0)
    activations = generator.random((400, 6))
    activations[:, 4] = activations[:, 1]
    scores = channel_scores_of(criterion_of("reconstruction"), made_up(activations))
    first, second = np.sort(scores)[:2]
    assert np.argmin(scores) in (1, 4) and first < 1e-3 * second
    assert max(scores[1], scores[4]) > 0.01


def duplicated(K, padding):
    """A network one of whose channels is there twice: the same filter, normalisation and all."""
    model = network(K)
    for name in ("inner/kernel", "inner/bias", "inner_norm/gamma", "inner_norm/beta", "inner_norm/moving_mean"):
        layer, attribute = name.split("/")
        variable = getattr(model.get_layer(layer), attribute)
        value = np.array(variable)
        value[..., 3] = value[..., 1]
        variable.assign(value)
    variance = model.get_layer("inner_norm").moving_variance
    variance.assign(np.full(5, 0.7, np.float32))
    depthwise = model.get_layer("depthwise").depthwise_kernel if K.__name__ == "tf_keras" else None
    depthwise = model.get_layer("depthwise").kernel if depthwise is None else depthwise
    value = np.array(depthwise)
    value[:, :, 3] = value[:, :, 1]
    depthwise.assign(value)
    return model


def test_without_a_double_and_with_repair_outputs_are_the_same(K, images):
    model = duplicated(K, "same")
    before = np.asarray(model(images[0]))
    masked, channels = channels_of(model, batches_of(images))
    scores = channel_scores_of(criterion_of("reconstruction"), channels)
    inner = units_named(channels)["inner"]
    assert np.argmin(scores) in (inner[1], inner[3])
    masked.strip()
    result = aimp_tf.one_shot(
        model,
        *images,
        batch_size=8,
        granularity="channel",
        budget="channels",
        target_sparsity=1 / 12,
        criterion="reconstruction",
        recalibrate_batches=0,
    )
    assert sum(mask.size - np.count_nonzero(mask) for path, mask in result.masks.items() if path == "inner/bias") == 1
    np.testing.assert_allclose(np.asarray(model(images[0])), before, atol=1e-4 * np.abs(before).max())
    np.testing.assert_allclose(np.asarray(result.compact()(images[0])), before, atol=1e-4 * np.abs(before).max())


def test_without_repair_they_are_not(K, images):
    model = duplicated(K, "same")
    before = np.asarray(model(images[0]))
    settings = {"granularity": "channel", "budget": "channels", "target_sparsity": 1 / 12, "batch_size": 8}
    aimp_tf.one_shot(model, *images, criterion="reconstruction", repair=False, recalibrate_batches=0, **settings)
    assert np.abs(np.asarray(model(images[0])) - before).max() > 0.01 * np.abs(before).max()


@pytest.mark.parametrize("intercept", [False, True])
def test_repair_is_least_squares(intercept):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(2000, 8)) @ generator.normal(size=(8, 8)) + (3 * generator.normal(size=8))
    kernel, mask = generator.normal(size=(8, 3)), np.ones((8, 3), bool)
    mask[[1, 4]] = False
    gram = Gram(rows.T @ rows / 2000, rows.mean(axis=0), 10**9, intercept)
    after, shift = repaired(gram, kernel, mask)
    stay = np.flatnonzero(mask[:, 0])
    inputs = np.concatenate([rows[:, stay], np.ones((2000, int(intercept)))], axis=1)
    best, *_ = np.linalg.lstsq(inputs, rows @ kernel, rcond=None)
    assert not after[[1, 4]].any()
    np.testing.assert_allclose(after[stay], best[: len(stay)], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(shift, best[-1] if intercept else np.zeros(3), rtol=1e-2, atol=1e-2)


def test_repair_without_single_weights_is_least_squares_of_each_output():
    generator = np.random.default_rng(0)
    size = 60
    rows = generator.normal(size=(4000, size)) @ (np.eye(size) + 0.2 * generator.normal(size=(size, size)))
    kernel, mask = generator.normal(size=(size, 5)), generator.random((size, 5)) < 0.5
    mask[:, 3] = False
    gram = Gram(rows.T @ rows / 4000, np.zeros(size), 10**9, False)
    after, _ = repaired(gram, kernel, mask)
    assert not after[~mask].any()
    for column in (0, 1, 2, 4):
        stay = mask[:, column]
        best, *_ = np.linalg.lstsq(rows[:, stay], rows @ kernel[:, column], rcond=None)
        np.testing.assert_allclose(after[stay, column], best, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("whole", [True, False])
def test_repair_from_few_examples_does_for_others(whole):
    """Though one input, which matters elsewhere, hardly varies among them."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(4040, 10)) @ generator.normal(size=(10, 60)) + generator.normal(size=(4040, 60))
    few, others = rows[:40], rows[40:]
    few[:, -1] *= 1e-4
    kernel = generator.normal(size=(60, 3))
    mask = np.ones((60, 3), bool)
    mask[:20] = False
    if not whole:
        mask[20:22, 0] = False  # So that the columns differ.
    after, _ = repaired(Gram(few.T @ few / 40, np.zeros(60), 40, False), kernel, mask)
    np.testing.assert_allclose(after[-1], kernel[-1], atol=0.05)
    for examples, share in ((few, 0.1), (others, 0.3)):
        unrepaired = np.mean((examples @ np.where(mask, 0.0, kernel)) ** 2)
        assert np.mean((examples @ (after - kernel)) ** 2) < share * unrepaired


def test_fisher_of_a_linear_model_is_the_closed_form(K):
    """Of y = w' x with a squared loss: the gradient of an example is 2 (w' x - y) x."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(12, 4)).astype(np.float32), generator.normal(size=(12, 1)).astype(np.float32)
    model = K.Sequential([K.Input((4,)), K.layers.Dense(1, use_bias=False, name="dense")])
    model.compile("sgd", "mse")
    w = np.array(model.get_weights()[0])
    single = [(x[i : i + 1], y[i : i + 1]) for i in range(12)]
    scores = scores_of(criterion_of("fisher"), statistics_of(mask_model(model), single))["dense/kernel"]
    residuals = x @ w - y
    expected = w[:, 0] ** 2 * ((2 * residuals * x) ** 2).mean(axis=0) / 2
    np.testing.assert_allclose(scores[:, 0], expected, rtol=1e-4)


def test_taylor_of_a_weight_is_the_change_of_the_loss_to_first_order(K, images):
    model = network(K)
    batch = batches_of(images)[:1]
    masked = mask_model(model)
    scores = scores_of(criterion_of("taylor"), statistics_of(masked, batch))
    for path, index in (("head/kernel", (5, 1)), ("head/kernel", (20, 2))):  # With no ReLU on the way.
        variable = masked.variables[path]
        before = np.array(variable)
        losses = []
        for factor in (1.1, 0.9):
            moved = before.copy()
            moved[index] *= factor
            variable.assign(moved)
            losses.append(loss_of(masked.model, *batch[0]))
        variable.assign(before)
        assert scores[path][index] == pytest.approx(abs(losses[0] - losses[1]) / 0.2, rel=0.03, abs=1e-5)


@pytest.mark.parametrize("name", OF_CHANNELS)
def test_permuting_channels_permutes_scores(K, images, name):
    scores, order = [], np.array([2, 0, 4, 1, 3])
    for permuted in (False, True):
        model = network(K)
        if permuted:
            for path, axis in (
                ("inner/kernel", -1),
                ("inner/bias", 0),
                *((f"inner_norm/{attribute}", 0) for attribute in ("gamma", "beta", "moving_mean", "moving_variance")),
                ("depthwise/depthwise_kernel" if K.__name__ == "tf_keras" else "depthwise/kernel", 2),
                ("depthwise/bias", 0),
                ("back/kernel", 2),
            ):
                layer, attribute = path.split("/")
                variable = getattr(model.get_layer(layer), attribute)
                variable.assign(np.take(np.array(variable), order, axis))
        masked = mask_model(model, granularity="channel", exclude=("head/kernel",))
        channels = Channels(masked.units, statistics_of(masked, batches_of(images)))
        scores.append(channel_scores_of(criterion_of(name), channels)[units_named(channels)["inner"]])
    np.testing.assert_allclose(scores[1], scores[0][order], rtol=2e-3, atol=1e-5 * scores[0].max())


@pytest.mark.parametrize("name", ["taylor", "fisher", "utility", "votes", "activation_density", "reconstruction"])
def test_scaling_a_layer_up_and_the_next_down_changes_nothing(K, images, name):
    scores = []
    for factor in (1.0, 8.0):
        model = network(K)
        norm, down = model.get_layer("down_norm"), model.get_layer("head")
        for variable in (norm.gamma, norm.beta):
            variable.assign(np.array(variable) * factor)
        down.kernel.assign(np.array(down.kernel) / factor)
        _, channels = channels_of(model, batches_of(images))
        scores.append(channel_scores_of(criterion_of(name), channels))
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3, atol=1e-6)


# Budgets of layers


def test_layers_keep_channels_in_proportion_to_their_density():
    sets = [
        aimp_tf.selection.channel_layout.ChannelSet(name, (name,), units)
        for name, units in (("a", np.arange(20)), ("b", np.arange(20, 40)))
    ]
    units = ChannelUnits(
        axes={
            "a/kernel": (None, np.arange(20)),
            "b/kernel": (np.arange(20), np.arange(20, 40)),
            "c/kernel": (np.arange(20, 40), None),
        },
        shapes={"a/kernel": (3, 20), "b/kernel": (20, 20), "c/kernel": (20, 2)},
        sets=sets,
        counted=frozenset(),
        scored=frozenset(["a/kernel", "b/kernel", "c/kernel"]),
        reads={"b/kernel": 0, "c/kernel": 0},
        products=(),
        other_products=0,
        budget="channels",
    )
    generator = np.random.default_rng(0)
    weights = {path: generator.normal(size=shape) for path, shape in units.shapes.items()}
    masks = {path: np.ones(shape, bool) for path, shape in units.shapes.items()}

    class Known:
        def collect(self, names):
            return {"densities": {"b/kernel": [np.full((2, 20), 0.2)], "c/kernel": [np.full((2, 20), 0.6)]}}

    statistics = Statistics(weights, masks, generator, Known())
    least = {"a": 1, "b": 1}
    kept, _ = units.rank(criterion_of("magnitude"), statistics, 16, least, "activation_density")
    alive = units.kept(kept)
    assert (alive[:20].sum(), alive[20:].sum()) == (4, 12)
    kept, _ = units.rank(criterion_of("magnitude"), statistics, 15, least, lambda channels: {"a": 2, "b": 1})
    assert (units.kept(kept)[:20].sum(), units.kept(kept)[20:].sum()) == (10, 5)
    for wrong, error, message in (
        (lambda channels: None, TypeError, "got NoneType"),
        (lambda channels: {"a": 1}, ValueError, "missing: b"),
        (lambda channels: {"a": 1, "b": 0}, ValueError, "share above 0"),
    ):
        with pytest.raises(error, match=message):
            units.rank(criterion_of("magnitude"), statistics, 15, least, wrong)


# Models and data of all kinds


def classifier(K, *layers, shape=(6,), seed=0, **compiled):
    K.utils.set_random_seed(seed)
    model = K.Sequential([K.Input(shape), *layers])
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(**{"optimizer": "sgd", "loss": loss, **compiled})
    return model


def repaired_error(model, x, **settings):
    """The mean error that one_shot makes in the outputs, beside their deviation, without and with repair."""
    before, weights, errors = np.asarray(model(x)), model.get_weights(), []
    for repair in (False, True):
        model.set_weights(weights)
        aimp_tf.one_shot(model, x, repair=repair, recalibrate_batches=0, batch_size=64, **settings)
        errors.append(np.std(np.asarray(model(x)) - before) / before.std())
    return errors


def test_repair_of_inputs_far_from_zero(K):
    generator = np.random.default_rng(0)
    x = 500 + generator.normal(size=(512, 4)) @ generator.normal(size=(4, 12)) + 0.1 * generator.normal(size=(512, 12))
    model = classifier(K, K.layers.Dense(5, name="dense"), shape=(12,))
    errors = repaired_error(model, x.astype(np.float32), target_sparsity=0.5)
    assert errors[1] < 0.3 * errors[0]


def test_layers_that_compute_otherwise_are_not_repaired(K):
    class Normalized(K.layers.Dense):
        def call(self, inputs):
            return tf.matmul(inputs, self.kernel / tf.norm(self.kernel, axis=0)) + self.bias

    x = np.random.default_rng(0).random((128, 20)).astype(np.float32)
    model = classifier(K, Normalized(16, name="own"), K.layers.Dense(3, name="plain"), shape=(20,))
    masked = mask_model(model)
    assert list(statistics_of(masked, [(x, np.zeros(128, int))]).grams) == ["plain/kernel"]


@pytest.mark.parametrize("name", ["taylor", "votes", "reconstruction"])
def test_what_reads_sparse_inputs_is_left_out_of_account(K, name):
    x, y = np.random.default_rng(0).binomial(1, 0.2, (64, 20)).astype(np.float32), np.arange(64) % 3
    scores = []
    for sparse in (False, True):
        K.utils.set_random_seed(0)
        layers = K.Input((20,), sparse=sparse), K.layers.Dense(8, activation="relu"), K.layers.Dense(3)
        model = K.Sequential(layers)
        model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
        data = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(x) if sparse else x, y)).batch(16)
        masked, channels = channels_of(model, list(data))
        scores.append(channel_scores_of(criterion_of(name), channels))
        masked.strip()
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)
    result = aimp_tf.one_shot(model, data, granularity="channel", target_sparsity=0.5, criterion=name)
    assert np.ptp(scores[0]) > 0 and result.budget.kept <= result.budget.asked


@pytest.mark.parametrize("name", ["taylor", "fisher", "votes", "activation_density", "mutual_information"])
def test_steps_that_are_seen_as_examples_are_positions_of_these(K, name):
    L, scores, weights = K.layers, [], None
    x, y = np.random.default_rng(0).normal(size=(24, 5, 6)).astype(np.float32), np.arange(24) % 3
    for wrapped in (lambda layer: layer, L.TimeDistributed):
        layers = wrapped(L.Dense(8, activation="relu")), wrapped(L.Dense(7, activation="relu"))
        model = classifier(K, *layers, L.Flatten(), L.Dense(3), shape=(5, 6))
        weights = weights or model.get_weights()
        model.set_weights(weights)
        _, channels = channels_of(model, batches_of((x, y)))
        scores.append(channel_scores_of(criterion_of(name), channels))
    assert np.ptp(scores[0]) > 0
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4)


@pytest.mark.parametrize("name", ["taylor", "votes", "mutual_information"])
def test_layers_that_do_not_see_example_by_example_are_named(K, name):
    L, reshape = K.layers, K.ops.reshape if hasattr(K, "ops") else tf.reshape
    K.utils.set_random_seed(0)
    sequence = K.Input((5, 6))
    x = reshape(L.Dense(8, activation="relu", name="first")(sequence), (-1, 8))
    x = L.Dense(7, activation="relu", name="third")(L.Dense(9, activation="relu", name="second")(x))
    x = L.Dense(6, activation="relu", name="fourth")(L.Flatten()(reshape(x, (-1, 5, 7))))
    model = K.Model(sequence, L.Dense(3, name="last")(x))
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = np.random.default_rng(0).normal(size=(24, 5, 6)).astype(np.float32), np.arange(24) % 3
    masked, channels = channels_of(model, batches_of((x, y)))
    with pytest.raises(ValueError, match="the inputs of third/kernel do not come example by example"):
        channel_scores_of(criterion_of(name), channels)
    masked.strip()
    settings = {"granularity": "channel", "target_sparsity": 0.1, "exclude": ("second/*",)}
    assert aimp_tf.one_shot(model, x, y, criterion=name, **settings).budget.kept


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("criterion", "repair"), [("reconstruction", False), ("votes", False), ("magnitude", True)])
def test_one_example_that_is_not_finite_is_named(K, criterion, repair, value):
    x, y = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32), np.arange(24) % 3
    x[17, 2] = value
    model = classifier(K, K.layers.Dense(8, activation="relu", name="first"), K.layers.Dense(3, name="second"))
    settings = {"granularity": "channel", "target_sparsity": 0.5, "batch_size": 8, "recalibrate_batches": 0}
    with pytest.raises(ValueError, match="What first/kernel multiplies is NaN or infinite"):
        aimp_tf.one_shot(model, x, y, criterion=criterion, repair=repair, **settings)


@pytest.mark.parametrize("sizes", [(7,), (7, 9, 12)])
def test_sequences_of_any_length(K, sizes):
    L = K.layers
    layers = [L.Conv1D(6, 3, padding="same", activation="relu"), L.Dense(5), L.GlobalAveragePooling1D(), L.Dense(3)]
    model = classifier(K, *layers, shape=(None, 4))
    generator = np.random.default_rng(0)
    batches = [(generator.normal(size=(8, size, 4)).astype(np.float32), np.zeros(8, int)) for size in sizes]
    data = tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=(tf.TensorSpec((8, None, 4)), tf.TensorSpec((8,), tf.int64)),
    )
    result = aimp_tf.one_shot(model, data, target_sparsity=0.5)
    assert result.sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["taylor", "activation_density", "mutual_information", "gradient"])
def test_channels_that_an_einsum_reads_are_scored_as_those_that_a_dense_layer_reads(K, name):
    L = K.layers
    x, y = np.random.default_rng(0).normal(size=(24, 5, 6)).astype(np.float32), np.arange(24) % 3
    scores, weights = [], None
    for reader in (L.Dense(12), L.EinsumDense("...x,xy->...y", (12,), bias_axes="y")):
        layers = L.Dense(16, activation="relu"), reader, L.Dense(10), L.GlobalAveragePooling1D(), L.Dense(3)
        model = classifier(K, *layers, shape=(5, 6))
        weights = weights or model.get_weights()
        model.set_weights(weights)
        _, channels = channels_of(model, [(x, y)])
        scores.append(channel_scores_of(criterion_of(name), channels))
    assert scores[0][:16].all()
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4)
    with pytest.raises(ValueError, match="ranks what Dense and convolution layers read"):
        channel_scores_of(criterion_of("reconstruction"), channels)


def projecting(K):
    """A network one of whose layers is of the user's own: it reads and makes channels by a kernel, as its rule says."""

    class Project(K.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(name="kernel", shape=(shape[-1], 7))
            super().build(shape)

        def call(self, inputs):
            return tf.matmul(inputs, tf.convert_to_tensor(self.kernel))

        def compute_output_shape(self, shape):
            return (*shape[:-1], 7)

        def get_prunable_weights(self):
            return [self.kernel]

    class Projects(Linear):
        def attributes(self, kept):
            return {}

    def rule(call, assumptions):
        return Projects(call.layer, [assumptions.value(call.layer.kernel)], np.asarray, bordered=False)

    aimp_tf.register_rule(Project, rule)
    return classifier(K, K.layers.Dense(8, activation="relu"), Project(name="own"), K.layers.Dense(3))


def test_channels_that_a_layer_of_ones_own_reads_have_the_scores_of_their_weights(K):
    x, y = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32), np.arange(24) % 3
    _, channels = channels_of(projecting(K), [(x, y)])
    taylor = criterion_of("taylor")
    scores = channel_scores_of(taylor, channels)
    np.testing.assert_allclose(scores, channels.pool(taylor.scores(channels.statistics), signed=True))
    assert scores[:8].any()
    with pytest.raises(ValueError, match="and own read or make channels otherwise"):
        channel_scores_of(criterion_of("votes"), channels)


def test_layers_within_steps_of_recurrent_ones(K):
    class Cell(K.layers.Layer):
        state_size = output_size = 5

        def __init__(self, **settings):
            super().__init__(**settings)
            self.dense = K.layers.Dense(5, activation="tanh", name="dense")

        def build(self, shape):
            self.dense.build((shape[0], shape[-1] + 5))
            self.built = True

        def call(self, inputs, states):
            output = self.dense(tf.concat([inputs, states[0]], axis=-1))
            return output, [output]

    model = classifier(K, K.layers.RNN(Cell()), K.layers.Dense(3, name="head"), shape=(4, 2))
    x = np.random.default_rng(0).normal(size=(16, 4, 2)).astype(np.float32)
    for criterion in ("magnitude", "taylor"):
        result = aimp_tf.one_shot(model, x, np.zeros(16, int), target_sparsity=0.4, criterion=criterion)
        assert result.sparsity == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("kind", [tuple, list])
def test_batches_may_be_lists(K, kind):
    x, y = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32), np.arange(16) % 3

    class Batches(K.utils.PyDataset if hasattr(K.utils, "PyDataset") else K.utils.Sequence):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return kind((x[8 * index : 8 * index + 8], y[8 * index : 8 * index + 8]))

    masked = mask_model(classifier(K, K.layers.Dense(3, name="dense")))
    seen = ModelSample(masked, Batches(), 2).collect({"labels", "gradients"})
    np.testing.assert_array_equal(np.concatenate(seen["labels"]), y)
    with pytest.raises(TypeError, match="A sample is batches of the training data"):
        ModelSample(masked, (x, y), 2).collect({"gradients"})


def test_float16_in_which_a_scaled_loss_is_infinite(K):
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    gradients = []
    for precision in (None, "mixed_float16"):
        model = classifier(K, K.layers.Dense(8, activation="relu"), K.layers.Dense(1), loss="mse")
        masked = mask_model(model, mixed_precision=precision)
        gradients.append(gradients_by_path(masked, x, np.full((32, 1), 300.0, np.float32)))
    for one, other in zip(*(each.values() for each in gradients), strict=True):
        np.testing.assert_allclose(other, one, rtol=0.05, atol=0.02 * np.abs(one).max())


@pytest.mark.parametrize("name", ["taylor", "fisher", "gradient"])
def test_small_scores_in_layers_of_float16_are_not_lost(K, name):
    x, y = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32), np.full((32, 1), 0.01, np.float32)
    scores = []
    for dtype in ("float32", "float16"):
        small, last = (K.initializers.RandomNormal(stddev=1e-4, seed=seed) for seed in (1, 2))
        first = K.layers.Dense(8, use_bias=False, kernel_initializer=small, dtype=dtype, name="first")
        second = K.layers.Dense(1, kernel_initializer=last, dtype="float32")
        masked = mask_model(classifier(K, first, second, loss="mse"))
        scores.append(scores_of(criterion_of(name), statistics_of(masked, [(x, y)]))["first/kernel"])
    np.testing.assert_allclose(scores[1], scores[0], rtol=0.1, atol=0.01 * scores[0].max())


def gradients_by_path(masked, x, y):
    return ModelSample(masked, [(x, y)], 1).collect({"gradients"})["gradients"]


def test_a_model_that_is_compiled_anew_has_other_gradients(K):
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    inputs = K.Input((6,))
    hidden = K.layers.Dense(5, name="hidden")(inputs)
    model = K.Model(inputs, [K.layers.Dense(1, name=name)(hidden) for name in ("one", "other")])
    targets = (np.ones((32, 1), np.float32), np.zeros((32, 1), np.float32))
    optimizer, losses = K.optimizers.SGD(), ["mse", "mse"]
    model.compile(optimizer, losses, loss_weights=[1.0, 0.0])
    masked = mask_model(model)
    sample = ModelSample(masked, [(x, targets)], 1)
    before = sample.collect({"gradients"})["gradients"]["other/kernel"]
    assert not before.any()
    masked.model.compile(optimizer, losses, loss_weights=[0.0, 1.0])
    assert sample.collect({"gradients"})["gradients"]["other/kernel"].any()


def test_a_branch_that_is_gone_costs_nothing(K, images):
    model = network(K)
    model.get_layer("back").kernel.assign(np.zeros((1, 1, 5, 4), np.float32))
    model.get_layer("back").bias.assign(np.zeros(4, np.float32))
    for criterion in ("reconstruction", "votes", "discriminant", "mutual_information"):
        masked = mask_model(model, granularity="channel")
        masks = masked.masks()
        masks["back/kernel"][:] = False
        channels = Channels(masked.units, statistics_of(masked, batches_of(images), masks=masks))
        scores = channel_scores_of(criterion_of(criterion), channels)
        masked.strip()
        if criterion == "reconstruction":
            assert not scores[units_named(channels)["inner"]].any() and scores.any()


def test_repaired_biases_meet_the_constraints_of_the_user(K):
    x = np.random.default_rng(0).random((128, 8)).astype(np.float32)
    dense = K.layers.Dense(6, bias_constraint=K.constraints.NonNeg(), name="dense")
    model = classifier(K, dense, shape=(8,))
    aimp_tf.one_shot(model, x, target_sparsity=0.5)
    assert np.asarray(dense.bias).min() == 0 and np.asarray(dense.bias).max() > 0


def test_losses_that_need_no_targets(K):
    class Penalized(K.layers.Layer):
        def call(self, inputs):
            self.add_loss(tf.reduce_mean(inputs**2))
            return inputs

    x = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    model = classifier(K, K.layers.Dense(5, name="dense"), Penalized(), loss=None)
    result = aimp_tf.one_shot(model, x, target_sparsity=0.5, criterion="taylor")
    assert result.sparsity == pytest.approx(0.5, abs=0.02)


def test_layers_called_by_keyword(K):
    class Own(K.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.norm, self.head = K.layers.Dense(6), K.layers.BatchNormalization(), K.layers.Dense(3)

        def call(self, inputs, training=None):
            return self.head(inputs=self.norm(inputs=self.dense(inputs=inputs), training=training))

    if K.__name__ == "tf_keras":
        pytest.skip("Subclassed tf_keras models are refused.")
    model = Own()
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    model(x)
    result = aimp_tf.one_shot(model, x, target_sparsity=0.5)
    assert result.sparsity == pytest.approx(0.5, abs=0.03)


# In runs


@pytest.mark.parametrize("criterion", ["taylor", "discriminant", "reconstruction"])
def test_rounds_with_channels(K, images, criterion):
    model = network(K)
    result = aimp_tf.prune(
        model,
        *images,
        granularity="channel",
        budget="flops",
        target_sparsity=0.5,
        rate=0.3,
        epochs=1,
        criterion=criterion,
        repair=criterion == "reconstruction",
        seed=1,
        verbose=0,
    )
    assert result.budget.kept <= result.budget.asked
    assert len(result.rounds) > 2


def test_repair_comes_before_the_round(K, images):
    """The weights with which the last training begins make up for those that went."""
    before, errors = np.asarray(network(K)(images[0])), []
    for repair in (False, True):
        seen = []

        class Begun(K.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None, seen=seen):
                if batch == 0:
                    seen.append(np.asarray(self.model(images[0], training=False)))

        aimp_tf.prune(
            network(K, optimizer=K.optimizers.SGD(0.0)),
            *images,
            target_sparsity=0.2,
            rate=0.2,
            epochs=1,
            start="trained",
            shrink=1.0,
            repair=repair,
            callbacks=[Begun()],
            exclude=("stem/*",),
            seed=1,
            verbose=0,
        )
        errors.append(np.abs(seen[0] - before).mean())
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "votes"}, "ranks whole channels. Write granularity='channel'"),
        ({"scope": "activation_density"}, "is of whole channels"),
        ({"criterion": "scale", "granularity": "channel"}, "there is none after"),
        ({"repair": True, "rewind": "weights"}, "repair is for weights that stay"),
        ({"criterion_batches": 0}, "criterion_batches must be at least 1"),
    ],
)
def test_what_cannot_be_ranked_is_refused_before_training(K, images, settings, message):
    L = K.layers
    model = K.Sequential([K.Input((6, 6, 2)), L.Flatten(), L.Dense(6, activation="relu"), L.Dense(3)])
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        aimp_tf.prune(model, *images, target_sparsity=0.5, epochs=1, verbose=0, **settings)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("given", "expected"), [(None, 3), (2, 2), (50, 6)])
def test_so_many_batches_are_looked_at(given, expected, images):
    seen = []

    class Listening(aimp_tf.Criterion):
        batches = 3

        def scores(self, statistics):
            seen.append([len(labels) for labels in statistics.labels])
            return statistics.weights

    settings = {"target_sparsity": 0.3, "batch_size": 4, "criterion_batches": given}
    aimp_tf.one_shot(network(importlib.import_module("keras")), *images, criterion=Listening(), **settings)
    assert seen == [[4] * expected]


def test_data_without_classes(K, images):
    model = network(K, loss="mse")
    targets = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    settings = {"granularity": "channel", "target_sparsity": 0.3, "batch_size": 8}
    with pytest.raises(ValueError, match="asks for the class of each example"):
        aimp_tf.one_shot(model, images[0], targets.round(0) + 0.5 * targets, criterion="discriminant", **settings)
    with pytest.raises(ValueError, match="asks for targets, and the training data has none"):
        aimp_tf.one_shot(model, images[0], criterion="taylor", **settings)
    result = aimp_tf.one_shot(model, images[0], criterion="votes", **settings)
    assert result.budget.kept < result.budget.dense


def test_several_outputs_and_losses_of_ones_own(K, images):
    L = K.layers
    K.utils.set_random_seed(0)
    image = K.Input((6, 6, 2))
    x = L.Conv2D(5, 3, activation="relu", name="first")(image)
    x = L.Conv2D(6, 3, activation="relu", name="second")(x)
    flat = L.Flatten()(x)
    model = K.Model(image, [L.Dense(3, name="classes")(flat), L.Dense(1, name="value")(flat)])
    cross = K.losses.SparseCategoricalCrossentropy(from_logits=True)

    def squared(y, prediction):
        return tf.reduce_mean((y - tf.cast(prediction, tf.float32)) ** 2, axis=-1)

    model.compile("sgd", [cross, squared], loss_weights=[1.0, 0.5])
    targets = (images[1], np.random.default_rng(0).normal(size=(24, 1)).astype(np.float32))
    batches = [(images[0], targets)]
    masked, channels = channels_of(model, batches)
    gradients, units = channels.statistics.gradients, channels.units
    table = np.concatenate(channels.contributions).mean(axis=0)
    second = masked.weights()["second/kernel"] * gradients["second/kernel"]
    np.testing.assert_allclose(table[units_named(channels)["first"]], second.sum(axis=(0, 1, 3)), rtol=1e-3, atol=1e-6)
    assert units.count == 11


def test_a_run_goes_on_with_the_same_statistics(K, digits, tmp_path):
    """Real data: the digits. What is ranked, repaired and trained is the same as without an interruption."""

    class Stop(K.callbacks.Callback):
        def on_train_begin(self, logs=None):
            if stop and len(list(tmp_path.joinpath("run").glob("round_*/result.json"))) == 2:
                raise KeyboardInterrupt

    x, y = digits[0][:200], digits[1][:200]
    results, stop = [], False
    settings = {"target_sparsity": 0.6, "rate": 0.3, "epochs": 2, "criterion": "taylor", "repair": True}

    def pruned(workdir):
        K.utils.set_random_seed(1)
        L = K.layers
        model = K.Sequential([K.Input((64,)), L.Dense(16, activation="relu", name="hidden"), L.Dense(10, name="out")])
        model.compile("adam", K.losses.SparseCategoricalCrossentropy(from_logits=True))
        return aimp_tf.prune(
            model, x, y, workdir=workdir, callbacks=[Stop()], seed=3, verbose=0, batch_size=40, **settings
        )

    results.append(pruned(tmp_path / "whole"))
    stop = True
    with pytest.raises(KeyboardInterrupt):
        pruned(tmp_path / "run")
    stop = False
    results.append(pruned(tmp_path / "run"))
    for one, other in zip(*(result.model.get_weights() for result in results), strict=True):
        np.testing.assert_array_equal(one, other)
