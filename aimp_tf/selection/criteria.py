"""What the weights are ranked by: a score for each. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Scores = Mapping[str, np.ndarray]


def scores_of(
    criterion: object, weights: Scores, masks: Scores, generator: np.random.Generator
) -> tuple[Mapping[str, np.ndarray], bool]:
    """The scores of all weights, of which the largest are to be kept.

    Args:
        criterion: "magnitude", "lamp", "random", or a function `(weights, masks) -> scores`.
        weights: Path -> float array.
        masks: Path -> bool array of the same shape; True marks a survivor.
        generator: Draws the lots of "random".

    Returns:
        Path -> float array of the weight's shape, and whether their sign counts. For magnitudes it does not, so that
        the weights themselves are their scores.

    Raises:
        TypeError: The function gives something other than a dict of arrays of numbers.
        ValueError: It leaves a variable out, or gives a wrong shape, or NaN or infinity for a survivor.
    """
    if callable(criterion):
        # Copies, into which the function may write.
        copies = {path: np.array(weight) for path, weight in weights.items()}
        return _checked(criterion(copies, masks), weights, masks), True
    if criterion == "lamp":
        return lamp_scores(weights, masks), True
    if criterion == "random":
        return {path: generator.random(weight.shape, np.float32) for path, weight in weights.items()}, True
    return weights, False


def lamp_scores(weights: Scores, masks: Scores) -> Scores:
    """Layer-adaptive magnitudes: w**2 over the sum of the squares of its variable's survivors that rank no lower.

    Within a variable the order is that of the magnitudes, ties by position, and the largest weight scores 1.

    References:
        Lee, Park, Mo, Ahn and Shin, "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021, equation 2.

    Example:
        >>> lamp_scores({"a": np.array([1.0, -2.0, 0.0])}, {"a": np.ones(3, bool)})
        {'a': array([0.2, 1. , 0. ])}
    """
    scores = {}
    for path, weight in weights.items():
        squares = np.where(masks[path], weight, 0).astype(np.float64).reshape(-1) ** 2
        order = np.argsort(-squares, kind="stable")
        sums = np.cumsum(squares[order])
        ranked = np.divide(squares[order], sums, out=np.zeros_like(sums), where=sums > 0)
        score = np.empty_like(ranked)
        score[order] = ranked
        scores[path] = score.reshape(weight.shape)
    return scores


def _checked(scores: Any, weights: Scores, masks: Scores) -> Scores:
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
