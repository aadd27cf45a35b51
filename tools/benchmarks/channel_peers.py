"""Whole channels beside what people would do instead: Torch-Pruning, and training the small network from scratch."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.exporting.compaction import compact_and_report
from aimp_tf.selection.planning import make_plan
from benchmarks.peers import pruned
from benchmarks.side_by_side import tell, work_in_fresh_process
from experiments.datasets import ImageData
from experiments.experiment import Experiment
from experiments.run import accuracy_of, compiled_model, load_data
from experiments.sizes import weight_count
from experiments.study_report import percent_text

RECIPE = Experiment(
    dataset="fashion_mnist",
    architecture="resnet_20",
    pruning=PruningConfig(target_sparsity=0.5, epochs=10, granularity="channel", budget="flops"),
    batch_size=64,
    learning_rate=0.1,
    train_examples=5000,
    validation_freq=1000,
)
"""That of configs/study_channels.py."""


def run(
    repetitions: int,
    data_dir: str | os.PathLike[str] | None = None,
    experiment: Experiment = RECIPE,
    sparsities: Sequence[float] = (0.5, 0.75),
) -> dict[str, Any]:
    """Prunes a ResNet to shares of its multiply-adds in several ways, from several seeds, for as many epochs in all.

    From scratch: what AIMP has left of the network gets new first weights, and the learning-rate schedule over all
    epochs. Torch-Pruning (Fang et al., DepGraph, CVPR 2023) has the same network in PyTorch, the same data, rounds of
    the same length at the same rates, after each of which it prunes down to the multiply-adds of that round, by its
    group norms (`GroupMagnitudeImportance`) over the whole network; a tenth of each layer stays at least. It is left
    out where it is not installed.

    Args:
        repetitions: How many seeds, from 0 on.
        data_dir: Where tensorflow-datasets keeps its data. None is its own default.
        experiment: What is trained, and how; a ResNet of `experiments.models`.
        sparsities: Shares of the multiply-adds that go.

    Returns:
        Sparsity -> side -> "accuracy" (of the test images), "multiply_adds" (as a fraction of the dense network's) and
        "seconds", lists by seed; and "table", the same as a text.

    Raises:
        RuntimeError: The data is not there.
    """
    data = load_data(experiment, data_dir)
    installed = importlib.util.find_spec("torch_pruning") is not None
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for seed in range(repetitions):
        for sparsity in sparsities:
            pruning = experiment.pruning.replace(target_sparsity=sparsity, seed=seed)
            seeded = dataclasses.replace(experiment, pruning=pruning, seed=seed)
            of_sparsity = figures.setdefault(str(sparsity), {})
            for name, measured in _measured(seeded, data, torch_pruning=installed):
                tell(f"seed {seed}, {sparsity:.0%} gone, {name}: {measured}")
                of_side = of_sparsity.setdefault(name, {key: [] for key in measured})
                for key, value in measured.items():
                    of_side[key].append(value)
    lines = [f"{experiment.architecture} on {experiment.dataset}, seeds 0 to {repetitions - 1}"]
    for sparsity_text, sides in figures.items():
        lines += [
            f"{float(sparsity_text):.0%} gone, {name:16}accuracy {percent_text(of_side['accuracy']):16}"
            f"{percent_text(of_side['multiply_adds'])} of the multiply-adds"
            for name, of_side in sides.items()
        ]
    if not installed:
        lines.append("Torch-Pruning is not installed, so it is not compared; the extra benchmark has it.")
    return {**figures, "table": "\n".join(lines)}


def _measured(
    experiment: Experiment, data: ImageData, *, torch_pruning: bool
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each side and its figures, as soon as they are known."""
    begun_at = time.perf_counter()
    result = pruned(experiment, data)
    small, report = compact_and_report(result)
    dense, left = report.multiply_adds
    yield "AIMP", _figures(accuracy_of(result.model, data), left / dense, begun_at)
    begun_at = time.perf_counter()
    model = _from_scratch(small, experiment, data, result.epochs)
    yield "from scratch", _figures(accuracy_of(model, data), left / dense, begun_at)
    if torch_pruning:
        begun_at = time.perf_counter()
        rounds = make_plan(experiment.pruning, weight_count(experiment))
        shares = [(each.epochs, each.kept / dense) for each in rounds]
        yield "Torch-Pruning", _figures(*_by_torch_pruning(experiment, data, shares), begun_at)


def _figures(accuracy: float, multiply_adds: float, begun_at: float) -> dict[str, float]:
    return {"accuracy": accuracy, "multiply_adds": multiply_adds, "seconds": time.perf_counter() - begun_at}


def _by_torch_pruning(
    experiment: Experiment, data: ImageData, rounds: Sequence[tuple[int, float]]
) -> tuple[float, float]:
    """The accuracy and the fraction of the multiply-adds that `torch_pruning_peer` is left with."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.savez(folder / "data.npz", **dataclasses.asdict(data))
        fields = ("architecture", "seed", "batch_size", "learning_rate", "momentum")
        job = {field: getattr(experiment, field) for field in fields}
        job |= {"data": str(folder / "data.npz"), "rounds": rounds}
        # Beside this module, and not imported by it: it needs PyTorch.
        worker = pathlib.Path(__file__).with_name("torch_pruning_peer.py")
        figures = work_in_fresh_process(str(worker), job, folder, "Torch-Pruning")
    return figures["accuracy"], figures["multiply_adds"]


def _from_scratch(small: Any, experiment: Experiment, data: ImageData, epochs: int) -> Any:
    """A network of these shapes with new first weights, trained for as many epochs."""
    keras = importlib.import_module(experiment.keras)
    schedule = compiled_model(experiment, data, epochs=epochs)
    keras.utils.set_random_seed(experiment.seed)
    model = keras.models.clone_model(small)
    model.compile(schedule.optimizer, schedule.loss, metrics=["accuracy"])
    model.fit(data.train_images, data.train_labels, batch_size=experiment.batch_size, epochs=epochs, verbose=0)
    return model
