"""What a pruned model is worth beside the dense one, as plain data, and how sure that is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.training.rounds import counted_text

_NORMAL_95 = 1.96
_COUNTS = ("bytes", "gzip_bytes", "parameters", "multiply_adds")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A pruned model beside the dense one, as far as that was measured: None is what was not.

    Attributes:
        dense_metrics: Those of the dense model, with names as in `RoundResult.metrics`, such as {"val_accuracy": 0.9}.
        dense_epochs: Epochs that the dense model was trained for; 0 where it was evaluated as it came.
        dense_asked: Epochs that it was to be trained for, which a callback may have ended early.
        examples: Number of examples that the validation metrics are of, of both models.
        file_format: What the file is, such as "SavedModel".
        bytes: Size of that file of the dense model and of the pruned one.
        gzip_bytes: The same, compressed.
        parameters: How many the dense model has, and the compacted one.
        multiply_adds: For one example, of the dense model and of what is timed of the pruned one, such as the compacted
            model.
        channels: Layer -> filters or units of the dense model, and of the compacted one; where whole channels were
            pruned.
        call_seconds: Repeated timings of one call of the dense model and as many of the pruned one, taken in turn.
        call: What a call is, such as "1 example, 2 threads of a CPU, the pruned model compacted".
    """

    dense_metrics: Mapping[str, Any] | None = None
    dense_epochs: int | None = None
    dense_asked: int | None = None
    examples: int | None = None
    file_format: str | None = None
    bytes: tuple[int, int] | None = None
    gzip_bytes: tuple[int, int] | None = None
    parameters: tuple[int, int] | None = None
    multiply_adds: tuple[int, int] | None = None
    channels: Mapping[str, tuple[int, int]] | None = None
    call_seconds: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    call: str | None = None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Outcome:
        """From `to_fields`, as it comes back from JSON. Raises TypeError or ValueError for others."""
        read: dict[str, Callable[[Any], Any]] = {
            "dense_metrics": dict,
            **dict.fromkeys(("dense_epochs", "dense_asked", "examples"), int),
            **dict.fromkeys(("file_format", "call"), str),
            **dict.fromkeys(_COUNTS, _pair_of(int)),
            "channels": lambda channels: {str(name): _pair_of(int)(pair) for name, pair in channels.items()},
            "call_seconds": _pair_of(lambda seconds: tuple(map(float, seconds))),
        }
        outcome = cls(**{name: make(fields[name]) for name, make in read.items() if fields.get(name) is not None})
        outcome._check()
        return outcome

    def without_the_pruned(self) -> Outcome:
        """What is known of the dense model alone."""
        return Outcome(self.dense_metrics, self.dense_epochs, self.dense_asked, self.examples)

    def to_fields(self) -> dict[str, Any]:
        """As JSON can hold it. What was not measured is left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def notes(self, metrics: Mapping[str, Any]) -> list[str]:
        """Sentences on what was measured, beside the metrics of the pruned model."""
        notes = []
        if self.dense_metrics is not None:
            names = [name for name in metrics if name in self.dense_metrics and np.ndim(metrics[name]) == 0]
            told = ", ".join(f"{name} {self.dense_metrics[name]:.4f} (pruned: {metrics[name]:.4f})" for name in names)
            length = f"after {counted_text(self.dense_epochs, 'epoch')}" if self.dense_epochs else "as it came"
            notes.append(f"The dense model, {length}: {told}.")
        if self.bytes is not None and self.gzip_bytes is not None:
            dense, pruned = self.gzip_bytes
            notes.append(
                f"A {self.file_format} of it takes {self.bytes[1]:,} bytes, and {pruned:,} with gzip; dense, "
                f"{self.bytes[0]:,} and {dense:,}."
            )
        if self.multiply_adds is not None:
            (dense, pruned), has, had = self.multiply_adds, "", ""
            if self.parameters is not None:
                had, has = (f"{count:,} parameters and " for count in self.parameters)
            notes.append(f"Compacted, it has {has}{pruned:,} multiply-adds for an example; dense, {had}{dense:,}.")
        return notes

    def channel_table(self) -> list[list[str]]:
        """A header and a row a layer, as texts; nothing where whole channels were not pruned."""
        if self.channels is None:
            return []
        rows = [["layer", "channels", "left"]]
        return [*rows, *([name, f"{dense:,}", f"{left:,}"] for name, (dense, left) in self.channels.items())]

    def _check(self) -> None:
        if self.examples is not None and self.examples < 1 or self.dense_epochs is not None and self.dense_epochs < 0:
            raise ValueError(f"{self.examples} examples and {self.dense_epochs} epochs")
        for name in _COUNTS:
            if min(getattr(self, name) or [1]) < 0:
                raise ValueError(f"{name} are {getattr(self, name)}")
        for name, (before, left) in (self.channels or {}).items():
            if not 0 <= left <= before:
                raise ValueError(f"{left} of {before} channels of {name} are left")
        dense, pruned = self.call_seconds or ([1.0], [1.0])
        if len(dense) != len(pruned) or not dense or not all(0 < time < math.inf for time in (*dense, *pruned)):
            raise ValueError(f"{len(dense)} and {len(pruned)} timings, or one that is no time")


def accuracy_margin(accuracy: float, examples: int) -> float:
    """How far the true accuracy may be from one in [0, 1] that so many examples gave, with 95%.

    It is the distance to the farther end of Wilson's interval (1927): of many examples 1.96 sqrt(p (1 - p) / n), the
    1.96 standard errors that everyone knows, and not 0 where all examples are right.
    """
    return max(_to_the_ends(accuracy, examples))


def difference_margin(first: float, second: float, examples: int) -> float:
    """The same of the difference of two accuracies on the same examples.

    It is as of two models that err independently (Newcombe, 1998, method 10). Where both err on the same examples more
    often than that, which is what models of the same data do, the interval is in truth narrower.
    """
    (below_first, above_first), (below_second, above_second) = (
        _to_the_ends(accuracy, examples) for accuracy in (first, second)
    )
    return max(math.hypot(below_first, above_second), math.hypot(above_first, below_second))


def _to_the_ends(accuracy: float, examples: int) -> tuple[float, float]:
    """The distances from an accuracy to the lower and to the upper end of Wilson's 95% interval."""
    error = accuracy * (1 - accuracy) / examples
    shift = _NORMAL_95**2 / (2 * examples)
    half = _NORMAL_95 * math.sqrt(error + shift / (2 * examples))
    inwards = shift * (1 - 2 * accuracy)
    return (half - inwards) / (1 + 2 * shift), (half + inwards) / (1 + 2 * shift)


def times_as_fast(dense: Sequence[float], pruned: Sequence[float]) -> tuple[float, float, float]:
    """How many times as fast the pruned model is, by timings taken in turn: the median of their ratios in its interval.

    Returns:
        The low end, the median and the high end. The ends are those order statistics between which the true median lies
        with at least 95%, whatever the distribution; of fewer than six timings, the least and the greatest ratio.
    """
    ratios = np.sort(np.divide(dense, pruned))
    count = len(ratios)
    outside, rank = 0, 0
    # The chance that at most `rank` of `count` lie below the true median, in units of 2**-count.
    while 40 * (outside := outside + math.comb(count, rank)) <= 2**count:
        rank += 1
    rank = max(rank - 1, 0)
    return float(ratios[rank]), float(np.median(ratios)), float(ratios[count - 1 - rank])


def _pair_of(make: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, Any]]:
    """What reads two values, of the dense model and of the pruned one."""

    def read(values: Any) -> tuple[Any, Any]:
        dense, pruned = values
        return make(dense), make(pruned)

    return read
