"""What a layer or model with a `call` of its own does, as a functional model that has the same layers."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.functional import calls_of, structures_of
from aimp_tf.compat.keras_own import is_keras_own
from aimp_tf.compat.models import children, layers_of

_TWO = 2
"""Examples to trace with where any number cannot be."""


def holds_weights_itself(layer: Any) -> bool:
    """Whether a layer has weights that are not those of layers within it."""
    within = {id(weight) for child in children(layer) for weight in child.weights}
    return any(id(weight) not in within for weight in layer.weights)


def traced(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Any], keras: Any) -> Any | None:
    """A functional model of what `layer.call` does, of the same layers, or None if that cannot be seen.

    A call that asks for the number of examples is traced with two, and the model made again for any number.

    Args:
        layer: The layer or model, which is built. It is left as it is.
        args: What it is called with, tensors of `keras.Input` in place of what flows.
        kwargs: The same for named arguments.
        inputs: These tensors.
        keras: The generation of Keras.
    """
    with _nodes_kept(layer), _shapes_told(layer):
        functional = _functional(layer, args, kwargs, inputs, keras)
        flat = tf.nest.flatten(inputs)
        if functional is None and keras.__name__ == "keras" and all(None not in each.shape[1:] for each in flat):
            two = {id(each): keras.Input(each.shape[1:], _TWO, dtype=each.dtype) for each in flat}
            args, kwargs, inputs = replaced((args, kwargs, inputs), two)
            functional = _for_any_batch(_functional(layer, args, kwargs, inputs, keras), keras)
    if functional is None:
        return None
    calls = list(calls_of(functional))
    used = {id(weight) for part, *_ in calls for weight in getattr(part, "weights", ())}
    if any(id(weight) not in used for weight in layer.weights):
        return None
    given = [value for _, args, kwargs, _ in calls for value in tf.nest.flatten((args, kwargs))]
    return None if any(hasattr(value, "assign") for value in given) else functional


def _functional(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Any, keras: Any) -> Any | None:
    try:
        return keras.Model(inputs, layer.call(*args, **kwargs))
    except Exception:  # Whatever code raises that was not made to be traced.
        return None


def _for_any_batch(functional: Any | None, keras: Any) -> Any | None:
    """A functional model of two examples made again for any number, if arrays in it are the same for both."""
    if functional is None:
        return None
    inputs, outputs = structures_of(functional)
    made = {id(tensor): keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in functional.inputs}

    def one_for_both(value: Any) -> Any:
        if not isinstance(value, (tf.Tensor, np.ndarray)) or not len(value.shape) or value.shape[0] != _TWO:
            return value
        return value[:1] if np.array_equal(value[0], value[1]) else value

    try:
        for layer, args, kwargs, given in calls_of(functional):
            args, kwargs = tf.nest.map_structure(one_for_both, replaced((args, kwargs), made))
            found = tf.nest.flatten(layer(*args, **kwargs))
            made |= {id(before): after for before, after in zip(given, found, strict=True)}
        return keras.Model(replaced(inputs, made), replaced(outputs, made))
    except Exception:  # As above: where two examples are part of what it does.
        return None


def replaced(structure: Any, values: Mapping[int, Any]) -> Any:
    """A structure with values, by the ids of what is there, in place of some of its leaves."""
    return tf.nest.map_structure(lambda value: values.get(id(value), value), structure)


@contextlib.contextmanager
def _shapes_told(layer: Any) -> Iterator[None]:
    """Lets layers within a layer, whose own way to tell the shape of what they give fails, be called to find out."""
    own = [part for part in layers_of(layer) if hasattr(part, "compute_output_spec") and not is_keras_own(type(part))]

    def telling(part: Any) -> Any:
        def told(*args: Any, **kwargs: Any) -> Any:
            try:
                return type(part).compute_output_spec(part, *args, **kwargs)
            except TypeError:  # It does not take all arguments of the call.
                return importlib.import_module("keras").src.backend.compute_output_spec(part.call, *args, **kwargs)

        return told

    for part in own:
        object.__setattr__(part, "compute_output_spec", telling(part))
    try:
        yield
    finally:
        for part in own:
            object.__delattr__(part, "compute_output_spec")


@contextlib.contextmanager
def _nodes_kept(layer: Any) -> Iterator[None]:
    """Forgets, at the end, the calls of all layers within a layer that came meanwhile."""
    names = ("_inbound_nodes", "_outbound_nodes")
    before = [(part, {name: list(getattr(part, name)) for name in names}) for part in layers_of(layer)]
    try:
        yield
    finally:
        for part, nodes in before:
            for name, earlier in nodes.items():
                getattr(part, name)[:] = earlier
