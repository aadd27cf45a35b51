"""Units: what is kept or removed together, and what they are worth. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from aimp_tf.config.structure import Structure
from aimp_tf.selection.ordering import ordered_bits

Arrays = Mapping[str, np.ndarray]
"""Path of a variable -> an array of its shape."""


@dataclasses.dataclass(frozen=True)
class Units:
    """The units that some variables are made of: single weights, or blocks of consecutive inputs of an output unit.

    Attributes:
        structure: What a unit is, and what is kept of each few.
        axes: Path -> axis of the variable that counts the inputs of an output unit. Single weights need none.
    """

    structure: Structure = Structure()
    axes: Mapping[str, int | None] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, granularity: str, axes: Mapping[str, int | None]) -> Units:
        """The units of a granularity, as `Structure.of` takes it."""
        return cls(Structure.of(granularity), axes)

    @property
    def cost(self) -> int:
        """Weights of a unit."""
        return self.structure.block

    def pool(self, scores: Arrays, signed: bool) -> dict[str, np.ndarray]:
        """The score of each unit: the mean of its weights' scores, or of their magnitudes unless `signed`.

        They are added up one by one, which gives the same on every platform.
        """
        if self.cost == 1:
            return dict(scores)
        pooled = {}
        for path, score in scores.items():
            first, *others = (part if signed else np.abs(part) for part in self._parts(path, score))
            total = first.astype(np.float64)
            for other in others:
                total += other
            pooled[path] = total / self.cost
        return pooled

    def pool_masks(self, masks: Arrays) -> dict[str, np.ndarray]:
        """Whether a unit is kept as a whole, bool."""
        if self.cost == 1:
            return dict(masks)
        return {path: np.logical_and.reduce(self._parts(path, mask)) for path, mask in masks.items()}

    def expand(self, kept: Arrays) -> dict[str, np.ndarray]:
        """The masks of weights of which `pool_masks` gives `kept`."""
        if self.cost == 1:
            return dict(kept)
        return {path: np.repeat(mask, self.cost, self._axis(path)) for path, mask in kept.items()}

    def assured(self, scores: Arrays, masks: Arrays, signed: bool) -> dict[str, np.ndarray] | None:
        """Masks of the weights that stay whatever their rank is: of each m, the best n that survive, ties by position.

        None where the structure has no such n.
        """
        if not self.structure.n:
            return None
        return {path: self._best(path, score, masks[path], signed) for path, score in scores.items()}

    def check(self, masks: Arrays) -> None:
        """Raises RuntimeError, naming the variables, if masks do not have the structure.

        A block is kept or removed as a whole. Of n:m, at least n of each m are kept, and so exactly n where n / m of
        all weights are kept.
        """
        if self.structure.m == 1:
            return
        wrong = []
        for path, mask in masks.items():
            counts = np.add.reduce(self._parts(path, mask), dtype=np.int32)
            if not np.all((counts >= self.structure.n) & (counts % self.cost == 0)):
                wrong.append(path)
        if wrong:
            raise RuntimeError(
                f"The masks of {', '.join(wrong)} do not have the structure of {self.structure}: something "
                "other than the ranking has set them."
            )

    def _axis(self, path: str) -> int:
        axis = self.axes[path]
        assert axis is not None  # Others are left dense.
        return axis

    def _parts(self, path: str, array: np.ndarray) -> np.ndarray:
        """A view of a contiguous array with a new first axis of length m; the axis of inputs then counts the ms."""
        axis, m, shape = self._axis(path), self.structure.m, array.shape
        parted = array.reshape(*shape[:axis], shape[axis] // m, m, *shape[axis + 1 :])
        return np.moveaxis(parted, axis + 1, 0)

    def _best(self, path: str, score: np.ndarray, mask: np.ndarray, signed: bool) -> np.ndarray:
        bits, survives = self._parts(path, ordered_bits(score, signed)), self._parts(path, mask)
        best = np.empty(mask.shape, bool)
        view = self._parts(path, best)
        for here in range(self.structure.m):
            better = np.zeros(view.shape[1:], np.int32)
            for there in range(self.structure.m):
                if there != here:
                    before = np.greater_equal if there < here else np.greater
                    better += survives[there] & before(bits[there], bits[here])
            view[here] = survives[here] & (better < self.structure.n)
        return best
