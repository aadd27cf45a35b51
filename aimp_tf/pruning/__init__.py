"""prune(): check, lock, loop, result."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from typing import Any

from aimp_tf.arguments import config_of, placed, sort_arguments, training_data
from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.models import keras_generation
from aimp_tf.compat.random_state import drawing_apart
from aimp_tf.config import PruningConfig
from aimp_tf.config.latency import Timings
from aimp_tf.exporting import export
from aimp_tf.masking import Masks
from aimp_tf.pruning.dense_baseline import measure_dense
from aimp_tf.pruning.loop import check_run, prune_in_rounds
from aimp_tf.pruning.request import Request
from aimp_tf.reports.result import PruningResult
from aimp_tf.runs.outcome import Outcome
from aimp_tf.runs.run_directory import RunDirectory


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
    teacher: Any = None,
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
        teacher: A built Keras model that every training learns from, beside the targets, as `distillation` says: of the
            same generation and with outputs of the same shape. "dense" is the model of `dense_baseline`, which must be
            trained. Of arrays, what it gives is looked up once.
        workdir: A folder that gets the config, the metrics of every epoch, the masks and weights of every round and the
            pruned SavedModel. It is new or empty, or that of a run with the same config, model and data, which then
            goes on where it stopped: at the end of an epoch, or with what it ended with. Of several workers, the chief
            alone reads and writes it.
        dense_baseline: Whether the model is also trained without pruning, before the run and for `epochs`, or for as
            many as this says, into which its learning-rate schedule is stretched; 0 evaluates it as it comes, and so
            does True with `start="trained"`, for which there must be validation data. On arrays, the run is the same as
            without, but for random numbers of layers that have no seed of their own. Of the callbacks, Keras' own that
            train otherwise are heeded, such as EarlyStopping. For one worker.
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
            that sets weights, or `workdir` is in use or cannot be written; with a `Latency`, models cannot be timed any
            more; or another worker of the cluster is gone.

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
            request = Request(
                model,
                data,
                config_of(config, fields),
                options,
                cluster,
                validation_split=validation_split,
                validation_data=validation_data,
                callbacks=callbacks,
                masks=masks,
                teacher=teacher,
                workdir=workdir,
                dense_baseline=dense_baseline,
                export_to=export_to,
                data_on_device=data_on_device,
                verbose=verbose,
                overwrite=overwrite,
            )
        request.build()
        if data_on_device:
            stack.enter_context(request.fitting.on_device_of(model))
        request.try_export()
        directory = request.take_directory(stack)
        timings = Timings() if directory is None else directory.timings()
        outcome = _dense_outcome(request, directory, timings)
        with _told_how_to_go_on(directory):
            result = prune_in_rounds(request, directory, outcome, timings)
        _save(result, directory, cluster)
        _export(request, result)
    return result


def _dense_outcome(request: Request, directory: RunDirectory | None, timings: Timings) -> Outcome:
    """What is known of the dense model, which is trained now if that is asked for and not done."""
    outcome = Outcome()
    with request.cluster.as_one():
        if directory is not None:
            outcome = directory.outcome()
    teaches = isinstance(request.teacher, str)
    weights = directory.teacher() if teaches and directory is not None else None
    if request.dense_baseline is not False:
        # Before the baseline trains, not after.
        with drawing_apart():
            config = check_run(request, timings)
        keep = teaches and weights is None
        outcome, trained = measure_dense(request, config, outcome, keep=keep)
        weights = trained if keep else weights
        if directory is not None:
            directory.keep_teacher(weights)
    request.take_teacher(weights)
    return dataclasses.replace(outcome, examples=request.fitting.examples)


@contextlib.contextmanager
def _told_how_to_go_on(directory: RunDirectory | None) -> Iterator[None]:
    """Within it, Ctrl-C says how to go on with what is in a run directory."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        if directory is not None and os.path.lexists(directory.path / "signature.json"):
            interruption.add_note(f"The same call, with a model as it was before, goes on with {directory.path}.")
        raise


def _save(result: PruningResult, directory: RunDirectory | None, cluster: Cluster) -> None:
    """Saves the pruned model where there is a folder for that."""
    saved = cluster.from_chief(directory is not None)
    if directory is not None:
        directory.save_model(result.shipped)
        directory.save_outcome(result.measured)
    elif saved:
        # Saving reads what all replicas hold, for which the chief needs the others.
        with tempfile.TemporaryDirectory() as folder:
            export(result.shipped, folder, formats=("saved_model",), verify=False)


def _export(request: Request, result: PruningResult) -> None:
    if request.export_to is None:
        return
    artefacts = export(result, request.export_to, overwrite=request.replaces)
    if request.verbose != 0:  # Compressing takes its time.
        for written in artefacts.values():
            print(f"wrote {written.path}: {written.bytes:,} bytes, {written.gzip_bytes:,} with gzip", flush=True)
