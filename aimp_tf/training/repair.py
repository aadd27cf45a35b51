"""Correcting what is left after a mask step, without training: kernels, and what normalisation goes by."""

from __future__ import annotations

import collections
import contextlib
import inspect
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import layers_of
from aimp_tf.compat.swap import Swap
from aimp_tf.compat.variables import local_view
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.grams import repaired
from aimp_tf.selection.statistics import Statistics
from aimp_tf.training.listening import reading_layers
from aimp_tf.training.statistics import batches_of

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
    """Kernels and biases that lose what they read, or single weights, and what the best repair makes of them.

    Args:
        masked: The model, as it was when the statistics were gathered.
        statistics: Of before the mask step.
        after: The masks of after it, which are still to be heeded.
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


def recalibrate(masked: MaskedModel, data: Any, batches: int) -> int:
    """Sets the moving statistics of batch normalisation to the means of those of some batches, in all its calls.

    Layer after layer, each as it would be normalised in training; nothing else behaves as in training. What is frozen
    stays. Returns how many layers there were.
    """
    model = masked.model
    layers = [
        layer
        for layer in layers_of(masked.original)
        if hasattr(layer, "moving_mean") and hasattr(layer, "momentum") and layer.trainable
    ]
    if not layers:
        return 0
    with contextlib.ExitStack() as swaps:
        for layer in layers:
            swaps.enter_context(Swap(layer, "momentum", layer.momentum))  # Each call sets its own.
            swaps.enter_context(Swap(layer, "call", _in_training(layer)))
        for x, _, _ in batches_of(data, batches):
            with model.distribute_strategy.scope():
                model.distribute_strategy.run(lambda x=x: model(x, training=False))
    masked.synchronize()
    return len(layers)


def _in_training(layer: Any) -> Any:
    """The `call` of a normalisation that goes by the batch, and has learned the mean of all calls so far."""
    call, counts = layer.call, collections.Counter[int]()

    def call_in_training(*arguments: Any, **settings: Any) -> Any:
        given = inspect.signature(call).bind(*arguments, **settings)
        given.arguments["training"] = True
        replica = int(tf.get_static_value(tf.distribute.get_replica_context().replica_id_in_sync_group))
        layer.momentum = counts[replica] / (counts[replica] + 1)
        counts[replica] += 1
        return call(*given.args, **given.kwargs)

    return call_in_training
