import contextlib
import copy
import itertools
import logging
import pickle
import re

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf import GlobalMagnitudePruning, PruningConfig
from aimp_tf.graph.prunable import prunable_variables
from aimp_tf.masking import MaskedModel, mask_model
from aimp_tf.selection import criteria
from aimp_tf.selection.planning import ramp_survivors
from aimp_tf.selection.ranking import keep_largest


@pytest.fixture
def recorder(K):
    """A callback that copies weights, masks and optimizer state where others may not look."""

    def state(model):
        masked = MaskedModel.of(model)
        return {
            "variables": masked.snapshot(),
            "weights": dict(masked.weights()),
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
    masked = aimp_tf.wrap(model, config)
    pruning = GlobalMagnitudePruning(config)
    while not pruning.finished:
        masked.fit(*data, epochs=pruning.next_epochs, verbose=0, shuffle=False, callbacks=[*callbacks, pruning])
    return pruning, aimp_tf.strip(masked)


CONFIG = PruningConfig(target_sparsity=0.75, rate=0.4, epochs=3, round_epochs=2)
SHRUNK_TO_0_7 = CONFIG.replace(shrink=0.7 ** (500 / 4))
"""For after a round of n steps, the weights shrink by shrink ** (n / 500), and `blobs` are 4 steps."""


@pytest.mark.parametrize(
    ("config", "shrink"),
    [
        (CONFIG.replace(rewind="weights"), 1),
        (CONFIG.replace(shrink=1.0), 1),
        (CONFIG, 0.7 ** (4 / 500)),
        (SHRUNK_TO_0_7, 0.7),
    ],
    ids=["weights", "kept", "default", "shrunk"],
)
def test_a_run_follows_the_algorithm(K, make_mlp, blobs, recorder, config, shrink):
    """Each round re-enacted from the recorded states alone."""
    pruning, model = run(make_mlp(K.optimizers.SGD(0.5, momentum=0.9)), blobs, config, recorder)
    n = 8 * 16 + 16 * 3
    kept = [n, round(n * 0.6), round(n * 0.36), n - round(0.75 * n)]
    assert [round_.kept for round_ in pruning.rounds] == kept
    assert [round_.epochs for round_ in pruning.rounds] == [2, 2, 2, 3]
    assert [round_.sparsity for round_ in pruning.rounds] == [1 - k / n for k in kept]
    assert len(recorder.begun) == len(recorder.ended) == 4

    snapshot = recorder.begun[0]["variables"]
    paths = {index: path for index, path in enumerate(_paths_of(model))}
    factors = [{layer.path: layer.shrink for layer in round_.layers} for round_ in pruning.rounds]
    for previous, begun, ended, count, shrunk in zip(
        recorder.ended, recorder.begun[1:], recorder.ended[1:], kept[1:], factors[1:], strict=False
    ):
        expected_masks = keep_largest(previous["weights"], previous["masks"], count)
        for path, mask in expected_masks.items():
            np.testing.assert_array_equal(begun["masks"][path], mask)
            np.testing.assert_array_equal(ended["masks"][path], mask)
            assert not np.any(mask & ~previous["masks"][path]), "a pruned weight came back"
        source = snapshot if config.rewind == "weights" else previous["variables"]
        for index, value in enumerate(begun["variables"]):
            mask, before = expected_masks.get(paths[index]), source[index]
            expected = before if mask is None else np.where(mask, np.float32(shrunk[paths[index]]) * before, 0)
            np.testing.assert_array_equal(value, expected)
        assert begun["steps"] == 0 and ended["steps"] > 0
        assert not any(slot.any() for slot in begun["slots"]) and any(slot.any() for slot in ended["slots"])
    assert aimp_tf.sparsity(model) == pytest.approx(0.75)
    factors = [factor for shrunk in factors for factor in set(shrunk.values())]
    assert factors[:2] == pytest.approx([1, shrink], rel=1e-12)
    assert shrink <= min(factors[2:]) + 1e-12 and max(factors[2:]) <= shrink**0.3


def test_weights_that_a_round_moves_little_shrink_little(K, make_mlp, blobs, recorder, caplog):
    caplog.set_level(logging.INFO, "aimp_tf")
    pruning, _ = run(make_mlp(K.optimizers.SGD(0.2)), blobs, SHRUNK_TO_0_7, recorder)
    factors = [round_.layers[0].shrink for round_ in pruning.rounds]
    for begun, ended, following, factor in zip(
        recorder.begun, recorder.ended, recorder.begun[1:], factors[1:], strict=False
    ):
        first, last = (_joined(state["weights"]) for state in (begun, ended))
        assert factor == pytest.approx(1 - 3 * (np.linalg.norm(last - first) / np.linalg.norm(last)) ** 2)
        assert 0.8 < factor < 0.997
        np.testing.assert_allclose(
            _joined(following["weights"]), factor * last * _joined(following["masks"]), rtol=1e-6
        )
    (second,) = [record.message for record in caplog.records if record.message.startswith("Round 2 of 4")]
    assert f"(106 of 176 weights kept, each shrunk to {factors[1]:.1%})" in second


def test_a_fit_that_is_called_again_shrinks_nothing_twice(K, make_mlp, blobs, recorder):
    class Interrupt(K.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise KeyboardInterrupt

    masked = aimp_tf.wrap(make_mlp(K.optimizers.SGD(0.5, momentum=0.9)))
    pruning = GlobalMagnitudePruning(SHRUNK_TO_0_7)
    masked.fit(*blobs, epochs=pruning.next_epochs, verbose=0, callbacks=[recorder, pruning])
    for others in ([recorder, Interrupt()], [recorder]):
        with contextlib.suppress(KeyboardInterrupt):
            masked.fit(*blobs, epochs=pruning.next_epochs, verbose=0, callbacks=[*others, pruning])
    first, interrupted, again = (_joined(state["weights"]) for state in (*recorder.ended[:1], *recorder.begun[1:3]))
    np.testing.assert_array_equal(interrupted, np.float32(0.7) * first * _joined(recorder.begun[1]["masks"]))
    np.testing.assert_array_equal(again, interrupted)
    assert [layer.shrink for layer in pruning.rounds[1].layers] == pytest.approx([0.7] * 2, rel=1e-12)


def test_shrunk_weights_meet_the_constraints_of_the_user(K, blobs, recorder):
    hidden = K.layers.Dense(16, kernel_constraint=K.constraints.UnitNorm(axis=0), name="hidden")
    model = K.Sequential([K.Input((8,)), hidden, K.layers.Dense(3)])
    model.compile(K.optimizers.SGD(0.5), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    pruning, _ = run(model, blobs, SHRUNK_TO_0_7, recorder)
    for round_ in pruning.rounds[1:]:
        assert round_.layers[0].shrink == 1 > round_.layers[1].shrink  # UnitNorm would grow it again.
    for begun in recorder.begun[1:]:
        (kernel,) = (value for path, value in begun["weights"].items() if "hidden" in path)
        norms = np.linalg.norm(kernel, axis=0)
        np.testing.assert_allclose(norms, norms > 0, rtol=1e-5)


def _joined(arrays):
    return np.concatenate([array.ravel() for array in arrays.values()])


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


@pytest.fixture
def make_counted(K):
    """A function that makes a compiled model, and a list that grows when its train step is traced."""

    def make(rate):
        traces = []

        class Counted(K.Model):
            def train_step(self, data):
                traces.append(1)
                return super().train_step(data)

        inputs = K.Input((8,))
        model = Counted(inputs, K.layers.Dense(3)(K.layers.Dense(16, activation="relu")(inputs)))
        optimizer = K.optimizers.SGD(rate, momentum=0.9)
        model.compile(optimizer, K.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model, traces

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"round_schedule": "compress", "rewind": "weights", "rewind_epoch": 1},
        {"method": "gradual"},
        {"stop_mask_distance": 0.9, "criterion": "lamp", "final_rewind": "reinitialize"},
    ],
)
def test_the_train_function_is_traced_once(K, blobs, make_counted, settings):
    rate = K.optimizers.schedules.ExponentialDecay(0.1, 2, 0.9)
    model, traces = make_counted(rate)
    pruning, _ = run(model, blobs, CONFIG.replace(**settings))
    assert len(pruning.rounds) == (1 if settings.get("method") else 4)
    assert len(traces) == 1


def test_a_learning_rate_scheduler_traces_nothing_again(K, blobs, make_counted):
    model, traces = make_counted(0.1)
    scheduler = K.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1))
    aimp_tf.prune(model, blobs, config=CONFIG, callbacks=[scheduler], verbose=0)
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

    config = PruningConfig(target_sparsity=0.5, rate=0.5, epochs=6, round_epochs=2, round_schedule="compress")
    _, model = run(model, blobs, config, Rates())
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


