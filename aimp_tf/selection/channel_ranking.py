"""Whole channels along their ranking: how many of the best stay within a budget. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aimp_tf.config.checks import COUNTED
from aimp_tf.selection.channel_layout import ChannelLayout
from aimp_tf.selection.search import largest, nearly_largest


class ChannelRanking:
    """The units that survive, the best first, and those that stay whatever their rank is.

    Args:
        units: All of them.
        scores: Of each, float (units,). Ties go by position.
        before: Which of them survive, bool (units,). Others stay away.
        least: How many of each set stay whatever their rank is, the best of it.
        shares: Of each set, which part of it stays, beside those of others, as nearly as can be. None ranks all
            together.
    """

    def __init__(
        self,
        units: ChannelLayout,
        scores: np.ndarray,
        before: np.ndarray,
        least: Sequence[int],
        shares: Sequence[float] | None = None,
    ) -> None:
        self._units, self._scores, self._before, self._least = units, scores, before, least
        self._assured, places = np.zeros(units.count, bool), np.array(scores, np.float64)
        for index, (each, fewest) in enumerate(zip(units.sets, least, strict=True)):
            best = self._best_of(each.units)
            self._assured[best[:fewest]] = True
            if shares is not None:
                places[best] = -np.arange(1, len(best) + 1) / (len(each.units) * shares[index])
        free = np.flatnonzero(before & ~self._assured)
        self._order = free[np.argsort(-places[free], kind="stable")]

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
            low = self._assured & (self._scores < self._scores[self._order[count]])
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
        for each, fewest in zip(self._units.sets, self._least, strict=True):
            best = self._best_of(each.units)
            count = int(np.count_nonzero(kept[each.units]))
            if count < len(best):
                count = min(len(best), max(count // multiple, -(-fewest // multiple)) * multiple)
            rounded[best[:count]] = True
        return rounded

    def _best_of(self, units: np.ndarray) -> np.ndarray:
        """Those of these units that survive, the best first."""
        alive = units[self._before[units]]
        return alive[np.argsort(-self._scores[alive], kind="stable")]
