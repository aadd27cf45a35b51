"""Weights that train as int8 has them."""

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.exporting.lite import to_tflite
from aimp_tf.graph.prunable import prunable_variables
from aimp_tf.training.int8_weights import rounded


def kernels(model):
    return {path: np.asarray(weight) for path, weight in prunable_variables(model).items()}


def test_rounded_weights_are_multiples_of_a_127th_of_the_largest_of_an_output():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)
    kernel[kernel < 0.2] *= 0
    kernel[..., 4] = 0
    found = rounded(tf.constant(kernel)).numpy()
    largest = np.abs(kernel).max(axis=(0, 1, 2))
    steps = found / np.where(largest > 0, largest / 127, 1)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert np.abs(found - kernel).max() <= largest.max() / 254 * 1.001
    np.testing.assert_array_equal(np.abs(found).max(axis=(0, 1, 2)), largest)
    np.testing.assert_array_equal(found[kernel == 0], 0)
    np.testing.assert_allclose(rounded(tf.constant(found)).numpy(), found, rtol=1e-6)


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


def test_gradients_are_those_at_rounded_weights_and_move_the_exact_ones(K):
    """One step of SGD by hand."""
    model, x, y = small(K)
    before, variables = kernels(model), prunable_variables(model)
    at_rounded, _, _ = small(K)
    for variable in prunable_variables(at_rounded).values():
        variable.assign(rounded(tf.convert_to_tensor(variable)))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, at_rounded(x)))
    gradients = tape.gradient(loss, at_rounded.trainable_weights)
    shapes = {
        tuple(weight.shape): gradient for weight, gradient in zip(at_rounded.trainable_weights, gradients, strict=True)
    }
    aimp_tf.fine_tune(model, x, y, epochs=1, batch_size=64, shuffle=False, weights="int8", verbose=0)
    for path, variable in variables.items():
        moved = np.where(before[path] == 0, 0, before[path] - 0.05 * shapes[before[path].shape].numpy())
        np.testing.assert_allclose(np.asarray(variable), rounded(tf.constant(moved)).numpy(), atol=1e-5)


def test_int8_files_hold_the_weights_that_were_trained(K):
    model, x, y = small(K, K.optimizers.Adam(1e-3))
    zeros = {path: kernel == 0 for path, kernel in kernels(model).items()}
    aimp_tf.fine_tune(model, x, y, epochs=3, batch_size=16, weights="int8", verbose=0)
    for path, kernel in kernels(model).items():
        np.testing.assert_array_equal(kernel[zeros[path]], 0)
    interpreter = tf.lite.Interpreter(model_content=to_tflite(model, representative_inputs=x))
    interpreter.allocate_tensors()
    stored = {}
    for details in interpreter.get_tensor_details():
        scales = details["quantization_parameters"]["scales"]
        if details["dtype"] == np.int8 and len(details["shape"]) > 1 and details["shape"][0] > 1 and len(scales) > 1:
            array = interpreter.get_tensor(details["index"]).astype(np.float32)
            array *= scales.reshape(-1, *(1,) * (array.ndim - 1))
            stored[array.size] = np.moveaxis(array, 0, -1)
    assert len(stored) == 3
    for kernel in kernels(model).values():
        np.testing.assert_allclose(stored[kernel.size].reshape(kernel.shape), kernel, atol=1e-6)


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
