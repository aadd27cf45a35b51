"""prune(): the loop over `fit`; the only module that knows all the others."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.arguments import config_of, placed, sort_arguments, split_off, training_data
from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.models import check_model, keras_generation
from aimp_tf.compat.precision import resolve_policy
from aimp_tf.config import PruningConfig
from aimp_tf.dense_baseline import check_dense_baseline, measure_dense
from aimp_tf.exporting import Target, export
from aimp_tf.files import checksum_of_arrays
from aimp_tf.masking import Masks, fit_with_tfmot, left_dense, mask_model, select_prunable, sparsity
from aimp_tf.reports.display import RunDisplay, fit_verbose
from aimp_tf.reports.result import PruningResult
from aimp_tf.runs.outcome import Outcome
from aimp_tf.runs.progress import RunProgress
from aimp_tf.runs.run_directory import RunDirectory, check_workdir
from aimp_tf.runs.signature import data_signature, model_signature
from aimp_tf.selection.planning import epoch_at_target, imp_epochs, make_plan, settled
from aimp_tf.selection.ranking import check_finite
from aimp_tf.training.callback import GlobalMagnitudePruning
from aimp_tf.training.fitting import Fitting, build, check_batches, check_class_weight, check_targets
from aimp_tf.training.input_pipeline import spec_of
from aimp_tf.training.other_callbacks import as_callbacks, check_for_rounds, check_monitors, follows_batches, watch_from
from aimp_tf.training.rounds import RoundResult, last_epoch_with, plain_logs


@placed("target_sparsity=0.9, epochs=30, batch_size=64")
def prune(
    model: Any,
    x: Any = None,
    y: Any = None,
    *,
    config: PruningConfig | None = None,
    sample_weight: Any = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    callbacks: Any = (),
    masks: Masks = None,
    workdir: str | os.PathLike[str] | None = None,
    dense_baseline: bool | int = False,
    export_to: str | os.PathLike[str] | None = None,
    data_on_device: bool = False,
    verbose: str | int = "auto",
    overwrite: bool = False,
    **settings: Any,
) -> PruningResult:
    """Prunes a Keras model with Accelerated Iterative Magnitude Pruning. It is called as `model.fit` is.

    Trains the model in short rounds, each time removing the smallest surviving weights of the whole network and
    rewinding, then once in full. In all `N * round_epochs + epochs` epochs, where plain iterative magnitude pruning
    takes `(N + 1) * epochs`. The model is trained and pruned in place.

    Args:
        model: A compiled Keras 3 or tf_keras model, built or buildable from the data. A model made under a
            tf.distribute strategy stays under it: OneDeviceStrategy, MirroredStrategy or MultiWorkerMirroredStrategy.
            With several workers, each calls this with the same arguments and gets the same result.
        x: The training data, as in `fit`: arrays of (examples, ...), in lists or dicts where the model has several
            inputs; a tuple (x, y) or (x, y, sample_weight) of them; or what gives batches of them and can be read more
            than once, such as a tf.data.Dataset or a PyDataset.
        y: The targets, where x is arrays.
        config: What to do. Its fields may be given as keywords instead, such as `target_sparsity=0.9, epochs=30`, which
            count where both are given.
        sample_weight: The weights of the examples, where x is arrays.
        validation_split: Which fraction of arrays, their last part, is for validation, in [0, 1).
        validation_data: Evaluated after each epoch: a tuple (x, y) or (x, y, sample_weight), or batches as for x. It
            counts rather than `validation_split`.
        callbacks: Keras callbacks, or one, handed to every `fit`. They see one `fit` a round; how those of Keras start
            each round afresh, and a LearningRateScheduler follows it, says `GlobalMagnitudePruning.among`.
        masks: What is pruned already, as in `wrap`: "zeros" prunes a pruned model further, and lets nothing back that
            is zero. The rounds go down from there to `target_sparsity`, which is that of all prunable weights.
        workdir: A folder that gets the config, the metrics of every epoch, the masks and weights of every round and the
            pruned SavedModel. It is new or empty, or that of a run with the same config, model and data, which then
            goes on where it stopped: at the end of an epoch, or with what it ended with. Of several workers, the chief
            alone reads and writes it.
        dense_baseline: Whether the model is also trained without pruning, before the run and for `epochs`, or for as
            many as this says, into which its learning-rate schedule is stretched; 0 evaluates it as it comes, and so
            does True with `start="trained"`, for which there must be validation data. On arrays, the run is the same as
            without, but for random numbers of layers that have no seed of their own. Of the callbacks, Keras' own that
            train otherwise are heeded, such as EarlyStopping. For one worker, and not with method="tfmot".
        export_to: Where `export` writes the pruned model at the end: a folder, or a file such as "pruned.tflite".
            Whether it can is tried before anything is trained. For one worker.
        data_on_device: Whether arrays are copied once into the memory of the device that trains, such as a GPU, where
            each step then gathers its batch, rather than batch by batch. The batches are the same to the last bit. It
            takes a model on one device, with arrays that fit there beside it; on a CPU nothing is gained.
        verbose: "auto" shows a line a round and a live one with the time left; 1 and 2 show a line a round and Keras'
            own bars, or lines; 0 shows nothing.
        overwrite: Whether what an earlier run left in `workdir` is removed first.
        **settings: Fields of `PruningConfig`, and the other arguments of `fit`: batch_size (arrays only; default 32),
            shuffle, class_weight, steps_per_epoch, validation_batch_size, validation_steps, validation_freq.

    Returns:
        The pruned model, its masks and the story of every round.

    Raises:
        TypeError: `model` is not a Keras model, the data cannot be read again for each round, or a name is unknown.
        ValueError: A setting is out of range, the model is not compiled or has nothing to prune, the optimizer averages
            weights, the data does not fit the model, or `workdir` holds something else than this run. Raised before
            any training.
        RuntimeError: The loss or the weights became NaN or infinite, something undoes the pruning, such as a callback
            that sets weights, or `workdir` is in use or cannot be written; or another worker of the cluster is gone.

    Example:
        ```python
        result = aimp_tf.prune(model, x, y, target_sparsity=0.9, epochs=30, batch_size=64, validation_split=0.1)
        print(result.summary())
        result.model.save("pruned.keras")
        ```

    References:
        Zullich, Medvet, Pellegrino and Ansuini, "Speeding-up pruning for Artificial Neural Networks: Introducing
        Accelerated Iterative Magnitude Pruning", ICPR 2020.
    """
    keras_generation(model)
    cluster = Cluster(model.distribute_strategy)
    with contextlib.ExitStack() as stack:
        stack.enter_context(cluster.explaining_losses())
        with cluster.as_one():
            fields, options = sort_arguments(prune, settings, model)
            data = training_data("prune", model, x, y, sample_weight)
            config = config_of(config, fields)
            generation = check_model(model)
            if validation_data is None:
                data, validation_data = split_off(data, validation_split)
            if not cluster.chief:
                workdir = None
            if workdir is not None:
                workdir = check_workdir(workdir)
            fitting = Fitting(
                data,
                validation_data,
                as_callbacks(callbacks, generation),
                options,
                fit_verbose(verbose),
                config.seed,
                generation,
                cluster,
            )
            check_for_rounds(fitting.callbacks)
            if validation_data is None:
                check_monitors(fitting.callbacks, model, None)
            if masks is not None and config.method == "tfmot":
                raise ValueError(
                    "method='tfmot' begins with a dense model, so masks must be None. method='gradual' does much the "
                    "same and takes them."
                )
            if not isinstance(data_on_device, bool):
                raise TypeError(f"data_on_device must be True or False; got {data_on_device!r}.")
            if data_on_device:
                fitting.check_on_device(model, cluster)
            check_dense_baseline(dense_baseline, config, masks, validation_data is not None)
            if cluster.size > 1 and (dense_baseline is not False or export_to is not None):
                raise ValueError(
                    "dense_baseline and export_to are for one worker. Train the baseline by method='dense', and export "
                    "what the chief has in workdir."
                )
            # Where the run that is there goes on, or is done, it may be what this call wrote before.
            replaces = overwrite or workdir is not None and os.path.lexists(workdir / "signature.json")
            if export_to is not None:
                _check_target(export_to, workdir, replaces)
        # Here, so that what "auto" chose is what a run directory holds, and the same on all workers.
        config = config.replace(mixed_precision=cluster.from_chief(resolve_policy(config.mixed_precision)))
        fitting.settle_order(cluster)
        build(model, fitting.train)
        check_batches(model, fitting.train, "The training data")
        check_batches(model, fitting.validation, "validation_data")
        check_targets(model, data, "the training data")
        check_targets(model, validation_data, "validation_data")
        check_class_weight(data, options.get("class_weight"))
        if data_on_device:
            stack.enter_context(fitting.on_device_of(model))
        if export_to is not None:
            with tempfile.TemporaryDirectory() as folder:
                export(model, folder, list(Target.of(export_to).formats), verify=False)
        directory, kept = None, {}
        with cluster.as_one():
            if workdir is not None or cluster.size > 1:
                signature: dict[str, Any] = {
                    "model": model_signature(model, config.include, config.exclude),
                    "data": data_signature(data, fitting.train, options),
                }
                if validation_data is not None:
                    signature["validation_data"] = data_signature(validation_data, fitting.validation, {})
                if config.start == "trained":
                    signature["trained_weights"] = checksum_of_arrays(_prunable(model, config).values())
                if masks is not None:
                    # The rounds follow from how much is pruned already.
                    first = (weight != 0 for weight in _prunable(model, config).values())
                    signature["masks"] = checksum_of_arrays(first if isinstance(masks, str) else masks.values())
            if workdir is not None:
                directory = stack.enter_context(RunDirectory(workdir, config, signature, overwrite=overwrite))
                kept = directory.keep_defaults()
        config = config.replace(**cluster.from_chief(kept))
        config.validate()
        if cluster.size > 1:
            # Shards that workers read on their own may differ in length.
            parts = {
                name: {**part, "batches": None} if isinstance(part, dict) else part for name, part in signature.items()
            }
            cluster.check_same(config=config.to_json(), **parts)
        outcome = Outcome()
        with cluster.as_one():
            if directory is not None:
                outcome = directory.outcome()
        if dense_baseline is not False:
            _check_run(model, config, fitting)
            outcome = measure_dense(model, config, fitting, dense_baseline, verbose, outcome)
        outcome = dataclasses.replace(outcome, examples=fitting.examples)
        try:
            if config.method == "tfmot":
                result = _prune_with_tfmot(model, config, fitting, directory, outcome, verbose)
            else:
                result = _prune_in_rounds(model, config, fitting, directory, masks, outcome, verbose)
        except KeyboardInterrupt as interruption:
            if directory is not None:
                interruption.add_note(f"The same call, with a model as it was before, goes on with {directory.path}.")
            raise
        saved = cluster.from_chief(directory is not None)
        if directory is not None:
            directory.save_model(result.model)
            directory.save_outcome(result.measured)
        elif saved:
            # Saving reads what all replicas hold, for which the chief needs the others.
            with tempfile.TemporaryDirectory() as folder:
                export(result.model, folder, formats=("saved_model",), verify=False)
        if export_to is not None:
            artefacts = export(result, export_to, overwrite=replaces)
            if verbose != 0:  # Compressing takes its time.
                for written in artefacts.values():
                    print(
                        f"wrote {written.path}: {written.bytes:,} bytes, {written.gzip_bytes:,} with gzip", flush=True
                    )
    return result


def _check_target(export_to: str | os.PathLike[str], workdir: str | os.PathLike[str] | None, replaces: bool) -> None:
    """Raises ValueError where `export` could not write there, or would write into the folder of the run."""
    target = Target.of(export_to)
    if workdir is not None and target.folder.resolve().is_relative_to(pathlib.Path(workdir).resolve()):
        raise ValueError(
            f"export_to {os.fspath(export_to)} lies in workdir, which the run writes itself. Name another."
        )
    target.check(replaces)


def _check_run(model: Any, config: PruningConfig, fitting: Fitting) -> None:
    """Raises what the run itself would before it trains, which the baseline's training would come before."""
    masked = mask_model(model, config.include, config.exclude, config.mixed_precision, config.granularity)
    try:
        if fitting.validation is not None:
            _check_validation_data(masked.model, fitting, config)
        pruning = GlobalMagnitudePruning(settled(config, masked.weight_count, masked.kept))
        pruning.among(fitting.callbacks)
        pruning.begin(masked)
    finally:
        masked.strip()


