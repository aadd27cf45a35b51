"""What is known of each kind of layer: how channels pass through it, and how it is made anew with fewer of them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from aimp_tf.graph.channels import ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call, Tensor

Flows = Mapping[Tensor, Flow]
Function = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What is taken for granted of a model.

    Attributes:
        keras: Its generation of Keras.
        value: Gives the value of a variable, NaN for a number that is not known.
        training: Whether the model goes on training.
        masked: The tensors that carry a mask of padding.
    """

    keras: Any
    value: Callable[[Any], np.ndarray]
    training: bool
    masked: Set[Tensor]


@dataclasses.dataclass(frozen=True)
class Kept:
    """Which channels of a layer stay, and what stands in for others.

    Attributes:
        inputs: Indices of those of its first input, rising.
        outputs: Indices of those of its output, rising.
        constants: Value of each channel of the first input; NaN where it has no single one.
        merged: (removed channel, kept channel) of the first input, both constant: the kept one does for both.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    constants: np.ndarray
    merged: Sequence[tuple[int, int]] = ()


class Rule(abc.ABC):
    """What is known of one layer, in all its calls. `layer` is the layer."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._first: Call | None = None

    def follow(self, call: Call, flows: Flows, classes: ChannelClasses) -> list[Flow]:
        """What comes out of a call, for what goes in."""
        outputs = self._flow(call, [flows[tensor] for tensor in call.inputs], classes)
        if self._first is None:
            self._first = call
        elif self.is_tied:
            classes.join(flows[call.inputs[0]].classes, flows[self._first.inputs[0]].classes)
            classes.join(outputs[0].classes, flows[self._first.outputs[0]].classes)
        return outputs

    def sources(self, call: Call, flows: Flows) -> Sequence[Tensor]:
        """The inputs of a call that are needed for its outputs."""
        return call.inputs

    def axes(self) -> list[tuple[str | None, ...]]:
        """Of each weight of the layer, what its axes count: "inputs", "outputs" or neither."""
        return self._axes([len(weight.shape) for weight in getattr(self.layer, "weights", ())])

    def indices(self, kept: Kept) -> list[tuple[np.ndarray, ...]]:
        """Of each weight of the layer, the indices that stay along each axis. No weights, no indices."""
        weights = getattr(self.layer, "weights", ())
        by_name = {"inputs": kept.inputs, "outputs": kept.outputs}
        return [
            tuple(by_name[name] if name else np.arange(size) for name, size in zip(names, weight.shape, strict=True))
            for weight, names in zip(weights, self.axes(), strict=True)
        ]

    def attributes(self, kept: Kept) -> dict[str, Any]:
        """What changes of the layer's attributes, which are fields of its config as well."""
        return {}

    def rewritten(self, kept: Kept) -> tuple[list[np.ndarray] | None, dict[str, Any]]:
        """The weights of the layer with fewer channels, None for the same ones, and the fields of its config that
        change."""
        weights = None
        if self.is_tied and self.layer.weights:
            places = self.indices(kept)
            weights = [weight[np.ix_(*at)] for weight, at in zip(self.layer.get_weights(), places, strict=True)]
        return weights, self.attributes(kept)

    @property
    def is_tied(self) -> bool:
        """Whether all its calls must keep the same channels."""
        return False

    @abc.abstractmethod
    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]: ...

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        """What each axis of each weight counts, "inputs", "outputs" or neither, by the ranks of the weights."""
        return [(None,) * rank for rank in ranks]


class PassThrough(Rule):
    """Each output channel depends on the input channel in its place alone. Weights have the channels as last axis."""

    def __init__(self, layer: Any, value: Function = np.asarray, deaf: np.ndarray | bool = False) -> None:
        """Says how values change.

        Args:
            layer: The layer.
            value: Gives the outputs of constant channels, for all channels at once.
            deaf: Whether the output of a channel does not depend on its input, bool (channels,).
        """
        super().__init__(layer)
        self._value = value
        self._deaf = deaf

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        return [(*(None,) * (rank - 1), "inputs") for rank in ranks]

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (source,) = inputs
        return [Flow(source.classes, _where_known(self._value, np.where(self._deaf, 0.0, source.constants)))]

    @property
    def is_tied(self) -> bool:
        return bool(getattr(self.layer, "weights", ()))


