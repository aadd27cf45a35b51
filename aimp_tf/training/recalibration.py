"""Normalisation that fits what is left of a model: moving statistics from a few batches, without training."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from aimp_tf.compat.models import layers_of
from aimp_tf.compat.swap import Swap
from aimp_tf.masking import MaskedModel
from aimp_tf.training.statistics import batches_of


def recalibrate(masked: MaskedModel, data: Any, batches: int) -> int:
    """Sets the moving statistics of batch normalisation to the means of those of some batches.

    Layer after layer, each as it would be normalised in training; nothing else behaves as in training. What is frozen
    stays.

    Args:
        masked: The model.
        data: As `ModelSample` takes it.
        batches: How many, from the first on.

    Returns:
        How many layers there were.
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
            swaps.enter_context(Swap(layer, "call", _in_training(layer.call)))
        for count, (x, _, _) in enumerate(batches_of(data, batches)):
            with contextlib.ExitStack() as of_batch:
                for layer in layers:
                    # So that what comes out is the mean of all batches so far.
                    of_batch.enter_context(Swap(layer, "momentum", count / (count + 1)))
                with model.distribute_strategy.scope():
                    model.distribute_strategy.run(lambda x=x: model(x, training=False))
    masked.synchronize()
    return len(layers)


def _in_training(call: Any) -> Any:
    """The `call` of a normalisation that goes by the batch, and learns of it."""

    def call_in_training(*arguments: Any, **settings: Any) -> Any:
        given = inspect.signature(call).bind(*arguments, **settings)
        given.arguments["training"] = True
        return call(*given.args, **given.kwargs)

    return call_in_training
