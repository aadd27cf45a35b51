"""Timing exported models in a process of their own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from typing import Any

from aimp_tf.config.latency import Latency

_WORKER = pathlib.Path(__file__).with_name("timing_worker.py")
_TURNS, _SECONDS_PER_TURN, _ENOUGH_SECONDS = 10, 0.03, 8.0
_IDLE_SECONDS = 60.0
_TRIES = 2
"""A process may be killed for memory, and a run has trained for hours by then."""


class TimingProcess:
    """A process that has TensorFlow and nothing else, and times exported models as a `Latency` says.

    It begins when it is first asked for times, which takes seconds, and ends with this object, or when it has been
    asked for nothing for a minute; then another one begins when it is needed.
    """

    def __init__(self, latency: Latency) -> None:
        self._latency = latency
        self._running: subprocess.Popen[str] | None = None
        self._errors = tempfile.TemporaryFile("w+", errors="replace")
        weakref.finalize(self, self._errors.close)
        self._end: Callable[[], object] = lambda: None

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

    def close(self) -> None:
        """Ends the process, if there is one."""
        self._end()

    def _asked(self, job: str) -> str:
        """What the process answers; "" where it ended instead."""
        running = self._running
        if running is None or running.poll() is not None:
            self.close()
            self._running = running = self._begun()
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

    def _begun(self) -> subprocess.Popen[str]:
        self._errors.seek(0)
        self._errors.truncate()
        command: list[Any] = [sys.executable, "-P", os.fspath(_WORKER), str(_IDLE_SECONDS)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self._errors, text=True)
        self._end = weakref.finalize(self, _end, process)
        return process


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
