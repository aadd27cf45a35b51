"""What functions and other layers do with channels: mechanics only, on made-up networks, weights and inputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import EXAMPLES, GENERATIONS, SequenceNetwork, check_same, drawn, feed_forward, fill

import aimp_tf
from aimp_tf.exporting.compaction import compact_and_report
from aimp_tf.graph.groups import channel_groups


def clear(variable, entries, axis):
    """Makes all zero that lies at some entries of an axis."""
    value = np.moveaxis(np.array(variable.numpy()), axis, 0)
    value[entries] = 0
    variable.assign(np.moveaxis(value, 0, axis))


def compacted(model, *shape):
    small, report = check_same(model, np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32))
    return small, report


def of_ops(keras):
    """The functions of a generation by names that both have, arguments in the order of `keras.ops`."""
    if keras.__name__ == "keras":
        return keras.ops
    names = {"square": tf.square, "gelu": tf.nn.gelu, "exp": tf.exp, "clip": tf.clip_by_value, "where": tf.where}
    names |= {"sigmoid": tf.sigmoid, "mean": tf.reduce_mean, "transpose": tf.transpose, "reshape": tf.reshape}
    names |= {"stack": tf.stack, "pad": tf.pad, "concatenate": tf.concat, "softmax": tf.nn.softmax}
    names |= {"split": tf.split, "expand_dims": tf.expand_dims}
    return type("Functions", (), {name: staticmethod(function) for name, function in names.items()})


VALUE_BY_VALUE = {
    "x + 3": lambda ops, x: x + 3.0,
    "-x": lambda ops, x: -x,
    "x**2": lambda ops, x: x**2,
    "1 / (2 + x**2)": lambda ops, x: 1.0 / (2.0 + x**2),
    "square": lambda ops, x: ops.square(x),
    "gelu": lambda ops, x: ops.gelu(x),
    "exp": lambda ops, x: ops.exp(0.1 * x),
    "clip": lambda ops, x: ops.clip(x, -1.0, 1.0),
    "where": lambda ops, x: ops.where(x > 0, x, 0.1 * x),
    "swish": lambda ops, x: x * ops.sigmoid(x),
    "by a vector": lambda ops, x: x * np.linspace(1, 2, x.shape[-1]).astype(np.float32),
    "by the mean": lambda ops, x: x * ops.mean(x, (1, 2), True),
    "padded": lambda ops, x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, 0))),
    "a window": lambda ops, x: x[:, 1:, ::-1],
    "to the front and back": lambda ops, x: ops.transpose(ops.transpose(x, (0, 3, 1, 2)) + 1.0, (0, 2, 3, 1)),
    "as tokens": lambda ops, x: ops.reshape(x, (-1, 1, 36, x.shape[-1])),
    "flat": lambda ops, x: ops.reshape(x, (-1, 1, 1, 36 * x.shape[-1])),
}


@pytest.mark.parametrize("name", VALUE_BY_VALUE)
@pytest.mark.parametrize("dead", ["zero", "constant"])
def test_functions_are_seen_through(name, dead, K):
    image = K.Input((6, 6, 2))
    first = K.layers.Conv2D(8, 1, name="first")
    values = VALUE_BY_VALUE[name](of_ops(K), first(image))
    model = K.Model(image, K.layers.Dense(2)(K.layers.Flatten()(values)))
    fill(model, np.random.default_rng(0))
    clear(first.kernel, range(5), -1)
    if dead == "zero":
        clear(first.bias, range(5), -1)
    _, report = compacted(model, 6, 6, 2)
    assert report.channels["first"] == (8, 3) and not report.left_alone


def total_of(K, x):
    return K.ops.sum(x, -1, keepdims=True) if hasattr(K, "ops") else tf.reduce_sum(x, -1, keepdims=True)


def largest_of(K, x):
    return K.ops.max(x, -1, keepdims=True) if hasattr(K, "ops") else tf.reduce_max(x, -1, keepdims=True)


@pytest.mark.parametrize("dead", ["zero", "constant"])
@pytest.mark.parametrize(
    ("function", "sees_zeros"),
    [
        (lambda K, x: K.layers.UnitNormalization()(x), False),
        (lambda K, x: K.layers.Dot((2, 2))([x, x]), False),
        (lambda K, x: K.layers.Attention()([x, x]), False),
        (total_of, False),
        (largest_of, True),
    ],
    ids=["normalised", "multiplied", "attended", "added up", "the largest"],
)
def test_zeros_go_where_nothing_else_can(function, sees_zeros, dead, K):
    """Also where they are the largest."""
    tokens, first = K.Input((6, 3)), K.layers.Dense(40, name="first")
    model = K.Model(tokens, K.layers.Dense(2)(function(K, first(tokens))))
    fill(model, np.random.default_rng(0))
    clear(first.kernel, range(5), -1)
    if dead == "zero":
        clear(first.bias, range(5), -1)
    _, report = compacted(model, 6, 3)
    assert report.channels["first"] == (40, 40 if sees_zeros or dead == "constant" else 35)
    assert len(report.left_alone) == 1  # For the others stay, whatever reads them.


FUNCTIONS_OF_ALL = {
    "all of many": (32, [3, 7], lambda x: tf.cast(tf.reduce_all(x > 0, axis=-1, keepdims=True), tf.float32)),
    "largest whole number": (
        32,
        [3, 7],
        lambda x: tf.cast(tf.reduce_max(tf.cast(-tf.abs(10 * x), tf.int32), -1), x.dtype),
    ),
    "neighbours": (3, [0, 2], lambda x: tf.reduce_sum(x[:, 1:] * x[:, :-1], axis=-1, keepdims=True)),
    "the three largest": (12, [3, 7], lambda x: tf.math.top_k(tf.abs(x), 3).values),
    "by how many there are": (12, [3, 7], lambda x: tf.reduce_sum(x, -1, keepdims=True) / min(4, x.shape[-1])),
}


@pytest.mark.parametrize("name", FUNCTIONS_OF_ALL)
def test_zeros_stay_where_what_is_left_would_tell(name, K):
    channels, left, function = FUNCTIONS_OF_ALL[name]
    vector, first = K.Input((5,)), K.layers.Dense(channels, name="first")
    model = K.Model(vector, K.layers.Lambda(function)(first(vector)))
    fill(model, np.random.default_rng(0))
    for variable in (first.kernel, first.bias):
        clear(variable, [each for each in range(channels) if each not in left], -1)
    _, report = compacted(model, 5)
    assert report.channels["first"] == (channels, channels)


def test_functions_of_whole_numbers_see_zeros(K):
    """They are tried with the least of them, which may be zero there, too."""
    vector, first = K.Input((5,)), K.layers.Dense(32, name="first")
    cast = K.ops.cast if hasattr(K, "ops") else tf.cast
    whole = cast(10 * first(vector), "int32")
    largest = K.layers.Lambda(lambda x: tf.reduce_max(x**2 * (1 - x**2), axis=-1, keepdims=True))(whole)
    model = K.Model(vector, largest)
    fill(model, np.random.default_rng(0))
    for variable in (first.kernel, first.bias):
        clear(variable, [each for each in range(32) if each not in (3, 7)], -1)
    _, report = compacted(model, 5)
    assert report.channels["first"] == (32, 32)


@pytest.mark.parametrize("channels", [2, 3])
def test_functions_that_look_back_keep_what_is_before(channels, K):
    """Of few channels, too, of which the first ones alone would do."""
    vector, first, last = K.Input((5,)), K.layers.Dense(channels, name="first"), K.layers.Dense(2)
    model = K.Model(vector, last(K.layers.Lambda(lambda x: tf.cumsum(x, axis=-1))(first(vector))))
    fill(model, np.random.default_rng(0))
    clear(last.kernel, range(channels - 1), 0)
    _, report = compacted(model, 5)
    assert report.channels["first"] == (channels, channels)


def test_what_stands_for_nothing_hides_nothing(K):
    """As large a number as masks have does not make differences beside it look small."""
    image, mask, first, last = (
        K.Input((4, 4, 8)),
        K.Input((4, 4, 1)),
        K.layers.Dense(16, name="first"),
        K.layers.Dense(2),
    )

    def masked(given):
        return tf.where(given[1] > 0, given[0] - tf.reduce_mean(given[0], axis=-1, keepdims=True), -1e9)

    pooled = K.layers.GlobalMaxPooling2D()(K.layers.Lambda(masked)([first(image), mask]))
    model = K.Model([image, mask], last(pooled))
    fill(model, np.random.default_rng(0))
    clear(last.kernel, range(8, 16), 0)
    inputs = [np.random.default_rng(1).normal(size=(3, 4, 4, size)).astype(np.float32) for size in (8, 1)]
    check_same(model, [inputs[0], np.abs(inputs[1])])


@pytest.mark.parametrize("length", [10, None])
def test_constants_that_are_added_up_over_time_are_not_folded(length, K):
    """They are tried with shorter sequences than there will be."""
    sequence, first = K.Input((length, 3)), K.layers.Dense(4, name="first")
    summed = K.layers.Lambda(lambda x: tf.reduce_sum(x, axis=1))(first(sequence))
    model = K.Model(sequence, K.layers.Dense(2)(summed))
    fill(model, np.random.default_rng(0))
    clear(first.kernel, [1], -1)
    compacted(model, 10, 3)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_values_of_attention_that_may_see_nothing_stay(dropout):
    """With dropout, Keras 3 gives zeros where all is masked."""
    sequence, mask = keras.Input((5, 8)), keras.Input((5, 5), dtype="bool")
    layer = keras.layers.MultiHeadAttention(3, 4, dropout=dropout)
    model = keras.Model([sequence, mask], layer(sequence, sequence, attention_mask=mask))
    fill(model, np.random.default_rng(0))
    clear(layer._value_dense.kernel, [1], 1)
    given = np.ones((2, 5, 5), bool)
    given[:, 2] = False
    small, _ = check_same(model, [np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32), given])
    (left,) = (part for part in small.layers if type(part) is type(layer))
    assert left._num_heads == (3 if dropout else 2)


def test_values_of_attention_along_several_axes_stay_where_they_may_be_masked(K):
    """Where all is masked, its scores do not add up to one, in Keras 3 nor in tf_keras."""
    image, mask = K.Input((2, 3, 8)), K.Input((2, 3, 2, 3), dtype="bool")
    layer = K.layers.MultiHeadAttention(3, 4)
    model = K.Model([image, mask], layer(image, image, attention_mask=mask))
    fill(model, np.random.default_rng(0))
    clear(layer._value_dense.kernel, [1], 1)
    given = np.ones((2, 2, 3, 2, 3), bool)
    given[:, 0, 0] = False
    check_same(model, [np.random.default_rng(1).normal(size=(2, 2, 3, 8)).astype(np.float32), given])


class GivenMatrix(keras.layers.Layer):
    """Multiplies what it gets, and has no weights itself."""

    def call(self, x, matrix):
        return keras.ops.matmul(x, matrix)


class Own(keras.layers.Layer):
    """Does something with a matrix of its own."""

    def __init__(self, function, **settings):
        super().__init__(**settings)
        self.function, self.product = function, GivenMatrix()

    def build(self, shape):
        self.matrix = self.add_weight(shape=(4, 6))

    def call(self, x):
        return self.function(self, x)


@pytest.mark.parametrize(
    "function",
    [
        lambda own, x: own.product(x, own.matrix),
        lambda own, x: keras.ops.map(lambda row: keras.ops.matmul(row[None], own.matrix)[0], x),
        lambda own, x: keras.ops.sum(keras.ops.expand_dims(x, -1) * own.matrix, 1),
    ],
    ids=["by another layer", "row by row", "and adds up"],
)
def test_matrices_of_a_layer_of_ones_own_are_named_where_they_may_be_multiplied(function):
    vector = keras.Input((4,))
    _, report = compacted(keras.Model(vector, keras.layers.Dense(2)(Own(function, name="own")(vector))), 4)
    assert report.not_counted == {"own": "Own"}


def test_what_comes_of_zeros_beside_others_is_not_always_the_same(K):
    """A sum so far is that of the others where a zero is added, and what reads it reads that."""
    image, first = K.Input((1, 1, 2)), K.layers.Conv2D(8, 1, name="first")
    sums = K.layers.Lambda(lambda x: tf.cumsum(x, axis=-1))(first(image))
    model = K.Model(image, K.layers.Flatten()(K.layers.Conv2D(3, 3, padding="same")(sums)))
    fill(model, np.random.default_rng(0))
    for variable in (first.kernel, first.bias):
        clear(variable, [2, 5], -1)
    _, report = compacted(model, 1, 1, 2)
    assert report.channels["first"] == (8, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda layers: layers.Normalization(mean=list(range(8)), variance=[2.0] * 8),
        lambda layers: layers.Normalization(mean=0.5, variance=2.0),
        lambda layers: layers.Resizing(6, 6),
        lambda layers: layers.CenterCrop(3, 3),
    ],
    ids=["given statistics", "given one for all", "resized", "cropped"],
)
def test_layers_that_prepare_data_are_seen_through(make, K):
    image, first = K.Input((5, 5, 2)), K.layers.Conv2D(8, 1, name="first")
    model = K.Model(image, K.layers.Dense(2)(K.layers.Flatten()(make(K.layers)(first(image)))))
    fill(model, np.random.default_rng(0))
    clear(model.layers[-1].kernel, [row for row in range(model.layers[-1].kernel.shape[0]) if row % 8 < 5], 0)
    _, report = compacted(model, 5, 5, 2)
    assert report.channels["first"] == (8, 3) and not report.left_alone


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda layers: layers.Normalization(mean=list(range(8)), variance=[2.0] * 8),
        lambda layers: layers.GroupNormalization(4, scale=False, center=False),
        lambda layers: layers.Rescaling(2.0, list(range(8))),
    ],
    ids=["statistics", "groups", "offsets"],
)
def test_what_counts_channels_without_weights_keeps_the_same_in_all_its_calls(make, both, K):
    image, shared = K.Input((5, 5, 2)), make(K.layers)
    branches = [K.layers.Conv2D(8, 1, name=name) for name in ("one", "other")]
    readers = [K.layers.Conv2D(3, 1) for _ in branches]
    model = K.Model(image, [reader(shared(branch(image))) for branch, reader in zip(branches, readers, strict=True)])
    fill(model, np.random.default_rng(0))
    for reader in readers if both else readers[:1]:
        clear(reader.kernel, range(4), 2)
    _, report = compacted(model, 5, 5, 2)
    assert report.channels["one"] == report.channels["other"] == (8, 4 if both else 8) and not report.left_alone


def test_what_is_told_by_place_to_train_is_left_alone():
    import tf_keras

    vector, first = tf_keras.Input((3,)), tf_keras.layers.Dense(8, name="first")
    normalized = tf_keras.layers.BatchNormalization()(first(vector), True)
    model = tf_keras.Model(vector, tf_keras.layers.Dense(2)(normalized))
    fill(model, np.random.default_rng(0))
    clear(first.kernel, range(4), -1)
    assert compact_and_report(model)[1].channels["first"] == (8, 8)


def test_units_become_channels_of_images(K):
    vector, first = K.Input((6,)), K.layers.Dense(72, "relu", name="first")
    reader = K.layers.Conv2DTranspose(4, 2, strides=2)
    model = K.Model(vector, reader(K.layers.Reshape((3, 3, 8))(first(vector))))
    fill(model, np.random.default_rng(0))
    clear(reader.kernel, range(3), 3)
    _, report = compacted(model, 6)
    assert report.channels["first"] == (72, 45) and not report.left_alone


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_values_that_move_in_half_precision(policy, K):
    """More of them than half precision counts."""
    ops, sequence, first = of_ops(K), K.Input((60, 3)), K.layers.Dense(48, dtype=policy, name="first")
    moved = ops.transpose(ops.reshape(first(sequence), (-1, 10, 6, 48)), (0, 2, 1, 3))
    reader = K.layers.Dense(2, dtype=policy)
    model = K.Model(sequence, K.layers.Activation("linear", dtype="float32")(reader(moved)))
    fill(model, np.random.default_rng(0))
    clear(reader.kernel, range(30), 0)
    small, report = compact_and_report(model)
    assert report.channels["first"] == (48, 18) and not report.left_alone
    inputs = np.random.default_rng(1).normal(size=(3, 60, 3)).astype(np.float32)
    np.testing.assert_allclose(small(inputs), model(inputs), rtol=0.02, atol=0.02)


def test_a_network_is_compacted_again_where_constants_became_an_offset(K):
    image, reader = K.Input((6, 6, 3)), K.layers.Conv2D(4, 3, padding="same")
    zero, other = (K.layers.Conv2D(8, 3, padding="same") for _ in range(2))
    model = K.Model(image, reader(K.layers.ReLU()(K.layers.Add()([zero(image), other(image)]))))
    fill(model, np.random.default_rng(0))
    clear(zero.kernel, range(8), 3)
    small, _ = compacted(model, 6, 6, 3)
    assert any(type(layer).__name__ == "Rescaling" for layer in small.layers)
    clear(small.layers[-1].kernel, [0, 3], 2)
    _, report = compacted(small, 6, 6, 3)
    assert report.channels[other.name] == (8, 6) and not report.left_alone


@pytest.mark.parametrize("length", [16, 64, 200])
def test_sums_of_many_products_are_seen_through(length, K):
    """Whose rounding depends on how many there are side by side."""
    tokens = K.Input((length, 4))
    weights = K.layers.Dense(length, "softmax", name="weights")(tokens)
    values = K.layers.Dense(16, name="values")
    einsum = K.ops.einsum if hasattr(K, "ops") else tf.einsum
    model = K.Model(tokens, K.layers.Dense(2)(einsum("abe,aed->abd", weights, values(tokens))))
    fill(model, np.random.default_rng(0))
    clear(values.kernel, range(5), -1)
    clear(values.bias, range(5), -1)
    _, report = compacted(model, length, 4)
    assert report.channels["values"] == (16, 11)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda ops, x: x[..., :4], 2),  # Of the first four, those that are not dead.
        (lambda ops, x: ops.concatenate([x, 2.0 * x], -1), 5),
        (lambda ops, x: ops.reshape(x, (-1, 2, 4)), 8),  # What is read of each half differs.
        (lambda ops, x: ops.expand_dims(x, 1), 5),
    ],
    ids=["taken", "joined", "halved", "wider"],
)
def test_values_that_move(function, left, K):
    vector = K.Input((3,))
    first = K.layers.Dense(8, name="first")
    model = K.Model(vector, K.layers.Dense(2)(function(of_ops(K), first(vector))))
    fill(model, np.random.default_rng(0))
    clear(first.kernel, [0, 3, 5], -1)
    clear(first.bias, [0, 3, 5], -1)
    _, report = compacted(model, 3)
    assert report.channels["first"] == (8, left) and not report.left_alone


def test_one_value_may_be_all_that_comes_out(K):
    """Of an output that has the axis of examples alone, no axis can lose anything."""
    vector = K.Input((3,))
    first, last = K.layers.Dense(8, name="first"), K.layers.Dense(4, name="last")
    model = K.Model(vector, last(first(vector))[:, 1])
    fill(model, np.random.default_rng(0))
    clear(first.kernel, [0, 3, 5], -1)
    clear(first.bias, [0, 3, 5], -1)
    _, report = compacted(model, 3)
    assert report.channels["first"] == (8, 5)
    assert "first" in [each.name for each in channel_groups(model).units.sets]


def test_whole_heads_go_through_reshape(K):
    """Twelve channels as three heads of four, of which one is dead."""
    ops, sequence = of_ops(K), K.Input((5, 3))
    first = K.layers.Dense(12, name="first")
    heads = ops.transpose(ops.reshape(first(sequence), (-1, 5, 3, 4)), (0, 2, 1, 3))
    flat = ops.reshape(ops.transpose(K.layers.ReLU()(heads), (0, 2, 1, 3)), (-1, 5, 12))
    model = K.Model(sequence, K.layers.Dense(2, name="last")(flat))
    fill(model, np.random.default_rng(0))
    clear(model.get_layer("last").kernel, range(4, 8), 0)
    small, report = compacted(model, 5, 3)
    assert report.channels["first"] == (12, 8)
    again = [layer for layer in small.layers if type(layer).__name__ == "Reshape"]
    assert again and aimp_tf.compact(small).count_params() == small.count_params()


@pytest.mark.parametrize("name", ["softmax", "mean of channels", "cumulated"])
def test_what_mixes_channels_is_named(name, K):
    ops, vector = of_ops(K), K.Input((4, 3))
    functions = {
        "softmax": lambda x: ops.softmax(x),
        "mean of channels": lambda x: x - ops.mean(x, -1, True),
        "cumulated": lambda x: K.layers.Lambda(lambda y: tf.cumsum(y, axis=-1))(x),
    }
    first = K.layers.Dense(8, name="first")
    model = K.Model(vector, K.layers.Dense(2)(functions[name](first(vector))))
    fill(model, np.random.default_rng(0))
    clear(first.kernel, [0, 3], -1)
    _, report = compacted(model, 4, 3)
    assert report.channels["first"] == (8, 8) and len(report.left_alone) == 1


@pytest.mark.parametrize("dead", ["constant", "unread"])
def test_functions_are_tried_with_what_would_tell_them_apart(dead, K):
    """It cuts off far from where most values lie, and looks at its neighbours there alone."""
    vector = K.Input((8,))
    first, last = K.layers.Dense(8, name="first"), K.layers.Dense(2)

    def nearly(x):
        return tf.where(tf.reduce_sum(tf.abs(x), axis=-1, keepdims=True) > 40.0, 0.0 * x, x)

    model = K.Model(vector, last(K.layers.Lambda(nearly)(first(vector))))
    fill(model, np.random.default_rng(0))
    clear(*((first.kernel, [0, 3], -1) if dead == "constant" else (last.kernel, [0, 3], 0)))
    _, report = compacted(model, 8)
    assert report.channels["first"] == (8, 8)


@pytest.mark.parametrize("activation", ["softmax", "elu", "a function of one's own", "of its neighbours"])
def test_activations_are_tried_as_well(activation, K):
    own = {
        "a function of one's own": lambda x: x * tf.sigmoid(1.7 * x),
        "of its neighbours": lambda x: x - tf.reduce_mean(x, axis=-1, keepdims=True),
    }
    vector = K.Input((3,))
    first = K.layers.Dense(8, activation=own.get(activation, activation), name="first")
    model = K.Model(vector, K.layers.Dense(2)(first(vector)))
    fill(model, np.random.default_rng(0))
    clear(first.kernel, [0, 3], -1)
    _, report = compacted(model, 3)
    assert report.channels["first"] == (8, 6 if activation in ("elu", "a function of one's own") else 8)


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_groups_that_are_dead_go_and_others_keep_as_many_each(groups, K):
    image = K.Input((5, 5, 3))
    first, grouped = K.layers.Conv2D(8, 1, name="first"), K.layers.Conv2D(16, 3, groups=groups, name="grouped")
    model = K.Model(image, K.layers.Conv2D(2, 1, name="last")(grouped(first(image))))
    fill(model, np.random.default_rng(0))
    each = 16 // groups
    clear(model.get_layer("last").kernel, [*range(each), each + 1], 2)  # The first group, and one of the second.
    small, report = compacted(model, 5, 5, 3)
    assert report.channels["first"] == (8, 8 - 8 // groups)
    left = {2: 7, 4: 12, 8: 14}  # Of two groups, one is left, and need not have as many as another.
    assert report.channels["grouped"] == (16, left[groups]) and small.get_layer("grouped").groups == groups - 1


def test_a_separable_convolution_is_both_its_parts(K):
    image = K.Input((5, 5, 3))
    first = K.layers.Conv2D(8, 1, name="first")
    middle = K.layers.SeparableConv2D(6, 3, depth_multiplier=2, name="middle")
    model = K.Model(image, K.layers.Conv2D(2, 1, name="last")(middle(first(image))))
    fill(model, np.random.default_rng(0))
    depthwise, pointwise, _ = middle.weights
    clear(depthwise, [1], 2)
    clear(pointwise, [4, 5], 2)  # What the third channel becomes.
    clear(model.get_layer("last").kernel, [0, 1, 2], 2)
    small, report = compacted(model, 5, 5, 3)
    assert report.channels["first"] == (8, 6) and report.channels["middle"] == (6, 3)
    assert [tuple(weight.shape) for weight in small.get_layer("middle").weights] == [(3, 3, 6, 2), (1, 1, 12, 3), (3,)]


@pytest.mark.parametrize("crossed", [False, True])
def test_attention_loses_heads_and_dimensions(crossed, K):
    """And is divided by the root of as many dimensions as before, which equal outputs show."""
    sequence = K.Input((7, 12))
    values, others = (K.layers.Dense(size, name=name)(sequence) for name, size in (("values", 16), ("others", 10)))
    layer = K.layers.MultiHeadAttention(4, 8, value_dim=6, name="attention")
    attended = layer(values, others if crossed else values)
    model = K.Model(sequence, K.layers.Dense(3, name="last")(attended))
    fill(model, np.random.default_rng(0))
    by_path = {weight.path if hasattr(weight, "path") else weight.name: weight for weight in layer.weights}
    (output,), (key, bias) = (
        [weight for path, weight in by_path.items() if f"/{part}/" in path and wanted(len(weight.shape))]
        for part, wanted in (("attention_output", lambda rank: rank == 3), ("key", lambda rank: rank > 1))
    )
    clear(output, [0, 2], 0)
    clear(output, [1], 1)
    clear(key, [3, 4], 2)
    clear(bias, [3, 4], 1)
    clear(model.get_layer("last").kernel, [0, 5], 0)
    small, _ = compacted(model, 7, 12)
    shapes = [tuple(weight.shape) for weight in small.get_layer("attention").weights]
    size = 10 if crossed else 16
    queries, keys, values = (16, 2, 6), (size, 2, 6), (size, 2, 5)
    assert sorted(shapes) == sorted([queries, (2, 6), keys, (2, 6), values, (2, 5), (2, 5, 14), (14,)])


@pytest.mark.parametrize(("K", "grouped"), [("keras", False), ("tf_keras", False), ("keras", True)], indirect=["K"])
def test_attention_leaves_constant_values_to_a_bias(grouped, K):
    """Those of a head, and a dimension of the others, which depend on biases alone: rows of attention add up to one."""
    sequence = K.Input((7, 12))
    kinds = K.layers
    layer = kinds.GroupQueryAttention(5, 6, 3) if grouped else kinds.MultiHeadAttention(3, 5, value_dim=4)
    model = K.Model(sequence, K.layers.Dense(3)(layer(sequence, sequence)))
    fill(model, np.random.default_rng(0))
    value = layer._value_dense.kernel
    clear(value, [1], 1)
    clear(value, [2], 2)
    small, _ = compacted(model, 7, 12)
    (left,) = (part for part in small.layers if type(part) is type(layer))
    assert tuple(left._value_dense.kernel.shape) == ((12, 2, 5) if grouped else (12, 2, 3))


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_heads_that_share_keys_go_together(K):
    sequence = K.Input((5, 8))
    layer = K.layers.GroupQueryAttention(4, 6, 2, name="attention")
    model = K.Model(sequence, K.layers.Dense(3)(layer(sequence, sequence)))
    fill(model, np.random.default_rng(0))
    (output,) = (weight for weight in layer.weights if tuple(weight.shape) == (6, 4, 8))
    clear(output, [0, 1, 2, 4], 0)  # All queries of the first head, and one of the second.
    small, _ = compacted(model, 5, 8)
    assert [tuple(weight.shape) for weight in small.get_layer("attention").weights if len(weight.shape) == 3] == [
        *((8, 3, 4), (8, 1, 4), (8, 1, 4)),
        (3, 4, 8),
    ]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SimpleRNN"])
def test_recurrent_units_go_with_all_their_gates(kind, K):
    sequence = K.Input((6, 5))
    layer = getattr(K.layers, kind)(8, return_sequences=True, name="recurrent")
    model = K.Model(sequence, K.layers.Dense(3, name="last")(layer(K.layers.Dense(7, name="first")(sequence))))
    fill(model, np.random.default_rng(0))
    kernel, recurrent, bias = layer.weights
    clear(model.get_layer("last").kernel, [0, 1, 2], 0)
    clear(recurrent, [0, 1], 0)  # The third one is read by others still.
    clear(kernel, [4], 0)
    candidate = {"LSTM": 2, "GRU": 2, "SimpleRNN": 0}[kind] * 8 + 5
    for weight in (kernel, recurrent, bias):  # Nothing comes into the sixth, which is zero then.
        clear(weight, [candidate], -1)
    small, report = compacted(model, 6, 5)
    assert report.channels["recurrent"] == (8, 5) and report.channels["first"] == (7, 6)


@pytest.mark.parametrize("bias_axes", [None, "e", "de", "be"])
def test_einsum_loses_entries_along_each_axis(bias_axes, K):
    sequence = K.Input((4, 5))
    wide = K.layers.EinsumDense("abc,cde->abde", (4, 3, 6), bias_axes=bias_axes, name="wide")
    narrow = K.layers.EinsumDense("abde,def->abf", (4, 4), name="narrow")
    model = K.Model(sequence, narrow(wide(K.layers.Dense(7, name="first")(sequence))))
    fill(model, np.random.default_rng(0))
    clear(wide.kernel, [0, 1], 0)
    clear(narrow.kernel, [1], 0)
    clear(narrow.kernel, [2, 3], 1)
    small, report = compacted(model, 4, 5)
    assert report.channels["first"] == (7, 5)
    assert tuple(small.get_layer("wide").kernel.shape) == (5, 2, 4)
    assert tuple(small.get_layer("narrow").kernel.shape) == (2, 4, 4)


@pytest.mark.parametrize("equation", ["abc,c->ab", "abc,b->ac"])
def test_einsum_that_makes_nothing_needs_what_it_reads(equation, K):
    sequence, first = K.Input((4, 5)), K.layers.Dense(7, name="first")
    last = K.layers.EinsumDense(equation, (4 if equation.endswith("ab") else 7,), name="last")
    model = K.Model(sequence, last(K.layers.Permute((1, 2))(first(sequence))))
    fill(model, np.random.default_rng(0))
    if equation.endswith("ab"):
        clear(last.kernel, [0, 1], 0)
    _, report = compacted(model, 4, 5)
    assert report.channels["first"] == (7, 5 if equation.endswith("ab") else 7)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_einsum_that_ends_with_what_is_not_counted(activation, K):
    sequence, first = K.Input((4, 5)), K.layers.Dense(7, name="first")
    swapped = K.layers.EinsumDense("abc,cd->adb", (6, 4), activation=activation, name="swapped")
    model = K.Model(sequence, K.layers.Dense(2, name="last")(K.layers.ReLU()(swapped(first(sequence)))))
    fill(model, np.random.default_rng(0))
    clear(swapped.kernel, [1, 2], 0)
    clear(model.get_layer("last").kernel, [1], 0)
    _, report = compacted(model, 4, 5)
    assert report.channels["first"] == (7, 5)
    model.compile("sgd", "mse")
    assert "first" in str(aimp_tf.groups(model))


def test_einsum_whose_output_ends_with_what_is_not_spelt_out(K):
    image, first = K.Input((5, 3)), K.layers.EinsumDense("ab...,bc->ac...", (8,), name="first")
    second = K.layers.EinsumDense("ab...,bc->ac...", (2,), name="second")
    model = K.Model(image, second(first(image)))
    fill(model, np.random.default_rng(0))
    clear(second.kernel, [0, 3], 0)
    small, report = compacted(model, 5, 3)
    assert tuple(small.get_layer("first").kernel.shape) == (5, 6)


def test_recurrent_convolutions_over_time_are_left_alone(K):
    video = K.Input((2, 3, 6, 6, 2))
    model = K.Model(video, K.layers.TimeDistributed(K.layers.ConvLSTM2D(3, 2), name="steps")(video))
    fill(model, np.random.default_rng(0))
    _, report = compacted(model, 2, 3, 6, 6, 2)
    assert set(report.left_alone) == {"steps"}


def test_tables_and_slopes_lose_channels(K):
    layers = K.layers
    tokens = K.Input((6,))
    table = layers.Embedding(20, 8, name="table")
    values = layers.PReLU(name="steep")(layers.PReLU(shared_axes=[1])(table(tokens)))
    model = K.Model(tokens, layers.Dense(3, name="last")(layers.Normalization()(values)))
    fill(model, np.random.default_rng(0))
    clear(model.get_layer("last").kernel, [1, 2], 0)
    columns = table.embeddings.numpy().copy()
    columns[:, 4] = 1.5  # The same for all.
    table.embeddings.assign(columns)
    small, _ = check_same(model, np.random.default_rng(0).integers(0, 20, (3, 6)))
    assert [tuple(small.get_layer(name).weights[0].shape) for name in ("table", "steep")] == [(20, 5), (6, 5)]


def test_layers_that_are_made_of_others_are_opened(K):
    sequence = K.Input((5, 8))
    layer = feed_forward(K)(12, 8, name="block")
    model = K.Model(sequence, K.layers.Dense(2)(layer(sequence)))
    fill(model, np.random.default_rng(0))
    clear(layer.down.kernel, range(5), 0)
    before = [len(part._inbound_nodes) for part in (layer.up, layer.down)]
    small, report = compacted(model, 5, 8)
    assert report.channels[layer.up.name] == (12, 7) and not report.left_alone and not report.shared
    assert [len(part._inbound_nodes) for part in (layer.up, layer.down)] == before
    assert "block" not in [layer.name for layer in small.layers]


def around_dense(K, call):
    """A layer of one's own that holds a Dense layer, and computes `call` of it and of what goes in."""

    @K.saving.register_keras_serializable("tests")
    class Around(K.layers.Layer):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.dense = K.layers.Dense(4)

        def build(self, shape):
            self.dense.build(shape)
            super().build(shape)

        def compute_output_shape(self, shape):
            return (*shape[:-1], 4)

        def call(self, x):
            return call(self.dense, x)

    return Around(name="own")


