"""What criteria by the training data cost, and what is left of a trained network after each, repaired or not."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from aimp_tf.config.checks import CRITERIA_OF_CHANNELS
from aimp_tf.masking import mask_model
from aimp_tf.post_training import one_shot
from aimp_tf.training.input_pipeline import array_dataset
from aimp_tf.training.statistics import ModelSample
from benchmarks.channel_peers import RECIPE
from benchmarks.side_by_side import spread_text, tell
from experiments.datasets import ImageData
from experiments.experiment import Experiment
from experiments.run import accuracy_of, compiled_model, load_data
from experiments.study_report import percent_text

_PASSES = {
    "activations": ("activations", "densities", "labels"),
    "gradients": ("absolute_gradients",),
    "contributions": ("contributions",),
    "Gram matrices": ("grams",),
}
_BATCHES = 8


def run(
    repetitions: int,
    data_dir: str | os.PathLike[str] | None = None,
    experiment: Experiment = RECIPE,
    criteria: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Times passes over the data beside training on the same batches, and prunes trained networks by each criterion.

    Args:
        experiment: What is trained, for its `epochs`, and then pruned to its target, granularity and budget.
        criteria: Names of criteria; None is all, for which there must be whole channels.

    Returns:
        "passes": statistic -> ratios of a pass to training on the same batches, once both are traced; "dense": accuracy
        of the test images by seed; "one_shot": criterion -> "with repair" and "without" -> the same, of the pruned
        networks, and "seconds" of the pruning with repair; all recalibrated.
    """
    data = load_data(experiment, data_dir)
    figures: dict[str, Any] = {"passes": {name: [] for name in _PASSES}, "dense": [], "one_shot": {}}
    for seed in range(repetitions):
        seeded = dataclasses.replace(experiment, seed=seed)
        model = compiled_model(seeded, data)
        images, labels = data.train_images, data.train_labels
        model.fit(images, labels, batch_size=seeded.batch_size, epochs=seeded.pruning.resolved_epochs, verbose=0)
        figures["dense"].append(accuracy_of(model, data))
        for name, ratio in _ratios_of_passes(model, seeded, data).items():
            figures["passes"][name].append(ratio)
        trained = model.get_weights()
        for criterion in criteria or CRITERIA_OF_CHANNELS:
            of_criterion = figures["one_shot"].setdefault(criterion, {"without": [], "with repair": [], "seconds": []})
            for side, repair in (("without", False), ("with repair", True)):
                model.set_weights(trained)
                begun_at = time.perf_counter()
                one_shot(
                    model,
                    images,
                    labels,
                    batch_size=seeded.batch_size,
                    target_sparsity=seeded.pruning.target_sparsity,
                    granularity=seeded.pruning.granularity,
                    budget=seeded.pruning.budget,
                    criterion=criterion,
                    repair=repair,
                    seed=seed,
                )
                seconds = time.perf_counter() - begun_at
                of_criterion[side].append(accuracy_of(model, data))
            of_criterion["seconds"].append(seconds)
            latest = {side: values[-1] for side, values in of_criterion.items()}
            tell(f"seed {seed}, {criterion}: {latest}")
    return {**figures, "table": "\n".join(_lines(figures, experiment))}


def _ratios_of_passes(model: Any, experiment: Experiment, data: ImageData) -> dict[str, float]:
    """Statistic -> the time of a pass over some batches as a ratio to that of training on them, as the weights are."""
    size = experiment.batch_size
    count = min(len(data.train_labels), _BATCHES * size)
    batches = array_dataset((data.train_images[:count], data.train_labels[:count]), batch_size=size, shuffle=False)
    before = model.get_weights()
    masked = mask_model(model, granularity=experiment.pruning.granularity)
    try:
        sample = ModelSample(masked, batches, _BATCHES)
        seconds: dict[str, list[float]] = {name: [] for name in ("training", *_PASSES)}
        for _ in range(1 + 5):  # The first ones trace.
            for name, times in seconds.items():
                begun_at = time.perf_counter()
                if name == "training":
                    masked.model.fit(batches, epochs=1, verbose=0)
                else:
                    sample.collect(_PASSES[name])
                times.append(time.perf_counter() - begun_at)
    finally:
        masked.strip()
    model.set_weights(before)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {name: medians[name] / medians["training"] for name in _PASSES}


def _lines(figures: dict[str, Any], experiment: Experiment) -> list[str]:
    lines = [
        f"a pass over {_BATCHES} batches of {experiment.batch_size}, for {name:14}x {spread_text(ratios)} of training"
        for name, ratios in figures["passes"].items()
    ]
    counts = f"seeds 0 to {len(figures['dense']) - 1}"
    lines += ["", f"{experiment.architecture} on {experiment.dataset}, {counts}: {percent_text(figures['dense'])}"]
    gone = f"{experiment.pruning.target_sparsity:.0%} of the {experiment.pruning.counted}s gone, without training"
    lines += [f"{gone:46}{'no repair':>16}{'repair':>16}{'seconds':>10}"]
    for name, sides in figures["one_shot"].items():
        texts = [percent_text(sides[side]) for side in ("without", "with repair")]
        lines.append(f"{name:46}{texts[0]:>16}{texts[1]:>16}{np.mean(sides['seconds']):>10.1f}")
    return lines
