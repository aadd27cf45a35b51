"""What the model comes to without pruning: a reference for the run that prunes it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from aimp_tf.compat.models import is_keras_own
from aimp_tf.compat.random_state import drawing_apart
from aimp_tf.compat.variables import local_value
from aimp_tf.config import PruningConfig
from aimp_tf.masking import MaskedModel, mask_model
from aimp_tf.pruning.request import Request
from aimp_tf.reports.display import RunDisplay
from aimp_tf.runs.outcome import Outcome
from aimp_tf.runs.saving import RunSaver
from aimp_tf.training.callback import GlobalMagnitudePruning
from aimp_tf.training.rounds import RoundResult

# Those of Keras that train otherwise. Others write files, or are the user's, and are for the run that prunes.
_HEEDED = ("EarlyStopping", "LearningRateScheduler", "ReduceLROnPlateau", "TerminateOnNaN")


def measure_dense(
    request: Request, config: PruningConfig, known: Outcome, *, keep: bool = False
) -> tuple[Outcome, list[np.ndarray] | None]:
    """Trains the model without pruning, or evaluates it as it comes, and leaves it as it was.

    Args:
        request: The run, whose model is compiled and built, and not masked.
        config: That of the run, with its `epochs`.
        known: What was measured before. If it is the same, it is not measured again.
        keep: Whether its weights are wanted, too.

    Returns:
        `known` with the metrics of the dense model, and the epochs that it was trained for; and, unless it was known,
        its weights in the order of `MaskedModel.snapshot`.
    """
    fitting, epochs = request.fitting, request.dense_baseline
    if epochs is True:
        epochs = 0 if config.start == "trained" else config.resolved_epochs
    masked = mask_model(
        request.model, include=config.include, exclude=config.exclude, mixed_precision=config.mixed_precision
    )
    try:
        stops = any(hasattr(callback, "start_from_epoch") for callback in _heeded(fitting.callbacks))
        before = known.dense_epochs or 0
        told = known.dense_metrics is not None and known.dense_asked in (None, epochs)
        same = told and (before == epochs or stops and 0 < before <= epochs)
        if same and not keep:
            return known, None
        if epochs:
            with _left_as_it_was(masked):
                trained, weights = _train(masked, request, config, epochs), masked.snapshot()
            metrics, trained_for = trained.metrics, trained.epochs
        else:
            metrics, trained_for, weights = fitting.measure(masked.model), 0, masked.snapshot()
        outcome = dataclasses.replace(known, dense_metrics=metrics, dense_epochs=trained_for, dense_asked=epochs)
        return outcome, weights
    finally:
        masked.strip()


def _train(masked: MaskedModel, request: Request, config: PruningConfig, epochs: int) -> RoundResult:
    fitting = request.fitting
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
    plan, chief = training.run.plan, masked.cluster.chief
    with RunDisplay(request.verbose, plan, masked.total, chief=chief, title="dense baseline") as display:
        display.begin()
        fitting.fit(masked.model, [*training.among(_heeded(fitting.callbacks)), display, order], epochs=epochs)
        display.round_done(training.rounds[-1])
    return training.rounds[-1]


def _heeded(callbacks: Sequence[Any]) -> list[Any]:
    return [each for each in callbacks if is_keras_own(type(each)) and type(each).__name__ in _HEEDED]


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
