"""Counts multiplications with weights in the graph that TensorFlow makes of a model, whatever layers it was made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import func_graph


def count_products(model: Any, specs: Any) -> tuple[int, int]:
    """Multiplications with weights, and those of what flows with what flows, in matrix products and convolutions.

    Args:
        model: A model of either generation.
        specs: What it is called with: a tf.TensorSpec of a batch of one in each tensor's place.
    """
    graph = _traced(model, specs)
    operations = graph.get_operations()
    # After what it is called with come the variables.
    flows = {tensor.ref() for tensor in graph.inputs[: len(tf.nest.flatten(specs))]}
    _spread(operations, flows)
    weighted = between = 0
    for operation in operations:
        if operation.type in _COUNTS:
            factors = [tensor for tensor in operation.inputs if tensor.dtype.is_floating]
            flowing = sum(tensor.ref() in flows for tensor in factors)
            weighted += _COUNTS[operation.type](operation) if flowing == 1 else 0
            between += _COUNTS[operation.type](operation) if flowing > 1 else 0
    return weighted, between


def _traced(model: Any, specs: Any) -> Any:
    """The graph of a model, with functions such as those that XLA compiles in place of calls of them."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        return func_graph.func_graph_from_py_func(
            "counted", lambda inputs: model(inputs, training=False), (), {}, signature=(specs,)
        )
    finally:
        tf.config.run_functions_eagerly(before)


def _spread(operations: Sequence[Any], flows: set[Any]) -> None:
    """Adds references to all tensors that depend on those that are there."""
    before = -1
    while before < len(flows):  # Operations need not come in order.
        before = len(flows)
        for operation in operations:
            if operation.type not in ("Shape", "Size") and any(tensor.ref() in flows for tensor in operation.inputs):
                flows.update(tensor.ref() for tensor in operation.outputs)


def _sizes(tensor: Any) -> list[int]:
    return [size or 1 for size in tensor.shape.as_list()]


def _convolution(operation: Any) -> int:
    return math.prod(_sizes(operation.inputs[1])) * math.prod(_sizes(operation.outputs[0])[1:-1])


def _transposed(operation: Any) -> int:
    return math.prod(_sizes(operation.inputs[1])) * math.prod(_sizes(operation.inputs[2])[1:-1])


def _matrix_product(operation: Any) -> int:
    turned = next(operation.get_attr(name) for name in ("transpose_a", "adj_x") if name in operation.node_def.attr)
    return math.prod(_sizes(operation.outputs[0])) * _sizes(operation.inputs[0])[-2 if turned else -1]


def _einsum(operation: Any) -> int:
    equation = operation.get_attr("equation").decode()
    sizes: dict[str, int] = {}
    for letters, tensor in zip(equation.split("->")[0].split(","), operation.inputs, strict=True):
        before, _, after = letters.partition("...")
        shape = _sizes(tensor)
        filling = [f".{place}" for place in range(len(shape) - len(before) - len(after), 0, -1)]
        for letter, size in zip([*before, *filling, *after], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return math.prod(sizes.values())


_COUNTS: dict[str, Callable[[Any], int]] = {
    **dict.fromkeys(("Conv2D", "Conv3D", "DepthwiseConv2dNative"), _convolution),
    **dict.fromkeys(("Conv2DBackpropInput", "Conv3DBackpropInputV2"), _transposed),
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2"), _matrix_product),
    "Einsum": _einsum,
}
"""By operation of TensorFlow."""
