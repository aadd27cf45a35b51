"""Correcting what is left of kernels after a mask step, so that layers give what they gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aimp_tf.compat.variables import local_view
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.grams import repaired
from aimp_tf.selection.statistics import Statistics
from aimp_tf.training.statistics import reading_layers


def check_repairable(masked: MaskedModel, statistics: Statistics) -> None:
    """Raises ValueError if a model has no layer that can be repaired, or there is no data to do so by."""
    if not statistics.grams:
        raise ValueError(
            f"repair corrects kernels of Dense and convolution layers, and the model {masked.original.name!r} has none "
            "among those that are pruned. Leave it out."
        )


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
            changed.append((bias, (local_view(bias) + shift).astype(weight.dtype)))
    values = masked.cluster.from_chief([value for _, value in changed])
    return [(variable, value) for (variable, _), value in zip(changed, values, strict=True)]
