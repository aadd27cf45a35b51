"""Layers of Keras around others, and groups that are normalised together, lose channels. Of mechanics."""

import numpy as np
import pytest
from random_networks import check_same, fill

import aimp_tf


def sequential(K, shape, *layers):
    model = K.Sequential([K.Input(shape), *layers])
    fill(model, np.random.default_rng(0))
    return model


def clear(variable, entries, axis):
    """Makes all zero that lies at some entries of an axis."""
    value = np.moveaxis(np.array(variable.numpy()), axis, 0)
    value[entries] = 0
    variable.assign(np.moveaxis(value, 0, axis))


def shapes(layer):
    return [tuple(weight.shape) for weight in layer.weights]


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_units_of_both_directions(kind, mode, K):
    """Nothing reads some of what comes out, within the layer or after it."""
    both = K.layers.Bidirectional(getattr(K.layers, kind)(6, return_sequences=True), merge_mode=mode, name="both")
    model = sequential(K, (4, 3), both, K.layers.Dense(2, name="last"))
    parts = [both.forward_layer, both.backward_layer]
    clear(model.get_layer("last").kernel, [1, 2, 4] if mode != "concat" else [1, 2, 4, 7, 9], 0)
    gone = ([1, 2, 4], [1, 3] if mode == "concat" else [1, 2, 4])
    for part, units in zip(parts, gone, strict=True):
        clear(part.weights[1], units, 0)
    small, report = check_same(model, np.random.default_rng(1).normal(size=(5, 4, 3)))
    left = [part.units for part in (small.get_layer("both").forward_layer, small.get_layer("both").backward_layer)]
    assert left == [4 if mode == "concat" else 3] * 2 and not report.left_alone  # As many of both.


@pytest.mark.parametrize("mode", ["sum", "mul"])
def test_a_unit_that_is_zero_in_one_direction(mode, K):
    """The other, which later steps read, is not, be what comes out zero or not."""
    both = K.layers.Bidirectional(K.layers.SimpleRNN(3, return_sequences=True), merge_mode=mode)
    model = sequential(K, (4, 3), both, K.layers.Dense(2, name="last"))
    for weight in both.backward_layer.weights:
        clear(weight, [1], -1)
    clear(model.get_layer("last").kernel, [1], 0)
    check_same(model, np.random.default_rng(1).normal(size=(5, 4, 3)))


def test_units_of_both_directions_in_training(K):
    model = sequential(K, (4, 3), K.layers.Bidirectional(K.layers.GRU(5), name="both"), K.layers.Dense(2, name="last"))
    (group,) = aimp_tf.groups(model).groups
    # Both that lie in one place: from 3 inputs, and from and to 5 units, in three gates; and a row of the last layer.
    assert (group.layers, group.channels) == (("both",), 5)
    assert group.weights == 2 * (3 * (3 + 5) + 3 * 4 + 2)


@pytest.mark.parametrize("kind", ["Dense", "Conv1D", "DepthwiseConv1D", "SeparableConv1D"])
def test_at_each_step(kind, K):
    settings = {"Dense": (6,), "Conv1D": (6, 2), "DepthwiseConv1D": (2,), "SeparableConv1D": (6, 2)}[kind]
    timed = K.layers.TimeDistributed(getattr(K.layers, kind)(*settings), name="timed")
    model = sequential(K, (3, 5, 4), K.layers.Dense(6, name="first"), timed, K.layers.Dense(2, name="last"))
    clear(model.get_layer("last").kernel, [0, 3], 0)
    small, report = check_same(model, np.random.default_rng(1).normal(size=(2, 3, 5, 4)))
    assert small.get_layer("last").kernel.shape[0] == 4 and not report.left_alone
    assert shapes(small.get_layer("timed"))[-1] == (4,)
    if kind != "DepthwiseConv1D":
        clear(timed.layer.weights[-2], [1], -2)
        _, report = check_same(model, np.random.default_rng(1).normal(size=(2, 3, 5, 4)))
        assert report.channels["first"] == (6, 5)


