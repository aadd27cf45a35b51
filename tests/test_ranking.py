import functools
import zlib
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aimp_tf.config.structure import Structure
from aimp_tf.selection import ranking
from aimp_tf.selection.criteria import criterion_of
from aimp_tf.selection.criterion import scores_of
from aimp_tf.selection.ranking import keep_at_least, keep_largest, keep_shares
from aimp_tf.selection.statistics import Statistics
from aimp_tf.selection.units import Units, keep_best


def by_sorting(weights, masks, keep, signed=False):
    """The definition: a stable sort of all magnitudes, or values, in float32, pruned ones last."""
    flat = np.concatenate([w.astype(np.float32).ravel() for w in weights.values()])
    flat = flat if signed else np.abs(flat)
    alive = np.concatenate([m.ravel() for m in masks.values()])
    order = np.lexsort((np.arange(flat.size), -flat.astype(np.float64), ~alive))
    kept = np.zeros(flat.size, bool)
    kept[order[:keep]] = True
    pieces = np.split(kept, np.cumsum([w.size for w in weights.values()])[:-1])
    return {path: piece.reshape(w.shape) for (path, w), piece in zip(weights.items(), pieces, strict=True)}


FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-40, 6e-8, 65504.0, 3e38, -3e38, 1.0000001, 0.5])


@st.composite
def problems(draw):
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    elements = draw(st.sampled_from([FEW_VALUES, st.floats(-4, 4, width=32), st.just(0.25)]))
    shapes = draw(st.lists(hnp.array_shapes(min_dims=0, max_dims=3, max_side=6), min_size=1, max_size=4))
    weights = {
        str(i): np.asarray(draw(hnp.arrays(np.float64, shape, elements=elements))).astype(dtype)
        for i, shape in enumerate(shapes)
    }
    masks = {path: np.asarray(draw(hnp.arrays(bool, w.shape))) for path, w in weights.items()}
    return weights, masks, draw(st.integers(0, sum(int(m.sum()) for m in masks.values())))


@settings(max_examples=400, deadline=None)
@given(problems(), st.booleans(), st.sampled_from([1, 4, 1000]), st.sampled_from([0, 3, 1000]))
def test_equals_a_plain_sort(problem, signed, sample, most_collected):
    """With samples that tell much, little or nothing, and where all that lies between two values is too much."""
    weights, masks, keep = problem
    expected = by_sorting(weights, masks, keep, signed)
    with mock.patch.multiple(ranking, _SAMPLE=sample, _MOST_COLLECTED=most_collected):
        result = keep_largest(weights, masks, keep, signed=signed)
    assert list(result) == list(weights)
    for path in weights:
        np.testing.assert_array_equal(result[path], expected[path])
        assert result[path].dtype == bool


@pytest.mark.parametrize("paths", ["ab", "ba"])
@pytest.mark.parametrize("keep", [0, 1, 499, 500, 501, 1999, 2000])
def test_all_equal_weights_are_kept_by_position(keep, paths):
    """In the order of the dict, which is not that of the paths."""
    weights = {paths[0]: np.full((20, 25), 0.1, np.float32), paths[1]: np.full((1500,), -0.1, np.float32)}
    masks = {path: np.ones(w.shape, bool) for path, w in weights.items()}
    kept = keep_largest(weights, masks, keep)
    flat = np.concatenate([kept[path].ravel() for path in weights])
    assert flat[:keep].all() and not flat[keep:].any()


@pytest.mark.parametrize(
    ("weights", "sample_is_enough"),
    [
        (np.random.default_rng(0).normal(size=400_000), True),
        # All that the sample sees is larger than all it does not.
        (np.where(np.arange(400_000) % 100 == 0, 2.0, np.random.default_rng(0).random(400_000)), False),
        (np.full(400_000, 0.5), False),
    ],
)
def test_a_sample_that_misleads_does_no_harm(weights, sample_is_enough, monkeypatch):
    monkeypatch.setattr(ranking, "_SAMPLE", 4000)
    monkeypatch.setattr(ranking, "_MOST_COLLECTED", 100_000)
    by_histograms = mock.Mock(wraps=ranking._threshold_by_histograms)
    monkeypatch.setattr(ranking, "_threshold_by_histograms", by_histograms)
    weights, masks = {"w": weights.astype(np.float32)}, {"w": np.ones(400_000, bool)}
    for keep in (1000, 200_000, 399_000):
        result = keep_largest(weights, masks, keep)["w"]
        np.testing.assert_array_equal(result, by_sorting(weights, masks, keep)["w"])
    assert (by_histograms.call_count == 0) == sample_is_enough


