"""What is known of each kind of layer: how channels pass through it, and how it is made anew with fewer of them."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.functional import function_name
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

    def indices(self, kept: Kept) -> list[tuple[np.ndarray, ...]]:
        """Of each weight of the layer, the indices that stay along each axis. No weights, no indices."""
        weights = getattr(self.layer, "weights", ())
        by_name = {"inputs": kept.inputs, "outputs": kept.outputs}
        return [
            tuple(by_name[name] if name else np.arange(size) for name, size in zip(names, weight.shape, strict=True))
            for weight, names in zip(weights, self._axes([len(weight.shape) for weight in weights]), strict=True)
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
        super().__init__(layer, _sum, masked)

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
            classes.pin(outputs)
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
        for source in inputs:
            classes.pin(source.classes)
        return [as_it_is(tensor, classes) for tensor in call.outputs]


def as_it_is(tensor: Tensor, classes: ChannelClasses) -> Flow:
    """The flow of a tensor all of whose channels stay, and whose values are not known."""
    new = classes.new(tensor.channels)
    classes.pin(new)
    return Flow(new, np.full(tensor.channels, np.nan))


Factory = Callable[[Call, Assumptions], Rule | None]
"""Makes the rule of a layer for one of its calls, or None for a use of it that is not known here."""


def rule_for(calls: Sequence[Call], assumptions: Assumptions) -> Rule:
    """The rule of the layer that has these calls. Only Keras' own layers are known, not subclasses of them."""
    layer = calls[0].layer
    kind = _kind(layer, assumptions.keras)
    factory = _FACTORIES.get(kind)
    if factory is None or not all(_is_plain(call, several=kind in _MERGING) for call in calls):
        return Opaque(layer)
    rules = [rule for call in calls if (rule := factory(call, assumptions))]
    shapes = {(call.inputs[0].channels, call.outputs[0].channels) for call in calls}
    known = len(rules) == len(calls) and not (len(shapes) > 1 and rules[0].is_tied)
    return rules[0] if known else Opaque(layer)


def _kind(layer: Any, keras: Any) -> str:
    """The name in `_FACTORIES` for a layer, or for a function such as `tf.nn.relu` or `+` in its place."""
    name = type(layer).__name__
    if type(layer) is getattr(keras.layers, name, None):
        return name
    return _FUNCTIONS.get(function_name(layer), "")


def _is_plain(call: Call, several: bool) -> bool:
    """Whether a call is an inference with tensors that have channels as their last axis."""
    return (
        call.kwargs.get("training") in (None, False)
        and (several or len(call.inputs) == 1)
        and all(tensor.channels for tensor in (*call.inputs, *call.outputs))
        and getattr(call.layer, "data_format", None) in (None, "channels_last")
    )


def _where_known(function: Function, constants: np.ndarray) -> np.ndarray:
    """The values of a function where there are constants; NaN elsewhere, or where it is not finite."""
    known = ~np.isnan(constants)
    if not known.any():
        return constants
    results = np.asarray(function(np.where(known, constants, 0.0)), np.float64)
    return np.where(known & np.isfinite(results), results, np.nan)


def _values(layer: Any, assumptions: Assumptions) -> list[np.ndarray]:
    return [assumptions.value(weight) for weight in layer.weights]


def _activation(layer: Any, assumptions: Assumptions) -> Function | None:
    """The activation of a layer on arrays, if it is known to work value by value."""
    function, keras = layer.activation, assumptions.keras
    if function is None or function is keras.activations.linear:
        return np.asarray
    if not any(function is getattr(module, name, None) for module in (keras.activations, tf.nn) for name in _KNOWN):
        return None
    return lambda values: np.asarray(function(tf.constant(values, tf.float32)))


def _weighted(call: Call, assumptions: Assumptions) -> Rule | None:
    """Dense and all convolutions but those that are depthwise or in groups."""
    layer = call.layer
    if len(layer.weights) != 1 + layer.use_bias or getattr(layer, "groups", 1) != 1:
        return None  # Adapters and quantized kernels come as further weights.
    return Linear(layer, _values(layer, assumptions), _activation(layer, assumptions), bordered=_is_bordered(layer))


def _depthwise(call: Call, assumptions: Assumptions) -> Rule | None:
    layer, activation = call.layer, _activation(call.layer, assumptions)
    return activation and Depthwise(layer, _values(layer, assumptions), activation, bordered=_is_bordered(layer))


def _is_bordered(layer: Any) -> bool:
    if "Transpose" in type(layer).__name__:
        return True
    return getattr(layer, "padding", "valid") != "valid" and math.prod(layer.kernel_size) > 1


def _activation_layer(call: Call, assumptions: Assumptions) -> Rule | None:
    activation = _activation(call.layer, assumptions)
    return activation and PassThrough(call.layer, activation)


def _value_by_value(call: Call, assumptions: Assumptions) -> Rule | None:
    layer = call.layer
    if getattr(layer, "weights", ()) or any(np.ndim(getattr(layer, name, 0)) for name in ("scale", "offset")):
        return None
    return PassThrough(layer, lambda values: np.asarray(layer(tf.constant(values[np.newaxis], tf.float32)))[0])


