"""tf_keras: gradual pruning by tfmot's `prune_low_magnitude` itself, as a baseline to compare with.

Import this module by `import_with_tfmot` only: importing tfmot has side effects, which are undone there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import (
    prune,
    pruning_callbacks,
    pruning_policy,
    pruning_schedule,
)

_FREQUENCY = 100


class _OnlyLayersWith(pruning_policy.PruningPolicy):
    """Lets tfmot wrap just the layers that hold one of some variables."""

    def __init__(self, variables: Iterable[Any]) -> None:
        self._ids = set(map(id, variables))

    def allow_pruning(self, layer: Any) -> bool:
        return any(id(variable) in self._ids for variable in layer.variables)

    def ensure_model_supports_pruning(self, model: Any) -> None:
        """Every model that can be masked is supported."""


def fit_with_tfmot(
    model: Any,
    fit: Callable[[Any, list[Any]], object],
    on_epoch_end: Callable[[Any, int, dict[str, Any]], object],
    *,
    target_sparsity: float,
    ramp_steps: int,
    select: Callable[[Any], Iterable[Any]],
) -> None:
    """Trains a tf_keras model under tfmot's PolynomialDecay from sparsity 0, every layer to the same sparsity.

    The masks are made anew every 100 steps, or ten times in a shorter ramp.

    Args:
        model: A compiled, built Sequential or functional model. It gets the trained weights.
        fit: Called with the model to train, a wrapped copy of `model`, and the callbacks that it needs.
        on_epoch_end: Called with the model to train, and the number and the logs of each epoch.
        target_sparsity: Of each layer, in (0, 1).
        ramp_steps: Optimizer steps over which the sparsity rises, at least 1.
        select: Gives the variables of a model that are to be pruned.

    Raises:
        ValueError: The model is subclassed, or holds a prunable layer that tfmot does not know.
    """
    frequency = max(1, min(_FREQUENCY, ramp_steps // 10))
    schedule = pruning_schedule.PolynomialDecay(
        initial_sparsity=0.0,
        final_sparsity=target_sparsity,
        begin_step=0,
        # A multiple, or the last step of the ramp would be left out.
        end_step=ramp_steps - ramp_steps % frequency,
        frequency=frequency,
    )
    wrapped = _wrap(model, schedule, select)
    note = tf_keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: on_epoch_end(wrapped, epoch, logs))
    fit(wrapped, [pruning_callbacks.UpdatePruningStep(), note])
    model.set_weights(prune.strip_pruning(wrapped).get_weights())


def wrap_without_pruning(model: Any, select: Callable[[Any], Iterable[Any]]) -> tuple[Any, list[Any]]:
    """A copy of a compiled, built tf_keras model as tfmot wraps it, and the callbacks that `fit` of it needs.

    Its masks are all ones for the first 2**30 steps, so that it trains as the model itself does.
    """
    schedule = pruning_schedule.ConstantSparsity(0.5, begin_step=2**30)
    return _wrap(model, schedule, select), [pruning_callbacks.UpdatePruningStep()]


def _wrap(model: Any, schedule: pruning_schedule.PruningSchedule, select: Callable[[Any], Iterable[Any]]) -> Any:
    copied = tf_keras.models.clone_model(model)
    copied.set_weights(model.get_weights())
    wrapped = prune.prune_low_magnitude(
        copied,
        pruning_schedule=schedule,
        pruning_policy=_OnlyLayersWith(select(copied)),
    )
    optimizer = type(model.optimizer).from_config(model.optimizer.get_config())
    wrapped.compile(**{**model._compile_config.config, "optimizer": optimizer})
    return wrapped
