"""What the ranking of a run goes by: criterion, limits, a sample of the data, and random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aimp_tf.compat.cluster import Cluster
from aimp_tf.config import PruningConfig
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.channels import ChannelRanking, ChannelUnits
from aimp_tf.selection.criteria import criterion_of
from aimp_tf.selection.ranking import check_finite
from aimp_tf.selection.scope import needs_of
from aimp_tf.selection.statistics import Statistics
from aimp_tf.selection.units import Units, keep_best
from aimp_tf.training.repair import check_repairable
from aimp_tf.training.statistics import ModelSample


class RunRanking:
    """Ranks what is left of a masked model, as a valid config says.

    Attributes:
        sample: Batches of training data, for criteria that ask for some; None where there are none.
        criterion: What ranks.
    """

    def __init__(self, config: PruningConfig) -> None:
        self.sample: Any = None
        self.criterion = criterion_of(config.criterion)
        self._config = config
        self._sample: ModelSample | None = None  # Kept, for it traces what it computes.
        self._cluster: Cluster | None = None
        self._least: Mapping[str, int] = {}
        self._never: Mapping[str, np.ndarray] = {}  # What was pruned before the run, and stays so.

    def begin(self, masked: MaskedModel) -> None:
        """Settles the limits for a model. Raises ValueError where its sizes do not allow them."""
        self._cluster = masked.cluster
        if self._config.regrow:
            self._never = {path: ~mask for path, mask in masked.masks().items()}
        if self._config.method != "dense":
            self._least = masked.units.least(self._config, masked.sizes)

    def check(self, masked: MaskedModel, keep: int) -> None:
        """Raises, before anything is trained, what ranking to the end of the run would."""
        statistics = self.statistics(masked, 0)
        masked.units.check_reachable(statistics.masks, keep, self._least)
        # To a time, models would be timed that are not those of any round.
        self.rank(masked, statistics, keep if self._config.latency is None else masked.kept)
        if self._config.regrow:
            _ = statistics.gradients
        if self._config.repair:
            check_repairable(masked, statistics)

    def statistics(self, masked: MaskedModel, index: int) -> Statistics:
        """What there is to rank a model by after so many rounds."""
        config, criterion = self._config, self.criterion
        of_channels = isinstance(masked.units, ChannelUnits)
        needs = {*(criterion.channel_needs if of_channels else criterion.needs), *needs_of(config.scope)}
        needs |= {*(("grams",) if config.repair else ()), *(("gradients",) if config.regrow else ())}
        if self.sample is None:
            self._sample = None
        elif self._sample is None or not self._sample.is_of(masked, self.sample):
            self._sample = ModelSample(masked, self.sample, config.criterion_batches or criterion.batches)
        return Statistics(masked.weights(), masked.masks(), self.generator(index), self._sample, needs)

    def rank(
        self, masked: MaskedModel, statistics: Statistics, keep: int
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """The masks that keep the best `keep` survivors, and where limits changed them.

        Raises:
            RuntimeError: A survivor is NaN or infinite.
            TypeError, ValueError: The criterion cannot rank, or so little cannot be left.
        """
        check_finite(statistics.weights, statistics.masks)
        units = masked.units
        count = self._to_regrow(masked, statistics, keep)
        after, guarded = units.rank(self.criterion, statistics, keep - count, self._least, self._config.scope)
        if count:
            assert isinstance(units, Units)
            removed = self._removed(statistics)
            grown = keep_best(statistics.gradients, removed, count, dict.fromkeys(removed, 0), units=units)[0]
            after = {path: after[path] | grown[path] for path in after}
        return after, guarded

    def choose(self, units: ChannelUnits, scores: np.ndarray, before: np.ndarray, keep: int) -> np.ndarray:
        """As `rank`, of channels by these scores: which of those of before stay, bool (units,)."""
        return ChannelRanking(units, scores, before, self._least).within(keep)[0]

    def _to_regrow(self, masked: MaskedModel, statistics: Statistics, keep: int) -> int:
        """How many of the weights that are removed already take the place of survivors."""
        share = self._config.regrow
        if not share:
            return 0
        removed = masked.units.spent(self._removed(statistics))
        block = self._config.structure.block
        return block * (min(int(share * keep), removed, keep - sum(self._least.values())) // block)

    def _removed(self, statistics: Statistics) -> dict[str, np.ndarray]:
        """What was removed in the run, as masks."""
        return {path: ~mask & ~self._never[path] for path, mask in statistics.masks.items()}

    def generator(self, index: int) -> np.random.Generator:
        """Of a round of its own, so that what is drawn does not depend on what was drawn before."""
        seed = self._config.seed
        if seed is None:
            assert self._cluster is not None
            seed = self._cluster.from_chief(int(np.random.randint(2**31)))
        return np.random.default_rng([seed % 2**63, index])
