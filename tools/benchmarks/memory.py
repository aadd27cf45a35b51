"""The most memory that runs of `prune` take, beside a plain `fit` of as many epochs."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.pruning import prune
from aimp_tf.training.input_pipeline import array_dataset
from benchmarks.networks import made_up_images
from benchmarks.side_by_side import resident_bytes, spread_text
from experiments import call_in_fresh_process

_BATCH_SIZE, _STEPS, _EPOCHS = 32, 3, 3
_SETTINGS = {"target_sparsity": 0.5, "rate": 0.3, "epochs": 1, "round_epochs": 1}  # Two rounds and a last training.
_SIDES: dict[str, tuple[dict[str, Any] | None, int]] = {
    "fit": (None, 0),
    "prune": (_SETTINGS, 0),
    "prune, weights": ({**_SETTINGS, "rewind": "weights"}, 1),
}
"""Name -> the settings of `prune`, and how many snapshots of all weights it has to keep."""


def run(
    repetitions: int,
    widths: Sequence[int] = (4096, 8192, 1600, 10),
    generations: Sequence[str] = ("keras", "tf_keras"),
) -> dict[str, Any]:
    """Trains an MLP with Adam for three epochs of three batches of 32, each time in a process of its own.

    Args:
        widths: Of the inputs and of each layer: 46.7 million weights by default.

    Returns:
        Medians of peaks in bytes and ratios by generation. Before the ratio, the masks (a byte a weight) and the
        snapshots that the rewinding needs are taken off.

    Raises:
        RuntimeError: The sides did not train as many epochs, or a process failed.
    """
    figures: dict[str, Any] = {}
    lines = []
    for generation in generations:
        title = f"MLP ({generation})"
        peaks: dict[str, list[int]] = {name: [] for name in _SIDES}
        ratios: dict[str, list[float]] = {name: [] for name in _SIDES}
        for _ in range(repetitions):
            results = {
                name: call_in_fresh_process(
                    "benchmarks.memory.train", generation=generation, widths=widths, settings=settings
                )
                for name, (settings, _) in _SIDES.items()
            }
            if len({result["epochs"] for result in results.values()}) != 1:
                raise RuntimeError(
                    f"{title}: the sides did not train as many epochs, so their memory does not compare."
                )
            for name, result in results.items():
                snapshots = _SIDES[name][1]
                needed = 0 if name == "fit" else result["weights"] + 4 * snapshots * result["variables"]
                peaks[name].append(result["peak_bytes"])
                ratios[name].append((result["peak_bytes"] - needed) / results["fit"]["peak_bytes"])
        figures[title] = {
            name: {"peak_bytes": statistics.median(peaks[name]), "ratio": statistics.median(ratios[name])}
            for name in _SIDES
        }
        for name in _SIDES:
            line = f"{title:28}{name:18}{spread_text([peak / 1e6 for peak in peaks[name]], ' MB'):34}"
            if name != "fit":
                line += f"x {spread_text(ratios[name])} of fit, without masks and snapshots"
            lines.append(line.rstrip())
    return {**figures, "table": "\n".join(lines)}


def train(generation: str, widths: Sequence[int], settings: Mapping[str, Any] | None) -> dict[str, int]:
    """Trains a network by the settings of `prune`, or by a plain `fit`, and says what this process took for it.

    Returns:
        "peak_bytes", the most memory that was resident; "weights", how many the kernels have; "variables", how many
        numbers a snapshot of the model has; and "epochs", how many were trained.
    """
    model = _compiled(importlib.import_module(generation), widths)
    sizes = [int(np.prod(weight.shape)) for weight in model.weights]
    x, y = made_up_images(_BATCH_SIZE * _STEPS, (widths[0],), widths[-1])
    if settings is None:
        epochs = len(model.fit(array_dataset((x, y), _BATCH_SIZE, seed=0), epochs=_EPOCHS, verbose=0).epoch)
    else:
        result = prune(model, x, y, batch_size=_BATCH_SIZE, seed=0, verbose=0, **settings)
        epochs = sum(round_.epochs for round_ in result.rounds)
    return {
        "peak_bytes": resident_bytes("VmHWM"),
        "weights": sum(size for size, weight in zip(sizes, model.weights, strict=True) if len(weight.shape) > 1),
        "variables": sum(sizes),
        "epochs": epochs,
    }


def _compiled(keras: Any, widths: Sequence[int]) -> Any:
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(width, activation="relu") for width in widths[1:-1]]
    model = keras.Sequential([keras.Input((widths[0],)), *hidden, keras.layers.Dense(widths[-1])])
    model.compile(keras.optimizers.Adam(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
