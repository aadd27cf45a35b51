"""Functions, and layers without weights, tried on numbers that are made up."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.functional import told_shapes
from aimp_tf.compat.models import flattened, keras_of
from aimp_tf.graph.model_graph import Call, Tensor

_EXAMPLES, _MANY_EXAMPLES = 16, 64
"""So many that some are of each size, for what a function does may depend on that."""

_OPEN = 3
"""What an axis of open size has."""

_SMALL = 4
"""So long are axes along which nothing could go, where that does."""

_MOST_VALUES = 2**25
_MOST_WAYS = 64

Values = Mapping[int, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Cut:
    """Axes from which entries can be left out together, and nothing else changes.

    Attributes:
        inputs: Place of what goes in -> its axis.
        outputs: The axis of each output; None of one that stays as large, which a cut through zeros alone has.
        of_zeros: Whether entries can be left out only where they are zero, as those of vectors that are normalised or
            multiplied with others.
    """

    inputs: Mapping[int, int]
    outputs: tuple[int | None, ...]
    of_zeros: bool = False


class Trial:
    """A call that can be repeated with other numbers.

    Attributes:
        tensors: Place among all that the call is given -> `Tensor`.
        arrays: Place -> array that is the same in every call.
        shapes: Place of each tensor -> the shape that it is tried with.
        worked: Whether it can be repeated at all.
    """

    def __init__(self, call: Call, tracked: Mapping[Tensor, Sequence[int]] | None) -> None:
        """Calls it.

        Args:
            call: The call.
            tracked: Tensor -> its axes along which anything could go. None lets all axes have their own sizes, and
                tries with two examples at a time.
        """
        self._call, self._structure = call, (call.args, dict(call.kwargs))
        self._leaves = tf.nest.flatten(self._structure)
        self.tensors = {place: leaf for place, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)}
        self.arrays = {place: leaf for place, leaf in enumerate(self._leaves) if _is_array(leaf)}
        self._generator = np.random.default_rng(0)
        self._examples = 2 if tracked is None else _EXAMPLES
        self.shapes: dict[int, tuple[int, ...]] = {}
        self._base: list[tuple[Values, list[np.ndarray]]] = []
        self.worked = any(map(self._try_out, (None,) if tracked is None else (tracked, None)))

    def run(self, values: Values) -> list[np.ndarray] | None:
        """What comes out for these numbers; None if that is an error."""
        try:
            leaves = [
                tf.cast(values[place], leaf.dtype) if place in values else leaf
                for place, leaf in enumerate(self._leaves)
            ]
            args, kwargs = tf.nest.pack_sequence_as(self._structure, leaves)
            outputs = flattened(self._call.layer(*args, **kwargs), keras_of(self._call.layer))
            return [np.asarray(tf.cast(output, tf.float32)) for output in outputs]
        except Exception:  # Whatever a function raises that was not made for this, or takes texts.
            return None

    def sample(
        self,
        examples: int | None = None,
        sizes: tuple[float, float] = (-2.0, 2.5),
        shapes: Mapping[int, tuple[int, ...]] | None = None,
    ) -> dict[int, np.ndarray]:
        """Numbers for all tensors, float32 but for integers and truths; those of an example are of one size, the powers
        of ten between these two. By default, as many examples as it is tried with, and of the same shapes."""
        examples, shapes = examples or self._examples, shapes or self.shapes
        scales = 10 ** self._generator.uniform(*sizes, examples)
        return {place: self._numbers(place, (examples, *shape[1:]), scales) for place, shape in shapes.items()}

    def cut(self, place: int, axis: int, *, of_zeros: bool = False) -> Cut | None:
        """What else loses entries, or zeros, where a tensor loses them along an axis; None if there is no such way."""
        size = self.shapes[place][axis]
        bases, sets = self._base, self._to_keep(size, 1 if of_zeros else 2)
        if of_zeros:  # They are the largest among negative numbers, and the least among positive ones.
            sized = [{each: np.abs(numbers) for each, numbers in values.items()} for values, _ in bases]
            bases = [
                *bases,
                *(({each: sign * values[each] for each in values}, []) for values in sized for sign in (1, -1)),
            ]
        for inputs in itertools.islice(self._ways(place, axis, size), _MOST_WAYS):
            if of_zeros and not all(self._is_floating(each) for each in inputs):
                continue
            found = (self._outputs_of(inputs, size, kept, *base, of_zeros=of_zeros) for base in bases for kept in sets)
            outputs = next(found)
            if outputs is not None and all(each == outputs for each in found) and self._is_told(inputs, outputs):
                return Cut(inputs, outputs, of_zeros)
        return None

    def constants(self, known: Mapping[int, Mapping[int, np.ndarray]], output: int, axis: int) -> np.ndarray:
        """The value of each entry along an axis of an output that is the same whatever is not known; NaN elsewhere.

        Args:
            known: Place of a tensor -> axis -> value of each entry along it, NaN where it is not known.
            output: Index of the output.
            axis: Its axis.
        """
        size = self._base[0][1][output].shape[axis]
        # An array that it is given may hold zeros, by which it multiplies.
        if not self.arrays and all(np.isnan(each).all() for axes in known.values() for each in axes.values()):
            return np.full(size, np.nan)
        # What is added up along other axes depends on how long they are, and here some are shorter than they will be.
        found, longer = (self._constants(shapes, known, output, axis, size) for shapes in (self.shapes, self._longer()))
        return np.where(np.isclose(found, longer, rtol=1e-6, atol=0), found, np.nan)

    def _longer(self) -> dict[int, tuple[int, ...]]:
        """The shapes with one more along each axis whose real size is another, or not known."""
        longer = {}
        for place, (examples, *sizes) in self.shapes.items():
            real = self.tensors[place].shape[1:]
            longer[place] = (examples, *(size + (size != each) for size, each in zip(sizes, real, strict=True)))
        return longer

    def _constants(
        self,
        shapes: Mapping[int, tuple[int, ...]],
        known: Mapping[int, Mapping[int, np.ndarray]],
        output: int,
        axis: int,
        size: int,
    ) -> np.ndarray:
        """As `constants`, for tensors of these shapes."""
        values = self.sample(_MANY_EXAMPLES, (-3.0, 4.0), shapes)
        for place, axes in known.items():
            for along, constants in axes.items():
                lying = constants.reshape([-1 if other == along else 1 for other in range(values[place].ndim)])
                values[place] = np.where(np.isnan(lying), values[place], lying)
        outputs = self.run(values)
        if outputs is None or outputs[output].shape[axis] != size:
            return np.full(size, np.nan)
        by_entry = np.moveaxis(outputs[output], axis, 0).reshape(size, -1).astype(np.float64)
        same = np.isfinite(by_entry).all(axis=1) & (by_entry == by_entry[:, :1]).all(axis=1)
        return np.where(same, by_entry[:, 0], np.nan)

    def _is_told(self, inputs: Mapping[int, int], outputs: Sequence[int | None]) -> bool:
        """Whether the shapes that the function tells are right with one entry less."""
        leaves, shapes = list(self._leaves), {}
        for place, axis in inputs.items():
            if place in self.arrays:
                leaves[place] = np.delete(np.asarray(leaves[place]), 0, axis)
        for place, tensor in self.tensors.items():
            shapes[place] = _one_less(tensor.shape, inputs[place]) if place in inputs else tensor.shape
        structure = tf.nest.pack_sequence_as(self._structure, leaves)
        try:
            told = told_shapes(self._call.layer, structure, shapes)
        except Exception:  # As in `run`.
            return False
        expected = [_one_less(tensor.shape, axis) for tensor, axis in zip(self._call.outputs, outputs, strict=True)]
        return told is None or told == expected

    def _try_out(self, whole: Mapping[Tensor, Sequence[int]] | None) -> bool:
        """Whether it works with these axes of their own sizes; None is all."""
        self.shapes = {
            place: (self._examples, *_sizes(tensor.shape, None if whole is None else whole.get(tensor, ())))
            for place, tensor in self.tensors.items()
        }
        if sum(np.prod(shape) for shape in self.shapes.values()) > _MOST_VALUES:
            return False
        self._base = []
        for _ in range(2):
            values = self.sample()
            outputs = self.run(values)
            if outputs is None or not self._are_as_declared(outputs):
                return False
            self._base.append((values, outputs))
        return True

    def _are_as_declared(self, outputs: Sequence[np.ndarray]) -> bool:
        """Whether these have the shapes that the call says, but for what is small."""
        if len(outputs) != len(self._call.outputs):
            return False
        for found, declared in zip(outputs, self._call.outputs, strict=True):
            if found.ndim != len(declared.shape) or found.ndim == 0 or found.shape[0] != self._examples:
                return False
            for size, real in zip(found.shape[1:], declared.shape[1:], strict=True):
                if real not in (None, size) and not (size == _SMALL < real):
                    return False
        return True

    def _is_floating(self, place: int) -> bool:
        """Whether it is a tensor, and of numbers that may be of any size."""
        return place in self.tensors and tf.as_dtype(self.tensors[place].dtype).is_floating

    def _to_keep(self, size: int, least: int) -> list[np.ndarray]:
        """Sets of entries of so many: a few, about half and nearly all; of few entries, all that there are."""
        if size <= _SMALL:
            counts = range(1, max(size, 2))
            return [np.array(kept) for count in counts for kept in itertools.combinations(range(size), count)]
        few = self._generator.choice(np.arange(1, size), least, replace=False)
        half = self._generator.choice(size, size // 2, replace=False)
        most = np.delete(np.arange(size), self._generator.integers(size - 1))
        return [np.sort(few), np.sort(half), most]

    def _numbers(self, place: int, shape: tuple[int, ...], scales: np.ndarray) -> np.ndarray:
        dtype = tf.as_dtype(self.tensors[place].dtype)
        if not dtype.is_floating:
            return self._generator.integers(0, 2, shape).astype(dtype.as_numpy_dtype)
        numbers = self._generator.normal(0, 1, shape) * scales.reshape(-1, *(1,) * (len(shape) - 1))
        return numbers.astype(np.float32)

    def _ways(self, place: int, axis: int, size: int) -> Iterator[dict[int, int]]:
        """Which other inputs may lose entries along which axis, the likeliest first: the one in the same place."""
        shapes = {**self.shapes, **{other: tuple(np.shape(array)) for other, array in self.arrays.items()}}
        from_last = axis - len(shapes[place])
        choices = []
        for other, shape in shapes.items():
            if other == place:
                choices.append([axis])
                continue
            first = 1 if other in self.shapes else 0
            fitting = [each for each in range(first, len(shape)) if shape[each] == size]
            fitting.sort(key=lambda each, shape=shape: each - len(shape) != from_last)  # type: ignore[misc]
            aligned = bool(fitting) and fitting[0] - len(shape) == from_last
            choices.append([*fitting, -1] if aligned else [-1, *fitting])
        for chosen in itertools.product(*choices):
            yield {other: each for other, each in zip(shapes, chosen, strict=True) if each >= 0}

    def _outputs_of(
        self,
        inputs: Mapping[int, int],
        size: int,
        kept: np.ndarray,
        values: Values,
        outputs: Sequence[np.ndarray] | None,
        *,
        of_zeros: bool,
    ) -> tuple[int | None, ...] | None:
        """The axis of each output that loses what these inputs lose; None if that is not all that changes."""
        given = {**self.arrays, **values}
        fewer = self.run({**values, **{place: np.take(given[place], kept, axis) for place, axis in inputs.items()}})
        if of_zeros and fewer is not None:
            outputs = self.run({**values, **{each: _only(kept, given[each], axis) for each, axis in inputs.items()}})
        if fewer is None or outputs is None:
            return None
        found: list[int | None] = []
        for before, after in zip(outputs, fewer, strict=True):
            fitting = (axis for axis in range(1, before.ndim) if before.shape[axis] == size)
            axis = next((axis for axis in fitting if alike(np.take(before, kept, axis), after)), None)
            if axis is None and not (of_zeros and alike(before, after)):
                return None
            found.append(axis)
        return tuple(found)


def value_by_value(function: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray] | None:
    """A function of tensors as one of arrays, if it gives for each value what that value alone tells; else None.

    It is tried on values of both signs and all sizes, with some of them changed, and in another order.
    """

    def on_arrays(values: np.ndarray) -> np.ndarray:
        return np.asarray(function(tf.constant(values, tf.float32)))

    generator = np.random.default_rng(0)
    values = generator.normal(size=(8, 12)) * 10 ** generator.uniform(-3, 2, (8, 12))
    changes = generator.random(values.shape) < 0.5
    others = np.where(changes, generator.normal(0, 3, values.shape), values)
    order = generator.permutation(values.size)
    try:
        found, changed = on_arrays(values), on_arrays(others)
        moved = on_arrays(values.reshape(-1)[order].reshape(values.shape))
    except Exception:  # Whatever a function of the user's raises.
        return None
    if not found.shape == changed.shape == values.shape:
        return None
    # Vectors are computed otherwise than what is left over at their ends.
    same = alike(found[~changes], changed[~changes]) and alike(found.reshape(-1)[order], moved.reshape(-1))
    return on_arrays if same else None


def alike(some: np.ndarray, others: np.ndarray) -> bool:
    """Whether these are the same but for rounding, which a sum of what is large has, too, where little is left of it:
    beside the largest of the same example that is not the same to the last bit."""
    if some.shape != others.shape:
        return False
    sizes = np.abs(np.where(np.isfinite(some), some, 0)).astype(np.float64)
    of_example = (sizes * (some != others)).max(axis=tuple(range(1, some.ndim)), keepdims=True, initial=0)
    slack = 1e-4 * sizes + 1e-5 * np.maximum(of_example, min(1.0, sizes.max(initial=0)))
    with np.errstate(invalid="ignore"):  # Infinity less infinity.
        near = np.abs(np.subtract(some, others, dtype=np.float64)) <= slack
    return bool(np.all(near | (some == others) | (np.isnan(some) & np.isnan(others))))


def _only(kept: np.ndarray, values: np.ndarray, axis: int) -> np.ndarray:
    """Values with zeros in all but some places along an axis."""
    found = np.zeros_like(values)
    places = (slice(None),) * axis + (kept,)
    found[places] = values[places]
    return found


def _one_less(shape: Sequence[int | None], axis: int | None) -> tuple[int | None, ...]:
    """A shape with one entry less along an axis, of which the size is known or stays open."""
    return tuple(size - 1 if size and place == axis else size for place, size in enumerate(shape))


def _is_array(leaf: Any) -> bool:
    """Whether it is an array of one axis or more, and no variable."""
    return isinstance(leaf, (np.ndarray, tf.Tensor)) and len(leaf.shape) > 0


def _sizes(shape: Sequence[int | None], whole: Sequence[int] | None) -> list[int]:
    """Sizes to try, but for that of the first axis: those of `whole`, or all if it is None, as they are, and others
    smaller."""
    return [
        _OPEN if size is None else size if whole is None or axis in whole else min(size, _SMALL)
        for axis, size in list(enumerate(shape))[1:]
    ]