def test_chunks_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    weights = {path: rng.integers(-9, 9, size).astype(np.float32) for path, size in {"a": 101, "b": 7, "c": 50}.items()}
    masks = {path: rng.random(w.size) < 0.8 for path, w in weights.items()}
    monkeypatch.setattr(ranking, "_CHUNK", 8)
    for keep in range(0, sum(int(m.sum()) for m in masks.values()), 7):
        result, expected = keep_largest(weights, masks, keep), by_sorting(weights, masks, keep)
        for path in weights:
            np.testing.assert_array_equal(result[path], expected[path])


def test_a_large_tensor_has_the_exact_count():
    weights = {"w": np.random.default_rng(0).normal(size=3_000_001).astype(np.float32)}
    masks = {"w": np.ones(3_000_001, bool)}
    kept = keep_largest(weights, masks, 1_234_567)["w"]
    assert kept.sum() == 1_234_567
    assert np.abs(weights["w"][kept]).min() >= np.abs(weights["w"][~kept]).max()


def test_float16_weights_rank_as_float32():
    weights = {"w": np.array([6e-8, 65504, -65504, 1e-4, 0], np.float16)}
    kept = keep_largest(weights, {"w": np.ones(5, bool)}, 2)["w"]
    assert kept.tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_survivors_are_named(bad):
    weights = {"good": np.ones(3, np.float32), "bad/kernel": np.array([1, bad], np.float32)}
    masks = {path: np.ones(w.shape, bool) for path, w in weights.items()}
    with pytest.raises(RuntimeError, match="NaN or infinite weights: bad/kernel"):
        keep_largest(weights, masks, 2)
    masks["bad/kernel"][1] = False
    assert keep_largest(weights, masks, 4)["bad/kernel"].tolist() == [True, False]


def test_bad_calls_are_refused():
    weights, masks = {"w": np.ones(4, np.float32)}, {"w": np.array([True, True, False, False])}
    with pytest.raises(ValueError, match="between 0 and the 2 survivors; got 3"):
        keep_largest(weights, masks, 3)
    with pytest.raises(ValueError, match="mask has shape"):
        keep_largest(weights, {"w": np.ones(3, bool)}, 1)


def counts_of(masks):
    return {path: int(mask.sum()) for path, mask in masks.items()}


@settings(max_examples=300, deadline=None)
@given(problems(), st.booleans(), st.integers(0, 5))
def test_limits_are_kept_exactly_with_the_best_of_the_rest(problem, signed, limit):
    weights, masks, keep = problem
    survivors = counts_of(masks)
    least = {path: min(limit, count) for path, count in survivors.items()}
    keep = max(keep, sum(least.values()))
    kept, guarded = keep_at_least(weights, masks, keep, dict.fromkeys(weights, limit), signed=signed)
    plain = by_sorting(weights, masks, keep, signed)
    assert sum(counts_of(kept).values()) == keep
    assert set(guarded) == {path for path in weights if plain[path].sum() < least[path]}
    for path, weight in weights.items():
        assert not np.any(kept[path] & ~masks[path])
        assert kept[path].sum() >= least[path]
        if path in guarded:
            assert kept[path].sum() == least[path]
        # Within a variable, the best are kept.
        best = by_sorting({path: weight}, {path: masks[path]}, int(kept[path].sum()), signed)[path]
        np.testing.assert_array_equal(kept[path], best)
    # What is kept above the limits ranks before everything that is not.
    others = {
        path: masks[path] & ~by_sorting({path: w}, {path: masks[path]}, least[path], signed)[path]
        for path, w in weights.items()
    }
    rest = by_sorting(weights, others, keep - sum(least.values()), signed)
    for path in weights:
        np.testing.assert_array_equal(kept[path] & others[path], rest[path])


