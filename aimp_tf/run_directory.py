"""What a run leaves on disk. Plain data only: JSON, npz without pickles, a SavedModel."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.result import RoundResult


def check_workdir(path: str | os.PathLike[str]) -> pathlib.Path:
    """Checks, writing nothing, that a run can be written to `path`: a folder that is empty or can be made.

    Raises:
        ValueError: The folder holds something, is a file, or cannot be written.
        OSError: It cannot be read.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"workdir {path} is a file; name a folder that is new or empty.")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"workdir {path} holds files already; name a folder that is new or empty.")
    check_writable(path, "workdir")
    return path


def check_writable(path: str | os.PathLike[str], name: str) -> None:
    """Checks, writing nothing, that `path` is a folder that may be written to or can be made.

    Raises:
        ValueError: It is not; the message speaks of it by `name`.
    """
    absolute = pathlib.Path(path).absolute()
    existing = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"{name} {path} cannot be written: {existing} is not a folder in which you may write; name another one."
        )


class RunDirectory:
    """Writes a run into a folder: config.json, metrics.jsonl, round_NNN/ and final/.

    Args:
        path: A folder that does not exist yet or is empty. Nothing is written before the first round is done.
        config: The config of the run.

    Raises:
        ValueError: As `check_workdir`.
    """

    def __init__(self, path: str | os.PathLike[str], config: PruningConfig) -> None:
        self.path = check_workdir(path)
        self._config = config

    def save_round(
        self,
        result: RoundResult,
        epoch_logs: Sequence[Mapping[str, Any]],
        masks: Mapping[str, np.ndarray],
        *,
        final: bool,
    ) -> None:
        """Adds a finished round: its masks, a line of metrics an epoch, and, last of all, its result.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        if result.index == 0:
            write_atomically(self.path / "config.json", self._config.to_json())
        folder = self.path / ("final" if final else f"round_{result.index:03d}")
        folder.mkdir()
        np.savez_compressed(folder / "masks.npz", allow_pickle=False, **masks)
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            for epoch, logs in enumerate(epoch_logs):
                file.writelines(json.dumps(line) + "\n" for line in _metric_lines(result.index, epoch, logs))
        write_atomically(folder / "result.json", json.dumps(asdict(result), indent=2))

    def save_model(self, model: Any) -> None:
        """Exports the pruned model to final/saved_model. Raises RuntimeError if that fails; the model is not lost."""
        from aimp_tf.exporting import export  # Not at the top: to check a folder, nobody need wait for TensorFlow.

        try:
            export(model, self.path / "final", formats=("saved_model",))
        except Exception as error:
            raise RuntimeError(
                f"The run is complete, but no SavedModel could be written to {self.path / 'final'}: {error}. The model "
                f"that was passed to prune is pruned, and the masks and metrics of every round are in {self.path}."
            ) from error


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file so that a reader sees all of it or nothing, also after a crash."""
    unfinished = path.with_name(f".unfinished_{path.name}")
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _metric_lines(index: int, epoch: int, logs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line for training and, where the epoch was validated, one for validation."""
    lines = []
    for split, prefix in (("train", ""), ("validation", "val_")):
        metrics = {
            name.removeprefix(prefix): value for name, value in logs.items() if name.startswith("val_") == bool(prefix)
        }
        if metrics:
            lines.append({"round": index, "epoch": epoch, "split": split, **metrics})
    return lines