def _prune_in_rounds(
    model: Any,
    config: PruningConfig,
    fitting: Fitting,
    directory: RunDirectory | None,
    masks: Masks,
    outcome: Outcome,
    verbose: str | int,
) -> PruningResult:
    masked = mask_model(model, config.include, config.exclude, config.mixed_precision, config.granularity, masks)
    first = masked.kept
    trained = max(masked.optimizers.steps)
    try:
        if fitting.validation is not None:
            _check_validation_data(masked.model, fitting, config)
        config = settled(config, masked.weight_count, first)
        pruning = GlobalMagnitudePruning(config)
        pruning.measure = functools.partial(fitting.measure, masked.model)
        if config.method == "gradual" or follows_batches(fitting.callbacks):
            pruning.batches = masked.cluster.from_chief(fitting.batches())
        pruning.begin(masked)
        progress = RunProgress(pruning, masked, fitting.order, directory)
        progress.begin()
        if directory is not None and outcome.dense_metrics is not None:
            directory.save_outcome(outcome)
        with _display(verbose, config, fitting, masked.weight_count, first, masked.cluster.chief) as display:
            display.begin(pruning.rounds, progress.initial_epoch)
            if config.mixed_precision is not None:
                display.tell(f"trained in {config.mixed_precision}")
            begins = not pruning.rounds and not progress.initial_epoch
            if begins and trained and config.method == "iterative" and config.start != "trained":
                display.tell(f"trained for {trained:,} steps before; start='trained' prunes the model as it comes")
            while not pruning.finished:
                try:
                    fitting.fit(
                        masked.model,
                        [*pruning.among(fitting.callbacks), display, progress],
                        epochs=pruning.next_epochs,
                        initial_epoch=progress.initial_epoch,
                    )
                except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
                    if any(masked.optimizers.steps) or pruning.rounds:
                        raise
                    raise ValueError(
                        f"fit failed before its first step, and nothing was trained. The training data gives "
                        f"{spec_of(fitting.train)}; the model {model.name!r} takes {_shapes(model, config)}. The error "
                        f"was: {error}"
                    ) from error
                progress.save_round()
                display.round_done(pruning.rounds[-1])
        last = masked.masks()
    finally:
        pruned = masked.strip()
    return PruningResult(
        model=pruned,
        masks=last,
        rounds=pruning.rounds,
        # On the pruned variables alone: these settings leave others out.
        sparsity=sparsity(pruned, config.include, config.exclude, config.granularity),
        imp_epochs=imp_epochs(config, masked.weight_count, first),
        config=config,
        outcome=outcome,
    )


