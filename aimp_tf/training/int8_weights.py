"""Training as int8 computes: with the nearest of 255 values an output in kernels, and of 256 in what these multiply."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from aimp_tf.compat.step import changed_gradients, changed_step
from aimp_tf.compat.variables import key_of
from aimp_tf.graph.prunable import kernels_and_outputs
from aimp_tf.masking import MaskedModel
from aimp_tf.training.listening import listening

_LARGEST = 127
_LEAST = 1e-30
"""What is less is zero: a step of it would be too small for a float32."""


class Int8Weights:
    """Kernels that each step sees as int8 would store them, while the numbers themselves train.

    Args:
        masked: A model on one device. Of its Dense, EinsumDense and convolution layers that train, each output has a
            scale of its own, by its largest weight, as LiteRT has them; zeros stay zero.

    Raises:
        ValueError: It has no such layers.
    """

    def __init__(self, masked: MaskedModel) -> None:
        trained = set(map(key_of, masked.original.trainable_weights))
        found = [each for each in kernels_and_outputs(masked.original) if key_of(each[0]) in trained]
        if not found:
            raise ValueError(
                "weights='int8' is for kernels of Dense, EinsumDense and convolution layers, and the model "
                f"{masked.original.name!r} has none that trains. Leave it out."
            )
        self._model = masked.model
        self._kernels = list({key_of(kernel): (kernel, outputs) for kernel, _, outputs in found}.values())
        self._layers = {str(id(layer)): layer for _, layer, _ in found}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within it, the compiled model is trained so; at the end its kernels are what int8 can store exactly.

        A step computes its gradients with rounded weights and rounded inputs of the layers that hold them, and the
        optimizer takes them for those of the weights themselves (a straight-through estimator).

        Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", CVPR 2018, section 3; here with the range of each batch.
        """
        exact: list[tf.Tensor] = []
        are_rounded = tf.Variable(False, trainable=False)

        def put_back_all() -> tf.Tensor:
            for (kernel, _), value in zip(self._kernels, exact, strict=True):
                kernel.assign(value)
            are_rounded.assign(False)
            return tf.constant(True)

        def put_back() -> None:
            if exact:  # Within a step.
                tf.cond(are_rounded, put_back_all, lambda: tf.constant(False))

        def change(train: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def train_rounded(batch: Any) -> Any:
                exact[:] = [tf.identity(tf.convert_to_tensor(kernel)) for kernel, _ in self._kernels]
                for (kernel, outputs), value in zip(self._kernels, exact, strict=True):
                    kernel.assign(rounded(value, outputs))
                are_rounded.assign(True)
                with listening(self._layers, lambda _, inputs: rounded_to_range(inputs)):
                    logs = train(batch)
                put_back()  # Where a step of the user's own leaves it to a later one to update weights.
                exact.clear()
                return logs

            return train_rounded

        def put_back_first(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
            put_back()  # Of several updates in a step, before the first.
            return pairs

        with changed_step(self._model, change), changed_gradients(self._model, put_back_first):
            yield
        for kernel, outputs in self._kernels:
            kernel.assign(rounded(tf.convert_to_tensor(kernel), outputs))


def rounded(kernel: tf.Tensor, outputs: Sequence[int]) -> tf.Tensor:
    """The nearest whole multiples, -127 to 127 of them, of a 127th of the largest weight of each output; `outputs` are
    the axes of the kernel that count these."""
    exact = tf.cast(kernel, tf.float32)
    summed = [axis for axis in range(len(kernel.shape)) if axis not in outputs]
    largest = tf.reduce_max(tf.abs(exact), axis=summed, keepdims=True)
    scale = tf.where(largest > _LEAST, largest / _LARGEST, 1.0)
    return tf.cast(tf.round(exact / scale) * scale, kernel.dtype)


def rounded_to_range(values: Any) -> Any:
    """The nearest of 256 equally spaced values, zero among them, from the smallest to the largest; their gradient is
    that of `values`. What is no dense tensor of floats stays as it is."""
    if not isinstance(values, tf.Tensor) or not values.dtype.is_floating:
        return values
    exact = tf.cast(tf.stop_gradient(values), tf.float32)
    low, high = tf.minimum(tf.reduce_min(exact), 0.0), tf.maximum(tf.reduce_max(exact), 0.0)
    high = tf.where(high - low > _LEAST, high, low + 1.0)  # Of no range, XLA would make NaN.
    nearest = tf.quantization.fake_quant_with_min_max_vars(exact, low, high, num_bits=8)
    return values + tf.cast(nearest - exact, values.dtype)
