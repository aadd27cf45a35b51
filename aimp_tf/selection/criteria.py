"""What the weights are ranked by: a score for each. NumPy only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

Arrays = Mapping[str, np.ndarray]
"""Path of a variable -> an array of its shape."""


class Sample(Protocol):
    """A few batches of the training data, with the model that they are for."""

    def gradients(self) -> Mapping[str, np.ndarray]: ...

    def inputs(self) -> Iterator[Mapping[str, Sequence[np.ndarray]]]: ...


class Statistics:
    """What a criterion may ask for. Nothing is computed, and no data is read, before it is.

    Attributes:
        weights: Path -> float array, each read when it is asked for. They are not to be written into.
        masks: Path -> bool array of the same shape; True marks a survivor.
        generator: Draws what is random, in each round anew.
    """

    def __init__(
        self, weights: Arrays, masks: Arrays, generator: np.random.Generator, sample: Sample | None = None
    ) -> None:
        """Of weights and masks, and of a sample of the training data where there is one."""
        self.weights = weights
        self.masks = masks
        self.generator = generator
        self._given = sample

    @functools.cached_property
    def gradients(self) -> Mapping[str, np.ndarray]:
        """Path -> float32 array: the gradient of the loss that the model was compiled with, the mean over the batches
        of the sample, in inference mode (no dropout, moving statistics as they are); of pruned weights as well.

        Raises:
            ValueError: There is no training data to take a sample of.
        """
        return self._sample.gradients()

    def inputs(self) -> Iterator[Mapping[str, Sequence[np.ndarray]]]:
        """What the weights multiply, batch by batch: path -> float array (examples, ..., channels), one for each call
        of the layer. Of kernels of Dense, EinsumDense and convolution layers, in inference mode.

        Raises:
            ValueError: There is no training data to take a sample of.
        """
        return self._sample.inputs()

    @property
    def _sample(self) -> Sample:
        if self._given is None:
            raise ValueError(
                "The criterion asks for training data, and the callback knows of none. Call aimp_tf.prune(model, x, y, "
                "...), or set pruning.sample to a few batches, such as dataset.take(8)."
            )
        return self._given


class Criterion:
    """What the weights are ranked by; subclass it for one of your own.

    Attributes:
        signed: Whether the sign of a score counts. Where it does not, magnitudes are ranked.
        batches: How many batches of the training data a sample has, the same ones in every round.
    """

    signed: bool = True
    batches: int = 8

    def scores(self, statistics: Statistics) -> Arrays:
        """The scores of all weights, of which the largest are kept: path -> float array of the weight's shape."""
        raise NotImplementedError

    def of_units(self, pooled: np.ndarray, sets: Sequence[np.ndarray], generator: np.random.Generator) -> np.ndarray:
        """The scores of whole channels, comparable between layers, float (units,).

        Args:
            pooled: Of each channel, the sum of the scores of its weights, or where their sign does not count their L2
                norm.
            sets: The channels that survive, by their indices, in sets of those that have the same variables.
            generator: Draws what is random.

        Returns:
            The sums as they are; norms over the mean of their set, for wide layers have other norms than narrow ones
            (Fang, Ma, Song, Mi and Wang, "DepGraph: Towards any structural pruning", CVPR 2023, section 3.3).
        """
        scores = pooled.copy()
        if not self.signed:
            for units in sets:
                mean = pooled[units].mean() if len(units) else 0.0
                scores[units] /= mean or 1.0
        return scores


class Magnitude(Criterion):
    """The absolute value of a weight, in float32.

    References:
        Han, Pool, Tran and Dally, "Learning both weights and connections for efficient neural networks", NIPS 2015.
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

    def of_units(self, pooled: np.ndarray, sets: Sequence[np.ndarray], generator: np.random.Generator) -> np.ndarray:
        return generator.random(len(pooled))


class _Function(Criterion):
    """A function `(weights, masks) -> scores` of the user's."""

    def __init__(self, function: Callable[[Arrays, Arrays], Any]) -> None:
        self._function = function

    def scores(self, statistics: Statistics) -> Arrays:
        # Copies, into which the function may write.
        copies = {path: np.array(weight) for path, weight in statistics.weights.items()}
        scores: Arrays = self._function(copies, statistics.masks)
        return scores


CRITERIA: dict[str, Criterion] = {"magnitude": Magnitude(), "lamp": Lamp(), "random": Random()}
"""By their names in `PruningConfig.criterion`."""


def criterion_of(value: Any) -> Criterion:
    """The criterion that `PruningConfig.criterion` stands for: a name, a `Criterion`, or a function."""
    if isinstance(value, Criterion):
        return value
    return CRITERIA[value] if isinstance(value, str) else _Function(value)


def scores_of(criterion: Criterion, statistics: Statistics) -> Arrays:
    """The scores that a criterion gives, path -> float array.

    Raises:
        TypeError: They are something other than a dict of arrays of numbers.
        ValueError: They leave a variable out, or have a wrong shape, or NaN or infinity for a survivor.
    """
    scores = criterion.scores(statistics)
    return scores if scores is statistics.weights else _checked(scores, statistics.weights, statistics.masks)


def _checked(scores: Any, weights: Arrays, masks: Arrays) -> Arrays:
    expected = "criterion must return a dict with an array of scores for each variable, of the variable's shape"
    if not isinstance(scores, Mapping):
        raise TypeError(f"{expected}; got {type(scores).__name__}.")
    missing, unknown = (
        [path for path in weights if path not in scores],
        [path for path in scores if path not in weights],
    )
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
