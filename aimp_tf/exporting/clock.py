"""What a call of a pruned model would take, before its masks are set: for budgets of time."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.mixed_precision import computing_in_float32
from aimp_tf.config.latency import Latency, Timings
from aimp_tf.exporting.compaction import compact_as_masked
from aimp_tf.exporting.lite import to_tflite
from aimp_tf.exporting.saved_model import write_saved_model
from aimp_tf.selection.channels import ChannelUnits

logger = logging.getLogger(__name__)

_WORKER = pathlib.Path(__file__).with_name("timing_worker.py")
_TURNS, _SECONDS_PER_TURN, _ENOUGH_SECONDS = 10, 0.03, 8.0


class Clock:
    """Times a model as it would be with fewer channels: compacted, exported, and called in a process of its own.

    Each is timed in turn with the dense model, and what counts is the ratio of their medians, as a fraction of what the
    dense one took at first: however busy the machine is, it is so for both.

    Args:
        latency: What a call is.
        model: A built functional or Sequential model, which may be masked and training.
        variables: Path -> variable, of those that its units lie in.
        timings: What was timed before.

    Raises:
        ValueError: The model is spread over several workers.
    """

    def __init__(self, latency: Latency, model: Any, variables: Mapping[str, Any], timings: Timings) -> None:
        if Cluster(model.distribute_strategy).size > 1:
            raise ValueError(
                f"budget={latency!r} is for one worker, on whose machine it is timed. Prune with budget='flops' there."
            )
        self._latency = latency
        self._model = model
        self._variables = variables
        self._timings = timings
        self._folder = tempfile.TemporaryDirectory(prefix="aimp_tf_")  # Which goes with the clock.
        self._dense: pathlib.Path | None = None

    def __call__(self, units: ChannelUnits, kept: np.ndarray) -> int:
        """Microseconds of a call where these units stay, bool (units,): timed now, or known from before.

        Raises:
            ValueError: The model cannot be exported.
            RuntimeError: What was exported cannot be timed.
        """
        if self._timings.dense is None:
            (seconds,) = seconds_in_turn(self._latency, self._dense_file())
            self._note(max(1, round(1e6 * statistics.median(seconds))))
        dense = self._timings.dense
        assert dense is not None
        if kept.all():
            return dense
        counts = " ".join(str(np.count_nonzero(kept[each.units])) for each in units.sets)
        if counts not in self._timings.by_counts:
            with tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
                small = compact_as_masked(self._model, self._variables, units.expand(kept))
                file = pathlib.Path(folder) / "small"
                write_for(self._latency, small, file)
                in_turn = seconds_in_turn(self._latency, self._dense_file(), file)
            of_dense, of_small = map(statistics.median, in_turn)
            self._note(max(1, round(dense * of_small / of_dense)), counts)
        return self._timings.by_counts[counts]

    def _note(self, microseconds: int, counts: str | None = None) -> None:
        if counts is None:
            self._timings.dense = microseconds
        else:
            self._timings.by_counts[counts] = microseconds
        self._timings.save(self._timings)
        logger.info(
            "%s: %.3f ms for %s.",
            self._latency,
            microseconds / 1000,
            f"channels {counts}" if counts else "the dense model",
        )

    def _dense_file(self) -> pathlib.Path:
        if self._dense is None:
            self._dense = pathlib.Path(self._folder.name) / "dense"
            write_for(self._latency, self._model, self._dense)
        return self._dense


def write_for(latency: Latency, model: Any, path: pathlib.Path) -> None:
    """Exports a model as what is timed. Raises ValueError where that cannot be done."""
    with computing_in_float32(model):  # While it trains in half precision: afterwards it will not.
        if latency.format == "tflite":
            path.write_bytes(to_tflite(model))
        else:
            write_saved_model(model, path)


def seconds_in_turn(latency: Latency, *paths: pathlib.Path) -> list[list[float]]:
    """The seconds of single calls of each of some exported models, timed in turn in a process of their own.

    Raises RuntimeError where that fails.
    """
    job = {
        "kind": latency.format,
        "paths": list(map(os.fspath, paths)),
        "batch_size": latency.batch_size,
        "threads": latency.threads,
        "seconds": _SECONDS_PER_TURN,
        "turns": _TURNS,
        "enough": _ENOUGH_SECONDS,
    }
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / name for name in ("job.json", "seconds.json")]
        files[0].write_text(json.dumps(job))
        command = [sys.executable, "-P", os.fspath(_WORKER), *map(os.fspath, files)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise RuntimeError(f"What takes {latency} cannot be timed:\n{done.stderr[-2000:]}")
        return json.loads(files[1].read_text())


def with_clock(
    units: Any, latency: Latency | None, model: Any, variables: Mapping[str, Any], timings: Timings | None = None
) -> Any:
    """The units of a model, with a `Clock` where the budget is one of time and they have none.

    Args:
        units: As `select_units` gives them.
        latency: The budget; None where it is another.
        model: As for `Clock`.
        variables: As for `Clock`.
        timings: What was timed before, and gets what is timed; None for a run that leaves nothing.
    """
    if latency is None or units.clock is not None:
        return units
    return dataclasses.replace(units, clock=Clock(latency, model, variables, timings or Timings()))
