"""Functions that only move values: reshape, transpose, split, stack, take and the like, known by what ends up where."""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class _Way:
    """How entries along an axis of an input become entries along one of an output.

    Attributes:
        place: Which input.
        axis: Its axis.
        pairs: (entry of the output, entry of the input), int (pairs, 2).
    """

    place: int
    axis: int
    pairs: np.ndarray


class Movement:
    """What ends up where.

    Attributes:
        as_it_is: Whether the same call does what it should with entries left out of its inputs.
    """

    def __init__(self, trial: Trial, sources: Sequence[np.ndarray], flows: Flows) -> None:
        """Looks at where the values come from.

        Args:
            trial: The call, with all axes of their own sizes.
            sources: Of each output, the number of the value that each of its own is, among all of an example's that go
                in, or `_NOTHING`; int, without the axis of examples.
            flows: What is known of what goes in.
        """
        self._trial, self._sources = trial, sources
        self._places = _places(trial)
        self.as_it_is = True
        self._ways = [self._ways_of(each, flows) for each in sources]

    @classmethod
    def of(cls, call: Call, flows: Flows) -> Movement | None:
        """The movement of a call; None if it does more than that."""
        trial = Trial(call, None)
        if not trial.worked or (sources := _sources(trial, call.outputs)) is None:
            return None
        return cls(trial, sources, flows)

    def follow(self, call: Call, flows: Flows, classes: ChannelClasses) -> list[Flow]:
        """What comes out of the call."""
        why = f"{call.name} ({type(call.layer).__name__}) moves it so that all of it stays"
        outputs = [self._output(call, index, flows, classes, why) for index in range(len(call.outputs))]
        used = {(way.place, way.axis) for ways in self._ways for each in ways.values() for way in each}
        for place, tensor in self._trial.tensors.items():
            for axis, along in flows[tensor].axes.items():
                if (place, axis) not in used:
                    classes.pin(along.classes, why)
        self.as_it_is = self._does_with_less(call, flows, outputs, classes)
        if not self.as_it_is and not all(self._can_be_remade(call, index) for index in range(len(outputs))):
            for flow in (*flows.values(), *outputs):
                classes.pin_all(flow, why)
            self.as_it_is = True
        return outputs

    def remade(self, call: Call, kept: Callable[[Tensor], Mapping[int, np.ndarray]], keras: Any) -> Any:
        """As `Rule.remade`."""
        (place, tensor), *_ = self._trial.tensors.items()

        def make(layer: Callable[[], Any], get: Callable[[Tensor], Any]) -> list[Any]:
            value, stays = get(tensor), kept(tensor)
            outputs = []
            for index, output in enumerate(call.outputs):
                if self._keeps_order(index):
                    outputs.append(_reshaped(value, output, kept(output), keras))
                    continue
                axis = self._axis_taken(index)
                assert axis is not None  # Or it would be pinned.
                before = stays.get(axis, np.arange(self._trial.shapes[place][axis]))
                taken = self._taken(index, axis)
                after = kept(output).get(axis, np.arange(len(taken)))
                outputs.append(_take(value, np.searchsorted(before, taken[after]), axis, keras))
            return outputs

        return make

    def _ways_of(self, sources: np.ndarray, flows: Flows) -> dict[int, list[_Way]]:
        """Axis of an output -> how entries get there. The axis of examples counts as the first."""
        ways: dict[int, list[_Way]] = {}
        for place, tensor in self._trial.tensors.items():
            first, shape = self._places[place], self._trial.shapes[place][1:]
            present = (sources >= first) & (sources < first + int(np.prod(shape)))
            if not present.any():
                continue
            entries = np.unravel_index(np.where(present, sources - first, 0), shape)
            for axis in flows[tensor].axes:
                # Sequences are split into heads, others into what a layer looks at and the channels in its place.
                found = _axis_of(entries[axis - 1], present, shape[axis - 1], last=len(shape) != 2)
                if found is not None and not any(way.place == place for way in ways.get(found[0], ())):
                    ways.setdefault(found[0], []).append(_Way(place, axis, found[1]))
        return ways

    def _output(self, call: Call, index: int, flows: Flows, classes: ChannelClasses, why: str) -> Flow:
        sources, axes = self._sources[index], {}
        for axis, ways in sorted(self._ways[index].items()):
            size = sources.shape[axis - 1]
            by_entry = np.moveaxis(sources, axis - 1, 0).reshape(size, -1)
            tied: np.ndarray = np.full(size, -1)
            constants: list[set[float]] = [set() for _ in range(size)]
            fixed = np.ones(size, bool)
            covered = by_entry == _NOTHING
            for way in ways:
                tensor = self._trial.tensors[way.place]
                along = flows[tensor].axes[way.axis]
                first = self._places[way.place]
                covered |= (by_entry >= first) & (by_entry < first + int(np.prod(self._trial.shapes[way.place][1:])))
                for entry, source in way.pairs.tolist():
                    if tied[entry] < 0:
                        tied[entry] = along.classes[source]
                    else:
                        classes.join(tied[entry : entry + 1], along.classes[source : source + 1])
                    constants[entry].add(float(along.constants[source]))
                    fixed[entry] &= along.fixed[source]
            for entry in np.flatnonzero((by_entry == _NOTHING).any(axis=1)):
                constants[entry].add(0.0)
            if not covered.all() or (tied < 0).any():
                classes.pin(tied[tied >= 0], why)
                continue
            values = np.array([each.pop() if len(each) == 1 else np.nan for each in constants])
            axes[axis] = Axis(tied, values, fixed)
        tensor = call.outputs[index]
        last = len(tensor.shape) - 1
        if last not in axes:
            axes |= as_it_is(tensor, classes, why).axes
        return Flow(len(tensor.shape), axes)

    def _does_with_less(self, call: Call, flows: Flows, outputs: Sequence[Flow], classes: ChannelClasses) -> bool:
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

    def _can_be_remade(self, call: Call, index: int) -> bool:
        shape = call.outputs[index].shape
        return len(self._trial.tensors) == 1 and (
            (self._keeps_order(index) and shape[1:].count(None) < 2) or self._axis_taken(index) is not None
        )

    def _keeps_order(self, index: int) -> bool:
        """Whether an output is all of the input with other axes."""
        sources = self._sources[index].reshape(-1)
        (shape,) = self._trial.shapes.values()
        return np.array_equal(sources, np.arange(int(np.prod(shape[1:]))))

    def _axis_taken(self, index: int) -> int | None:
        """The axis along which an output has some entries of the input, all else being the same."""
        (shape,) = self._trial.shapes.values()
        numbers = np.arange(int(np.prod(shape[1:]))).reshape(shape[1:])
        if self._sources[index].ndim != numbers.ndim:
            return None
        for axis in range(1, len(shape)):
            taken = self._taken(index, axis)
            if (taken >= 0).all() and np.array_equal(np.take(numbers, taken, axis - 1), self._sources[index]):
                return axis
        return None

    def _taken(self, index: int, axis: int) -> np.ndarray:
        """The entry of the input along an axis that each entry of the output is, by the first of each."""
        (shape,) = self._trial.shapes.values()
        first = np.moveaxis(self._sources[index], axis - 1, 0).reshape(self._sources[index].shape[axis - 1], -1)[:, 0]
        return np.where(first < 0, -1, np.unravel_index(np.maximum(first, 0), shape[1:])[axis - 1])


