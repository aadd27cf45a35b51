"""The metrics of a run as it goes on: metrics.jsonl, and what TensorBoard shows, where that is installed."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.files import remove, write_atomically
from aimp_tf.runs.recorded_run import FinishedRound
from aimp_tf.training.rounds import MAGNITUDE_EDGES, RoundResult, by_split

logger = logging.getLogger(__name__)


class RunLogs:
    """The logs of a run, in its folder. They are made anew where it goes on.

    TensorBoard shows the metrics of each epoch and what each round left, both at the number of epochs trained by then.
    Metrics are named as by Keras' own callback. Of every prunable variable there are its sparsity, its threshold and a
    histogram of the magnitudes of its surviving weights, and of all variables together histograms of their sparsities
    and thresholds.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._path = folder / "metrics.jsonl"
        self._shown = folder / "tensorboard"
        self._shows = importlib.util.find_spec("tensorboard") is not None
        self._epochs = 0
        self._writers: dict[str, Any] = {}

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
        for round_ in rounds:
            for each in round_.logs:
                self._show_epoch(each)
            self.add_round(round_.result)
        for epoch_log in epoch_logs:
            self._show_epoch(epoch_log)

    def add_epoch(self, index: int, epoch: int, logs: Mapping[str, Any]) -> None:
        """Adds those of an epoch: a line for training and, where it was validated, another."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in _lines(index, epoch, logs))
        self._show_epoch(logs)

    def add_round(self, result: RoundResult) -> None:
        """Adds what a round left, after its epochs."""
        self._show("rounds", functools.partial(_add_layers, result))

    def close(self) -> None:
        """Closes what is open."""
        for writer in self._writers.values():
            writer.close()

    def _show_epoch(self, logs: Mapping[str, Any]) -> None:
        self._epochs += 1
        for split, metrics in by_split(logs).items():
            self._show(split, functools.partial(_add_metrics, metrics))

    def _show(self, name: str, add: Callable[[], None]) -> None:
        """Lets `add` write to the part of TensorBoard's log of that name. If that fails, the run goes on without it."""
        if not self._shows:
            return
        try:
            if name not in self._writers:
                self._writers[name] = tf.summary.create_file_writer(str(self._shown / name))
            with self._writers[name].as_default(step=self._epochs), tf.summary.record_if(True):
                add()
            self._writers[name].flush()
        except (ImportError, OSError, tf.errors.OpError) as error:
            self._shows = False
            logger.warning("TensorBoard gets no more of this run, for %s cannot be written: %s", self._shown, error)


def _lines(index: int, epoch: int, logs: Mapping[str, Any]) -> list[str]:
    return [
        json.dumps({"round": index, "epoch": epoch, "split": split, **metrics})
        for split, metrics in by_split(logs).items()
    ]


def _add_metrics(metrics: Mapping[str, Any]) -> None:
    """Adds a metric that gives several numbers as one for each."""
    for name, value in metrics.items():
        for position, number in enumerate(np.ravel(value)):
            tf.summary.scalar(f"epoch_{name}" if np.ndim(value) == 0 else f"epoch_{name}/{position}", number)


def _add_layers(result: RoundResult) -> None:
    from tensorboard.plugins.histogram import metadata  # Not at the top: the extra may not be installed.

    tf.summary.scalar("sparsity", result.sparsity)
    thresholds = [layer.threshold for layer in result.layers if layer.threshold is not None]
    tf.summary.histogram("layers/sparsity", [layer.sparsity for layer in result.layers])
    if thresholds:
        tf.summary.histogram("layers/threshold", thresholds)
    for layer in result.layers:
        tf.summary.scalar(f"sparsity/{layer.path}", layer.sparsity)
        if layer.threshold is not None:
            tf.summary.scalar(f"threshold/{layer.path}", layer.threshold)
        bins = np.stack([MAGNITUDE_EDGES[:-1], MAGNITUDE_EDGES[1:], layer.magnitudes], axis=-1)
        tf.summary.write(
            f"magnitudes/{layer.path}",
            tf.constant(bins, tf.float64),
            metadata=metadata.create_summary_metadata(display_name=None, description=None),
        )
