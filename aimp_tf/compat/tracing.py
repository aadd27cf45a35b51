"""What a layer or model with a `call` of its own does, as a functional model that has the same layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from aimp_tf.compat.functional import calls_of
from aimp_tf.compat.models import children, layers_of


def holds_weights_itself(layer: Any) -> bool:
    """Whether a layer has weights that are not those of layers within it."""
    within = {id(weight) for child in children(layer) for weight in child.weights}
    return any(id(weight) not in within for weight in layer.weights)


def traced(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Any], keras: Any) -> Any | None:
    """A functional model of what `layer.call` does, of the same layers, or None if that cannot be seen.

    Args:
        layer: The layer or model, which is built. It is left as it is.
        args: What it is called with, tensors of `keras.Input` in place of what flows.
        kwargs: The same for named arguments.
        inputs: These tensors.
        keras: The generation of Keras.
    """
    with _nodes_kept(layer):
        try:
            functional = keras.Model(inputs, layer.call(*args, **kwargs))
        except Exception:  # Whatever code raises that was not made to be traced.
            return None
    calls = list(calls_of(functional))
    used = {id(weight) for part, *_ in calls for weight in getattr(part, "weights", ())}
    if any(id(weight) not in used for weight in layer.weights):
        return None
    given = [value for _, args, kwargs, _ in calls for value in tf.nest.flatten((args, kwargs))]
    return None if any(hasattr(value, "assign") for value in given) else functional


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
