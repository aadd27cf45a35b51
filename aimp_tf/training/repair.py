"""Correcting what is left of kernels after a mask step, so that layers give what they gave."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.variables import local_view
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.grams import repaired
from aimp_tf.selection.statistics import Statistics
from aimp_tf.training.listening import reading_layers

logger = logging.getLogger(__name__)


def check_repairable(masked: MaskedModel, statistics: Statistics) -> None:
    """Raises ValueError if a model has no layer that can be repaired, or there is no data to do so by."""
    prunable, grams = list(masked.prunable), statistics.grams
    if not grams:
        raise ValueError(
            f"repair corrects kernels of Dense layers and plain convolutions, and the model {masked.original.name!r} "
            f"has none among those that are pruned: {', '.join(prunable)}. Write repair=False."
        )
    if others := [path for path in prunable if path not in grams]:
        logger.info("What is left of %s is not repaired: it is no kernel of a plain layer.", ", ".join(others))


def repairs(
    masked: MaskedModel, statistics: Statistics, after: Mapping[str, np.ndarray]
) -> list[tuple[Any, np.ndarray]]:
    """What the best repair makes of the kernels and biases that lose what they read, or single weights.

    Args:
        masked: The model, as it was when the statistics were gathered.
        statistics: Of before the mask step.
        after: The masks of after it.

    Returns:
        Variables that change, and their new values, of which the masks are still to be heeded.
    """
    check_repairable(masked, statistics)
    changed: list[tuple[Any, np.ndarray]] = []
    layers, grams = reading_layers(masked), statistics.grams
    for path, gram in grams.items():
        mask, weight = after[path], statistics.weights[path]
        if np.array_equal(mask, statistics.masks[path]):
            continue
        outputs = weight.shape[-1]
        kernel, shift = repaired(gram, weight.reshape(-1, outputs), mask.reshape(-1, outputs))
        changed.append((masked.variables[path], kernel.reshape(weight.shape).astype(weight.dtype)))
        if shift.any():
            bias = layers[path].bias
            value, constraint = (local_view(bias) + shift).astype(weight.dtype), layers[path].bias_constraint
            changed.append((bias, value if constraint is None else np.asarray(constraint(tf.constant(value)))))
    values = masked.cluster.from_chief([value for _, value in changed])
    return [(variable, value) for (variable, _), value in zip(changed, values, strict=True)]
