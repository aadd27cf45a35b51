"""Whole channels as units: how they are ranked, and how many of the best stay within a budget. NumPy only."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.config.checks import COUNTED
from aimp_tf.selection.channel_layout import ChannelLayout, Channels
from aimp_tf.selection.criterion import Criterion, channel_scores_of
from aimp_tf.selection.planning import least_of
from aimp_tf.selection.scope import shares_of
from aimp_tf.selection.statistics import Arrays, Statistics

CLOSE, SAFE = 0.91, 0.99
"""A time that is between these fractions of what it may be is close enough to it, and safely below: timed again, on a
machine that does other things, it is seldom the same within a hundredth or two."""

FAR = 0.8
"""A time that is less than this fraction of what it may be is worth a warning."""

_AIM = 0.95
_MOST = 10


class ChannelUnits(ChannelLayout):
    """The channels of a network that can go, and how they are ranked."""

    def least(self, config: PruningConfig, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """How many units of each set stay at least, by its name: `min_layer_survivors`, of which 0 is a tenth, and no
        fewer than `max_layer_sparsity` allows. A layer must have one channel; of blocks all may go."""
        counts = {}
        fewest = 0 if "block" in self.kinds else 1
        for each in self.sets:
            size = len(each.units)
            count = config.min_layer_survivors or fewest * math.ceil(size / 10)
            counts[each.name] = min(size, max(fewest, count, least_of(config, size)))
        return counts

    def check_reachable(self, masks: Arrays | None, keep: int, least: Mapping[str, int]) -> None:
        """Raises ValueError if so little cannot be left of what these masks keep, or of all."""
        before = np.ones(self.count, bool) if masks is None else self.kept(masks)
        ChannelRanking(self, np.zeros(self.count), before, least).check(keep)

    def rank(
        self, criterion: Criterion, statistics: Statistics, keep: int, least: Mapping[str, int], scope: object
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """As `Units.rank`, with as much left as `ChannelRanking.within` says."""
        channels = Channels(self, statistics)
        scores, before = channel_scores_of(criterion, channels), self.kept(statistics.masks)
        kept, guarded = ChannelRanking(self, scores, before, least, shares_of(scope, channels)).within(keep)
        return self.expand(kept), guarded


class ChannelRanking:
    """The units that survive, the best first, and those that stay whatever their rank is.

    Args:
        units: All of them.
        scores: Of each, float (units,). Ties go by position.
        before: Which of them survive, bool (units,). Others stay away.
        least: Name of a set -> how many of it stay whatever their rank is, the best of it.
        shares: Of each set, which part of it stays, beside those of others, as nearly as can be. None ranks all
            together.
    """

    def __init__(
        self,
        units: ChannelLayout,
        scores: np.ndarray,
        before: np.ndarray,
        least: Mapping[str, int],
        shares: Sequence[float] | None = None,
    ) -> None:
        self._units, self._scores, self._before, self._least = units, scores, before, least
        self._assured, self._places = np.zeros(units.count, bool), np.array(scores, np.float64)
        for index, each in enumerate(units.sets):
            best = self._best_of(each.units)
            self._assured[best[: least[each.name]]] = True
            if shares is not None:
                self._places[best] = -np.arange(1, len(best) + 1) / (len(each.units) * shares[index])
        free = np.flatnonzero(before & ~self._assured)
        self._order = free[np.argsort(-self._places[free], kind="stable")]

    def within(self, amount: int) -> tuple[np.ndarray, tuple[str, ...]]:
        """The largest number of units along their ranking that stays within an amount, or nearly so of a time.

        Args:
            amount: How much may be left, in what the budget counts.

        Returns:
            Which units stay, bool (units,), ties by position; and the names of the sets that kept more than their rank
            gave them.

        Raises:
            ValueError: As `check`.
        """
        self.check(amount)
        units, size = self._units, len(self._order)
        if units.budget == "latency":
            count = nearly_largest(
                lambda count: units.amount(self._first(count)),
                lambda count: units.multiply_adds(self._first(count)),
                amount,
                size,
            )
        else:
            count = largest(lambda count: units.amount(self._first(count)), amount, size)
        guarded: tuple[str, ...] = ()
        if count < size:
            low = self._assured & (self._places < self._places[self._order[count]])
            guarded = tuple(each.name for each in units.sets if low[each.units].any())
        return self._first(count), guarded

    def check(self, amount: int) -> None:
        """Raises ValueError if even the fewest units that may be left are more than an amount."""
        units = self._units
        if (fewest := units.amount(self._first(0))) <= amount:
            return
        ask = "Ask for more milliseconds or less speedup" if units.budget == "latency" else "Lower target_sparsity"
        if "block" in units.kinds:
            limits = ", or leave out min_layer_survivors and max_layer_sparsity: without them all blocks can go"
        else:
            limits = ", or lower min_layer_survivors, of which the default keeps a tenth of each set of channels"
        multiple = f", or channel_multiple={units.multiple}" if units.multiple > 1 else ""
        raise ValueError(
            f"The fewest {COUNTED[units.budget]}s that can be left are {fewest:,} of {units.total():,}, and "
            f"{amount:,} are asked for. {ask}{limits}{multiple}."
        )

    def _first(self, count: int) -> np.ndarray:
        """What stays with so many of the best, bool (units,)."""
        kept = self._assured.copy()
        kept[self._order[:count]] = True
        return self._in_multiples(kept)

    def _in_multiples(self, kept: np.ndarray) -> np.ndarray:
        """Fewer units, so that those of each set are a multiple of `multiple`, and no fewer than its least; or all that
        survive."""
        multiple = self._units.multiple
        if multiple == 1:
            return kept
        rounded = np.zeros_like(kept)
        for each in self._units.sets:
            best, fewest = self._best_of(each.units), self._least[each.name]
            count = int(np.count_nonzero(kept[each.units]))
            if count < len(best):
                count = min(len(best), max(count // multiple, -(-fewest // multiple)) * multiple)
            rounded[best[:count]] = True
        return rounded

    def _best_of(self, units: np.ndarray) -> np.ndarray:
        """Those of these units that survive, the best first."""
        alive = units[self._before[units]]
        return alive[np.argsort(-self._scores[alive], kind="stable")]


def largest(cost: Callable[[int], int], limit: float, count: int) -> int:
    """The largest number of units, `count` at most, whose cost, never falling, is within a limit; that of none is."""
    return bisect.bisect_right(range(1, count + 1), limit, key=cost)


def nearly_largest(cost: Callable[[int], int], guide: Callable[[int], int], limit: int, count: int) -> int:
    """A number of units whose cost is within a limit and nearly as much, where each look at a cost takes long.

    A cost between two that are known is taken to rise as a guide does (regula falsi), and halved where that has moved
    the same end twice. As times neither rise steadily nor are ever quite the same, one that is to count as within the
    limit must be so by `SAFE` of it, and the search ends with the first that is at least `CLOSE` of it as well, or
    after ten looks.

    Args:
        cost: Of the first units in order, so many; rising by and large.
        guide: What is known at once, and rises with it, such as multiply-adds.
        limit: What the cost may be, at most.
        count: How many units there are.

    Returns:
        How many; their cost was seen to be safely within the limit. 0 where nothing else was, and all of them where
        theirs is the limit at most.

    Example:
        >>> looks = []
        >>> nearly_largest(lambda count: looks.append(count) or 300 + count**2, lambda count: count**2, 5000, 100)
        66
        >>> looks
        [100, 0, 66]
    """
    low, high = 0, count  # So many fit; so many do not.
    above = cost(high)
    if above <= limit:
        return high
    below, fitted = cost(low), list[bool]()
    for _ in range(_MOST - 2):
        if high - low <= 1 or below >= CLOSE * limit:
            break
        share = min(max((_AIM * limit - below) / max(above - below, 1), 0.0), 1.0)
        wanted = guide(low) + share * (guide(high) - guide(low))
        middle = min(max(largest(guide, wanted, count), low + 1), high - 1)
        if len(fitted) > 1 and fitted[-1] == fitted[-2]:
            middle = (low + high) // 2
        fitted.append((seen := cost(middle)) <= SAFE * limit)
        if fitted[-1]:
            low, below = middle, seen
        else:
            high, above = middle, seen
    return low
