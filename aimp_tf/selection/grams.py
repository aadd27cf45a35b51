"""What removing inputs of a linear layer costs, and the best repair of what is left, from a Gram matrix. NumPy only.

References:
    Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992, equation 5, of
    a layer's own output. Frantar and Alistarh, "SparseGPT", ICML 2023, section 3, which solves the same for single
    weights row by row, as it picks them; for masks that are given, all rows that stay can be corrected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

MOST_ROWS = 8192
"""Of a kernel whose Gram matrix is computed: that takes half a gigabyte, and as much again for each step with it."""

_RIDGE = 1e-5
"""What is added to the diagonal, as a fraction of each of its entries."""

_RIDGE_OF_FEW_ROWS = 0.1
"""The same where there are as many rows as the matrix has; with more it falls with the square of their number."""

_STEPS, _TOLERANCE = 200, 1e-4
"""Of the search for the best repair where single weights go: steps at most, and what may be left of the slope."""


@dataclasses.dataclass(frozen=True)
class Gram:
    """The second moments of what a kernel multiplies.

    Attributes:
        moments: Mean of the outer products of rows of inputs, float64 (d, d), where the kernel has d rows: inputs times
            taps.
        mean: Mean of the rows, float64 (d,).
        count: How many rows there were.
        intercept: Whether a bias can take up what an input is on average: the layer has one, and no input is seen
            otherwise at a border.
    """

    moments: np.ndarray
    mean: np.ndarray
    count: int
    intercept: bool

    def regularized(self, rows: np.ndarray, *, for_others: bool = False) -> np.ndarray:
        """The matrix of these rows, float64, centred where there is an intercept, with the ridge on its diagonal.

        A row that is always zero, or with an intercept always the same, gets next to nothing there: it costs nothing.

        Args:
            rows: Which of the kernel's, int.
            for_others: Whether what follows from it must do for other examples, too: of a row that hardly varies among
                few examples a large weight could make much, which elsewhere varies more. The ridge of few is no less
                than that of the mean entry then.
        """
        matrix = self.moments[np.ix_(rows, rows)]
        if self.intercept:
            matrix = matrix - np.outer(self.mean[rows], self.mean[rows])
        diagonal = np.maximum(np.diagonal(matrix), 0)
        few = _RIDGE_OF_FEW_ROWS * min(1.0, len(rows) / max(self.count, 1)) ** 2
        # What rounding leaves of a constant.
        dead = diagonal <= 1e-12 * np.maximum(np.diagonal(self.moments)[rows], 1e-30)
        matrix[dead], matrix[:, dead] = 0.0, 0.0
        nothing = 1e-12 * (diagonal.max(initial=0.0) or 1.0)
        least = diagonal.mean(where=~dead) if for_others and not dead.all() else 0.0
        ridged = diagonal * (1 + _RIDGE) + few * np.maximum(diagonal, least)
        matrix[np.diag_indices_from(matrix)] = np.where(dead, nothing, ridged)
        return matrix


class Elimination:
    """One linear layer, of which sets of rows are removed one after the other, and the rest repaired each time.

    Args:
        gram: Of the kernel's inputs.
        kernel: float (d, outputs).
        alive: Which rows there are, bool (d,).
        parts: Sets of rows, each of them alive, and all of the same size.
    """

    def __init__(self, gram: Gram, kernel: np.ndarray, alive: np.ndarray, parts: Sequence[np.ndarray]) -> None:
        rows = np.flatnonzero(alive)
        place = np.full(len(alive), -1)
        place[rows] = np.arange(len(rows))
        matrix = gram.regularized(rows)
        self._weights = kernel[rows].astype(np.float64)
        self._energy = float(np.sum(self._weights * (matrix @ self._weights))) or 1.0
        self._inverse = np.linalg.inv(matrix)
        self._parts = place[np.stack(parts)]

    def costs(self, parts: np.ndarray) -> np.ndarray:
        """What the outputs lose without each of these sets, at the best repair of what is left: tr(W_J' ((G^-1)_JJ)^-1
        W_J), as a fraction of the mean square of the outputs at first, or with an intercept of their variance;
        float64."""
        at = self._parts[parts]
        of_parts = self._weights[at]
        blocks = self._inverse[at[:, :, np.newaxis], at[:, np.newaxis, :]]
        costs: np.ndarray = np.sum(of_parts * np.linalg.solve(blocks, of_parts), axis=(1, 2)) / self._energy
        return np.maximum(costs, 0.0)

    def remove(self, part: int) -> None:
        """Takes out a set of rows, and repairs the others."""
        at, inverse = self._parts[part], self._inverse
        along = inverse[:, at]
        shared = np.linalg.solve(inverse[np.ix_(at, at)], np.concatenate([self._weights[at], along.T], axis=1))
        outputs = self._weights.shape[1]
        self._weights -= along @ shared[:, :outputs]
        inverse -= along @ shared[:, outputs:]
        # What is gone is nothing to the others from now on, rounding included.
        self._weights[at], inverse[at], inverse[:, at] = 0.0, 0.0, 0.0
        inverse[at, at] = 1.0


class Removable(Protocol):
    """What units can be removed from, one after the other."""

    def costs(self, units: np.ndarray) -> np.ndarray:
        """What it costs to remove each of these units now, which are not gone; float64 (units,)."""

    def remove(self, unit: int) -> None:
        """Takes out a unit."""


def elimination_costs(readers: Sequence[Removable], count: int) -> np.ndarray:
    """What each of some units costs when it is the next to be removed, the cheapest first, from all that hold them.

    Single costs would have of two units that are the same both go for nothing. The costs of others are looked at anew
    when it is their turn, for they rise as units go; where one falls instead, it is seen no earlier, and a unit that
    costs less than one before it scores as much as that.

    Args:
        readers: What holds the units, all of them each. They are emptied.
        count: How many units there are.

    Returns:
        float64 (units,).
    """
    scores, dearest = np.zeros(count), 0.0
    costs = np.sum([reader.costs(np.arange(count)) for reader in readers], axis=0) if readers else scores.copy()
    for _ in range(count if readers else 0):
        while True:
            unit = int(np.argmin(costs))
            costs[unit] = np.sum([reader.costs(np.array([unit]))[0] for reader in readers])
            if int(np.argmin(costs)) == unit:
                break
        dearest = max(dearest, float(costs[unit]))
        scores[unit], costs[unit] = dearest, np.inf
        for reader in readers:
            reader.remove(unit)
    return scores


def without(inverse: np.ndarray, unit: int) -> None:
    """Makes the inverse of a symmetric matrix that of the matrix without a row and column, in place, which become those
    of the identity."""
    inverse -= np.outer(inverse[:, unit], inverse[unit]) / inverse[unit, unit]
    inverse[unit], inverse[:, unit] = 0.0, 0.0
    inverse[unit, unit] = 1.0


def removal_costs_of_weights(gram: Gram, kernel: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What the outputs lose without each single weight, at the best repair of the rows after it, as a fraction of all.

    The rows before it, which are looked at first, cannot make up for it: w**2 / u_jj**2, where G^-1 = U' U with U upper
    triangular. Float64 (d, outputs).
    """
    rows = np.flatnonzero(mask.any(axis=1))
    matrix, weights = gram.regularized(rows), np.where(mask, kernel, 0)[rows].astype(np.float64)
    energy = float(np.sum(weights * (matrix @ weights))) or 1.0
    costs = np.zeros(kernel.shape)
    upper = np.linalg.cholesky(np.linalg.inv(matrix)).T
    costs[rows] = (weights / np.diagonal(upper)[:, np.newaxis]) ** 2 / energy
    return costs


