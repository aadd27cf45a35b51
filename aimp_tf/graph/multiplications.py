"""How many multiplications with weights the layers of Keras take, whether or not channels can be seen through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.attention import ATTENTION, given_to, projections
from aimp_tf.compat.functional import function_name, is_function
from aimp_tf.compat.models import is_keras_own
from aimp_tf.graph.einsum import letters_of
from aimp_tf.graph.model_graph import Call, ModelGraph, Tensor
from aimp_tf.graph.opening import look_into
from aimp_tf.selection.channel_layout import Product

Shape = tuple[int | None, ...]


Part = tuple[Any, int]
"""A kernel, and how many multiplications with it a call takes for one example."""


def multiply_adds(call: Call) -> int | None:
    """Multiplications of weights with what flows through a layer in one call, for one example.

    Counted are matrix products, convolutions and projections: of recurrent layers in all steps, of attention those of
    query, key, value and output. Products of two activations, such as attention scores, are none with weights; scales
    of normalisations and the like, value by value, are not counted; look-ups multiply nothing. Axes of open size count
    as 1.

    Returns:
        Their number; None where a layer holds matrices of weights, but what it does with them is not known.
    """
    parts = products(call)
    return None if parts is None else sum(total for _, total in parts)


def products(call: Call) -> list[Part] | None:
    """As `multiply_adds`, kernel by kernel."""
    layer = call.layer
    kind = type(layer).__name__
    if is_keras_own(type(layer)):
        if kind in ATTENTION:
            return _attention(call)
        if kind == "ReversibleEmbedding" and (call.kwargs.get("reverse") or True in call.args[1:]):
            return [_part(layer.embeddings, _product(call.inputs[0].shape[1:-1]))]
    parts = _parts(layer, call.inputs[0].shape if call.inputs else ())
    return _of_its_parts(call) if parts is None else parts


def _of_its_parts(call: Call) -> list[Part] | None:
    """As `products`, of a layer that is made of others and may hold weights of its own, but multiplies no matrices."""
    try:
        within = look_into(call.layer, call.args, call.kwargs, Tensor)
        calls = () if within is None else ModelGraph.of(within).calls
    except Exception:  # Whatever becomes of a layer of one's own that is looked into.
        return None
    seen = {id(weight) for each in calls for weight in (*_matrices_given(each), *getattr(each.layer, "weights", ()))}
    matrices = (weight for weight in call.layer.weights if len(weight.shape) > 1)
    if any(id(weight) not in seen for weight in matrices) and (not calls or any(map(_may_hold_a_matrix, calls))):
        return None
    if any(map(_may_multiply_a_matrix, calls)):
        return None
    return _all_of(map(products, calls))


def _may_hold_a_matrix(call: Call) -> bool:
    """Whether a call does what a function of the user's says, which may know weights that it is not given."""
    functions = any(map(callable, tf.nest.flatten((call.args, dict(call.kwargs)))))
    return functions or type(call.layer).__name__ == "Lambda"


def _matrices_given(call: Call) -> list[Any]:
    """The arrays and variables of two axes or more that a call is given."""
    given = (leaf for leaf in tf.nest.flatten((call.args, dict(call.kwargs))) if not isinstance(leaf, Tensor))
    return [leaf for leaf in given if len(getattr(leaf, "shape", ())) > 1 and tf.as_dtype(leaf.dtype).is_floating]


def _may_multiply_a_matrix(call: Call) -> bool:
    """Whether a call that is given a matrix may do more than take values of it."""
    if not _matrices_given(call):
        return False
    name = function_name(call.layer) if is_function(call.layer) else ""
    entries, given = (max(_product(each.shape[1:]) for each in some) for some in (call.outputs, call.inputs))
    return name not in _WITHOUT_PRODUCTS and (name not in ("multiply", "divide") or entries > given)


