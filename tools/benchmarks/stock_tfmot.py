"""tf_keras: gradual pruning by tfmot's `prune_low_magnitude` itself, to compare with.

Import this module by `import_with_tfmot` only: importing tfmot has side effects, which are undone there.
"""

from __future__ import annotations

import math
from typing import Any

import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import (
    prune,
    pruning_callbacks,
    pruning_policy,
    pruning_schedule,
)

from aimp_tf.graph.prunable import prunable_variables
from experiments.datasets import ImageData

_FREQUENCY = 100


class _LayersWithKernels(pruning_policy.PruningPolicy):
    """Lets tfmot wrap just the layers in which aimp_tf would prune."""

    def allow_pruning(self, layer: Any) -> bool:
        return bool(prunable_variables(layer))

    def ensure_model_supports_pruning(self, model: Any) -> None:
        """Every model of the benchmarks is supported."""


def train_pruned(
    model: Any, data: ImageData, target_sparsity: float, batch_size: int, epochs: int
) -> dict[str, list[float]]:
    """Trains a model under tfmot's PolynomialDecay, which takes every layer from sparsity 0 to the target halfway.

    The masks are made anew every 100 steps, or ten times in a shorter ramp.

    Args:
        model: A compiled, built Sequential or functional model. It gets the trained weights.
        data: What it is trained on.
        target_sparsity: Of each layer, in (0, 1).
        batch_size, epochs: As in `fit`.

    Returns:
        Metric -> its values at the ends of the epochs.
    """
    ramp_steps = epochs * math.ceil(len(data.train_labels) / batch_size) // 2
    frequency = max(1, min(_FREQUENCY, ramp_steps // 10))
    schedule = pruning_schedule.PolynomialDecay(
        initial_sparsity=0.0,
        final_sparsity=target_sparsity,
        begin_step=0,
        # A multiple, or the last step of the ramp would be left out.
        end_step=ramp_steps - ramp_steps % frequency,
        frequency=frequency,
    )
    wrapped = _wrap(model, schedule)
    options = {"batch_size": batch_size, "epochs": epochs, "callbacks": [pruning_callbacks.UpdatePruningStep()]}
    history = wrapped.fit(data.train_images, data.train_labels, verbose=0, **options)
    model.set_weights(prune.strip_pruning(wrapped).get_weights())
    return history.history


def wrap_without_pruning(model: Any) -> tuple[Any, list[Any]]:
    """A copy of a compiled, built model as tfmot wraps it, and the callbacks that `fit` of it needs.

    Its masks are all ones for the first 2**30 steps, so that it trains as the model itself does.
    """
    schedule = pruning_schedule.ConstantSparsity(0.5, begin_step=2**30)
    return _wrap(model, schedule), [pruning_callbacks.UpdatePruningStep()]


def _wrap(model: Any, schedule: pruning_schedule.PruningSchedule) -> Any:
    copied = tf_keras.models.clone_model(model)
    copied.set_weights(model.get_weights())
    wrapped = prune.prune_low_magnitude(copied, pruning_schedule=schedule, pruning_policy=_LayersWithKernels())
    optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
    wrapped.compile(**{**model._compile_config.config, "optimizer": optimizer})
    return wrapped
