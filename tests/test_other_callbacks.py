import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf import GlobalMagnitudePruning, PruningConfig

SETTINGS = {"target_sparsity": 0.75, "rate": 0.4, "epochs": 6, "round_epochs": 2, "verbose": 0, "seed": 1}
LENGTHS = [2, 2, 2, 6]


@pytest.fixture
def rates_of_batches(K):
    class Rates(K.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.rates = []

        def on_train_begin(self, logs=None):
            self.rates.append([])

        def on_train_batch_end(self, batch, logs=None):
            self.rates[-1].append(round(float(self.model.optimizer.learning_rate.numpy()), 6))

    return Rates()


def steps(epoch, rate=None):
    return [0.1, 0.1, 0.1, 0.01, 0.01, 0.001][epoch]


def halved(epoch, rate):
    return rate / 2


@pytest.mark.slow
@pytest.mark.parametrize("function", [steps, halved])
@pytest.mark.parametrize("schedule", ["compress", "head"])
def test_a_learning_rate_scheduler_follows_the_round(K, make_mlp, blobs, rates_of_batches, function, schedule):
    scheduler = K.callbacks.LearningRateScheduler(function)
    aimp_tf.prune(
        make_mlp(K.optimizers.SGD(0.1)),
        blobs,
        callbacks=[rates_of_batches, scheduler],
        batch_size=16,
        round_schedule=schedule,
        **SETTINGS,
    )
    full, rate = [], 0.1
    for epoch in range(6):
        rate = function(epoch, rate)
        full.append(round(rate, 6))
    # 4 batches an epoch, so 8 in a short round: which epoch of the schedule is each in?
    short = {"compress": [0, 0, 1, 2, 3, 3, 4, 5], "head": [0] * 4 + [1] * 4}[schedule]
    assert rates_of_batches.rates[:3] == [[full[epoch] for epoch in short]] * 3
    assert rates_of_batches.rates[3] == [rate for rate in full for _ in range(4)]
    assert scheduler.schedule is function and type(scheduler) is K.callbacks.LearningRateScheduler


def test_a_scheduler_follows_data_that_does_not_tell_its_length(K, make_mlp, blobs, rates_of_batches, caplog):
    batches = tf.data.Dataset.from_tensor_slices(blobs).batch(16).filter(lambda x, y: True)
    scheduler = K.callbacks.LearningRateScheduler(steps)
    model = make_mlp(K.optimizers.SGD(0.1))
    squeeze = {"round_schedule": "compress"}
    aimp_tf.prune(model, batches, callbacks=[rates_of_batches, scheduler], **SETTINGS, **squeeze)
    squeezed = [steps(epoch) for epoch in [0, 0, 1, 2, 3, 3, 4, 5]]

    def said():
        """Not what TensorFlow says of functions that other tests traced."""
        return [record.getMessage()[:52] for record in caplog.records if record.name.startswith("aimp_tf")]

    assert rates_of_batches.rates[:3] == [squeezed] * 3 and not said()
    rates_of_batches.rates.clear()
    # A loop of one's own knows it from the second round on, and says so.
    masked = aimp_tf.wrap(make_mlp(K.optimizers.SGD(0.1)))
    pruning = GlobalMagnitudePruning(PruningConfig(0.75, rate=0.6, epochs=6, round_epochs=2, **squeeze))
    for _ in range(2):
        masked.fit(batches, epochs=2, callbacks=pruning.among([rates_of_batches, scheduler]), verbose=0)
    assert rates_of_batches.rates[0] == [steps(0)] * 4 + [steps(3)] * 4
    assert said() == ["The training data does not tell how many batches an "]


def test_a_scheduler_goes_on_from_the_rewind_epoch(K, make_mlp, blobs, rates_of_batches):
    aimp_tf.prune(
        make_mlp(K.optimizers.SGD(0.1)),
        blobs,
        callbacks=[
            rates_of_batches,
            K.callbacks.LearningRateScheduler(lambda epoch: [0.6, 0.5, 0.4, 0.3, 0.2, 0.1][epoch]),
        ],
        batch_size=32,
        rewind="weights",
        rewind_epoch=1,
        round_schedule="compress",
        **SETTINGS,
    )
    # 2 batches an epoch. Later rounds pass through half of the schedule, the final one through all but a sixth.
    assert rates_of_batches.rates[0] == [0.6, 0.5, 0.3, 0.2]
    assert rates_of_batches.rates[1:3] == [[0.3, 0.3, 0.2, 0.1]] * 2
    assert rates_of_batches.rates[3] == [0.5, 0.5, 0.5, 0.4, 0.4, 0.3, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1]


def test_early_stopping_and_plateaus_start_afresh(K, make_mlp, blobs):
    """A metric that gets worse all the time, so that both act as soon as they may."""

    class Worse(K.callbacks.Callback):
        rates, epochs = [], []

        def on_epoch_end(self, epoch, logs=None):
            logs["worse"] = float(len(self.rates))
            self.rates.append(float(self.model.optimizer.learning_rate.numpy()))
            self.epochs.append(epoch)

    stopping = K.callbacks.EarlyStopping("worse", patience=1, mode="min")
    plateau = K.callbacks.ReduceLROnPlateau("worse", factor=0.5, patience=1, mode="min", min_delta=0)
    worse = Worse()
    result = aimp_tf.prune(
        make_mlp(K.optimizers.SGD(0.4)), blobs, callbacks=[worse, plateau, stopping], **{**SETTINGS, "round_epochs": 4}
    )
    # The first epoch is the best of each round; the second is worse, which halves the rate and stops the round.
    assert worse.epochs == [0, 1] * 4 and [round_.epochs for round_ in result.rounds] == [2] * 4
    np.testing.assert_allclose(worse.rates, [0.4] * 8)
    assert stopping.stopped_epoch == 1


def test_a_checkpoint_of_the_best_epoch_is_of_the_final_training(K, make_mlp, blobs, tmp_path):
    """Otherwise a dense model of the first round, which may be better, is what stays."""

    class Given(K.callbacks.Callback):
        values = iter([9, 8, 7, 6, 5, 4, 1, 3, 2, 1, 1, 1])

        def on_epoch_end(self, epoch, logs=None):
            logs["given"] = float(next(self.values))

    path = tmp_path / ("best.keras" if K.__name__ == "keras" else "best.h5")
    checkpoint = K.callbacks.ModelCheckpoint(str(path), monitor="given", mode="max", save_best_only=True)
    aimp_tf.prune(make_mlp(), blobs, callbacks=[Given(), checkpoint], **SETTINGS)
    assert aimp_tf.sparsity(K.models.load_model(path)) == 0.75
    assert checkpoint.best == 3.0


def test_ones_own_callbacks_keep_their_records(K, make_mlp, blobs):
    class Own(K.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.epochs = []

        def on_epoch_end(self, epoch, logs=None):
            self.epochs.append(epoch)

    own = Own()
    aimp_tf.prune(make_mlp(), blobs, callbacks=[own], **SETTINGS)
    assert own.epochs == [epoch for length in LENGTHS for epoch in range(length)]


def test_models_and_functions_of_a_callback_are_not_copied(K, make_mlp, blobs):
    teacher = make_mlp()

    class Taught(K.callbacks.EarlyStopping):
        def __init__(self):
            super().__init__("loss")
            self.teachers = [teacher]

    taught = Taught()
    pruning = GlobalMagnitudePruning(PruningConfig(0.75, epochs=2))
    for _ in range(2):
        assert pruning.among([taught]) == [pruning, taught]
        assert taught.teachers[0] is teacher
        taught.teachers.append("left from the last round")
    pruning.among([taught])
    assert taught.teachers == [teacher]


ROUNDS = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 3, "round_epochs": 2, "verbose": 0, "seed": 1}
"""Rounds of 2, 2 and 3 epochs, 4 batches each with 16 examples in a batch."""


@pytest.mark.slow
def test_logs_count_the_epochs_of_the_run(K, make_mlp, blobs, tmp_path, read_events):
    class Own(K.callbacks.TensorBoard):
        epochs = []

        def on_epoch_end(self, epoch, logs=None):
            self.epochs.append(epoch)
            super().on_epoch_end(epoch, logs)

    shown = Own(str(tmp_path / "log"), histogram_freq=1, update_freq=1, profile_batch=0, write_steps_per_second=True)
    rows = K.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    saved = K.callbacks.ModelCheckpoint(str(tmp_path / "epoch_{epoch}.weights.h5"), save_weights_only=True)
    aimp_tf.prune(
        make_mlp(),
        blobs,
        validation_data=blobs,
        callbacks=[shown, rows, saved],
        batch_size=16,
        **ROUNDS,
    )
    events = read_events(tmp_path / "log")
    assert shown.epochs == list(range(7))
    for part in ("train", "validation"):
        assert [step for step, _ in events[part]["epoch_loss"]] == list(range(7))
    histograms = [steps for tag, steps in events["train"].items() if tag.endswith("histogram")]
    assert histograms and all([step for step, _ in steps] == list(range(7)) for steps in histograms)
    for tag in ("batch_loss", "batch_steps_per_second"):
        assert [step for step, _ in events["train"][tag]] == list(range(1, 29))
    assert [step for step, _ in events["validation"]["evaluation_loss_vs_iterations"]] == list(range(4, 29, 4))
    assert len(list((tmp_path / "log" / "train").glob("events*"))) == 1
    assert epochs_in(tmp_path / "log.csv") == [str(epoch) for epoch in range(7)]
    # Files are of the last round that had so many epochs, in the end of the final training.
    assert {path.name for path in tmp_path.glob("*.h5")} == {f"epoch_{epoch}.weights.h5" for epoch in (1, 2, 3)}
    # They are the user's own, as they came.
    assert [type(callback).__module__.split(".")[0] for callback in (rows, saved)] == [K.__name__] * 2
    assert not rows.append and rows.append_header
    make_mlp().fit(*blobs, epochs=2, verbose=0, callbacks=[rows])
    assert epochs_in(tmp_path / "log.csv") == ["0", "1"]


@pytest.mark.slow
def test_logs_of_a_run_that_goes_on_go_on(K, make_mlp, blobs, tmp_path, read_events):
    class Stop(K.callbacks.Callback):
        rounds = 0

        def on_train_begin(self, logs=None):
            self.rounds += 1

        def on_epoch_end(self, epoch, logs=None):
            if self.rounds == 2 and epoch == 1:
                raise KeyboardInterrupt

    def train(*others):
        shown = K.callbacks.TensorBoard(
            str(tmp_path / "log"), update_freq=2, profile_batch=0, write_steps_per_second=True
        )
        rows = K.callbacks.CSVLogger(str(tmp_path / "log.csv"))
        options = {"callbacks": [shown, rows, *others], "workdir": tmp_path / "run", "batch_size": 16}
        aimp_tf.prune(make_mlp(), blobs, **options, **ROUNDS)
        return rows

    stop = Stop()
    with pytest.raises(KeyboardInterrupt):
        train(stop)
    # The first epoch of the second round may have been saved, or is trained again; the second one is.
    told = epochs_in(tmp_path / "log.csv")
    assert told == ["0", "1", "2", "3"]
    train()
    again = epochs_in(tmp_path / "log.csv")
    assert again[:4] == told and again[4:] in (["2", "3", "4", "5", "6"], ["3", "4", "5", "6"])
    events = read_events(tmp_path / "log")
    assert {step for step, _ in events["train"]["epoch_loss"]} == set(range(7))
    assert {step for step, _ in events["train"]["batch_loss"]} == set(range(2, 29, 2))


def test_rounds_that_end_early_count_as_trained(K, make_mlp, blobs, tmp_path):
    """And a round that fails leaves the logger as it came."""

    class Stop(K.callbacks.Callback):
        epochs = 0

        def on_epoch_end(self, epoch, logs=None):
            self.epochs += 1
            self.model.stop_training = self.epochs == 1
            if self.epochs == 4:
                raise KeyboardInterrupt

    rows = K.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    with pytest.raises(KeyboardInterrupt):
        aimp_tf.prune(make_mlp(), blobs, callbacks=[rows, Stop()], **ROUNDS)
    assert epochs_in(tmp_path / "log.csv") == ["0", "1", "2", "3"]
    assert type(rows) is K.callbacks.CSVLogger and not rows.append and rows.append_header


def epochs_in(path):
    """The first column of a CSV file, without its header, of which there is one."""
    first, *others = (line.split(",")[0] for line in path.read_text().splitlines())
    assert first == "epoch" and "epoch" not in others
    return others
