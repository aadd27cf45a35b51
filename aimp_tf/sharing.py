"""share_weights(): surviving weights take a few values, which coded files tell once."""

from __future__ import annotations

import logging
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from aimp_tf.coding.levels import INITIAL, kmeans, stochastic
from aimp_tf.coding.tensors import MOST_LEVELS, levels_of
from aimp_tf.compat.models import finalize, is_keras_own, layers_of, model_of
from aimp_tf.compat.variables import key_of
from aimp_tf.config.texts import check_whole, is_number
from aimp_tf.graph.copies import Copies, rebuilt
from aimp_tf.graph.model_graph import Call, ModelGraph
from aimp_tf.graph.prunable import named_weights, prunable_variables, select
from aimp_tf.masking import check_plain

logger = logging.getLogger(__name__)

_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def share_weights(
    model: Any,
    levels: int | None = None,
    *,
    bits: int | None = None,
    per: str = "layer",
    method: str = "kmeans",
    initial: str = "linear",
    centroids: str = "float32",
    others: str = "float32",
    fold_normalization: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> Any:
    """A copy of a pruned model whose surviving weights take few values. Zeros stay zero.

    The model is as large as before in all formats but "coded", which tells each value once and each weight as a code:
    3 to 4 bits in place of 32. `fine_tune(model, x, y, epochs=3, weights="shared")` trains the values on, and keeps
    weights that share one together.

    Args:
        model: A built model of either generation of Keras, without masks, whose `call` can be traced, or a
            `PruningResult`. It is not changed.
        levels: How many values other than zero, 2 to 256; 16 if this and `bits` are None.
        bits: The same as its logarithm, 1 to 8: 4 are 16 levels.
        per: Which weights have values of their own: those of each "layer", or of the "model", all together.
        method: How values are found: "kmeans", by Lloyd's iterations; or "stochastic", quantiles, between which each
            weight takes one by chance so that its mean stays what it is.
        initial: Where the iterations begin: "linear", evenly between the least and the largest weight, or "density",
            with equally many weights each. The first gives large weights more values, of which there are few.
        centroids: "float32", "float16" or "bfloat16": what the values are rounded to, and coded files store them in.
        others: The same of all other float32 weights: biases, normalisation, and kernels that are left out.
        fold_normalization: Whether what BatchNormalization has learnt of means and variances goes into its scale and
            shift, so that coded files tell two numbers a channel in place of four. The model gives the same in use; to
            be trained on, it is another one, so this is for the last call.
        include: fnmatch patterns on paths of kernels, such as "block/*/kernel"; () is all of them.
        exclude: The same, of kernels that keep their values.
        seed: Of the chances of "stochastic".

    Returns:
        A functional model of the same generation, compiled with the same loss and metrics and a new optimizer if
        `model` is compiled and these can be made from their configs. A kernel with no more values than `levels` keeps
        them, but for rounding.

    Raises:
        TypeError, ValueError: `model` is not a Keras model, carries masks, is not built or cannot be copied; a setting
            is none of those above; a pattern matches nothing; no kernel has float32 weights, which alone share values;
            or a weight is not finite, or too large for what it is rounded to.

    References:
        Han, Mao and Dally, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
        Huffman Coding", ICLR 2016, section 3.
        Marinò et al., "Compact representations of convolutional neural networks via weight pruning and quantization",
        arXiv:2108.12704, of "stochastic".

    Example:
        ```python
        small = aimp_tf.share_weights(result, levels=16, centroids="float16", others="float16")
        aimp_tf.fine_tune(small, x, y, epochs=3, weights="shared")
        half = {"centroids": "float16", "others": "float16", "fold_normalization": True}
        aimp_tf.export(aimp_tf.share_weights(small, levels=16, **half), "pruned.coded")
        ```
    """
    model = model_of(model)
    check_plain(model)
    count = _count(levels, bits)
    _check(fold_normalization, seed, per=per, method=method, initial=initial, centroids=centroids, others=others)
    chosen = select(prunable_variables(model), include, exclude)
    copy, copied = _copied(model)
    if fold_normalization:
        _fold_statistics(copy)
    weights = named_weights(copy)
    arrays = {path: np.asarray(weight) for path, weight in weights.items()}
    places = {copied.get(key_of(variable)) for variable in chosen.values()}
    kernels = {
        path: arrays[path]
        for path, weight in weights.items()
        if key_of(weight) in places and arrays[path].dtype == np.float32
    }
    if not kernels:
        raise ValueError(
            f"No kernel of {model.name!r} that is chosen has float32 weights, which alone can share values."
        )
    for path, kernel in kernels.items():
        if not np.isfinite(kernel).all():
            raise ValueError(f"{path} has weights that are not finite.")
    generator = np.random.default_rng(seed)
    for group in [kernels] if per == "model" else [{path: kernels[path]} for path in kernels]:
        arrays |= _shared(group, count, method, initial, generator)
    for path in kernels:
        rounded = _rounded("centroids", path, arrays[path], centroids)
        # Of a survivor nothing becomes zero.
        tiny = np.copysign(np.float32(ml_dtypes.finfo(_DTYPES[centroids]).tiny), arrays[path])
        arrays[path] = np.where((rounded == 0) & (arrays[path] != 0), tiny, rounded)
    for path in arrays.keys() - kernels.keys():
        arrays[path] = _rounded("others", path, arrays[path], others)
    for path, weight in weights.items():
        weight.assign(arrays[path])
    finalize(layers_of(copy))
    found = len(levels_of(np.concatenate([arrays[path].reshape(-1) for path in kernels])))
    logger.info("%d kernels of %s have %d values other than zero.", len(kernels), model.name, found)
    return copy


def _count(levels: int | None, bits: int | None) -> int:
    if levels is not None and bits is not None:
        raise ValueError(f"levels={levels} and bits={bits} say the same: leave out one of them.")
    for name, value, low, high in (("levels", levels, 2, MOST_LEVELS), ("bits", bits, 1, 8)):
        if value is not None and not is_number(value, numbers.Integral):
            raise TypeError(f"{name} must be a whole number; got {value!r}.")
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} must be {low} to {high}; got {value}.")
    return levels or 2 ** (bits or 4)


