"""Functions that only move values: reshape, transpose, split, stack, take and the like, known by what ends up where."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call, Tensor
from aimp_tf.graph.rules import Flows, as_it_is
from aimp_tf.graph.trials import Trial, alike

_NOTHING = -1
"""Where an output has zeros of its own."""

_ATTEMPTS = 50

_COUNTS = 2**24
"""So far float32 counts."""
_HALF_COUNTS = 2**8
"""So far bfloat16 counts, and float16 too."""


_Ways = Mapping[int, Mapping[int, tuple[int, np.ndarray]]]
"""Axis of an output -> place of an input that gets there -> its axis along which entries do, and their pairs (entry of
the output, entry of the input), int (pairs, 2). The axis of examples counts as the first."""


class Movement:
    """What ends up where.

    Attributes:
        as_it_is: Whether the same call does what it should with entries left out of its inputs.
    """

    def __init__(
        self, call: Call, trial: Trial, numbers: Mapping[int, np.ndarray], sources: Sequence[np.ndarray]
    ) -> None:
        """Says where values come from.

        Args:
            call: The call.
            trial: Of it, with all axes of their own sizes.
            numbers: Place of each tensor -> the number of each of its values, as `_numbers` gives them.
            sources: Of each output, the number of the value that each of its own is, or `_NOTHING`; int, without the
                axis of examples.
        """
        self._call, self._trial, self._numbers, self._sources = call, trial, numbers, sources
        self.as_it_is = True

    @classmethod
    def of(cls, call: Call) -> Movement | None:
        """The movement of a call; None if it does more than that."""
        trial = Trial(call, None)
        if not trial.worked:
            return None
        numbers = _numbers(trial)
        sources = _sources(trial, numbers, call.outputs)
        return None if sources is None else cls(call, trial, numbers, sources)

    def follow(self, flows: Flows, classes: ChannelClasses) -> list[Flow]:
        """What comes out of the call."""
        why = f"{self._call.name} ({type(self._call.layer).__name__}) moves it so that all of it stays"
        ways = [self._ways_of(each, flows) for each in self._sources]
        outputs = [self._output(index, each, flows, classes, why) for index, each in enumerate(ways)]
        used = {(place, axis) for each in ways for way in each.values() for place, (axis, _) in way.items()}
        for place, tensor in self._trial.tensors.items():
            for axis, along in flows[tensor].axes.items():
                if (place, axis) not in used:
                    classes.pin(along.classes, why)
        self.as_it_is = self._does_with_less(flows, outputs, classes)
        if not self.as_it_is and not all(map(self._can_be_remade, range(len(outputs)))):
            for flow in (*flows.values(), *outputs):
                classes.pin_all(flow, why)
            self.as_it_is = True
        return outputs

    def remade(self, kept: Callable[[Tensor], Mapping[int, np.ndarray]], keras: Any) -> Any:
        """As `Rule.remade`."""
        ((place, tensor),) = self._trial.tensors.items()

        def make(layer: Callable[[], Any], get: Callable[[Tensor], Any]) -> list[Any]:
            value, stays = get(tensor), kept(tensor)
            outputs = []
            for index, output in enumerate(self._call.outputs):
                after = kept(output)
                if self._keeps_order(index):
                    sizes = [-1 if size is None else size for size in output.shape]
                    for axis, indices in after.items():
                        sizes[axis] = len(indices)
                    outputs.append(keras.layers.Reshape(sizes[1:])(value))
                    continue
                found = self._taken(index)
                assert found is not None  # Or it would be pinned.
                axis, taken = found
                before = stays.get(axis, np.arange(self._numbers[place].shape[axis - 1]))
                taken = taken[after.get(axis, np.arange(len(taken)))]
                outputs.append(_take(value, np.searchsorted(before, taken), axis, keras))
            return outputs

        return make

    def _ways_of(self, sources: np.ndarray, flows: Flows) -> _Ways:
        """How entries get to an output."""
        ways: dict[int, dict[int, tuple[int, np.ndarray]]] = {}
        for place, tensor in self._trial.tensors.items():
            numbers = self._numbers[place]
            present = _are_among(sources, numbers)
            if not present.any():
                continue
            entries = np.unravel_index(np.where(present, sources - numbers.min(), 0), numbers.shape)
            for axis in flows[tensor].axes:
                # Sequences are split into heads, others into what a layer looks at and the channels in its place.
                found = _axis_of(entries[axis - 1], present, numbers.shape[axis - 1], last=numbers.ndim != 2)
                if found is not None:
                    ways.setdefault(found[0], {}).setdefault(place, (axis, found[1]))
        return ways

    def _output(self, index: int, ways: _Ways, flows: Flows, classes: ChannelClasses, why: str) -> Flow:
        tensor, axes = self._call.outputs[index], {}
        for axis, by_place in sorted(ways.items()):
            size = self._sources[index].shape[axis - 1]
            by_entry = np.moveaxis(self._sources[index], axis - 1, 0).reshape(size, -1)
            tied: np.ndarray = np.full(size, -1)
            constants: list[set[float]] = [set() for _ in range(size)]
            fixed = np.ones(size, bool)
            covered = by_entry == _NOTHING
            for place, (source_axis, pairs) in by_place.items():
                along = flows[self._trial.tensors[place]].axes[source_axis]
                covered |= _are_among(by_entry, self._numbers[place])
                entries, given = pairs.T
                tied[entries] = np.where(tied[entries] < 0, along.classes[given], tied[entries])
                classes.join(tied[entries], along.classes[given])
                np.logical_and.at(fixed, entries, along.fixed[given])
                for entry, constant in zip(entries.tolist(), along.constants[given].tolist(), strict=True):
                    constants[entry].add(constant)
            for entry in np.flatnonzero((by_entry == _NOTHING).any(axis=1)):
                constants[entry].add(0.0)
            if not covered.all() or (tied < 0).any():
                classes.pin(tied[tied >= 0], why)
                continue
            values = np.array([each.pop() if len(each) == 1 else np.nan for each in constants])
            axes[axis] = Axis(tied, values, fixed)
        last = len(tensor.shape) - 1
        if last not in axes:
            axes |= as_it_is(tensor, classes, why).axes
        return Flow(len(tensor.shape), axes)

    def _does_with_less(self, flows: Flows, outputs: Sequence[Flow], classes: ChannelClasses) -> bool:
        """Whether the same call gives the same with some entries left out, which is tried with some of each axis."""
        generator = np.random.default_rng(0)
        values = self._trial.sample()
        whole = self._trial.run(values)
        missing = {
            (place, axis)
            for place, tensor in self._trial.tensors.items()
            for axis, along in flows[tensor].axes.items()
            if len(set(classes.settled(along.classes))) > 1
        }
        for _ in range(_ATTEMPTS):
            stays: dict[int, bool] = {}

            def of(value: np.ndarray, flow: Flow, stays: dict[int, bool] = stays) -> np.ndarray:
                for axis, along in flow.axes.items():
                    settled = classes.settled(along.classes).tolist()
                    kept = [stays.setdefault(each, bool(generator.random() < 0.6)) for each in settled]
                    value = np.compress(kept, value, axis)
                return value

            fewer = {place: of(values[place], flows[tensor]) for place, tensor in self._trial.tensors.items()}
            if not all(map(np.size, fewer.values())):
                continue
            found = self._trial.run(fewer)
            if whole is None or found is None:
                return False
            if not all(map(alike, found, [of(*each) for each in zip(whole, outputs, strict=True)])):
                return False
            missing = {each for each in missing if np.shape(fewer[each[0]])[each[1]] == values[each[0]].shape[each[1]]}
            if not missing:
                return True
        return False

    def _can_be_remade(self, index: int) -> bool:
        shape = self._call.outputs[index].shape
        return len(self._trial.tensors) == 1 and (
            (self._keeps_order(index) and shape[1:].count(None) < 2) or self._taken(index) is not None
        )

    def _keeps_order(self, index: int) -> bool:
        """Whether an output is all of the input with other axes."""
        (numbers,) = self._numbers.values()
        return np.array_equal(self._sources[index].reshape(-1), numbers.reshape(-1))

    def _taken(self, index: int) -> tuple[int, np.ndarray] | None:
        """The axis along which an output has some entries of the input, all else being the same, and which ones."""
        (numbers,), sources = self._numbers.values(), self._sources[index]
        if sources.ndim != numbers.ndim:
            return None
        for axis in range(numbers.ndim):
            first = np.moveaxis(sources, axis, 0).reshape(sources.shape[axis], -1)[:, 0]
            taken = np.unravel_index(np.maximum(first, 0), numbers.shape)[axis]
            if np.array_equal(np.take(numbers, taken, axis), sources):
                return axis + 1, taken
        return None


def _numbers(trial: Trial) -> dict[int, np.ndarray]:
    """Place of each tensor -> the number of each of its values, among all that go in, int, without that of examples."""
    numbers, first = {}, 0
    for place, (_, *sizes) in trial.shapes.items():
        numbers[place] = first + np.arange(math.prod(sizes)).reshape(sizes)
        first += numbers[place].size
    return numbers


def _sources(trial: Trial, numbers: Mapping[int, np.ndarray], outputs: Sequence[Tensor]) -> list[np.ndarray] | None:
    """Of each output, where its values come from, as `Movement` has it; None if it does more than move them."""
    total = sum(each.size for each in numbers.values())
    if trial.arrays or 2 * total >= _COUNTS:
        return None
    counted = _counted(trial, {place: 1 + np.stack([each, each + total]) for place, each in numbers.items()}, outputs)
    values = trial.sample()
    moved = trial.run(values)
    if counted is None or moved is None:
        return None
    of_all = np.concatenate([values[place].reshape(len(values[place]), -1) for place in numbers], axis=1)
    found = []
    for tensor, output, check in zip(outputs, counted, moved, strict=True):
        source = output.astype(np.int64) - 1
        first = source[0]
        if not np.array_equal(output, source + 1) or first.min(initial=0) < _NOTHING or first.max(initial=0) >= total:
            return None
        if not np.array_equal(source[1], np.where(first == _NOTHING, _NOTHING, first + total)):
            return None
        expected = np.where(first == _NOTHING, 0.0, of_all[:, first.reshape(-1)].reshape(output.shape))
        if not np.array_equal(tf.cast(tf.cast(expected, tensor.dtype), tf.float32), check):
            return None
        found.append(first)
    return found


def _are_among(sources: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which sources are among the numbers of a tensor, which follow upon each other."""
    first = numbers.min(initial=_COUNTS)
    return (sources >= first) & (sources < first + numbers.size)