def _prune_with_tfmot(
    model: Any,
    config: PruningConfig,
    fitting: Fitting,
    directory: RunDirectory | None,
    outcome: Outcome,
    verbose: str | int,
) -> PruningResult:
    """The baseline `method="tfmot"`: one fit, in which tfmot's own wrappers and callback prune. It does not go on."""
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "method='tfmot' trains on one device; this model was made for "
            f"{model.distribute_strategy.num_replicas_in_sync}. method='gradual' does much the same on all of them."
        )
    if fitting.validation is not None:
        _check_validation_data(model, fitting, config)
    weight_count = sum(weight.size for weight in _prunable(model, config).values())
    config = settled(config, weight_count)
    rounds = []
    if directory is not None:
        directory.begin(round_count=1)
        rounds = directory.finished_rounds()
        directory.go_on(rounds, ())
    with _display(verbose, config, fitting, weight_count) as display:
        display.begin([round_.result for round_ in rounds])
        if rounds:
            model.set_weights(rounds[0].state["weights"])
            result, masks = rounds[0].result, _zero_masks(_prunable(model, config))
        else:
            result, masks = _train_with_tfmot(model, config, fitting, directory, display)
            display.round_done(result)
    return PruningResult(model, masks, [result], result.sparsity, imp_epochs(config, weight_count), config, outcome)


