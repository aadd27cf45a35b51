"""Few values that many weights share: which they are, and which one each weight takes. NumPy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_MOST_ITERATIONS = 500

Chosen = tuple[np.ndarray, np.ndarray]
"""Levels, rising, float64 (at most as many as asked for), and the place of each weight among them, int (weights,)."""


def kmeans(weights: np.ndarray, count: int, initial: str = "linear") -> Chosen:
    """Levels of the least mean squared distance that Lloyd's iterations come to.

    On a line the weights of a level lie between two midpoints, so that an iteration takes two look-ups in their running
    sums, and ends exactly where none changes its level. A level that no weight takes begins anew at the weight that is
    farthest from its own.

    Args:
        weights: float (weights,).
        count: How many levels.
        initial: Where they begin: "linear", evenly between the least and the largest weight; or "density", with equally
            many weights each.

    Source:
        Han, Mao and Dally, "Deep Compression", ICLR 2016, section 3.

    Example:
        >>> kmeans(np.array([1.0, 9.0, 2.0, 8.0]), 2)
        (array([1.5, 8.5]), array([0, 1, 0, 1]))
    """
    ordered = np.sort(weights).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    levels = np.unique(_INITIAL[initial](ordered, count))
    edges = None
    for _ in range(_MOST_ITERATIONS):
        inner = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        if edges is not None and np.array_equal(inner, edges[1:-1]):
            break
        edges = np.concatenate([[0], inner, [len(ordered)]])
        sizes = np.diff(edges)
        taken = np.flatnonzero(sizes)
        levels = np.diff(sums[edges])[taken] / sizes[taken]
        if len(taken) < len(sizes):
            distances = np.abs(ordered - np.repeat(levels, sizes[taken]))
            farthest = np.argsort(-distances, kind="stable")[: len(sizes) - len(taken)]
            levels = np.unique(np.concatenate([levels, ordered[farthest[distances[farthest] > 0]]]))
            edges = None
    return levels, np.searchsorted((levels[1:] + levels[:-1]) / 2, weights)


def stochastic(weights: np.ndarray, count: int, generator: np.random.Generator) -> Chosen:
    """Quantiles of the weights, of which each weight takes one of the two that it lies between, by chance: the nearer
    it is, the more likely, so that its mean stays what it is.

    Args:
        weights: float (weights,).
        count: How many levels, at least 2.
        generator: Of the chances.

    Source:
        Marinò et al., "Compact representations of convolutional neural networks via weight pruning and quantization",
        arXiv:2108.12704, section III, where it is called probabilistic quantization.
    """
    levels = np.unique(np.quantile(weights.astype(np.float64), np.linspace(0, 1, count)))
    if len(levels) == 1:
        return levels, np.zeros(len(weights), np.int64)
    below = np.clip(np.searchsorted(levels, weights, side="right") - 1, 0, len(levels) - 2)
    shares = (weights - levels[below]) / (levels[below + 1] - levels[below])
    return levels, below + (generator.random(len(weights)) < shares)


_INITIAL: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "linear": lambda ordered, count: np.linspace(ordered[0], ordered[-1], count),
    "density": lambda ordered, count: np.quantile(ordered, (np.arange(count) + 0.5) / count),
}

INITIAL = tuple(_INITIAL)
"""Where levels of `kmeans` may begin."""
