"""How far a training moves the weights, by a sample of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

_SAMPLE_SIZE = 2**16


def sample_of(weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Copies of evenly spaced values of each array, some 65,000 at most, in the order of `weights`."""
    return [_spaced(weight).copy() for weight in weights.values()]


def fraction_moved(sample: Sequence[np.ndarray], weights: Mapping[str, np.ndarray]) -> float:
    """The norm of the change of all weights since `sample_of` took `sample`, over the norm of what they are now.

    0 is no change, and so is what ends with zeros alone. Each array counts by its size, not by that of its sample.

    Example:
        >>> sample = sample_of({"kernel": np.array([3.0, 0.0])})
        >>> fraction_moved(sample, {"kernel": np.array([3.0, 4.0])})
        0.8
    """
    change = norm = 0.0
    for before, weight in zip(sample, weights.values(), strict=True):
        after = _spaced(weight).astype(np.float64)
        change += weight.size * float(np.mean(np.square(after - before)))
        norm += weight.size * float(np.mean(np.square(after)))
    return math.sqrt(change / norm) if norm else 0.0


def _spaced(weight: np.ndarray) -> np.ndarray:
    # An odd step passes through all columns of a kernel whose width is a power of two.
    return weight.reshape(-1)[:: -(-weight.size // _SAMPLE_SIZE) | 1]
