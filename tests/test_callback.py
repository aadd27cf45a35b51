import logging

import numpy as np
import pytest

import aimp_tf
from aimp_tf import GlobalMagnitudePruning, PruningConfig
from aimp_tf.masked_model import MaskedModel, mask_model
from aimp_tf.masked_model.prunable import prunable_variables
from aimp_tf.ranking import keep_largest


@pytest.fixture
def recorder(K):
    """A callback that copies weights, masks and optimizer state where others may not look."""

    def state(model):
        masked = MaskedModel.of(model)
        return {
            "variables": masked.snapshot(),
            "weights": masked.weights(),
            "masks": masked.masks(),
            "slots": [np.array(slot.numpy()) for slot in masked.optimizer._slots],
            "steps": masked.optimizer.steps,
        }

    class Recorder(K.callbacks.Callback):
        begun, epochs, ended = [], [], []

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 0:
                self.begun.append(state(self.model))

        def on_epoch_end(self, epoch, logs=None):
            self.epochs.append(state(self.model))

        def on_train_end(self, logs=None):
            self.ended.append(state(self.model))

    return Recorder()


def run(model, data, config, *callbacks):
    """The documented loop, the pruning callback last. Returns it and the stripped model."""
    masked = aimp_tf.wrap(model, config.include, config.exclude)
    pruning = GlobalMagnitudePruning(config)
    while not pruning.finished:
        masked.fit(*data, epochs=pruning.next_epochs, verbose=0, shuffle=False, callbacks=[*callbacks, pruning])
    return pruning, aimp_tf.strip(masked)


CONFIG = PruningConfig(target_sparsity=0.75, rate=0.4, epochs=3, round_epochs=2)


@pytest.mark.parametrize("rewind", ["weights", "learning_rate"])
def test_a_run_follows_the_algorithm(make_mlp, blobs, recorder, rewind):
    """Each round re-enacted from the recorded states alone."""
    config = CONFIG.replace(rewind=rewind)
    pruning, model = run(make_mlp(), blobs, config, recorder)
    n = 8 * 16 + 16 * 3
    kept = [n, round(n * 0.6), round(n * 0.36), n - round(0.75 * n)]
    assert [round_.kept for round_ in pruning.rounds] == kept
    assert [round_.epochs for round_ in pruning.rounds] == [2, 2, 2, 3]
    assert [round_.sparsity for round_ in pruning.rounds] == [1 - k / n for k in kept]
    assert len(recorder.begun) == len(recorder.ended) == 4

    snapshot = recorder.begun[0]["variables"]
    paths = {index: path for index, path in enumerate(_paths_of(model))}
    for previous, begun, ended, count in zip(
        recorder.ended, recorder.begun[1:], recorder.ended[1:], kept[1:], strict=False
    ):
        expected_masks = keep_largest(previous["weights"], previous["masks"], count)
        for path, mask in expected_masks.items():
            np.testing.assert_array_equal(begun["masks"][path], mask)
            np.testing.assert_array_equal(ended["masks"][path], mask)
            assert not np.any(mask & ~previous["masks"][path]), "a pruned weight came back"
        source = snapshot if rewind == "weights" else previous["variables"]
        for index, value in enumerate(begun["variables"]):
            mask = expected_masks.get(paths[index])
            np.testing.assert_array_equal(value, source[index] if mask is None else np.where(mask, source[index], 0))
        assert begun["steps"] == 0 and ended["steps"] > 0
        assert not any(slot.any() for slot in begun["slots"]) and any(slot.any() for slot in ended["slots"])
    assert aimp_tf.sparsity(model) == pytest.approx(0.75)


def _paths_of(model):
    paths = {id(variable): path for path, variable in prunable_variables(model).items()}
    return [paths.get(id(variable)) for variable in model.weights]


def test_pruned_weights_are_zero_at_every_epoch_end(make_mlp, blobs, recorder):
    """The recorder stands before the pruning callback, as a checkpoint of the user's may."""
    run(make_mlp(), blobs, CONFIG, recorder)
    assert len(recorder.epochs) == 2 + 2 + 2 + 3
    for state in recorder.epochs:
        for path, mask in state["masks"].items():
            assert np.all(state["weights"][path][~mask] == 0.0)