@pytest.mark.parametrize("share", [0, 0.1])
def test_a_layer_left_empty_is_reported_by_name(K, blobs, caplog, share):
    model = K.Sequential([K.Input((8,)), K.layers.Dense(16, name="large"), K.layers.Dense(3, name="tiny")])
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.get_layer("tiny").kernel.assign(np.full((16, 3), 1e-6))
    model.get_layer("large").kernel.assign(np.full((8, 16), 1.0))
    model.optimizer.learning_rate.assign(1e-9)
    with caplog.at_level(logging.WARNING, "aimp_tf"):
        pruning, _ = run(model, blobs, PruningConfig(0.5, rate=0.5, epochs=1, min_layer_share=share))
    warnings = [record.message for record in caplog.records if "leaves nothing of tiny/kernel" in record.message]
    last = pruning.rounds[1]
    assert pruning.rounds[0].emptied == () and last.kept == 88
    if share:
        # 0.1 of half of 48 weights, rounded up.
        assert (last.layers[1].kept, last.guarded, last.emptied, warnings) == (3, ("tiny/kernel",), (), [])
    else:
        assert (last.layers[1].kept, last.guarded, last.emptied, len(warnings)) == (0, (), ("tiny/kernel",), 1)


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
    masked.variables["logits/kernel"].assign(np.full((16, 3), np.nan))
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


