"""The property-based tests are of mechanics: made-up networks, weights and inputs."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import EXAMPLES, GENERATIONS, Network, check_same, drawn, in_float64, randomize

import aimp_tf
from aimp_tf.exporting.compaction import compact_and_report
from aimp_tf.graph.prunable import prunable_variables
from experiments import models


def prune_by_magnitude(model, sparsity):
    variables = prunable_variables(model).values()
    threshold = np.quantile(np.concatenate([np.abs(variable.numpy()).ravel() for variable in variables]), sparsity)
    for variable in variables:
        variable.assign(np.where(np.abs(variable.numpy()) > threshold, variable.numpy(), 0))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["lenet_300_100", "lenet_5", "resnet_20", "tiny_mobilenet"])
def test_known_networks(architecture, K):
    generator = np.random.default_rng(0)
    model = models.build(architecture, K, (28, 28, 1), 10)
    randomize(model, generator)
    # Heavy tails, as trained weights have them: some weights of every unit are large.
    for variable in prunable_variables(model).values():
        variable.assign(variable.numpy() * np.exp(generator.normal(0, 1, variable.shape)))
    images = generator.random((5, 28, 28, 1), np.float32)
    sizes = []
    for sparsity in (0.9, 0.98, 0.995):
        prune_by_magnitude(model, sparsity)
        small, report = check_same(model, images)
        assert type(small).__module__.split(".")[0] == K.__name__ and not report.left_alone
        sizes.append(report.parameters[1])
    assert model.count_params() >= sizes[0] >= sizes[1] >= sizes[2] > 0 and sizes[0] > sizes[2]


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(data=st.data(), generation=st.sampled_from(GENERATIONS))
def test_any_network_computes_the_same(data, generation):
    with in_float64(generation):
        model, _ = drawn(data, generation)
        check_same(model, np.random.default_rng(0).normal(size=(3, 5, 5, 2)))


def dense(keras, *sizes, **settings):
    """An MLP of these sizes without weights that are zero."""
    model = keras.Sequential([keras.Input(sizes[:1]), *(keras.layers.Dense(size, **settings) for size in sizes[1:])])
    for weight in model.weights:
        weight.assign(tf.random.uniform(weight.shape, 0.5, 1.0))
    return model


def test_dead_units_become_biases(K):
    model = dense(K, 2, 3, 1, activation="relu")
    # The first unit is constant, the second is never read.
    model.layers[0].set_weights([np.array([[0.0, 1, 2], [0, 3, 4]]), np.array([5.0, 6, 7])])
    model.layers[1].set_weights([np.array([[2.0], [0], [1]]), np.array([0.5])])
    small, report = check_same(model, np.array([[1.0, 2], [-3, 4]]))
    first, second = small.layers[1:]
    np.testing.assert_array_equal(first.get_weights()[0], [[2], [4]])
    np.testing.assert_array_equal(first.get_weights()[1], [7])
    np.testing.assert_array_equal(second.get_weights()[0], [[1]])
    np.testing.assert_array_equal(second.get_weights()[1], [0.5 + 2 * 5])
    assert report.parameters == (13, 5) and report.multiply_adds == (9, 3)
    assert report.channels == {layer.name: sizes for layer, sizes in zip(model.layers, [(3, 1), (1, 1)], strict=True)}
    assert report.summary().splitlines()[2:] == [f"{model.layers[0].name}: 3 -> 1"]


def test_inputs_that_are_never_read_stay(K):
    model = dense(K, 4, 2)
    model.layers[0].kernel.assign(np.array([[0.0, 0], [0, 0], [1, 2], [0, 0]]))
    small, _ = check_same(model, np.eye(4, dtype=np.float32))
    assert small.input_shape == (None, 4) and small.count_params() == model.count_params()


def test_one_constant_channel_stands_in_for_all_where_there_is_padding(K):
    """With zeros around it, what a constant channel adds differs at the borders, so that no bias can hold it."""
    layers = K.layers
    model = K.Sequential(
        [
            K.Input((6, 6, 1)),
            layers.Conv2D(8, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.Conv2D(2, 3, padding="same"),
        ]
    )
    randomize(model, np.random.default_rng(0))
    conv, normalization, *_ = model.layers
    conv.kernel.assign(np.where(np.arange(8) < 2, conv.kernel.numpy(), 0))
    normalization.beta.assign(np.arange(1, 9) / 2)
    _, report = check_same(model, np.random.default_rng(0).normal(size=(2, 6, 6, 1)))
    assert report.channels[conv.name] == (8, 3)


@pytest.mark.parametrize(
    "reader",
    ["Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "ZeroPadding2D", "Cropping2D", "AveragePooling2D", "UpSampling2D"],
)
def test_constant_channels_at_borders(reader, K):
    layers = K.layers
    settings = {
        "Conv2D": {"filters": 4, "kernel_size": 3, "padding": "same"},
        "Conv2DTranspose": {"filters": 4, "kernel_size": 3},
        "DepthwiseConv2D": {"kernel_size": 3, "padding": "same"},
        "AveragePooling2D": {"pool_size": 2, "padding": "same"},
    }
    image = K.Input((5, 5, 2))
    values = layers.Conv2D(4, 1, name="first")(image)
    values = getattr(layers, reader)(**settings.get(reader, {}))(values)
    model = K.Model(image, layers.Conv2D(2, 1, name="last")(values))
    randomize(model, np.random.default_rng(0))
    first = model.get_layer("first")
    first.kernel.assign(np.where(np.arange(4) < 1, first.kernel.numpy(), 0))
    _, report = check_same(model, np.random.default_rng(0).normal(size=(2, 5, 5, 2)))
    left = {"Conv2D": 2, "Conv2DTranspose": 2, "DepthwiseConv2D": 4, "ZeroPadding2D": 2}
    assert report.channels["first"] == (4, left.get(reader, 1))


def test_depthwise_channels_without_weights_are_constant(K):
    model = K.Sequential(
        [
            K.Input((5, 5, 2)),
            K.layers.Conv2D(4, 1, name="first"),
            K.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise"),
            K.layers.Conv2D(2, 1),
        ]
    )
    randomize(model, np.random.default_rng(0))
    depthwise = model.get_layer("depthwise")
    kernel = depthwise.get_weights()[0]
    depthwise.set_weights([np.where(np.arange(4)[:, np.newaxis] < 2, kernel, 0), depthwise.get_weights()[1]])
    _, report = check_same(model, np.random.default_rng(0).normal(size=(2, 5, 5, 2)))
    assert report.channels["first"] == (4, 2) and report.channels["depthwise"] == (8, 4)


def test_a_shared_layer_keeps_what_any_of_its_calls_needs(K):
    left, right = K.Input((3,)), K.Input((3,))
    layers = {name: K.layers.Dense(4, name=name) for name in ("left", "right", "shared")}
    ends = [K.layers.Dense(1, name=name) for name in ("left_end", "right_end")]
    towers = [end(layers["shared"](layers[name](x))) for end, name, x in zip(ends, layers, (left, right), strict=False)]
    model = K.Model([left, right], towers)
    randomize(model, np.random.default_rng(0))
    unit = np.arange(4)
    # The first unit is constant on the left alone, the second on both sides, but with values of their own.
    layers["left"].kernel.assign(np.where(unit < 2, 0, layers["left"].kernel.numpy()))
    layers["right"].kernel.assign(np.where(unit == 1, 0, layers["right"].kernel.numpy()))
    for end, wanted in zip(ends, (0, 1), strict=True):  # Each reads another unit of the shared layer.
        end.kernel.assign((unit == wanted).astype(np.float32)[:, np.newaxis])
    inputs = [np.random.default_rng(seed).normal(size=(5, 3)).astype(np.float32) for seed in (0, 1)]
    _, report = check_same(model, inputs)
    assert report.channels["shared"] == (4, 2) and report.channels["left"] == report.channels["right"] == (4, 4)


@pytest.mark.parametrize("kind", ["Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"])
def test_merged_constants(kind, K):
    vector = K.Input((3,))
    first, second = (K.layers.Dense(4, name=name) for name in ("first", "second"))
    merged = getattr(K.layers, kind)()([first(vector), second(vector)])
    model = K.Model(vector, K.layers.Dense(2)(merged))
    for layer, bias in ((first, [2.0, -3, 4, 1]), (second, [3.0, -5, -2, 0])):
        layer.set_weights([np.where(np.arange(4) < 3, 0, layer.kernel.numpy()), np.array(bias)])
    _, report = check_same(model, np.random.default_rng(0).normal(size=(5, 3)))
    assert report.channels["first"] == report.channels["second"] == (4, 1)


@pytest.mark.parametrize("kind", ["Add", "Multiply", "Average", "Maximum", "Minimum"])
def test_all_of_three_branches_keep_the_same_channels(kind, K):
    """Channel 1 is zero in each of them, 0 in the first, 2 in the second and 3 in the third alone."""
    vector = K.Input((3,))
    branches = [K.layers.Dense(6, use_bias=False, name=name) for name in ("first", "second", "third")]
    merged = getattr(K.layers, kind)()([branch(vector) for branch in branches])
    model = K.Model(vector, K.layers.Dense(2)(merged))
    for branch, zeros in zip(branches, ([0, 1], [1, 2], [1, 3]), strict=True):
        branch.set_weights([np.where(np.isin(np.arange(6), zeros), 0, branch.kernel.numpy())])
    _, report = check_same(model, np.random.default_rng(0).normal(size=(5, 3)))
    # A product is zero where any of its factors is.
    left = 2 if kind == "Multiply" else 5
    assert [report.channels[name] for name in ("first", "second", "third")] == [(6, left)] * 3


def test_images_that_are_joined_along_a_side_keep_the_same_channels(K):
    image = K.Input((4, 4, 2))
    upper, lower = (K.layers.Conv2D(5, 3, padding="same", use_bias=False, name=name) for name in ("upper", "lower"))
    joined = K.layers.Concatenate(axis=1)([upper(image), lower(image)])
    model = K.Model(image, K.layers.Conv2D(3, 3, name="reader")(joined))
    for convolution, zeros in ((upper, [0, 1]), (lower, [1, 2])):
        convolution.set_weights([np.where(np.isin(np.arange(5), zeros), 0, convolution.kernel.numpy())])
    _, report = check_same(model, np.random.default_rng(0).normal(size=(2, 4, 4, 2)))
    assert report.channels["upper"] == report.channels["lower"] and report.channels["upper"][1] >= 4


def test_a_gate_of_zeros_kills_what_it_multiplies(K):
    vector = K.Input((3,))
    gate, gated = K.layers.Dense(4, name="gate"), K.layers.Dense(4, name="gated")
    model = K.Model(vector, K.layers.Dense(2)(K.layers.Multiply()([gate(vector), gated(vector)])))
    gate.set_weights([np.where(np.arange(4) < 3, 0, gate.kernel.numpy()), np.zeros(4)])
    _, report = check_same(model, np.random.default_rng(0).normal(size=(5, 3)))
    assert report.channels["gate"] == report.channels["gated"] == (4, 1)


def test_a_constant_branch_stays_where_it_alone_has_the_shape_of_the_sum(K):
    image = K.Input((4, 4, 2))
    layers = K.layers
    pooled = layers.Reshape((1, 1, 3))(layers.Dense(3)(layers.GlobalAveragePooling2D()(image)))
    dead = layers.Conv2D(3, 1, name="dead")
    model = K.Model(image, layers.Dense(2)(layers.Flatten()(layers.Add()([pooled, dead(image)]))))
    dead.set_weights([np.zeros((1, 1, 2, 3)), np.array([1.0, 2, 3])])
    check_same(model, np.random.default_rng(0).normal(size=(2, 4, 4, 2)))


def branched(keras, beta):
    """A residual block whose branch ends in a normalisation that forgets what came before."""
    layers = keras.layers
    image = keras.Input((6, 6, 2))
    trunk = layers.Conv2D(4, 3, padding="same", name="trunk")(image)
    branch = layers.Conv2D(16, 3, padding="same", name="branch")(trunk)
    normalization = layers.BatchNormalization()
    branch = normalization(layers.Conv2D(4, 3, padding="same", name="branch_end")(branch))
    normalization.gamma.assign(np.zeros(4))
    normalization.beta.assign(beta)
    total = layers.Add(name="total")([trunk, branch])
    return keras.Model(image, layers.GlobalMaxPooling2D()(layers.ReLU()(total)))


@pytest.mark.parametrize("beta", [(0.0, 0.0, 0.0, 0.0), (0.0, 1.0, -2.0, 0.5)])
def test_dead_branches_go(beta, K):
    small, report = check_same(branched(K, beta), np.random.default_rng(0).normal(size=(2, 6, 6, 2)))
    assert report.channels == {"trunk": (4, 4), "branch": (16, 0), "branch_end": (4, 0)}
    assert ("total_offset" in [layer.name for layer in small.layers]) == any(beta)


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_an_output_that_loses_a_branch_keeps_its_name(beta, K):
    layers, inputs = K.layers, K.Input((4,))
    dead = layers.Dense(3, kernel_initializer="zeros", bias_initializer=K.initializers.Constant(beta))
    main = layers.Dense(3, name="main")(inputs)
    outputs = [layers.Add(name="total")([main, dead(inputs)]), layers.Dense(2, name="other")(main)]
    model = K.Model(inputs, outputs)
    model.compile("sgd", loss={"total": "mse", "other": "mse"}, metrics={"total": ["mae"]})
    points = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    small, _ = check_same(model, points)
    assert list(small.output_names) == list(model.output_names) and small.count_params() == model.count_params() - 15
    targets = {"total": np.zeros((5, 3)), "other": np.zeros((5, 2))}
    losses = [each.evaluate(points, targets, verbose=0, return_dict=True) for each in (model, small)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_functions_in_place_of_layers(K):
    ops = K.ops if K.__name__ == "keras" else tf.nn
    image = K.Input((4,))
    first, second = (K.layers.Dense(6, name=name) for name in ("first", "second"))
    both = ops.relu(first(image) + ops.relu(second(image)))
    model = K.Model(image, K.layers.Dense(2, name="last")(both))
    for layer in (first, second):
        layer.kernel.assign(np.where(np.arange(6) < 2, 1.0, 0.0) * np.ones((4, 1)))
    _, report = check_same(model, np.random.default_rng(0).normal(size=(3, 4)))
    assert report.channels == {"first": (6, 2), "second": (6, 2), "last": (2, 2)} and not report.left_alone


def test_a_model_that_is_all_dead_keeps_one_channel(K):
    model = dense(K, 5, 7, 6, 2, activation="sigmoid")
    for layer in model.layers:
        layer.kernel.assign(np.zeros(layer.kernel.shape))
    small, report = check_same(model, np.ones((2, 5)))
    assert [sizes[1] for sizes in report.channels.values()] == [1, 1, 2]


def doubled(keras):
    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return inputs[..., ::-1] * 2

    return Doubled(name="doubled")


def test_what_is_not_known_is_left_alone_and_reported(K, caplog):
    layers = K.layers
    model = K.Sequential(
        [
            K.Input((6,)),
            layers.Dense(8, activation="relu", name="first"),
            layers.Dense(8, name="second"),
            layers.LayerNormalization(name="normalization"),
            doubled(K),
            layers.Dense(2, name="third"),
        ]
    )
    model.get_layer("second").kernel.assign(np.where(np.arange(64).reshape(8, 8) < 16, 1.0, 0.0))
    model.get_layer("third").kernel.assign(np.eye(8, 2))
    with caplog.at_level(logging.INFO, "aimp_tf.exporting.compaction"):
        _, report = check_same(model, np.random.default_rng(0).normal(size=(3, 6)))
    assert report.channels == {"first": (8, 2), "second": (8, 8), "third": (2, 2)}
    assert report.left_alone == {"normalization": "LayerNormalization", "doubled": "Doubled"}
    assert "Not seen through: normalization, doubled." in caplog.text
    assert report.summary().endswith("not known here: normalization (LayerNormalization), doubled (Doubled).")


def test_nested_models_several_inputs_and_named_outputs(K):
    layers = K.layers
    tower = K.Sequential([K.Input((4,)), layers.Dense(5, activation="relu"), layers.Dense(3)], name="tower")
    left, right = K.Input((4,), name="left"), K.Input((4,), name="right")
    head = K.Sequential([K.Input((6,)), layers.Dense(2, name="inner")], name="head")
    joined = layers.Concatenate()([tower(left), tower(right)])
    model = K.Model([left, right], {"scores": head(joined), "features": joined})
    first = tower.layers[0]
    first.kernel.assign(np.where(np.arange(5) < 2, first.kernel.numpy(), 0))
    model.compile("sgd", {"scores": "mse", "features": None}, metrics={"scores": ["mae"]})
    inputs = [np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32) for seed in (0, 1)]
    small, report = check_same(model, inputs)
    assert list(small.output_names) == list(model.output_names)
    assert report.channels[first.name] == (5, 2)
    targets = {"scores": np.ones((3, 2)), "features": np.ones((3, 6))}
    try:
        before = model.evaluate(inputs, targets, verbose=0, return_dict=True)
    except ValueError:
        pytest.skip(f"{K.__name__} {K.__version__} takes metrics by the names of layers, not of outputs")
    after = small.evaluate(inputs, targets, verbose=0, return_dict=True)
    assert before.keys() == after.keys()
    np.testing.assert_allclose(list(after.values()), list(before.values()), rtol=1e-5)


@pytest.mark.slow
def test_a_pruned_model_is_as_accurate_as_before_and_smaller(digits, K):
    images, labels = digits
    model = models.build("lenet_300_100", K, (64,), 10)
    model.compile(
        K.optimizers.Adam(0.01), K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    result = aimp_tf.prune(model, (images, labels), target_sparsity=0.97, rate=0.6, epochs=3, round_epochs=1, verbose=0)
    small = aimp_tf.compact(result.model)
    before, after = (
        some.evaluate(images, labels, verbose=0, return_dict=True)["accuracy"] for some in (result.model, small)
    )
    assert after == before > 0.4
    assert small.count_params() < result.model.count_params() / 2


def test_bad_models_are_refused(K, make_mlp):
    with pytest.raises(TypeError, match="Expected a Keras model"):
        aimp_tf.compact([])
    with pytest.raises(ValueError, match="carries masks"):
        aimp_tf.compact(aimp_tf.wrap(make_mlp()))
    with pytest.raises(ValueError, match="has no weights yet. Call model.build"):
        aimp_tf.compact(K.Sequential([K.layers.Dense(2)]))

    class Own(K.Model):
        def build(self, shape):
            self.scale = self.add_weight(name="scale", shape=shape[-1:])
            self.built = True

        def call(self, inputs):
            return inputs * self.scale

    own = Own()
    own(np.ones((1, 2)))
    with pytest.raises(ValueError, match="of the class Own, whose own call cannot be seen through"):
        aimp_tf.compact(own)


class PaddedNetwork(Network):
    """Draws a network on padded sequences, whose masks layers combine, hand on or drop."""

    def dense(self, x):
        return self.L.Dense(4, activation=self.one_of(None, "relu", "sigmoid"))(x)

    def nested(self, x):
        inner = self.K.Input(x.shape[1:])
        return self.K.Model(inner, self.merged(self.dense(inner)))(x)

    def merged(self, x):
        y = self.dense(self.one_of(x, *(self.sources if x.shape[1] == 5 else ())))
        pair = self.one_of([x, y], [y, x])
        kind = self.one_of("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate", "+", "*")
        if kind in "+*":
            return pair[0] + pair[1] if kind == "+" else pair[0] * pair[1]
        merged = getattr(self.L, kind)()(pair)
        return self.dense(merged) if kind == "Concatenate" else merged

    def model(self):
        ids, features = self.K.Input((5,), dtype="int32"), self.K.Input((5, 4))
        self.sources = (
            self.L.Embedding(10, 4, mask_zero=True)(ids),
            self.L.Masking()(features),
            self.dense(features),
            tokens_of_ones_own(self.K)(ids),
        )
        x = self.one_of(*self.sources)
        for _ in range(self.draw(st.integers(1, 4))):
            inside = self.sources
            block = self.one_of(self.dense, self.merged, self.merged, self.nested)
            if block == self.nested:
                self.sources = ()
            x = block(x)
            self.sources = inside
        reader = self.one_of(self.L.GlobalAveragePooling1D(), self.L.LSTM(3), self.L.Dense(2))
        return self.K.Model([ids, features], reader(x))


def tokens_of_ones_own(keras):
    class Tokens(keras.layers.Layer):
        """Gives a mask that only its call shows."""

        def __init__(self, **settings):
            super().__init__(**settings)
            self.embedding = keras.layers.Embedding(10, 4, mask_zero=True)

        def build(self, input_shape):
            self.embedding.build(input_shape)

        def call(self, ids):
            return self.embedding(ids)

    return Tokens()


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(data=st.data(), generation=st.sampled_from(GENERATIONS))
def test_padding_stays_what_it_was(data, generation):
    model, _ = drawn(data, generation, PaddedNetwork)
    tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0], [7, 0, 0, 8, 9]])
    features = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    features[0, 3:] = features[1, 1:4] = 0
    small, _ = check_same(model, [tokens, features])
    before, after = (getattr(some([tokens, features]), "_keras_mask", None) for some in (model, small))
    assert (before is None) == (after is None) and (before is None or np.array_equal(before, after))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["Add", "+"])
@pytest.mark.parametrize("reader", ["GlobalAveragePooling1D", "LSTM"])
def test_a_dead_branch_goes_only_where_no_mask_could_change(layer, reader, K):
    """`+` drops the mask, which the branch that stays alone would bring back; after the reader, no mask is left."""
    layers, ids = K.layers, K.Input((4,), dtype="int32")

    def residual(x, name):
        branch = layers.Dense(x.shape[-1], name=name)(x)
        return x + branch if layer == "+" else layers.Add()([x, branch])

    x = residual(layers.Embedding(9, 3, mask_zero=True)(ids), "masked")
    x = layers.GlobalAveragePooling1D()(x) if reader != "LSTM" else layers.LSTM(3)(x)
    model = K.Model(ids, layers.Dense(2, name="last")(residual(x, "free")))
    for name in ("masked", "free"):
        model.get_layer(name).set_weights([np.zeros((3, 3)), np.ones(3)])
    _, report = check_same(model, np.array([[1, 2, 0, 0], [3, 4, 5, 0]]))
    assert report.channels["masked"] == (3, 3) and report.channels["free"] == (3, 0)


@pytest.mark.parametrize("kind", ["Maximum", "Minimum", "Multiply"])
def test_constants_make_no_constant_where_some_are_padding(kind, K):
    """Keras 3 takes the other one there."""
    layers, ids, features = K.layers, K.Input((3,), dtype="int32"), K.Input((3, 2))
    masked, free = layers.Dense(2, name="masked"), layers.Dense(2, name="free")
    pair = [masked(layers.Embedding(9, 2, mask_zero=True)(ids)), free(features)]
    model = K.Model([ids, features], layers.Dense(2)(getattr(layers, kind)()(pair)))
    masked.set_weights([np.zeros((2, 2)), np.array([0.0, 5.0])])
    free.set_weights([np.zeros((2, 2)), np.array([2.0, 3.0])])
    check_same(model, [np.array([[1, 0, 2]]), np.ones((1, 3, 2), np.float32)])


def own_activation(x):
    return x * tf.sigmoid(1.7 * x)


def relu(x):  # Of the name of another function.
    return tf.maximum(x, -1.0)


@pytest.mark.parametrize("function", [own_activation, relu, lambda x: x * 2])
def test_functions_that_no_config_holds(function, K):
    layers = K.layers

    def start(shape, dtype=None, **_):
        return tf.ones(shape, dtype)

    def penalty(weights):
        return tf.reduce_sum(weights**2)

    try:
        layers.Dense(2, kernel_regularizer=penalty).build((2, 2))
    except ValueError:
        pytest.skip(f"{K.__name__} {K.__version__} takes no function as a regularizer")
    model = K.Sequential(
        [
            K.Input((5, 4)),
            layers.Dense(6, activation=function, kernel_regularizer=penalty, name="dense"),
            layers.Conv1D(5, 1, activation=function, kernel_initializer=start, name="conv"),
            layers.Activation(function),
            layers.DepthwiseConv1D(2, activation=function, depthwise_constraint=penalty),
            layers.GRU(3, activation=function, return_sequences=True),
            layers.RNN(layers.LSTMCell(3, activation=function), return_sequences=True, name="cell"),
            layers.TimeDistributed(layers.Dense(3, activation=function), name="each"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    for name in ("dense", "conv"):
        kernel = model.get_layer(name).kernel
        kernel.assign(np.where(np.arange(kernel.shape[-1]) < 2, kernel.numpy(), 0.0))
    small, report = check_same(model, np.random.default_rng(0).normal(size=(2, 5, 4)))
    assert report.channels["dense"] == (6, 2) and report.channels["conv"] == (5, 2)
    assert {"cell", "each"} <= set(report.shared) and not {"dense", "conv"} & set(report.shared)
    assert small.get_layer("dense").activation is function


@pytest.mark.parametrize("name", ["SimpleRNN", "GRU", "LSTM", "Bidirectional"])
def test_units_of_a_recurrent_layer_whose_activation_mixes_them_stay(name, K):
    layers = K.layers
    kind = "LSTM" if name == "Bidirectional" else name
    field = "recurrent_activation" if kind == "LSTM" else "activation"
    recurrent = getattr(layers, kind)(6, **{field: "softmax"})
    recurrent = recurrent if name == kind else layers.Bidirectional(recurrent, merge_mode="sum")
    model = K.Sequential([K.Input((4, 3)), recurrent, layers.Dense(2)])
    for weight in model.weights:
        if tuple(weight.shape)[:1] == (6,) and len(weight.shape) == 2:
            weight.assign(np.where(np.arange(6)[:, np.newaxis] < 2, 0.0, weight.numpy()))
    _, report = check_same(model, np.random.default_rng(0).normal(size=(3, 4, 3)))
    assert list(report.left_alone.values()) == [name]


@pytest.mark.parametrize("kind", ["EinsumDense", "Dense"])
def test_an_activation_along_an_axis_that_is_handed_on_keeps_all_of_it(kind, K):
    def along_first(values):
        return tf.nn.softmax(values, axis=1)

    layers, inputs = K.layers, K.Input((4, 3))
    x = layers.Dense(6, activation="relu", name="first")(inputs)
    if kind == "Dense":
        x = layers.Dense(5, activation=along_first)(layers.Permute((2, 1))(x))
        x = layers.Permute((2, 1))(x)
    else:
        x = layers.EinsumDense("abc,bd->adc", output_shape=(5, 6), activation="softmax")(x)
    last = layers.Dense(2)
    model = K.Model(inputs, last(x))
    last.kernel.assign(np.where(np.arange(6)[:, np.newaxis] < 2, 0.0, last.kernel.numpy()))
    _, report = check_same(model, np.random.default_rng(0).normal(size=(3, 4, 3)))
    assert report.channels["first"] == (6, 6)


@pytest.mark.parametrize("changed", ["under LoRA", "quantized"])
def test_attention_that_is_not_plain_any_more_is_left_as_it_is(changed):
    layers, inputs = keras.layers, keras.Input((5, 4))
    attention = layers.MultiHeadAttention(2, 3, name="attention")
    x = layers.Dense(6, activation="relu", name="first")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(attention(x, x)))
    if changed == "quantized":
        model.quantize("int8")
    else:
        attention._query_dense.enable_lora(2)
        for weight in attention.weights:
            weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    _, report = check_same(model, np.random.default_rng(0).normal(size=(3, 5, 4)))
    assert "attention" in report.left_alone and report.shared == {"attention": "MultiHeadAttention"}


def test_functions_of_half_precision_keep_it(K):
    layers, inputs = K.layers, K.Input((4,))
    x = layers.Dense(6, activation="relu", name="first", dtype="mixed_bfloat16")(inputs)
    x = layers.Lambda(lambda values: values * tf.constant(2.0, tf.bfloat16), dtype="mixed_bfloat16")(x)
    last = layers.Dense(2)
    model = K.Model(inputs, last(x))
    last.kernel.assign(np.where(np.arange(6)[:, np.newaxis] < 2, 0.0, last.kernel.numpy()))
    _, report = check_same(model, np.random.default_rng(0).normal(size=(3, 4)), slack=1e-2)
    assert report.channels["first"] == (6, 4)


@pytest.mark.parametrize("kind", ["Dense", "SeparableConv2D", "DepthwiseConv2D", "Conv2DTranspose", "EinsumDense"])
def test_kernels_of_bfloat16(kind, K):
    settings = {"Dense": (3,), "DepthwiseConv2D": (3,), "EinsumDense": ("abcd,de->abce", (None, None, 3))}
    reader = getattr(K.layers, kind)(*settings.get(kind, (3, 3)), dtype="bfloat16")
    first = K.layers.Conv2D(6, 1, name="first", dtype="bfloat16")
    last = K.layers.Conv2D(2, 1, dtype="bfloat16")
    model = K.Sequential([K.Input((5, 5, 2)), first, reader, last])
    first.set_weights([np.where(np.arange(6) < 2, 0.0, weight) for weight in (np.asarray(first.kernel), np.ones(6))])
    small, report = check_same(model, np.random.default_rng(0).normal(size=(3, 5, 5, 2)), slack=5e-2)
    assert report.channels["first"] == (6, 4)
    assert {weight.dtype.name for weight in small.get_weights()} == {"bfloat16"}


def layers_without_config(keras):
    """Layers that cannot be made from their configs, each for a reason of its own."""
    base = keras.layers.Layer

    class TooMuch(base):
        def __init__(self, by, **settings):
            super().__init__(**settings)
            self.by = by

        def call(self, inputs):
            return inputs + self.by

        def get_config(self):
            return {**super().get_config(), "by": self.by, "half": self.by / 2}

    class None_(base):
        def __init__(self, function):
            super().__init__(name="none")
            self.function = function

        def call(self, inputs):
            return self.function(inputs)

    class OtherWeights(base):
        def build(self, input_shape):
            self.table = self.add_weight(name="table", shape=(getattr(self, "rows", 1), 4))

        def call(self, inputs):
            return inputs + tf.reduce_sum(tf.convert_to_tensor(self.table))

    other = OtherWeights(name="other")
    other.rows = 3
    return TooMuch(2.0, name="much"), None_(tf.abs), other


def test_layers_that_no_config_makes_are_shared(K, caplog, tmp_path):
    layers, shared = K.layers, layers_without_config(K)
    inputs = K.Input((4,))
    x = inputs
    for layer in shared:
        x = layer(x)
    wide = layers.Dense(50, activation="relu", name="wide")
    # A nested model has a layer of the same name.
    nested = K.Sequential([K.Input((4,)), layers_without_config(K)[0]], name="nested")
    model = K.Model(inputs, layers.Dense(2, name="last")(wide(nested(x))))
    model.compile("sgd", "mse")
    wide.kernel.assign(np.where(np.arange(50) < 3, wide.kernel.numpy(), 0))
    points = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    nodes = [len(layer._inbound_nodes) for layer in shared]
    with caplog.at_level(logging.INFO, "aimp_tf"):
        small, report = check_same(model, points)
    assert report.channels == {"wide": (50, 3), "last": (2, 2)}
    assert report.shared == {"much": "TooMuch", "none": "None_", "other": "OtherWeights", "nested_much": "TooMuch"}
    assert not report.not_counted  # The matrix of one is added up, and multiplied with nothing.
    assert "share their weights with the model: much (TooMuch), none (None_)" in caplog.text
    assert "model itself, for their configs do not make them: much (TooMuch)," in report.summary()
    # They have one memory, but the model is what it was, and can do what it could.
    shared[2].table.assign(np.ones((3, 4)))
    np.testing.assert_allclose(small(points), model(points), rtol=1e-5, atol=1e-5)
    assert [len(layer._inbound_nodes) for layer in shared] == nodes and shared[0].output.shape == (None, 4)
    assert [weight.path if K.__name__ == "keras" else weight.name for weight in model.trainable_weights]
    model.save_weights(tmp_path / "all.weights.h5")
    model.fit(points, np.zeros((8, 2)), verbose=0)
    result = aimp_tf.prune(
        model, (points, np.zeros((8, 2))), target_sparsity=0.5, rate=0.5, epochs=1, round_epochs=1, verbose=0
    )
    check_same(result.model, points)
    again, _ = check_same(small, points)
    assert len(again.layers) == len(small.layers)


def test_layers_whose_configs_leave_out_what_they_hold_are_shared(K):
    class Scale(K.layers.Layer):
        def __init__(self, factor=1.0, **settings):
            super().__init__(**settings)
            self.factor = factor

        def build(self, input_shape):
            self.shift = self.add_weight(name="shift", shape=(4,), initializer="ones")

        def call(self, inputs):
            return inputs * self.factor + tf.convert_to_tensor(self.shift)

        def get_config(self):
            return {name: value for name, value in super().get_config().items() if name != "factor"}

    class Whole(Scale):
        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    changed = Scale(name="changed")
    layers = [Scale(3.0, name="lost"), changed, Scale(name="same"), Whole(3.0, name="whole")]
    model = K.Sequential([K.Input((4,)), *layers, K.layers.Dense(2)])
    changed.factor = 5.0
    _, report = check_same(model, np.random.default_rng(0).normal(size=(3, 4)))
    assert set(report.shared) == {"lost", "changed"}


def test_a_layer_that_draws_numbers_is_copied(K):
    class Drawing(K.layers.Layer):
        def call(self, inputs):
            return inputs + tf.random.normal(tf.shape(inputs))

    model = K.Sequential([K.Input((4,)), Drawing(name="drawing"), K.layers.Dense(2)])
    assert not compact_and_report(model)[1].shared


def test_a_layer_that_has_to_change_must_have_a_config(K, monkeypatch):
    model = dense(K, 3, 4, 2, activation="relu")
    first = model.layers[0]

    def get_config():
        raise NotImplementedError("nothing to tell")

    monkeypatch.setattr(first, "get_config", get_config, raising=False)
    assert list(check_same(model, np.ones((2, 3)))[1].shared) == [first.name]
    first.kernel.assign(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=f"{first.name!r} of the class Dense has to change, but .* nothing to tell"):
        aimp_tf.compact(model)


def counted_layers(keras):
    """(layer, shapes of its inputs, multiplications by the definition of what it computes)."""
    layers = keras.layers
    yield layers.Dense(5), [(3, 4)], 3 * 4 * 5
    yield layers.EinsumDense("abc,cde->abde", (None, 2, 3)), [(5, 4)], 5 * 4 * 2 * 3
    yield layers.EinsumDense("...x,xy->...y", (7,)), [(5, 4)], 5 * 4 * 7
    yield layers.Conv1D(3, 3, strides=2, padding="same"), [(7, 2)], 4 * (3 * 2 * 3)
    yield layers.Conv2D(8, 3, groups=2), [(6, 6, 4)], 4 * 4 * (3 * 3 * 2 * 8)
    yield layers.Conv2D(3, 3, data_format="channels_first"), [(2, 6, 6)], 4 * 4 * (3 * 3 * 2 * 3)
    yield layers.Conv3D(2, 2, groups=2), [(3, 3, 3, 4)], 8 * (8 * 2 * 2)
    yield layers.Conv2DTranspose(3, 3, strides=2), [(4, 4, 2)], 4 * 4 * (3 * 3 * 2 * 3)
    yield layers.DepthwiseConv1D(3, depth_multiplier=2), [(7, 4)], 5 * (3 * 4 * 2)
    yield layers.DepthwiseConv2D(3, depth_multiplier=2), [(6, 6, 4)], 4 * 4 * (3 * 3 * 4 * 2)
    yield layers.SeparableConv1D(5, 3, depth_multiplier=2), [(7, 4)], 5 * (3 * 4 * 2 + 8 * 5)
    yield layers.SeparableConv2D(5, 3, strides=2), [(7, 7, 4)], 3 * 3 * (3 * 3 * 4 + 4 * 5)
    for kind, gates in (("SimpleRNN", 1), ("GRU", 3), ("LSTM", 4)):
        yield getattr(layers, kind)(3), [(5, 2)], 5 * gates * (2 * 3 + 3 * 3)
    yield layers.LSTM(3, return_sequences=True), [(None, 2)], 4 * (2 * 3 + 3 * 3)
    cells = [layers.SimpleRNNCell(3), layers.GRUCell(2)]
    yield layers.RNN(cells), [(5, 2)], 5 * (2 * 3 + 3 * 3 + 3 * (3 * 2 + 2 * 2))
    yield layers.ConvLSTM1D(2, 3, return_sequences=True), [(4, 7, 1)], 4 * 5 * 4 * (3 * 1 * 2 + 3 * 2 * 2)
    yield layers.Bidirectional(layers.GRU(3)), [(5, 2)], 2 * 5 * 3 * (2 * 3 + 3 * 3)
    yield layers.TimeDistributed(layers.Conv1D(3, 2)), [(5, 4, 2)], 5 * 3 * (2 * 2 * 3)
    yield layers.MultiHeadAttention(2, 3), [(5, 4), (7, 3)], 5 * 4 * 6 + 2 * 7 * 3 * 6 + 5 * 6 * 4
    yield layers.LayerNormalization(axis=[1, 2]), [(5, 4)], 0
    yield layers.Embedding(9, 4), [(5,)], 0
    yield layers.PReLU(), [(5, 4)], 0
    if keras.__name__ == "keras":
        yield layers.GroupQueryAttention(3, 4, 2), [(5, 4), (7, 4)], 5 * 4 * 12 + 2 * 7 * 4 * 6 + 5 * 12 * 4
        yield layers.SpectralNormalization(layers.Dense(5)), [(3, 4)], 3 * 4 * 5
    else:
        for implementation in (1, 2, 3):
            yield layers.LocallyConnected1D(3, 2, implementation=implementation), [(6, 4)], 5 * (2 * 4 * 3)


@pytest.mark.slow
def test_multiplications_of_every_layer_are_counted(K):
    for layer, shapes, expected in counted_layers(K):
        inputs = [K.Input(shape) for shape in shapes]
        outputs = layer(*inputs)
        _, report = compact_and_report(K.Model(inputs, outputs))
        assert report.multiply_adds == (expected, expected), layer.name
        size = outputs.shape[1 if getattr(layer, "data_format", "") == "channels_first" else -1]
        assert report.channels == ({layer.name: (size, size)} if expected else {}) and not report.not_counted


def test_what_cannot_be_counted_is_named(K):
    class Own(K.layers.Dense):
        pass

    model = K.Sequential([K.Input((4,)), K.layers.Dense(3, name="first"), Own(2, name="own"), doubled(K)])
    report = compact_and_report(model)[1]
    assert report.multiply_adds == (12, 12) and report.channels == {"first": (3, 3)}
    assert report.not_counted == {"own": "Own"}
    assert "Not among the multiply-adds and channels, for what they multiply is not known here: own (Own)." in (
        report.summary().splitlines()
    )
