"""What functional and Sequential models keep of their calls, which Keras has no public way to read."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf


def functional_within(model: Any, keras: Any) -> Any | None:
    """The functional model that does what `model` does, itself or within it; None for one with a `call` of its own."""
    home = "keras.src.models.functional" if keras.__name__ == "keras" else "tf_keras.src.engine.functional"
    functional = importlib.import_module(home).Functional
    if type(model).call is keras.Sequential.call:
        if keras.__name__ == "keras":
            return model._functional
        return model if model._graph_initialized else None
    return model if isinstance(model, functional) and type(model).call is functional.call else None


def structures_of(functional: Any) -> tuple[Any, Any]:
    """The Keras tensors that go in and come out, as they are nested."""
    if hasattr(functional, "_inputs_struct"):
        return functional._inputs_struct, functional._outputs_struct
    return functional._nested_inputs, functional._nested_outputs


def input_names(functional: Any) -> list[str]:
    """The names of the layers of the inputs."""
    return [tensor._keras_history[0].name for tensor in functional.inputs]


def calls_of(functional: Any) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]]:
    """(layer, args, kwargs, outputs) of each call of a functional model, after those whose outputs it takes."""
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if not node.is_input:
                yield _parts(node)


def is_symbolic(value: Any) -> bool:
    """Whether a value is a Keras tensor, which stands for what flows between layers."""
    return hasattr(value, "_keras_history")


def has_mask(value: Any) -> bool:
    """Whether a tensor that a layer gave carries a mask of padding."""
    return getattr(value, "_keras_mask", None) is not None


def function_name(operation: Any) -> str:
    """The name of the function that an operation in a layer's place stands for, such as "relu"; "" for others."""
    module = type(operation).__module__
    if module in ("keras.src.ops.numpy", "keras.src.ops.nn"):
        return type(operation).__name__.lower()
    if module == "tf_keras.src.layers.core.tf_op_layer":
        return (getattr(operation, "symbol", None) or "").split(".")[-1]
    return ""


def sharing(layer: Any, name: str) -> Any:
    """A layer that has all that another holds, its variables above all, and is in no model yet."""
    twin = object.__new__(type(layer))  # Not copy.copy, which Keras makes from configs.
    vars(twin).update(vars(layer))
    if "_name" in vars(layer):  # Of tf_keras.
        vars(twin).update(_name=name, _inbound_nodes_value=[], _outbound_nodes_value=[])
    else:
        vars(twin).update(name=name, _inbound_nodes=[], _outbound_nodes=[])
    return twin


def _parts(node: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]:
    """(layer, args, kwargs, outputs) of a node of either generation."""
    if hasattr(node, "operation"):
        return node.operation, tuple(node.arguments.args), dict(node.arguments.kwargs), list(node.outputs)
    return node.layer, tuple(node.call_args), dict(node.call_kwargs), tf.nest.flatten(node.outputs)
