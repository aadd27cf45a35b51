"""What kernels multiply, as rows: of Dense layers their inputs, of convolutions the windows that they look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.graph.rule_table import is_bordered

_POSITIONS = 16
"""So many positions are looked at of an example at most."""


def has_rows(layer: Any) -> bool:
    """Whether the layer gives, at each position, a row times its kernel as a matrix: Dense and plain convolutions."""
    convolves = hasattr(layer, "kernel_size") and "Transpose" not in type(layer).__name__
    return has_channels_last(layer) and (convolves or hasattr(layer, "units")) and getattr(layer, "groups", 1) == 1


def has_channels_last(layer: Any) -> bool:
    """Whether the layer reads channels that are the last axis of its input: Dense and convolutions, but for those that
    have their channels first."""
    known = hasattr(layer, "kernel_size") or hasattr(layer, "units")
    return known and getattr(layer, "data_format", None) in (None, "channels_last")


def takes_intercept(layer: Any) -> bool:
    """Whether its bias can hold what an input is on average: it has one, and sees no zeros beyond borders."""
    return bool(layer.use_bias) and not is_bordered(layer)


def sampled_rows(layer: Any, inputs: tf.Tensor, generator: np.random.Generator) -> tf.Tensor:
    """What the kernel of a layer that `has_rows` multiplies at some positions, the same of each example.

    Args:
        layer: The layer.
        inputs: (examples, ..., channels).
        generator: Draws the positions.

    Returns:
        float32 (rows, kernel entries of one output).
    """
    rank = len(inputs.shape) - 2
    sizes, strides, dilations = (
        tuple(getattr(layer, name, (1,) * rank)) for name in ("kernel_size", "strides", "dilation_rate")
    )
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(sizes, dilations, strict=True)]
    inputs, counts = _padded(tf.cast(inputs, tf.float32), getattr(layer, "padding", "valid"), reach, strides)
    total = math.prod(counts)
    chosen = np.sort(generator.choice(total, min(total, _POSITIONS), replace=False))
    windows = []
    for position in zip(*np.unravel_index(chosen, counts), strict=True) if counts else [()]:
        starts = [int(at) * stride for at, stride in zip(position, strides, strict=True)]
        slices = [slice(start, start + far, by) for start, far, by in zip(starts, reach, dilations, strict=True)]
        windows.append(tf.reshape(inputs[(slice(None), *slices)], (inputs.shape[0], -1)))
    return tf.concat(windows, axis=0)


def _padded(
    inputs: tf.Tensor, padding: str, reach: Sequence[int], strides: Sequence[int]
) -> tuple[tf.Tensor, list[int]]:
    """The inputs with the zeros that a convolution sees beyond their borders, and how many positions it has."""
    sizes = [int(size) for size in inputs.shape[1:-1]]
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
