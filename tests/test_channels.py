"""The property-based tests, and those of budgets, are of mechanics: made-up networks, weights and inputs."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_networks import EXAMPLES, GENERATIONS, Network, check_same, outputs_of

import aimp_tf
from aimp_tf.exporting.compaction import compact_and_report
from aimp_tf.graph.groups import channel_groups
from aimp_tf.masking import MaskedModel
from aimp_tf.runs.outcome import Outcome
from aimp_tf.selection.channel_layout import ChannelSet, Product
from aimp_tf.selection.channels import ChannelRanking, ChannelUnits

CHANNELS = {"granularity": "channel", "budget": "flops", "target_sparsity": 0.5, "rate": 0.3, "verbose": 0, "seed": 1}


def residual(K, size=8, **compiled):
    """Most ways in which channels are tied together; conv layers, normalisation, and a dense head behind a Flatten."""
    K.utils.set_random_seed(2)
    layers = K.layers

    def normalized(x, name):
        return layers.ReLU()(layers.BatchNormalization(momentum=0.8, name=name)(x))

    image = K.Input((size, size, 1))
    stem = normalized(layers.Conv2D(8, 3, padding="same", name="stem")(image), "stem_norm")
    x = normalized(layers.Conv2D(12, 3, padding="same", use_bias=False, name="wide")(stem), "wide_norm")
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Add()([stem, layers.BatchNormalization(name="branch_norm")(layers.Conv2D(8, 1, name="branch")(x))])
    x = layers.Concatenate()([x, layers.Conv2D(6, 1, activation="sigmoid", name="side")(x)])
    x = layers.Flatten()(layers.MaxPooling2D(size // 2)(x))
    x = layers.Dense(16, activation="relu", name="dense")(x)
    model = K.Model(image, layers.Dense(10, name="logits")(x))
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(**{"optimizer": K.optimizers.Adam(3e-3), "loss": loss, "metrics": ["accuracy"], **compiled})
    return model


def images_of(digits, count=256):
    x, y = digits
    return x[:count].reshape(-1, 8, 8, 1), y[:count]


# Groups


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(data=st.data(), generation=st.sampled_from(GENERATIONS))
def test_compact_takes_out_the_masked_channels_and_no_others(data, generation):
    network = Network(data.draw, importlib.import_module(generation))
    model = network.model()
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    for weight in model.weights:
        weight.assign(generator.normal(0, 1, weight.shape) ** (2 if "variance" in weight.name else 1))
    try:
        found = channel_groups(model)
    except ValueError:
        assume(False)
    dense = compact_and_report(model)[1].multiply_adds
    assume(dense[0] == dense[1])  # Or there are channels that nothing reads, such as beside a slice.
    units, kept = dataclasses.replace(found.units, budget="flops"), generator.random(found.units.count) < 0.6
    for each in units.sets:
        kept[generator.choice(each.units)] = True
    masks = units.expand(kept)
    np.testing.assert_array_equal(units.kept(masks), kept)
    units.check(masks)
    for path, variable in found.variables.items():
        variable.assign(variable.numpy() * masks[path])
    _, report = check_same(model, generator.normal(size=(3, 5, 5, 2)).astype(np.float32))
    assert report.multiply_adds == (units.total(), units.amount(kept))


def test_what_is_done_for_each_channel_counts_with_it(K):
    # A Dense layer over the places of each channel, as in mixers, and the same by letters; one of them is excluded.
    layers = K.layers
    image = layers.Input((4, 6))
    x = layers.Dense(8, activation="relu", name="widened")(image)
    x = layers.Permute((2, 1))(x)
    x = layers.Dense(5, activation="relu", name="mixed")(x)
    x = layers.EinsumDense("bcp,pq->bcq", (8, 7), activation="relu", name="mixed_again")(x)
    x = layers.GlobalAveragePooling1D()(layers.Permute((2, 1))(x))
    model = K.Model(image, layers.Dense(10, name="logits")(x))
    found = channel_groups(model, exclude=["mixed/*"])
    units = dataclasses.replace(found.units, budget="flops")
    (widened,) = (each.units for each in units.sets if each.layers == ("widened",))
    dense = 4 * 6 * 8, 8 * 4 * 5, 8 * 5 * 7, 8 * 10
    assert units.total() == sum(dense)
    kept = np.ones(units.count, bool)
    kept[widened[:4]] = False
    assert units.amount(kept) == sum(dense) // 2
    masks = units.expand(kept)
    for path, variable in found.variables.items():
        variable.assign(np.where(masks[path], 1.0, 0.0))
    _, report = check_same(model, np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32))
    assert report.multiply_adds == (sum(dense), sum(dense) // 2)


def test_groups_of_a_network_with_all_kinds_of_ties(K):
    groups = aimp_tf.groups(residual(K))
    assert [(group.layers, group.channels, group.least) for group in groups.groups] == [
        (("stem", "branch"), 8, 1),
        (("wide",), 12, 2),
        (("side",), 6, 1),
        (("dense",), 16, 2),
    ]
    wide = groups.groups[1]
    assert set(wide.variables) == {
        *("wide/kernel", "wide_norm/gamma", "wide_norm/beta"),
        *("depthwise/bias", "branch/kernel"),
        next(path for path in wide.variables if path.startswith("depthwise/") and "kernel" in path),
    }
    assert wide.weights == 9 * 8 + 8
    assert wide.multiply_adds == 64 * (9 * 8 + 9 + 8)
    assert groups.pinned == {"logits": (10, "output of the model")}
    convolutions = 64 * (9 * 8 + 9 * 8 * 12 + 9 * 12 + 12 * 8 + 8 * 6)
    assert groups.multiply_adds == (convolutions + 4 * 14 * 16 + 160, 64 * (9 + 18 + 18 + 2 + 1) + 4 * 2 * 2 + 20)
    text = groups.summary()
    assert "stem + branch" in text and "logits: 10 channels stay (output of the model)" in text
    assert f"{groups.multiply_adds[0]:,} multiply-adds, of which {groups.multiply_adds[1]:,} stay at least" in text


def test_what_cannot_go_is_named_with_the_reason(K):
    layers = K.layers
    x = image = K.Input((8,))
    x = layers.Dense(5, name="first")(x)
    x = layers.Dense(6, activation="relu", name="left_out")(x)
    x = layers.LayerNormalization(name="norm")(layers.Dense(4, name="before")(x))
    x = layers.Dense(7, activation="relu", name="still")(x)
    x = layers.Dense(3, activation="relu", name="free")(x)
    model = K.Model(image, layers.Dense(2, name="last")(x))
    model.get_layer("still").trainable = False
    groups = aimp_tf.groups(model, exclude=["left_out/*"])
    assert groups.pinned == {
        "left_out": (6, "left_out is excluded"),
        "before": (4, "norm (LayerNormalization) normalises over all channels"),
        "still": (7, "still is frozen (trainable=False)"),
        "last": (2, "output of the model"),
    }
    # What an excluded layer reads can go: its rows go along, and do not count.
    assert [(group.layers, group.weights) for group in groups.groups] == [(("first",), 8), (("free",), 7 + 2)]
    assert "left_out/kernel" in groups.groups[0].variables


def test_layers_that_share_a_variable_keep_all_channels(K):
    class Reads(K.layers.Layer):
        def __init__(self, other):
            super().__init__(name="reads")
            self.other = other

        def call(self, inputs):
            return tf.matmul(inputs, tf.convert_to_tensor(self.other.kernel))

    image, first = K.Input((6,)), K.layers.Dense(5, activation="relu", name="first")
    x = K.layers.Concatenate()([first(image), Reads(first)(image)])
    x = K.layers.Dense(4, activation="relu", name="free")(x)
    groups = aimp_tf.groups(K.Model(image, K.layers.Dense(2, name="last")(x)))
    assert [group.layers for group in groups.groups] == [("free",)]
    assert groups.pinned["first"] == (5, "first and reads share a variable")


def test_channels_of_a_layer_that_are_read_otherwise_are_sets_of_their_own(K):
    image = K.Input((4,))
    both = K.layers.Dense(6, activation="relu", name="both")(image)
    left, right = K.layers.Dense(3, name="left")(image), K.layers.Dense(3, name="right")(image)
    tied = K.layers.Add()([both, K.layers.Concatenate()([left, right])])
    model = K.Model(image, K.layers.Dense(2, name="last")(tied))
    groups = aimp_tf.groups(model).groups
    assert [group.channels for group in groups] == [3, 3]
    assert {frozenset(group.layers) for group in groups} == {frozenset(("both", name)) for name in ("left", "right")}
    units = channel_groups(model).units
    assert len({each.name for each in units.sets}) == 2


@pytest.mark.parametrize("K", ["keras"], indirect=True)  # tf_keras' takes no Input of a Sequential.
def test_channels_of_a_kernel_that_is_normalised_can_go(K):
    hidden = K.layers.SpectralNormalization(K.layers.Dense(6, activation="relu"), name="hidden")
    model = K.Sequential([K.Input((4,)), hidden, K.layers.Dense(2, name="last")])
    groups = aimp_tf.groups(model)
    assert groups.pinned == {"last": (2, "output of the model")}
    assert [group.layers for group in groups.groups] == [("hidden",)]


def test_a_frozen_layer_that_include_names_can_go(K):
    model = residual(K)
    model.get_layer("wide").trainable = False
    assert "wide" in aimp_tf.groups(model).pinned
    named = aimp_tf.groups(model, include=["wide/*", "branch/*"])
    assert ("wide",) in [group.layers for group in named.groups]
    # It names no other frozen layer, be it one that reads the channels.
    model.get_layer("branch").trainable = False
    assert "wide" in aimp_tf.groups(model, include=["wide/*", "dense/*"]).pinned


def test_models_without_channels_to_rank_are_refused(K):
    flat = K.Sequential([K.Input((4,)), K.layers.Dense(3, name="only")])
    with pytest.raises(ValueError, match=r"No channel .* can go: 3 channels of only \(output of the model\)"):
        aimp_tf.groups(flat)
    mixed = K.Sequential([K.Input((4,)), K.layers.Dense(4, name="a"), K.layers.Softmax(name="b"), K.layers.Dense(2)])
    with pytest.raises(
        ValueError, match=r"4 channels of a \(b \(Softmax\) mixes channels in a way that is not known\)"
    ):
        aimp_tf.groups(mixed)

    class Subclassed(K.Model):
        def __init__(self):
            super().__init__()
            self.hidden = K.layers.Dense(8, activation="relu", name="hidden")
            self.dense = K.layers.Dense(3, name="dense")

        def call(self, x):
            return self.dense(self.hidden(x))

    model = Subclassed()
    model(np.zeros((1, 4), "float32"))
    assert [group.layers for group in aimp_tf.groups(model).groups] == [("hidden",)]
    with pytest.raises(ValueError, match="those of granularity='channel'; got '2:4'"):
        aimp_tf.groups(residual(K), granularity="2:4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV2",
        *(pytest.param(each, marks=pytest.mark.exhaustive) for each in ("ResNet50", "DenseNet121", "EfficientNetB0")),
    ],
)
def test_known_networks_at_half_their_multiply_adds(name, tmp_path):
    keras = importlib.import_module("keras")
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=10)
    model.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
    x = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype("float32")
    y = np.arange(16) % 10
    result = aimp_tf.prune(model, x, y, epochs=1, batch_size=8, **{**CHANNELS, "rate": 0.3})
    assert len(result.rounds) == 3
    budget = result.rounds[-1].budget
    assert budget.dense // 2 * 0.99 < budget.kept <= budget.asked == budget.dense - round(budget.dense / 2)
    small, report = compact_and_report(result)
    assert report.multiply_adds == (budget.dense, budget.kept)
    (before,), (after,) = outputs_of(result.model, x), outputs_of(small, x)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    assert aimp_tf.export(small, tmp_path / "small", formats=["keras"])


# Ranking and budgets: NumPy alone


def chain(widths=(3, 6, 4, 2), budget="flops", multiple=1):
    """The units of an MLP, of which the last layer's outputs stay."""
    axes, shapes, sets, products, first = {}, {}, [], [], 0
    reads = None
    for index, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        last = index == len(widths) - 2
        makes = None if last else np.arange(first, first + outputs)
        axes[f"{index}/kernel"], shapes[f"{index}/kernel"] = (reads, makes), (inputs, outputs)
        products.append(Product(f"{index}/kernel", 1))
        if not last:
            sets.append(ChannelSet(str(index), (str(index),), makes))
        reads, first = makes, first + outputs
    return ChannelUnits(
        axes=axes,
        shapes=shapes,
        sets=tuple(sets),
        counted=frozenset(shapes),
        scored=frozenset(shapes),
        reads=dict.fromkeys(shapes, 0),
        products=tuple(products),
        other_products=5,
        budget=budget,
        multiple=multiple,
    )


