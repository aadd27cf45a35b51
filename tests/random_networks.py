"""Networks that hypothesis draws, made up like their weights, and what compaction must not change of them."""

import contextlib
import importlib
import os

import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from aimp_tf.exporting.compaction import compact_and_report

GENERATIONS = ("keras", "tf_keras")

EXAMPLES = int(os.environ.get("AIMP_TF_EXAMPLES", 8))
"""Networks that a test draws; 2000 in the long form, which draws others every time."""


def outputs_of(model, inputs):
    return [np.asarray(output) for output in tf.nest.flatten(model(inputs, training=False))]


@contextlib.contextmanager
def in_float64(generation):
    """Models made within it compute in float64: where what is next to constant is normalised, rounding of float32 is
    more than tests allow for."""
    backend = importlib.import_module(generation).backend
    backend.set_floatx("float64")
    try:
        yield
    finally:
        backend.set_floatx("float32")


def check_same(model, inputs, slack=1e-5):
    """Compacts a model, and checks that the smaller one computes the same and is no larger. Gives it and its report."""
    before = [weight.copy() for weight in model.get_weights()]
    small, report = compact_and_report(model)
    for old, new in zip(outputs_of(model, inputs), outputs_of(small, inputs), strict=True):
        assert old.shape == new.shape
        np.testing.assert_allclose(new, old, rtol=0, atol=slack * max(np.abs(old).max(), 1e-3))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert report.parameters == (model.count_params(), small.count_params())
    for old, new in (report.parameters, report.multiply_adds, *report.channels.values()):
        assert new <= old
    return small, report


def randomize(model, generator):
    """New biases and normalisation, such that dead channels are not zero."""
    for layer in model._flatten_layers():
        if type(layer).__name__ == "BatchNormalization":
            size = layer.moving_mean.shape
            layer.moving_mean.assign(generator.normal(0, 0.3, size))
            layer.moving_variance.assign(generator.uniform(0.5, 2, size))
        if type(layer).__name__ in ("BatchNormalization", "GroupNormalization"):
            for weight in (layer.gamma, layer.beta):
                size = weight.shape
                weight.assign(np.where(generator.random(size) < 0.2, 0, generator.normal(0.5, 1, size)))
        elif getattr(layer, "use_bias", False) and getattr(layer, "bias", None) is not None:
            layer.bias.assign(generator.normal(0, 0.3, layer.bias.shape))


def fill(model, generator):
    """New weights, none of them zero, and variances above zero."""
    for weight in model.weights:
        if "float" in str(weight.dtype):
            new = generator.uniform(0.5, 2, weight.shape) if "variance" in weight.name else None
            weight.assign(generator.normal(0, 0.5, weight.shape) if new is None else new)
    for layer in model.layers:
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()


