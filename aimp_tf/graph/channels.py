"""Channels that stand or fall together, and what is known of their values."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Flow:
    """What is known of a tensor.

    Attributes:
        classes: Class of each channel, int (channels,). Channels of one class are kept together or removed together.
        constants: Value of each channel that is the same for all inputs and positions, float64 (channels,); NaN for
            the others.
    """

    classes: np.ndarray
    constants: np.ndarray

    @property
    def is_constant(self) -> bool:
        """Whether it does not depend on the inputs at all."""
        return not np.isnan(self.constants).any()


class ChannelClasses:
    """Classes of channels, which are joined where a layer ties channels together (a union-find structure)."""

    def __init__(self) -> None:
        self._parents = np.zeros(0, np.int64)
        self._pinned: list[tuple[np.ndarray, str]] = []

    def new(self, count: int) -> np.ndarray:
        """As many new classes of one channel each."""
        first = len(self._parents)
        self._parents = np.concatenate([self._parents, np.arange(first, first + count)])
        return self._parents[first:].copy()

    def join(self, some: np.ndarray, others: np.ndarray) -> None:
        """Makes one class of `some[i]` and `others[i]`, for each i."""
        for one, other in zip(some.tolist(), others.tolist(), strict=True):
            one, other = self._root(one), self._root(other)
            self._parents[max(one, other)] = min(one, other)

    def pin(self, classes: np.ndarray, why: str) -> None:
        """These must be kept, for a reason such as "output of the model"."""
        self._pinned.append((classes, why))

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
            one = int(self._parents[one])
        return one
