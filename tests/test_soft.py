"""What is to go gets smaller before it goes, and may come back: method="soft", fade_epochs, regrow."""

import numpy as np
import pytest

import aimp_tf
from aimp_tf.config import PruningConfig
from aimp_tf.selection.planning import make_plan, settled

SETTINGS = {"target_sparsity": 0.5, "epochs": 2, "batch_size": 50, "seed": 0, "verbose": 0}
FADING = {**SETTINGS, "rate": 0.3, "epochs": 3, "round_epochs": 3, "fade_epochs": 2}


@pytest.fixture
def make(K):
    """A function that makes a compiled classifier of the digits, always of the same weights."""

    def make(rate=0.1):
        K.utils.set_random_seed(1)
        hidden = K.layers.Dense(24, activation="tanh", name="hidden")
        model = K.Sequential([K.Input((64,)), hidden, K.layers.Dense(10, name="head")])
        loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(K.optimizers.SGD(rate, momentum=0.9), loss, metrics=["accuracy"])
        return model

    return make


@pytest.fixture
def data(digits):
    return digits[0][:200], digits[1][:200]


def kernels_of(model):
    return [np.array(layer.kernel) for layer in model.layers if hasattr(layer, "kernel")]


def noting(K, when="on_epoch_end"):
    """A callback that notes the kernels of the model, and where they are noted."""
    notes = []

    class Note(K.callbacks.Callback):
        pass

    setattr(Note, when, lambda self, *_, **__: notes.append(kernels_of(self.model)))
    return Note(), notes


def zeros(kernels):
    return sum((kernel == 0).sum() for kernel in kernels)


def test_soft_is_one_round_and_a_last_training():
    plan = make_plan(PruningConfig(0.9, epochs=10, method="soft"), 1000)
    assert [(each.epochs, each.kept, each.rewind) for each in plan] == [(10, 1000, None), (10, 100, "learning_rate")]
    plan = make_plan(PruningConfig(0.9, epochs=10, round_epochs=4, method="soft"), 1000)
    assert [each.epochs for each in plan] == [4, 10]
    (soft, last) = make_plan(PruningConfig(0.9, epochs=3, round_epochs=9, method="soft"), 1000)
    assert (soft.schedule_scale * soft.epochs, last.schedule_scale * last.epochs) == (3, 3)
    config = settled(PruningConfig(0.9, total_epochs=21, method="soft"), 1000)
    assert (config.round_epochs, config.epochs) == (10, 11)


def test_a_model_that_does_not_train_shows_what_soft_does(K, make, data):
    """Without a step that changes them, weights are what the factors make of them."""
    model, settings_ = make(0.0), SETTINGS | {"round_epochs": 4}
    callback, notes = noting(K)
    before = kernels_of(model)
    result = aimp_tf.prune(model, *data, method="soft", ramp=0.5, softness=0.6, callbacks=[callback], **settings_)
    total = sum(kernel.size for kernel in before)
    magnitudes = np.sort(np.concatenate([np.abs(kernel).ravel() for kernel in before]))
    # The sparsity rises along a cubic curve, over the first two of four epochs.
    shares, factors = [0.5 * (1 - 0.5**3), 0.5, 0.5, 0.5], [0.6, 0.4, 0.2, 0.0]
    expected = [kernel.copy() for kernel in before]
    for epoch, (share, factor) in enumerate(zip(shares, factors, strict=True)):
        threshold = magnitudes[round(share * total)]
        small = [np.abs(kernel) < threshold for kernel in before]  # Scaled, they are the smallest still.
        expected = [np.where(which, factor * kernel, kernel) for which, kernel in zip(small, expected, strict=True)]
        for here, there in zip(notes[epoch], expected, strict=True):
            np.testing.assert_allclose(here, there, rtol=1e-5)
    assert zeros(notes[3]) == round(0.5 * total) == zeros(kernels_of(result.model))
    assert [round_.kept for round_ in result.rounds] == [total, total - round(0.5 * total)]


