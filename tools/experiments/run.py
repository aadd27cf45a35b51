"""Runs an experiment: pruned and dense training side by side, export, reload, comparison."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.models import fit_ready
from aimp_tf.exporting import Artefact, export
from aimp_tf.exporting.verification import use_in_fresh_process
from aimp_tf.files import gzip_bytes, write_atomically, write_json
from aimp_tf.graph.groups import select_units
from aimp_tf.pruning import prune
from aimp_tf.reports.display import RunDisplay, fit_verbose
from aimp_tf.reports.measuring import measure_calls
from aimp_tf.reports.result import PruningResult
from aimp_tf.runs.run_files import locked
from aimp_tf.selection.planning import Round
from aimp_tf.training.input_pipeline import Order, prepare
from aimp_tf.training.rounds import RoundResult, counted_text
from experiments import datasets, models
from experiments.experiment import Experiment, from_fields

_TEST_BATCH_SIZE = 1024


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A pruned model beside the dense one of the same initial weights.

    Attributes:
        dense_accuracy: Fraction of the test images that the dense model gets right after `pruning.epochs`.
        pruned_accuracy: The same of the pruned SavedModel, loaded in a fresh process.
        sparsity: Fraction of the prunable weights that are zero.
        survivors: Number of prunable weights that are left.
        weights: Number of prunable weights.
        dense_epochs: Epochs of the dense training.
        epochs: Epochs of the pruning run, all rounds together.
        imp_epochs: Epochs that plain iterative magnitude pruning would have trained.
        dense_seconds: Wall time of the dense training.
        seconds: Wall time of the pruning run.
        imp_seconds: `seconds` scaled to `imp_epochs`: an estimate, not a measurement.
        dense_gzip_bytes: Size of the dense SavedModel as tar.gz.
        gzip_bytes: Size of the pruned SavedModel as tar.gz.
        saved_model: Where the pruned SavedModel lies.
        long_accuracy: As `dense_accuracy`, of a dense model that is trained for `epochs`; None if there is none.
        long_seconds: Wall time of its training.
    """

    dense_accuracy: float
    pruned_accuracy: float
    sparsity: float
    survivors: int
    weights: int
    dense_epochs: int
    epochs: int
    imp_epochs: int
    dense_seconds: float
    seconds: float
    imp_seconds: float
    dense_gzip_bytes: int
    gzip_bytes: int
    saved_model: str
    long_accuracy: float | None = None
    long_seconds: float | None = None

    def table(self) -> str:
        """Dense, pruned and plain iterative magnitude pruning as columns; and dense for as many epochs, if there is."""
        rows = [
            ["", "dense", "pruned", "plain IMP"],
            ["accuracy", f"{self.dense_accuracy:.2%}", f"{self.pruned_accuracy:.2%}", "not run"],
            ["sparsity", "0.00%", f"{self.sparsity:.2%}", f"{self.sparsity:.2%}"],
            ["weights left", f"{self.weights:,}", f"{self.survivors:,}", f"{self.survivors:,}"],
            ["epochs", f"{self.dense_epochs}", f"{self.epochs}", f"{self.imp_epochs}"],
            ["seconds", f"{self.dense_seconds:.0f}", f"{self.seconds:.0f}", f"about {self.imp_seconds:.0f}"],
            ["SavedModel, gzip", f"{self.dense_gzip_bytes:,} B", f"{self.gzip_bytes:,} B", "not saved"],
        ]
        if self.long_accuracy is not None and self.long_seconds is not None:
            long = [
                "dense, as long",
                f"{self.long_accuracy:.2%}",
                "0.00%",
                f"{self.weights:,}",
                f"{self.epochs}",
                f"{self.long_seconds:.0f}",
                "not saved",
            ]
            rows = [[*row[:2], cell, *row[2:]] for row, cell in zip(rows, long, strict=True)]
        return "\n".join(f"{name:18}" + "".join(f"{cell:>16}" for cell in cells) for name, *cells in rows)


