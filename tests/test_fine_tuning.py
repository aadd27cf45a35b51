import logging

import numpy as np
import pytest

import aimp_tf


@pytest.fixture
def pruned(make_mlp, blobs):
    """A function that gives a model at 75%, and its kernels."""

    def make():
        model = make_mlp()
        aimp_tf.prune(model, blobs, target_sparsity=0.75, rate=0.75, epochs=1, seed=0, verbose=0)
        return model, kernels(model)

    return make


def kernels(model):
    return {name: np.array(model.get_layer(name).kernel) for name in ("hidden", "logits")}


def test_zeros_stay_and_the_rest_trains(K, pruned, blobs, tmp_path, caplog):
    model, before = pruned()
    model.save(tmp_path / "pruned.keras")
    for start in (model, K.models.load_model(tmp_path / "pruned.keras")):
        history = K.callbacks.History()
        tuned = aimp_tf.fine_tune(start, blobs, epochs=2, callbacks=history, validation_data=blobs, verbose=0)
        assert tuned is start and len(history.history["val_loss"]) == 2
        for name, kernel in kernels(start).items():
            np.testing.assert_array_equal(kernel == 0, before[name] == 0)
            assert (kernel != before[name]).any()
        start.fit(*blobs, verbose=0)  # It is the user's own again.
        assert aimp_tf.sparsity(start) < 0.1
    assert not [record for record in caplog.records if record.name.startswith("aimp_tf")]


def test_examples_come_in_another_order_in_each_epoch(K, pruned, blobs):
    model, _ = pruned()
    seen = []

    def loss(labels, outputs):
        if hasattr(labels, "numpy"):  # Keras 3 tries it first without numbers.
            seen.append(labels.numpy().reshape(-1).tolist())
        return K.losses.mean_squared_error(labels, outputs)

    model.compile(K.optimizers.SGD(0.0), loss, run_eagerly=True)
    positions = np.arange(64.0, dtype="float32")[:, np.newaxis]
    aimp_tf.fine_tune(model, (blobs[0], positions), epochs=3, batch_size=64, verbose=0)
    assert len(set(map(tuple, seen))) == 3 and all(sorted(epoch) == list(range(64)) for epoch in seen)


def test_what_is_wrong_is_said_before_anything_is_trained(pruned, blobs, K):
    model, before = pruned()
    for arguments, error, message in (
        ({"epochs": 0}, ValueError, "epochs must be at least 1; got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be a whole number; got 1.5"),
        ({"epochs": 1, "masks": "zeroes"}, TypeError, "masks must be None, 'zeros', or a dict"),
        (
            {"epochs": 1, "masks": {}},
            ValueError,
            "masks must be of the prunable variables hidden/kernel, logits/kernel",
        ),
        ({"epochs": 1, "callbacks": [3]}, TypeError, "callbacks must be Keras callbacks"),
        ({"epochs": 1, "fit_options": {"batch_size": 3}}, TypeError, "Write its entries as arguments of their own"),
    ):
        with pytest.raises(error, match=message):
            aimp_tf.fine_tune(model, blobs, **arguments, verbose=0)
    for name, kernel in kernels(model).items():
        np.testing.assert_array_equal(kernel, before[name])

    class Fill(K.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.model.get_layer("hidden").kernel.assign(np.ones((8, 16)))

    with pytest.raises(RuntimeError, match="not zero in hidden/kernel"):
        aimp_tf.fine_tune(model, blobs, epochs=1, callbacks=[Fill()], verbose=0)


def test_masks_that_are_given_hold_in_a_loop_of_ones_own(pruned, make_mlp, blobs, caplog):
    model, _ = pruned()
    masks = {"hidden/kernel": np.eye(8, 16, dtype=bool), "logits/kernel": np.ones((16, 3), bool)}
    wrapped = aimp_tf.wrap(make_mlp(), masks=masks)
    wrapped.fit(*blobs, verbose=0)
    kernel = np.array(aimp_tf.strip(wrapped).get_layer("hidden").kernel)
    assert kernel[masks["hidden/kernel"]].all() and not kernel[~masks["hidden/kernel"]].any()
    with caplog.at_level(logging.WARNING):
        aimp_tf.strip(aimp_tf.wrap(model))
        assert "pass masks='zeros'" in caplog.text
        caplog.clear()
        model.get_layer("logits").kernel.assign(np.zeros((16, 3)))
        aimp_tf.strip(aimp_tf.wrap(model, masks="zeros"))
        assert "Nothing is left of logits/kernel" in caplog.text
    with pytest.raises(ValueError, match=r"does not have the structure of granularity='1x4'"):
        aimp_tf.wrap(model, granularity="1x4", masks="zeros")
    model.get_layer("hidden").kernel.assign(np.zeros((8, 16)))
    with pytest.raises(ValueError, match="masks leave nothing"):
        aimp_tf.wrap(model, masks="zeros")
    aimp_tf.strip(aimp_tf.wrap(model))  # What was refused has left nothing behind.


def test_masks_of_some_variables_leave_the_others_free(K, pruned, blobs, caplog):
    """As those of a run that excluded some, or of which some are frozen by now."""
    model, before = pruned()
    masks = {"hidden/kernel": before["hidden"] != 0}
    model.get_layer("logits").trainable = False
    model.compile(K.optimizers.SGD(0.1), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    aimp_tf.fine_tune(model, blobs, epochs=1, masks={**masks, "logits/kernel": before["logits"] != 0}, verbose=0)
    after = kernels(model)
    np.testing.assert_array_equal(after["logits"], before["logits"])
    np.testing.assert_array_equal(after["hidden"] == 0, before["hidden"] == 0)
    model.get_layer("logits").trainable = True
    model.compile(K.optimizers.SGD(0.1), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    aimp_tf.fine_tune(model, blobs, epochs=1, masks=masks, verbose=0)
    assert np.mean(kernels(model)["logits"] == 0) < 0.1
    caplog.clear()
    aimp_tf.strip(aimp_tf.wrap(model, exclude=("hidden/*",)))
    assert f"{np.sum(before['hidden'] == 0)} weights of hidden/kernel are zero" in caplog.text


def test_a_new_recurrent_layer_is_not_taken_for_pruned(K, caplog):
    """Its bias begins as three quarters of zeros."""
    model = K.Sequential([K.layers.InputLayer((4, 3)), K.layers.LSTM(8), K.layers.Dense(2)])
    model.compile("sgd", "mse")
    aimp_tf.strip(aimp_tf.wrap(model, granularity="channel"))
    assert not caplog.records


def test_a_rate_of_zero_is_told(K, pruned, blobs, caplog):
    model, _ = pruned()
    ended = K.optimizers.schedules.PolynomialDecay(0.1, 1, 0.0)
    model.compile(K.optimizers.SGD(ended), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*blobs, verbose=0)
    aimp_tf.fine_tune(model, blobs, epochs=1, verbose=0)
    assert "The learning rate is 0" in caplog.text
