"""Channels that are the same for all inputs, but not at all places: some stand in for the others. Of mechanics."""

import numpy as np
import pytest
import tensorflow as tf
from random_networks import check_same, fill

from aimp_tf import compact
from aimp_tf.graph.liveness import Liveness
from aimp_tf.graph.model_graph import ModelGraph

FILTERS, CONSTANT = 24, 20


def network(K, *layers, size=(7, 7)):
    """A convolution, and these layers after it."""
    image = K.Input((*size, 2))
    values = image
    for layer in (K.layers.Conv2D(FILTERS, 1, name="first"), *layers):
        values = layer(values)
    return K.Model(image, values)


def made_constant(model, constant=np.arange(FILTERS) < CONSTANT):
    """The model with other weights, where these filters of its first layer are constant."""
    fill(model, np.random.default_rng(0))
    first = model.get_layer("first")
    first.kernel.assign(np.where(constant, 0, first.kernel.numpy()))
    return model


def check(model, left, constant=np.arange(FILTERS) < CONSTANT):
    """Of filters that are constant so many are left, and the outputs are the same."""
    _, report = check_same(made_constant(model, constant), np.random.default_rng(1).normal(size=(3, 7, 7, 2)))
    assert report.channels["first"] == (FILTERS, FILTERS - CONSTANT + left)


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"padding": "same"}, 8),  # Nine patterns: corners, sides and the middle; but the bias holds one.
        ({"padding": "same", "strides": 2}, 8),
        ({"padding": "same", "kernel_size": (1, 3)}, 2),
        ({"padding": "valid"}, 0),
    ],
    ids=str,
)
def test_depthwise_patterns(K, settings, left):
    depthwise = K.layers.DepthwiseConv2D(**{"kernel_size": 3, **settings})
    between = [depthwise, K.layers.BatchNormalization(), K.layers.ReLU()]
    check(network(K, *between, K.layers.Conv2D(3, 1)), left)


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"padding": "same"}, 9),
        ({"padding": "same", "dilation_rate": 2}, 9),
        ({"padding": "same", "strides": 2, "kernel_size": 2}, 4),
        ({"padding": "valid"}, 0),
        ({"padding": "same", "depth_multiplier": 2}, CONSTANT),
    ],
    ids=str,
)
def test_separable_patterns(K, settings, left):
    check(network(K, K.layers.SeparableConv2D(3, **{"kernel_size": 3, **settings})), left)


@pytest.mark.parametrize(("padding", "left"), [("same", 3), ("valid", 0)])
def test_along_a_sequence(K, padding, left):
    rows = K.layers.Reshape((49, FILTERS))
    check(network(K, rows, K.layers.SeparableConv1D(3, 3, padding=padding)), left)


def test_along_a_sequence_of_the_past():
    """Padded at one end alone, which tf_keras can do."""
    import tf_keras as K

    rows = K.layers.Reshape((49, FILTERS))
    check(network(K, rows, K.layers.SeparableConv1D(3, 3, padding="causal")), CONSTANT)


def test_small_constants_that_weigh_much(K):
    """What counts is how far one is from the sums of others beside itself."""
    model = made_constant(network(K, K.layers.ZeroPadding2D(1), K.layers.Conv2D(3, 3)))
    first, last = model.layers[1], model.layers[-1]
    sizes = np.where(np.arange(FILTERS) % 2, 1e-6, 1.0)
    first.bias.assign(first.bias.numpy() * sizes)
    last.kernel.assign(last.kernel.numpy() / sizes[:, np.newaxis])
    _, report = check_same(model, np.random.default_rng(1).normal(size=(3, 7, 7, 2)))
    assert report.channels["first"] == (FILTERS, FILTERS - CONSTANT + 1)


def test_groups_have_their_own(K):
    """One of each group stands in for the other four."""
    model = network(K, K.layers.Conv2D(12, 3, padding="same", groups=4))
    check(model, 4, constant=np.arange(FILTERS) % 6 < 5)


def test_padding_of_its_own_makes_one_pattern(K):
    pad = K.layers.ZeroPadding2D(2)
    check(network(K, pad, K.layers.Conv2D(3, 3)), 1)
    pooled = [K.layers.ZeroPadding2D(1), K.layers.AveragePooling2D(2), K.layers.Conv2D(3, 1)]
    check(network(K, *pooled), 1)