def _unchanged(call: Call, assumptions: Assumptions) -> Rule | None:
    known = getattr(call.layer, "interpolation", "nearest") in ("nearest", "bilinear")
    return PassThrough(call.layer) if known else None


def _dropout(call: Call, assumptions: Assumptions) -> Rule | None:
    return None if assumptions.training and _counts_channels(call.layer) else _unchanged(call, assumptions)


def _noise(call: Call, assumptions: Assumptions) -> Rule | None:
    """What adds something at random, in training alone."""
    if not assumptions.training:
        return PassThrough(call.layer)
    if _counts_channels(call.layer):
        return None
    return PassThrough(call.layer, lambda values: np.full_like(values, np.nan))


def _counts_channels(layer: Any) -> bool:
    """Whether noise was given a shape with as many channels as there are."""
    shape = getattr(layer, "noise_shape", None)
    return shape is not None and tuple(shape)[-1] not in (None, 1)


def _zero_padding(call: Call, assumptions: Assumptions) -> Rule | None:
    return PassThrough(call.layer, lambda values: np.where(values == 0, 0.0, np.nan))


def _permute(call: Call, assumptions: Assumptions) -> Rule | None:
    return PassThrough(call.layer) if call.layer.dims[-1] == len(call.layer.dims) else None


def _batch_normalization(call: Call, assumptions: Assumptions) -> Rule | None:
    layer, rank = call.layer, len(call.inputs[0].shape)
    if tf.nest.flatten(layer.axis) not in ([-1], [rank - 1]) or getattr(layer, "renorm", False):
        return None
    value = assumptions.value
    mean, variance = (np.float64(value(weight)) for weight in (layer.moving_mean, layer.moving_variance))
    scale = (value(layer.gamma) if layer.scale else 1.0) / np.sqrt(variance + layer.epsilon)
    shift = value(layer.beta) if layer.center else 0.0
    return PassThrough(layer, lambda values: (values - mean) * scale + shift, deaf=scale == 0)


def _repeat(call: Call, assumptions: Assumptions) -> Rule | None:
    before, after = call.inputs[0].channels, call.outputs[0].channels
    return None if after % before else Repeat(call.layer)


def _concatenation(call: Call, assumptions: Assumptions) -> Rule | None:
    return Concatenation(call.layer) if call.layer.axis in (-1, len(call.outputs[0].shape) - 1) else None


def _elementwise(combine: Function | None) -> Factory:
    def make(call: Call, assumptions: Assumptions) -> Rule | None:
        if len(call.inputs) < 2 or len({tensor.channels for tensor in (*call.inputs, *call.outputs)}) > 1:
            return None
        if combine is None and not assumptions.training:
            return Sum(call.layer, assumptions.masked)
        return Elementwise(call.layer, combine or _sum, assumptions.masked)

    return make


def _sum(values: np.ndarray) -> np.ndarray:
    return np.sum(values, axis=0)


def _product(values: np.ndarray) -> np.ndarray:
    return np.where((values == 0).any(axis=0), 0.0, np.prod(values, axis=0))


_KNOWN = (
    "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu linear log_sigmoid "
    "mish relu relu6 selu sigmoid silu soft_shrink softplus softsign sparse_plus squareplus swish tanh tanh_shrink "
    "threshold"
).split()
"""Activations that work value by value."""

_MERGING: dict[str, Factory] = {
    "Add": _elementwise(None),
    "Subtract": _elementwise(lambda values: values[0] - values[1]),
    "Multiply": _elementwise(_product),
    "Average": _elementwise(lambda values: np.mean(values, axis=0)),
    "Maximum": _elementwise(lambda values: np.max(values, axis=0)),
    "Minimum": _elementwise(lambda values: np.min(values, axis=0)),
    "Concatenate": _concatenation,
}

_FUNCTIONS = {
    **{name.lower(): name for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum")},
    **{name: "ReLU" for name in "relu relu6 sigmoid tanh silu softplus elu selu".split()},
}
"""Function of `keras.ops` or TensorFlow -> a layer that is treated alike."""

_DIMENSIONS = ("1D", "2D", "3D")

_FACTORIES: dict[str, Factory] = {
    **_MERGING,
    "Dense": _weighted,
    **{f"Conv{dims}{kind}": _weighted for dims in _DIMENSIONS for kind in ("", "Transpose")},
    **{f"DepthwiseConv{dims}": _depthwise for dims in ("1D", "2D")},
    "BatchNormalization": _batch_normalization,
    "Activation": _activation_layer,
    **{name: _value_by_value for name in ("ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Rescaling")},
    **{
        f"{prefix}{kind}Pooling{dims}": _unchanged
        for prefix in ("", "Global")
        for kind in ("Max", "Average")
        for dims in _DIMENSIONS
    },
    **{f"{name}{dims}": _unchanged for name in ("UpSampling", "Cropping", "SpatialDropout") for dims in _DIMENSIONS},
    **{f"ZeroPadding{dims}": _zero_padding for dims in _DIMENSIONS},
    **{name: _unchanged for name in ("GaussianDropout ActivityRegularization Identity RepeatVector".split())},
    "Dropout": _dropout,
    **dict.fromkeys(("AlphaDropout", "GaussianNoise"), _noise),
    "Permute": _permute,
    "Flatten": _repeat,
    "Reshape": _repeat,
}
"""By class of a Keras layer."""
