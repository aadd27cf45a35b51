"""Whole channels as units: each with all the slices of variables that stand or fall with it. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.selection.channel_layout import ChannelLayout, others_than
from aimp_tf.selection.channel_ranking import ChannelRanking
from aimp_tf.selection.criterion import Criterion, channel_scores_of
from aimp_tf.selection.scope import shares_of
from aimp_tf.selection.statistics import Arrays, Channels, Statistics, check_read


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
            if config.max_layer_sparsity is not None:
                # Rounded first, for 0.29 * 100 is less than 29 in floating point.
                count = max(count, size - math.floor(round(config.max_layer_sparsity * size, 6)))
            counts[each.name] = min(size, max(fewest, count))
        return counts

    def check_reachable(self, masks: Arrays | None, keep: int, least: Mapping[str, int]) -> None:
        """Raises ValueError if so little cannot be left of what these masks keep, or of all."""
        before = np.ones(self.count, bool) if masks is None else self.kept(masks)
        fewest = [least[each.name] for each in self.sets]
        ChannelRanking(self, np.zeros(self.count), before, fewest).check(keep)

    def rank(
        self, criterion: Criterion, statistics: Statistics, keep: int, least: Mapping[str, int], scope: object
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """As `Units.rank`, with as much left as `choose` says."""
        channels = Channels(self, statistics)
        scores, before = channel_scores_of(criterion, channels), self.kept(statistics.masks)
        fewest, shares = [least[each.name] for each in self.sets], shares_of(scope, channels)
        kept, guarded = self.choose(scores, before, keep, fewest, shares)
        return self.expand(kept), guarded

    def needs(self, criterion: Criterion) -> tuple[str, ...]:
        """As `Units.needs`."""
        return criterion.channel_needs

    def pool_made(self, scores: Arrays, masks: Arrays) -> np.ndarray:
        """The sum over the weights of the kernels that make a unit, those that survive, float64 (units,)."""
        check_read(self.others)
        made = [(path, self.axis_of_outputs(path), self.made_by(path)) for path in self.reads]
        return self._pool(scores, masks, made)

    def pool(self, scores: Arrays, masks: Arrays, signed: bool) -> np.ndarray:
        """The score of each unit, float64 (units,): the sum of those of its members that survive, or their L2 norm
        unless `signed`. An entry in which two units meet belongs to both."""
        axes = self.axes_of(self.scored)
        return self._pool(scores, masks, axes) if signed else np.sqrt(self._pool(scores, masks, axes, power=2))

    def _pool(
        self, scores: Arrays, masks: Arrays, axes: Iterable[tuple[str, int, np.ndarray]], power: int = 1
    ) -> np.ndarray:
        """The sum of the powers of what survives along some axes, as `axes_of` gives them, float64 (units,)."""
        pooled = np.zeros(self.count)
        for path, axis, units in axes:
            score = np.where(masks[path], scores[path], 0).astype(np.float64)
            sums = (score**power).sum(axis=others_than(axis, score.ndim))
            np.add.at(pooled, units[units >= 0], sums[units >= 0])
        return pooled

    def choose(
        self,
        scores: np.ndarray,
        before: np.ndarray,
        amount: int,
        least: Sequence[int],
        shares: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """The largest number of units along their ranking that stays within an amount, or nearly so of a time.

        Args:
            scores: Of the units, float (units,).
            before: Which of them survive, bool (units,). Others stay away.
            amount: How much may be left, in what the budget counts.
            least: How many of each set stay whatever their rank is, the best of it.
            shares: Of each set, which part of it stays, beside those of others, as nearly as can be. None ranks all
                together.

        Returns:
            Which units stay, bool (units,), ties by position; and the names of the sets that kept more than their rank
            gave them.

        Raises:
            ValueError: Even the fewest units that may be left are more than that.
        """
        return ChannelRanking(self, scores, before, least, shares).within(amount)
