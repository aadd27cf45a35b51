"""method="dynamic": steps that run some channels alone, in both generations of Keras, on scikit-learn's digits."""

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.config import PruningConfig
from aimp_tf.masking import mask_model
from aimp_tf.selection.channel_layout import Channels
from aimp_tf.selection.statistics import Statistics
from aimp_tf.training.gates import Gates
from aimp_tf.training.statistics import ModelSample

SETTINGS = {
    "method": "dynamic",
    "granularity": "channel",
    "budget": "channels",
    "target_sparsity": 0.5,
    "epochs": 3,
    "batch_size": 50,
    "seed": 0,
    "verbose": 0,
}


@pytest.fixture
def make(K):
    def make():
        K.utils.set_random_seed(1)
        L = K.layers
        inputs = K.Input((8, 8, 1))
        hidden = L.Conv2D(12, 3, padding="same", activation="relu")(inputs)
        hidden = L.Add()([hidden, L.Conv2D(12, 3, padding="same", activation="relu")(hidden)])
        hidden = L.Flatten()(L.Conv2D(8, 3, strides=2, activation="relu")(hidden))
        model = K.Model(inputs, L.Dense(10)(L.Dense(16, activation="relu")(hidden)))
        model.compile(
            K.optimizers.Adam(0.005), K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
        )
        return model

    return make


@pytest.fixture
def data(digits):
    return digits[0][:400].reshape(-1, 8, 8, 1), digits[1][:400]


def test_closed_channels_are_as_good_as_gone(make, data):
    model = make()
    masked = mask_model(model, granularity="channel")
    whole = np.asarray(masked.model(data[0][:8]))
    gates, kept = Gates(masked), np.random.default_rng(0).random(masked.units.count) < 0.6
    np.testing.assert_array_equal(np.asarray(masked.model(data[0][:8])), whole)
    gates.let_through(kept)
    closed = np.asarray(masked.model(data[0][:8]))
    gates.remove()
    masked.set_masks(masked.units.expand(kept))
    np.testing.assert_allclose(closed, np.asarray(masked.model(data[0][:8])), atol=1e-5)
    assert np.abs(closed - whole).max() > 1e-2 and not gates.installed
    masked.strip()
    assert not any("call" in vars(layer) for layer in model.layers)


def test_contributions_are_activation_times_gradient(make, data):
    """Those of a training step are what criteria get of the same batch, up to the size of the batch."""
    batch = (data[0][:40], data[1][:40])
    masked = mask_model(make(), granularity="channel")
    sample = ModelSample(masked, [batch], 1)
    statistics = Statistics(masked.weights(), masked.masks(), np.random.default_rng(0), sample, {"contributions"})
    expected = np.abs(Channels(masked.units, statistics).contributions[0]).mean(axis=0)
    gates = Gates(masked)
    masked.model.fit(*batch, batch_size=40, shuffle=False, verbose=0)
    measured = gates.contributions()
    # What several layers read counts one by one here, and as a sum there.
    read_once = [each.units for each in masked.units.sets if len(each.layers) == 1]
    assert len(read_once) == 2
    for units in read_once:
        # The loss is the mean over the examples, of which the sum of contributions is then the mean.
        np.testing.assert_allclose(measured[units], expected[units], rtol=1e-3, atol=1e-7)
        assert measured[units].max() > 0
    np.testing.assert_array_equal(gates.contributions(), 0)


def test_it_ends_with_the_channels_of_most_use(make, data):
    model = make()
    masked_model = aimp_tf.wrap(model, granularity="channel", budget="channels")
    fields = {name: value for name, value in SETTINGS.items() if name not in ("batch_size", "verbose")}
    pruning = aimp_tf.GlobalMagnitudePruning(**fields)
    masked = aimp_tf.masking.MaskedModel.of(masked_model)
    masked_model.fit(*data, epochs=3, callbacks=[pruning], verbose=0)
    assert masked.kept == masked.total  # Nothing is gone for good yet.
    utility = pruning.run.utility.copy()
    masked_model.fit(*data, epochs=3, callbacks=[pruning], verbose=0)
    kept = masked.units.kept(masked.masks())
    assert np.count_nonzero(kept) == masked.total - round(0.5 * masked.total)
    assert utility[kept].min() >= np.sort(utility[~kept])[-4]  # But for those that each layer keeps in any case.
    np.testing.assert_array_equal(utility, pruning.run.utility)
    assert aimp_tf.strip(masked_model) is model and not any("call" in vars(layer) for layer in model.layers)


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=pytest.mark.slow), {"budget": "flops", "mixed_precision": "mixed_bfloat16"}],
)
def test_it_learns_the_digits(make, digits, options):
    x, y = digits[0].reshape(-1, 8, 8, 1), digits[1]
    result = aimp_tf.prune(make(), x[:1200], y[:1200], **SETTINGS | {"epochs": 8} | options)
    assert result.budget.kept <= result.budget.asked
    small = result.compact()
    assert small.count_params() < result.model.count_params()
    assert small.evaluate(x[1200:], y[1200:], verbose=0)[1] > 0.85