def test_constants_before_what_is_separable_at_each_step(K):
    """Their patterns are not known there, so that they stay."""
    timed = K.layers.TimeDistributed(K.layers.SeparableConv1D(6, 3, padding="same"))
    model = sequential(K, (3, 5, 4), K.layers.Dense(6, name="first"), timed, K.layers.Dense(2))
    clear(model.get_layer("first").kernel, [1, 2], 1)
    _, report = check_same(model, np.random.default_rng(1).normal(size=(2, 3, 5, 4)))
    assert report.channels["first"] == (6, 6)


def test_unequal_directions_are_left_alone():
    """Of tf_keras, which can call such a layer."""
    import tf_keras as K

    both = K.layers.Bidirectional(K.layers.LSTM(4), backward_layer=K.layers.LSTM(6, go_backwards=True), name="both")
    model = sequential(K, (4, 3), both, K.layers.Dense(2))
    _, report = check_same(model, np.random.default_rng(1).normal(size=(2, 4, 3)))
    assert report.left_alone == {"both": "Bidirectional"}


@pytest.mark.parametrize("wrapped", [False, True])
def test_recurrent_layers_over_padding(wrapped, K):
    recurrent = K.layers.LSTM(6, return_sequences=True, name="recurrent")
    recurrent = K.layers.Bidirectional(recurrent, name="recurrent") if wrapped else recurrent
    embedding = K.layers.Embedding(5, 8, mask_zero=True, name="table")
    model = sequential(K, (7,), embedding, recurrent, K.layers.GlobalAveragePooling1D(), K.layers.Dense(2, name="last"))
    clear(model.get_layer("last").kernel, [1, 3, 7, 9] if wrapped else [1, 3], 0)
    for weights in (recurrent.weights[1], recurrent.weights[-2] if wrapped else recurrent.weights[1]):
        clear(weights, [1, 3], 0)
    small, report = check_same(model, np.array([[1, 2, 3, 0, 0, 0, 0], [4, 0, 2, 1, 1, 0, 0]]))
    assert small.get_layer("last").kernel.shape[0] == (8 if wrapped else 4)
    assert "recurrent" not in report.left_alone


def test_divided_by_the_largest_singular_value():
    """Of Keras 3, whose layer alone can be made beside both generations."""
    import keras as K

    wrapped = K.layers.SpectralNormalization(K.layers.Conv2D(6, 3, use_bias=False), name="wrapped")
    model = sequential(K, (6, 6, 2), K.layers.Conv2D(5, 1, name="first"), wrapped, K.layers.Conv2D(2, 1, name="last"))
    clear(model.get_layer("last").kernel, [0, 5], 2)
    clear(model.get_layer("first").kernel, [1, 2], 3)  # Constants, which a bias of the next layer takes in.
    small, report = check_same(model, np.random.default_rng(1).normal(size=(2, 6, 6, 2)))
    assert sorted(shapes(small.get_layer("wrapped"))) == [(1, 4), (3, 3, 3, 4), (4,)] and not report.left_alone


def test_groups_that_nothing_reads_go(K):
    normal = K.layers.GroupNormalization(4, name="normal")
    model = sequential(K, (5, 5, 2), K.layers.Conv2D(12, 3, name="first"), normal, K.layers.Conv2D(2, 1, name="last"))
    clear(model.get_layer("last").kernel, [0, 3, 4, 5], 2)  # One of the first group, all of the second.
    clear(normal.gamma, [6, 7, 8], 0)  # What the third adds is the same everywhere.
    small, report = check_same(model, np.random.default_rng(1).normal(size=(2, 5, 5, 2)))
    assert report.channels["first"] == (12, 6) and small.get_layer("normal").groups == 2
    (group,) = aimp_tf.groups(model).groups
    assert (group.layers, group.channels) == (("first",), 4)
    assert group.weights == 3 * (9 * 2 + 2)


def test_one_group_of_all_stays(K):
    normal = K.layers.GroupNormalization(1)
    model = sequential(K, (5, 5, 2), K.layers.Conv2D(4, 3, name="first"), normal, K.layers.Conv2D(2, 1, name="last"))
    clear(model.get_layer("last").kernel, [0, 3], 2)
    _, report = check_same(model, np.random.default_rng(1).normal(size=(2, 5, 5, 2)))
    assert report.channels["first"] == (4, 4)
