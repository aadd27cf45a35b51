"""What whole channels save: calls of the small models, and a whole run whose rounds shrink, beside the dense ones."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.config.latency import Latency
from aimp_tf.pruning import prune
from aimp_tf.reports.result import PruningResult
from benchmarks.calls import medians_of_calls
from benchmarks.networks import compiled_model
from benchmarks.side_by_side import spread_text, tell
from experiments import datasets

# Examples of an epoch: a wide network takes long.
_NETWORKS = {"resnet_20": 5000, "wide_resnet_20": 640}
_FRACTIONS = (0.5, 0.75)
_CALLS = (Latency(speedup=2, batch_size=32), Latency(speedup=2, format="tflite"))


def run(
    repetitions: int,
    data_dir: str | os.PathLike[str] | None = None,
    networks: Mapping[str, int] = _NETWORKS,
    dataset: str = "fashion_mnist",
    epochs: int = 10,
) -> dict[str, Any]:
    """Prunes networks to a half and a quarter of their multiply-adds, and times them beside the dense ones.

    The SavedModel gets batches of 32, the TFLite file one example, on one thread, in turn with the dense model in a
    process of their own. Whole runs to a half are timed as well, with rounds that shrink and with such that do not.

    Args:
        repetitions: How often each is timed.
        data_dir: Where tensorflow-datasets keeps its data. None is its own default.
        networks: Architecture, as `experiments.models.build` takes it -> examples in an epoch.
        dataset: As `experiments.datasets.load` takes it.
        epochs: Of the last training of the whole runs.

    Returns:
        Network and fraction -> form -> "ratio", times as fast as dense, by repetition; network and "whole run" -> wall
        times and accuracies; and "table", the same as a text.

    Raises:
        RuntimeError: The runs do not keep the same masks; or the data is not there.
    """
    data = datasets.load(dataset, data_dir)
    figures: dict[str, Any] = {}
    for architecture, examples in networks.items():
        for fraction in _FRACTIONS:
            figures[f"{architecture}, {1 / (1 - fraction):g} x fewer multiply-adds"] = _calls(
                repetitions, architecture, data, examples, fraction
            )
        figures[f"{architecture}, whole run"] = _whole_runs(repetitions, architecture, data, examples, epochs)
    return {**figures, "table": "\n".join(_lines(figures))}


def _calls(
    repetitions: int, architecture: str, data: datasets.ImageData, examples: int, fraction: float
) -> dict[str, Any]:
    result = _prune(architecture, data, examples, fraction, epochs=1)
    dense, small = _model(architecture, data), result.compact()
    forms: dict[str, Any] = {"parameters": small.count_params()}
    for call in _CALLS:
        medians = medians_of_calls(call, dense, small, repetitions)
        forms[str(call)] = {
            "dense_seconds": [of_dense for of_dense, _ in medians],
            "ratio": [of_dense / of_small for of_dense, of_small in medians],
        }
        tell(f"{architecture}, {fraction:.0%} gone, {call}: {forms[str(call)]}")
    return forms


def _whole_runs(
    repetitions: int, architecture: str, data: datasets.ImageData, examples: int, epochs: int
) -> dict[str, Any]:
    settings: dict[str, bool | None] = {"shrinking": None, "whole": False}
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    accuracies: dict[str, list[float]] = {name: [] for name in settings}
    for repetition in range(repetitions):
        kept = {}
        for name in list(settings)[:: 1 if repetition % 2 == 0 else -1]:
            begun_at = time.perf_counter()
            result = _prune(architecture, data, examples, 0.5, epochs, compact_rounds=settings[name], seed=repetition)
            seconds[name].append(time.perf_counter() - begun_at)
            accuracies[name].append(result.model.evaluate(data.test_images, data.test_labels, 1024, verbose=0)[1])
            kept[name] = sum(int(np.count_nonzero(mask)) for mask in result.masks.values())
            tell(f"{architecture}, whole run, {name}: {seconds[name][-1]:.0f} s, accuracy {accuracies[name][-1]:.4f}")
        if abs(kept["shrinking"] / kept["whole"] - 1) > 0.05:
            raise RuntimeError(f"The runs do not compare, for their masks keep {kept} weights.")
    ratios = [here / there for here, there in zip(*seconds.values(), strict=True)]
    return {"seconds": seconds, "accuracy": accuracies, "ratio": ratios}


def _prune(
    architecture: str,
    data: datasets.ImageData,
    examples: int,
    fraction: float,
    epochs: int,
    *,
    compact_rounds: bool | None = None,
    seed: int = 0,
) -> PruningResult:
    config = PruningConfig(
        fraction, epochs=epochs, granularity="channel", budget="flops", seed=seed, compact_rounds=compact_rounds
    )
    return prune(
        _model(architecture, data),
        data.train_images[:examples],
        data.train_labels[:examples],
        config=config,
        batch_size=64,
        verbose=0,
    )


def _model(architecture: str, data: datasets.ImageData) -> Any:
    keras = importlib.import_module("keras")
    shape = data.train_images.shape[1:]
    return compiled_model(architecture, keras, shape, data.classes, learning_rate=0.05, metrics=["accuracy"])


def _lines(figures: Mapping[str, Any]) -> Sequence[str]:
    lines = []
    for title, forms in figures.items():
        if title.endswith("whole run"):
            lines.append(
                f"{title}, shrinking: {spread_text(forms['seconds']['shrinking'], ' s')} of "
                f"{spread_text(forms['seconds']['whole'], ' s')}: x {spread_text(forms['ratio'])}; accuracy "
                f"{spread_text(forms['accuracy']['shrinking'])} and {spread_text(forms['accuracy']['whole'])}"
            )
            continue
        lines.append(f"{title} ({forms['parameters']:,} parameters)")
        lines += [
            f"  {call:54}{spread_text(form['ratio'])} x as fast as {_milliseconds(form['dense_seconds'])}"
            for call, form in forms.items()
            if call.startswith("a call")
        ]
    return lines


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.2f} ms"