def test_means_over_places_go_into_the_bias(K):
    """They are constants, of which no rule knows the value."""
    depthwise = K.layers.DepthwiseConv2D(3, padding="same")
    check(network(K, depthwise, K.layers.GlobalAveragePooling2D(), K.layers.Dense(3)), 0)
    check(network(K, K.layers.DepthwiseConv2D(3, padding="same"), K.layers.Flatten(), K.layers.Dense(3)), 0)


def test_all_places_of_a_channel_are_heeded(K):
    """Its own, and those where it comes again, in readers of several calls and several readers."""
    layers = K.layers
    image = K.Input((7, 7, 2))
    first = layers.Conv2D(FILTERS, 1, name="first")(image)
    one, other = (layers.DepthwiseConv2D(3, padding="same", activation="relu")(first) for _ in range(2))
    shared = layers.Conv2D(3, 1)
    last = layers.Conv2D(3, 1)(layers.Concatenate()([one, other]))
    model = K.Model(image, [layers.Add()([shared(one), shared(other)]), last, layers.Conv2D(2, 3)(one)])
    _, report = check_same(made_constant(model), np.random.default_rng(1).normal(size=(3, 7, 7, 2)))
    assert FILTERS - CONSTANT < report.channels["first"][1] < FILTERS


def test_where_the_size_is_open_they_stay(K):
    """Patterns are not known there; before a plain convolution one does for all, whatever the size."""
    separable = network(K, K.layers.SeparableConv2D(3, 3, padding="same"), size=(None, None))
    check(separable, CONSTANT)
    check(network(K, K.layers.Conv2D(3, 3, padding="same"), size=(None, None)), 1)


def test_what_cannot_be_computed_stays(K):
    """Here for texts, of which no numbers can be made up."""
    layers = K.layers
    texts = K.Input((4,), dtype="string")
    numbers = layers.StringLookup(vocabulary=["a", "b"])(texts)
    values = layers.Reshape((2, 2, 3))(layers.Embedding(4, 3)(numbers))
    values = layers.Conv2D(8, 1, name="first")(values)
    model = K.Model(texts, layers.Conv2D(2, 1)(layers.ReLU()(layers.DepthwiseConv2D(3, padding="same")(values))))
    made_constant(model, np.arange(8) < 6)
    words = tf.constant([["a", "b", "", "c"], ["b", "b", "a", "a"]])
    small = compact(model)
    np.testing.assert_allclose(small(words), model(words), rtol=1e-5)
    assert small.get_layer("first").filters == 8


def test_what_is_said_to_be_fixed_is(K):
    """Through all that may keep it, and all that may not."""
    layers = K.layers
    image = K.Input((7, 7, 2))
    first = layers.Conv2D(FILTERS, 1, name="first")(image)
    moved = layers.AveragePooling2D(2, padding="same")(layers.ZeroPadding2D(1)(first))
    scaled = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(moved))
    gate = layers.Dense(FILTERS, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(first))
    gated = layers.Multiply()([scaled, gate])
    narrow = layers.Dense(1)(layers.GlobalAveragePooling2D(keepdims=True)(first))
    scaled_by_one = scaled * narrow  # A function of two tensors, one of which has no such channels.
    both = [gated, scaled_by_one, layers.Activation("swish")(scaled), layers.Add()([scaled, scaled])]
    both = layers.Concatenate()(both)
    model = K.Model(image, layers.Conv2D(2, 1)(both))
    graph = ModelGraph.of(made_constant(model))
    flows, values = Liveness(graph).flows, graph.computed([np.random.default_rng(1).normal(size=(4, 7, 7, 2))])
    counts = []
    for call in graph.calls:
        (output,) = call.outputs
        fixed, value = flows[output].channels.fixed, np.asarray(values[output])
        np.testing.assert_allclose(value[..., fixed], np.broadcast_to(value[:1], value.shape)[..., fixed], atol=1e-6)
        counts.append(int(fixed.sum()))
    assert counts[-2:] == [2 * CONSTANT, 0] and sorted(counts)[-3:-1] == [CONSTANT] * 2