def repaired(gram: Gram, kernel: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kernel with what its mask removes, and the rest corrected so that the outputs change least.

    What is kept is the least-squares solution, of each output among the rows that it keeps.

    Args:
        gram: Of the kernel's inputs.
        kernel: float (d, outputs), as it was. What was removed before is zero.
        mask: bool (d, outputs); True is kept.

    Returns:
        float64 (d, outputs); and what to add to the bias, float64 (outputs,), zero without an intercept.
    """
    before = kernel.astype(np.float64)
    columns, rows = mask.any(axis=0), mask.any(axis=1)
    if np.array_equal(mask, np.outer(rows, columns)):
        after = np.zeros_like(before)
        after[np.ix_(rows, columns)] = _without_rows(gram, before[:, columns], np.asarray(rows))
    else:
        after = _without_weights(gram, before, mask)
    shift = gram.mean @ (before - after) if gram.intercept else np.zeros(kernel.shape[1])
    return after, np.where(columns, shift, 0.0)


def _without_rows(gram: Gram, kernel: np.ndarray, stay: np.ndarray) -> np.ndarray:
    go = np.flatnonzero(~stay & kernel.any(axis=1))
    kept = np.flatnonzero(stay)
    if not go.size:
        return kernel[kept]
    every = np.concatenate([kept, go])
    matrix = gram.regularized(every, for_others=True)
    shared = matrix[: len(kept), len(kept) :] @ kernel[go]
    return kernel[kept] + np.linalg.solve(matrix[: len(kept), : len(kept)], shared)


def _without_weights(gram: Gram, kernel: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Least squares with other zeros in each column, by conjugate gradients, all columns at once. No step of these
    makes the outputs differ more."""
    matrix = gram.regularized(np.arange(len(kernel)), for_others=True)
    scale = np.sqrt(np.diagonal(matrix))
    matrix, scale = matrix / np.outer(scale, scale), scale[:, np.newaxis]
    left = np.where(mask, kernel * scale, 0.0)
    residual = mask * (matrix @ (kernel * scale - left))
    direction, squares = residual, (residual**2).sum(axis=0)
    enough = _TOLERANCE**2 * squares.max(initial=0.0)
    for _ in range(_STEPS):
        along = mask * (matrix @ direction)
        curvature = (direction * along).sum(axis=0)
        step = np.divide(squares, curvature, out=np.zeros_like(squares), where=curvature > 0)
        left += step * direction
        residual = residual - step * along
        before, squares = squares, (residual**2).sum(axis=0)
        if squares.max(initial=0.0) <= enough:
            break
        direction = residual + np.divide(squares, before, out=np.zeros_like(squares), where=before > 0) * direction
    return left / scale