def test_amounts_are_counted():
    kept = np.array([1, 1, 0, 0, 1, 1, 1, 1, 1, 0], bool)  # 4 of 6, 3 of 4.
    for budget, amount in (("channels", 7), ("weights", 3 * 4 + 4 * 3 + 3 * 2), ("flops", 5 + 3 * 4 + 4 * 3 + 3 * 2)):
        units = chain(budget=budget)
        masks = units.expand(kept)
        assert units.amount(kept) == units.spent(masks) == amount
        if budget == "weights":
            assert sum(map(np.count_nonzero, masks.values())) == amount
    assert chain().total() == 5 + 18 + 24 + 8


def test_scores_are_norms_of_all_that_is_tied():
    units = chain()
    weights = {path: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for path, shape in units.shapes.items()}
    norms = [np.sqrt((weights["0/kernel"][:, i] ** 2).sum() + (weights["1/kernel"][i] ** 2).sum()) for i in range(6)]
    norms += [np.sqrt((weights["1/kernel"][:, i] ** 2).sum() + (weights["2/kernel"][i] ** 2).sum()) for i in range(4)]
    masks = units.expand(np.ones(units.count, bool))
    np.testing.assert_allclose(units.pool(weights, masks, signed=False), norms)
    sums = [weights["0/kernel"][:, i].sum() - weights["1/kernel"][i].sum() for i in range(6)]
    signed = {**weights, "1/kernel": -weights["1/kernel"]}
    np.testing.assert_allclose(units.pool(signed, masks, signed=True)[:6], sums)
    # What is gone counts for nothing, whatever a criterion says of it.
    without = units.expand(np.arange(units.count) != 9)
    weights["1/kernel"][:, 3] = np.nan
    expected = [
        np.sqrt((weights["0/kernel"][:, i] ** 2).sum() + (weights["1/kernel"][i, :3] ** 2).sum()) for i in range(6)
    ]
    np.testing.assert_allclose(units.pool(weights, without, signed=False)[:6], expected)