def test_what_is_softened_may_come_back(K, make, data):
    callback, notes = noting(K)
    result = aimp_tf.prune(make(), *data, method="soft", softness=0, callbacks=[callback], **SETTINGS | {"epochs": 4})
    early, late = notes[1], kernels_of(result.model)
    came_back = sum(((one == 0) & (two != 0)).sum() for one, two in zip(early, late, strict=True))
    assert came_back > 0 and result.sparsity == pytest.approx(0.5, abs=1e-3)
    assert result.rounds[-1].metrics["accuracy"] > 0.8
    # The metrics of the round are those of the weights that it ended with.
    assert result.rounds[0].metrics["loss"] > 0


@pytest.mark.parametrize("granularity", ["1x4", "2:4", "channel"])
def test_soft_with_structures(make, data, granularity):
    settings_ = SETTINGS | {"epochs": 3}
    result = aimp_tf.prune(make(), *data, method="soft", granularity=granularity, **settings_)
    assert result.budget.kept <= result.budget.asked and result.rounds[-1].metrics["accuracy"] > 0.5
    if granularity == "channel":
        assert result.compact().count_params() < result.model.count_params()


def test_a_model_that_does_not_train_shows_what_fades(K, make, data):
    """Over two epochs of four batches, in steps of a twentieth."""
    callback, notes = noting(K, "on_train_batch_end")
    model = make(0.0)
    before = kernels_of(model)
    result = aimp_tf.prune(model, *data, callbacks=[callback], shrink=1.0, **FADING)
    assert [round_.kept for round_ in result.rounds] == [1776, 1243, 888]
    gone = [np.abs(kernel) < result.rounds[1].layers[0].threshold for kernel in before]
    for batch in range(8):  # Of the second round, after the twelve of the first.
        left = 1 - int(20 * (batch + 1) / 8) / 20
        for kernel, which, now in zip(before, gone, notes[12 + batch], strict=True):
            np.testing.assert_allclose(now[which], left * kernel[which], rtol=1e-4)
            np.testing.assert_array_equal(now[~which], kernel[~which])
    assert zeros(notes[19]) == 1776 - 1243 == zeros(notes[23]) and zeros(notes[11]) == zeros(notes[18]) == 0


def test_fading_ends_with_the_round_that_is_stopped_early(K, make, data):
    class Stop(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    result = aimp_tf.prune(make(), *data, callbacks=[Stop()], **FADING)
    assert [round_.epochs for round_ in result.rounds] == [1, 1, 1]
    assert result.sparsity == pytest.approx(0.5, abs=1e-3)


def test_fading_and_the_weights_of_a_better_epoch(K, make, data):
    """Those of an epoch before all of it had faded are no better, and if they are brought back, what is to go goes."""

    class Worse(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_loss"] = float(epoch)

    for patience in (1, 9):
        stop = K.callbacks.EarlyStopping(monitor="val_loss", patience=patience, restore_best_weights=True)
        result = aimp_tf.prune(make(), *data, validation_split=0.2, callbacks=[Worse(), stop], **FADING)
        assert result.sparsity == pytest.approx(0.5, abs=1e-3)
    assert stop.start_from_epoch == 0


def test_no_epoch_is_better_before_all_has_faded_from_a_trained_model(K, make, data):
    watched = []

    class Watching(K.callbacks.EarlyStopping):
        def on_epoch_end(self, epoch, logs=None):
            watched.append(self.start_from_epoch)
            super().on_epoch_end(epoch, logs)

    stop = Watching(monitor="loss", patience=9)
    aimp_tf.prune(make(), *data, start="trained", callbacks=stop, **FADING | {"rate": 0.5})
    assert watched == [1, 1, 1]


def test_fading_and_rewinding(make, data):
    """Where weights rewind, those that fade return to what they were as well, and fade from there."""
    result = aimp_tf.prune(make(0.0), *data, rewind="weights", **FADING)
    for kernel, first in zip(kernels_of(result.model), kernels_of(make()), strict=True):
        np.testing.assert_array_equal(kernel[kernel != 0], first[kernel != 0])
    assert result.sparsity == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"granularity": "channel"}, {"granularity": "channel", "compact_rounds": True}]
)
def test_fading_learns_the_digits(make, digits, options):
    x, y = digits
    result = aimp_tf.prune(make(), x[:1200], y[:1200], **FADING | options)
    assert result.model.evaluate(x[1200:], y[1200:], verbose=0)[1] > 0.85
    assert result.budget.kept <= result.budget.asked