def _train_with_tfmot(
    model: Any, config: PruningConfig, fitting: Fitting, directory: RunDirectory | None, display: RunDisplay
) -> tuple[RoundResult, dict[str, np.ndarray]]:
    reasons = left_dense(model, config.include, config.exclude)
    started_at = time.monotonic()
    epoch_logs: list[dict[str, Any]] = []
    checksums: list[int] = []
    last: int | None = None

    def fit(wrapped: Any, own: list[Any]) -> None:
        nonlocal last
        fitting.fit(wrapped, [*own, *fitting.callbacks, display], epochs=config.resolved_epochs)
        last = checksum_of_arrays(wrapped.get_weights())

    def on_epoch_end(wrapped: Any, epoch: int, logs: dict[str, Any]) -> None:
        epoch_logs.append(plain_logs(logs))
        checksums.append(checksum_of_arrays(wrapped.get_weights()))
        if directory is not None:
            directory.add_metrics(0, epoch, epoch_logs[-1])
        if fitting.order is not None:
            fitting.order.begin(0, epoch + 1)

    with watch_from(fitting.callbacks, epoch_at_target(config)):
        fit_with_tfmot(
            model,
            fit,
            on_epoch_end,
            target_sparsity=config.target_sparsity,
            ramp_steps=max(1, round(config.ramp * config.resolved_epochs * fitting.batches())),
            include=tuple(config.include),
            exclude=tuple(config.exclude),
        )
    weights = _prunable(model, config)
    masks = _zero_masks(weights)
    check_finite(weights, masks)
    epoch = last_epoch_with(last, checksums)
    metrics = fitting.measure(model, epoch_logs[-1]) if epoch is None else epoch_logs[epoch]
    result = RoundResult.of(
        0,
        epoch_logs,
        weights,
        masks,
        time.monotonic() - started_at,
        left_dense=reasons,
        metrics=metrics,
    )
    if directory is not None:
        directory.save_round(result, epoch_logs, masks, model.save_weights, {"weights": model.get_weights()})
    return result, masks


