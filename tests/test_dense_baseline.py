"""Made-up data: this tests mechanics only."""

import json
import random

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.masking import mask_model
from aimp_tf.pruning.dense_baseline import _left_as_it_was

SETTINGS = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 3, "round_epochs": 2, "verbose": 0, "seed": 1}
DENSE = {"target_sparsity": 0.75, "epochs": 3, "method": "dense", "verbose": 0, "seed": 1}


@pytest.fixture
def make(K):
    def make():
        K.utils.set_random_seed(0)
        model = K.Sequential(
            [
                K.Input((8,)),
                K.layers.Dense(16, activation="relu", name="hidden"),
                K.layers.BatchNormalization(),
                *([K.layers.Dropout(0.3, seed=3)] if K.__name__ == "keras" else []),
                K.layers.Dense(3, name="logits"),
            ]
        )
        model.compile(
            K.optimizers.Adam(0.01), K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
        )
        return model

    return make


def counter(K):
    class Count(K.callbacks.Callback):
        fits = 0

        def on_train_begin(self, logs=None):
            self.fits += 1

    return Count()


def test_a_baseline_is_the_dense_training_and_changes_nothing(K, make, blobs):
    settings = {**SETTINGS, "criterion": "random", "final_rewind": "reinitialize", "validation_data": blobs}
    plain = aimp_tf.prune(make(), *blobs, **settings)
    result = aimp_tf.prune(make(), *blobs, **settings, dense_baseline=True)
    for here, there in zip(result.model.get_weights(), plain.model.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)
    assert [round_.metrics for round_ in result.rounds] == [round_.metrics for round_ in plain.rounds]
    dense = aimp_tf.prune(make(), *blobs, **DENSE, validation_data=blobs)
    assert result.outcome.dense_metrics == dense.rounds[-1].metrics and result.outcome.dense_epochs == 3
    assert plain.outcome.dense_metrics is None
    assert result.outcome.examples == plain.outcome.examples == len(blobs[1])
    (line,) = [line for line in result.summary().splitlines() if line.startswith("The dense model, after 3 epochs: ")]
    assert f"loss {dense.rounds[-1].metrics['loss']:.4f} (pruned: {plain.rounds[-1].metrics['loss']:.4f})" in line


@pytest.mark.slow
def test_as_many_epochs_as_asked(K, make, blobs):
    model = make()
    longer = aimp_tf.prune(make(), *blobs, **SETTINGS, dense_baseline=5).outcome
    dense = aimp_tf.prune(make(), *blobs, **{**DENSE, "epochs": 5})
    assert longer.dense_epochs == 5 and longer.dense_metrics == dense.rounds[-1].metrics
    model.fit(*blobs, epochs=2, verbose=0)
    loss = model.evaluate(*blobs, verbose=0, return_dict=True)["loss"]
    for settings in ({"start": "trained", "dense_baseline": True}, {"dense_baseline": 0}):
        outcome = aimp_tf.prune(model, *blobs, **SETTINGS, **settings, validation_data=blobs).outcome
        assert outcome.dense_epochs == 0
        if "start" in settings:
            assert outcome.dense_metrics["val_loss"] == pytest.approx(loss, rel=1e-5)
    total = {**SETTINGS, "epochs": None, "round_epochs": None, "total_epochs": 9}
    assert aimp_tf.prune(make(), *blobs, **total, dense_baseline=True).outcome.dense_epochs == 7


@pytest.mark.slow
def test_a_run_that_goes_on_has_its_baseline(K, make, blobs, tmp_path):
    seen, fits = counter(K), []

    class Watch(K.callbacks.TerminateOnNaN):
        """One of Keras' own for all that the baseline can tell, so that it is heeded."""

        def on_train_begin(self, logs=None):
            fits.append(logs)

    Watch.__module__, Watch.__name__ = K.callbacks.TerminateOnNaN.__module__, "TerminateOnNaN"
    settings = {**SETTINGS, "workdir": tmp_path / "run"}
    first = aimp_tf.prune(make(), *blobs, **settings, dense_baseline=2)
    stored = json.loads((tmp_path / "run" / "outcome.json").read_text())
    assert stored["dense_metrics"] == first.outcome.dense_metrics and stored["gzip_bytes"][1] < stored["gzip_bytes"][0]
    logged = (tmp_path / "run" / "metrics.jsonl").read_text()
    again = aimp_tf.prune(make(), *blobs, **settings, dense_baseline=2, callbacks=[seen, Watch()])
    assert again.outcome.dense_metrics == first.outcome.dense_metrics and seen.fits == 0 and not fits
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == logged
    assert aimp_tf.prune(make(), *blobs, **settings).outcome.dense_metrics == first.outcome.dense_metrics
    shorter = aimp_tf.prune(make(), *blobs, **settings, dense_baseline=1, callbacks=Watch())
    assert shorter.outcome.dense_epochs == len(fits) == 1


@pytest.mark.slow
def test_callbacks_that_train_otherwise_are_heeded_and_no_others(K, make, blobs, tmp_path):
    own = counter(K)
    rates = []

    def rate(epoch, lr):
        rates.append(epoch)
        return 0.01

    callbacks = [own, K.callbacks.LearningRateScheduler(rate), K.callbacks.CSVLogger(str(tmp_path / "log.csv"))]
    settings = {**SETTINGS, "round_schedule": "compress"}
    aimp_tf.prune(make(), *blobs, **settings, dense_baseline=True, callbacks=callbacks)
    # Each round passes through all of the schedule.
    assert own.fits == 3 and rates == 4 * [0, 1, 2]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + 2 + 2 + 3


