"""Calls of exported models, timed in turn in processes of their own."""

from __future__ import annotations

import pathlib
import statistics
import tempfile
from typing import Any

from aimp_tf.config.latency import Latency
from aimp_tf.exporting.clock import write_for
from aimp_tf.exporting.timing import TimingProcess


def medians_of_calls(latency: Latency, dense: Any, small: Any, repetitions: int) -> list[tuple[float, float]]:
    """The median seconds of a call of two models, exported and timed in turn as a `Latency` says, so many times."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / name for name in ("dense", "small")]
        for model, path in zip((dense, small), paths, strict=True):
            write_for(latency, model, path)
        timed = [TimingProcess(latency).seconds_in_turn(*paths) for _ in range(repetitions)]
    return [(statistics.median(of_dense), statistics.median(of_small)) for of_dense, of_small in timed]
