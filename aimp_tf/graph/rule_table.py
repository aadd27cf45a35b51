"""Which rule holds for which kind of layer, or of function in a layer's place."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.attention import ATTENTION, projections
from aimp_tf.compat.functional import declares_shape, function_name, is_function
from aimp_tf.compat.models import is_keras_own
from aimp_tf.graph.attention import Attention
from aimp_tf.graph.copies import hides_functions
from aimp_tf.graph.einsum import Einsum
from aimp_tf.graph.functions import Tried
from aimp_tf.graph.linear import Depthwise, Grouped, Linear, Separable
from aimp_tf.graph.merging import Concatenation, Elementwise, Repeat, Sum
from aimp_tf.graph.model_graph import Call, Tensor
from aimp_tf.graph.normalization import (
    Given,
    batch_normalization,
    group_normalization,
    layer_scale,
    normalization,
    unknown,
)
from aimp_tf.graph.recurrent import GATES, Recurrent
from aimp_tf.graph.rules import (
    Assumptions,
    Function,
    Lookup,
    Opaque,
    PassThrough,
    Rule,
)
from aimp_tf.graph.trials import value_by_value
from aimp_tf.graph.wrapping import BothDirections, Wrapped

Factory = Callable[[Call, Assumptions], Rule | None]
"""Makes the rule of a layer for one of its calls, or None for a use of it that is not known here."""


_REGISTERED: dict[type, Factory] = {}


def register_rule(layer_class: type, rule: Factory) -> None:
    """Says what a layer of your own does with its channels, so that `compact` and whole channels see through it.

    Args:
        layer_class: The class of the layer; subclasses of it are not meant. It should be made again from its config,
            in which what `Rule.attributes` names may change.
        rule: Is given a call of the layer, an `aimp_tf.rules.Call`, and `aimp_tf.rules.Assumptions`, whose `value`
            gives that of a variable, NaN where training may change it. It returns an `aimp_tf.rules.Rule`, such as a
            `PassThrough`, or None for a use of the layer that is not known. It is not asked unless all that goes in and
            comes out has its channels last.

    Raises:
        TypeError: `layer_class` is not a class, or `rule` cannot be called.

    Example:
        ```python
        aimp_tf.register_rule(
            Scale, lambda call, assumptions: aimp_tf.rules.PassThrough(call.layer, lambda values: 2.0 * values)
        )
        ```
    """
    if not isinstance(layer_class, type):
        raise TypeError(f"register_rule takes the class of a layer; got {layer_class!r:.80}. Write type(layer).")
    if not callable(rule):
        raise TypeError(f"register_rule takes a function (call, assumptions) -> rule; got {rule!r:.80}.")
    _REGISTERED[layer_class] = rule


def rule_for(calls: Sequence[Call], assumptions: Assumptions) -> Rule:
    """The rule of the layer that has these calls. Known are Keras' own, not subclasses of them, and registered ones."""
    layer = calls[0].layer
    kind = _kind(layer, assumptions.keras)
    factory = _REGISTERED.get(type(layer)) or _FACTORIES.get(kind)
    if factory is not None and all(_is_plain(call, kind) for call in calls):
        rules = [rule for call in calls if (rule := factory(call, assumptions))]
        shapes = {(call.inputs[0].channels, call.outputs[0].channels) for call in calls}
        if len(rules) == len(calls) and not (len(shapes) > 1 and rules[0].is_tied):
            return rules[0]
    if kind in _REASONS:
        return Opaque(layer, _REASONS[kind])
    return Tried(layer) if all(_may_be_tried(call, assumptions) for call in calls) else Opaque(layer)


def _may_be_tried(call: Call, assumptions: Assumptions) -> bool:
    """Whether what a call does on numbers that are made up says all of it."""
    layer = call.layer
    weights = getattr(layer, "weights", ())
    if weights or declares_shape(layer) or not call.inputs:
        return False
    if _is_told_to_train(call) and _is_random(layer):
        return False
    # In training, layers may do something else.
    return not assumptions.training or is_function(layer) or (is_keras_own(type(layer)) and not _is_random(layer))


