"""Timing of things that do the same, in turn in one process, and what came of it as a table."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np


def time_in_turn(sides: Mapping[str, Callable[[], Sequence[np.ndarray]]], repetitions: int) -> dict[str, list[float]]:
    """Times functions in turn, so that what else the machine does meets them alike.

    Args:
        sides: Name -> function that does the work and gives its result.
        repetitions: How often each is timed. The order of the sides is turned round each time.

    Returns:
        Name -> wall time of each repetition, in seconds.

    Raises:
        RuntimeError: The results are not the same, bit for bit, so that their times do not compare.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    first: tuple[str, Sequence[np.ndarray]] | None = None
    for repetition in range(repetitions):
        for name in list(sides)[:: 1 if repetition % 2 == 0 else -1]:
            gc.collect()
            begun_at = time.perf_counter()
            result = sides[name]()
            seconds[name].append(time.perf_counter() - begun_at)
            if first is None:
                first = name, result
            elif not _same(first[1], result):
                raise RuntimeError(
                    f"{name!r} in repetition {repetition + 1} and {first[0]!r} in the first did not compute the same "
                    "result, so their times do not compare."
                )
    return seconds


@contextlib.contextmanager
def timing(*methods: tuple[type, str]) -> Iterator[dict[str, float]]:
    """Adds up the wall time in seconds that calls of some methods take, by "Class.method"."""
    seconds = {f"{kind.__name__}.{name}": 0.0 for kind, name in methods}

    def timed(key: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            begun_at = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                seconds[key] += time.perf_counter() - begun_at

        return call

    with contextlib.ExitStack() as stack:
        for key, (kind, name) in zip(seconds, methods, strict=True):
            stack.enter_context(mock.patch.object(kind, name, timed(key, getattr(kind, name))))
        yield seconds


def spread_text(values: Sequence[float], unit: str = "") -> str:
    """The median of values, with the lowest and the highest."""
    return f"{statistics.median(values):.4g}{unit} ({min(values):.4g} to {max(values):.4g})"


def _same(here: Sequence[np.ndarray], there: Sequence[np.ndarray]) -> bool:
    return len(here) == len(there) and all(map(np.array_equal, here, there))
