"""What kernels multiply, as rows: of Dense layers their inputs, of convolutions the windows that they look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import is_keras_own
from aimp_tf.graph.rule_table import is_bordered
from aimp_tf.selection.grams import MOST_ROWS

_POSITIONS = 16
"""So many positions are looked at of an example at most."""


def has_rows(layer: Any) -> bool:
    """Whether the layer gives, at each position, a row times its kernel as a matrix of not too many rows: Dense layers
    and plain convolutions, unless a subclass computes otherwise."""
    convolves = hasattr(layer, "kernel_size") and "Transpose" not in type(layer).__name__
    known = has_channels_last(layer) and (convolves or hasattr(layer, "units")) and getattr(layer, "groups", 1) == 1
    methods = (getattr(type(layer), name, None) for name in ("call", "convolution_op"))
    known = known and all(method is None or is_keras_own(method) for method in methods)
    return known and math.prod(layer.kernel.shape[:-1]) <= MOST_ROWS


def has_channels_last(layer: Any) -> bool:
    """Whether a layer that multiplies its input by a kernel reads channels that are the last axis of it: all but
    convolutions that have their channels first."""
    return getattr(layer, "data_format", None) in (None, "channels_last")


def takes_intercept(layer: Any) -> bool:
    """Whether its bias can hold what an input is on average: it has one, and sees no zeros beyond borders."""
    return bool(layer.use_bias) and not is_bordered(layer)


def sampled_rows(layer: Any, inputs: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """What the kernel of a layer that `has_rows` multiplies at some positions, the same of each example.

    Args:
        layer: The layer.
        inputs: (examples, ..., channels), of known sizes but for the first.
        seed: Draws the positions, with others put back, where there are more than are taken; int (2,).

    Returns:
        float32 (rows, kernel entries of one output).
    """
    rank, channels = len(inputs.shape) - 2, inputs.shape[-1]
    sizes, strides, dilations = (
        tuple(getattr(layer, name, (1,) * rank)) for name in ("kernel_size", "strides", "dilation_rate")
    )
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]
    inputs, counts = _padded(tf.cast(inputs, tf.float32), getattr(layer, "padding", "valid"), reach, strides)
    total = math.prod(counts)
    chosen = tf.range(total)
    if total > _POSITIONS:
        chosen = tf.random.stateless_uniform([_POSITIONS], seed, 0, total, tf.int32)
    corners = tf.transpose(tf.unravel_index(chosen, counts)) * strides if counts else tf.zeros([1, 0], tf.int32)
    taps = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), axis=-1) if sizes else np.zeros([1, 0])
    places = corners[:, tf.newaxis] + np.asarray(taps * np.asarray(dilations, int), np.int32)  # (positions, taps, axes)
    steps = [math.prod(inputs.shape[axis + 2 : -1]) for axis in range(rank)]
    flat = tf.reduce_sum(places * np.asarray(steps, np.int32), axis=-1)
    spread = tf.reshape(inputs, [-1, math.prod(inputs.shape[1:-1]), channels])
    return tf.reshape(tf.gather(spread, flat, axis=1), [-1, math.prod(sizes) * channels])


def _padded(
    inputs: tf.Tensor, padding: str, reach: Sequence[int], strides: Sequence[int]
) -> tuple[tf.Tensor, list[int]]:
    """The inputs with the zeros that a convolution sees beyond their borders, and how many positions it has."""
    sizes = list(inputs.shape[1:-1])
    if padding == "valid":
        counts = [(size - far) // stride + 1 for size, far, stride in zip(sizes, reach, strides, strict=True)]
        return inputs, counts
    counts = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
    missing = [
        max(0, (count - 1) * stride + far - size)
        for count, stride, far, size in zip(counts, strides, reach, sizes, strict=True)
    ]
    before = [far - 1 if padding == "causal" else lack // 2 for lack, far in zip(missing, reach, strict=True)]
    around = [(first, max(0, lack - first)) for first, lack in zip(before, missing, strict=True)]
    return tf.pad(inputs, [(0, 0), *around, (0, 0)]), counts
