"""What a run leaves on disk. Plain data only: JSON, npz without pickles, a SavedModel."""

from __future__ import annotations

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.exporting import export
from aimp_tf.result import RoundResult


class RunDirectory:
    """Writes a run into a folder: config.json, metrics.jsonl, round_NNN/ and final/.

    Args:
        path: A folder that does not exist yet or is empty. Nothing is written before `start`.

    Raises:
        ValueError: The folder holds something, is a file, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"workdir {self.path} is a file; name a folder that is new or empty.")
        if self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(f"workdir {self.path} holds files already; name a folder that is new or empty.")
        parent = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ValueError(f"workdir {self.path} cannot be written: no permission to write in {parent}.")

    def start(self, config: PruningConfig) -> None:
        """Makes the folder and writes the config."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.json", config.to_json())

    def save_round(
        self, result: RoundResult, history: Mapping[str, list[float]], masks: Mapping[str, np.ndarray], *, final: bool
    ) -> None:
        """Adds a finished round: its masks, a line of metrics an epoch, and, last of all, its result.json."""
        folder = self.path / ("final" if final else f"round_{result.index:03d}")
        folder.mkdir()
        np.savez_compressed(folder / "masks.npz", allow_pickle=False, **masks)
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            for epoch in range(result.epochs):
                file.writelines(json.dumps(line) + "\n" for line in _metric_lines(result.index, epoch, history))
        write_atomically(folder / "result.json", json.dumps(asdict(result), indent=2))

    def save_model(self, model: Any) -> None:
        """Exports the pruned model to final/saved_model."""
        export(model, self.path / "final", formats=("saved_model",))


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file so that a reader sees all of it or nothing, also after a crash."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def _metric_lines(index: int, epoch: int, history: Mapping[str, list[float]]) -> list[dict[str, Any]]:
    """One line for training and, where the epoch was validated, one for validation."""
    lines = []
    for split, prefix in (("train", ""), ("validation", "val_")):
        metrics = {
            name.removeprefix(prefix): float(values[epoch])
            for name, values in history.items()
            if name.startswith("val_") == bool(prefix) and epoch < len(values)
        }
        if metrics:
            lines.append({"round": index, "epoch": epoch, "split": split, **metrics})
    return lines