def compare(
    experiment: Experiment,
    data: datasets.ImageData,
    workdir: str | os.PathLike[str],
    verbose: str | int = "auto",
    *,
    overwrite: bool = False,
    strategy: tf.distribute.Strategy | None = None,
    equal_epochs: bool = False,
) -> Comparison | None:
    """Prunes a model, trains the dense one of the same initial weights, exports both and compares them.

    Args:
        experiment: What to run.
        data: Its data.
        workdir: The run directory of `prune`, with final/model.keras, dense/saved_model and comparison.json added, and
            outcome.json completed. A pruning run that was interrupted goes on there; the dense training does not, and
            begins anew.
        verbose: As in `prune`.
        overwrite: As in `prune`.
        strategy: What both models are trained under. With several workers, each calls this with the same arguments.
        equal_epochs: Whether a dense model is trained for as many epochs as the pruning run, too.

    Returns:
        The comparison; None on a worker that is not the chief, which alone writes and measures.

    Raises:
        ValueError, TypeError: As `prune`; nothing is trained then.
        RuntimeError: As `prune`, or a SavedModel cannot be used in a fresh process.
    """
    workdir = pathlib.Path(workdir)
    cluster = Cluster(strategy or tf.distribute.get_strategy())
    # First, for it looks at all settings before it trains, and goes on where it was interrupted.
    result = train_pruned(experiment, data, workdir, strategy, verbose=verbose, overwrite=overwrite)
    lock = locked(workdir) if cluster.chief else contextlib.nullcontext()
    with cluster.explaining_losses(), lock, tempfile.TemporaryDirectory() as elsewhere:
        folder = workdir / "dense" if cluster.chief else pathlib.Path(elsewhere)
        with cluster.as_one():
            if cluster.chief:
                (workdir / "comparison.json").unlink(missing_ok=True)
                if folder.is_symlink():
                    folder.unlink()
                shutil.rmtree(folder, ignore_errors=True)
        dense, dense_seconds = train_dense(experiment, data, verbose, strategy)
        # On all workers, for what it reads may be spread over them.
        exported = export(dense, folder, formats=("saved_model",), verify=False)["saved_model"]
        long_accuracy = long_seconds = None
        if equal_epochs:
            longer, long_seconds = train_dense(experiment, data, verbose, strategy, epochs=result.epochs)
            long_accuracy = accuracy_of(longer, data)
        # The others wait, for TensorFlow takes a worker that ends for one that crashed.
        with cluster.as_one():
            if not cluster.chief:
                return None
            comparison = _compare(experiment, data, workdir, result, exported, dense_seconds)
            comparison = dataclasses.replace(comparison, long_accuracy=long_accuracy, long_seconds=long_seconds)
            write_atomically(workdir / "comparison.json", json.dumps(dataclasses.asdict(comparison), indent=2))
            return comparison


def _compare(
    experiment: Experiment,
    data: datasets.ImageData,
    workdir: pathlib.Path,
    result: PruningResult,
    dense: Artefact,
    dense_seconds: float,
) -> Comparison:
    saved_model = workdir / "final" / "saved_model"
    dense_accuracy, pruned_accuracy = _accuracies([dense, saved_model], data)
    last = result.rounds[-1]
    comparison = Comparison(
        dense_accuracy=dense_accuracy,
        pruned_accuracy=pruned_accuracy,
        sparsity=result.sparsity,
        survivors=last.kept,
        weights=sum(layer.size for layer in last.layers),
        dense_epochs=experiment.pruning.resolved_epochs,
        epochs=result.epochs,
        imp_epochs=result.imp_epochs,
        dense_seconds=dense_seconds,
        seconds=result.seconds,
        imp_seconds=result.seconds / result.epochs * result.imp_epochs,
        dense_gzip_bytes=dense.gzip_bytes,
        gzip_bytes=gzip_bytes(saved_model),
        saved_model=os.fspath(saved_model),
    )
    if Cluster(result.model.distribute_strategy).size == 1:  # Others would have to save it, too.
        export(result, workdir / "final" / "model.keras", verify=False, overwrite=True)
    outcome = dataclasses.replace(result.measured, examples=len(data.test_labels), **measure_calls(result.model))
    if not experiment.teacher_epochs:  # Otherwise it tells of the teacher, by which the run knows it again.
        dense_metrics = {"val_accuracy": dense_accuracy}
        outcome = dataclasses.replace(outcome, dense_metrics=dense_metrics, dense_epochs=comparison.dense_epochs)
    write_json(workdir / "outcome.json", outcome.to_fields())
    return comparison


