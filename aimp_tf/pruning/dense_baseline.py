"""What the model comes to without pruning: a reference for the run that prunes it."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from aimp_tf.compat.keras_own import is_keras_own
from aimp_tf.compat.random_state import drawing_apart
from aimp_tf.compat.variables import local_value
from aimp_tf.config import PruningConfig
from aimp_tf.config.texts import is_number
from aimp_tf.masking import MaskedModel, mask_model
from aimp_tf.reports.display import RunDisplay
from aimp_tf.runs.outcome import Outcome
from aimp_tf.runs.saving import RunSaver
from aimp_tf.training.callback import GlobalMagnitudePruning
from aimp_tf.training.fitting import Fitting
from aimp_tf.training.rounds import RoundResult

# Those of Keras that train otherwise. Others write files, or are the user's, and are for the run that prunes.
_HEEDED = ("EarlyStopping", "LearningRateScheduler", "ReduceLROnPlateau", "TerminateOnNaN")


def check_dense_baseline(dense_baseline: Any, config: PruningConfig, masks: Any, validated: bool) -> None:
    """Raises TypeError or ValueError where `dense_baseline` of `prune` is none, or there is nothing to compare with.

    Args:
        dense_baseline: As in `prune`.
        config: That of the run.
        masks: As in `prune`.
        validated: Whether there is validation data.
    """
    if not isinstance(dense_baseline, bool) and not is_number(dense_baseline, numbers.Integral):
        raise TypeError(f"dense_baseline must be True, False or a number of epochs; got {dense_baseline!r}.")
    if dense_baseline < 0:
        raise ValueError(f"dense_baseline must not be negative; got {dense_baseline}.")
    if dense_baseline is False:
        return
    if masks is not None or config.method == "dense":
        what = "the model is pruned already, by masks" if masks is not None else "method='dense' is that training"
        raise ValueError(f"There is no dense baseline to train: {what}. Leave out dense_baseline.")
    if not validated and (dense_baseline == 0 or dense_baseline is True and config.start == "trained"):
        # Epochs tell averages over the steps in which weights change, which an evaluation is not.
        raise ValueError(
            "A dense model that is evaluated as it comes can be compared with the pruned one on validation data alone. "
            "Give validation_data=(x_val, y_val) or validation_split=0.1, or leave out dense_baseline."
        )


def measure_dense(
    model: Any,
    config: PruningConfig,
    fitting: Fitting,
    dense_baseline: bool | int,
    verbose: str | int,
    known: Outcome,
    *,
    keep: bool = False,
) -> tuple[Outcome, list[np.ndarray] | None]:
    """Trains the model without pruning, or evaluates it as it comes, and leaves it as it was.

    Args:
        model: A compiled, built model, not masked.
        config: That of the run, with its `epochs`.
        fitting: The data of the run.
        dense_baseline: As in `prune`.
        verbose: As in `prune`.
        known: What was measured before. If it is the same, it is not measured again.
        keep: Whether its weights are wanted, too.

    Returns:
        `known` with the metrics of the dense model, and the epochs that it was trained for; and, unless it was known,
        its weights in the order of `MaskedModel.snapshot`.
    """
    masked = mask_model(model, config.include, config.exclude, config.mixed_precision)
    try:
        if dense_baseline is True:
            epochs = 0 if config.start == "trained" else config.resolved_epochs
        else:
            epochs = dense_baseline
        stops = any(hasattr(callback, "start_from_epoch") for callback in fitting.callbacks if _is_heeded(callback))
        before = known.dense_epochs or 0
        told = known.dense_metrics is not None and known.dense_asked in (None, epochs)
        same = told and (before == epochs or stops and 0 < before <= epochs)
        if same and not keep:
            return known, None
        if not epochs:
            measured = fitting.measure(masked.model)
            outcome = dataclasses.replace(known, dense_metrics=measured, dense_epochs=0, dense_asked=0)
            return outcome, masked.snapshot()
        with _left_as_it_was(masked):
            trained = _train(masked, config, fitting, epochs, verbose)
            weights = masked.snapshot()
        outcome = dataclasses.replace(
            known, dense_metrics=trained.metrics, dense_epochs=trained.epochs, dense_asked=epochs
        )
        return outcome, weights
    finally:
        masked.strip()


def _train(
    masked: MaskedModel, config: PruningConfig, fitting: Fitting, epochs: int, verbose: str | int
) -> RoundResult:
    dense = PruningConfig(
        0.5,  # Of which it takes no notice.
        epochs=epochs,
        method="dense",
        mixed_precision=config.mixed_precision,
        seed=config.seed,
    )
    training = GlobalMagnitudePruning(dense, include=config.include, exclude=config.exclude)
    training.measure = functools.partial(fitting.measure, masked.model)
    training.begin(masked, stretch=config.resolved_epochs / epochs)
    order = RunSaver(training, masked, fitting.order, None)
    order.begin()
    callbacks = [callback for callback in fitting.callbacks if _is_heeded(callback)]
    plan, chief = training.run.plan, masked.cluster.chief
    with RunDisplay(verbose, plan, masked.total, chief=chief, title="dense baseline") as display:
        display.begin()
        fitting.fit(masked.model, [*training.among(callbacks), display, order], epochs=epochs)
        display.round_done(training.rounds[-1])
    return training.rounds[-1]


def _is_heeded(callback: Any) -> bool:
    return is_keras_own(type(callback)) and type(callback).__name__ in _HEEDED


@contextmanager
def _left_as_it_was(masked: MaskedModel) -> Iterator[None]:
    """Around a training of which nothing is to be left, so that what follows is as without it."""
    weights = masked.snapshot()
    state = {name: local_value(variable) for name, variable in masked.state().items()}
    with drawing_apart():
        try:
            yield
        finally:
            masked.part.put_back()
            masked.restore(weights)
            variables: dict[str, Any] = masked.state()
            for name, value in state.items():
                variables[name].assign(value)