class Network:
    """Draws a network, its weights and what is dead in it."""

    def __init__(self, draw, keras):
        self.draw, self.K, self.L = draw, keras, keras.layers

    def one_of(self, *options):
        return self.draw(st.sampled_from(options))

    def conv(self, x, filters=None):
        return self.L.Conv2D(
            filters or self.one_of(2, 3, 4),
            self.one_of(1, 3),
            padding=self.one_of("same", "valid") if filters is None and min(x.shape[1:3]) > 2 else "same",
            use_bias=self.one_of(True, False),
            activation=self.one_of(None, "relu", "sigmoid"),
        )(x)

    def normalized(self, x):
        return self.L.BatchNormalization(scale=True, center=True)(x)

    def normalized_in_groups(self, x):
        x = self.conv(x, 6)
        return self.L.GroupNormalization(self.one_of(1, 2, 3, -1))(x)

    def wrapped(self, x):
        inner = self.L.Conv2D(4, 3, padding="same", use_bias=self.one_of(True, False))
        options = [
            lambda: self.L.TimeDistributed(self.L.Conv1D(4, 3, padding="same", activation="relu")),
            lambda: self.L.TimeDistributed(self.L.DepthwiseConv1D(3, padding="same")),
            lambda: self.L.TimeDistributed(self.L.Dense(4, use_bias=self.one_of(True, False))),
        ]
        if self.K.__name__ == "keras":  # tf_keras' own cannot be made where keras is the newer one.
            options += [
                lambda: self.L.SpectralNormalization(inner),
                lambda: self.L.SpectralNormalization(self.L.Conv2DTranspose(4, 3)),
            ]
        return self.one_of(*options)()(x)

    def activated(self, x):
        return self.one_of(
            lambda: self.L.ReLU(6.0),
            lambda: self.L.ReLU(),
            lambda: self.L.LeakyReLU(),
            lambda: self.L.Activation("sigmoid"),
            lambda: self.L.Activation("softmax"),
            lambda: self.L.Softmax(),
            lambda: self.L.Activation("tanh"),
        )()(x)

    def depthwise(self, x):
        layer = self.L.DepthwiseConv2D(
            3, padding="same", depth_multiplier=self.one_of(1, 2), use_bias=self.one_of(True, False)
        )
        return layer(x)

    def separable(self, x):
        layer = self.L.SeparableConv2D(
            self.one_of(3, 4),
            3,
            padding=self.one_of("same", "valid") if min(x.shape[1:3]) > 2 else "same",
            depth_multiplier=self.one_of(1, 2),
            use_bias=self.one_of(True, False),
        )
        return layer(x)

    def grouped(self, x):
        x = self.L.Conv2D(8, 1, activation=self.one_of(None, "relu"))(x)
        groups = self.one_of(2, 4, 8)
        layer = self.L.Conv2D(
            groups * self.one_of(1, 3), 3, padding="same", groups=groups, use_bias=self.one_of(True, False)
        )
        return layer(x)

    def residual(self, x):
        branch = self.activated(self.normalized(self.conv(x, 4)))
        branch = self.normalized(self.conv(branch, x.shape[-1]))
        branches = [x, branch, self.normalized(self.conv(x, x.shape[-1]))][: self.one_of(2, 3)]
        return self.one_of(self.L.Add, self.L.Maximum, self.L.Average)()(branches)

    def shared(self, x):
        layer = self.L.Conv2D(x.shape[-1], 3, padding="same", activation="relu")
        return self.L.Add()([layer(layer(x)), x])

    def concatenated(self, x):
        return self.L.Concatenate()([self.conv(x, 3), x, self.normalized(x)])

    def excited(self, x):
        gate = self.L.Dense(x.shape[-1], activation="sigmoid")(self.L.GlobalAveragePooling2D()(x))
        return self.L.Multiply()([x, self.L.Reshape((1, 1, x.shape[-1]))(gate)])

    def functions(self, x):
        ops = self.K.ops if self.K.__name__ == "keras" else tf.nn
        y = self.one_of(ops.relu, ops.relu6, ops.tanh, ops.softmax)(self.conv(x, x.shape[-1]))
        spread = np.linspace(-1, 1, x.shape[-1]).astype(np.float32)
        return self.one_of(
            *(lambda: x + y, lambda: x * y, lambda: x - y, lambda: y + 1.0, lambda: x * 0.5 + y, lambda: -y),
            *(lambda: x * spread, lambda: 6.0 - x**2, lambda: x[:, :, :, -2:], lambda: x[:, :, ::-1, ::-1]),
        )()

    def moved(self, x):
        if self.K.__name__ == "keras":
            ops = self.K.ops
            concatenate, reshape, transpose = ops.concatenate, ops.reshape, ops.transpose
            halves = ops.split(self.conv(x, 6), 2, axis=-1)
        else:
            concatenate, reshape, transpose = tf.concat, tf.reshape, tf.transpose
            halves = tf.split(self.conv(x, 6), 2, axis=-1)
        _, height, width, channels = x.shape
        return self.one_of(
            lambda: concatenate([x, self.conv(x, 3)], -1),
            lambda: concatenate([self.normalized(halves[1]), halves[0]], -1),
            lambda: reshape(reshape(x, (-1, height * width, channels)), (-1, width, height, channels)),
            lambda: transpose(self.activated(transpose(x, (0, 3, 1, 2))), (0, 2, 3, 1)),
            lambda: transpose(self.L.Dense(2)(transpose(x, (0, 1, 3, 2))), (0, 1, 3, 2)),
            lambda: reshape(reshape(self.conv(x, 6), (-1, height, width, 2, 3)), (-1, height, width, 6)),
        )()

    def nested(self, x):
        return self.K.Sequential(
            [self.K.Input(x.shape[1:]), self.L.Conv2D(3, 3, padding="same"), self.L.BatchNormalization()]
        )(x)

    def resized(self, x):
        return self.one_of(
            lambda: self.L.ZeroPadding2D(1),
            lambda: self.L.UpSampling2D(2),
            lambda: self.L.AveragePooling2D(2, strides=1, padding="same"),
            lambda: self.L.MaxPooling2D(2, strides=1, padding="same"),
            lambda: self.L.Dropout(0.5),
            lambda: self.L.Conv2DTranspose(3, 3, padding="same", strides=1, activation="relu"),
        )()(x)

    def model(self):
        image = x = self.K.Input((5, 5, 2))
        outputs = []
        for _ in range(self.draw(st.integers(1, 5))):
            block = self.one_of(
                self.conv,
                self.normalized,
                self.activated,
                self.depthwise,
                self.separable,
                self.grouped,
                self.residual,
                self.shared,
                self.concatenated,
                self.excited,
                self.functions,
                self.moved,
                self.nested,
                self.resized,
                self.normalized_in_groups,
                self.wrapped,
            )
            x = block(x)
            if self.draw(st.integers(0, 9)) == 0:
                outputs.append(x)
        x = self.one_of(self.L.GlobalMaxPooling2D, self.L.GlobalAveragePooling2D, self.L.Flatten)()(x)
        for _ in range(self.draw(st.integers(0, 2))):
            x = self.L.Dense(4, activation=self.one_of("relu", "softplus", "softmax", None))(x)
        return self.K.Model(image, [*outputs, self.L.Dense(3)(x)])

    def kill(self, model):
        """Draws which weights of the model are zero: single ones, inputs, outputs, nearly all or all."""
        generator = np.random.default_rng(self.draw(st.integers(0, 2**32 - 1)))
        randomize(model, generator)
        for layer in model._flatten_layers():
            for variable in layer.weights if hasattr(layer, "kernel_initializer") and layer is not model else ():
                if len(variable.shape) < 2:
                    continue
                value = generator.normal(0, 1, variable.shape)
                how = self.one_of("random", "inputs", "outputs", "axis", "nearly", "all")
                if how == "random":
                    value *= generator.random(value.shape) < 0.3
                elif how == "inputs":
                    value *= (generator.random(value.shape[-2]) < 0.4)[:, np.newaxis]
                elif how == "outputs":
                    value *= generator.random(value.shape[-1]) < 0.4
                elif how == "axis":
                    axis = generator.integers(value.ndim)
                    alive = (generator.random(value.shape[axis]) < 0.5).reshape(
                        [-1 if other == axis else 1 for other in range(value.ndim)]
                    )
                    value *= alive
                elif how == "nearly":
                    value *= generator.permutation(value.size).reshape(value.shape) == 0
                else:
                    value *= 0
                variable.assign(value)


