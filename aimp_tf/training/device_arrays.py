"""Training arrays in the memory of a GPU, or of any other device."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from aimp_tf.compat.step import changed_batches

_KEY = "aimp_tf_positions"


class DeviceArrays:
    """Arrays that are copied to a device once, where each training step gathers its batch.

    Shuffling them then moves the positions of the examples alone from the host to the device. The batches are those of
    `input_pipeline.in_batches`, bit for bit.

    Args:
        arrays: Tensors of numbers, nested, as `input_pipeline.array_positions` gives them.
        positions: The positions of the examples in each batch, from there, too.
        device: Name of the device, that of the model's variables.

    Attributes:
        batches: What to call `fit` on, for a model within `gathering`.

    Raises:
        ValueError: The arrays do not fit into the device's memory.
    """

    def __init__(self, arrays: Any, positions: tf.data.Dataset, device: str) -> None:
        self._device = device
        self._dtypes = tf.nest.map_structure(lambda array: array.dtype, arrays)
        try:
            with tf.device(device):
                self._held = tf.nest.map_structure(_held, arrays)
        # The latter where an array does not fit that is copied there as it is.
        except (tf.errors.ResourceExhaustedError, tf.errors.InternalError) as error:
            raise ValueError(
                f"The training data takes {bytes_of(arrays) / 1e9:.3g} GB, which could not be copied into the memory "
                f"of {device}. Set data_on_device=False, which takes each batch there by itself. The error was: {error}"
            ) from error
        self.batches = positions.map(lambda chosen: {_KEY: chosen}).prefetch(2)

    def gathering(self, model: Any) -> contextlib.AbstractContextManager[None]:
        """What must surround a `fit` of a model on `batches`, and is no harm to one on other data."""
        return changed_batches(model, self._gathered)

    def release(self) -> None:
        """Gives the device's memory back. TensorFlow never lets go of a traced step that had a custom gradient."""
        for held in tf.nest.flatten(self._held):
            held.assign(tf.zeros([0, *held.shape[1:]], held.dtype))

    def in_place_of(self, arrays: Any, positions: tf.data.Dataset) -> DeviceArrays:
        """Others on the same device, which have the memory of these."""
        self.release()
        return DeviceArrays(arrays, positions, self._device)

    def _gathered(self, data: Any) -> Any:
        """The batch that `batches` mean by an element; other data as it is."""
        if not isinstance(data, Mapping) or _KEY not in data:
            return data
        with tf.device(self._device):
            rows = tf.nest.map_structure(lambda held: held.sparse_read(data[_KEY]), self._held)
            return tf.nest.map_structure(_of_dtype, rows, self._dtypes)


def bytes_of(arrays: Any) -> int:
    """The size of tensors, nested."""
    return sum(array.dtype.size * array.shape.num_elements() for array in tf.nest.flatten(arrays))


def _held(array: tf.Tensor) -> tf.Variable:
    """What holds an array. int32 is held as uint32, for TensorFlow keeps int32 on the host."""
    held = _of_dtype(array, tf.uint32 if array.dtype == tf.int32 else array.dtype)
    return tf.Variable(held, trainable=False, shape=[None, *array.shape[1:]])


def _of_dtype(tensor: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The same bits as another dtype, where that is another one: `bitcast` takes no bool."""
    return tensor if tensor.dtype == dtype else tf.bitcast(tensor, dtype)
