"""What TensorBoard shows of a run. Needs the package tensorboard, which comes with the extra `report`."""

from __future__ import annotations

import functools
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.histogram import metadata

from aimp_tf.training.rounds import MAGNITUDE_EDGES, RoundResult, by_split

logger = logging.getLogger(__name__)


class TensorBoardLog:
    """Writes the metrics of each epoch and what each round left, both at the number of epochs trained by then.

    Metrics are named as by Keras' own callback. Of every prunable variable there are its sparsity, its threshold and a
    histogram of the magnitudes of its surviving weights, and of all variables together histograms of their sparsities
    and thresholds.

    Args:
        folder: Where to write.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._epochs = 0
        self._writers: dict[str, Any] = {}
        self._failed = False

    def add_epoch(self, logs: Mapping[str, Any]) -> None:
        """Adds the logs of an epoch; a metric that gives several numbers as one for each."""
        self._epochs += 1
        for split, metrics in by_split(logs).items():
            self._write(split, functools.partial(self._add_metrics, metrics))

    def add_round(self, result: RoundResult) -> None:
        """Adds what a round left, after its epochs."""
        self._write("rounds", functools.partial(self._add_layers, result))

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()

    def _write(self, name: str, add: Callable[[], None]) -> None:
        """Lets `add` write to the part of the log that is called `name`. If that fails, the run goes on without it."""
        if self._failed:
            return
        try:
            if name not in self._writers:
                self._writers[name] = tf.summary.create_file_writer(str(self._folder / name))
            with self._writers[name].as_default(step=self._epochs), tf.summary.record_if(True):
                add()
            self._writers[name].flush()
        except (OSError, tf.errors.OpError) as error:
            self._failed = True
            logger.warning("TensorBoard gets no more of this run, for %s cannot be written: %s", self._folder, error)

    def _add_metrics(self, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            for position, number in enumerate(np.ravel(value)):
                tf.summary.scalar(f"epoch_{name}" if np.ndim(value) == 0 else f"epoch_{name}/{position}", number)

    def _add_layers(self, result: RoundResult) -> None:
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
