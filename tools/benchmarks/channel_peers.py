"""Whole channels beside what people would do instead: Torch-Pruning, and training the small network from scratch."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from aimp_tf.exporting.compaction import compact_and_report
from aimp_tf.selection.planning import make_plan
from benchmarks.networks import recipe_of
from benchmarks.peers import pruned
from benchmarks.side_by_side import tell
from experiments import call_in_fresh_process
from experiments.datasets import ImageData
from experiments.experiment import Experiment
from experiments.run import accuracy_of, compiled_model, load_data, weight_count
from experiments.study_report import percent_text

RECIPE = recipe_of("study_channels")


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
        experiment: What is trained, and how; a ResNet of `experiments.models`.
        sparsities: Shares of the multiply-adds that go.

    Returns:
        Sparsity -> side -> "accuracy" (of the test images), "multiply_adds" (as a fraction of the dense network's) and
        "seconds", lists by seed.
    """
    data = load_data(experiment, data_dir)
    installed = importlib.util.find_spec("torch_pruning") is not None
    figures: dict[str, dict[str, dict[str, list[float]]]] = {}
    for seed in range(repetitions):
        for sparsity in sparsities:
            pruning = experiment.pruning.replace(target_sparsity=sparsity, seed=seed)
            seeded = dataclasses.replace(experiment, pruning=pruning, seed=seed)
            of_sparsity = figures.setdefault(str(sparsity), {})
            begun_at = time.perf_counter()
            for name, accuracy, left in _sides(seeded, data, torch_pruning=installed):
                seconds = time.perf_counter() - begun_at
                measured = {"accuracy": accuracy, "multiply_adds": left, "seconds": seconds}
                tell(f"seed {seed}, {sparsity:.0%} gone, {name}: {measured}")
                of_side = of_sparsity.setdefault(name, {key: [] for key in measured})
                for key, value in measured.items():
                    of_side[key].append(value)
                begun_at = time.perf_counter()
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


def _sides(experiment: Experiment, data: ImageData, *, torch_pruning: bool) -> Iterator[tuple[str, float, float]]:
    """Each side, its accuracy and the fraction of the multiply-adds that it is left with, as soon as they are known."""
    result = pruned(experiment, data)
    small, report = compact_and_report(result)
    dense, left = report.multiply_adds
    yield "AIMP", accuracy_of(result.model, data), left / dense
    model = _from_scratch(small, experiment, data, result.epochs)
    yield "from scratch", accuracy_of(model, data), left / dense
    if torch_pruning:
        rounds = make_plan(experiment.pruning, weight_count(experiment))
        shares = [(each.epochs, each.kept / dense) for each in rounds]
        yield "Torch-Pruning", *_by_torch_pruning(experiment, data, shares)


def _by_torch_pruning(
    experiment: Experiment, data: ImageData, rounds: Sequence[tuple[int, float]]
) -> tuple[float, float]:
    """The accuracy and the fraction of the multiply-adds that `torch_pruning_peer` is left with."""
    fields = ("architecture", "seed", "batch_size", "learning_rate", "momentum")
    recipe = {field: getattr(experiment, field) for field in fields}
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/data.npz"
        np.savez(file, **dataclasses.asdict(data))
        return call_in_fresh_process("benchmarks.torch_pruning_peer.train", data_file=file, rounds=rounds, **recipe)


def _from_scratch(small: Any, experiment: Experiment, data: ImageData, epochs: int) -> Any:
    """A network of these shapes with new first weights, trained for as many epochs."""
    keras = importlib.import_module(experiment.keras)
    schedule = compiled_model(experiment, data, epochs=epochs)
    keras.utils.set_random_seed(experiment.seed)
    model = keras.models.clone_model(small)
    model.compile(schedule.optimizer, schedule.loss, metrics=["accuracy"])
    model.fit(data.train_images, data.train_labels, batch_size=experiment.batch_size, epochs=epochs, verbose=0)
    return model