def test_batch_normalisation_is_rewound(make_mlp, blobs, recorder):
    _, model = run(make_mlp(), blobs, CONFIG.replace(rewind="weights"), recorder)
    index = [variable is model.get_layer("norm").moving_variance for variable in model.weights].index(True)
    assert np.all(recorder.begun[1]["variables"][index] == 1.0)
    assert np.all(recorder.ended[0]["variables"][index] != 1.0)


def test_the_train_function_is_traced_once(K, blobs):
    traces = []

    class Counted(K.Model):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    inputs = K.Input((8,))
    model = Counted(inputs, K.layers.Dense(3)(K.layers.Dense(16, activation="relu")(inputs)))
    schedule = K.optimizers.schedules.ExponentialDecay(0.1, 2, 0.9)
    model.compile(K.optimizers.SGD(schedule, momentum=0.9), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    pruning, _ = run(model, blobs, CONFIG)
    assert len(pruning.rounds) == 4
    assert len(traces) == 1


def test_a_short_round_runs_through_the_whole_schedule(K, make_mlp, blobs):
    schedule = K.optimizers.schedules.PiecewiseConstantDecay([5], [0.1, 0.01])
    model = make_mlp(K.optimizers.SGD(schedule))
    rates = []

    class Rates(K.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            # 2 batches an epoch, so these are the rates of steps 0, 2, 4, ...
            optimizer = self.model.optimizer
            rates[-1].append(round(float(optimizer._learning_rate(optimizer.iterations)), 6))

        def on_train_begin(self, logs=None):
            rates.append([])

    _, model = run(model, blobs, PruningConfig(target_sparsity=0.5, rate=0.5, epochs=6, round_epochs=2), Rates())
    # The drop after step 5 of 12 comes after step 5 / 3 of the 4 steps of a short round.
    assert rates == [[0.1, 0.01], [0.1, 0.1, 0.1, 0.01, 0.01, 0.01]]
    assert model.optimizer._learning_rate is schedule


def test_a_changed_constant_rate_is_as_it_was_in_the_next_round(make_mlp, K, blobs):
    rates = []

    class Lower(K.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate.numpy()))
            self.model.optimizer.learning_rate.assign(rates[-1] / 2)

    run(make_mlp(K.optimizers.SGD(0.5)), blobs, CONFIG, Lower())
    assert rates == [0.5, 0.25] * 3 + [0.5, 0.25, 0.125]


def test_a_layer_left_empty_is_reported_by_name(K, blobs, caplog):
    model = K.Sequential([K.Input((8,)), K.layers.Dense(16, name="large"), K.layers.Dense(3, name="tiny")])
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.get_layer("tiny").kernel.assign(np.full((16, 3), 1e-6))
    model.get_layer("large").kernel.assign(np.full((8, 16), 1.0))
    model.optimizer.learning_rate.assign(1e-9)
    with caplog.at_level(logging.WARNING, "aimp_tf"):
        pruning, _ = run(model, blobs, PruningConfig(0.5, rate=0.5, epochs=1))
    assert pruning.rounds[0].emptied == () and pruning.rounds[1].emptied == ("tiny/kernel",)
    assert [record.message for record in caplog.records if "leaves nothing of tiny/kernel" in record.message]


def test_a_loss_that_is_not_finite_stops_the_run(make_mlp, K, blobs):
    x, y = blobs
    masked = aimp_tf.wrap(make_mlp())
    pruning = GlobalMagnitudePruning(CONFIG)
    masked.fit(x, y, epochs=2, verbose=0, callbacks=[pruning])
    with pytest.raises(RuntimeError, match="loss became nan in epoch 1 of round 2.*Lower the learning rate"):
        masked.fit(x, y, sample_weight=np.full(64, np.nan), epochs=2, verbose=0, callbacks=[pruning])
    assert len(pruning.rounds) == 1


def test_weights_that_are_not_finite_are_named_and_masks_stay(make_mlp, blobs):
    masked = mask_model(make_mlp())
    pruning = GlobalMagnitudePruning(CONFIG)
    masked.model.fit(*blobs, epochs=2, verbose=0, callbacks=[pruning])
    masked._variables["logits/kernel"].assign(np.full((16, 3), np.nan))
    with pytest.raises(RuntimeError, match="NaN or infinite.*: logits/kernel"):
        masked.model.fit(*blobs, epochs=2, verbose=0, callbacks=[pruning])
    assert all(mask.all() for mask in masked.masks().values())


def test_weights_that_become_nan_in_the_final_training_are_found(K, blobs):
    """Where no ranking follows, and no loss is reported."""

    class Own(K.Model):
        def train_step(self, data):
            super().train_step(data)
            return {"objective": 0.0}

    inputs = K.Input((8,))
    model = Own(inputs, K.layers.Dense(3, name="out")(inputs))
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    masked = aimp_tf.wrap(model)
    pruning = GlobalMagnitudePruning(PruningConfig(0.5, rate=0.5, epochs=1))
    masked.fit(*blobs, verbose=0, callbacks=[pruning])
    with pytest.raises(RuntimeError, match="NaN or infinite weights: out/kernel"):
        masked.fit(*blobs, sample_weight=np.full(64, np.nan), verbose=0, callbacks=[pruning])
    assert not pruning.finished


def test_weights_set_behind_the_masks_are_found(make_mlp, K, blobs):
    class Vandal(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            for variable in self.model.trainable_variables:
                variable.assign(np.ones(variable.shape))

    masked = aimp_tf.wrap(make_mlp())
    pruning = GlobalMagnitudePruning(CONFIG)
    masked.fit(*blobs, epochs=2, verbose=0, callbacks=[pruning])
    with pytest.raises(RuntimeError, match="not zero in hidden/kernel, logits/kernel"):
        masked.fit(*blobs, epochs=2, verbose=0, callbacks=[pruning, Vandal()])


@pytest.mark.parametrize("round_", [0, 1])
def test_an_interrupted_round_begins_anew(make_mlp, K, blobs, recorder, round_):
    class Interrupt(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    masked = aimp_tf.wrap(make_mlp())
    pruning = GlobalMagnitudePruning(CONFIG.replace(rewind="weights"))

    def fit(*callbacks):
        masked.fit(*blobs, epochs=pruning.next_epochs, verbose=0, callbacks=[pruning, recorder, *callbacks])

    for _ in range(round_):
        fit()
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupt())
    while not pruning.finished:
        fit()
    n = 8 * 16 + 16 * 3
    assert [round_.kept for round_ in pruning.rounds] == [n, round(n * 0.6), round(n * 0.36), n - round(0.75 * n)]
    interrupted, repeated = recorder.begun[round_ : round_ + 2]
    assert recorder.epochs[2 * round_]["steps"] > 0 and repeated["steps"] == 0
    for before, after in zip(interrupted["variables"], repeated["variables"], strict=True):
        np.testing.assert_array_equal(before, after)


def test_misuse_is_refused(make_mlp, blobs):
    with pytest.raises(ValueError, match="target_sparsity must lie"):
        GlobalMagnitudePruning(PruningConfig(2.0, epochs=3))
    pruning = GlobalMagnitudePruning(CONFIG)
    with pytest.raises(RuntimeError, match="needs a masked model.*aimp_tf.wrap"):
        make_mlp().fit(*blobs, epochs=2, verbose=0, callbacks=[pruning])
    masked = aimp_tf.wrap(make_mlp())
    with pytest.raises(ValueError, match="epochs=5, but the next round trains 2"):
        masked.fit(*blobs, epochs=5, verbose=0, callbacks=[pruning])
    while not pruning.finished:
        masked.fit(*blobs, epochs=pruning.next_epochs, verbose=0, callbacks=[pruning])
    with pytest.raises(RuntimeError, match="run is finished"):
        masked.fit(*blobs, epochs=1, verbose=0, callbacks=[pruning])