def by_path(
    calls: Iterable[Call],
    shapes: Mapping[str, tuple[int, ...]],
    path_of: Callable[[Call, Any], str | None],
    places_of: Callable[[Call], Iterable[np.ndarray]] = lambda call: (),
) -> tuple[list[Product], int]:
    """What calls multiply for one example, of the kernels among some variables, and how much of all others.

    Args:
        calls: The calls.
        shapes: Path -> shape of these variables.
        path_of: Gives the path of a kernel in a call; None where it counts among the others.
        places_of: Gives the places of a call, as in `Product`.
    """
    found, others = [], 0
    for call in calls:
        places = tuple(units for units in places_of(call) if (units >= 0).any())
        times = math.prod(map(len, places))
        for kernel, total in products(call) or ():
            path = path_of(call, kernel)
            if path is not None and path in shapes:
                found.append(Product(path, total // (math.prod(shapes[path]) * times), places))
            elif places:
                found.append(Product(None, total // times, places))
            else:
                others += total
    return found, others


def _parts(layer: Any, shape: Shape) -> list[Part] | None:
    """As `products`, for an input of this shape."""
    kind = type(layer).__name__
    if is_keras_own(type(layer)):
        if kind in _VALUE_BY_VALUE:
            return []
        if kind in _TIMES:
            return _kernels(layer, _TIMES[kind](layer, shape))
        if kind in _COUNTS:
            return _COUNTS[kind](layer, shape)
    if not any(len(weight.shape) > 1 for weight in getattr(layer, "weights", ())):
        return []
    try:
        graph = ModelGraph.of(layer)
    except (TypeError, ValueError):  # No model, or a subclassed one.
        return None
    return _all_of(map(products, graph.calls))


def _all_of(lists: Iterable[list[Part] | None]) -> list[Part] | None:
    """All parts; None if any are not known."""
    found: list[Part] = []
    for parts in lists:
        if parts is None:
            return None
        found += parts
    return found


def _part(kernel: Any, times: int) -> Part:
    return kernel, math.prod(kernel.shape) * times


def _product(sizes: Iterable[int | None]) -> int:
    return math.prod(size or 1 for size in sizes)


def channels_of(layer: Any, shape: Shape) -> int:
    """The channels of what goes into or comes out of a layer, of this shape; 0 where there are none or that is open."""
    return (shape[_channel_axis(layer, shape)] or 0) if len(shape) > 1 else 0


def _positions(layer: Any, shape: Shape) -> int:
    """The number of positions of what goes into or comes out of a layer, of this shape."""
    axis = _channel_axis(layer, shape)
    return _product((*shape[1:axis], *shape[axis + 1 :]))


def _positions_made(layer: Any, shape: Shape) -> int:
    return _positions(layer, tuple(layer.compute_output_shape(shape)))


def _channel_axis(layer: Any, shape: Shape) -> int:
    return 1 if getattr(layer, "data_format", None) == "channels_first" else len(shape) - 1


def _kernels(layer: Any, times: int) -> list[Part]:
    """The kernels of a layer, each entry of which is used so many times."""
    names = ("kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel")
    kernels = (getattr(layer, name, None) for name in names)
    return [_part(kernel, times) for kernel in kernels if kernel is not None]


def _einsum(layer: Any, shape: Shape) -> int:
    source, kernel, _ = letters_of(layer.equation, len(shape))
    return _product(size for letter, size in list(zip(source, shape, strict=True))[1:] if letter not in kernel)


def _locally_connected(layer: Any, shape: Shape) -> list[Part]:
    """Each position of the output has weights of its own, which not all implementations store alone."""
    of_position = math.prod(layer.kernel_size) * channels_of(layer, shape) * layer.filters
    return [(layer.kernel, _positions_made(layer, shape) * of_position)]


def _in_each_step(within: Any, shape: Shape, axis: int = 1) -> list[Part] | None:
    """The parts of a layer that is called in each step along an axis."""
    step = _parts(within, (shape[0], *shape[2:]))
    return None if step is None else [(kernel, total * (shape[axis] or 1)) for kernel, total in step]


def _recurrent(layer: Any, shape: Shape) -> list[Part] | None:
    return _in_each_step(layer.cell, shape, 0 if getattr(layer, "time_major", False) else 1)


def _recurrent_convolution(layer: Any, shape: Shape) -> list[Part]:
    output = layer.compute_output_shape(shape)
    output = tuple(output[0] if layer.return_state else output)
    step = (output[0], *output[2:]) if layer.return_sequences else output
    return _kernels(layer.cell, _positions(layer, step) * (shape[1] or 1))


def _attention(call: Call) -> list[Part]:
    given = given_to(call.args, dict(call.kwargs))
    return [
        part
        for name, dense in projections(call.layer).items()
        for part in _kernels(dense, _product(given[name].shape[1:-1]))
    ]


_VALUE_BY_VALUE = (
    "Embedding ReversibleEmbedding PReLU BatchNormalization LayerNormalization GroupNormalization RMSNormalization "
    "UnitNormalization Normalization"
).split()
"""Layers of Keras with weights that may be matrices, but multiply none."""

_WITHOUT_PRODUCTS = (
    "add subtract maximum minimum where take getitem concatenate concat broadcastto broadcast_to tile "
    "repeat cast expanddims expand_dims reshape softmax"
).split()
"""Functions that multiply no matrices that they are given, as both generations call them."""

_TIMES: dict[str, Callable[[Any, Shape], int]] = {
    "Dense": lambda layer, shape: _product(shape[1:-1]),
    "EinsumDense": _einsum,
    **{f"{kind}Conv{rank}D": _positions_made for kind in ("", "Depthwise", "Separable") for rank in (1, 2, 3)},
    **{f"Conv{rank}DTranspose": _positions for rank in (1, 2, 3)},
    **dict.fromkeys(("SimpleRNNCell", "GRUCell", "LSTMCell"), lambda layer, shape: 1),
}
"""Class of a Keras layer -> how often each entry of its kernels is used, for an input of this shape."""

_COUNTS: dict[str, Callable[[Any, Shape], list[Part] | None]] = {
    **{f"LocallyConnected{rank}D": _locally_connected for rank in (1, 2)},
    **dict.fromkeys(("RNN", "SimpleRNN", "GRU", "LSTM"), _recurrent),
    **{f"ConvLSTM{rank}D": _recurrent_convolution for rank in (1, 2, 3)},
    "StackedRNNCells": lambda layer, shape: _all_of(_parts(cell, shape) for cell in layer.cells),
    "Bidirectional": lambda layer, shape: _all_of(
        _parts(part, shape) for part in (layer.forward_layer, layer.backward_layer)
    ),
    "TimeDistributed": lambda layer, shape: _in_each_step(layer.layer, shape),
    "SpectralNormalization": lambda layer, shape: _parts(layer.layer, shape),
}
"""Class of another Keras layer -> `_parts` of it."""