@settings(max_examples=200, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=3, max_size=6),
    budget=st.sampled_from(["weights", "channels", "flops"]),
    scope=st.sampled_from(["global", "layer"]),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_as_many_are_left_as_the_budget_allows(widths, budget, scope, share, seed):
    """Against a loop that adds one unit after the other."""
    units, generator = chain(widths, budget), np.random.default_rng(seed)
    scores = generator.integers(0, 6, units.count) / 4  # Many are equal.
    before = generator.random(units.count) < 0.8
    least = {each.name: min(2, int(before[each.units].sum())) for each in units.sets}
    assured, places = np.zeros(units.count, bool), scores.copy()
    for each in units.sets:
        best = sorted(each.units[before[each.units]], key=lambda unit: (-scores[unit], unit))
        assured[best[: least[each.name]]] = True
        if scope == "layer":
            places[best] = [-(rank + 1) / len(each.units) for rank in range(len(best))]
    low, high = units.amount(assured), units.amount(before)
    amount = int(low + share * (high - low))
    expected = assured.copy()
    for unit in sorted(np.flatnonzero(before & ~assured), key=lambda unit: (-places[unit], unit)):
        more = expected.copy()
        more[unit] = True
        if units.amount(more) > amount:
            break
        expected = more
    shares = [1.0] * len(units.sets) if scope == "layer" else None
    kept, _ = ChannelRanking(units, scores, before, least, shares).within(amount)
    np.testing.assert_array_equal(kept, expected)
    if low:
        with pytest.raises(ValueError, match=f"can be left are {low:,} of {units.total():,}, and {low - 1:,} are"):
            ChannelRanking(units, scores, before, least, shares).within(low - 1)


