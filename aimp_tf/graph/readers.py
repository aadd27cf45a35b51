"""What layers read by weights of their own, and which channels stand in for others there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from aimp_tf.graph.channels import Axis
from aimp_tf.graph.rules import Merge, Reading, Rule

_SAME = 3e-6
"""How far values of float32 that should be the same may be apart, beside the largest."""
_FIRM = 0.03
"""How large what is new in a pattern that stays anyway must be, beside the largest, to take it rather than that."""


class Reader:
    """One of a layer's readings, in all its calls.

    Attributes:
        layer: The layer.
        reading: The weights.
        sources: Classes of what it reads, as `Reading.sources` names it.
        outputs: Classes of what it makes, likewise.
        constants: Value of each channel of the sources that has the same one in all calls; NaN for the others.
        foldable: Whether nothing is lost with a channel but what a bias can hold.
        mergeable: Whether a channel of the first source is fixed all the same, so that others can stand in for it.
        read: Whether any output that stays is connected with it.
    """

    def __init__(
        self,
        rule: Rule,
        reading: Reading,
        calls: Sequence[Mapping[str, Axis]],
        values: Callable[[], Iterable[np.ndarray]],
    ) -> None:
        """Looks at what goes into all calls.

        Args:
            rule: Of the layer.
            reading: One of its readings.
            calls: What the weights count in each call.
            values: Gives an example of the first input of each call, float (positions..., channels), in which all
                fixed channels are as they always are; NaN, or for constants no positions, where that is not known.
        """
        self.layer, self.reading = rule.layer, reading
        self.sources = [calls[0][name].classes for name in reading.sources]
        self.outputs = [calls[0][name].classes for name in reading.outputs]
        self.constants = []
        for name in reading.sources:
            first, *others = (named[name].constants for named in calls)
            self.constants.append(np.where(np.all([other == first for other in others], axis=0), first, np.nan))
        self.read = [np.zeros(len(each), bool) for each in self.constants]
        self._outputs_seen = -1
        fixed = np.all([named[reading.sources[0]].fixed for named in calls], axis=0)
        self._patterns, self._sizes = np.full((1, len(fixed)), np.nan), np.ones(len(fixed))
        if reading.pattern is not None and (fixed & ~reading.foldable(self.constants[0])).any():
            parts = [reading.pattern(np.where(fixed, example, np.nan)) for example in values()]
            self._patterns = np.concatenate([part.reshape(-1, len(fixed)) for part in parts])
            # Each beside its own largest value, for what reads small ones may be large.
            self._sizes = np.abs(self._patterns).max(axis=0)
            self._patterns = self._patterns / np.where(self._sizes == 0, 1.0, self._sizes)
            self.constants[0] = np.where(np.isnan(self.constants[0]), self._uniform(), self.constants[0])
        self.foldable = [reading.foldable(each) for each in self.constants]
        self.mergeable = ~np.isnan(self._patterns).any(axis=0) & ~self.foldable[0]

    @property
    def folds(self) -> bool:
        """Whether it reads what goes into the layer, and has a bias to hold constants."""
        return self.reading.sources == ("inputs",)

    def wanted(self) -> Iterator[np.ndarray]:
        """The classes that must stay for what is read of them."""
        for index, (classes, read, foldable) in enumerate(zip(self.sources, self.read, self.foldable, strict=True)):
            yield classes[read & ~foldable & (~self.mergeable if index == 0 else True)]

    def look(self, needed: np.ndarray) -> bool:
        """Brings `read` up to date. Returns whether there was anything to do."""
        outputs = [needed[classes] for classes in self.outputs]
        count = sum(map(np.count_nonzero, outputs))
        if count == self._outputs_seen:
            return False
        self._outputs_seen = count
        connected = self.reading.connected
        for axis, stays in enumerate(outputs, start=len(self.sources)):
            connected = np.compress(stays, connected, axis=axis)
        for source in range(len(self.sources)):
            others = tuple(axis for axis in range(connected.ndim) if axis != source)
            self.read[source] = np.asarray(connected.any(axis=others))
        return True

    def standing_in(self, needed: np.ndarray) -> np.ndarray:
        """Classes that must stay so that those that stay can stand in for all that need not.

        Args:
            needed: Whether each class stays, bool.
        """
        classes = self.sources[0]
        asked = self.mergeable & self.read[0] & ~needed[classes]
        chosen = [classes[:0]]
        for channels in self._blocks(asked):
            channels = channels[asked[channels] | (self.mergeable & needed[classes])[channels]]
            patterns = self._patterns[:, channels]
            stays = ~asked[channels]
            chosen.append(_basis(patterns, self._sizes[channels], classes[channels], stays, self.reading.offset))
        return np.concatenate(chosen)

    def merged(self, stays: np.ndarray) -> tuple[np.ndarray, list[Merge]]:
        """What the channels do that stay, for those that do not.

        Args:
            stays: Whether each channel of the first source stays, bool.

        Returns:
            The value of each channel for the bias, NaN where it has none, and what else others do for them.
        """
        constants, merges = self.constants[0].copy(), []
        gone = self.mergeable & self.read[0] & ~stays
        for channels in self._blocks(gone):
            removed, there = channels[gone[channels]], channels[(self.mergeable & stays)[channels]]
            patterns = self._patterns[:, there]
            if self.reading.offset:
                patterns = np.concatenate([patterns, np.ones((len(patterns), 1))], axis=1)
            ratios = np.linalg.lstsq(patterns, self._patterns[:, removed], rcond=1e-6)[0] * self._sizes[removed]
            if self.reading.offset:
                constants[removed] = ratios[-1]
            merges.append(Merge(removed, there, ratios[: len(there)] / self._sizes[there, np.newaxis]))
        return constants, merges

    def _uniform(self) -> np.ndarray:
        """The value of each channel that is the same everywhere in its pattern; NaN for others."""
        if self.reading.offset:
            lowest, highest = self._patterns.min(axis=0), self._patterns.max(axis=0)
            return np.where(highest - lowest <= _SAME, (lowest + highest) / 2 * self._sizes, np.nan)
        return np.where((self._patterns == 0).all(axis=0), 0.0, np.nan)

    def _blocks(self, channels: np.ndarray) -> Iterator[np.ndarray]:
        """The channels that can stand in for one another, of those blocks that any of these are of."""
        blocks = self.reading.blocks
        if blocks is None:
            blocks = np.zeros(len(channels), int)
        for block in np.unique(blocks[channels]):
            yield np.flatnonzero(blocks == block)


def _basis(patterns: np.ndarray, sizes: np.ndarray, classes: np.ndarray, stays: np.ndarray, offset: bool) -> np.ndarray:
    """Classes of patterns that have to stay so that all others are sums of what stays (Gram-Schmidt, of those that are
    newest the largest first).

    Args:
        patterns: Float (values, patterns), the largest value of each being 1.
        sizes: What they are to be multiplied by, float (patterns,).
        classes: Class of each, int (patterns,), of which all stay or none.
        stays: Whether each stays anyway, bool (patterns,).
        offset: Whether what is the same for all values needs none.
    """
    left = patterns - patterns.mean(axis=0) if offset else patterns.copy()
    least = _SAME * np.linalg.norm(patterns, axis=0).max(initial=0)
    stays, chosen = stays.copy(), []
    while (norms := np.linalg.norm(left, axis=0))[~stays].max(initial=0) > least:
        index = int(np.argmax(np.where(norms > norms.max() / 2, sizes, 0.0)))
        if (best := np.where(stays, norms, 0.0)).max() > _FIRM * norms[index]:
            index = int(np.argmax(best))
        if not stays[index]:
            chosen.append(classes[index])
            stays |= classes == classes[index]
        direction = left[:, index] / norms[index]
        left -= np.outer(direction, direction @ left)
        left[:, index] = 0.0
    return np.array(chosen, np.int64)
