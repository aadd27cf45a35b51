"""Latency: a budget in milliseconds of a call, and what was timed for it. Plain data: nothing here needs TensorFlow."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from aimp_tf.config.texts import check_whole, check_within, nearest

LATENCY_FORMATS = {"saved_model": "SavedModel", "tflite": "TFLite file"}
"""Value of `Latency.format` -> what it is."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long a call of the pruned, compacted and exported model may take, for `PruningConfig.budget`.

    It is measured on the CPU of the machine that prunes, as the median of many calls, in turn with the dense model and
    in a process of its own. Either `milliseconds` or `speedup` is given. The model must take inputs of known shapes and
    of numbers, and a call of it at least a tenth of a millisecond.

    Attributes:
        milliseconds: Of a call, at most; above 0 and less than the dense model takes.
        speedup: How many times as fast as the dense model it is to be, at least; above 1.
        format: What is timed: "saved_model" is the signature `serving_default` of a SavedModel in TensorFlow, "tflite"
            a TFLite file in LiteRT.
        batch_size: Examples in a call, at least 1.
        threads: Threads that compute it, at least 1.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: One is out of its range, or neither or both of `milliseconds` and `speedup` are given.

    Example:
        >>> Latency(speedup=2).microseconds(8_000)
        4000
        >>> print(Latency(milliseconds=5, format="tflite"))
        a call of the TFLite file with 1 example and 1 thread
    """

    milliseconds: float | None = None
    speedup: float | None = None
    format: str = "saved_model"
    batch_size: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        given = [name for name in ("milliseconds", "speedup") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "A Latency is given either as milliseconds of a call or as a speedup over the dense model; got "
                f"milliseconds={self.milliseconds}, speedup={self.speedup}. Write Latency(milliseconds=5) or "
                "Latency(speedup=2)."
            )
        (name,) = given
        value = getattr(self, name)
        check_within(f"{name} of a Latency", value, 0 if name == "milliseconds" else 1)
        object.__setattr__(self, name, value if isinstance(value, int) else float(value))  # As JSON has it.
        if not isinstance(self.format, str) or self.format not in LATENCY_FORMATS:
            raise ValueError(
                f"format of a Latency must be one of {', '.join(map(repr, LATENCY_FORMATS))}; got {self.format!r}."
                f"{nearest(self.format, LATENCY_FORMATS)}"
            )
        for name in ("batch_size", "threads"):
            check_whole(f"{name} of a Latency", getattr(self, name))
            object.__setattr__(self, name, int(getattr(self, name)))

    def __str__(self) -> str:
        examples, threads = (
            f"{count} {noun}{'s' * (count > 1)}"
            for count, noun in ((self.batch_size, "example"), (self.threads, "thread"))
        )
        return f"a call of the {LATENCY_FORMATS[self.format]} with {examples} and {threads}"

    def microseconds(self, dense: int) -> int:
        """How many a call may take, at most, where that of the dense model takes so many."""
        return math.floor(dense / self.speedup if self.speedup else 1000 * (self.milliseconds or 0))

    def fraction_to_go(self, dense: int) -> float:
        """The fraction of so many microseconds, which a call of the dense model takes, that is to go.

        Raises ValueError where that call takes no longer than it may, or so little that nothing would be left.
        """
        allowed = self.microseconds(dense)
        if allowed < 1:
            raise ValueError(f"{self} takes {dense / 1000:g} ms, and cannot take next to none. Ask for more.")
        if allowed >= dense:
            raise ValueError(
                f"Of the dense model, {self} takes {dense / 1000:g} ms, and may take {allowed / 1000:g} ms: nothing "
                "need go. Ask for fewer milliseconds; speedup=2 is half of what it takes."
            )
        return 1 - allowed / dense


@dataclasses.dataclass
class Timings:
    """What was timed in a run, so that a run that goes on finds what it found before.

    Attributes:
        dense: Microseconds of a call of the dense model; None until that was timed.
        by_counts: How many channels stay of each set, such as "16 24 8" -> microseconds.
        save: Called whenever there is another one.
    """

    dense: int | None = None
    by_counts: dict[str, int] = dataclasses.field(default_factory=dict)
    save: Callable[["Timings"], object] = lambda _: None

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Timings":
        """From `to_fields`, as it comes back from JSON. Raises KeyError, TypeError or ValueError for others."""
        timings = cls(int(fields["dense"]), {str(key): int(value) for key, value in fields["by_counts"].items()})
        if min([timings.dense or 0, *timings.by_counts.values()]) < 1:
            raise ValueError("a call takes no time")
        return timings

    def to_fields(self) -> dict[str, Any]:
        """As JSON can hold it, in microseconds of a call."""
        return {"dense": self.dense, "by_counts": self.by_counts}