def test_channels_stay_in_multiples():
    units, generator = chain((3, 20, 30, 2), multiple=8), np.random.default_rng(0)
    scores, before = generator.random(units.count), np.ones(units.count, bool)
    for share in (0.2, 0.4, 0.7, 1.0):
        amount = int(share * units.total())
        kept, _ = ChannelRanking(units, scores, before, {"0": 1, "1": 1}).within(amount)
        counts = [int(kept[each.units].sum()) for each in units.sets]
        assert units.amount(kept) <= amount and all(
            count in (8, 16, 24, *sizes) for count, sizes in zip(counts, ((20,), (30,)), strict=True)
        )
        for each in units.sets:
            assert min(scores[each.units[kept[each.units]]]) >= max(scores[each.units[~kept[each.units]]], default=0)
    assert counts == [20, 30]


def test_limits_hold_with_multiples():
    units = chain((3, 20, 40, 2), multiple=8)
    scores, everything = np.random.default_rng(0).random(units.count), np.ones(units.count, bool)
    kept, _ = ChannelRanking(units, scores, everything, {"0": 15, "1": 9}).within(units.total() // 2)
    assert [int(kept[each.units].sum()) for each in units.sets] == [16, 16]
    with pytest.raises(ValueError, match="or channel_multiple=8"):
        ChannelRanking(units, scores, everything, {"0": 15, "1": 9}).within(10)


def test_limits_on_layers_are_in_channels():
    units = chain((3, 40, 5, 2))

    def least(**limits):
        return units.least(aimp_tf.PruningConfig(0.5, epochs=1, granularity="channel", **limits))

    assert least() == {"0": 4, "1": 1}
    assert least(min_layer_survivors=7) == {"0": 7, "1": 5}
    assert least(max_layer_sparsity=0.6) == {"0": 16, "1": 2}
    # Ranking alone would keep the five of the second layer first.
    scores, everything = np.concatenate([np.full(40, 0.1), np.ones(5)]), np.ones(45, bool)
    kept, guarded = ChannelRanking(units, scores, everything, least()).within(5 + 3 * 4 + 4 * 3 + 3 * 2)
    assert guarded == ("0",) and [int(kept[each.units].sum()) for each in units.sets] == [4, 3]
    assert ChannelRanking(units, scores, everything, least()).within(units.total() // 2)[1] == ()


def test_limits_tell_beside_the_shares_of_layers():
    units = dataclasses.replace(chain((3, 20, 20, 2)), budget="channels")
    scores = np.concatenate([np.linspace(1, 2, 20), np.linspace(100, 200, 20)])

    def guarded(first):
        ranking = ChannelRanking(units, scores, np.ones(40, bool), {"0": first, "1": 1}, shares=[1.0, 1.0])
        kept, names = ranking.within(19)
        return [int(kept[each.units].sum()) for each in units.sets], names

    assert guarded(1) == ([10, 9], ()) and guarded(10) == ([10, 9], ()) and guarded(12) == ([12, 7], ("0",))


def test_masks_of_single_weights_are_no_channels():
    units = chain()
    masks = units.expand(np.ones(units.count, bool))
    masks["1/kernel"][0, 0] = False
    with pytest.raises(RuntimeError, match="The masks of 1/kernel are not those of whole channels"):
        units.check(masks)


# Runs


class Watch:
    """Looks, at the end of each epoch, whether all that is masked is zero; and keeps the masks of each round."""

    def __init__(self, K):
        watch, self.masks = self, []

        class Callback(K.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                masked = MaskedModel.of(self.model)
                masks, weights = masked.masks(), masked.weights()
                assert all((weights[path][~mask] == 0).all() for path, mask in masks.items())
                if epoch == 0:
                    watch.masks.append(masks)

        self.callback = Callback()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rewind": "weights", "budget": "weights"},
        {"budget": "channels", "scope": "layer", "start": "trained"},
        {"compact_rounds": True, "criterion": "lamp"},
        {"method": "gradual", "rate": 0.2},
        {"mixed_precision": "mixed_bfloat16", "criterion": "random", "channel_multiple": 2},
    ],
)
def test_a_run_keeps_to_its_budget_and_compacts_to_it(changes, K, digits):
    x, y = images_of(digits)
    model, watch = residual(K), Watch(K)
    fields = {**CHANNELS, "epochs": 3, **changes}
    result = aimp_tf.prune(model, x, y, callbacks=[watch.callback], **fields)
    budget = result.rounds[-1].budget
    assert budget.asked == budget.dense - round(budget.dense / 2) and budget.kept <= budget.asked
    if fields["budget"] == "channels":
        assert budget.kept == budget.asked == 21
    # Nested, and more of them go in each round.
    for earlier, later in zip(watch.masks, watch.masks[1:], strict=False):
        assert all((later[path] <= earlier[path]).all() for path in later)
    assert {"wide/kernel", "wide_norm/gamma", "wide_norm/beta", "stem/bias"} <= set(result.masks)
    assert not any("moving" in path for path in result.masks)
    small, report = compact_and_report(result)
    (before,), (after,) = outputs_of(result.model, x), outputs_of(small, x)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    if fields["budget"] == "flops":
        assert report.multiply_adds == (budget.dense, budget.kept)
    kernels = [path for path in result.masks if path.endswith("/kernel") and not path.startswith("depthwise")]
    zeros = sum(int((~result.masks[path]).sum()) for path in kernels)
    assert result.sparsity == zeros / sum(result.masks[path].size for path in kernels)
    assert result.rounds[-1].sparsity == pytest.approx(result.sparsity)


def test_a_channel_is_left_over_of_the_budget_and_no_more(K, digits):
    """The next one in the ranking would not fit."""
    x, y = images_of(digits)
    result = aimp_tf.prune(residual(K), x, y, epochs=1, **{**CHANNELS, "rate": 0.5})
    budget, groups = result.rounds[-1].budget, aimp_tf.groups(residual(K))
    assert budget.asked - budget.kept < max(group.multiply_adds for group in groups.groups)


@pytest.mark.slow
def test_a_run_of_channels_goes_on_bit_for_bit(K, digits, tmp_path):
    x, y = images_of(digits)

    class Stop(K.callbacks.Callback):
        epochs = 0

        def on_epoch_end(self, epoch, logs=None):
            type(self).epochs += 1
            if self.epochs == 3:
                raise KeyboardInterrupt

    fields = {**CHANNELS, "epochs": 4, "round_epochs": 2, "workdir": tmp_path / "run"}
    whole = aimp_tf.prune(residual(K), x, y, **{**fields, "workdir": tmp_path / "whole"})
    with pytest.raises(KeyboardInterrupt):
        aimp_tf.prune(residual(K), x, y, callbacks=[Stop()], **fields)
    result = aimp_tf.prune(residual(K), x, y, **fields)
    assert result.rounds[0].seconds != whole.rounds[0].seconds
    for one, other in zip(whole.rounds, result.rounds, strict=True):
        assert (one.kept, one.metrics, one.budget) == (other.kept, other.metrics, other.budget)
    for one, other in zip(whole.model.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for path, mask in whole.masks.items():
        np.testing.assert_array_equal(result.masks[path], mask)


@pytest.mark.slow
def test_two_replicas_prune_the_same_channels(K, strategy, digits):
    x, y = images_of(digits)
    with strategy.scope():
        model = residual(K)
    watch = Watch(K)
    result = aimp_tf.prune(model, x, y, epochs=2, callbacks=[watch.callback], **CHANNELS)
    assert result.rounds[-1].budget.kept <= result.rounds[-1].budget.asked
    small, report = compact_and_report(result)
    assert report.multiply_adds[1] == result.rounds[-1].budget.kept
    (before,), (after,) = outputs_of(result.model, x[:4]), outputs_of(small, x[:4])
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


@pytest.mark.slow
def test_a_pruned_model_is_pruned_further(K, digits):
    x, y = images_of(digits)
    first = aimp_tf.prune(residual(K), x, y, epochs=1, **{**CHANNELS, "target_sparsity": 0.3})
    result = aimp_tf.prune(first.model, x, y, epochs=1, masks="zeros", **{**CHANNELS, "target_sparsity": 0.6})
    for path, mask in result.masks.items():
        assert (mask <= first.masks[path]).all()
    assert first.rounds[-1].budget.kept >= result.rounds[0].budget.kept > result.rounds[-1].budget.kept
    assert f"Of {result.budget.dense:,} multiply-adds, {result.budget.kept:,} are left" in result.summary()


def test_masks_of_channels_hold_elsewhere(K, digits):
    x, y = images_of(digits, 64)
    pruned = aimp_tf.prune(residual(K), x, y, epochs=1, **CHANNELS)
    # Of single weights: those of biases and the like are of no use there.
    tuned = aimp_tf.fine_tune(pruned.model, x, y, epochs=1, masks=pruned.masks, verbose=0)
    further = aimp_tf.prune(tuned, x, y, epochs=1, target_sparsity=0.8, rate=0.9, masks=pruned.masks, verbose=0)
    for path, mask in further.masks.items():
        assert (mask <= pruned.masks[path]).all()
    # Of channels, by the kernels alone.
    kernels = {path: mask for path, mask in pruned.masks.items() if path.endswith("kernel")}
    masked = MaskedModel.of(aimp_tf.wrap(residual(K), granularity="channel", masks=kernels))
    for path, mask in masked.masks().items():
        np.testing.assert_array_equal(mask, pruned.masks[path])


def test_zeros_that_are_no_channels_are_refused(K):
    model = residual(K)
    kernel = model.get_layer("wide").kernel
    kernel.assign(kernel.numpy() * (np.random.default_rng(0).random(kernel.shape) < 0.5))
    with pytest.raises(ValueError, match="What is zero does not have the structure .* are zero in wide/kernel"):
        aimp_tf.wrap(model, granularity="channel", masks="zeros")
    with pytest.raises(ValueError, match="The masks do not have the structure .* wide/kernel are not those of whole"):
        aimp_tf.wrap(model, granularity="channel", masks={"wide/kernel": kernel.numpy() != 0})


def test_thresholds_are_those_of_their_variables(K, digits):
    """Whatever order a layer names its weights in."""
    x, y = images_of(digits, 64)

    class Two(K.layers.Layer):
        def build(self, shape):
            large = K.initializers.RandomNormal(0, 10)
            self.a = self.add_weight(shape=(shape[-1], 8), name="a", initializer="glorot_uniform")
            self.b = self.add_weight(shape=(8, 5), name="b", initializer=large)
            super().build(shape)

        def call(self, inputs):
            return tf.matmul(tf.matmul(inputs, tf.convert_to_tensor(self.a)), tf.convert_to_tensor(self.b))

        def get_prunable_weights(self):
            return [self.b, self.a]

        def compute_output_shape(self, shape):
            return (*shape[:-1], 5)

    layers = [K.layers.Flatten(), Two(name="two"), K.layers.Dense(9, activation="relu"), K.layers.Dense(10)]
    model = K.Sequential([K.Input((8, 8, 1)), *layers])
    model.compile(K.optimizers.SGD(0.0), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    result = aimp_tf.prune(model, x, y, epochs=1, shrink=1.0, **{**CHANNELS, "budget": "channels"})
    for layer in result.rounds[-1].layers:
        name, variable = layer.path.split("/")
        weights = np.asarray(getattr(result.model.get_layer(name), variable))
        assert layer.threshold == pytest.approx(np.abs(weights[result.masks[layer.path]]).min())


@pytest.mark.slow
def test_training_on_real_digits_keeps_its_accuracy(digits):
    """Half of the multiply-adds of a small network on scikit-learn's digits."""
    keras = importlib.import_module("keras")
    x, y = digits
    x = x.reshape(-1, 8, 8, 1)
    result = aimp_tf.prune(
        residual(keras), x[:1400], y[:1400], validation_data=(x[1400:], y[1400:]), epochs=12, batch_size=64, **CHANNELS
    )
    assert result.compact().evaluate(x[1400:], y[1400:], verbose=0)[1] > 0.93


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_sparsity": 0.9999}, "The fewest multiply-adds that can be left are .* Lower target_sparsity, or"),
        ({"min_layer_survivors": 6, "target_sparsity": 0.9}, "fewest multiply-adds"),
        ({"min_layer_share": 0.1}, "granularity='channel' has no use for min_layer_share=0.1"),
        ({"granularity": "1x4"}, "granularity='1x4' has no use for budget='flops'"),
        ({"budget": "flop"}, "budget must be one of .*'flops', or an aimp_tf.Latency; got 'flop'.*'flops'"),
        ({"channel_multiple": 0}, "channel_multiple must be at least 1; got 0"),
        ({"method": "dense", "rate": 0.2}, "method='dense' has no use for granularity='channel', budget='flops'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_training(fields, message, K, digits):
    x, y = images_of(digits, 64)
    model = residual(K)
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        aimp_tf.prune(model, x, y, epochs=1, **{**CHANNELS, **fields})
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_optimizer_that_divides_by_dead_rows_is_refused(K, digits):
    model = residual(K, optimizer=K.optimizers.Adafactor(1e-3))
    with pytest.raises(ValueError, match="Adafactor makes NaN of variables .* such as AdamW"):
        aimp_tf.prune(model, *images_of(digits, 64), epochs=1, **CHANNELS)


def test_a_plan_tells_what_it_counts(K):
    model = residual(K)
    fields = {name: value for name, value in CHANNELS.items() if name not in ("verbose",)}
    plan = aimp_tf.plan(model, epochs=5, **fields)
    assert plan.weights == aimp_tf.groups(model).multiply_adds[0]
    assert f"50.0% of {plan.weights:,} multiply-adds" in str(plan) and "multiply-adds kept" in str(plan)
    channels = aimp_tf.plan(model, epochs=5, **{**fields, "budget": "channels"})
    assert channels.weights == 42 and channels.rounds[-1].kept == 21
    with pytest.raises(ValueError, match="The fewest multiply-adds that can be left are"):
        aimp_tf.plan(model, epochs=5, **{**fields, "target_sparsity": 0.999})
    eye = np.eye(8, 12, dtype=bool)[np.newaxis, np.newaxis] & np.ones((3, 3, 1, 1), bool)
    with pytest.raises(ValueError, match="The masks do not have the structure"):
        aimp_tf.plan(model, epochs=5, masks={"wide/kernel": eye}, **fields)


def test_the_criterion_ranks_channels_by_the_sums_of_its_scores(K, digits):
    x, y = images_of(digits, 64)

    def outer(weights, masks):
        return {
            path: np.full(weight.shape, 1.0 if path.startswith("dense") else 0.1) for path, weight in weights.items()
        }

    result = aimp_tf.prune(residual(K), x, y, epochs=1, criterion=outer, **{**CHANNELS, "target_sparsity": 0.4})
    assert result.masks["dense/kernel"].any(axis=0).all()


def test_units_are_those_of_the_model_whatever_its_weights_are(K):
    """So that a resumed run has them again."""
    model = residual(K)
    before = channel_groups(model).units
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    after = channel_groups(model).units
    assert before.shapes == after.shapes and before.counted == after.counted
    for one, other in zip(before.sets, after.sets, strict=True):
        assert one.layers == other.layers
        np.testing.assert_array_equal(one.units, other.units)
    assert dataclasses.replace(before, budget="flops").total() == aimp_tf.groups(model).multiply_adds[0]


def logged(caplog, model, x, y, worth, monkeypatch, **fields):
    """What a run says of training less than the whole model, and its result."""
    monkeypatch.setattr("aimp_tf.training.run._WORTH_MULTIPLY_ADDS", worth)
    caplog.clear()
    with caplog.at_level("INFO", logger="aimp_tf"):
        result = aimp_tf.prune(model, x, y, epochs=2, **{**CHANNELS, **fields})
    return [text for text in caplog.messages if "trains without" in text or "train the whole" in text], result


@pytest.mark.slow
def test_rounds_train_what_is_left_where_that_pays(K, digits, caplog, monkeypatch):
    x, y = images_of(digits)
    none, whole = logged(caplog, residual(K), x, y, 10**11, monkeypatch)
    assert none == []  # A few steps of a small network, which tracing would only hold up.
    said, part = logged(caplog, residual(K), x, y, 10**6, monkeypatch)
    assert [text.split(" without")[0] for text in said] == ["Round 2 trains", "Round 3 trains"]
    # Without all that is masked, and so with what the budget counts alone.
    budget = part.rounds[-1].budget
    assert f": {budget.kept / budget.dense:.1%} of the multiplications" in said[1]
    assert none == logged(caplog, residual(K), x, y, 10**6, monkeypatch, compact_rounds=False)[0]
    for path, mask in whole.masks.items():
        np.testing.assert_array_equal(part.masks[path], mask)
    assert part.rounds[1].metrics["loss"] == pytest.approx(whole.rounds[1].metrics["loss"], rel=1e-3)


@pytest.mark.slow
def test_rounds_that_cannot_train_less_say_why(K, digits, caplog, monkeypatch, tmp_path):
    x, y = images_of(digits)
    name = str(tmp_path / ("saved.keras" if K.__name__ == "keras" else "saved"))
    saving = K.callbacks.ModelCheckpoint(name, save_freq=5)
    (said,), _ = logged(caplog, residual(K), x, y, 0, monkeypatch, callbacks=[saving])
    assert "made with save_freq=5" in said
    with pytest.raises(ValueError, match="made with save_freq=5"):
        logged(caplog, residual(K), x, y, 0, monkeypatch, callbacks=[saving], compact_rounds=True)
    (said,), _ = logged(caplog, residual(K, optimizer=K.optimizers.SGD(1e-2, clipnorm=1.0)), x, y, 0, monkeypatch)
    assert "with clipnorm, looks at whole variables" in said


@pytest.mark.slow
def test_rounds_train_less_on_every_replica(K, strategy, digits, caplog, monkeypatch):
    x, y = images_of(digits)
    with strategy.scope():
        model = residual(K)
    said, _ = logged(caplog, model, x, y, 0, monkeypatch)
    assert said and all("trains without" in each for each in said)


@pytest.mark.slow
def test_what_is_written_is_the_small_model(K, digits, tmp_path):
    x, y = images_of(digits)
    result = aimp_tf.prune(residual(K), x, y, epochs=1, workdir=tmp_path / "run", **CHANNELS)
    (expected,) = outputs_of(result.model, x)
    served = tf.saved_model.load(str(tmp_path / "run" / "final" / "saved_model"))
    np.testing.assert_allclose(served.serve(x), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    weights = sum(int(np.prod(variable.shape)) for variable in served.variables)
    assert weights == result.compact().count_params() < 0.7 * result.model.count_params()
    written = aimp_tf.export(result, tmp_path / "exported", formats=["keras"])["keras"].path
    assert K.models.load_model(written).count_params() == weights
    assert result.budget == result.rounds[-1].budget and result.budget.counted == "multiply-add"
    dense, pruned = result.measured.bytes
    assert pruned < dense and result.measured.multiply_adds == (result.budget.dense, result.budget.kept)
    # And told, layer by layer.
    left = {layer: int(result.masks[f"{layer}/kernel"].any((0, 1, 2)).sum()) for layer in ("stem", "wide", "side")}
    measured = result.measured
    assert {layer: measured.channels[layer] for layer in left} == {
        layer: (all_, left[layer]) for layer, all_ in (("stem", 8), ("wide", 12), ("side", 6))
    }
    assert measured.parameters == (result.model.count_params(), weights)
    assert ["wide", "12", str(left["wide"])] in [line.split() for line in result.summary().splitlines()]
    assert f"it has {weights:,} parameters and {result.budget.kept:,} multiply-adds" in result.summary()
    (page,) = result.report(tmp_path / "page.html")
    assert "channels of each layer, before and after" in page.read_text()
    assert Outcome.from_fields(json.loads(json.dumps(measured.to_fields()))) == measured
