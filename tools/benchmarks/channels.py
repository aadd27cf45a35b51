"""What whole channels save: calls of the small models, and a whole run whose rounds shrink, beside the dense ones."""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.config.latency import Latency
from benchmarks.channel_peers import RECIPE
from benchmarks.latency import medians_of_calls
from benchmarks.peers import pruned
from benchmarks.side_by_side import spread_text, tell
from experiments.datasets import ImageData
from experiments.experiment import Experiment
from experiments.run import accuracy_of, compiled_model, load_data
from experiments.study_report import percent_text

# A wide network takes long.
_EXPERIMENTS = (RECIPE, dataclasses.replace(RECIPE, architecture="wide_resnet_20", train_examples=2560))
_FRACTIONS = (0.5, 0.75)
_CALLS = (Latency(speedup=2, batch_size=32), Latency(speedup=2, format="tflite"))
_BY_EIGHTS = {"channel_multiple": 8}
_CHANNELS: Mapping[str, Mapping[str, Any]] = {"": {}, ", by eights": _BY_EIGHTS}
_WHOLE_RUNS: Mapping[str, Mapping[str, Any]] = {
    "whole": {"compact_rounds": False},
    "shrinking": {},
    "shrinking, by eights": _BY_EIGHTS,
}
"""Those of whole runs, the first being what the others are compared with."""


def run(
    repetitions: int,
    data_dir: str | os.PathLike[str] | None = None,
    experiments: Sequence[Experiment] = _EXPERIMENTS,
) -> dict[str, Any]:
    """Prunes networks to a half and a quarter of their multiply-adds, and times them beside the dense ones.

    The SavedModel gets batches of 32, the TFLite file one example, on one thread, in turn with the dense model in a
    process of their own. Whole runs to a half are timed as well: with rounds that train the whole network, and with
    such that shrink. "By eights" are networks that keep multiples of eight channels.

    Args:
        experiments: What is trained, and how; each of another architecture.

    Returns:
        Network and fraction -> form -> "ratio", times as fast as dense, by repetition; network and "whole run" -> run
        -> "seconds", "accuracy" and "ratio" to the seconds of the whole network, by repetition, which is the seed as
        well.

    Raises:
        RuntimeError: A run with rounds that shrink does not keep as much as the one without.
    """
    figures: dict[str, Any] = {}
    for experiment in experiments:
        data = load_data(experiment, data_dir)
        for fraction, (name, settings) in itertools.product(_FRACTIONS, _CHANNELS.items()):
            title = f"{experiment.architecture}, {1 / (1 - fraction):g} x fewer multiply-adds{name}"
            figures[title] = _calls(repetitions, _with(experiment, target_sparsity=fraction, **settings), data)
            tell(f"{title}: {figures[title]}")
        figures[f"{experiment.architecture}, whole run"] = _whole_runs(repetitions, experiment, data)
    return {**figures, "table": "\n".join(_lines(figures))}


def _calls(repetitions: int, experiment: Experiment, data: ImageData) -> dict[str, Any]:
    small, dense = pruned(_with(experiment, epochs=1), data).compact(), compiled_model(experiment, data)
    forms: dict[str, Any] = {"parameters": small.count_params()}
    for call in _CALLS:
        medians = medians_of_calls(call, dense, small, repetitions)
        forms[str(call)] = {
            "dense_seconds": [of_dense for of_dense, _ in medians],
            "ratio": [of_dense / of_small for of_dense, of_small in medians],
        }
    return forms


def _whole_runs(repetitions: int, experiment: Experiment, data: ImageData) -> dict[str, dict[str, list[float]]]:
    figures: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "accuracy": []} for name in _WHOLE_RUNS}
    for seed in range(repetitions):
        kept = {}
        for name in list(_WHOLE_RUNS)[:: 1 if seed % 2 == 0 else -1]:
            seeded = dataclasses.replace(experiment, seed=seed)
            begun_at = time.perf_counter()
            result = pruned(_with(seeded, **{"target_sparsity": 0.5, **_WHOLE_RUNS[name]}), data)
            seconds, accuracy = time.perf_counter() - begun_at, accuracy_of(result.model, data)
            figures[name]["seconds"].append(seconds)
            figures[name]["accuracy"].append(accuracy)
            kept[name] = sum(int(np.count_nonzero(mask)) for mask in result.masks.values())
            tell(f"{experiment.architecture}, whole run, {name}: {seconds:.0f} s, accuracy {accuracy:.4f}")
        if abs(kept["shrinking"] / kept["whole"] - 1) > 0.05:
            raise RuntimeError(f"The runs do not compare, for their masks keep {kept} weights.")
    for run_ in figures.values():
        run_["ratio"] = [here / there for here, there in zip(run_["seconds"], figures["whole"]["seconds"], strict=True)]
    return figures


def _with(experiment: Experiment, **settings: Any) -> Experiment:
    return dataclasses.replace(experiment, pruning=experiment.pruning.replace(**settings))


def _lines(figures: Mapping[str, Any]) -> Sequence[str]:
    lines = []
    for title, forms in figures.items():
        if title.endswith("whole run"):
            lines += [
                f"{title}, {name:24}{spread_text(run_['seconds'], ' s')}, x {spread_text(run_['ratio'])}, accuracy "
                f"{percent_text(run_['accuracy'])}"
                for name, run_ in forms.items()
            ]
            continue
        lines.append(f"{title} ({forms['parameters']:,} parameters)")
        for call, form in forms.items():
            if call.startswith("a call"):
                milliseconds = 1000 * statistics.median(form["dense_seconds"])
                lines.append(f"  {call:54}{spread_text(form['ratio'])} x as fast as {milliseconds:.2f} ms")
    return lines
