"""Weights that train as int8 has them."""

import numpy as np
import pytest
import tensorflow as tf
from test_sharing import loss_and_gradients

import aimp_tf
from aimp_tf.exporting.lite import to_tflite
from aimp_tf.graph.prunable import prunable_variables
from aimp_tf.training.int8_weights import rounded, rounded_to_range


def kernels(model):
    return {path: np.asarray(weight) for path, weight in prunable_variables(model).items()}


def test_rounded_weights_are_multiples_of_a_127th_of_the_largest_of_an_output():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    kernel[kernel < 0.2] *= 0
    kernel[..., 4] = 0
    found = rounded(tf.constant(kernel), [3]).numpy()
    largest = np.abs(kernel).max(axis=(0, 1, 2))
    steps = found / np.where(largest > 0, largest / 127, 1)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert np.abs(found - kernel).max() <= largest.max() / 254 * 1.001
    np.testing.assert_array_equal(np.abs(found).max(axis=(0, 1, 2)), largest)
    np.testing.assert_array_equal(found[kernel == 0], 0)
    np.testing.assert_allclose(rounded(tf.constant(found), [3]).numpy(), found, rtol=1e-6)
    in_the_middle = rounded(tf.constant(np.moveaxis(kernel, 3, 1)), [1]).numpy()
    np.testing.assert_array_equal(np.moveaxis(in_the_middle, 1, 3), found)
    of_pairs = rounded(tf.constant(kernel), [2, 3]).numpy()
    np.testing.assert_array_equal(np.abs(of_pairs).max(axis=(0, 1)), np.abs(kernel).max(axis=(0, 1)))


@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_rounded_inputs_are_256_values_with_zero_among_them(low, high):
    values = np.random.default_rng(0).uniform(low, high, 5000).astype(np.float32)
    values[:3] = low, high, 0
    with tf.GradientTape() as tape:
        inputs = tf.constant(values)
        tape.watch(inputs)
        found = rounded_to_range(inputs)
        loss = tf.reduce_sum(found * tf.range(5000.0))
    np.testing.assert_array_equal(tape.gradient(loss, inputs), np.arange(5000.0))
    step = (max(high, 0) - min(low, 0)) / 255
    assert found[2] == 0 and len(np.unique(found)) <= 256
    assert np.abs(found - values).max() <= step * 0.5001 * (2 if low < 0 < high else 1)
    if step:
        np.testing.assert_allclose(found / step, np.round(found / step), atol=1e-3)


def test_what_cannot_be_rounded_stays():
    assert rounded_to_range(tf.constant([1, 2])).dtype == tf.int32
    sparse = tf.sparse.from_dense([[0.1, 0.0]])
    assert rounded_to_range(sparse) is sparse
    half = rounded_to_range(tf.constant([0.0, 1.0, 0.3], tf.bfloat16))
    assert half.dtype == tf.bfloat16 and float(half[1]) == 1


def small(K, optimizer=None):
    K.utils.set_random_seed(0)
    layers = K.layers
    image = layers.Input((6, 6, 2))
    x = layers.Flatten()(layers.Conv2D(16, 3, activation="relu")(image))
    model = K.Model(image, layers.Dense(3)(layers.Dense(24, activation="relu")(x)))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) > 1:
            weight.assign(np.where(generator.random(weight.shape) < 0.6, 0, weight))
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or K.optimizers.SGD(0.05), loss)
    return model, generator.normal(size=(64, 6, 6, 2)).astype(np.float32), generator.integers(0, 3, 64)


def by_hand(inputs):
    """What int8 keeps of inputs, with a straight-through gradient."""
    values = inputs.numpy()
    low, high = min(values.min(), 0), max(values.max(), 0)
    step = (high - low) / 255
    zero = np.round(-low / step)
    kept = (np.clip(np.round(values / step) + zero, 0, 255) - zero) * step
    return inputs + tf.constant(kept.astype(np.float32) - values)


def test_gradients_are_those_at_rounded_weights_and_inputs_and_move_the_exact_ones(K):
    """One step of SGD by hand."""
    model, x, y = small(K)
    variables = prunable_variables(model)
    before = kernels(model)
    taken = [tf.Variable(rounded(tf.constant(kernel), [kernel.ndim - 1])) for kernel in before.values()]
    with tf.GradientTape() as tape:
        first, second, third = taken
        found = tf.nn.relu(tf.nn.conv2d(by_hand(tf.constant(x)), first, 1, "VALID"))
        found = tf.nn.relu(by_hand(tf.reshape(found, (len(x), -1))) @ second)
        logits = by_hand(found) @ third
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
    gradients = dict(zip(variables, tape.gradient(loss, taken), strict=True))
    aimp_tf.fine_tune(model, x, y, epochs=1, batch_size=64, shuffle=False, weights="int8", verbose=0)
    for path, variable in variables.items():
        moved = np.where(before[path] == 0, 0, before[path] - 0.05 * gradients[path].numpy())
        wanted = rounded(tf.constant(moved), [moved.ndim - 1])
        np.testing.assert_allclose(np.asarray(variable), wanted, atol=1e-5)