def _counted(trial: Trial, numbers: Mapping[int, np.ndarray], outputs: Sequence[Tensor]) -> list[np.ndarray] | None:
    """What comes out for whole numbers, digit by digit where these are more than half precision can tell apart."""
    dtypes = {tf.as_dtype(tensor.dtype) for tensor in (*trial.tensors.values(), *outputs)}
    base, digits = (_HALF_COUNTS, 3) if dtypes & {tf.float16, tf.bfloat16} else (_COUNTS, 1)
    found = []
    for power in range(digits):
        of_digit = trial.run(
            {place: (each // base**power % base).astype(np.float32) for place, each in numbers.items()}
        )
        if of_digit is None:
            return None
        found.append([base**power * output.astype(np.float64) for output in of_digit])
    return [np.sum(outputs_, axis=0) for outputs_ in zip(*found, strict=True)]


def _axis_of(entries: np.ndarray, present: np.ndarray, size: int, *, last: bool) -> tuple[int, np.ndarray] | None:
    """The axis of an output along which entries of an input's axis of this size lie, and their pairs, as in `_Ways`;
    `entries` has that of each value, if it comes from that input, and so is `present`.

    It is the axis where each place has one entry, or else one where each entry is in one place, which ties entries
    together: the last or the first of several.
    """
    tying: tuple[int, np.ndarray] | None = None
    for axis, places in enumerate(np.argwhere(present).T):  # No axis where there is that of the examples alone.
        met = np.zeros((entries.shape[axis], size), bool)
        met[places, entries[present]] = True
        pairs = np.argwhere(met)
        if met.any(axis=0).sum() < 2:
            return None  # One entry of several is taken out, which must be there then.
        if (met.sum(axis=1) <= 1).all():
            return axis + 1, pairs
        if (last or tying is None) and (met.sum(axis=0) <= 1).all() and met.any(axis=1).sum() > 1:
            tying = axis + 1, pairs
    return tying


def _take(value: Any, indices: np.ndarray, axis: int, keras: Any) -> Any:
    if keras.__name__ == "keras":
        return keras.ops.take(value, indices.tolist(), axis=axis)
    return tf.gather(value, indices.tolist(), axis=axis)
