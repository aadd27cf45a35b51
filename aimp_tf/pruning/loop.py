"""The loop over `fit`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

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
from aimp_tf.training.teaching import Teacher


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