def test_a_step_whose_gradients_overflow_counts_for_nothing(K, make, data):
    """As a loss that is scaled for half precision has some; the optimizer leaves their steps out as well."""
    model = make()
    scaled = K.optimizers if K.__name__ == "keras" else K.mixed_precision
    optimizer = scaled.LossScaleOptimizer(K.optimizers.Adam(0.005), initial_scale=2.0**24)
    model.compile(optimizer, K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    result = aimp_tf.prune(model, *data, **SETTINGS | {"mixed_precision": "mixed_float16", "round_epochs": 3})
    assert result.budget.kept <= result.budget.asked and result.rounds[-1].metrics["accuracy"] > 0.3


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(make, data, ends_alike):
    """In the middle of either training, with the channels closed that were."""
    ends_alike(lambda **where: aimp_tf.prune(make(), *data, **where, **SETTINGS).model, [2, 2])


def test_channels_that_are_gone_already(K, make, data):
    """Steps that leave channels out are of the whole network; the last training is of what is left."""
    model = make()
    once = SETTINGS | {"method": "iterative", "start": "trained", "rate": 0.5, "epochs": 1}
    aimp_tf.prune(model, *data, **once)
    settings = SETTINGS | {"target_sparsity": 0.7, "compact_rounds": True}
    result = aimp_tf.prune(model, *data, masks="zeros", **settings)
    assert result.budget.kept <= result.budget.asked and result.rounds[-1].metrics["accuracy"] > 0.3


def test_compiled_again_before_the_last_training(K, make, data):
    masked = aimp_tf.wrap(make(), granularity="channel", budget="channels")
    fields = {name: value for name, value in SETTINGS.items() if name not in ("batch_size", "verbose")}
    pruning = aimp_tf.GlobalMagnitudePruning(**fields | {"epochs": 1})
    masked.fit(*data, callbacks=[pruning], verbose=0)
    masked.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    masked.fit(*data, callbacks=[pruning], verbose=0)
    assert pruning.finished
    aimp_tf.strip(masked)


def test_mistakes(make, data, strategy):
    for fields, message in (
        ({"granularity": "unstructured", "budget": "weights"}, "method='dynamic' is of channels"),
        ({"criterion": "taylor"}, "method='dynamic' has no use for criterion='taylor'"),
        ({"rate": 0.5}, "method='dynamic' has no use for rate=0.5"),
        ({"budget": aimp_tf.Latency(speedup=2), "target_sparsity": None}, "a Latency would have to time models"),
    ):
        settings = {name: value for name, value in SETTINGS.items() if name not in ("batch_size", "verbose")} | fields
        with pytest.raises(ValueError, match=message):
            PruningConfig(**settings).validate()
    with strategy.scope():
        model = make()
    with pytest.raises(ValueError, match="method='dynamic' takes a model made without a strategy"):
        aimp_tf.prune(model, *data, **SETTINGS)
    batches = tf.data.Dataset.from_tensor_slices(data).batch(50).filter(lambda x, y: True)
    masked = aimp_tf.wrap(make(), granularity="channel", budget="channels")
    fields = {name: value for name, value in SETTINGS.items() if name not in ("batch_size", "verbose")}
    with pytest.raises(ValueError, match="method='dynamic' must know how many batches an epoch has"):
        masked.fit(batches, epochs=3, callbacks=[aimp_tf.GlobalMagnitudePruning(**fields)], verbose=0)