def _check(fold_normalization: bool, seed: int, **settings: str) -> None:
    if not isinstance(fold_normalization, bool):
        raise TypeError(f"fold_normalization must be True or False; got {fold_normalization!r}.")
    check_whole("seed", seed, 0)
    choices = {
        "per": ("layer", "model"),
        "method": ("kmeans", "stochastic"),
        "initial": INITIAL,
        **dict.fromkeys(("centroids", "others"), tuple(_DTYPES)),
    }
    for name, value in settings.items():
        if value not in choices[name]:
            raise ValueError(f"{name} must be one of {', '.join(choices[name])}; got {value!r}.")


def _copied(model: Any) -> tuple[Any, dict[int, int]]:
    """A copy of a model, whose nested models are opened, and the key of each variable -> that of its copy."""
    pairs: list[tuple[Any, Any]] = []

    def layer_for(call: Call, copies: Copies) -> Any:
        pairs.append((call.layer, copies.of(call)))
        return pairs[-1][1]

    copy, copies = rebuilt(ModelGraph.of(model), layer_for)
    if copies.shared:
        names = ", ".join(f"{name} ({kind})" for name, kind in copies.shared.items())
        raise ValueError(
            f"Layers that cannot be made from their configs cannot be copied: {names}. A layer of your own must give "
            "all arguments of its constructor in get_config."
        )
    return copy, {
        key_of(old): key_of(new)
        for pair in pairs
        for old, new in zip(*(getattr(layer, "weights", ()) for layer in pair), strict=True)
    }


def _fold_statistics(model: Any) -> None:
    """Lets each BatchNormalization of a built model give the same, in use, with means of 0 and variances of 1.

    Those without a scale or a shift stay as they are, and so do classes that are not Keras' own.
    """
    for layer in filter(_can_fold, layers_of(model)):
        gamma, beta, mean, variance = (
            np.asarray(weight, np.float64)
            for weight in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        )
        scale = gamma / np.sqrt(variance + layer.epsilon)
        layer.gamma.assign(scale * np.sqrt(1 + layer.epsilon))
        layer.beta.assign(beta - mean * scale)
        layer.moving_mean.assign(np.zeros_like(mean))
        layer.moving_variance.assign(np.ones_like(variance))


def _can_fold(layer: Any) -> bool:
    if "BatchNormalization" not in type(layer).__name__ or not is_keras_own(type(layer)):
        return False
    return layer.scale and layer.center and not getattr(layer, "renorm", False)


def _shared(
    kernels: Mapping[str, np.ndarray], count: int, method: str, initial: str, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Kernels whose nonzero weights take so many values, the same ones in all of them, none of them zero."""
    weights = np.concatenate([kernel[kernel != 0] for kernel in kernels.values()])
    values = np.unique(weights)
    if len(values) <= count:
        levels, places = values.astype(np.float64), np.searchsorted(values, weights)
    elif method == "kmeans":
        levels, places = kmeans(weights, count, initial)
    else:
        levels, places = stochastic(weights, count, generator)
    parts = np.split(levels[places], np.cumsum([np.count_nonzero(kernel) for kernel in kernels.values()])[:-1])
    shared = {path: np.zeros_like(kernel) for path, kernel in kernels.items()}
    for array, kernel, part in zip(shared.values(), kernels.values(), parts, strict=True):
        array[kernel != 0] = part
    return shared


def _rounded(setting: str, path: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """An array rounded to a dtype, if it is a float32 one."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        found = array.astype(_DTYPES[dtype]).astype(np.float32)
    if not np.array_equal(np.isfinite(found), np.isfinite(array)):
        raise ValueError(f"{path} has values beyond {dtype}: give {setting}='bfloat16', or 'float32'.")
    return found
