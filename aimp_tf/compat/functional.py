"""What functional and Sequential models keep of their calls, which Keras has no public way to read."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from aimp_tf.compat.models import flattened, keras_generation


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
            if node.is_input:
                continue
            if hasattr(node, "operation"):
                yield node.operation, tuple(node.arguments.args), dict(node.arguments.kwargs), list(node.outputs)
            else:  # Of tf_keras.
                yield node.layer, tuple(node.call_args), dict(node.call_kwargs), tf.nest.flatten(node.outputs)


def told_shapes(layer: Any, structure: tuple[Any, Any], shapes: Mapping[int, tuple[int | None, ...]]) -> Any | None:
    """The shapes that a layer or function says its outputs have, flat, where nothing is computed to find out.

    Args:
        layer: The layer, or an operation in its place.
        structure: Its args and kwargs.
        shapes: Place among their leaves -> shape of a tensor that is to stand there.

    Returns:
        Shapes; None where calls themselves tell, as in tf_keras.
    """
    if not hasattr(layer, "compute_output_spec"):
        return None
    keras = importlib.import_module("keras")
    leaves = tf.nest.flatten(structure)
    for place, shape in shapes.items():
        leaves[place] = keras.KerasTensor(shape, leaves[place].dtype)
    args, kwargs = tf.nest.pack_sequence_as(structure, leaves)
    return [tuple(each.shape) for each in flattened(layer.compute_output_spec(*args, **kwargs), keras)]


def function_name(operation: Any) -> str:
    """The name of the function that an operation in a layer's place stands for, such as "relu"; "" for others."""
    module = type(operation).__module__
    if module in ("keras.src.ops.numpy", "keras.src.ops.nn"):
        return type(operation).__name__.lower()
    if module == "tf_keras.src.layers.core.tf_op_layer":
        return (getattr(operation, "symbol", None) or "").split(".")[-1]
    return ""


def is_function(operation: Any) -> bool:
    """Whether it is a function in a layer's place, be it one that a Lambda layer calls."""
    if type(operation).__name__ == "Lambda":
        return True
    module = type(operation).__module__
    return module.startswith("keras.src.ops.") or module == "tf_keras.src.layers.core.tf_op_layer"


def declares_shape(layer: Any) -> bool:
    """Whether a Lambda layer was told what shape it gives."""
    return getattr(layer, "_output_shape", None) is not None


def sharing(layer: Any, name: str) -> Any:
    """A layer that has all that another holds, its variables above all, and is in no model yet."""
    twin = object.__new__(type(layer))  # Not copy.copy, which Keras makes from configs.
    vars(twin).update(vars(layer))
    if "_name" in vars(layer):  # Of tf_keras.
        vars(twin).update(_name=name, _inbound_nodes_value=[], _outbound_nodes_value=[])
    else:
        vars(twin).update(name=name, _inbound_nodes=[], _outbound_nodes=[])
    return twin


def declared_inputs(model: Any) -> Any:
    """The inputs in their structure, each with a shape and a dtype and, where it has one, a name."""
    if keras_generation(model) == "tf_keras":
        if (nested := getattr(model, "_nested_inputs", None)) is not None:
            return nested
        if model.save_spec() is None:
            raise ValueError(
                f"The model {model.name!r} was never called, and so does not know its inputs. Call it on a batch of "
                "data before it is exported."
            )
        arguments = [*model.save_spec()[0], *model.save_spec()[1].values()]
    else:
        if (structure := getattr(model, "_inputs_struct", None)) is not None:
            return structure
        if getattr(model, "inputs", None):
            return model.inputs
        shapes = plain(getattr(model, "_build_shapes_dict", None)) or {}
        arguments = [_of_shapes(shape, model.input_dtype) for shape in shapes.values()]
    if len(arguments) != 1:
        raise ValueError(
            f"The model {model.name!r} takes {len(arguments)} arguments; expected one. Have it take its tensors as a "
            "list or dict."
        )
    return arguments[0]


def plain(structure: Any) -> Any:
    """The structure in Python's own dicts, lists and tuples, where Keras may have put others."""
    if isinstance(structure, Mapping):
        return {key: plain(item) for key, item in structure.items()}
    if isinstance(structure, (list, tuple)):
        return (list if isinstance(structure, list) else tuple)(map(plain, structure))
    return structure


def _of_shapes(shapes: Any, dtype: str) -> Any:
    """A structure of shapes as one of tensor specs."""
    if isinstance(shapes, dict):
        return {key: _of_shapes(shape, dtype) for key, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return tf.TensorSpec(shapes, dtype)
    return type(shapes)(_of_shapes(shape, dtype) for shape in shapes)


def lambda_like(layer: Any, name: str) -> Any:
    """A Lambda layer with the function, and all else, of another."""
    given = (layer.function, layer._output_shape, layer.mask, layer.arguments)
    return type(layer)(*given, name=name, dtype=layer.dtype_policy)