def branching(dense, x):
    """Something else as it is traced than as it computes."""
    return dense(x) if isinstance(x, tf.Tensor) and not hasattr(x, "_keras_history") else dense(2.0 * x)


def by_its_weights(dense, x):
    """What is computed from weights as the call is traced would stay as it is then."""
    return dense(x) * tf.reduce_sum(tf.convert_to_tensor(dense.kernel))


@pytest.mark.parametrize("call", [branching, by_its_weights])
def test_layers_that_a_trace_does_not_tell_all_of_are_left_alone(call, K):
    sequence, first = K.Input((3,)), K.layers.Dense(6, name="first")
    model = K.Model(sequence, K.layers.Dense(2)(around_dense(K, call)(first(sequence))))
    fill(model, np.random.default_rng(0))
    clear(first.kernel, range(3), -1)
    _, report = compacted(model, 3)
    assert report.left_alone == {"own": "Around"} and report.channels["first"] == (6, 6)


def looking_back(dense, x):
    """Asks for all sizes, as causal masks do."""
    import keras

    examples, length, _ = keras.ops.shape(x)
    mask = keras.ops.broadcast_to(np.tril(np.ones((1, length, length), np.float32)), (examples, length, length))
    return keras.ops.matmul(mask, dense(x))


def one_by_one(dense, x):
    """Does something else with each example."""
    import keras

    return dense(x) * np.arange(1, keras.ops.shape(x)[0] + 1, dtype=np.float32).reshape(-1, 1, 1)