def load_data(experiment: Experiment, data_dir: str | os.PathLike[str] | None) -> datasets.ImageData:
    """The images of an experiment: `train_examples` to train on and, for testing, what judges. Raises RuntimeError as
    `datasets.load`."""
    data = datasets.load(experiment.dataset, data_dir)
    count = experiment.train_examples
    if experiment.validation_examples is not None:
        assert count is not None  # As validate has it.
        held_out = slice(count, count + experiment.validation_examples)
        data = dataclasses.replace(
            data, test_images=data.train_images[held_out], test_labels=data.train_labels[held_out]
        )
    return dataclasses.replace(data, train_images=data.train_images[:count], train_labels=data.train_labels[:count])


def load_on_all(
    experiment: Experiment, data_dir: str | os.PathLike[str] | None, strategy: tf.distribute.Strategy
) -> datasets.ImageData:
    """As `load_data`, on the chief first, which may have to make files that the other workers then read."""
    cluster = Cluster(strategy)
    data = None
    with cluster.as_one():
        if cluster.chief:
            data = load_data(experiment, data_dir)
    with cluster.as_one():
        return data or load_data(experiment, data_dir)


def train_pruned(
    experiment: Experiment,
    data: datasets.ImageData,
    workdir: str | os.PathLike[str],
    strategy: tf.distribute.Strategy | None = None,
    **options: Any,
) -> PruningResult:
    """The pruning run of an experiment, validated on the test images, in a run directory; `prune` gets the options."""
    return prune(
        compiled_model(experiment, data, strategy),
        data.train_images,
        data.train_labels,
        config=experiment.pruning,
        validation_data=(data.test_images, data.test_labels),
        teacher=experiment.teacher_epochs and "dense",
        dense_baseline=experiment.teacher_epochs or False,
        workdir=workdir,
        batch_size=experiment.batch_size,
        validation_batch_size=_TEST_BATCH_SIZE,
        validation_freq=experiment.validation_freq,
        seed=experiment.seed,
        **options,
    )


def train_dense(
    experiment: Experiment,
    data: datasets.ImageData,
    verbose: str | int,
    strategy: tf.distribute.Strategy | None = None,
    epochs: int | None = None,
) -> tuple[Any, float]:
    """The model of an experiment, trained and not pruned, and the wall time in seconds that it took.

    It is trained for `epochs`, into which the learning-rate schedule is stretched; None is those of the last training.
    """
    epochs = epochs or experiment.pruning.resolved_epochs
    model = compiled_model(experiment, data, strategy, epochs)
    plan = [Round(0, epochs, kept=1, rewind=None, schedule_start=0.0, schedule_scale=1.0)]
    chief = Cluster(model.distribute_strategy).chief
    display = RunDisplay(verbose, plan, total=1, chief=chief, title=f"dense, {counted_text(epochs, 'epoch')}")
    order = Order(experiment.seed)
    keras = importlib.import_module(experiment.keras)
    started_at = time.monotonic()
    with fit_ready(model), display:
        display.begin()
        history = model.fit(
            prepare(
                (data.train_images, data.train_labels),
                "The training data",
                batch_size=experiment.batch_size,
                order=order,
            ),
            validation_data=prepare(
                (data.test_images, data.test_labels), "validation_data", batch_size=_TEST_BATCH_SIZE
            ),
            validation_freq=experiment.validation_freq,
            epochs=epochs,
            shuffle=False,
            callbacks=[
                keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: order.begin(0, epoch + 1)),
                display,
            ],
            verbose=fit_verbose(verbose),
        )
        seconds = time.monotonic() - started_at
        # Those of the validation may be of an earlier epoch.
        counts = {epochs, epochs / experiment.validation_freq}
        last = {name: values[-1] for name, values in history.history.items() if len(values) in counts}
        display.round_done(RoundResult(0, epochs, 1, 0.0, seconds, last))
    return model, seconds


