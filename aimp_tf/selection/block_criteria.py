"""A criterion of whole blocks that goes by what they add, on a sample of the training data. NumPy only."""

from __future__ import annotations

import numpy as np

from aimp_tf.selection.channel_layout import Channels
from aimp_tf.selection.criterion import OfData
from aimp_tf.selection.gaussian import log_determinant, standardized
from aimp_tf.selection.statistics import Arrays, Statistics

_SHUFFLE = 0
"""Seed of the order in which examples are paired with the outputs of others."""


class OutputInformation(OfData):
    """What a block tells of the outputs of the model: a Gaussian estimate of their mutual information, in nats.

    I(b; y) = (1/2) log(det C_b det C_y / det C_by) of normal variables, where b is what the block adds and y what the
    model gives, both means over positions, and C are their covariances. Of few examples that is too much, and the more
    so the wider a block is: what the same gives where the outputs are those of other examples is taken off.

    References:
        Soltani, Wu, Ding, Ravier and Tarokh, "On the information of feature maps and pruning of deep neural networks",
        ICPR 2020, which removes the layers that tell least of the output.

    Example: `granularity="block", criterion="output_information"`. With b and y of variance 1 and covariance 0.6, it is
    -log(1 - 0.36) / 2 = 0.22.
    """

    channel_needs = ("branches", "outputs")

    def scores(self, statistics: Statistics) -> Arrays:
        raise ValueError(self._refusal)

    def channel_scores(self, channels: Channels) -> np.ndarray:
        if "block" not in channels.units.kinds:
            raise ValueError(self._refusal)
        outputs = standardized(np.concatenate(channels.statistics.outputs))
        if len(outputs) < 2:
            raise ValueError(f"The criterion {self.name} goes by several examples; got {len(outputs)}.")
        order = np.random.default_rng(_SHUFFLE).permutation(len(outputs))
        others = np.empty_like(outputs)
        others[order] = outputs[np.roll(order, 1)]
        scores = np.zeros(channels.units.count)
        for unit, name in enumerate(channels.units.others):
            branch = standardized(np.concatenate(channels.statistics.branches[name]))
            # What each of the two has alone is the same.
            apart, together = (log_determinant(np.concatenate([branch, those], axis=1)) for those in (others, outputs))
            scores[unit] = (apart - together) / 2
        return scores

    @property
    def _refusal(self) -> str:
        return f"The criterion {self.name} ranks whole blocks. Write granularity='block', or take another criterion."
