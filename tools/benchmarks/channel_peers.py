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
_PLAIN = recipe_of("study_criteria", "small_cnn")


def run(
    repetitions: int,
    data_dir: str | os.PathLike[str] | None = None,
    experiments: Sequence[Experiment] = (RECIPE, _PLAIN),
    sparsities: Sequence[float] = (0.5, 0.75),
) -> dict[str, Any]:
    """Prunes networks to shares of their multiply-adds in several ways, from several seeds, for as many epochs in all.

    From scratch: what AIMP has left of the network gets new first weights, and the learning-rate schedule over all
    epochs. Torch-Pruning (Fang et al., DepGraph, CVPR 2023) has the same network in PyTorch, the same data, rounds of
    the same length at the same rates, after each of which it prunes down to the multiply-adds of that round, by its
    group norms (`GroupMagnitudeImportance`) over the whole network; a tenth of each layer stays at least. It is left
    out where it is not installed, and of networks that are no ResNets, which it has not.

    Args:
        experiments: What is trained, and how; networks of `experiments.models`, each another.
        sparsities: Shares of the multiply-adds that go.

    Returns:
        Architecture -> sparsity -> side -> "accuracy" (of the test images), "multiply_adds" (as a fraction of the dense
        network's) and "seconds", lists by seed.
    """
    installed = importlib.util.find_spec("torch_pruning") is not None
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    lines = []
    for experiment in experiments:
        data = load_data(experiment, data_dir)
        lines.append(f"{experiment.architecture} on {experiment.dataset}, seeds 0 to {repetitions - 1}")
        for sparsity in sparsities:
            pruning = experiment.pruning.replace(target_sparsity=sparsity)
            sparser = dataclasses.replace(experiment, pruning=pruning)
            sides = _measured(sparser, data, repetitions, torch_pruning=installed)
            figures.setdefault(experiment.architecture, {})[str(sparsity)] = sides
            lines += [
                f"{sparsity:.0%} gone, {name:16}accuracy {percent_text(side['accuracy']):16}"
                f"{percent_text(side['multiply_adds'])} of the multiply-adds"
                for name, side in sides.items()
            ]
    if not installed:
        lines.append("Torch-Pruning is not installed, so it is not compared; the extra benchmark has it.")
    return {**figures, "table": "\n".join(lines)}


def _measured(
    experiment: Experiment, data: ImageData, repetitions: int, *, torch_pruning: bool
) -> dict[str, dict[str, list[float]]]:
    """Side -> what `run` gives of it."""
    of_sides: dict[str, dict[str, list[float]]] = {}
    told = f"{experiment.architecture}, {experiment.pruning.target_sparsity:.0%} gone"
    for seed in range(repetitions):
        begun_at = time.perf_counter()
        seeded = dataclasses.replace(experiment, pruning=experiment.pruning.replace(seed=seed), seed=seed)
        for name, accuracy, left in _sides(seeded, data, torch_pruning=torch_pruning):
            measured = {"accuracy": accuracy, "multiply_adds": left, "seconds": time.perf_counter() - begun_at}
            tell(f"{told}, seed {seed}, {name}: {measured}")
            of_side = of_sides.setdefault(name, {key: [] for key in measured})
            for key, value in measured.items():
                of_side[key].append(value)
            begun_at = time.perf_counter()
    return of_sides


def _sides(experiment: Experiment, data: ImageData, *, torch_pruning: bool) -> Iterator[tuple[str, float, float]]:
    """Each side, its accuracy and the fraction of the multiply-adds that it is left with, as soon as they are known."""
    result = pruned(experiment, data)
    small, report = compact_and_report(result)
    dense, left = report.multiply_adds
    yield "AIMP", accuracy_of(result.model, data), left / dense
    model = _from_scratch(small, experiment, data, result.epochs)
    yield "from scratch", accuracy_of(model, data), left / dense
    if torch_pruning and experiment.architecture.startswith("resnet"):
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
