"""Kernels as matrices, zeros in them by a pattern, and random numbers that keep signals alive.

Nothing here knows the package's own graphs, for it is these that are measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

MODES = ("dead", "constant")
"""How channels are made so that they can go: nothing reads them, or they are the same for all inputs."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """The kernel of a layer, seen as (positions, inputs, outputs) whichever way the layer keeps it.

    Attributes:
        layer: The layer.
        variable: What holds it.
        order: The axes of the variable: positions, then inputs, then outputs.
        inputs: How many of them count inputs; none in a depthwise kernel.
        outputs: How many of them count outputs.
        channel_axes: The axes of what the layer gives that count outputs.
    """

    layer: Any
    variable: Any
    order: tuple[int, ...]
    inputs: int = 1
    outputs: int = 1
    channel_axes: tuple[int, ...] = (-1,)

    @classmethod
    def of(cls, layer: Any) -> Kernel | None:
        """That of a Dense, EinsumDense or convolution of either generation; of separable ones the pointwise one. None
        for other layers."""
        classes = {base.__name__ for base in type(layer).__mro__}
        if "EinsumDense" in classes:
            return cls._of_einsum(layer)
        if not any(name == "Dense" or "Conv" in name for name in classes) or not getattr(layer, "weights", ()):
            return None
        names = ("pointwise_kernel", "depthwise_kernel", "kernel")
        variable = next((found for name in names if (found := getattr(layer, name, None)) is not None), None)
        if variable is None:
            return None
        axes = tuple(range(len(variable.shape)))
        if any("Depthwise" in name for name in classes):
            return cls(layer, variable, axes, inputs=0, outputs=2)
        if getattr(layer, "groups", 1) > 1 and variable.shape[-2] == 1:  # Depthwise under another name.
            return cls(layer, variable, axes, inputs=0, outputs=1)
        if any("Transpose" in name for name in classes):
            axes = (*axes[:-2], axes[-1], axes[-2])
        return cls(layer, variable, axes)

    @classmethod
    def _of_einsum(cls, layer: Any) -> Kernel:
        sides, result = layer.equation.replace(" ", "").split("->")
        source, letters = sides.split(",")
        read = [letter for letter in letters if letter in source and letter not in result]
        made = [letter for letter in letters if letter in result and letter not in source]
        others = [letter for letter in letters if letter not in (*read, *made)]
        order = tuple(letters.index(letter) for letter in (*others, *read, *made))
        places = tuple(result.index(letter) - len(result) for letter in made)
        return cls(layer, layer.kernel, order, len(read), len(made), places)

    @property
    def groups(self) -> int:
        return int(getattr(self.layer, "groups", 1) or 1)

    def value(self) -> np.ndarray:
        """Float32 (positions, inputs, outputs); inputs are those of a group."""
        ordered = np.array(self.variable.numpy(), np.float32).transpose(self.order)
        sizes, rank = ordered.shape, ordered.ndim
        first, second = rank - self.inputs - self.outputs, rank - self.outputs
        return ordered.reshape(*(int(np.prod(part)) for part in (sizes[:first], sizes[first:second], sizes[second:])))

    def assign(self, value: np.ndarray) -> None:
        """Takes what `value` gave, changed."""
        shape = tuple(self.variable.shape[axis] for axis in self.order)
        self.variable.assign(value.reshape(shape).transpose(np.argsort(self.order)))

    def by_channel(self, values: Any) -> np.ndarray:
        """What the layer gave, as (everything else, channels)."""
        values, count = np.asarray(values), len(self.channel_axes)
        moved = np.moveaxis(values, self.channel_axes, range(-count, 0))
        return moved.reshape(-1, int(np.prod(moved.shape[-count:])))


def labelled_layers(model: Any) -> list[tuple[str, Any]]:
    """All layers within a model, each once, by their names and those of what they lie in, such as "attention/query"."""
    found: dict[int, tuple[str, Any]] = {}

    def walk(layer: Any, prefix: str) -> None:
        for part in layer._flatten_layers(recursive=False, include_self=False):
            if id(part) not in found:
                found[id(part)] = (f"{prefix}{part.name}", part)
                walk(part, f"{prefix}{part.name}/")

    walk(model, "")
    return list(found.values())


def kernels_of(model: Any) -> list[tuple[str, Kernel]]:
    """All kernels within a model, by the labels of their layers."""
    found = [(label, Kernel.of(layer)) for label, layer in labelled_layers(model)]
    return [(label, kernel) for label, kernel in found if kernel is not None]


@contextlib.contextmanager
def around_calls(layers: Iterable[Any], around: Callable[..., Any]) -> Iterator[None]:
    """Within it, `around(layer, call, *args, **kwargs)` runs in place of the `call` of each of the layers."""
    changed: list[tuple[dict[str, Any], Any]] = []
    try:
        for layer in layers:
            changed.append((vars(layer), vars(layer).get("call")))
            vars(layer)["call"] = functools.partial(around, layer, layer.call)
        yield
    finally:
        for attributes, before in changed:
            del attributes["call"]
            if before is not None:
                attributes["call"] = before


def draw(model: Any, inputs: Any, mode: str) -> None:
    """Gives a model random weights, some zero, with which what comes out depends on what goes in.

    Rows of kernels are zero ("dead") or columns ("constant"): the first three of every eight, wherever there is a
    multiple of eight, so that channels that are tied share their fate. A column of a layer whose outputs are those of
    the model never is. In convolutions in groups, all rows or columns of every eighth group are as well. Normalisations
    and biases are such that each channel has a mean near zero and a deviation near one in the given inputs.

    Args:
        model: A built model of either generation.
        inputs: Examples, as it takes them.
        mode: Of `MODES`.
    """
    generator = np.random.default_rng(0)
    for weight in model.weights:
        _draw_weight(weight, generator)
    ends = _ends(model, inputs)
    for _, kernel in kernels_of(model):
        if kernel.inputs and not (mode == "constant" and id(kernel.layer) in ends):
            kernel.assign(_with_zeros(kernel.value(), kernel.groups, mode))
    _calibrate(model, inputs, generator)


def _draw_weight(weight: Any, generator: np.random.Generator) -> None:
    name = weight.name.split("/")[-1].split(":")[0]
    normal = generator.normal(size=tuple(weight.shape))
    if "float" not in str(weight.dtype):
        return
    if name == "moving_variance":
        weight.assign(generator.uniform(0.5, 1.5, tuple(weight.shape)))
    elif name == "moving_mean":
        weight.assign(0.1 * normal)
    elif not weight.trainable:
        return
    elif "kernel" in name:
        fan_in = np.prod(weight.shape[:2] if "depthwise" in name else weight.shape[:-1])
        weight.assign(normal * np.sqrt(2 / max(1, fan_in)))
    elif name in ("gamma", "scale"):
        weight.assign(generator.uniform(0.4, 1.6, tuple(weight.shape)))
    else:
        weight.assign((0.3 if name in ("beta", "bias") else 1.0) * normal)


def _ends(model: Any, inputs: Any) -> set[int]:
    """The ids of the layers whose outputs are those of the model."""
    given: list[tuple[Any, Any]] = []

    def record(layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = call(*args, **kwargs)
        given.append((layer, output))
        return output

    with around_calls([kernel.layer for _, kernel in kernels_of(model)], record):
        outputs = tf.nest.flatten(model(inputs, training=False))
    return {id(layer) for layer, given_output in given if any(given_output is output for output in outputs)}


def _with_zeros(value: np.ndarray, groups: int, mode: str) -> np.ndarray:
    """A kernel (positions, inputs, outputs) with the rows or columns zero that `draw` says."""
    _, inputs, outputs = value.shape
    read, made = inputs * groups, outputs // groups
    if (read if mode == "dead" else outputs) % 8:
        return value
    for group in range(groups):
        part = value[..., group * made : (group + 1) * made]
        first, count, axis = (group * inputs, inputs, 1) if mode == "dead" else (group * made, made, 2)
        gone = (first + np.arange(count)) % 8 < 3
        if groups > 1 and group % 8 == 7:
            gone[:] = True
        part[(slice(None),) * axis + (gone,)] = 0
    return value


def _calibrate(model: Any, inputs: Any, generator: np.random.Generator) -> None:
    """Sets normalisations, biases and the scales of kernels by what flows through them, in one pass."""
    done: set[int] = set()
    kernels = {id(kernel.layer): kernel for _, kernel in kernels_of(model)}
    layers = [layer for _, layer in labelled_layers(model) if id(layer) in kernels or _is_batch_norm(layer)]

    def calibrated(layer: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if id(layer) not in done:
            done.add(id(layer))
            if id(layer) in kernels:
                _settle_kernel(kernels[id(layer)], lambda: call(*args, **kwargs), generator)
            else:
                mean, deviation, scale = _moments(args[0].numpy().reshape(-1, args[0].shape[-1]))
                layer.moving_mean.assign(mean + 0.3 * deviation * generator.normal(size=mean.size))
                layer.moving_variance.assign(scale**2 * generator.uniform(0.5, 1.5, mean.size))
        return call(*args, **kwargs)

    with around_calls(layers, calibrated):
        model(inputs, training=False)


def _settle_kernel(kernel: Kernel, call: Callable[[], Any], generator: np.random.Generator) -> None:
    """Lets what a layer gives before its activation have a deviation near one, and if it has a bias a mean near 0."""
    attributes = vars(kernel.layer)
    activation = attributes["activation"]
    attributes["activation"] = None
    try:
        output = call()
    finally:
        attributes["activation"] = activation
    mean, deviation, scale = _moments(kernel.by_channel(output))
    kernel.assign(kernel.value() / scale)
    bias = getattr(kernel.layer, "bias", None)
    if bias is not None and (before := np.ravel(bias.numpy())).size == mean.size:
        alive = kernel.value().any(axis=(0, 1))
        centred = (before - mean + 0.3 * deviation * generator.normal(size=mean.size)) / scale
        bias.assign(np.where(alive, centred, before).reshape(bias.shape))


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and deviation of each channel of (positions, channels), and what to divide it by, which is no less than
    half of the mean, lest rounding counts. For the deviation of one that does not move stands that of all."""
    mean, deviation = (np.asarray(of(values, axis=0), np.float64) for of in (np.mean, np.std))
    typical = np.sqrt(np.mean(deviation**2)) or 1.0
    deviation = np.where(deviation < 1e-3 * typical, typical, deviation)
    return mean, deviation, np.maximum(deviation, 0.5 * np.abs(mean))


def _is_batch_norm(layer: Any) -> bool:
    return any(base.__name__ == "BatchNormalization" for base in type(layer).__mro__)