def _display(
    verbose: str | int,
    config: PruningConfig,
    fitting: Fitting,
    weight_count: int,
    first: int | None = None,
    chief: bool = True,
) -> RunDisplay:
    may_stop = config.stop_mask_distance is not None or any(
        hasattr(callback, "start_from_epoch") for callback in fitting.callbacks
    )
    plan = make_plan(config, weight_count, first)
    return RunDisplay(verbose, plan, weight_count, may_stop=may_stop, chief=chief)


def _zero_masks(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The masks of weights whose pruned entries are zero."""
    return {path: weight != 0 for path, weight in weights.items()}


def _prunable(model: Any, config: PruningConfig) -> dict[str, np.ndarray]:
    return select_prunable(model, config.include, config.exclude)


def _check_validation_data(model: Any, fitting: Fitting, config: PruningConfig) -> None:
    """Evaluates one batch, for `fit` would only do so after an epoch. What it traces, `fit` uses."""
    try:
        logs = model.evaluate(fitting.validation, steps=1, verbose=0, return_dict=True)
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be evaluated on validation_data, which gives "
            f"{spec_of(fitting.validation)}; it takes {_shapes(model, config)}. The error was: {error}"
        ) from error
    check_monitors(fitting.callbacks, model, logs if isinstance(logs, Mapping) else {})


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
