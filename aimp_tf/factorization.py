"""factorize(): Dense and convolution layers as two layers each, between which the channels are ranks; and back."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.compat.models import is_keras_own, layers_of, model_of
from aimp_tf.compat.variables import key_of
from aimp_tf.graph.copies import Copies, rebuilt
from aimp_tf.graph.model_graph import Call, ModelGraph
from aimp_tf.graph.prunable import prunable_variables, readers, reasons_text, select
from aimp_tf.masking import check_plain

logger = logging.getLogger(__name__)

_FACTOR = "_factor"
"""What ends the name of the first layer of two; the second has the name of the whole one."""

_KINDS = ("Dense", "Conv1D", "Conv2D", "Conv3D")


def factorize(model: Any, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Any:
    """A model that computes the same with two layers in place of each Dense and convolution layer: ranks are channels.

    A kernel of C inputs, k positions (1 for Dense) and N outputs is a matrix W of k * C rows and N columns, whose rank
    is at most r = min(k * C, N). With its singular values S,

        W = U S V' = (U sqrt(S)) (sqrt(S) V'),

    and these two are kernels of two layers. The first has r channels, the kernel size, strides, padding and dilation of
    the whole one, no bias and no activation; the second is a Dense layer or a 1x1 convolution with its bias and
    activation. With R channels between them they take R * (k * C + N) multiplications in each position instead of
    k * C * N: more at full rank, less where R < k * C * N / (k * C + N). Half of the sum of squares of both kernels is
    the nuclear norm of W, the sum of its singular values, and no other two factors of W have less.

    Factorised are Keras' own Dense, Conv1D, Conv2D and Conv3D layers, also in nested models, which are opened; those
    called more than once stay shared. All other kernels stay whole, as do convolutions in groups, kernels of a single
    row or column, kernels with a regularizer or a constraint, which cannot be that of two factors, and factors. What
    the patterns do not leave out, and stays whole, is logged at level INFO with the reason.

    Args:
        model: A built model of either generation of Keras, without masks, whose `call` can be traced, compiled or not,
            or a `PruningResult`. It is not changed.
        include: fnmatch patterns on the paths of kernels, such as "block/*/kernel"; () is all of them.
        exclude: The same, of kernels that stay whole.

    Returns:
        A functional model of the same generation with the inputs and outputs of `model`. The second layer has the name
        of the whole one, and the first that name and "_factor"; both have its dtype policy, and are frozen if it is.
        Outputs differ by rounding alone: factors are computed in float64, and stored in the dtype of the kernel. It is
        compiled with the same loss and metrics and a new optimizer if `model` is compiled and these can be made from
        their configs. Layers that cannot be made from theirs share their weights with `model`: train either, and they
        change in both. They are logged at level INFO.

    Raises:
        TypeError: `model` is not a Keras model, or patterns are no texts in a tuple or the like.
        ValueError: The model carries masks, is not built, cannot be traced or has a `train_step` of its own; a
            pattern matches no kernel, or one of `include` none that can be factorised; or none at all can be.

    Example:
        ```python
        factors = aimp_tf.factorize(model, exclude=("logits/*",))
        settings = {"granularity": "channel", "budget": "flops", "target_sparsity": 0.6, "epochs": 9}
        result = aimp_tf.prune(factors, x, y, include=("*_factor/kernel",), **settings)
        small = aimp_tf.merge_factors(result.compact())
        ```

    References:
        Srebro, Rennie and Jaakkola, "Maximum-Margin Matrix Factorization", NIPS 17, 2005, of the nuclear norm.
        Ran et al., "Exploiting Elasticity in Tensor Ranks for Compressing Neural Networks", arXiv:2105.04218, of a
        search for ranks by it.
    """
    model = model_of(model)
    check_plain(model)
    graph = ModelGraph.of(model)
    if not is_keras_own(type(model).train_step):
        raise ValueError(
            f"The model {model.name!r} has a train_step of its own, that of its class {type(model).__name__}, which a "
            "new model would not have. Factorise keras.Model(model.inputs, model.outputs), and train that instead."
        )
    chosen = _chosen(graph, include, exclude)

    def layer_for(call: Call, copies: Copies) -> Any:
        return _factors(call, copies) if id(call.layer) in chosen else copies.of(call)

    factorized, _ = rebuilt(graph, layer_for)
    sizes = model.count_params(), factorized.count_params()
    logger.info("Factorised %d layers of %s, from %d to %d parameters.", len(chosen), model.name, *sizes)
    return factorized


def merge_factors(model: Any) -> Any:
    """A model that computes the same with one layer in place of two factors where two do not pay.

    With R channels between them, two layers take R * (k * C + N) multiplications in each position, and as many weights;
    the single one, whose kernel is the product of theirs, takes k * C * N. Where that is no more, it takes their place.
    Factors that pay stay. Two layers are factors if `factorize` may have made them: a Dense layer or a convolution
    "name_factor" without an activation, which the layer "name" alone reads, a Dense layer or a 1x1 convolution.

    Args:
        model: A built functional or Sequential model of either generation of Keras, without masks, or a
            `PruningResult`: what `factorize` gave, be it trained since, compacted, or loaded from a file. It is not
            changed.

    Returns:
        A functional model as that of `factorize`. Nothing is merged where there are no factors.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: It carries masks, is not built, or its `call` cannot be traced.

    Example:
        ```python
        small = aimp_tf.merge_factors(result.compact())
        ```
    """
    model = model_of(model)
    check_plain(model)
    graph = ModelGraph.of(model)
    pairs = _pairs(graph)
    merging = {id(second): first for first, second in pairs if not _pay(first, second)}
    gone = set(map(id, merging.values()))

    def layer_for(call: Call, copies: Copies) -> Any:
        if id(call.layer) in gone:
            return lambda inputs, **_: inputs  # The layer that is called on them next is the merged one.
        first = merging.get(id(call.layer))
        return copies.of(call) if first is None else _merged(call, first, copies)

    merged, _ = rebuilt(graph, layer_for)
    logger.info("Merged %d of %d pairs of factors of %s.", len(merging), len(pairs), model.name)
    return merged


def _pay(first: Any, second: Any) -> bool:
    """Whether two factors take fewer multiplications than a single layer. They work in the same positions."""
    *window, rank = first.kernel.shape
    rows, outputs = math.prod(window), second.kernel.shape[-1]
    return rank * (rows + outputs) < rows * outputs


def _factors(call: Call, copies: Copies) -> Callable[..., Any]:
    """What calls the two layers that take the place of a call's layer."""
    layer = call.layer
    kernel, *bias = layer.get_weights()
    left, singular, right = np.linalg.svd(_matrix(layer), full_matrices=False)
    root = np.sqrt(singular)
    point = _point(layer)
    kernels = [
        (left * root).reshape(*kernel.shape[:-1], len(root)).astype(kernel.dtype),
        (root[:, np.newaxis] * right).reshape(*point.get("kernel_size", ()), *right.shape).astype(kernel.dtype),
    ]
    initial = {"kernel_initializer": "glorot_uniform"}  # That of the whole may fit no other shape.
    inner = {
        "filters" if point else "units": len(root),
        "use_bias": False,
        "activation": None,
        **dict.fromkeys(("bias_regularizer", "bias_constraint", "activity_regularizer")),
    }
    first = copies.of(dataclasses.replace(call, name=call.name + _FACTOR), kernels[:1], **inner, **initial)
    second = copies.of(call, [kernels[1], *bias], **point, **initial)
    return lambda *args, **kwargs: second(first(*args, **kwargs))