def in_halves(dense, x):
    """Reshapes by the number of examples, as attention does."""
    import keras

    examples, length = keras.ops.shape(x)[:2]
    halves = keras.ops.reshape(dense(x), (examples, -1, 2, 2))
    return keras.ops.reshape(halves[:, :, ::-1], (examples, length if length else -1, 4))


@pytest.mark.parametrize(
    ("call", "length", "opened"),
    [
        (looking_back, 5, True),
        (looking_back, None, False),
        (one_by_one, 5, False),
        (in_halves, 5, True),
        (in_halves, None, True),
    ],
)
def test_layers_that_ask_for_the_number_of_examples(call, length, opened):
    """Of Keras 3: tf_keras' functions take sizes that are open."""
    import keras as K

    sequence, first = K.Input((length, 3)), K.layers.Dense(6, name="first")
    hidden = first(sequence)
    own = around_dense(K, call)
    model = K.Model(sequence, K.layers.Dense(2)(own(hidden)))
    fill(model, np.random.default_rng(0))
    clear(own.dense.kernel, range(3), 0)
    small, report = check_same(model, np.random.default_rng(1).normal(size=(4, 5, 3)))
    assert report.channels["first"] == (6, 3 if opened else 6) and bool(report.left_alone) != opened
    assert small(np.zeros((7, 5, 3), np.float32)).shape == (7, 5, 2)