def _is_told_to_train(call: Call) -> bool:
    """Whether a call says so, by name or, in tf_keras, perhaps by place."""
    return call.kwargs.get("training", call.training) not in (None, False) or any(each is True for each in call.args)


def _is_random(layer: Any) -> bool:
    return any(part in name for name in vars(layer) for part in ("seed", "random") if not name.startswith("_"))


def is_sum(layer: Any) -> bool:
    """Whether it is an Add, or + in a layer's place."""
    return function_name(layer) == "add" or (type(layer).__name__ == "Add" and is_keras_own(type(layer)))


def _kind(layer: Any, keras: Any) -> str:
    """The name in `_FACTORIES` for a layer, or for `+` in its place."""
    if is_sum(layer):
        return "Add"
    return type(layer).__name__ if isinstance(layer, keras.layers.Layer) and is_keras_own(type(layer)) else ""


def _is_plain(call: Call, kind: str) -> bool:
    """Whether a call is an inference with tensors that have channels as their last axis."""
    inputs = call.inputs
    if kind in _RECURRENT and len(inputs) == 2 and inputs[1] is call.kwargs.get("mask"):
        inputs = inputs[:1]  # Of Keras 3, which hands on masks of padding like this.
    tensors = call.outputs if kind in (*ATTENTION, "Embedding") else (*inputs, *call.outputs)
    return (
        not _is_told_to_train(call)
        and (kind in _MERGING or kind in ATTENTION or len(inputs) == 1)
        and all(tensor.channels for tensor in tensors)
        and getattr(call.layer, "data_format", None) in (None, "channels_last")
    )


def _activation(layer: Any, assumptions: Assumptions) -> Function | None:
    """The activation of a layer on arrays, if it works value by value."""
    if layer.activation is None or layer.activation is assumptions.keras.activations.linear:
        return np.asarray
    return value_by_value(layer.activation)


def _weighted(call: Call, assumptions: Assumptions) -> Rule | None:
    """Dense and all convolutions."""
    layer, activation, bordered = call.layer, _activation(call.layer, assumptions), is_bordered(call.layer)
    separable = type(layer).__name__.startswith("Separable")
    if not separable and len(layer.weights) != 1 + layer.use_bias:
        return None  # Adapters and quantized kernels come as further weights.
    values, groups = [assumptions.value(weight) for weight in layer.weights], getattr(layer, "groups", 1)
    if separable:
        return Separable(layer, values, activation, bordered=bordered)
    if type(layer).__name__.startswith("Depthwise") or 1 < groups == call.inputs[0].channels:
        return activation and Depthwise(layer, values, activation, bordered=bordered)
    if groups == 1:
        return Linear(layer, values, activation, bordered=bordered)
    return Grouped(layer, values, activation, bordered=bordered, training=assumptions.training)


def _einsum(call: Call, assumptions: Assumptions) -> Rule | None:
    layer = call.layer
    if len(layer.weights) != 1 + (layer.bias is not None):
        return None
    return Einsum(layer, assumptions, _activation(layer, assumptions), len(call.inputs[0].shape))


def _recurrent(call: Call, assumptions: Assumptions) -> Rule | None:
    return Recurrent(call.layer, assumptions) if _is_plain_recurrent(call.layer) else None


def _attention(call: Call, assumptions: Assumptions) -> Rule | None:
    parts = projections(call.layer)
    plain = len(call.outputs) == 1 and "output" in parts and len(parts["output"].kernel.shape) == 3
    counts = [len(part.weights) for part in parts.values()]
    # Adapters and quantized kernels come as further weights, as in Dense.
    plain = plain and counts == [1 + (part.bias is not None) for part in parts.values()]
    return Attention(call.layer, assumptions) if plain and sum(counts) == len(call.layer.weights) else None


def _lookup(call: Call, assumptions: Assumptions) -> Rule | None:
    layer = call.layer
    return Lookup(layer, assumptions.value(layer.embeddings)) if len(layer.weights) == 1 else None