def compiled_model(
    experiment: Experiment,
    data: datasets.ImageData,
    strategy: tf.distribute.Strategy | None = None,
    epochs: int | None = None,
) -> Any:
    """The untrained model of an experiment, with the same initial weights at every call.

    Its learning-rate schedule is that of a training of `epochs`; None is those of the last training.
    """
    keras = importlib.import_module(experiment.keras)
    keras.utils.set_random_seed(experiment.seed)
    steps = -(-len(data.train_labels) // experiment.batch_size) * (epochs or experiment.pruning.resolved_epochs)
    with (strategy or tf.distribute.get_strategy()).scope():
        model = untrained_model(experiment)
        model.compile(
            optimizer=keras.optimizers.SGD(_schedule(experiment, keras, steps), momentum=experiment.momentum),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            steps_per_execution=experiment.steps_per_execution,
        )
    return model


def untrained_model(experiment: Experiment) -> Any:
    """The model of an experiment, not compiled."""
    keras, known = importlib.import_module(experiment.keras), datasets.IMAGE_SETS[experiment.dataset]
    return models.build(experiment.architecture, keras, known.image_shape, known.classes)


def weight_count(experiment: Experiment) -> int:
    """Number of prunable weights of an experiment, or of what else its budget counts. The data is not loaded."""
    config = experiment.pruning
    selection = select_units(
        config.granularity, untrained_model(experiment), config.include, config.exclude, budget=config.budget
    )
    return selection.units.total({path: math.prod(variable.shape) for path, variable in selection.variables.items()})


def weight_counts(stored: Sequence[dict[str, Any]]) -> list[int]:
    """Those of experiments whose fields are given, as `to_fields` stores them."""
    return [weight_count(from_fields(fields)) for fields in stored]


def accuracy_of(model: Any, data: datasets.ImageData) -> float:
    """Fraction of the test images that a model of `compiled_model`, or what was made of it, gets right."""
    with fit_ready(model):
        logs = model.evaluate(
            data.test_images, data.test_labels, batch_size=_TEST_BATCH_SIZE, verbose=0, return_dict=True
        )
    return float(logs["accuracy"])


def _schedule(experiment: Experiment, keras: Any, steps: int) -> Any:
    rate, schedules = experiment.learning_rate, keras.optimizers.schedules
    if experiment.schedule == "cosine":
        return schedules.CosineDecay(rate, steps)
    if experiment.schedule == "linear":
        return schedules.PolynomialDecay(rate, steps, 0.0)
    return schedules.PiecewiseConstantDecay([steps // 2, steps * 3 // 4], [rate, rate / 10, rate / 100])


def _accuracies(saved_models: Sequence[str | os.PathLike[str]], data: datasets.ImageData) -> list[float]:
    """Of each SavedModel, loaded in a fresh process, the fraction of the test images that it gets right."""
    artefacts = [("saved_model", path) for path in saved_models]
    return [
        float(np.mean(outputs["0"].argmax(axis=-1) == data.test_labels))
        for outputs in use_in_fresh_process(artefacts, data.test_images)
    ]