@settings(max_examples=300, deadline=None)
@given(problems(), st.integers(0, 3))
def test_the_same_fraction_of_each(problem, limit):
    weights, masks, keep = problem
    survivors = counts_of(masks)
    least = {path: min(limit, count) for path, count in survivors.items()}
    keep = max(keep, sum(least.values()))
    kept, guarded = keep_shares(weights, masks, keep, dict.fromkeys(weights, limit), shares=[1.0] * len(weights))
    counts = counts_of(kept)
    assert sum(counts.values()) == keep
    for path, weight in weights.items():
        assert least[path] <= counts[path] <= survivors[path]
        np.testing.assert_array_equal(kept[path], by_sorting({path: weight}, {path: masks[path]}, counts[path])[path])
    free = [path for path in weights if counts[path] not in (least[path], survivors[path])]
    fractions = [(counts[path], weights[path].size) for path in free]
    for count, size in fractions:
        for other_count, other_size in fractions:
            assert (count - 1) / size < (other_count + 1) / other_size  # Less than one weight from the same sparsity.


def test_the_same_fraction_goes_by_largest_remainders():
    weights = {path: np.arange(size, dtype=np.float32) for path, size in {"a": 10, "b": 14, "c": 6}.items()}
    masks = {path: np.ones(weight.shape, bool) for path, weight in weights.items()}
    # 7 of 30 are 2.33, 3.27 and 1.4 of each; 15 are 5, 7 and 3.
    kept, guarded = keep_shares(weights, masks, 7, dict.fromkeys(weights, 0), shares=[0.3] * 3)
    assert counts_of(kept) == {"a": 2, "b": 3, "c": 2} and guarded == ()
    assert counts_of(keep_shares(weights, masks, 15, dict.fromkeys(weights, 0), shares=[2.0] * 3)[0]) == {
        "a": 5,
        "b": 7,
        "c": 3,
    }
    kept, guarded = keep_shares(weights, masks, 18, {"a": 0, "b": 0, "c": 6}, shares=[1.0] * 3)
    assert counts_of(kept) == {"a": 5, "b": 7, "c": 6} and guarded == ("c",)


def test_fractions_are_in_proportion_to_shares():
    weights = {path: np.arange(20, dtype=np.float32) for path in "abc"}
    masks = {path: np.ones(20, bool) for path in weights}
    kept, guarded = keep_shares(weights, masks, 14, dict.fromkeys(weights, 0), shares=[0.1, 0.2, 0.4])
    assert counts_of(kept) == {"a": 2, "b": 4, "c": 8} and guarded == ()
    # What one cannot keep goes to the others, in proportion.
    kept, guarded = keep_shares(weights, masks, 38, {"a": 7, "b": 0, "c": 0}, shares=[0.1, 0.2, 0.4])
    assert counts_of(kept) == {"a": 7, "b": 11, "c": 20} and guarded == ("a",)


def parts_of(array, axis, m):
    """The same with a last axis that counts the m of each."""
    moved = np.moveaxis(array, axis, -1)
    return np.moveaxis(moved.reshape(*moved.shape[:-1], -1, m), -2, axis)


def from_parts(parts, axis):
    moved = np.moveaxis(parts, axis, -2)
    return np.moveaxis(moved.reshape(*moved.shape[:-2], -1), -1, axis)


@st.composite
def problems_with_structure(draw):
    """Weights of a few rounds, with ties, the axes of their inputs, and how many of these belong together."""
    m = draw(st.integers(2, 5))
    axes, shapes = {}, {}
    for i in range(draw(st.integers(1, 3))):
        shape = list(draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=3)))
        axes[str(i)] = draw(st.integers(0, len(shape) - 1))
        shape[axes[str(i)]] *= m
        shapes[str(i)] = tuple(shape)
    elements = draw(st.sampled_from([FEW_VALUES, st.floats(-4, 4, width=32), st.sampled_from([0.25, -0.25, 0.5])]))
    rounds = [
        {path: draw(hnp.arrays(np.float32, shape, elements=elements)) for path, shape in shapes.items()}
        for _ in range(3)
    ]
    return rounds, axes, m, draw(st.booleans()), draw(st.sampled_from(["global", "layer"]))


