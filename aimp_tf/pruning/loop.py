"""The loop over `fit`, and what the model comes to without pruning, a reference for it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import is_keras_own
from aimp_tf.compat.random_state import drawing_apart
from aimp_tf.compat.variables import local_value
from aimp_tf.config import PruningConfig
from aimp_tf.config.latency import Timings
from aimp_tf.exporting.timing import with_clock
from aimp_tf.masking import MaskedModel, mask_model, sparsity
from aimp_tf.pruning.request import Request, teacher_of
from aimp_tf.reports.display import RunDisplay
from aimp_tf.reports.result import PruningResult
from aimp_tf.runs.outcome import Outcome
from aimp_tf.runs.run_directory import RunDirectory
from aimp_tf.runs.saving import RunSaver
from aimp_tf.selection.planning import imp_epochs, settled
from aimp_tf.training.callback import GlobalMagnitudePruning
from aimp_tf.training.fitting import Fitting
from aimp_tf.training.input_pipeline import spec_of
from aimp_tf.training.other_callbacks import check_monitors, follows_batches
from aimp_tf.training.rounds import RoundResult
from aimp_tf.training.teaching import Teacher

# Those of Keras that train otherwise. Others write files, or are the user's, and are for the run that prunes.
_HEEDED = ("EarlyStopping", "LearningRateScheduler", "ReduceLROnPlateau", "TerminateOnNaN")


def prune_in_rounds(
    request: Request, directory: RunDirectory | None, outcome: Outcome, timings: Timings
) -> PruningResult:
    """Prunes a model in consecutive calls of `fit`, and saves after each where there is a folder for that.

    Args:
        request: What is asked for. Its model is compiled and built, and is pruned in place.
        directory: Where the run is saved, and goes on from; None on others than the chief, or where it is not saved.
        outcome: What is known of the dense model.
        timings: What was timed, for a budget of time.
    """
    fitting = request.fitting
    masked = mask_model(request.model, request.config, request.masks)
    try:
        pruning = _begun(masked, request, timings, request.taught_by)
        config, first, trained = pruning.config, masked.kept, max(masked.optimizers.steps)
        if pruning.run.method.hears_batches or follows_batches(fitting.callbacks):
            pruning.batches = masked.cluster.from_chief(fitting.batches())
        saver = RunSaver(pruning, masked, fitting.order, directory)
        saver.begin()
        if pruning.rounds or saver.initial_epoch:
            pruning.sample = fitting.sample()  # By the seed that the run began with.
        timings.save(timings)
        if directory is not None and outcome.dense_metrics is not None:
            directory.save_outcome(outcome)
        with _display_of(request.verbose, pruning, masked, fitting) as display:
            display.begin(pruning.rounds, saver.initial_epoch)
            _tell_of_training(display, trained, pruning, saver)
            while not pruning.finished:
                with _telling_shapes(masked, pruning, fitting):
                    fitting.fit(
                        masked.model,
                        [*pruning.among(fitting.callbacks), display, saver],
                        epochs=pruning.next_epochs,
                        initial_epoch=saver.initial_epoch,
                    )
                saver.save_round()
                display.round_done(pruning.rounds[-1])
        last, total = masked.masks(), masked.total
    finally:
        pruned = masked.strip()
    return PruningResult(
        model=pruned,
        masks=last,
        rounds=pruning.rounds,
        # On the pruned variables alone: these settings leave others out.
        sparsity=sparsity(pruned, config.include, config.exclude, config.granularity),
        imp_epochs=imp_epochs(config, total, first),
        config=config,
        outcome=outcome,
    )


def check_run(request: Request, timings: Timings) -> PruningConfig:
    """The config of the run, with its `epochs`. Raises what the run itself would before it trains, which the baseline's
    training would come before."""
    teacher = teacher_of(request.teacher, request.model)
    masked = mask_model(request.model, request.config)
    try:
        pruning = _begun(masked, request, timings, teacher)
        pruning.among(request.fitting.callbacks)
        return pruning.config
    finally:
        masked.strip()


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


@contextlib.contextmanager
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


def _begun(masked: MaskedModel, request: Request, timings: Timings, teacher: Teacher | None) -> GlobalMagnitudePruning:
    """A run on a masked model, planned and checked against it and the data."""
    config, fitting = request.config, request.fitting
    masked.units = with_clock(masked.units, config.latency, masked.original, masked.variables, timings)
    pruning = GlobalMagnitudePruning(settled(config, masked.total, masked.kept))
    pruning.measure = functools.partial(fitting.measure, masked.model)
    pruning.sample, pruning.teacher = fitting.sample(), teacher
    if fitting.validation is not None:
        _check_validation_data(masked.model, fitting, config, pruning.run.terms.names)
    pruning.begin(masked)
    return pruning


def _tell_of_training(display: RunDisplay, steps: int, pruning: GlobalMagnitudePruning, saver: RunSaver) -> None:
    """Names the precision, and the setting that prunes a trained model where that may have been forgotten."""
    if pruning.config.mixed_precision is not None:
        display.tell(f"trained in {pruning.config.mixed_precision}")
    begins = not pruning.rounds and not saver.initial_epoch
    if begins and steps and pruning.config.method == "iterative" and pruning.config.start != "trained":
        display.tell(f"trained for {steps:,} steps before; start='trained' prunes the model as it comes")


@contextlib.contextmanager
def _telling_shapes(masked: MaskedModel, pruning: GlobalMagnitudePruning, fitting: Fitting) -> Iterator[None]:
    """Says of an error before the first step what the data gives and what the model takes."""
    try:
        yield
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        if any(masked.optimizers.steps) or pruning.rounds or pruning.epoch_logs:
            raise
        model = masked.original
        raise ValueError(
            f"fit failed before its first step, and nothing was trained. The training data gives "
            f"{spec_of(fitting.train)}; the model {model.name!r} takes {_shapes(model, pruning.config)}. "
            f"The error was: {error}"
        ) from error


def _display_of(
    verbose: str | int, pruning: GlobalMagnitudePruning, masked: MaskedModel, fitting: Fitting
) -> RunDisplay:
    """The display of a run that has begun."""
    config = pruning.config
    may_stop = config.stop_mask_distance is not None or any(
        hasattr(callback, "start_from_epoch") for callback in fitting.callbacks
    )
    plan, total, chief = pruning.run.plan, masked.total, masked.cluster.chief
    return RunDisplay(verbose, plan, total, counted=config.counted, may_stop=may_stop, chief=chief)


def _check_validation_data(model: Any, fitting: Fitting, config: PruningConfig, told: Sequence[str]) -> None:
    """Evaluates one batch, for `fit` would only do so after an epoch. What it traces, `fit` uses."""
    try:
        logs = model.evaluate(fitting.validation, steps=1, verbose=0, return_dict=True)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be evaluated on validation_data, which gives "
            f"{spec_of(fitting.validation)}; it takes {_shapes(model, config)}. The error was: {error}"
        ) from error
    check_monitors(fitting.callbacks, model, logs if isinstance(logs, Mapping) else {}, told)


def _shapes(model: Any, config: PruningConfig) -> str:
    try:
        shapes = f"inputs of shape {model.input_shape} and gives outputs of shape {model.output_shape}"
    except (AttributeError, RuntimeError):
        shapes = "what its call() accepts"
    if config.mixed_precision is None:
        return shapes
    return (
        f"{shapes}, and computes in {config.mixed_precision}, where layers and a train_step of your own must not mix "
        "dtypes (have them cast to self.compute_dtype, or leave mixed_precision at None)"
    )
