"""Training arrays in the memory of a GPU, or of any other device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.input_pipeline import Order, array_positions
from aimp_tf.swap import Swap

_KEY = "aimp_tf_positions"
# What TensorFlow gathers on a GPU, where it keeps integers of 32 bits on the host, though.
_GATHERED = (tf.bool, tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int64, tf.complex64, tf.complex128)


class DeviceArrays:
    """Arrays that are copied to a device once, where each training step gathers its batch.

    Shuffling them then moves the positions of the examples alone from the host to the device. The batches are those of
    `input_pipeline.prepare` with the same arguments, bit for bit.

    Args:
        data: A tuple (x, y) or (x, y, sample_weight), as `input_pipeline.prepare` takes it.
        name: What to call it in errors.
        device: Name of the device, that of the model's variables.
        batch_size: None is 32.
        order: The order in which arrays are read.
        steps_per_epoch: As in `fit`.
        floatx: Keras' float type, to which arrays of other float types are cast.

    Attributes:
        batches: A dataset of the positions that each batch has, for a model within `gathering`.

    Raises:
        TypeError: An array holds no numbers.
        ValueError: They do not fit into the device's memory.
    """

    def __init__(
        self,
        data: tuple,
        name: str,
        device: str,
        *,
        batch_size: int | None,
        order: Order,
        steps_per_epoch: int | None,
        floatx: str,
    ) -> None:
        tensors, positions = array_positions(
            data, name, batch_size=batch_size, order=order, steps_per_epoch=steps_per_epoch, floatx=floatx
        )
        self._device = device
        try:
            with tf.device(device):
                self._arrays = tf.nest.map_structure(lambda tensor: _DeviceArray(tensor, name), tensors)
        except tf.errors.ResourceExhaustedError as error:
            size = sum(tensor.dtype.size * tensor.shape.num_elements() for tensor in tf.nest.flatten(tensors))
            raise ValueError(
                f"{name} takes {size / 1e9:.3g} GB, which do not fit into the memory of {device}. Set "
                "data_on_device=False, which takes each batch there by itself."
            ) from error
        self.batches = positions.map(lambda chosen: {_KEY: chosen})

    @contextlib.contextmanager
    def gathering(self, model: Any) -> Iterator[None]:
        """What must surround a `fit` of a model on `batches`, and is no harm to one on other data."""
        train_step = model.train_step

        def gather_and_train(data: Any) -> Any:
            return train_step(self._gathered(data))

        with contextlib.ExitStack() as replaced:
            replaced.enter_context(Swap(model, "train_step", gather_and_train))
            # Keras 3 looks at a batch before it trains under a strategy.
            if build := getattr(model, "_symbolic_build", None):

                def gather_and_build(iterator: Any = None, data_batch: Any = None) -> None:
                    build(iterator, self._gathered(data_batch))

                replaced.enter_context(Swap(model, "_symbolic_build", gather_and_build))
            yield

    def _gathered(self, data: Any) -> Any:
        """The batch that `batches` mean by an element; other data as it is."""
        if not isinstance(data, Mapping) or _KEY not in data:
            return data
        with tf.device(self._device):
            return tf.nest.map_structure(lambda array: array.gather(data[_KEY]), self._arrays)


class _DeviceArray:
    """One array, held as numbers that a GPU can gather, of which each has several of the array's where these are small.

    Args:
        tensor: Numbers of any dtype, with examples along the first axis.
        name: What to call it in errors.
    """

    def __init__(self, tensor: tf.Tensor, name: str) -> None:
        self._shape, self._dtype = tensor.shape[1:], tensor.dtype
        if tensor.dtype in _GATHERED:
            self._held = tf.identity(tensor)
            return
        if not tensor.dtype.is_integer:
            raise TypeError(
                f"{name} must be made of numbers for data_on_device; got dtype {tensor.dtype.name}. Set "
                "data_on_device=False."
            )
        word = np.dtype(np.int64 if tensor.dtype.size == 8 else np.float32)
        rows = np.ascontiguousarray(tensor.numpy()).reshape(len(tensor), -1).view(np.uint8)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % word.itemsize)))
        self._held = tf.identity(rows.view(word))

    def gather(self, positions: tf.Tensor) -> tf.Tensor:
        """The examples at these positions, with the array's own dtype."""
        rows = tf.gather(self._held, positions)
        if self._dtype in _GATHERED:
            return rows
        rows = tf.reshape(tf.bitcast(rows, self._dtype), [tf.size(positions), -1])
        return tf.reshape(rows[:, : self._shape.num_elements()], [-1, *self._shape])