@pytest.mark.slow
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
    masked.fit(*blobs, epochs=pruning.next_epochs, verbose=0, callbacks=[pruning])
    other = aimp_tf.wrap(make_mlp(), exclude=[next(iter(MaskedModel.of(masked).variables))])
    with pytest.raises(ValueError, match="has begun with .*; the model .* has .* for each model"):
        other.fit(*blobs, epochs=pruning.next_epochs, verbose=0, callbacks=[pruning])
    while not pruning.finished:
        masked.fit(*blobs, epochs=pruning.next_epochs, verbose=0, callbacks=[pruning])
    with pytest.raises(RuntimeError, match="run is finished"):
        masked.fit(*blobs, epochs=1, verbose=0, callbacks=[pruning])


N = 8 * 16 + 16 * 3


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [None, "compress", "head"])
def test_weights_return_to_an_epoch_of_the_first_round(K, make_mlp, blobs, recorder, schedule):
    rate = K.optimizers.schedules.PolynomialDecay(0.1, 2 * 6, 0.0) if schedule else 0.1
    config = PruningConfig(0.5, rate=0.5, epochs=6, round_epochs=3, rewind="weights", rewind_epoch=2)
    rates = []

    class Rates(K.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            optimizer = self.model.optimizer
            rates.append(float(optimizer._learning_rate(optimizer.iterations)) if schedule else 0)

    model = make_mlp(K.optimizers.SGD(rate, momentum=0.9))
    run(model, blobs, config.replace(round_schedule=schedule or "head"), recorder, Rates())
    rewound_to, begun = recorder.epochs[1], recorder.begun[1]
    assert rewound_to["steps"] == begun["steps"] == 4  # 2 epochs of 2 batches
    assert not any(slot.any() for slot in begun["slots"])
    paths = _paths_of(model)
    for index, value in enumerate(begun["variables"]):
        mask = begun["masks"].get(paths[index])
        expected = rewound_to["variables"][index]
        np.testing.assert_array_equal(value, expected if mask is None else np.where(mask, expected, 0))
    if schedule:
        # The rate falls by 1 / 60 in each of 6 epochs: all of it, or the first half, in the 3 epochs of the first
        # round, and from its second epoch on in the last training. A schedule is asked for whole steps, of half an
        # epoch.
        first = {"compress": [6, 4, 2], "head": [6, 5, 4]}[schedule]
        final = [4, 3.5, 3, 2, 1.5, 1]
        np.testing.assert_allclose(np.array(rates) * 60, first + final, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["Adam", "Adamax"])
def test_optimizers_that_divide_by_their_steps_start_from_none(K, make_mlp, blobs, recorder, rule):
    config = PruningConfig(0.5, rate=0.5, epochs=2, round_epochs=2, rewind="weights", rewind_epoch=1)
    run(make_mlp(getattr(K.optimizers, rule)(1e-3)), blobs, config, recorder)
    assert [state["steps"] for state in recorder.begun] == [0, 0]


def test_a_first_round_that_ends_before_the_rewind_epoch(K, make_mlp, blobs):
    class Stop(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    config = PruningConfig(0.5, epochs=4, round_epochs=3, rewind="weights", rewind_epoch=2)
    with pytest.raises(RuntimeError, match="ended after 1 epoch, before rewind_epoch=2"):
        run(make_mlp(), blobs, config, Stop())


def test_reinitialized_weights_are_the_first_ones_in_another_order(make_mlp, blobs, recorder):
    config = CONFIG.replace(final_rewind="reinitialize", seed=3)
    model = make_mlp()
    run(model, blobs, config, recorder)
    first, final = recorder.begun[0]["variables"], recorder.begun[-1]["variables"]
    kept = recorder.begun[-1]["masks"]
    paths = _paths_of(model)
    for index, (before, after) in enumerate(zip(first, final, strict=True)):
        if paths[index] is None:
            np.testing.assert_array_equal(np.sort(after, axis=None), np.sort(before, axis=None))
        else:
            mask = kept[paths[index]]
            assert np.isin(after[mask], before).all() and not after[~mask].any()
            assert np.mean(after[mask] == before[mask]) < 0.2
    # The rounds before went on from their weights.
    second = recorder.begun[1]
    survivors = second["weights"]["hidden/kernel"][second["masks"]["hidden/kernel"]]
    assert not np.isin(survivors, first[0]).any()


def test_each_round_is_reinitialized_in_another_order(make_mlp, blobs, recorder):
    run(make_mlp(), blobs, CONFIG.replace(rewind="reinitialize", seed=3), recorder)
    begun = [state["weights"]["hidden/kernel"] for state in recorder.begun]
    for earlier, later in zip(begun, begun[1:], strict=False):
        kept = later != 0
        assert kept.any() and np.mean(earlier[kept] == later[kept]) < 0.2


def test_each_round_draws_its_own_lots(make_mlp, blobs):
    drawn = []

    class Lots(criteria.Random):
        def scores(self, statistics):
            scores = super().scores(statistics)
            drawn.append(scores["hidden/kernel"])
            return scores

    run(make_mlp(), blobs, CONFIG.replace(criterion=Lots(), seed=3))
    _, *rounds = drawn  # The first ones are to see whether the criterion can rank.
    assert len(rounds) == 3
    for earlier, later in itertools.combinations(rounds, 2):
        assert np.mean(earlier == later) < 0.01


def test_a_rate_that_is_lowered_in_training_is_given_back(make_mlp, K, blobs):
    model = make_mlp()
    before = float(np.asarray(model.optimizer.learning_rate))

    class Lower(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.optimizer.learning_rate.assign(before / 2)

    run(model, blobs, CONFIG, Lower())
    assert float(np.asarray(model.optimizer.learning_rate)) == pytest.approx(before, rel=1e-6)


def test_thresholds_are_those_of_their_layers(K, blobs):
    """Paths that are not sorted, and a rate of zero, so that the weights are those that were ranked."""
    layers = [K.Input((8,)), K.layers.Dense(16, name="z"), K.layers.Dense(16, name="m"), K.layers.Dense(3, name="a")]
    model = K.Sequential(layers)
    model.compile(K.optimizers.SGD(0.0), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    pruning, pruned = run(model, blobs, CONFIG)
    assert [layer.path.split("/")[0] for layer in pruning.rounds[-1].layers] == ["z", "m", "a"]
    for layer, variable in zip(pruning.rounds[-1].layers, pruned.trainable_variables[::2], strict=True):
        magnitudes = np.abs(np.asarray(variable.numpy()))
        assert layer.threshold == pytest.approx(magnitudes[magnitudes > 0].min())


def test_the_final_training_alone_rewinds_its_weights(make_mlp, blobs, recorder):
    run(make_mlp(), blobs, CONFIG.replace(final_rewind="weights"), recorder)
    first, masks = recorder.begun[0]["weights"], recorder.begun[-1]["masks"]
    for path, weight in recorder.begun[-1]["weights"].items():
        np.testing.assert_array_equal(weight, np.where(masks[path], first[path], 0))
    assert not np.array_equal(recorder.begun[2]["weights"]["logits/kernel"] != 0, first["logits/kernel"] != 0)
    kept = recorder.begun[2]["masks"]["hidden/kernel"]
    assert np.all(recorder.begun[2]["weights"]["hidden/kernel"][kept] != first["hidden/kernel"][kept])


def test_two_epochs_of_a_round_are_compared_and_no_others(make_mlp, blobs):
    config = PruningConfig(0.64, rate=0.4, epochs=5, round_epochs=4, stop_mask_distance=0.99)
    pruning, _ = run(make_mlp(), blobs, config)
    assert [round_.epochs for round_ in pruning.rounds] == [2, 2, 5]


def test_a_round_ends_when_the_would_be_masks_have_settled(make_mlp, blobs, recorder):
    config = PruningConfig(0.64, rate=0.4, epochs=12, round_epochs=10, stop_mask_distance=0.03)
    pruning, _ = run(make_mlp(), blobs, config, recorder)
    lengths = [round_.epochs for round_ in pruning.rounds]
    assert lengths[-1] == 12 and all(2 <= length <= 10 for length in lengths[:-1]) and min(lengths) < 10
    states = iter(recorder.epochs)
    for round_, following in zip(pruning.rounds[:-1], pruning.rounds[1:], strict=True):
        masks = []
        for _ in range(round_.epochs):
            state = next(states)
            masks.append(keep_largest(state["weights"], state["masks"], following.kept))
        distances = [
            sum(np.sum(before[path] != after[path]) for path in before) / round_.kept
            for before, after in zip(masks, masks[1:], strict=False)
        ]
        assert round_.metrics["mask_distance"] == pytest.approx(distances[-1])
        assert all(distance > 0.03 for distance in distances[:-1])
        assert distances[-1] <= 0.03 or round_.epochs == 10


def test_gradual_pruning_follows_the_ramp_in_one_fit(make_mlp, blobs, recorder):
    dataset = tf.data.Dataset.from_tensor_slices(blobs).batch(4)
    config = PruningConfig(0.75, epochs=8, method="gradual", ramp=0.5)
    pruning, model = run(make_mlp(), (dataset,), config, recorder)
    expected = [ramp_survivors(config, N, min(1, epoch / 4)) for epoch in range(1, 9)]
    kept = [sum(int(mask.sum()) for mask in state["masks"].values()) for state in recorder.epochs]
    assert kept == expected
    assert [(round_.epochs, round_.kept) for round_ in pruning.rounds] == [(8, N - 132)]
    assert len(recorder.begun) == 1 and aimp_tf.sparsity(model) == 0.75
    for before, after in zip(recorder.epochs, recorder.epochs[1:], strict=False):
        for path, mask in after["masks"].items():
            assert not np.any(mask & ~before["masks"][path])
            assert not after["weights"][path][~mask].any()
            assert np.all(before["weights"][path][mask] != 0)


def test_early_stopping_looks_from_the_epoch_on_that_reaches_the_target(K):
    pruning = GlobalMagnitudePruning(PruningConfig(0.75, epochs=8, method="gradual", ramp=0.5))
    _, ready = pruning.among(K.callbacks.EarlyStopping("loss"))
    assert ready.start_from_epoch == 3


def test_a_callback_can_be_copied_and_pickled(make_mlp, blobs):
    pruning = GlobalMagnitudePruning(PruningConfig(0.75, epochs=2, method="gradual"))
    for copied in (copy.deepcopy(pruning), pickle.loads(pickle.dumps(pruning))):
        masked = aimp_tf.wrap(make_mlp())
        masked.fit(*blobs, epochs=2, verbose=0, callbacks=[copied])
        assert copied.finished and not pruning.rounds and aimp_tf.sparsity(aimp_tf.strip(masked)) == 0.75


def test_a_gradual_fit_may_begin_later(make_mlp, blobs):
    pruning = GlobalMagnitudePruning(PruningConfig(0.75, epochs=4, method="gradual"))
    masked = aimp_tf.wrap(make_mlp())
    masked.fit(*blobs, epochs=4, initial_epoch=3, verbose=0, callbacks=[pruning])
    assert pruning.finished and aimp_tf.sparsity(aimp_tf.strip(masked)) == 0.75


@pytest.mark.slow
@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_schedule_goes_on_at_its_epoch_with_another_number_of_optimizers(make_mlp, K, blobs):
    def optimizer():
        return K.optimizers.SGD(K.optimizers.schedules.PiecewiseConstantDecay([5], [0.1, 0.01]))

    class OwnStep(K.Model):
        def train_step(self, data):
            return super().train_step(data)

    plain = make_mlp()
    model = OwnStep(plain.inputs, plain.outputs)
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(), loss)
    rates = []
    note = K.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs=None: rates.append(float(model.optimizer.learning_rate))
    )
    settings = {"round_epochs": 2, "rewind": "weights", "rewind_epoch": 1, "shrink": 1.0}
    pruning = GlobalMagnitudePruning(PruningConfig(0.5, rate=0.3, epochs=4, **settings))
    aimp_tf.wrap(model).fit(*blobs, batch_size=16, epochs=2, callbacks=[pruning, note], verbose=0)
    model.compile(optimizer(), loss)
    model.second = K.optimizers.SGD(0.1)
    model.fit(*blobs, batch_size=16, epochs=2, callbacks=[pruning, note], verbose=0)
    # The second training goes on with the second epoch of four steps, at half its pace.
    assert rates == pytest.approx(6 * [0.1] + 2 * [0.01] + 4 * [0.1] + 4 * [0.01])


def test_gradual_pruning_is_finer_than_epochs(make_mlp, blobs):
    dataset = tf.data.Dataset.from_tensor_slices(blobs).batch(4)
    masked = aimp_tf.wrap(make_mlp())
    config = PruningConfig(0.75, epochs=2, method="gradual", ramp=0.5)
    pruning = GlobalMagnitudePruning(config)
    kept = []
    prune = pruning.run.prune
    pruning.run.prune = lambda masked, keep: (kept.append(keep), prune(masked, keep))
    masked.fit(dataset, epochs=2, verbose=0, callbacks=[pruning])
    expected = [ramp_survivors(config, N, int((batch + 1) / 16 * 100) / 100) for batch in range(16)]
    assert kept == list(dict.fromkeys(expected)) and len(kept) == 14  # The last three are the same.


def test_a_gradual_fit_that_ends_early_is_an_error(K, make_mlp, blobs):
    class Stop(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    masked = aimp_tf.wrap(make_mlp())
    pruning = GlobalMagnitudePruning(PruningConfig(0.75, epochs=8, method="gradual"))
    with pytest.raises(RuntimeError, match="this round is to keep 44: fit ended after 2 of 8 epochs"):
        masked.fit(*blobs, epochs=8, verbose=0, callbacks=[pruning, Stop()])
    with pytest.raises(RuntimeError, match="cannot begin anew"):
        masked.fit(*blobs, epochs=8, verbose=0, callbacks=[pruning])


def test_other_rankings_go_through_the_same_rounds(make_mlp, blobs, recorder):
    def smallest(weights, masks):
        return {path: -np.abs(weight) for path, weight in weights.items()}

    run(make_mlp(), blobs, CONFIG.replace(criterion=smallest), recorder)
    previous = recorder.ended[0]
    magnitudes = np.concatenate([np.abs(weight).ravel() for weight in previous["weights"].values()])
    kept = np.concatenate([mask.ravel() for mask in recorder.begun[1]["masks"].values()])
    assert magnitudes[kept].max() <= magnitudes[~kept].min()


def test_a_criterion_that_cannot_rank_is_refused_before_any_training(make_mlp, blobs):
    model = make_mlp()
    before = model.get_weights()
    with pytest.raises(ValueError, match="missing: hidden/kernel, logits/kernel"):
        run(model, blobs, CONFIG.replace(criterion=lambda weights, masks: {}))
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_each_layer_gets_the_same_sparsity(make_mlp, blobs, recorder):
    run(make_mlp(), blobs, CONFIG.replace(scope="layer"), recorder)
    for state in recorder.ended:
        hidden, logits = (state["masks"][path] for path in ("hidden/kernel", "logits/kernel"))
        assert abs(hidden.sum() * logits.size - logits.sum() * hidden.size) < hidden.size
    assert logits.sum() == 12 and hidden.sum() == 32


def test_limits_on_layers_are_kept_and_reported(K, blobs):
    def pruned(**limits):
        model = K.Sequential([K.Input((8,)), K.layers.Dense(16, name="large"), K.layers.Dense(3, name="tiny")])
        model.compile(K.optimizers.SGD(1e-9), K.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.get_layer("tiny").kernel.assign(model.get_layer("tiny").kernel * 1e-3)
        pruning, model = run(model, blobs, PruningConfig(0.5, rate=0.3, epochs=1, **limits))
        kept = {path: int(np.count_nonzero(variable)) for path, variable in prunable_variables(model).items()}
        assert sum(kept.values()) == N // 2
        return kept["tiny/kernel"], [round_.guarded for round_ in pruning.rounds]

    # The 48 weights of the tiny layer go first: all of them in the first round, which removes 53.
    assert pruned(min_layer_share=0) == (0, [(), (), ()])
    assert pruned() == (2, [(), ("tiny/kernel",), ("tiny/kernel",)])  # A twentieth of half of 48, rounded up.
    assert pruned(min_layer_survivors=7) == (7, [(), ("tiny/kernel",), ("tiny/kernel",)])
    assert pruned(max_layer_sparsity=0.75) == (12, [(), ("tiny/kernel",), ("tiny/kernel",)])
    assert pruned(max_layer_sparsity=0.75, scope="layer") == (24, [(), (), ()])
    with pytest.raises(ValueError, match="keep at least 108 weights, but target_sparsity=0.5 keeps 88 of 176"):
        pruned(min_layer_survivors=60)


def test_a_line_a_round_tells_where_the_run_stands(make_mlp, blobs, caplog):
    caplog.set_level("INFO", "aimp_tf")
    aimp_tf.prune(make_mlp(), blobs, target_sparsity=0.75, rate=0.5, epochs=3, round_epochs=2, verbose=0)
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first == "Round 1 of 3: 2 epochs at sparsity 0.00% (176 of 176 weights kept)."
    kept = r"\(88 of 176 weights kept, each shrunk to 99.7%\)"
    assert re.fullmatch(rf"Round 2 of 3: 2 epochs at sparsity 50.00% {kept}, about \d+ s left\.", second)
    assert third.startswith(
        "Round 3 of 3: 3 epochs at sparsity 75.00% (44 of 176 weights kept, each shrunk to 99.7%), "
    )


class SetWeights:
    """A callback that sets weights when training ends: those of an epoch, or what a function makes of them."""

    def __new__(cls, K, change):
        class Callback(K.callbacks.Callback):
            def on_train_end(self, logs=None):
                kernel = self.model.get_layer("hidden").kernel
                kernel.assign(change(np.array(kernel.numpy())))

        return Callback()


@pytest.mark.slow
@pytest.mark.parametrize("pruning_last", [True, False])
def test_weights_that_a_callback_sets_as_training_ends_are_checked_whoever_comes_last(K, make_mlp, blobs, pruning_last):
    masked = aimp_tf.wrap(make_mlp())
    pruning = GlobalMagnitudePruning(PruningConfig(0.75, rate=0.75, epochs=1))
    dense = SetWeights(K, lambda kernel: np.where(kernel == 0, 0.5, kernel))
    callbacks = [dense, pruning] if pruning_last else [pruning, dense]
    masked.fit(*blobs, epochs=pruning.next_epochs, callbacks=[pruning], verbose=0)
    with pytest.raises(RuntimeError, match=r"not zero in hidden/kernel.*callback"):
        masked.fit(*blobs, epochs=pruning.next_epochs, callbacks=callbacks, verbose=0)
    assert not pruning.finished and len(pruning.rounds) == 1
    with pytest.raises(RuntimeError, match="trainings of the run that are not done: 1"):
        aimp_tf.strip(masked)
    model = aimp_tf.strip(masked, unfinished=True)
    assert aimp_tf.sparsity(model) == 0.75


@pytest.mark.slow
def test_the_metrics_of_a_round_are_those_of_the_weights_that_it_ends_with(K, make_mlp, blobs, caplog):
    """Of an epoch before the last, where they were brought back; measured anew, where they are those of no epoch."""
    settings = {"target_sparsity": 0.5, "rate": 0.5, "round_epochs": 1, "epochs": 8, "verbose": 0, "seed": 0}
    # Epochs at this rate get worse after some.
    best = K.callbacks.EarlyStopping("val_loss", patience=8, restore_best_weights=True)
    model = make_mlp(K.optimizers.SGD(2.0))
    last = aimp_tf.prune(model, blobs, validation_data=blobs, callbacks=best, **settings).rounds[-1]
    assert last.epochs == 8 and last.metrics["val_loss"] == pytest.approx(
        model.evaluate(*blobs, verbose=0)[0], rel=1e-5
    )
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} == set(last.metrics)

    halved = SetWeights(K, lambda kernel: kernel / 2)
    model = make_mlp()
    last = aimp_tf.prune(model, blobs, validation_data=blobs, callbacks=[halved], **settings).rounds[-1]
    loss, accuracy = model.evaluate(*blobs, verbose=0)
    assert last.metrics == pytest.approx(
        {"loss": loss, "accuracy": accuracy, "val_loss": loss, "val_accuracy": accuracy}
    )

    masked = aimp_tf.wrap(make_mlp())
    pruning = GlobalMagnitudePruning(PruningConfig(0.5, rate=0.5, epochs=1))
    with caplog.at_level(logging.WARNING):
        masked.fit(*blobs, epochs=1, callbacks=[pruning, halved], verbose=0)
    assert pruning.rounds[0].metrics == {} and "no metrics" in caplog.text


@pytest.mark.slow
def test_gradual_pruning_brings_back_the_best_of_the_epochs_at_the_target(K, make_mlp, blobs):
    """Not of those on the way there, which are less sparse: the first epoch is the best of all here."""
    rates = K.callbacks.LearningRateScheduler(lambda epoch: 0.1 if epoch == 0 else 2.0)
    best = K.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    model = make_mlp()
    result = aimp_tf.prune(
        model, blobs, validation_data=blobs, target_sparsity=0.9, epochs=6, method="gradual", callbacks=[rates, best],
        verbose=0,
    )  # fmt: skip
    assert aimp_tf.sparsity(model) == result.sparsity == pytest.approx(0.9, abs=0.003)
    assert best.best_epoch >= 2 and best.start_from_epoch == 0  # The ramp takes three of six epochs.
    assert result.rounds[0].metrics["val_loss"] == pytest.approx(model.evaluate(*blobs, verbose=0)[0], rel=1e-5)


def test_gradual_pruning_in_a_loop_of_ones_own_asks_for_the_length_of_the_data(make_mlp, blobs):
    batches = tf.data.Dataset.from_tensor_slices(blobs).batch(16).filter(lambda x, y: True)
    masked = aimp_tf.wrap(make_mlp())
    pruning = GlobalMagnitudePruning(PruningConfig(0.5, epochs=2, method="gradual"))
    before = masked.get_weights()
    with pytest.raises(ValueError, match="method='gradual' must know how many batches an epoch has"):
        masked.fit(batches, epochs=2, callbacks=[pruning], verbose=0)
    assert all((a == b).all() for a, b in zip(before, masked.get_weights(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("again", ["before", "between"])
def test_a_model_that_is_compiled_after_wrap_is_reset_and_stretched(K, make_mlp, blobs, again):
    """As tfmot's users do. 4 steps an epoch: the rate falls to 0 in the middle of each round, and at the end of it."""
    masked = aimp_tf.wrap(make_mlp())
    config = PruningConfig(0.75, rate=0.5, epochs=4, round_epochs=2, round_schedule="compress")
    pruning, steps, rates = GlobalMagnitudePruning(config), [], []

    def compile_again():
        schedule = K.optimizers.schedules.PiecewiseConstantDecay([7], [0.125, 0.0])
        masked.compile(K.optimizers.SGD(schedule), K.losses.SparseCategoricalCrossentropy(from_logits=True))

    class Watch(K.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            optimizer = self.model.optimizer
            rate = optimizer._learning_rate
            rates[-1].append(float(rate(optimizer.iterations) if callable(rate) else rate.numpy()))

    if again == "before":
        compile_again()
    while not pruning.finished:
        if again == "between" and len(pruning.rounds) == 1:
            compile_again()
        rates.append([])
        masked.fit(*blobs, 16, epochs=pruning.next_epochs, callbacks=pruning.among([Watch()]), verbose=0)
        steps.append(int(masked.optimizer.iterations.numpy()))
    assert steps == [8, 8, 16]
    assert rates[1:] == [[0.125] * 4 + [0.0] * 4, [0.125] * 8 + [0.0] * 8]
    model = aimp_tf.strip(masked)
    assert type(vars(model.optimizer)["_learning_rate"]) is K.optimizers.schedules.PiecewiseConstantDecay
    assert model.optimizer is masked.optimizer and aimp_tf.sparsity(model) == 0.75


def test_a_rate_that_is_set_after_wrap_begins_every_round(make_mlp, blobs):
    masked = aimp_tf.wrap(make_mlp())
    masked.optimizer.learning_rate = 0.25
    pruning, rates = GlobalMagnitudePruning(PruningConfig(0.75, rate=0.75, epochs=1)), []
    while not pruning.finished:
        masked.fit(*blobs, epochs=1, callbacks=[pruning], verbose=0)
        rates.append(float(masked.optimizer.learning_rate.numpy()))
        masked.optimizer.learning_rate = 0.03125  # As a callback such as ReduceLROnPlateau does.
    assert rates == [0.25, 0.25]
    assert float(aimp_tf.strip(masked).optimizer.learning_rate.numpy()) == 0.25


def test_reinitializing_changes_what_gradients_train_and_nothing_else(K, blobs, tmp_path):
    x, y = blobs
    adapted = K.layers.Normalization()
    adapted.adapt(x * [1, 10, 100, 1000, 1, 1, 1, 1])
    layers = [
        K.Input((8,)),
        adapted,
        K.layers.Dense(8, trainable=False, name="frozen"),
        K.layers.BatchNormalization(name="norm"),
        K.layers.Dense(16, name="free"),
        K.layers.Dense(3, name="out"),
    ]
    model = K.Sequential(layers)
    model.compile(K.optimizers.SGD(0.0), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.get_layer("norm").moving_mean.assign(np.arange(8.0))
    before = {layer.name: layer.get_weights() for layer in model.layers}
    aimp_tf.prune(model, blobs, target_sparsity=0.5, rate=0.5, epochs=1, final_rewind="reinitialize", seed=0, verbose=0)
    for name in (adapted.name, "frozen"):
        for old, new in zip(before[name], model.get_layer(name).get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    free = model.get_layer("free").get_weights()[0]
    kept = free != 0
    assert kept.any() and not np.isclose(free[kept], before["free"][0][kept]).any()
    assert np.isin(free[kept], before["free"][0]).all()
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(
        model.predict(x, verbose=0), K.models.load_model(tmp_path / "model.keras").predict(x, verbose=0), rtol=1e-5
    )


def test_normalization_computes_with_the_statistics_that_a_rewind_brought_back(K, blobs):
    layer = K.layers.Normalization()
    layer.adapt(np.float32([[0.0, 10.0], [2.0, 30.0]]))
    model = K.Sequential([K.Input((2,)), layer, K.layers.Dense(3, use_bias=False)])
    model.compile("sgd", "mse")
    masked = mask_model(model)
    snapshot, before = masked.snapshot(), np.asarray(model(np.float32([[4.0, 50.0]])))
    layer.adapt(np.float32([[-7.0, 1.0], [9.0, 8.0]]))
    masked.restore(snapshot)
    np.testing.assert_allclose(np.asarray(model(np.float32([[4.0, 50.0]]))), before, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["iterative", "gradual"])
def test_a_pruned_model_is_pruned_further_from_where_it_is(K, make_mlp, blobs, method, caplog, tmp_path):
    """176 prunable weights: 88 are left at first, 44 are to be."""
    model = make_mlp()
    config = PruningConfig(0.5, rate=0.3, epochs=4, round_epochs=1, seed=0)
    first = aimp_tf.prune(model, blobs, config=config, verbose=0)
    caplog.clear()
    seen = []
    note = K.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(aimp_tf.sparsity(model)))
    further = config.replace(target_sparsity=0.75, method=method)
    second = aimp_tf.prune(model, blobs, config=further, masks="zeros", callbacks=note, verbose=0)
    assert not [record for record in caplog.records if record.name.startswith("aimp_tf")] and seen[-1] == 0.75
    if method == "iterative":
        assert seen[0] == 0.5
        assert [round_.kept for round_ in second.rounds] == [88, 62, 44] and second.imp_epochs == 12
        assert "6 (50% of plain IMP's 12)" in second.report(tmp_path / "page.md")[0].read_text()
    else:
        assert seen[0] == pytest.approx(0.5 + 0.25 * (1 - 0.75**3), abs=0.005)  # A quarter of the ramp.
    assert not any((second.masks[path] & ~mask).any() for path, mask in first.masks.items())
    with pytest.raises(ValueError, match=r"keep 44 only: it is sparser already.*fine_tune"):
        aimp_tf.prune(model, blobs, config=config, masks=second.masks, verbose=0)
    with caplog.at_level(logging.WARNING):
        third = aimp_tf.prune(model, blobs, target_sparsity=0.75, epochs=1, verbose=0)
    assert third.rounds[0].kept == 176 and "132 weights of hidden/kernel, logits/kernel are zero" in caplog.text