def test_without_a_length_nothing_can_fade(make, data):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(data).batch(50).filter(lambda x, y: True)
    pruning = aimp_tf.GlobalMagnitudePruning(target_sparsity=0.5, rate=0.3, epochs=2, round_epochs=2, fade_epochs=1)
    masked = aimp_tf.wrap(make())
    with pytest.raises(ValueError, match="fade_epochs must know how many batches an epoch has"):
        masked.fit(batches, epochs=2, callbacks=[pruning], verbose=0)
    settings_ = {name: value for name, value in FADING.items() if name != "batch_size"}
    assert aimp_tf.prune(make(), batches, **settings_).sparsity == pytest.approx(0.5, abs=1e-3)


def test_regrown_weights_are_those_with_the_largest_gradients(make, data):
    model = make()
    config = {"target_sparsity": 0.6, "rate": 0.4, "epochs": 1, "round_epochs": 1, "shrink": 1.0, "regrow": 0.1}
    pruning = aimp_tf.GlobalMagnitudePruning(config=PruningConfig(**config), criterion_batches=1)
    pruning.sample = aimp_tf.array_dataset(data, batch_size=200, shuffle=False)
    masked_model = aimp_tf.wrap(model)
    masked = aimp_tf.masking.MaskedModel.of(masked_model)
    before = []
    for _ in range(2):
        masked_model.fit(*data, batch_size=50, callbacks=[pruning], verbose=0)
        statistics = pruning.run.ranking.statistics(masked, 0)
        before.append((masked.masks(), dict(statistics.weights.items()), dict(statistics.gradients)))
    masked_model.fit(*data, batch_size=50, callbacks=[pruning], verbose=0)
    (masks, weights, gradients), after = before[1], masked.masks()
    keep = [round_.kept for round_ in pruning.rounds]
    assert keep == [1776, 1066, 710]
    # After the first round nothing was removed that could come back.
    assert sum(mask.sum() for mask in masks.values()) == 1066
    grown = np.concatenate([(after[path] & ~masks[path]).ravel() for path in masks])
    assert grown.sum() == int(0.1 * 710)
    removed = np.concatenate([~mask.ravel() for mask in masks.values()])
    slopes = np.concatenate([np.abs(gradients[path]).ravel() for path in masks])
    assert slopes[grown].min() >= slopes[removed & ~grown].max()
    stayed = np.concatenate([(after[path] & masks[path]).ravel() for path in masks])
    magnitudes = np.concatenate([np.abs(weights[path]).ravel() for path in masks])
    assert magnitudes[stayed].min() >= magnitudes[~removed & ~stayed].max()
    model = aimp_tf.strip(masked_model)
    trained = np.concatenate([kernel.ravel() for kernel in kernels_of(model)])
    assert (trained[grown] != 0).all() and (trained == 0).sum() == 1776 - 710


def test_what_was_pruned_before_never_grows(make, data):
    first = aimp_tf.prune(make(), *data, **SETTINGS | {"rate": 0.5, "target_sparsity": 0.4})
    before = {path: ~mask for path, mask in first.masks.items()}
    second = aimp_tf.prune(
        first.model,
        *data,
        masks="zeros",
        regrow=0.2,
        **SETTINGS | {"target_sparsity": 0.7, "rate": 0.2, "round_epochs": 1},
    )
    for mask, gone in zip(second.masks.values(), before.values(), strict=True):
        assert not mask[gone].any()


def test_regrowing_asks_for_data_before_anything_is_trained(make, data):
    masked = aimp_tf.wrap(make())
    pruning = aimp_tf.GlobalMagnitudePruning(target_sparsity=0.5, rate=0.3, epochs=1, regrow=0.1)
    with pytest.raises(ValueError, match="The criterion, or regrow, asks for training data"):
        masked.fit(*data, callbacks=[pruning], verbose=0)