class WithCache(keras.layers.Layer):
    """A Dense layer as attention of KerasHub gives what it computes: with None beside it, where there is no cache."""

    def __init__(self, own_weight=False, **settings):
        super().__init__(**settings)
        self.dense = keras.layers.Dense(8, name="dense")
        self.own_weight = self.add_weight(shape=(8,), initializer="ones") if own_weight else 1.0

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.dense(x) * self.own_weight, None


class Block(keras.layers.Layer):
    """Two of these, whose layers have the same names, around an activation."""

    def __init__(self, own_weight=False, **settings):
        super().__init__(**settings)
        self.first, self.second = WithCache(own_weight), WithCache()

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 8))

    def compute_output_shape(self, shape):
        return (*shape[:-1], 8)

    def call(self, x):
        return self.second(keras.ops.relu(self.first(x)[0]))[0]


@pytest.mark.parametrize("own_weight", [False, True])
def test_layers_that_give_none_beside_a_tensor_are_part_of_what_is_around_them(own_weight):
    """Keras 3 takes none such in a functional model. What holds a weight itself stays, and is counted all the same."""
    sequence, block = keras.Input((5, 3)), Block(own_weight, name="block")
    model = keras.Model(sequence, keras.layers.Dense(2)(block(sequence)))
    fill(model, np.random.default_rng(0))
    clear(block.second.dense.kernel, range(5), 0)
    names = [layer.name for layer in model._flatten_layers()]
    _, report = compacted(model, 5, 3)
    assert report.multiply_adds[0] == 5 * (3 * 8 + 8 * 8 + 8 * 2)
    assert report.multiply_adds[1] == report.multiply_adds[0] - (0 if own_weight else 5 * 5 * (3 + 8))
    assert report.left_alone == ({"block": "Block"} if own_weight else {})
    assert [layer.name for layer in model._flatten_layers()] == names
    assert type(block.first) is WithCache and "compute_output_spec" not in vars(block.first)


