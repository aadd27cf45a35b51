"""The kernels of a masked model that training changes, and how they lie."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from aimp_tf.compat.variables import key_of
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.channels import ChannelUnits


def trained_variables(masked: MaskedModel) -> dict[str, Any]:
    """Path -> variable, of those with masks that training changes by gradients."""
    # Under mixed precision, layers of tf_keras hold others that stand for the same memory.
    trained = {key_of(variable) for variable in masked.original.trainable_weights}
    return {path: each for path, each in masked.variables.items() if key_of(each) in trained}


def input_axis(masked: MaskedModel, path: str) -> int | None:
    """The axis of a prunable variable that counts the inputs of an output; None where that is not known."""
    units = masked.units
    return units.reads.get(path) if isinstance(units, ChannelUnits) else units.axes.get(path)


def arranged(kernel: tf.Tensor, axis: int | None) -> tf.Tensor:
    """A kernel as (windows, inputs, outputs), whatever its layer: what lies behind the axis of its inputs is outputs.

    In a transposed convolution, whose inputs come last, outputs lie before them. Where no axis counts inputs, the last
    axis but one is taken for it.
    """
    shape = kernel.shape.as_list()
    if axis == len(shape) - 1 and axis > 0:
        kernel = tf.linalg.matrix_transpose(kernel)
        shape, axis = kernel.shape.as_list(), len(shape) - 2
    axis = len(shape) - 2 if axis is None else axis
    inputs = shape[axis] if axis >= 0 else 1
    return tf.reshape(kernel, [-1, inputs, math.prod(shape[axis + 1 :])])


def rearranged(kernel: tf.Tensor, axis: int | None, shape: Any) -> tf.Tensor:
    """A kernel of a shape again, as `arranged` gave it."""
    sizes = [int(size) for size in shape]
    if axis == len(sizes) - 1 and axis > 0:
        return tf.linalg.matrix_transpose(tf.reshape(kernel, [*sizes[:-2], sizes[-1], sizes[-2]]))
    return tf.reshape(kernel, sizes)
