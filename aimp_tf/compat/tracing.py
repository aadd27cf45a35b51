"""What a layer or model with a `call` of its own does, as a functional model that has the same layers."""

from __future__ import annotations

import collections
import contextlib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.functional import calls_of, structures_of
from aimp_tf.compat.models import children, flattened, is_keras_own, layers_of
from aimp_tf.compat.swap import Swap

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
    with nodes_kept(layer):
        functional = seen(layer, args, kwargs, inputs, keras)
        if functional is None:
            return None
        of_two = functional.inputs[0].shape[0] != tf.nest.flatten(inputs)[0].shape[0]
        if of_two or _reshapes_examples(functional):
            with _traceable(layer):
                functional = _for_any_batch(functional, keras)
    if functional is None:
        return None
    calls = list(calls_of(functional))
    used = {id(weight) for part, *_ in calls for weight in getattr(part, "weights", ())}
    if any(id(weight) not in used for weight in layer.weights):
        return None
    given = [value for _, args, kwargs, _ in calls for value in tf.nest.flatten((args, kwargs))]
    return None if any(hasattr(value, "assign") for value in given) else functional


def seen(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Any], keras: Any) -> Any | None:
    """As `traced`, with whatever weights it takes and, of a call that asks for the number of examples, of two."""
    with nodes_kept(layer), _traceable(layer) as incomplete:
        functional = _functional(layer, args, kwargs, inputs, keras, incomplete)
        flat = tf.nest.flatten(inputs)
        asks = functional is None or _reshapes_examples(functional)
        if asks and keras.__name__ == "keras" and all(None not in each.shape[1:] for each in flat):
            two = {id(each): keras.Input(each.shape[1:], _TWO, dtype=each.dtype) for each in flat}
            args, kwargs, inputs = replaced((args, kwargs, inputs), two)
            functional = _functional(layer, args, kwargs, inputs, keras, incomplete) or functional
    return functional


def _functional(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Any, keras: Any, incomplete: list[Any]
) -> Any | None:
    """As `seen`. Layers that turn out to be `incomplete` are part of it by what their own `call` does."""
    while True:
        known = len(incomplete)
        try:
            with _entered(incomplete):
                return keras.Model(inputs, layer.call(*args, **kwargs))
        except Exception:  # Whatever code raises that was not made to be traced.
            if len(incomplete) == known:
                return None


@contextlib.contextmanager
def _entered(parts: Iterable[Any]) -> Iterator[None]:
    """Has calls of layers run their `call` alone, so that Keras does not see the layers themselves."""
    with contextlib.ExitStack() as stack:
        for part in parts:
            kind = type(part)
            # Python looks for this method in classes alone.
            method = {"__call__": lambda self, *args, **kwargs: self.call(*args, **kwargs)}
            stack.callback(object.__setattr__, part, "__class__", kind)
            object.__setattr__(part, "__class__", type(kind.__name__, (kind,), method))
        yield


def _reshapes_examples(functional: Any) -> bool:
    """Whether a functional model has a reshape that says how many examples there are."""
    return any(_is_for_so_many(part) for part, *_ in calls_of(functional))


def _is_for_so_many(part: Any) -> bool:
    """Whether an operation in a layer's place is a reshape to a number of examples: none that is known, or two."""
    return type(part).__name__ == "Reshape" and tuple(getattr(part, "newshape", ()))[:1] in ((None,), (_TWO,))


def _for_any_batch(functional: Any, keras: Any) -> Any | None:
    """A functional model of two examples made again for any number, if arrays in it are the same for both."""
    inputs, outputs = structures_of(functional)
    made = {id(tensor): keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in functional.inputs}

    def one_for_both(value: Any) -> Any:
        if not isinstance(value, (tf.Tensor, np.ndarray)) or not len(value.shape) or value.shape[0] != _TWO:
            return value
        return value[:1] if np.array_equal(value[0], value[1]) else value

    try:
        for layer, args, kwargs, given in calls_of(functional):
            if _is_for_so_many(layer):
                layer = keras.layers.Reshape(given[0].shape[1:], name=layer.name)
            args, kwargs = tf.nest.map_structure(one_for_both, replaced((args, kwargs), made))
            found = flattened(layer(*args, **kwargs), keras)
            made |= {id(before): after for before, after in zip(given, found, strict=True)}
        return keras.Model(replaced(inputs, made), replaced(outputs, made))
    except Exception:  # As above: where two examples are part of what it does.
        return None


def replaced(structure: Any, values: Mapping[int, Any]) -> Any:
    """A structure with values, by the ids of what is there, in place of some of its leaves."""
    return tf.nest.map_structure(lambda value: values.get(id(value), value), structure)


@contextlib.contextmanager
def _traceable(layer: Any) -> Iterator[list[Any]]:
    """Lets layers within a layer be told apart by their names, as Keras asks for, and those whose own way to tell the
    shape of what they give fails be called to find out.

    It gives a list of those that turn out to give None among tensors, which Keras does not take in a functional model.
    """
    incomplete: list[Any] = []
    parts = layers_of(layer)
    names = [(part, vars(part).get("name")) for part in parts]
    taken = collections.Counter(name for _, name in names)
    apart = [
        Swap(part, "name", f"{name}_{place}") for place, (part, name) in enumerate(names) if name and taken[name] > 1
    ]
    own = [part for part in parts if hasattr(part, "compute_output_spec") and not is_keras_own(type(part))]

    def telling(part: Any) -> Any:
        def told(*args: Any, **kwargs: Any) -> Any:
            try:
                spec = type(part).compute_output_spec(part, *args, **kwargs)
            except TypeError:  # It does not take all arguments of the call.
                spec = importlib.import_module("keras").src.backend.compute_output_spec(part.call, *args, **kwargs)
            if part not in incomplete and any(each is None for each in tf.nest.flatten(spec)):
                incomplete.append(part)
            return spec

        return told

    with contextlib.ExitStack() as stack:
        for swap in (*apart, *(Swap(part, "compute_output_spec", telling(part)) for part in own)):
            stack.enter_context(swap)
        yield incomplete


def nodes_kept(layer: Any) -> contextlib.ExitStack:
    """Forgets, at the end, the calls of all layers within a layer that came meanwhile. If it never ends, they stay."""
    names = ("_inbound_nodes", "_outbound_nodes")
    before = [(part, {name: list(getattr(part, name)) for name in names}) for part in layers_of(layer)]

    def forget() -> None:
        for part, nodes in before:
            for name, earlier in nodes.items():
                getattr(part, name)[:] = earlier

    stack = contextlib.ExitStack()
    stack.callback(forget)
    return stack