@settings(max_examples=100, deadline=None)
@given(problems_with_structure(), st.data())
def test_blocks_are_ranked_by_their_means(problem, data):
    rounds, axes, m, signed, scope = problem
    masks = {path: np.ones(weight.shape, bool) for path, weight in rounds[0].items()}
    keep, limit = sum(mask.size for mask in masks.values()), m * data.draw(st.integers(0, 2))
    units = Units(Structure.of(f"1x{m}"), axes)
    for weights in rounds:
        survivors = counts_of(masks)
        least = {path: min(limit, count) for path, count in survivors.items()}
        keep = m * data.draw(st.integers(sum(least.values()) // m, keep // m))
        shares = None if scope == "global" else [1.0] * len(weights)
        result, guarded = keep_best(weights, masks, keep, least, shares=shares, units=units, signed=signed)
        blocks = {path: parts_of(mask, axes[path], m) for path, mask in result.items()}
        assert sum(counts_of(result).values()) == keep
        means, alive = {}, {}
        for path, weight in weights.items():
            assert result[path].dtype == bool and not np.any(result[path] & ~masks[path])
            assert np.all(blocks[path].all(axis=-1) == blocks[path].any(axis=-1))
            assert counts_of(result)[path] >= least[path]
            values = parts_of(weight.astype(float), axes[path], m)
            means[path] = sum(np.moveaxis(values if signed else np.abs(values), -1, 0)) / m  # Added up one by one.
            alive[path] = parts_of(masks[path], axes[path], m).all(axis=-1)
        choose = keep_at_least if scope == "global" else functools.partial(keep_shares, shares=shares)
        blocks_least = {path: count // m for path, count in least.items()}
        expected, expected_guarded = choose(means, alive, keep // m, blocks_least, signed=signed)
        for path in weights:
            np.testing.assert_array_equal(blocks[path][..., 0], expected[path])
        assert guarded == expected_guarded
        units.check(result)
        masks = result


@settings(max_examples=100, deadline=None)
@given(problems_with_structure(), st.data())
def test_the_best_n_of_each_m_stay(problem, data):
    rounds, axes, m, signed, scope = problem
    masks = {path: np.ones(weight.shape, bool) for path, weight in rounds[0].items()}
    size = keep = sum(mask.size for mask in masks.values())
    none = dict.fromkeys(masks, 0)
    n = data.draw(st.integers(1, m - 1))
    units = Units(Structure.of(f"{n}:{m}"), axes)
    for index, weights in enumerate(rounds):
        keep = size // m * n if index == len(rounds) - 1 else data.draw(st.integers(size // m * n, keep))
        shares = None if scope == "global" else [1.0] * len(weights)
        result, guarded = keep_best(weights, masks, keep, none, shares=shares, units=units, signed=signed)
        assert sum(counts_of(result).values()) == keep and guarded == ()
        best = {}
        for path, weight in weights.items():
            values = parts_of(weight if signed else np.abs(weight), axes[path], m).astype(float)
            alive = parts_of(masks[path], axes[path], m)
            ranks = np.argsort(np.lexsort((-values, ~alive), axis=-1), axis=-1)  # Stable: the first of equals wins.
            best[path] = ranks < n
            kept = parts_of(result[path], axes[path], m)
            assert np.all(kept[best[path]]) and not np.any(kept & ~alive)
            assert np.all(kept.sum(axis=-1) == n if index == len(rounds) - 1 else kept.sum(axis=-1) >= n)
        if scope == "global":
            others = {path: masks[path] & ~from_parts(best[path], axes[path]) for path in masks}
            rest = by_sorting(weights, others, keep - size // m * n, signed)
            for path in weights:
                np.testing.assert_array_equal(result[path] & others[path], rest[path])
        units.check(result)
        masks = result


def test_fours_lie_along_the_axis_of_inputs():
    kernel = np.zeros((8, 2), np.float32)
    kernel[4:, 1] = 1
    ones, none = {"w": np.ones(kernel.shape, bool)}, {"w": 0}
    kept, _ = keep_best({"w": kernel}, ones, 4, none, units=Units(Structure.of("1x4"), {"w": 0}))
    np.testing.assert_array_equal(kept["w"], kernel == 1)
    kept, _ = keep_best({"w": kernel.T}, {"w": ones["w"].T}, 4, none, units=Units(Structure.of("1x4"), {"w": 1}))
    np.testing.assert_array_equal(kept["w"], kernel.T == 1)
    # Among equals, the first two of each four.
    kept, _ = keep_best({"w": kernel}, ones, 8, none, units=Units(Structure.of("2:4"), {"w": 0}))
    np.testing.assert_array_equal(kept["w"].T, [[True, True, False, False] * 2] * 2)


def test_what_cannot_be_kept_in_fours_is_refused():
    weights, masks = {"w": np.ones((8, 2), np.float32)}, {"w": np.ones((8, 2), bool)}
    with pytest.raises(ValueError, match="multiple of 4 with granularity='1x4'; got 6"):
        keep_best(weights, masks, 6, {"w": 0}, units=Units(Structure.of("1x4"), {"w": 0}))
    with pytest.raises(ValueError, match="at least 8 with granularity='2:4'; got 7"):
        keep_best(weights, masks, 7, {"w": 0}, units=Units(Structure.of("2:4"), {"w": 0}))


@pytest.mark.parametrize(("granularity", "wrong"), [("1x4", [1, 1, 1, 0]), ("2:4", [1, 0, 0, 0])])
def test_masks_without_the_structure_are_named(granularity, wrong):
    masks = {"good": np.ones((4, 3), bool), "bad/kernel": np.ones((4, 3), bool)}
    axes = dict.fromkeys(masks, 0)
    Units(Structure.of(granularity), axes).check(masks)
    masks["bad/kernel"][:, 1] = wrong
    Units(Structure.of("unstructured"), axes).check(masks)
    with pytest.raises(RuntimeError, match=f"masks of bad/kernel do not have the structure of .*'{granularity}'"):
        Units(Structure.of(granularity), axes).check(masks)


FIXED_SHAPES = {"dense": (24, 10), "convolution": (3, 3, 12, 4), "transposed": (2, 2, 5, 12), "small": (12, 2)}
FIXED_AXES = {"dense": 0, "convolution": 2, "transposed": 3, "small": 0}


def fixed_weights(step):
    """Numbers that look random, the same everywhere, many of them equal; those of "small" are small."""
    weights, start = {}, 0
    for path, shape in FIXED_SHAPES.items():
        count = int(np.prod(shape))
        numbers = (np.arange(start, start + count, dtype=np.uint64) * 2654435761 + step * 40503) % 65521 // 64
        weights[path] = (numbers.astype(np.float32) / 512 - 1).reshape(shape) * (0.1 if path == "small" else 1)
        start += count
    return weights


@pytest.mark.parametrize(
    ("granularity", "criterion", "scope", "expected"),
    [
        ("unstructured", "magnitude", "global", 1201702473),
        ("unstructured", "magnitude", "layer", 3584112499),
        ("unstructured", "lamp", "global", 2771549217),
        ("1x4", "magnitude", "global", 1149474258),
        ("1x4", "lamp", "layer", 1494950831),
        ("1x3", "magnitude", "global", 3690072229),
        ("2:4", "magnitude", "global", 4155992545),
        ("3:6", "lamp", "layer", 1964881554),
    ],
)
def test_masks_are_those_of_ever(granularity, criterion, scope, expected):
    """Three rankings, one after the other, of weights that change: a checksum of all that they keep."""
    units = Units(Structure.of(granularity), FIXED_AXES)
    masks = {path: np.ones(shape, bool) for path, shape in FIXED_SHAPES.items()}
    total = sum(mask.size for mask in masks.values())
    least = {path: 12 for path in masks}
    checksum = 0
    for step, share in enumerate((0.8, 0.6, 0.5)):
        weights = fixed_weights(step)
        ranking = criterion_of(criterion)
        scores = scores_of(ranking, Statistics(weights, masks, np.random.default_rng(0)))
        keep = round(share * total) // 12 * 12
        shares = None if scope == "global" else [1.0] * len(weights)
        masks, guarded = keep_best(scores, masks, keep, least, units=units, shares=shares, signed=ranking.signed)
        units.check(masks)
        assert sum(map(np.count_nonzero, masks.values())) == keep
        for path in masks:
            checksum = zlib.crc32(np.packbits(masks[path]).tobytes(), checksum)
        checksum = zlib.crc32(",".join(guarded).encode(), checksum)
    assert checksum == expected
