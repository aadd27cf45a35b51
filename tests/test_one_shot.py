"""one_shot: on real data (scikit-learn's digits), in both generations of Keras."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf


@pytest.fixture
def trained(K, digits):
    """A small convolutional network that has learned the digits, and its images."""
    K.utils.set_random_seed(0)
    L = K.layers
    convolutions = [
        layer
        for filters in (16, 16)
        for layer in (
            L.Conv2D(filters, 3, padding="same", use_bias=False),
            L.BatchNormalization(momentum=0.9),
            L.ReLU(),
        )
    ]
    model = K.Sequential([K.Input((8, 8, 1)), *convolutions, L.MaxPooling2D(4), L.Flatten(), L.Dense(10, name="head")])
    model.compile(
        K.optimizers.Adam(3e-3), K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    x, y = digits[0].reshape(-1, 8, 8, 1), digits[1]
    model.fit(x[:1200], y[:1200], epochs=8, batch_size=64, verbose=0)
    return model, (x[:1200], y[:1200]), (x[1200:], y[1200:])


CHANNELS = {"granularity": "channel", "budget": "flops", "target_sparsity": 0.5, "batch_size": 64}


def test_what_is_left_is_repaired_and_recalibrated(trained):
    model, data, test = trained
    weights, steps = model.get_weights(), int(np.asarray(model.optimizer.iterations))
    accuracies = {}
    for recalibrate in (0, 16):
        for repair in (False, True):
            model.set_weights(weights)
            result = aimp_tf.one_shot(
                model, *data, validation_data=test, repair=repair, recalibrate_batches=recalibrate, **CHANNELS
            )
            accuracies[repair, bool(recalibrate)] = result.rounds[0].metrics["val_accuracy"]
            assert result.model is model and result.budget.kept <= result.budget.asked == result.budget.dense // 2
    dense = result.outcome.dense_metrics["val_accuracy"]
    assert dense > 0.93
    assert accuracies[True, True] > accuracies[False, True] + 0.05
    assert accuracies[True, True] > accuracies[False, False] + 0.1
    assert dense - accuracies[True, True] < 0.2
    assert "without training" in result.summary() and "not trained" in repr(result)
    assert int(np.asarray(model.optimizer.iterations)) == steps
    # What it says of the model is what the model does, the small one included.
    measured = model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]
    assert measured == pytest.approx(accuracies[True, True])
    small = result.compact()
    assert small.count_params() < 0.8 * model.count_params()
    np.testing.assert_allclose(np.asarray(small(test[0])), np.asarray(model(test[0])), rtol=1e-3, atol=1e-3)


def test_recalibrated_statistics_are_the_means_of_the_batches(K, trained):
    model, (x, y), _ = trained
    aimp_tf.one_shot(model, x[:128], target_sparsity=0.1, repair=False, recalibrate_batches=2, batch_size=64, seed=4)
    norm = next(layer for layer in model.layers if "batch_normalization" in layer.name)
    inputs = np.asarray(K.Model(model.inputs, model.layers[0].output)(x[:128]))
    np.testing.assert_allclose(np.asarray(norm.moving_mean), inputs.mean(axis=(0, 1, 2)), rtol=1e-3, atol=1e-4)
    assert norm.momentum == 0.9


@pytest.mark.parametrize("replicas", [1, 2])
def test_recalibrated_statistics_are_the_means_of_all_calls(K, strategy, replicas):
    generator = np.random.default_rng(0)
    x = [generator.normal(mean, 1, (96, 6)).astype(np.float32) for mean in (0, 10)]
    with strategy.scope() if replicas > 1 else contextlib.nullcontext():
        norm, inputs = K.layers.BatchNormalization(), [K.Input((6,)) for _ in x]
        model = K.Model(inputs, K.layers.Dense(4)(K.layers.Concatenate()([norm(each) for each in inputs])))
        model.compile("sgd", "mse")
    for batches in (1, 3):
        aimp_tf.one_shot(
            model, x, target_sparsity=0.1, repair=False, recalibrate_batches=batches, batch_size=96 // batches
        )
        np.testing.assert_allclose(np.asarray(norm.moving_mean), np.mean(x, axis=(0, 1)), rtol=1e-3)
    assert norm.momentum == 0.99


def test_single_weights(trained):
    model, data, test = trained
    weights, accuracies = model.get_weights(), []
    for repair in (False, True):
        model.set_weights(weights)
        result = aimp_tf.one_shot(
            model, *data, validation_data=test, repair=repair, target_sparsity=0.8, scope="layer", batch_size=64
        )
        accuracies.append(result.rounds[0].metrics["val_accuracy"])
        assert result.sparsity == pytest.approx(0.8, abs=1e-3)
    assert accuracies[1] > accuracies[0] + 0.05


def test_a_few_batches_are_read_of_data_without_end(K):
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    data, weights = tf.data.Dataset.from_tensor_slices(x).batch(16), []
    for given in (data, data.repeat()):
        K.utils.set_random_seed(0)
        model = K.Sequential([K.Input((6,)), K.layers.BatchNormalization(), K.layers.Dense(8), K.layers.Dense(4)])
        model.compile("sgd", "mse")
        aimp_tf.one_shot(model, given, target_sparsity=0.5, criterion_batches=4, recalibrate_batches=4)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_has_to_do_with_training_is_refused(trained):
    model, data, _ = trained
    before = model.get_weights()
    for settings, error, message in (
        ({"epochs": 3}, TypeError, "one_shot does not heed epochs"),
        ({"rewind": "weights"}, TypeError, "one_shot does not heed rewind"),
        ({"target_sparsity": 1.2}, ValueError, "must lie in"),
        ({}, TypeError, "target_sparsity must be given"),
        ({"target_sparsity": 0.5, "recalibrate_batches": -1}, ValueError, "recalibrate_batches must be a whole number"),
    ):
        with pytest.raises(error, match=message):
            aimp_tf.one_shot(model, *data, **settings)
    with pytest.raises(TypeError, match="No training data came"):
        aimp_tf.one_shot(model, target_sparsity=0.5)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_is_as_it_was_where_something_fails(trained, monkeypatch):
    model, data, _ = trained
    before = model.get_weights()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("aimp_tf.post_training.recalibrate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        aimp_tf.one_shot(model, *data, target_sparsity=0.5, batch_size=64)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    monkeypatch.undo()
    assert aimp_tf.one_shot(model, *data, target_sparsity=0.5, batch_size=64).sparsity == pytest.approx(0.5, abs=0.001)


def test_a_model_without_layers_to_repair(K, digits):
    model = K.Sequential([K.Input((8, 8)), K.layers.LSTM(8)])
    model.compile("adam", "mse")
    x = digits[0][:64].reshape(-1, 8, 8)
    with pytest.raises(ValueError, match="repair corrects kernels of Dense layers and plain convolutions"):
        aimp_tf.one_shot(model, x, target_sparsity=0.5)
    assert aimp_tf.one_shot(model, x, target_sparsity=0.5, repair=False).sparsity == 0.5
