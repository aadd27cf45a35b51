"""Whole channels as units: each with all the slices of variables that stand or fall with it. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.selection.channel_layout import ChannelLayout, Channels
from aimp_tf.selection.channel_ranking import ChannelRanking
from aimp_tf.selection.criterion import Criterion, channel_scores_of
from aimp_tf.selection.scope import shares_of
from aimp_tf.selection.statistics import Arrays, Statistics


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
        """As `Units.rank`, with as much left as `ChannelRanking.within` says."""
        channels = Channels(self, statistics)
        scores, before = channel_scores_of(criterion, channels), self.kept(statistics.masks)
        fewest, shares = [least[each.name] for each in self.sets], shares_of(scope, channels)
        kept, guarded = ChannelRanking(self, scores, before, fewest, shares).within(keep)
        return self.expand(kept), guarded

    def needs(self, criterion: Criterion) -> tuple[str, ...]:
        """As `Units.needs`."""
        return criterion.channel_needs