def _parametric_relu(call: Call, assumptions: Assumptions) -> Rule | None:
    alpha = assumptions.value(call.layer.alpha)
    if alpha.shape[-1] != call.inputs[0].channels:
        return None
    slopes = alpha.reshape(-1, alpha.shape[-1])
    slope = np.where((slopes == slopes[:1]).all(axis=0), slopes[0], np.nan)
    return PassThrough(call.layer, lambda values: np.where(values >= 0, values, slope * values), moves=True)


def is_bordered(layer: Any) -> bool:
    """Whether an input that is the same everywhere, but not zero, is seen otherwise at the borders."""
    if "Transpose" in type(layer).__name__:
        return True
    return getattr(layer, "padding", "valid") != "valid" and math.prod(layer.kernel_size) > 1


def _activation_layer(call: Call, assumptions: Assumptions) -> Rule | None:
    activation = _activation(call.layer, assumptions)
    return activation and PassThrough(call.layer, activation)


def _value_by_value(call: Call, assumptions: Assumptions) -> Rule | None:
    layer = call.layer
    given = {name: getattr(layer, name, 0) for name in ("scale", "offset")}
    sizes = {np.shape(values) for values in given.values()}
    if getattr(layer, "weights", ()) or sizes - {(), (call.inputs[0].channels,)}:
        return None

    def value(values: np.ndarray) -> np.ndarray:
        return np.asarray(layer(tf.constant(values[np.newaxis], tf.float32)))[0]

    return PassThrough(layer, value) if sizes == {()} else Given(layer, value, given)


def _unchanged(call: Call, assumptions: Assumptions) -> Rule | None:
    return PassThrough(call.layer)


def _moved(call: Call, assumptions: Assumptions) -> Rule | None:
    known = getattr(call.layer, "interpolation", "nearest") in ("nearest", "bilinear")
    return PassThrough(call.layer, moves=True) if known else None


def _at_random(value: Function) -> Factory:
    """Of what draws numbers in training alone, and gives these for constant channels then."""

    def make(call: Call, assumptions: Assumptions) -> Rule | None:
        if not assumptions.training:
            return PassThrough(call.layer)
        shape = getattr(call.layer, "noise_shape", None)
        counts_channels = shape is not None and tuple(shape)[-1] not in (None, 1)
        return None if counts_channels else PassThrough(call.layer, value)

    return make


def _zero_padding(call: Call, assumptions: Assumptions) -> Rule | None:
    return PassThrough(call.layer, lambda values: np.where(values == 0, 0.0, np.nan), moves=True)


def _permute(call: Call, assumptions: Assumptions) -> Rule | None:
    return PassThrough(call.layer, moves=True) if call.layer.dims[-1] == len(call.layer.dims) else None