class Repeat(Rule):
    """Flatten, and Reshape to a last axis that is a multiple of what it was: the channels come again and again."""

    def attributes(self, kept: Kept) -> dict[str, Any]:
        return {"target_shape": (*self.layer.target_shape[:-1], len(kept.outputs))} if self.is_tied else {}

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (source,) = inputs
        times = call.outputs[0].channels // call.inputs[0].channels
        return [Flow(np.tile(source.classes, times), np.tile(source.constants, times))]

    @property
    def is_tied(self) -> bool:
        return hasattr(self.layer, "target_shape")


class Concatenation(Rule):
    """Concatenate along the channels."""

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        parts = [(source.classes, source.constants) for source in inputs]
        every_class, every_constant = map(np.concatenate, zip(*parts, strict=True))
        return [Flow(every_class, every_constant)]


class Elementwise(Rule):
    """Maximum and its like, which tie the channels of their inputs together.

    Where some inputs are padding, some of these layers heed the others alone, so that constants make no constant then.
    """

    def __init__(self, layer: Any, combine: Function, masked: Set[Tensor]) -> None:
        """`combine` gives the outputs of constant channels from an array (inputs, channels); `masked` as in
        `Assumptions`."""
        super().__init__(layer)
        self._combine = combine
        self._masked = masked

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        first, *others = inputs
        for other in others:
            classes.join(first.classes, other.classes)
        constants = self._combine(np.stack([source.constants for source in inputs]))
        return [Flow(first.classes, np.full_like(constants, np.nan) if self._is_masked(call) else constants)]

    def _is_masked(self, call: Call) -> bool:
        return not self._masked.isdisjoint((*call.inputs, *call.outputs))


class Sum(Elementwise):
    """Add, from which inputs that are constant altogether can go: what is left of them is an offset.

    Not so where masks of padding come in, for the sum of fewer may have another mask.
    """

    def __init__(self, layer: Any, masked: Set[Tensor]) -> None:
        super().__init__(layer, added, masked)

    def sources(self, call: Call, flows: Flows) -> Sequence[Tensor]:
        if self._is_masked(call):
            return call.inputs
        variable = [tensor for tensor in call.inputs if not flows[tensor].is_constant]
        return variable if any(tensor.shape == call.outputs[0].shape for tensor in variable) else call.inputs

    def offset(self, call: Call, flows: Flows) -> np.ndarray:
        """What the inputs that can go add to each channel, float64 (channels,)."""
        staying = self.sources(call, flows)
        gone = [flows[tensor].constants for tensor in call.inputs if tensor not in staying]
        return np.sum(gone, axis=0) if gone else np.zeros(call.outputs[0].channels)

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        flows = dict(zip(call.inputs, inputs, strict=True))
        (staying,) = super()._flow(call, [flows[tensor] for tensor in self.sources(call, flows)], classes)
        return [Flow(staying.classes, self._combine(np.stack([source.constants for source in inputs])))]