def _places(trial: Trial) -> dict[int, int]:
    """Place of each tensor -> the number of its first value, among those of all."""
    places, first = {}, 0
    for place, shape in trial.shapes.items():
        places[place] = first
        first += int(np.prod(shape[1:]))
    return places


def _sources(trial: Trial, outputs: Sequence[Tensor]) -> list[np.ndarray] | None:
    """Of each output, where its values come from, as `Movement` has it; None if it does more than move them."""
    places = _places(trial)
    total = sum(int(np.prod(shape[1:])) for shape in trial.shapes.values())
    if trial.arrays or 2 * total >= _COUNTS:
        return None
    numbers = {}
    for place, shape in trial.shapes.items():
        of_one = places[place] + 1 + np.arange(int(np.prod(shape[1:])))
        numbers[place] = np.stack([of_one, of_one + total]).reshape(shape)
    counted, values = _counted(trial, numbers, outputs), trial.sample()
    moved = trial.run(values)
    if counted is None or moved is None:
        return None
    of_all = np.concatenate([values[place].reshape(len(values[place]), -1) for place in places], axis=1)
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
    """The axis of an output along which the entries of an input's axis lie, and which lies where.

    Args:
        entries: Of each value, its entry along the axis of the input.
        present: Whether it comes from that input at all.
        size: Of the axis of the input.
        last: Which of several axes is taken that tie entries together, the last or the first.

    Returns:
        The axis, the one of examples being the first, and pairs as `_Way` has them: the one where each place has one
        entry, or else one where each entry is in one place, which ties entries together.
    """
    tying: tuple[int, np.ndarray] | None = None
    for axis in range(entries.ndim):
        numbers = np.arange(entries.shape[axis]).reshape([-1 if other == axis else 1 for other in range(entries.ndim)])
        places: np.ndarray = np.broadcast_to(numbers, entries.shape)
        met = np.zeros((entries.shape[axis], size), bool)
        met[places[present], entries[present]] = True
        pairs = np.argwhere(met)
        if met.any(axis=0).sum() < 2:
            return None  # One entry of several is taken out, which must be there then.
        if (met.sum(axis=1) <= 1).all():
            return axis + 1, pairs
        if (last or tying is None) and (met.sum(axis=0) <= 1).all() and met.any(axis=1).sum() > 1:
            tying = axis + 1, pairs
    return tying


def _reshaped(value: Any, output: Tensor, kept: Mapping[int, np.ndarray], keras: Any) -> Any:
    sizes = [
        len(kept[axis]) if axis in kept else -1 if size is None else size
        for axis, size in list(enumerate(output.shape))[1:]
    ]
    return keras.layers.Reshape(sizes)(value)


def _take(value: Any, indices: np.ndarray, axis: int, keras: Any) -> Any:
    if keras.__name__ == "keras":
        return keras.ops.take(value, indices.tolist(), axis=axis)
    return tf.gather(value, indices.tolist(), axis=axis)