def _wrapped(call: Call, assumptions: Assumptions) -> Rule | None:
    """What lies within is called with tensors that have one axis less, or as many."""
    within, steps = call.layer.layer, int(type(call.layer).__name__ == "TimeDistributed")

    def inside(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(Tensor((each.shape[0], *each.shape[1 + steps :]), each.dtype) for each in tensors)

    inner = dataclasses.replace(call, layer=within, inputs=inside(call.inputs), outputs=inside(call.outputs))
    kind = _kind(within, assumptions.keras)
    factory = _FACTORIES.get(kind)
    if factory is not _weighted or not _is_plain(inner, kind) or hides_functions(call.layer):
        return None
    rule = factory(inner, assumptions)
    return rule and Wrapped(call.layer, rule, assumptions.keras)


def _both_directions(call: Call, assumptions: Assumptions) -> Rule | None:
    layer = call.layer
    parts = (layer.forward_layer, layer.backward_layer)
    if layer.merge_mode is None or len(call.outputs) > 1 or hides_functions(layer):
        return None
    if parts[0].units != parts[1].units:
        return None
    fitting = (_kind(part, assumptions.keras) in GATES and _is_plain_recurrent(part) for part in parts)
    return BothDirections(layer, assumptions) if all(fitting) else None


def _is_plain_recurrent(layer: Any) -> bool:
    if len(layer.weights) != 2 + layer.use_bias or layer.stateful or getattr(layer, "time_major", False):
        return False
    activations = (layer.activation, getattr(layer, "recurrent_activation", None))
    return all(value_by_value(activation) for activation in activations if activation is not None)


def _repeat(call: Call, assumptions: Assumptions) -> Rule | None:
    before, after = call.inputs[0].channels, call.outputs[0].channels
    return None if after % before else Repeat(call.layer)


def _concatenation(call: Call, assumptions: Assumptions) -> Rule | None:
    return Concatenation(call.layer) if call.layer.axis in (-1, len(call.outputs[0].shape) - 1) else None


def _elementwise(combine: Function, in_inference: type[Elementwise] = Elementwise) -> Factory:
    def make(call: Call, assumptions: Assumptions) -> Rule | None:
        sizes = {tensor.channels for tensor in (*call.inputs, *call.outputs)} - {1}
        if len(call.inputs) < 2 or len(sizes) > 1:
            return None
        rule = Elementwise if assumptions.training else in_inference
        return rule(call.layer, combine, assumptions.masked)

    return make


_MERGING: dict[str, Factory] = {
    "Add": _elementwise(lambda values: np.sum(values, axis=0), Sum),
    "Subtract": _elementwise(lambda values: values[0] - values[1]),
    "Multiply": _elementwise(lambda values: np.where((values == 0).any(axis=0), 0.0, np.prod(values, axis=0))),
    "Average": _elementwise(lambda values: np.mean(values, axis=0)),
    "Maximum": _elementwise(lambda values: np.max(values, axis=0)),
    "Minimum": _elementwise(lambda values: np.min(values, axis=0)),
    "Concatenate": _concatenation,
}

_RECURRENT = (*GATES, "Bidirectional")
"""Layers over time, which may be given a mask of padding."""

_REASONS = {
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), "normalises over all channels"),
    "Masking": "masks where all channels are of one value",
}
"""Class of a Keras layer -> why what goes through it stays."""

_DIMENSIONS = ("1D", "2D", "3D")

_FACTORIES: dict[str, Factory] = {
    **_MERGING,
    "Dense": _weighted,
    **{f"Conv{dims}{kind}": _weighted for dims in _DIMENSIONS for kind in ("", "Transpose")},
    **{f"{kind}Conv{dims}": _weighted for dims in ("1D", "2D") for kind in ("Depthwise", "Separable")},
    "EinsumDense": _einsum,
    **dict.fromkeys(GATES, _recurrent),
    **dict.fromkeys(ATTENTION, _attention),
    "Embedding": _lookup,
    "PReLU": _parametric_relu,
    "LayerScale": layer_scale,
    "Normalization": normalization,
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    **dict.fromkeys(("TimeDistributed", "SpectralNormalization"), _wrapped),
    "Bidirectional": _both_directions,
    "Activation": _activation_layer,
    **{name: _value_by_value for name in ("ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Rescaling")},
    **{
        f"{prefix}{kind}Pooling{dims}": _moved
        for prefix in ("", "Global")
        for kind in ("Max", "Average")
        for dims in _DIMENSIONS
    },
    **{f"{name}{dims}": _moved for name in ("UpSampling", "Cropping") for dims in _DIMENSIONS},
    **{f"SpatialDropout{dims}": _unchanged for dims in _DIMENSIONS},
    **{f"ZeroPadding{dims}": _zero_padding for dims in _DIMENSIONS},
    **dict.fromkeys(("GaussianDropout", "ActivityRegularization", "Identity", "StochasticDepth"), _unchanged),
    "RepeatVector": _moved,
    "Dropout": _at_random(np.asarray),
    **dict.fromkeys(("AlphaDropout", "GaussianNoise"), _at_random(unknown)),
    "Permute": _permute,
    "Flatten": _repeat,
    "Reshape": _repeat,
}
"""By class of a Keras layer."""