class Linear(Rule):
    """Dense layers and convolutions: every output channel is a weighted sum of input channels, and an activation.

    Attributes:
        connected: Whether any weight leads from an input channel to an output channel, bool (inputs, outputs).
    """

    def __init__(
        self, layer: Any, weights: Sequence[np.ndarray], activation: Function | None, *, bordered: bool
    ) -> None:
        """Looks at the weights.

        Args:
            layer: The layer.
            weights: Their values.
            activation: Its activation, if that is one value by value.
            bordered: Whether an input that is the same everywhere, but not zero, is seen otherwise at the borders.
        """
        super().__init__(layer)
        self._activation = activation
        self._bordered = bordered
        self._transposed = "Transpose" in type(layer).__name__
        kernel, *bias = weights
        self._kernel = np.swapaxes(kernel, -1, -2) if self._transposed else kernel
        self._bias = bias[0] if bias else None
        self.connected = (self._kernel != 0).reshape(-1, *self._kernel.shape[-2:]).any(axis=0)

    def foldable(self, constants: np.ndarray) -> np.ndarray:
        """Whether input channels of these values do no more than a bias could, bool (inputs,)."""
        return (constants == 0) | (~np.isnan(constants) & (not self._bordered))

    def attributes(self, kept: Kept) -> dict[str, Any]:
        return {"filters" if hasattr(self.layer, "filters") else "units": len(kept.outputs)}

    def rewritten(self, kept: Kept) -> tuple[list[np.ndarray] | None, dict[str, Any]]:
        kernel = self._kernel[..., kept.inputs, :].astype(np.float64)
        for removed, standing_in in kept.merged:
            ratio = kept.constants[removed] / kept.constants[standing_in]
            kernel[..., np.searchsorted(kept.inputs, standing_in), :] += ratio * self._kernel[..., removed, :]
        kernel = kernel[..., kept.outputs]
        gone = self.foldable(kept.constants)
        gone[kept.inputs] = False
        bias = self._biases(np.where(gone, kept.constants, 0.0), kept.outputs)
        weights = [np.swapaxes(kernel, -1, -2) if self._transposed else kernel]
        changes = self.attributes(kept)
        if self._bias is not None or bias.any():
            changes["use_bias"] = True
            weights.append(bias)
        return [weight.astype(self._kernel.dtype) for weight in weights], changes

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (source,) = inputs
        foldable = self.foldable(source.constants)
        constants = self._biases(np.where(foldable, source.constants, 0.0), np.arange(self._kernel.shape[-1]))
        constants[self.connected[~foldable].any(axis=0)] = np.nan
        outputs = classes.new(len(constants))
        if self._activation is None:
            classes.pin(outputs, f"the activation of {call.name} is not known")
            return [Flow(outputs, np.full(len(constants), np.nan))]
        return [Flow(outputs, _where_known(self._activation, constants))]

    @property
    def is_tied(self) -> bool:
        return True

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        channels = ("outputs", "inputs") if self._transposed else ("inputs", "outputs")
        kernel, *bias = ranks
        return [(*(None,) * (kernel - 2), *channels), *(("outputs",) for _ in bias)]

    def _biases(self, constants: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """The bias of these outputs with what input channels of these values add to it, float64."""
        sums = np.zeros(len(outputs)) if self._bias is None else self._bias[outputs].astype(np.float64)
        rows = np.flatnonzero(constants)
        if rows.size:
            kernel = self._kernel[..., rows, :][..., outputs].reshape(-1, len(rows), len(outputs))
            sums += constants[rows] @ kernel.sum(axis=0, dtype=np.float64)
        return sums


class Depthwise(Rule):
    """Depthwise convolutions: every output channel depends on one input channel."""

    def __init__(self, layer: Any, weights: Sequence[np.ndarray], activation: Function, *, bordered: bool) -> None:
        """As `Linear`."""
        super().__init__(layer)
        self._activation = activation
        self._bordered = bordered
        self._kernel, *bias = weights
        self._bias = bias[0] if bias else None

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (source,) = inputs
        times = self._kernel.shape[-1]
        values = np.repeat(source.constants, times)
        kernel = self._kernel.reshape(-1, len(values)).astype(np.float64)
        if self._bordered:
            values[values != 0] = np.nan
        values[~kernel.any(axis=0)] = 0.0
        constants = values * kernel.sum(axis=0) + (0.0 if self._bias is None else self._bias)
        return [Flow(np.repeat(source.classes, times), _where_known(self._activation, constants))]

    @property
    def is_tied(self) -> bool:
        return True

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        kernel, *bias = ranks
        return [(*(None,) * (kernel - 2), "inputs", None), *(("outputs",) for _ in bias)]


class Opaque(Rule):
    """A layer that mixes channels in a way that is not known here: all that goes in and comes out stays."""

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        why = f"{call.name} ({type(self.layer).__name__}) mixes channels in a way that is not known"
        for source in inputs:
            classes.pin(source.classes, why)
        return [as_it_is(tensor, classes, why) for tensor in call.outputs]


def as_it_is(tensor: Tensor, classes: ChannelClasses, why: str) -> Flow:
    """The flow of a tensor all of whose channels stay, for a reason, and whose values are not known."""
    new = classes.new(tensor.channels)
    classes.pin(new, why)
    return Flow(new, np.full(tensor.channels, np.nan))


def _where_known(function: Function, constants: np.ndarray) -> np.ndarray:
    """The values of a function where there are constants; NaN elsewhere, or where it is not finite."""
    known = ~np.isnan(constants)
    if not known.any():
        return constants
    results = np.asarray(function(np.where(known, constants, 0.0)), np.float64)
    return np.where(known & np.isfinite(results), results, np.nan)


def added(values: np.ndarray) -> np.ndarray:
    return np.sum(values, axis=0)
