"""Which channels of a network can go, as numbers show it: what the outputs depend on, and what never moves.

Nothing here knows the package's own graphs, for it is these that are measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_callbacks

from benchmarks.coverage_kernels import Kernel, around_calls, kernels_of, labelled_layers

_JOINING = ("Add", "AddV2", "Sub", "Mul", "RealDiv")
"""Operations of TensorFlow that join channels."""


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known of the channels that a layer gives; bool (channels,) each, and all False for outputs of the model.

    Attributes:
        layer: The layer.
        dead: Whether no output of the model depends on it.
        constant: Whether it is the same for all inputs and places.
        held: Whether it is constant, but tied to what is not, such as added to or multiplied with a channel that moves
            or normalised together with others; or one of those of which all other constant ones that a kernel reads are
            sums. Where padding makes constants differ by place, one does not do for all.
    """

    layer: Any
    dead: np.ndarray
    constant: np.ndarray
    held: np.ndarray

    @property
    def can_go(self) -> np.ndarray:
        """Dead or constant."""
        return self.dead | self.constant


def truths(model: Any, batches: Sequence[Any]) -> dict[str, Truth]:
    """What can go of each layer with a kernel.

    Args:
        model: A model of either generation. Its outputs must depend on its inputs in no saturated way, and each channel
            that is not constant must move within the batches.
        batches: Inputs, as it takes them.
    """
    seen = _Seen(kernels_of(model))
    for number, batch in enumerate(batches):
        seen.look(model, batch, ties=number == 0)
    return seen.truths()