def drawn(data, generation, kind=Network):
    """A network of a generation of Keras with something dead in it, and that generation."""
    keras = importlib.import_module(generation)
    network = kind(data.draw, keras)
    model = network.model()
    network.kill(model)
    return model, keras


class SequenceNetwork(Network):
    """Draws a network over sequences: attention, recurrent layers, EinsumDense, and layers that are made of others."""

    def dense(self, x):
        return self.L.Dense(self.one_of(4, 6), activation=self.one_of(None, "relu", "gelu"))(x)

    def normalized(self, x):
        return self.one_of(self.L.BatchNormalization, self.L.LayerNormalization)()(x)

    def attention(self, x):
        layer = self.L.MultiHeadAttention(
            self.one_of(2, 3), self.one_of(2, 4), value_dim=self.one_of(None, 3), use_bias=self.one_of(True, False)
        )
        return layer(x, self.one_of(x, self.dense(x)))

    def grouped_attention(self, x):
        if self.K.__name__ == "tf_keras":
            return self.attention(x)
        return self.L.GroupQueryAttention(2, 4, 2)(x, x)

    def recurrent(self, x):
        kind = self.one_of(self.L.LSTM, self.L.GRU, self.L.SimpleRNN)
        layer = kind(self.one_of(3, 5), return_sequences=True, use_bias=self.one_of(True, False))
        mode = self.one_of("concat", "sum", "mul", "ave", None)
        return layer(x) if mode is None else self.L.Bidirectional(layer, merge_mode=mode)(x)

    def einsum(self, x):
        wide = self.L.EinsumDense("abc,cde->abde", (x.shape[1], 2, 3), bias_axes=self.one_of(None, "e", "de", "be"))
        narrow = self.L.EinsumDense("abde,def->abf", (x.shape[1], 4), bias_axes=self.one_of(None, "f"))
        return narrow(self.activated(wide(x)))

    def residual(self, x):
        return self.L.Add()([x, self.L.Dense(x.shape[-1])(self.dense(x))])

    def parametric(self, x):
        return self.L.PReLU(shared_axes=self.one_of(None, [1]), alpha_initializer="ones")(self.dense(x))

    def composite(self, x):
        return feed_forward(self.K)(self.one_of(3, 5), x.shape[-1])(x)

    def functions(self, x):
        ops = self.K.ops if self.K.__name__ == "keras" else tf
        _, length, channels = x.shape
        return self.one_of(
            lambda: x * ops.sigmoid(x),
            lambda: x[:, ::2],
            lambda: ops.reshape(ops.reshape(self.L.Dense(6)(x), (-1, length, 2, 3)), (-1, length, 6)),
            lambda: ops.transpose(self.L.Dense(3)(ops.transpose(x, (0, 2, 1))), (0, 2, 1)),
            lambda: ops.matmul(ops.matmul(x, ops.transpose(x, (0, 2, 1))), x),
            lambda: ops.einsum("btc,bsc->bts", x, x),
            lambda: self.L.UnitNormalization()(x),
            lambda: self.L.Attention()([x, x]),
            lambda: self.L.Lambda(lambda y: tf.cumsum(y, axis=-1))(x),
        )()

    def model(self):
        sequence = x = self.K.Input((4, 3))
        x = self.dense(x)
        for _ in range(self.draw(st.integers(1, 4))):
            blocks = (self.dense, self.normalized, self.attention, self.grouped_attention, self.recurrent, self.einsum)
            more = (self.residual, self.parametric, self.composite, self.functions, self.activated, self.separated)
            x = self.one_of(*blocks, *more)(x)
        x = self.one_of(self.L.GlobalMaxPooling1D, self.L.GlobalAveragePooling1D, self.L.Flatten)()(x)
        return self.K.Model(sequence, self.L.Dense(2)(x))

    def separated(self, x):
        layer = self.L.SeparableConv1D(self.one_of(3, 4), 2, padding="same", depth_multiplier=self.one_of(1, 2))
        return layer(x)


def feed_forward(keras):
    """A layer of one's own that is made of others."""

    @keras.saving.register_keras_serializable("random_networks")
    class FeedForward(keras.layers.Layer):
        def __init__(self, units, channels, **settings):
            super().__init__(**settings)
            self.units, self.channels = units, channels
            self.up, self.down = keras.layers.Dense(units, activation="relu"), keras.layers.Dense(channels)

        def build(self, shape):
            self.up.build(shape)
            self.down.build((*shape[:-1], self.units))
            super().build(shape)

        def call(self, x):
            return x + 0.5 * self.down(self.up(x))

        def get_config(self):
            return {**super().get_config(), "units": self.units, "channels": self.channels}

    return FeedForward
