"""What a call of a model takes: timed in a process of its own, and told before masks are set, for budgets of time."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.mixed_precision import computing_in_float32
from aimp_tf.compat.random_state import drawing_apart
from aimp_tf.config.latency import Latency, Timings
from aimp_tf.exporting.compaction import compact_as_masked
from aimp_tf.exporting.inputs import input_specs
from aimp_tf.exporting.lite import to_tflite
from aimp_tf.exporting.saved_model import write_saved_model
from aimp_tf.selection.channels import ChannelUnits

logger = logging.getLogger(__name__)

_WORKER = pathlib.Path(__file__).with_name("timing_worker.py")
_TURNS, _SECONDS_PER_TURN, _ENOUGH_SECONDS = 10, 0.03, 8.0
_IDLE_SECONDS = 60.0
_TRIES = 2
"""A process may be killed for memory, and a run has trained for hours by then."""
_LEAST = 100
"""Microseconds of the dense model in which the time of a call is known to a hundredth."""
_ALIKE = 1.3


class TimingProcess:
    """A process that has TensorFlow and nothing else, and times exported models as a `Latency` says.

    It begins when it is first asked for times, which takes seconds, and ends with this object, or when it has been
    asked for nothing for a minute; then another one begins when it is needed.

    Attributes:
        close: Ends the process, if there is one.
    """

    def __init__(self, latency: Latency) -> None:
        self._latency = latency
        self._running: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        weakref.finalize(self, self._errors.close)
        self.close: Callable[[], object] = lambda: None

    def seconds_in_turn(self, *paths: pathlib.Path) -> list[list[float]]:
        """The seconds of single calls of each of some exported models, timed in turn.

        Raises RuntimeError where that fails.
        """
        job = {
            "kind": self._latency.format,
            "paths": list(map(os.fspath, paths)),
            "batch_size": self._latency.batch_size,
            "threads": self._latency.threads,
            "seconds": _SECONDS_PER_TURN,
            "turns": _TURNS,
            "enough": _ENOUGH_SECONDS,
        }
        for _ in range(_TRIES):
            if answer := self._asked(json.dumps(job)):
                return json.loads(answer)
        self._errors.seek(0)
        last = self._errors.read().strip().splitlines()[-1:] or ["it was killed"]
        raise RuntimeError(f"There is no time of {self._latency}, for it failed: {last[0]}")

    def _asked(self, job: str) -> str:
        """What the process answers; "" where it ended instead."""
        running = self._running
        if running is None or running.poll() is not None:
            self.close()
            self._errors.seek(0)
            self._errors.truncate()
            command, pipe = [sys.executable, "-P", os.fspath(_WORKER), str(_IDLE_SECONDS)], subprocess.PIPE
            running = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)
            self._running, self.close = running, weakref.finalize(self, _end, running)
        assert running.stdin is not None and running.stdout is not None
        try:
            running.stdin.write(job + "\n")
            running.stdin.flush()
            answer = running.stdout.readline()
        except BrokenPipeError:
            answer = ""
        except BaseException:  # Its answer would be taken for that of the next job.
            self.close()
            raise
        if answer.endswith("\n"):
            return answer
        self.close()  # It ended, perhaps in the middle of its answer.
        return ""


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


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
        ValueError: The model is spread over several workers, or takes texts, or inputs of open shapes.
    """

    def __init__(self, latency: Latency, model: Any, variables: Mapping[str, Any], timings: Timings) -> None:
        if Cluster(model.distribute_strategy).size > 1:
            raise ValueError(
                f"budget={latency!r} is for one worker, on whose machine it is timed. Prune with budget='flops' there."
            )
        for spec in tf.nest.flatten(input_specs(model)):
            if None in spec.shape[1:] or not (spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype.is_bool):
                raise ValueError(
                    f"The model {model.name!r} takes {spec.name} of shape {spec.shape} and dtype {spec.dtype.name}; a "
                    "Latency is of calls with numbers of a known shape. Write it into keras.Input, or budget='flops'."
                )
        self._latency = latency
        self._model = model
        self._variables = variables
        self._timings = timings
        self._process = TimingProcess(latency)
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="aimp_tf_"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def __call__(self, units: ChannelUnits, kept: np.ndarray) -> int:
        """Microseconds of a call where these units stay, bool (units,): timed now, or known from before.

        Raises:
            ValueError: The model cannot be exported, or a call of it takes too little time to be timed.
            RuntimeError: What was exported cannot be timed.
        """
        dense = self._timings.dense or self._time_dense()
        if kept.all():
            return dense
        counts = " ".join(str(np.count_nonzero(kept[each.units])) for each in units.sets)
        if counts not in self._timings.by_counts:
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                small = pathlib.Path(folder) / "small"
                with drawing_apart():  # Layers that are made draw their first weights.
                    write_for(self._latency, compact_as_masked(self._model, self._variables, units.expand(kept)), small)
                timed = self._process.seconds_in_turn(self._dense, small)
            of_dense, of_small = map(statistics.median, timed)
            if not 1 / _ALIKE < 1e6 * of_dense / dense < _ALIKE:
                logger.warning(
                    "A call of the dense model takes %.3g ms now, and took %.3g ms at first: the machine is busier, or "
                    "less busy, or another one. Times are told as they would have been then.",
                    1e3 * of_dense,
                    dense / 1e3,
                )
            self._timings.by_counts[counts] = max(1, round(dense * of_small / of_dense))
            self._note(self._timings.by_counts[counts], f"channels {counts}")
        return self._timings.by_counts[counts]

    def _time_dense(self) -> int:
        # Milliseconds are compared with it, and a speedup does not depend on it.
        repetitions = 3 if self._latency.milliseconds else 1
        medians = []
        for _ in range(repetitions):
            self._process.close()  # In one process the same model may be a little faster than in another.
            medians.append(statistics.median(*self._process.seconds_in_turn(self._dense)))
        dense = round(1e6 * statistics.median(medians))
        if dense < _LEAST:
            raise ValueError(
                f"For the model {self._model.name!r}, {self._latency} takes {dense} microseconds: too little to be "
                f"timed, for which it must be {_LEAST}. Give the Latency a larger batch_size, or write budget='flops'."
            )
        self._timings.dense = dense
        self._note(dense, "the dense model")
        return dense

    def _note(self, microseconds: int, what: str) -> None:
        self._timings.save(self._timings)
        logger.info("%s: %.3f ms for %s.", self._latency, microseconds / 1000, what)

    @functools.cached_property
    def _dense(self) -> pathlib.Path:
        path = self._folder / "dense"
        with drawing_apart():
            write_for(self._latency, self._model, path)
        return path


def write_for(latency: Latency, model: Any, path: pathlib.Path) -> None:
    """Exports a model as what is timed. Raises ValueError where that cannot be done."""
    with computing_in_float32(model):  # While it trains in half precision: afterwards it will not.
        if latency.format == "tflite":
            path.write_bytes(to_tflite(model))
        else:
            write_saved_model(model, path)


def with_clock(
    units: Any, latency: Latency | None, model: Any, variables: Mapping[str, Any], timings: Timings | None = None
) -> Any:
    """The units of a model, with a `Clock` where the budget is one of time and they have none.

    Args:
        units: As `select_units` gives them.
        latency: The budget; None where it is another.
        model, variables, timings: As for `Clock`; no timings for a run that leaves none.
    """
    if latency is None or units.clock is not None:
        return units
    return dataclasses.replace(units, clock=Clock(latency, model, variables, timings or Timings()))
