import numpy as np
import pytest

from aimp_tf.movement import fraction_moved, sample_of


def test_all_of_small_arrays_count():
    weights = {"a": np.array([[3.0, 0.0], [0.0, 1.0]]), "b": np.array([2.0])}
    sample = sample_of(weights)
    assert fraction_moved(sample, weights) == 0
    weights["a"][:] = [[0.0, 4.0], [0.0, 1.0]]  # The sample is a copy.
    assert fraction_moved(sample, weights) == pytest.approx(np.sqrt((9 + 16) / (16 + 1 + 4)))


def test_large_arrays_count_by_their_size():
    """A million weights that move by 1 of 2, and one that moves by 300 of 300."""
    weights = {"large": np.ones((1000, 1024), np.float32), "small": np.zeros(1, np.float32)}
    sample = sample_of(weights)
    assert 2**15 < sample[0].size <= 2**16
    moved = fraction_moved(sample, {"large": 2 * weights["large"], "small": np.full(1, 300.0)})
    assert moved == pytest.approx(np.sqrt((1024000 + 90000) / (4 * 1024000 + 90000)), rel=1e-3)


def test_zeros_alone_have_not_moved():
    assert fraction_moved([np.ones(3)], {"a": np.zeros(3)}) == 0