def _merged(call: Call, first: Any, copies: Copies) -> Any:
    """The layer with the product of the kernels of two, in the place of a call of the second."""
    second = call.layer
    inner, outer = _matrix(first), _matrix(second)
    weights = [(inner @ outer).reshape(*first.kernel.shape[:-1], outer.shape[-1])]
    use_bias = first.use_bias or second.use_bias
    if use_bias:
        # Compaction gives the first one where it reads constants.
        weights.append(_bias(first) @ outer + _bias(second))
    dtype = second.get_weights()[0].dtype
    window = {name: getattr(first, name) for name in _point(first)}
    return copies.of(call, [weight.astype(dtype) for weight in weights], use_bias=use_bias, **window)


def _matrix(layer: Any) -> np.ndarray:
    """The kernel of a layer as a matrix, float64 (all that an output reads, outputs)."""
    kernel = np.asarray(layer.get_weights()[0], np.float64)
    return kernel.reshape(-1, kernel.shape[-1])


def _bias(layer: Any) -> np.ndarray:
    """The bias of a layer, float64 (outputs,); zeros where it has none."""
    return np.asarray(layer.get_weights()[1], np.float64) if layer.use_bias else np.zeros(layer.kernel.shape[-1])


def _point(layer: Any) -> dict[str, Any]:
    """The fields by which a convolution like this one reads single positions, each of them; none for a Dense layer."""
    ones = (1,) * len(getattr(layer, "kernel_size", ()))
    return {"kernel_size": ones, "strides": ones, "padding": "valid", "dilation_rate": ones} if ones else {}