def test_subclassed_models_are_opened(K):
    class Own(K.Model):
        def __init__(self):
            super().__init__()
            self.first, self.last = K.layers.Dense(6, activation="relu", name="first"), K.layers.Dense(2, name="last")

        def call(self, x):
            return self.last(self.first(x) + 1.0)

    model = Own()
    model(np.zeros((1, 3), np.float32))
    fill(model, np.random.default_rng(0))
    clear(model.last.kernel, [0, 4], 0)
    _, report = compacted(model, 3)
    assert report.channels == {"first": (6, 4), "last": (2, 2)}


def test_rules_for_layers_of_ones_own(K):
    @K.saving.register_keras_serializable("tests")
    class Scale(K.layers.Layer):
        def build(self, shape):
            self.factors = self.add_weight(name="factors", shape=shape[-1:], initializer="ones")
            super().build(shape)

        def call(self, x):
            return x * self.factors

    vector = K.Input((3,))
    first = K.layers.Dense(6, name="first")
    model = K.Model(vector, K.layers.Dense(2)(Scale(name="scale")(first(vector))))
    fill(model, np.random.default_rng(0))
    clear(first.kernel, [0, 4], -1)
    _, report = compacted(model, 3)
    assert report.left_alone == {"scale": "Scale"} and report.channels["first"] == (6, 6)

    def rule(call, assumptions):
        factors = assumptions.value(call.layer.factors)
        return aimp_tf.rules.PassThrough(call.layer, lambda values: values * factors)

    aimp_tf.register_rule(Scale, rule)
    small, report = compacted(model, 3)
    assert not report.left_alone and report.channels["first"] == (6, 4)
    assert tuple(small.get_layer("scale").factors.shape) == (4,)
    assert [group.channels for group in aimp_tf.groups(model).groups] == [6]


