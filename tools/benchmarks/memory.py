"""The most memory that runs of `prune` take, beside a plain `fit` of as many epochs."""

from __future__ import annotations

import pathlib
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import memory_worker
from benchmarks.side_by_side import spread_text, work_in_fresh_process

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
        repetitions: How often each side is run.
        widths: Of the inputs and of each layer: 46.7 million weights by default.
        generations: Of "keras" and "tf_keras".

    Returns:
        Medians of peaks in bytes and ratios by generation, and "table", the same as a text. Before the ratio, the masks
        (a byte a weight) and the snapshots that the rewinding needs are taken off.

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
            results = {name: _work(generation, widths, settings) for name, (settings, _) in _SIDES.items()}
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


def _work(generation: str, widths: Sequence[int], settings: Mapping[str, Any] | None) -> dict[str, int]:
    job = {"generation": generation, "widths": list(widths), "batch_size": 32, "steps": 3}
    job |= {"epochs": 3, "settings": settings}
    with tempfile.TemporaryDirectory() as folder:
        return work_in_fresh_process(memory_worker.__file__, job, pathlib.Path(folder), generation)
