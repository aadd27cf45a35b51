"""How many multiplications with weights the layers of Keras take, whether or not channels can be seen through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from aimp_tf.compat.keras_own import is_keras_own
from aimp_tf.graph.model_graph import Call, ModelGraph

Shape = tuple[int | None, ...]


def multiply_adds(call: Call) -> int | None:
    """Multiplications of weights with what flows through a layer in one call, for one example.

    Counted are matrix products, convolutions and projections: of recurrent layers in all steps, of attention those of
    query, key, value and output. Products of two activations, such as attention scores, are none with weights; scales
    of normalisations and the like, value by value, are not counted; look-ups multiply nothing.

    Args:
        call: The call. Axes of open size count as 1.

    Returns:
        Their number; None where a layer holds matrices of weights, but what it does with them is not known.
    """
    layer = call.layer
    kind = type(layer).__name__
    if is_keras_own(type(layer)):
        if kind in _ATTENTION:
            return _attention(call)
        if kind == "ReversibleEmbedding" and (call.kwargs.get("reverse") or True in call.args[1:]):
            return math.prod(layer.embeddings.shape) * _product(call.inputs[0].shape[1:-1])
    return _count(layer, call.inputs[0].shape if call.inputs else ())


def _count(layer: Any, shape: Shape) -> int | None:
    """As `multiply_adds`, for an input of this shape."""
    kind = type(layer).__name__
    if is_keras_own(type(layer)):
        if kind in _VALUE_BY_VALUE:
            return 0
        if kind in _COUNTS:
            return _COUNTS[kind](layer, shape)
    if not any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ())):
        return 0
    try:
        graph = ModelGraph.of(layer)
    except (TypeError, ValueError):  # No model, or a subclassed one.
        return None
    return _total(map(multiply_adds, graph.calls))


def _total(counts: Iterable[int | None]) -> int | None:
    """Their sum; None if any is not known."""
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


def _product(sizes: Iterable[int | None]) -> int:
    return math.prod(size or 1 for size in sizes)


def channels_of(layer: Any, shape: Shape) -> int:
    """The channels of what goes into or comes out of a layer, of this shape; 0 where there are none or that is open."""
    return (shape[_channel_axis(layer, shape)] or 0) if len(shape) > 1 else 0


def _spatial(layer: Any, shape: Shape) -> Shape:
    axis = _channel_axis(layer, shape)
    return (*shape[1:axis], *shape[axis + 1 :])


def _channel_axis(layer: Any, shape: Shape) -> int:
    return 1 if getattr(layer, "data_format", None) == "channels_first" else len(shape) - 1


def _weights(layer: Any) -> int:
    """Number of the weights in the kernels of a layer."""
    names = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel")
    kernels = (getattr(layer, name, None) for name in names)
    return sum(math.prod(kernel.shape) for kernel in kernels if kernel is not None)


def _dense(layer: Any, shape: Shape) -> int:
    return _weights(layer) * _product(shape[1:-1])


def _einsum(layer: Any, shape: Shape) -> int:
    source, kernel = layer.equation.split("->")[0].replace(" ", "").split(",")
    before, _, after = source.partition("...")
    axes = [*before, *"." * (len(shape) - len(before) - len(after)), *after]
    return _weights(layer) * _product(
        size for axis, size in list(zip(axes, shape, strict=True))[1:] if axis not in kernel
    )


def _convolution(layer: Any, shape: Shape) -> int:
    """Each weight is used once for each position of the output."""
    return _weights(layer) * _product(_spatial(layer, tuple(layer.compute_output_shape(shape))))


def _transposed(layer: Any, shape: Shape) -> int:
    """Each weight is used once for each position of the input."""
    return _weights(layer) * _product(_spatial(layer, shape))


def _locally_connected(layer: Any, shape: Shape) -> int:
    """Each position of the output has weights of its own, which not all implementations store alone."""
    positions = _product(_spatial(layer, tuple(layer.compute_output_shape(shape))))
    return positions * math.prod(layer.kernel_size) * channels_of(layer, shape) * layer.filters


def _cell(layer: Any, shape: Shape) -> int:
    return _weights(layer)


def _cells(layer: Any, shape: Shape) -> int | None:
    return _total(_count(cell, shape) for cell in layer.cells)


def _recurrent(layer: Any, shape: Shape) -> int | None:
    step = _count(layer.cell, (shape[0], *shape[2:]))
    steps = shape[0 if getattr(layer, "time_major", False) else 1]
    return None if step is None else step * (steps or 1)


def _recurrent_convolution(layer: Any, shape: Shape) -> int:
    output = layer.compute_output_shape(shape)
    output = tuple(output[0] if layer.return_state else output)
    step = (output[0], *output[2:]) if layer.return_sequences else output
    return _weights(layer.cell) * _product(_spatial(layer, step)) * (shape[1] or 1)


def _both_directions(layer: Any, shape: Shape) -> int | None:
    return _total(_count(part, shape) for part in (layer.forward_layer, layer.backward_layer))


def _time_distributed(layer: Any, shape: Shape) -> int | None:
    step = _count(layer.layer, (shape[0], *shape[2:]))
    return None if step is None else step * (shape[1] or 1)


def _wrapped(layer: Any, shape: Shape) -> int | None:
    return _count(layer.layer, shape)


def _attention(call: Call) -> int:
    given = {**dict(zip(("query", "value", "key"), call.args, strict=False)), **call.kwargs}
    query, value = given["query"], given["value"]
    key = value if given.get("key") is None else given["key"]
    sources = {"query": query, "key": key, "value": value, "gate": query, "output": query}
    dense = {name: getattr(call.layer, f"_{name}_dense", None) for name in sources}
    return sum(
        _weights(layer) * _product(sources[name].shape[1:-1]) for name, layer in dense.items() if layer is not None
    )


_ATTENTION = ("MultiHeadAttention", "GroupedQueryAttention")

_VALUE_BY_VALUE = (
    "Embedding ReversibleEmbedding PReLU BatchNormalization LayerNormalization GroupNormalization RMSNormalization "
    "UnitNormalization Normalization"
).split()
"""Layers of Keras with weights that may be matrices, but multiply none."""

_COUNTS: dict[str, Callable[[Any, Shape], int | None]] = {
    "Dense": _dense,
    "EinsumDense": _einsum,
    **{f"{kind}Conv{rank}D": _convolution for kind in ("", "Depthwise", "Separable") for rank in (1, 2, 3)},
    **{f"Conv{rank}DTranspose": _transposed for rank in (1, 2, 3)},
    **{f"LocallyConnected{rank}D": _locally_connected for rank in (1, 2)},
    **dict.fromkeys(("SimpleRNNCell", "GRUCell", "LSTMCell"), _cell),
    "StackedRNNCells": _cells,
    **dict.fromkeys(("RNN", "SimpleRNN", "GRU", "LSTM"), _recurrent),
    **{f"ConvLSTM{rank}D": _recurrent_convolution for rank in (1, 2, 3)},
    "Bidirectional": _both_directions,
    "TimeDistributed": _time_distributed,
    "SpectralNormalization": _wrapped,
}
"""By class of a Keras layer."""