class _Seen:
    """What was seen of each channel so far."""

    def __init__(self, kernels: Sequence[tuple[str, Kernel]]) -> None:
        self._kernels = {id(kernel.layer): (label, kernel) for label, kernel in kernels}
        self._generator = np.random.default_rng(0)
        self._moves: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}  # Lowest, highest, largest of all channels.
        self._matters: dict[int, np.ndarray] = {}
        self._held: dict[int, np.ndarray] = {}
        self._ends: set[int] = set()

    def look(self, model: Any, batch: Any, *, ties: bool) -> None:
        """Takes in what a batch shows; `ties` says whether to look for what is tied, which takes more memory."""
        taps: list[tuple[int, Any]] = []
        tied: list[Any] = []
        within = _operations_noted(tied) if ties else contextlib.nullcontext()
        with tf.GradientTape(persistent=ties, watch_accessed_variables=False) as tape:
            with around_calls(self._layers(model, ties), self._recorder(tape, taps, tied if ties else None)), within:
                outputs = [value for value in tf.nest.flatten(model(batch, training=False)) if value.dtype.is_floating]
            moving = tf.add_n([self._projected(output) for output in outputs])
            parts = [self._projected(part) for part in tied if part is not None]
            held = tf.add_n(parts) if parts else None
        self._ends |= {layer for layer, tap in taps if any(tap is output for output in outputs)}
        for layer, tap in taps:
            self._moved(layer, self._kernels[layer][1].by_channel(tap))
        self._add(self._matters, taps, tape, moving)
        if held is not None:
            self._add(self._held, taps, tape, held)

    def truths(self) -> dict[str, Truth]:
        found = {}
        for layer, (lowest, highest, largest) in self._moves.items():
            label, kernel = self._kernels[layer]
            open_ = np.full(len(lowest), layer not in self._ends)
            constant = open_ & (highest - lowest <= 1e-6 * largest)
            held = constant & self._held.get(layer, np.zeros(len(lowest), bool))
            found[label] = Truth(kernel.layer, open_ & ~self._matters[layer], constant, held & self._matters[layer])
        return found

    def _layers(self, model: Any, ties: bool) -> list[Any]:
        layers = [layer for _, layer in labelled_layers(model)]
        if not ties:
            return [layer for layer in layers if id(layer) in self._kernels]
        # In Keras 3 functions such as keras.ops.add stand in a model as operations.
        known = {id(layer) for layer in layers}
        operations = [part for part in getattr(model, "operations", ()) if id(part) not in known]
        return [layer for layer in layers if not list(layer._flatten_layers(include_self=False))] + operations

    def _recorder(self, tape: Any, taps: list[tuple[int, Any]], tied: list[Any] | None) -> Callable[..., Any]:
        def record(layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            kernel = self._kernels.get(id(layer), (None, None))[1]
            if kernel is not None:
                tape.watch(output)
                taps.append((id(layer), output))
            if tied is not None:
                operands = [each for each in tf.nest.flatten((args, kwargs)) if _has_channels(each)]
                if kernel is not None and kernel.inputs:
                    tied.extend(_standing_in(kernel, operand) for operand in operands[:1])
                elif _has_channels(output):
                    tied.extend(_tied(operand, output) for operand in operands)
            return output

        return record

    def _projected(self, values: Any) -> Any:
        """A random sum of them."""
        return tf.reduce_sum(values * tf.constant(self._generator.normal(size=values.shape), values.dtype))

    def _moved(self, layer: int, values: np.ndarray) -> None:
        lowest, highest, largest = values.min(axis=0), values.max(axis=0), float(np.abs(values).max())
        if layer in self._moves:
            before = self._moves[layer]
            lowest, highest = np.minimum(lowest, before[0]), np.maximum(highest, before[1])
            largest = max(largest, before[2])
        self._moves[layer] = (lowest, highest, largest)

    def _add(self, found: dict[int, np.ndarray], taps: list[tuple[int, Any]], tape: Any, target: Any) -> None:
        """Notes of which channels a target depends on."""
        slopes = tape.gradient(target, [tap for _, tap in taps], unconnected_gradients="zero")
        for (layer, _), slope in zip(taps, slopes, strict=True):
            some = (self._kernels[layer][1].by_channel(slope) != 0).any(axis=0)
            found[layer] = found.get(layer, False) | some


@contextlib.contextmanager
def _operations_noted(tied: list[Any]) -> Iterator[None]:
    """Adds to a list what operations tie that no layer stands for, such as sums in the `call` of a layer."""

    def note(kind: str, inputs: Sequence[Any], attributes: Any, outputs: Sequence[Any], *_: Any, **__: Any) -> None:
        operands = [each for each in inputs if _has_channels(each)]
        if kind in _JOINING and _has_channels(outputs[0]):
            tied.extend(_tied(operand, outputs[0]) for operand in operands)
        if kind == "Einsum" and len(operands) == len(inputs) == 2:
            named = dict(zip(attributes[::2], attributes[1::2], strict=True))
            tied.extend(_multiplied(operands, named["equation"]))

    op_callbacks.add_op_callback(note)
    try:
        yield
    finally:
        op_callbacks.remove_op_callback(note)


def _multiplied(operands: Sequence[Any], equation: str | bytes) -> Iterator[Any]:
    """The channels of either factor of a product that do not depend on the inputs of the model where those that they
    are multiplied and added up with do, such as those of queries and keys."""
    letters, result = (equation if isinstance(equation, str) else equation.decode()).split("->")
    first, second = zip(letters.split(","), operands, strict=True)
    for (axes, operand), (others, other) in ((first, second), (second, first)):
        if axes[-1] in others and axes[-1] not in result:
            moves = ~_fixed(np.moveaxis(other.numpy(), others.index(axes[-1]), -1))
            yield _part(operand, moves & _fixed(operand.numpy()))


def _tied(operand: Any, output: Any) -> Any | None:
    """The channels of what a layer takes that do not depend on the inputs of the model where those of its output do."""
    if operand.shape[-1] != output.shape[-1]:
        return None
    return _part(operand, ~_fixed(output.numpy()) & _fixed(operand.numpy()))


def _standing_in(kernel: Kernel, operand: Any) -> Any | None:
    """The first of those channels that do not depend on the inputs of the model of which all others are sums, as a
    kernel and a bias see them."""
    values = operand.numpy().astype(np.float64)
    patterns = _seen_by(kernel, values[:1])
    patterns = patterns.reshape(-1, patterns.shape[-1])
    chosen = np.zeros(patterns.shape[-1], bool)
    fixed = _fixed(values) & (np.abs(patterns).max(axis=0) > 0)
    layer = kernel.layer
    padded = getattr(layer, "padding", "valid") != "valid" and np.prod(layer.kernel_size) > 1
    for channels in np.array_split(np.arange(len(fixed)), kernel.groups):
        known = np.zeros((len(patterns), 0)) if padded else np.ones((len(patterns), 1)) / np.sqrt(len(patterns))
        for channel in channels[fixed[channels]]:
            left = patterns[:, channel] - known @ (known.T @ patterns[:, channel])
            left -= known @ (known.T @ left)
            if np.linalg.norm(left) > 1e-5 * np.linalg.norm(patterns[:, channel]):
                known = np.concatenate([known, left[:, np.newaxis] / np.linalg.norm(left)], axis=1)
                chosen[channel] = True
    return _part(operand, chosen)


def _seen_by(kernel: Kernel, values: np.ndarray) -> np.ndarray:
    """What a kernel multiplies, (examples, positions..., channels): of separable ones what the depthwise part gives."""
    layer = kernel.layer
    depthwise = getattr(layer, "depthwise_kernel", None)
    if depthwise is None or depthwise.shape[-1] > 1:
        return values
    strides = (1, *layer.strides, 1)
    return np.asarray(tf.nn.depthwise_conv2d(values, np.float64(depthwise.numpy()), strides, layer.padding.upper()))


def _has_channels(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and value.dtype.is_floating and len(value.shape) > 1


def _part(values: Any, channels: np.ndarray) -> Any | None:
    return tf.boolean_mask(values, channels, axis=len(values.shape) - 1) if channels.any() else None


def _fixed(values: np.ndarray) -> np.ndarray:
    """Which channels are the same for all examples, beside the largest of all values."""
    change = np.abs(values - values[:1]).reshape(-1, values.shape[-1]).max(axis=0)
    return np.asarray(change <= 1e-6 * np.abs(values).max())
