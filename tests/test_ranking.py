import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aimp_tf import ranking
from aimp_tf.ranking import keep_largest


def by_sorting(weights, masks, keep):
    """The definition: a stable sort of all magnitudes in float32, pruned ones last."""
    flat = np.concatenate([np.abs(w.astype(np.float32)).ravel() for w in weights.values()])
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


@settings(max_examples=300, deadline=None)
@given(problems())
def test_equals_a_plain_sort(problem):
    weights, masks, keep = problem
    expected = by_sorting(weights, masks, keep)
    result = keep_largest(weights, masks, keep)
    assert list(result) == list(weights)
    for path in weights:
        np.testing.assert_array_equal(result[path], expected[path])
        assert result[path].dtype == bool


@pytest.mark.parametrize("keep", [0, 1, 499, 500, 501, 1999, 2000])
def test_all_equal_weights_are_kept_by_position(keep):
    weights = {"a": np.full((20, 25), 0.1, np.float32), "b": np.full((1500,), -0.1, np.float32)}
    masks = {path: np.ones(w.shape, bool) for path, w in weights.items()}
    flat = np.concatenate([mask.ravel() for mask in keep_largest(weights, masks, keep).values()])
    assert flat[:keep].all() and not flat[keep:].any()


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