def test_regrown_blocks(make, data):
    result = aimp_tf.prune(make(), *data, granularity="1x4", regrow=0.2, **SETTINGS | {"rate": 0.3, "round_epochs": 1})
    assert result.rounds[-1].kept == 888 and result.sparsity >= 0.5
    for mask in result.masks.values():
        blocks = mask.reshape(-1, 4, mask.shape[1])
        assert (blocks.all(axis=1) | ~blocks.any(axis=1)).all()


def test_regrowing_and_fading(make, data):
    result = aimp_tf.prune(make(), *data, regrow=0.1, **FADING)
    assert result.rounds[-1].kept == 888 and result.rounds[-1].metrics["accuracy"] > 0.8


@pytest.mark.parametrize(
    "options",
    [
        {"method": "soft", "round_epochs": 3},
        pytest.param({"rate": 0.3, "round_epochs": 3, "fade_epochs": 1.5}, marks=pytest.mark.slow),
        {"rate": 0.3, "round_epochs": 3, "regrow": 0.1, "fade_epochs": 2},
        {"rate": 0.3, "round_epochs": 3, "fade_epochs": 1, "granularity": "channel", "compact_rounds": True},
    ],
)
def test_it_goes_on_where_it_stopped(make, data, ends_alike, options):
    """In the middle of the first and of the second round."""
    settings = SETTINGS | {"epochs": 3} | options
    ends_alike(lambda **where: aimp_tf.prune(make(), *data, **where, **settings).model, [1, 2, 1])


@pytest.mark.slow
def test_replicas_and_half_precision(K, make, data, strategy):
    for options in ({"method": "soft"}, {"rate": 0.3, "round_epochs": 2, "fade_epochs": 1, "regrow": 0.1}):
        with strategy.scope():
            model = make()
        result = aimp_tf.prune(model, *data, **SETTINGS, **options)
        assert result.sparsity == pytest.approx(0.5, abs=1e-3)
        result = aimp_tf.prune(make(), *data, mixed_precision="mixed_bfloat16", **SETTINGS, **options)
        assert result.sparsity == pytest.approx(0.5, abs=1e-3)


def test_what_would_do_nothing(make, data):
    for fields, message in (
        (
            {"rate": 0.6, "regrow": 0.1},
            "regrow would do nothing: start='untrained' and rate=0.6 prune in one step. Low",
        ),
        (
            {"start": "trained", "rate": 0.6, "stop_mask_distance": 0.1, "round_epochs": 2},
            "stop_mask_distance would do nothing: .* in one step, and the last training alone comes after it. Lower "
            "rate, or leave out start.",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            aimp_tf.prune(make(), *data, **SETTINGS | fields)


def test_mistakes():
    for fields, error, message in (
        ({"method": "soft", "rate": 0.3}, ValueError, "method='soft' has no use for rate=0.3"),
        ({"method": "soft", "start": "trained"}, ValueError, "method='soft' has no use for start='trained'"),
        ({"method": "soft", "softness": 1}, ValueError, r"softness must lie in \[0, 1\)"),
        ({"softness": 0.2}, ValueError, "method='iterative' has no use for softness=0.2"),
        ({"fade_epochs": 2, "round_epochs": 2}, ValueError, "less than round_epochs=2; got 2"),
        ({"fade_epochs": "one"}, TypeError, "fade_epochs must be a number of epochs"),
        ({"fade_epochs": 1, "method": "gradual"}, ValueError, "method='gradual' has no use for fade_epochs=1"),
        ({"fade_epochs": 1, "round_epochs": 2, "repair": True}, ValueError, "repair makes up for what goes at once"),
        ({"regrow": 1}, ValueError, r"regrow must lie in \[0, 1\)"),
        ({"regrow": 0.1, "granularity": "channel"}, ValueError, "regrow is for single weights and .1x4."),
        ({"regrow": 0.1, "granularity": "2:4", "target_sparsity": 0.5}, ValueError, "regrow is for single weights"),
        ({"regrow": 0.1, "compact_rounds": True}, ValueError, "regrow brings weights back"),
    ):
        with pytest.raises(error, match=message):
            PruningConfig(**{"target_sparsity": 0.5, "epochs": 4, **fields}).validate()
