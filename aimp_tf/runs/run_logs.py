"""The metrics of a run as it goes on: metrics.jsonl, and what TensorBoard shows, where that is installed."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aimp_tf.files import write_atomically
from aimp_tf.runs.recorded_run import FinishedRound
from aimp_tf.runs.run_files import remove
from aimp_tf.training.rounds import RoundResult, by_split

if TYPE_CHECKING:
    from aimp_tf.runs.tensorboard import TensorBoardLog


class RunLogs:
    """The logs of a run, in its folder. They are made anew where it goes on.

    Args:
        folder: That of the run.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._shown = folder / "tensorboard"
        self._tensorboard: TensorBoardLog | None = None

    def begin(self, rounds: Sequence[FinishedRound], epoch_logs: Sequence[Mapping[str, Any]]) -> None:
        """Writes those of the rounds that are done and of the epochs of the next one, in place of what is there."""
        logs = [*(round_.logs for round_ in rounds), epoch_logs]
        lines = [
            line
            for index, of_round in enumerate(logs)
            for epoch, each in enumerate(of_round)
            for line in _lines(index, epoch, each)
        ]
        # Also in place of a link.
        if lines:
            write_atomically(self._path, "\n".join(lines))
        else:
            self._path.unlink(missing_ok=True)
        remove([self._shown])
        if importlib.util.find_spec("tensorboard") is None:
            return
        from aimp_tf.runs.tensorboard import TensorBoardLog  # To check a folder, nobody need wait for TensorFlow.

        self._tensorboard = TensorBoardLog(self._shown)
        for round_ in rounds:
            for each in round_.logs:
                self._tensorboard.add_epoch(each)
            self._tensorboard.add_round(round_.result)
        for epoch_log in epoch_logs:
            self._tensorboard.add_epoch(epoch_log)

    def add_epoch(self, index: int, epoch: int, logs: Mapping[str, Any]) -> None:
        """Adds those of an epoch: a line for training and, where it was validated, another."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in _lines(index, epoch, logs))
        if self._tensorboard is not None:
            self._tensorboard.add_epoch(logs)

    def add_round(self, result: RoundResult) -> None:
        """Adds what a round left."""
        if self._tensorboard is not None:
            self._tensorboard.add_round(result)

    def close(self) -> None:
        """Closes what is open."""
        if self._tensorboard is not None:
            self._tensorboard.close()


def _lines(index: int, epoch: int, logs: Mapping[str, Any]) -> list[str]:
    return [
        json.dumps({"round": index, "epoch": epoch, "split": split, **metrics})
        for split, metrics in by_split(logs).items()
    ]