def varied(K):
    """A network with kernels of all kinds that LiteRT has in int8, each of another size."""
    K.utils.set_random_seed(0)
    layers = K.layers
    image = layers.Input((6, 6, 2))
    x = layers.Conv2D(16, 3, activation="relu")(image)
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = layers.SeparableConv2D(8, 3, padding="same")(x)
    x = layers.Conv2DTranspose(5, 2)(x)
    x = layers.Conv2D(10, 3, groups=5)(x)
    x = layers.Reshape((9, 10))(x)
    x = layers.MultiHeadAttention(3, 4)(x, x)
    x = layers.EinsumDense("abc,cde->abde", (9, 3, 5))(x)
    model = K.Model(image, layers.Dense(3)(layers.Dense(24, activation="relu")(layers.Flatten()(x))))
    generator = np.random.default_rng(0)
    for path, weight in prunable_variables(model).items():
        weight.assign(np.where(generator.random(weight.shape) < 0.6, 0, 2 * generator.normal(size=weight.shape)))
    model.compile(K.optimizers.Adam(1e-3), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model, generator.normal(size=(64, 6, 6, 2)).astype(np.float32), generator.integers(0, 3, 64)


def test_int8_files_hold_the_weights_that_were_trained(K, caplog):
    model, x, y = varied(K)
    zeros = {path: kernel == 0 for path, kernel in kernels(model).items()}
    aimp_tf.fine_tune(model, x, y, epochs=3, batch_size=16, weights="int8", verbose=0)
    assert "no mask" not in caplog.text
    for path, kernel in kernels(model).items():
        np.testing.assert_array_equal(kernel[zeros[path]], 0)
    interpreter = tf.lite.Interpreter(model_content=to_tflite(model, representative_inputs=x))
    stored = []
    for details in interpreter.get_tensor_details():
        quantization = details["quantization_parameters"]
        scales, axis = quantization["scales"], quantization["quantized_dimension"]
        if details["dtype"] == np.int8 and len(details["shape"]) > 1 and len(scales) > 1:
            array = np.moveaxis(interpreter.get_tensor(details["index"]).astype(np.float32), axis, -1) * scales
            stored.append(np.sort(array.reshape(-1)))
    wanted = [np.sort(np.ravel(weight)) for weight in model.weights if "kernel" in weight.name]
    assert len(stored) == len(wanted) == 13
    for kernel in wanted:  # The converter puts attention's constant factor into the kernel of its queries.
        alike = [array / array.max() for array in stored if array.size == kernel.size]
        assert any(np.allclose(array, kernel / kernel.max(), atol=1e-6) for array in alike), kernel.size


def classifier(K, hidden, **compiled):
    """A network of 6-8-3 for made-up data, with a layer in its middle."""
    K.utils.set_random_seed(1)
    model = K.Sequential([K.Input((6,)), K.layers.Dense(8, activation="relu", name="first"), hidden, K.layers.Dense(3)])
    model.compile(K.optimizers.SGD(0.1), K.losses.SparseCategoricalCrossentropy(from_logits=True), **compiled)
    generator = np.random.default_rng(2)
    return model, generator.normal(size=(32, 6)).astype(np.float32), generator.integers(0, 3, 32)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_what_is_zero_or_next_to_it_makes_no_nan(K, jit_compile):
    for tiny in (0.0, 1e-37):
        zeros = tf.function(rounded_to_range, jit_compile=jit_compile)(tf.fill([4], tiny))
        np.testing.assert_array_equal(zeros, np.zeros(4))
        kernel = tf.function(lambda kernel: rounded(kernel, [1]), jit_compile=jit_compile)(tf.fill([4, 2], tiny))
        np.testing.assert_array_equal(kernel, np.zeros((4, 2)))
    model, x, y = classifier(K, K.layers.Dense(8, name="dead"), jit_compile=jit_compile)
    for name in ("first", "dead"):
        layer = model.get_layer(name)
        layer.set_weights([weight * 0 for weight in layer.get_weights()])
    aimp_tf.fine_tune(model, x, y, epochs=1, weights="int8", verbose=0)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_step_that_leaves_updates_to_later_ones_loses_nothing(K):
    class Patient(K.Sequential):
        def train_step(self, data):
            loss, gradients = loss_and_gradients(self, *data)
            pairs = list(zip(gradients, self.trainable_weights, strict=True))
            tf.cond(data[1][0] < 0, lambda: self.optimizer.apply_gradients(pairs) is None, lambda: False)
            return {"loss": loss}

    plain, x, y = classifier(K, K.layers.Dropout(0.0))
    model = Patient(plain.layers)
    model.build((None, 6))
    model.compile(K.optimizers.SGD(0.1))
    before, seen = model.get_weights(), []
    see = K.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(model.get_weights()))
    aimp_tf.fine_tune(model, x, y, epochs=1, batch_size=16, weights="int8", callbacks=[see], verbose=0)
    assert len(seen) == 2
    for weights in seen:
        for one, other in zip(weights, before, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_layer_that_is_never_called_stays_out_of_it(K):
    class Net(K.Model):
        def __init__(self):
            super().__init__()
            self.head, self.unused = K.layers.Dense(3), K.layers.Dense(5)

        def call(self, inputs):
            return self.head(inputs)

    _, x, y = classifier(K, K.layers.Dropout(0.0))
    model = Net()
    model(x)
    model.compile(K.optimizers.SGD(0.1), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()[0]
    aimp_tf.fine_tune(model, x, y, epochs=1, weights="int8", verbose=0)
    assert not np.array_equal(model.get_weights()[0], before)


def test_layers_of_ones_own_and_frozen_ones(K):
    class Own(K.layers.Dense):
        def call(self, inputs):
            outputs = super().call(inputs)
            if K.__name__ == "tf_keras" and tf.reduce_sum(outputs) > 1e9:  # By AutoGraph.
                outputs = -outputs
            return outputs

    model, x, y = classifier(K, Own(8))
    frozen = model.get_layer("first")
    frozen.trainable = False
    model.compile(K.optimizers.SGD(0.1), model.loss)
    before, kernel = frozen.get_weights()[0], np.asarray(model.layers[1].kernel)
    aimp_tf.fine_tune(model, x, y, epochs=1, weights="int8", verbose=0)
    np.testing.assert_array_equal(frozen.get_weights()[0], before)
    assert not np.array_equal(np.asarray(model.layers[1].kernel), kernel)
    recurrent = K.Sequential([K.Input((4, 3)), K.layers.LSTM(4)])
    recurrent.compile("sgd", "mse")
    with pytest.raises(ValueError, match="weights='int8' is for kernels of Dense, EinsumDense and convolution layers"):
        aimp_tf.fine_tune(recurrent, np.zeros((4, 4, 3)), np.zeros((4, 4)), epochs=1, weights="int8", verbose=0)


def test_several_devices_and_unknown_words_are_refused(K):
    model, x, y = small(K)
    with pytest.raises(ValueError, match="weights must be None, 'shared' or 'int8'; got 'int4'"):
        aimp_tf.fine_tune(model, x, y, epochs=1, weights="int4")
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model, x, y = small(K)
    with pytest.raises(ValueError, match="this one was made under MirroredStrategy"):
        aimp_tf.fine_tune(model, x, y, epochs=1, weights="int8", verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [None, "mixed_bfloat16"])
def test_digits_in_int8_are_read_as_well(K, digits, policy):
    """On real data, with weights so few that rounding them shows."""
    x, y = digits[0].reshape(-1, 8, 8, 1), digits[1]
    K.utils.set_random_seed(0)
    layers = [K.Input((8, 8, 1)), K.layers.Conv2D(8, 3, activation="relu", dtype=policy), K.layers.Flatten()]
    model = K.Sequential([*layers, K.layers.Dense(10)])
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(K.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    result = aimp_tf.prune(model, x[:1300], y[:1300], target_sparsity=0.8, epochs=10, method="gradual", verbose=0)
    before = result.model.evaluate(x[1300:], y[1300:], verbose=0)[1]
    aimp_tf.fine_tune(result.model, x[:1300], y[:1300], epochs=2, weights="int8", verbose=0)
    interpreter = tf.lite.Interpreter(model_content=to_tflite(result.model, representative_inputs=x[:200]))
    run = interpreter.get_signature_runner()
    [(name, _)] = run.get_input_details().items()
    [logits] = run(**{name: x[1300:]}).values()
    assert np.mean(logits.argmax(axis=1) == y[1300:]) > before - 0.02
    assert aimp_tf.sparsity(result.model) == pytest.approx(0.8, abs=0.01)
