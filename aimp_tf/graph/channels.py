"""Channels that stand or fall together, and what is known of their values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is known of the entries along one axis of a tensor.

    Attributes:
        classes: Class of each entry, int (size,). Entries of one class are kept together or removed together.
        constants: Value of each entry that is the same for all inputs and along all other axes, float64 (size,); NaN
            for the others.
        fixed: Whether each entry is the same for all inputs, though it may differ along other axes, bool (size,):
            those that are constant, and more.
    """

    classes: np.ndarray
    constants: np.ndarray
    fixed: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        known = ~np.isnan(self.constants)
        object.__setattr__(self, "fixed", (self.fixed | known) if len(self.fixed) else known)

    @classmethod
    def varied(cls, classes: np.ndarray) -> Axis:
        """Of these classes, and values that are not known."""
        return cls(classes, np.full(len(classes), np.nan))

    def arranged(self, arrange: Callable[[np.ndarray], np.ndarray]) -> Axis:
        """With its entries arranged anew, such as repeated, by a function of an array of them."""
        return Axis(arrange(self.classes), arrange(self.constants), arrange(self.fixed))


_NONE = Axis(np.zeros(0, np.int64), np.zeros(0))


@dataclasses.dataclass(frozen=True)
class Flow:
    """What is known of a tensor.

    Attributes:
        rank: Number of its axes.
        axes: Axis -> what is known of it, of those along which anything could go; never the first, of examples. The
            last one is that of the channels.
    """

    rank: int
    axes: Mapping[int, Axis]

    @classmethod
    def of_channels(cls, rank: int, channels: Axis) -> Flow:
        """Of a tensor whose channels alone could go."""
        return cls(rank, {rank - 1: channels} if len(channels.classes) else {})

    def each(self, function: Callable[[Axis], Axis]) -> Flow:
        """With what a function gives of each of its axes."""
        return Flow(self.rank, {axis: function(along) for axis, along in self.axes.items()})

    @property
    def channels(self) -> Axis:
        """What is known of its channels; of no entries where there are none."""
        return self.axes.get(self.rank - 1, _NONE)

    @property
    def classes(self) -> np.ndarray:
        """Of its channels."""
        return self.channels.classes

    @property
    def constants(self) -> np.ndarray:
        """Of its channels."""
        return self.channels.constants

    @property
    def is_constant(self) -> bool:
        """Whether it does not depend on the inputs at all."""
        return not np.isnan(self.constants).any()

    @property
    def is_fixed(self) -> bool:
        """Whether all of it is known to be the same for all inputs."""
        return len(self.classes) > 0 and bool(self.channels.fixed.all())

    @property
    def others(self) -> dict[int, Axis]:
        """All but its channels."""
        return {axis: along for axis, along in self.axes.items() if axis != self.rank - 1}


class ChannelClasses:
    """Classes of channels, which are joined where a layer ties channels together (a union-find structure)."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._pinned: list[tuple[np.ndarray, str]] = []

    def new(self, count: int) -> np.ndarray:
        """As many new classes of one channel each."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def join(self, some: np.ndarray, others: np.ndarray) -> None:
        """Makes one class of `some[i]` and `others[i]`, for each i."""
        for one, other in zip(some.tolist(), others.tolist(), strict=True):
            one, other = self._root(one), self._root(other)
            self._parents[max(one, other)] = min(one, other)

    def pin(self, classes: np.ndarray, why: str) -> None:
        """These must be kept, for a reason such as "output of the model"."""
        self._pinned.append((classes, why))

    def pin_all(self, flow: Flow, why: str) -> None:
        """All of a tensor must be kept, for a reason."""
        for along in flow.axes.values():
            self.pin(along.classes, why)

    def pinned(self) -> np.ndarray:
        """Whether a class must be kept, by `settled` class, bool."""
        needed = np.zeros(len(self._parents), bool)
        needed[list(self.reasons())] = True
        return needed

    def reasons(self) -> dict[int, str]:
        """`settled` class -> why it must be kept, the first reason of several."""
        reasons: dict[int, str] = {}
        for classes, why in self._pinned:
            for settled in self.settled(classes).tolist():
                reasons.setdefault(settled, why)
        return reasons

    def settled(self, classes: np.ndarray) -> np.ndarray:
        """What to call these classes once nothing is joined any more."""
        return np.fromiter(map(self._root, classes.tolist()), np.int64, len(classes))

    def _root(self, one: int) -> int:
        while self._parents[one] != one:
            self._parents[one] = self._parents[self._parents[one]]
            one = self._parents[one]
        return one