def _chosen(graph: ModelGraph, include: Sequence[str], exclude: Sequence[str]) -> set[int]:
    """The ids of the layers that are to be factorised. Raises as `factorize`."""
    selected = select(prunable_variables(graph.model), include, exclude)
    layers = {key_of(kernel): layer for kernel, layer in readers(graph.model)}
    found = {path: layers.get(key_of(variable)) for path, variable in selected.items()}
    whole = _why_whole(graph, found)
    for pattern in include or ("*",):
        named = fnmatch.filter(found, pattern)
        if whole.keys() >= set(named):
            of = f"of the pattern {pattern!r} in include" if include else f"of the model {graph.model.name!r}"
            reasons = reasons_text({path: whole[path] for path in named}) or "exclude names them all"
            raise ValueError(f"No kernel {of} can be factorised: {reasons}.")
    if whole:
        logger.info("Left whole: %s.", reasons_text(whole))
    return {id(layer) for path, layer in found.items() if path not in whole}


def _why_whole(graph: ModelGraph, found: Mapping[str, Any]) -> dict[str, str]:
    """Path -> why, of the kernels that cannot be factorised; `found` has the layers."""
    names = {id(call.layer): call.name for call in graph.calls}
    taken = {*names.values(), *(layer.name for layer in layers_of(graph.model))}
    factors = {id(layer) for pair in _pairs(graph) for layer in pair}

    def why(layer: Any) -> str:
        if id(layer) not in names:
            return "not of a Dense or convolution layer that the model itself calls"
        if id(layer) in factors:
            return "a factor already"
        if reason := _why_no_factors(layer, graph.keras):
            return reason
        matrix = _matrix(layer)
        if 1 in matrix.shape:
            return "a single row or column"
        if not np.isfinite(matrix).all():
            return "not finite"
        first = names[id(layer)] + _FACTOR
        return f"there is a layer {first} already" if first in taken else ""

    reasons = {path: why(layer) for path, layer in found.items()}
    return {path: reason for path, reason in reasons.items() if reason}


def _why_no_factors(layer: Any, keras: Any) -> str:
    """Why a layer cannot be, or be made into, factors: for what it is, not for its numbers; "" where it can."""
    if not any(type(layer) is getattr(keras.layers, kind) for kind in _KINDS):
        return f"of the class {type(layer).__name__}"
    if getattr(layer, "groups", 1) != 1:
        return "in groups"
    if len(layer.weights) != 1 + layer.use_bias:
        return "beside further weights, such as those of LoRA"
    own = [name for name in ("kernel_regularizer", "kernel_constraint") if getattr(layer, name) is not None]
    return f"under a {own[0]}, which would not be that of the product of two" if own else ""


def _pairs(graph: ModelGraph) -> list[tuple[Any, Any]]:
    """All pairs of layers of a graph that `factorize` may have made of one."""
    makers = {output: call for call in graph.calls for output in call.outputs}
    pairs = []
    for reading in graph.by_layer.values():
        making = [makers[call.inputs[0]] for call in reading if call.inputs and call.inputs[0] in makers]
        reads = [graph.readers[call.outputs[0]] for call in making]
        if len({id(call.layer) for call in making}) != 1 or any(len(each) > 1 for each in reads):
            continue
        first, second = making[0].layer, reading[0].layer
        if len(making) == len(reading) == len(graph.by_layer[id(first)]) and _are_factors(first, second, graph.keras):
            pairs.append((first, second))
    return pairs


def _are_factors(first: Any, second: Any, keras: Any) -> bool:
    """Whether two layers, of which the second alone reads the first, look like what `factorize` makes."""
    if type(first) is not type(second) or _why_no_factors(first, keras) or _why_no_factors(second, keras):
        return False
    return (
        first.name == second.name + _FACTOR
        and first.activation in (None, keras.activations.linear)
        and first.activity_regularizer is None
        and {*getattr(second, "kernel_size", ()), *getattr(second, "strides", ())} <= {1}
    )
