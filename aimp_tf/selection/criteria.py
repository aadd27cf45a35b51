"""Criteria: weights, gradients, and the table of all names. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from aimp_tf.selection.activation_criteria import (
    ActivationDensity,
    Discriminant,
    MutualInformation,
    OutputInformation,
    Reconstruction,
    Utility,
    Votes,
)
from aimp_tf.selection.channel_layout import Channels
from aimp_tf.selection.criterion import Criterion, OfChannels, OfData, relative
from aimp_tf.selection.statistics import Arrays, Statistics


class Magnitude(Criterion):
    """The absolute value of a weight, in float32; of a channel the L2 norm, over its mean among those of its layers.

    References:
        Han, Pool, Tran and Dally, "Learning both weights and connections for efficient neural networks", NIPS 2015.

    Example:
        >>> Magnitude().scores(Statistics({"a": np.array([3.0, -5.0])}, {}, np.random.default_rng(0)))
        {'a': array([ 3., -5.])}
    """

    signed = False

    def scores(self, statistics: Statistics) -> Arrays:
        return statistics.weights


class Lamp(Criterion):
    """Layer-adaptive magnitudes: w**2 over the sum of the squares of its variable's survivors that rank no lower.

    Within a variable the order is that of the magnitudes, ties by position, and the largest weight scores 1.

    References:
        Lee, Park, Mo, Ahn and Shin, "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021, equation 2.

    Example:
        >>> weights, masks = {"a": np.array([1.0, -2.0, 0.0])}, {"a": np.ones(3, bool)}
        >>> Lamp().scores(Statistics(weights, masks, np.random.default_rng(0)))
        {'a': array([0.2, 1. , 0. ])}
    """

    def scores(self, statistics: Statistics) -> Arrays:
        scores = {}
        for path, weight in statistics.weights.items():
            squares = np.where(statistics.masks[path], weight, 0).astype(np.float64).reshape(-1) ** 2
            order = np.argsort(-squares, kind="stable")
            sums = np.cumsum(squares[order])
            ranked = np.divide(squares[order], sums, out=np.zeros_like(sums), where=sums > 0)
            score = np.empty_like(ranked)
            score[order] = ranked
            scores[path] = score.reshape(weight.shape)
        return scores


class Random(Criterion):
    """Lots, a control."""

    def scores(self, statistics: Statistics) -> Arrays:
        draw = statistics.generator.random
        return {path: draw(weight.shape, np.float32) for path, weight in statistics.weights.items()}

    def channel_scores(self, channels: Channels) -> np.ndarray:
        return channels.statistics.generator.random(channels.units.count)


class Scale(OfChannels):
    """The magnitude of the scale that normalisation gives a channel: |gamma|, the largest where it has several.

    Raises ValueError, naming layers, where channels have no normalisation with a scale.

    References:
        Liu, Li, Shen, Huang, Yan and Zhang, "Learning efficient convolutional networks through network slimming", ICCV
        2017, section 3; Ye, Lu, Lin and Wang, "Rethinking the smaller-norm-less-informative assumption", ICLR 2018.
    """

    def channel_scores(self, channels: Channels) -> np.ndarray:
        units = channels.units
        scores = np.full(units.count, -1.0)
        for path, axes in units.axes.items():
            if path.split("/")[-1] == "gamma" and axes[0] is not None:
                free = axes[0] >= 0
                np.maximum.at(scores, axes[0][free], np.abs(channels.statistics.weights[path])[free])
        without = [each.name for each in channels.sets if (scores[each.units] < 0).any()]
        if without:
            raise ValueError(
                f"The criterion {self.name} ranks channels by the scale of their normalisation, and there is none "
                f"after {', '.join(without)}. Name their kernels in exclude, or take another criterion."
            )
        return scores


class Taylor(OfData):
    """How much the loss changes without a weight or a channel, to first order, whatever the sign.

    Of a weight, |w * dL/dw|, the mean over batches. Of a channel, |sum over positions of a * dl/da| on an example,
    where a is what all that read the channel get and l the loss, the mean over examples: for kernels that read it, that
    is the sum of W * dl/dW over their rows. With one batch of one example, both are the change itself. In a model where
    other layers than Dense and plain convolutions read or make channels, such as attention, a channel or head has the
    sum of its weights' scores.

    References:
        Molchanov, Tyree, Karras, Aila and Kautz, "Pruning convolutional neural networks for resource efficient
        inference", ICLR 2017, section 2.2; Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance estimation for
        neural network pruning", CVPR 2019, equation 8.

    Example: `criterion="taylor"`. Of a loss 3 * w with w = 2, the weight scores 6, and without it the loss falls by 6.
    """

    needs, channel_needs = ("absolute_gradients",), ("contributions",)

    def scores(self, statistics: Statistics) -> Arrays:
        gradients = statistics.absolute_gradients
        return {path: np.abs(weight) * gradients[path] for path, weight in statistics.weights.items()}

    def channel_scores(self, channels: Channels) -> np.ndarray:
        if channels.units.others:
            return channels.pool(self.scores(channels.statistics), signed=True)
        return np.abs(np.concatenate(channels.contributions)).mean(axis=0)


class Fisher(OfData):
    """How far the outputs move without a weight or a channel, to second order: d' F d / 2, with the Fisher information.

    F is the empirical one: the mean square of the gradients of single examples at their own targets. Of a channel, d
    is all of the rows that read it, and d' F d the mean over examples of (sum over positions of a * dl/da)**2, which
    leaves out nothing between them. Of a weight, w**2 * F_ww / 2, where F_ww is estimated from the squares of the
    gradients of batches, times the examples in one. Of channels and heads of models as `Taylor` names them, the sum of
    their weights' scores.

    References:
        Yu, Han, Wang, Huang, Huang and Cui, "HFP: Hardware-aware filter pruning for deep convolutional neural networks
        acceleration", ICPR 2020, whose information gain this estimates; Theis, Korshunova, Tejani and Huszar, "Faster
        gaze prediction with dense networks and Fisher pruning", 2018; Liu, Zhang, Kuang and others, "Group Fisher
        pruning for practical network compression", ICML 2021.

    Example: `criterion="fisher"`. Where a * dl/da is 1 and -3 on two examples, the channel scores (1 + 9) / 4 = 2.5.
    """

    needs, channel_needs = ("squared_gradients",), ("contributions",)

    def scores(self, statistics: Statistics) -> Arrays:
        squares = statistics.squared_gradients
        # In float16, squares of small weights are zero.
        weights = {
            path: weight.astype(np.result_type(weight, np.float32)) for path, weight in statistics.weights.items()
        }
        return {path: weight**2 * squares[path] / 2 for path, weight in weights.items()}

    def channel_scores(self, channels: Channels) -> np.ndarray:
        if channels.units.others:
            return channels.pool(self.scores(channels.statistics), signed=True)
        return (np.concatenate(channels.contributions) ** 2).mean(axis=0) / 2


class Gradient(OfData):
    """The magnitude of the gradient alone: what training does not change is not worth much.

    Of a weight, |dL/dw|, the mean over batches. Of a channel, its sum over the kernels that make it, over the mean of
    that among the channels of the same layers.

    References:
        Nguyen-Meidine, Granger, Kiran and Blais-Morin, "Progressive gradient pruning for classification, detection and
        domain adaptation", 2019, whose sum over an epoch this takes over some batches.

    Example: `criterion="gradient"`. Of a filter with gradients 0.5 and -1.5, the sum is 2.
    """

    needs = channel_needs = ("absolute_gradients",)

    def scores(self, statistics: Statistics) -> Arrays:
        return statistics.absolute_gradients

    def channel_scores(self, channels: Channels) -> np.ndarray:
        gradients = channels.statistics.absolute_gradients
        return relative(channels.units.pool_made(gradients, channels.statistics.masks), channels)


class Given(OfChannels):
    """Scores of channels that are known, float (units,)."""

    def __init__(self, scores: np.ndarray) -> None:
        self._scores = scores

    def channel_scores(self, channels: Channels) -> np.ndarray:
        return self._scores


class _Function(Criterion):
    """A function `(weights, masks) -> scores` of the user's."""

    def __init__(self, function: Callable[[Arrays, Arrays], Any]) -> None:
        self._function = function

    def scores(self, statistics: Statistics) -> Arrays:
        # Copies, into which the function may write.
        copies = {path: np.array(weight) for path, weight in statistics.weights.items()}
        scores: Arrays = self._function(copies, statistics.masks)
        return scores


CRITERIA: dict[str, type[Criterion]] = {
    "magnitude": Magnitude,
    "lamp": Lamp,
    "random": Random,
    "scale": Scale,
    "taylor": Taylor,
    "fisher": Fisher,
    "gradient": Gradient,
    "utility": Utility,
    "votes": Votes,
    "activation_density": ActivationDensity,
    "discriminant": Discriminant,
    "mutual_information": MutualInformation,
    "reconstruction": Reconstruction,
    "output_information": OutputInformation,
}
"""By their names in `PruningConfig.criterion`."""


def criterion_of(value: Any) -> Criterion:
    """The criterion that `PruningConfig.criterion` stands for: a name, a `Criterion`, or a function."""
    if isinstance(value, Criterion):
        return value
    return CRITERIA[value]() if isinstance(value, str) else _Function(value)