@pytest.mark.parametrize(
    ("layer_class", "rule", "message"),
    [
        (tf.keras.layers.Dense(2), print, "takes the class of a layer; got .*Write type"),
        (tf.keras.layers.Dense, "linear", "takes a function .* got 'linear'"),
    ],
)
def test_what_is_no_rule_is_refused(layer_class, rule, message):
    with pytest.raises(TypeError, match=message):
        aimp_tf.register_rule(layer_class, rule)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(data=st.data(), generation=st.sampled_from(GENERATIONS))
def test_any_network_over_sequences_computes_the_same(data, generation):
    model, keras = drawn(data, generation, SequenceNetwork)
    check_same(model, np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32))
    keras.backend.clear_session()


def test_masks_of_what_is_nowhere_but_one_value(K):
    """A step is padding if all of its channels are zero: none can go."""
    layers = K.layers
    inputs = K.Input((4, 3))
    values = layers.Dense(5, activation="relu", name="first")(inputs)
    masked = layers.GlobalAveragePooling1D()(layers.Masking(0.0)(values))
    model = K.Model(inputs, layers.Dense(2, name="last")(masked))
    fill(model, np.random.default_rng(0))
    clear(model.get_layer("last").kernel, [1, 2], 0)
    x = np.random.default_rng(1).normal(size=(3, 4, 3)) * [[[1.0], [0.0], [1.0], [0.0]]]
    model.get_layer("first").bias.assign(np.array([0, 1, 0, 0, 0]))
    _, report = check_same(model, x)
    assert report.channels["first"] == (5, 5) and "Masking" in report.left_alone.values()


def test_functions_that_tell_wrong_shapes_keep_what_goes_in():
    """Keras tells the shape of the query for that of the output: with fewer values a layer after it would not fit."""
    import keras as K

    inputs = K.Input((5, 2, 3))
    query, key, value = (K.layers.Dense(4, name=name)(inputs) for name in ("query", "key", "value"))
    attended = K.ops.dot_product_attention(query, key, value)
    model = K.Model(inputs, K.layers.Dense(2, name="last")(attended))
    fill(model, np.random.default_rng(0))
    clear(model.get_layer("last").kernel, [1, 2], 0)
    _, report = check_same(model, np.random.default_rng(1).normal(size=(3, 5, 2, 3)))
    assert report.channels["value"] == (4, 4)
