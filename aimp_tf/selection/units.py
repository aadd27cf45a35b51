"""Units: what is kept or removed together, and what they are worth. NumPy only."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.config.structure import Structure
from aimp_tf.selection.criterion import Criterion, scores_of
from aimp_tf.selection.planning import least_survivors
from aimp_tf.selection.ranking import keep_at_least, keep_shares, ordered_bits
from aimp_tf.selection.scope import shares_of
from aimp_tf.selection.statistics import Arrays, Statistics


@dataclasses.dataclass(frozen=True)
class Units:
    """The units that some variables are made of: single weights, or blocks of consecutive inputs of an output unit.

    Attributes:
        structure: What a unit is, and what is kept of each few.
        axes: Path -> axis of the variable that counts the inputs of an output unit. Single weights need none.
    """

    structure: Structure = Structure()
    axes: Mapping[str, int | None] = dataclasses.field(default_factory=dict)

    exact = True
    """Whether as much is left as is asked for, and not only no more than that."""

    def __str__(self) -> str:
        return str(self.structure)

    def total(self, sizes: Mapping[str, int]) -> int:
        """How much a network with variables of these sizes has of what the budget counts."""
        return sum(sizes.values())

    def spent(self, masks: Arrays) -> int:
        """How much of that these masks leave."""
        return sum(int(np.count_nonzero(mask)) for mask in masks.values())

    def of_zeros(self, weights: Arrays) -> dict[str, np.ndarray]:
        """The masks of what is zero."""
        return {path: weight != 0 for path, weight in weights.items()}

    def completed(self, masks: Arrays) -> dict[str, np.ndarray]:
        """The masks themselves: those of one variable say nothing of others."""
        return dict(masks)

    def check_reachable(self, masks: Arrays | None, keep: int, least: Mapping[str, int]) -> None:
        """Raises ValueError if so little cannot be left, which `least` has seen already."""

    def least(self, config: PruningConfig, sizes: Mapping[str, int]) -> dict[str, int]:
        """How much is left of each variable, or each set of units, at least: as `least_survivors` says and raises."""
        return least_survivors(config, sizes)

    def rank(
        self, criterion: Criterion, statistics: Statistics, keep: int, least: Mapping[str, int], scope: object
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """The masks that keep the best units, and the names of what kept more than its rank gave it.

        Args:
            criterion: What ranks them.
            statistics: Of the weights, with the masks of now. What these have removed stays away.
            keep: How much is to be left, of what the budget counts.
            least: As `least` gives it.
            scope: As in `PruningConfig`.

        Raises:
            TypeError, ValueError: The criterion, or the scope, gives something other than scores, or as `keep_best`.
        """
        scores, shares = scores_of(criterion, statistics), shares_of(scope, statistics)
        return keep_best(scores, statistics.masks, keep, least, units=self, shares=shares, signed=criterion.signed)

    @property
    def cost(self) -> int:
        """Weights of a unit."""
        return self.structure.block

    def pool(self, scores: Arrays, signed: bool) -> dict[str, np.ndarray]:
        """The score of each unit: the mean of its weights' scores, or of their magnitudes unless `signed`.

        They are added up one by one, which gives the same on every platform.
        """
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
        return {path: np.logical_and.reduce(self._parts(path, mask)) for path, mask in masks.items()}

    def expand(self, kept: Arrays) -> dict[str, np.ndarray]:
        """The masks of weights of which `pool_masks` gives `kept`."""
        return {path: np.repeat(mask, self.cost, self._axis(path)) for path, mask in kept.items()}

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

    def best_of_each(self, path: str, score: np.ndarray, mask: np.ndarray, signed: bool) -> np.ndarray:
        """The mask of the weights that stay whatever their rank is: of each m, the best n that survive, ties by
        position."""
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


def keep_best(
    scores: Arrays,
    masks: Arrays,
    keep: int,
    least: Mapping[str, int],
    *,
    units: Units = Units(),
    shares: Sequence[float] | None = None,
    signed: bool = False,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """`keep_at_least`, or `keep_shares` where there are some, of units rather than of single weights.

    Blocks are ranked by the mean of their scores, or of their magnitudes unless `signed`. Of n:m, the best n survivors
    of each m are kept, and the rest of `keep` goes to the others by rank. Ties are broken by position, of units among
    units and of weights among the m, too.

    Args:
        masks: As in `keep_largest`; what this function gave for a larger `keep`, or all True.
        keep: As in `keep_at_least`; a multiple of a unit's cost, and no less than n:m keeps.
        least: As in `keep_at_least`; multiples of a unit's cost, and no more of a tensor than n:m keeps of it.
        units: The units of these tensors.
        shares: As in `keep_shares`; None ranks all tensors together.

    Returns:
        As `keep_at_least`.

    Raises:
        ValueError: As `keep_largest`, or `keep` is not possible with the structure.

    Example:
        >>> weights = {"a": np.array([[3.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 2.0]])}
        >>> masks = {"a": np.ones((4, 2), bool)}
        >>> blocks, two_of_four = (Units(Structure.of(text), {"a": 0}) for text in ("1x4", "2:4"))
        >>> keep_best(weights, masks, 4, {"a": 0}, units=blocks)[0]["a"].T.astype(int)
        array([[0, 0, 0, 0],
               [1, 1, 1, 1]])
        >>> keep_best(weights, masks, 5, {"a": 0}, units=two_of_four)[0]["a"].T.astype(int)
        array([[1, 1, 0, 0],
               [1, 1, 0, 1]])
    """
    choose = keep_at_least if shares is None else functools.partial(keep_shares, shares=shares)
    if keep % units.cost:
        raise ValueError(f"keep must be a multiple of {units.cost} with {units.structure}; got {keep}.")
    if units.structure.n:
        assured = {path: units.best_of_each(path, score, masks[path], signed) for path, score in scores.items()}
        count = sum(int(np.count_nonzero(mask)) for mask in assured.values())
        if keep < count:
            raise ValueError(f"keep must be at least {count} with {units.structure}; got {keep}.")
        others = {path: masks[path] & ~assured[path] for path in scores}
        rest, _ = choose(scores, others, keep - count, dict.fromkeys(scores, 0), signed=signed)
        return {path: assured[path] | rest[path] for path in scores}, ()
    if units.cost == 1:
        return choose(scores, masks, keep, least, signed=signed)
    kept, guarded = choose(
        units.pool(scores, signed),
        units.pool_masks(masks),
        keep // units.cost,
        {path: count // units.cost for path, count in least.items()},
        signed=signed,
    )
    return units.expand(kept), guarded