@pytest.mark.slow
def test_a_longer_baseline_passes_through_the_schedule_once(K, make, blobs):
    def with_rate_0_from(step):
        model = make()
        model.compile(
            K.optimizers.SGD(K.optimizers.schedules.PiecewiseConstantDecay([step - 1], [0.1, 0.0])),
            K.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        return model

    # Two epochs of four steps, the last two of them at rate 0; so are the last four in twice as many epochs.
    settings = {**SETTINGS, "epochs": 2, "round_epochs": 1, "batch_size": 16}
    stretched = aimp_tf.prune(with_rate_0_from(7), *blobs, **settings, dense_baseline=4).outcome.dense_metrics["loss"]
    dense = {**DENSE, "epochs": 4, "batch_size": 16}
    losses = [
        aimp_tf.prune(with_rate_0_from(step), *blobs, **dense).rounds[-1].metrics["loss"]
        for step in (7, 11, 12, 13, 14, 15)
    ]
    assert stretched != pytest.approx(losses[0], rel=1e-3)
    assert any(stretched == pytest.approx(loss, rel=1e-5) for loss in losses[1:])


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_what_data_draws_by_itself_is_drawn_again_after_a_baseline(make):
    masked = mask_model(make())
    np.random.seed(1)
    random.seed(1)
    with _left_as_it_was(masked):
        drawn = np.random.random(), random.random()
    assert (np.random.random(), random.random()) == drawn


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_baseline_has_the_data_read_for_its_epochs_alone(make, blobs):
    """Of data that does not tell its length, which gradual pruning has counted."""
    reads = []

    def batches():
        reads.append(1)
        yield from (tuple(array[i : i + 16] for array in blobs) for i in range(0, 64, 16))

    spec = (tf.TensorSpec((None, 8)), tf.TensorSpec((None,), tf.int64))
    settings = {"target_sparsity": 0.5, "epochs": 2, "method": "gradual", "verbose": 0}
    for baseline in (False, 1):
        data = tf.data.Dataset.from_generator(batches, output_signature=spec)
        aimp_tf.prune(make(), data, dense_baseline=baseline, **settings)
    assert len(reads) == (1 + 2) + (1 + 2 + 1)


@pytest.mark.slow
def test_a_baseline_that_stops_early_tells_its_epochs(K, make, blobs):
    stop = K.callbacks.EarlyStopping("loss", min_delta=10.0, patience=1)
    result = aimp_tf.prune(make(), *blobs, **{**SETTINGS, "epochs": 6}, dense_baseline=True, callbacks=stop)
    assert result.outcome.dense_epochs == 2 < result.config.epochs


@pytest.mark.slow
def test_a_shorter_baseline_is_not_taken_for_a_longer_one_that_stopped(make, blobs, tmp_path, K):
    settings = {**SETTINGS, "workdir": tmp_path / "run"}
    for asked, trained in ((1, 1), (True, 3), (True, 3)):
        callbacks = K.callbacks.EarlyStopping("loss", patience=9)
        result = aimp_tf.prune(make(), *blobs, **settings, dense_baseline=asked, callbacks=callbacks)
        assert result.outcome.dense_epochs == trained


def test_what_a_run_refuses_is_refused_before_its_baseline(K, make, blobs, tmp_path):
    aimp_tf.prune(make(), *blobs, **SETTINGS, workdir=tmp_path / "run")
    for settings, message in (
        ({"min_layer_survivors": 99}, "Relax them"),
        ({"validation_data": (np.zeros((4, 9)), np.zeros(4, int))}, "cannot be evaluated on validation_data"),
        ({"workdir": tmp_path / "run", "rate": 0.4}, "holds another run"),
        ({"workdir": tmp_path / "run", "export_to": tmp_path / "run" / "final"}, "lies in workdir"),
    ):
        model = make()
        before = model.get_weights()
        with pytest.raises(ValueError, match=message):
            aimp_tf.prune(model, *blobs, **{**SETTINGS, **settings}, dense_baseline=True)
        assert not int(np.asarray(model.optimizer.iterations))
        for here, there in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(here, there)


def test_what_has_no_dense_baseline_is_refused(make, blobs):
    config = aimp_tf.PruningConfig(0.75, epochs=3)
    dense = config.replace(method="dense")
    for settings, error, message in (
        ({"dense_baseline": -1}, ValueError, "must not be negative; got -1"),
        ({"dense_baseline": 0.5}, TypeError, "must be True, False or a number of epochs; got 0.5"),
        ({"dense_baseline": True, "config": dense}, ValueError, "method='dense' is that training"),
        ({"dense_baseline": True, "masks": "zeros"}, ValueError, "the model is pruned already"),
        ({"dense_baseline": 0}, ValueError, "on validation data alone"),
        ({"dense_baseline": True, "start": "trained"}, ValueError, "or validation_split=0.1, or leave out"),
    ):
        model = make()
        before = model.get_weights()
        with pytest.raises(error, match=message):
            aimp_tf.prune(model, *blobs, **{"config": config, **settings})
        for here, there in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(here, there)
