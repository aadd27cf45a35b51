"""Criterion: what weights and channels are ranked by, and what is checked of the scores that one gives. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aimp_tf.selection.channel_layout import Channels
from aimp_tf.selection.statistics import Arrays, Statistics


class Criterion:
    """What the weights are ranked by; subclass it for one of your own.

    Attributes:
        signed: Whether the sign of a score counts. Where it does not, magnitudes are ranked.
        batches: How many batches of the training data a sample has, its first ones, unless
            `PruningConfig.criterion_batches` says so.
        needs: Names of attributes of `Statistics` that `scores` uses: they are computed together, in one pass over the
            sample.
        channel_needs: The same of `channel_scores`.
        name: What to call it in errors.
    """

    signed: bool = True
    batches: int = 8
    needs: tuple[str, ...] = ()
    channel_needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return type(self).__name__

    def scores(self, statistics: Statistics) -> Arrays:
        """The scores of all weights, of which the largest are kept: path -> float array of the weight's shape."""
        raise NotImplementedError

    def channel_scores(self, channels: Channels) -> np.ndarray:
        """The scores of whole channels, comparable between layers, float (units,); those of channels that do not
        survive are not looked at.

        Returns:
            By default the sums of the scores of the channel's weights, as they are; where their sign does not count,
            the L2 norms over their mean among the channels of the same layers, for wide layers have other norms than
            narrow ones (Fang, Ma, Song, Mi and Wang, "DepGraph: Towards any structural pruning", CVPR 2023, section
            3.3).
        """
        pooled = channels.pool(scores_of(self, channels.statistics), self.signed)
        return pooled if self.signed else relative(pooled, channels)


class OfData(Criterion):
    """A criterion that goes by the training data.

    Args:
        batches: As `Criterion.batches`.
    """

    def __init__(self, batches: int = 8) -> None:
        self.batches = batches


class OfChannels(Criterion):
    """A criterion that knows whole channels alone, or whole structures of another kind."""

    _kind = "channel"

    def scores(self, statistics: Statistics) -> Arrays:
        raise self._refusal()

    def _refusal(self) -> ValueError:
        return ValueError(
            f"The criterion {self.name} ranks whole {self._kind}s. Write granularity={self._kind!r}, or take another "
            "criterion."
        )


def relative(scores: np.ndarray, channels: Channels) -> np.ndarray:
    """Scores of channels over their mean among those of the same layers."""
    divided = scores.copy()
    for each in channels.sets:
        mean = scores[each.units].mean() if len(each.units) else 0.0
        divided[each.units] /= mean or 1.0
    return divided


def scores_of(criterion: Criterion, statistics: Statistics) -> Arrays:
    """The scores that a criterion gives, path -> float array.

    Raises:
        TypeError: They are something other than a dict of arrays of numbers.
        ValueError: They leave a variable out, or have a wrong shape, or NaN or infinity for a survivor.
    """
    scores = criterion.scores(statistics)
    return scores if scores is statistics.weights else _checked(scores, statistics.weights, statistics.masks)


def channel_scores_of(criterion: Criterion, channels: Channels) -> np.ndarray:
    """The scores that a criterion gives of channels, float64 (units,).

    Raises:
        TypeError, ValueError: As `scores_of`, of channels.
    """
    expected = f"channel_scores must return an array of scores, ({channels.units.count},)"
    returned = criterion.channel_scores(channels)
    try:
        scores = np.array(returned, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{expected}; it returned something else. {error}") from error
    if scores.shape != (channels.units.count,):
        raise ValueError(f"{expected}; got one of shape {scores.shape}.")
    alive = np.concatenate([each.units for each in channels.sets])
    if not np.all(np.isfinite(scores[alive])):
        raise ValueError(
            f"The criterion {criterion.name} gives NaN or infinity for {channels.units.noun}s that survive; scores "
            "must be finite."
        )
    return scores


def _checked(scores: Any, weights: Arrays, masks: Arrays) -> Arrays:
    expected = "criterion must return a dict with an array of scores for each variable, of the variable's shape"
    if not isinstance(scores, Mapping):
        raise TypeError(f"{expected}; got {type(scores).__name__}.")
    missing = [path for path in weights if path not in scores]
    unknown = [path for path in scores if path not in weights]
    if missing or unknown:
        raise ValueError(
            f"{expected}; missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}."
        )
    checked = {}
    for path, weight in weights.items():
        try:
            score = np.asarray(scores[path], np.float32)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{expected}; {path} got {type(scores[path]).__name__}.") from error
        if score.shape != weight.shape:
            raise ValueError(f"{expected}; {path} has shape {weight.shape} and got scores of shape {score.shape}.")
        if not np.all(np.isfinite(score[masks[path]])):
            raise ValueError(
                f"criterion gives NaN or infinity for survivors of {path}; scores must be finite in float32."
            )
        checked[path] = score
    return checked
