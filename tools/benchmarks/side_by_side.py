"""Timing of things that do the same, in turn in one process, and what came of it as a table."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np


def time_in_turn(
    sides: Mapping[str, Callable[[], Sequence[np.ndarray]]],
    repetitions: int,
    same: Callable[[np.ndarray, np.ndarray], bool] = np.array_equal,
) -> dict[str, list[float]]:
    """Times functions in turn, so that what else the machine does meets them alike.

    Args:
        sides: Name -> function that does the work and gives its result.
        repetitions: How often each is timed. The order of the sides is turned round each time.
        same: Whether two arrays of results count as the same.

    Returns:
        Name -> wall time of each repetition, in seconds.

    Raises:
        RuntimeError: The sides did not give the same in a repetition, so that their times do not compare.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repetitions):
        results: dict[str, Sequence[np.ndarray]] = {}
        for name in list(sides)[:: 1 if repetition % 2 == 0 else -1]:
            gc.collect()
            begun_at = time.perf_counter()
            results[name] = sides[name]()
            seconds[name].append(time.perf_counter() - begun_at)
        first, *others = sides
        for other in others:
            here, there = results[first], results[other]
            if len(here) != len(there) or not all(map(same, here, there)):
                raise RuntimeError(
                    f"{first!r} and {other!r} did not compute the same result in repetition {repetition + 1}, so their "
                    "times do not compare."
                )
    return seconds


@contextlib.contextmanager
def timing(kind: type, *names: str) -> Iterator[list[float]]:
    """Notes the wall time in seconds that each call of some methods of a class takes."""
    seconds: list[float] = []

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            begun_at = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                seconds.append(time.perf_counter() - begun_at)

        return call

    replaced: dict[str, Any] = {name: timed(getattr(kind, name)) for name in names}
    with mock.patch.multiple(kind, **replaced):
        yield seconds


def compare(
    title: str, seconds: Mapping[str, Sequence[float]], floor: str, per: int = 1
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """What came of `time_in_turn`, beside one of its sides.

    Args:
        title: What the lines begin with.
        seconds: What `time_in_turn` gave.
        floor: Name of the side that the others are compared with, repetition by repetition.
        per: Parts that the times are divided into, such as steps.

    Returns:
        Side -> medians of its seconds and, but for the floor, of its ratio, with the lowest and the highest ratio; and
        a line a side.
    """
    figures, lines = {}, []
    for name, times in seconds.items():
        figures[name] = {"seconds": statistics.median(times) / per}
        line = f"{title:28}{name:18}{spread_text([1000 * value / per for value in times], ' ms'):34}"
        if name != floor:
            ratios = [here / there for here, there in zip(times, seconds[floor], strict=True)]
            figures[name] |= {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
            line += f"x {spread_text(ratios)} of {floor}"
        lines.append(line.rstrip())
    return figures, lines


def tell(line: str) -> None:
    """Says on standard error what is known already, of a benchmark that takes long."""
    print(line, file=sys.stderr, flush=True)


def spread_text(values: Sequence[float], unit: str = "") -> str:
    """The median of values, with the lowest and the highest."""
    return f"{statistics.median(values):.4g}{unit} ({min(values):.4g} to {max(values):.4g})"


def resident_bytes(field: str) -> int:
    """The resident memory of this process: "VmRSS" now, "VmHWM" at most. Linux only.

    `resource.getrusage` would count what the parent had, too.
    """
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
