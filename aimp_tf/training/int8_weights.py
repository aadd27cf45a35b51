"""Training as int8 computes: with the nearest of 255 values an output in kernels, and of 256 in what these multiply."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from aimp_tf.compat.gradients import changed_gradients
from aimp_tf.compat.step import changed_step
from aimp_tf.compat.variables import key_of
from aimp_tf.graph.prunable import kernels_and_outputs
from aimp_tf.masking import MaskedModel
from aimp_tf.training.statistics import listening

_LARGEST = 127


class Int8Weights:
    """Kernels that each step sees as int8 would store them, while the numbers themselves train.

    Args:
        masked: A model on one device. Of its Dense, EinsumDense and convolution layers, each output has a scale of its
            own, by its largest weight, as LiteRT has them; zeros stay zero.
    """

    def __init__(self, masked: MaskedModel) -> None:
        found = list(kernels_and_outputs(masked.original))
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

        def change(train: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def train_rounded(batch: Any) -> Any:
                exact[:] = [tf.identity(tf.convert_to_tensor(kernel)) for kernel, _ in self._kernels]
                for (kernel, outputs), value in zip(self._kernels, exact, strict=True):
                    kernel.assign(rounded(value, outputs))
                with listening(self._layers, lambda _, inputs: rounded_to_range(inputs)):
                    return train(batch)

            return train_rounded

        def put_back(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
            for (kernel, _), value in zip(self._kernels, exact, strict=False):  # Of several updates, before the first.
                kernel.assign(value)
            exact.clear()
            return pairs

        with changed_step(self._model, change), changed_gradients(self._model, put_back):
            yield
        for kernel, outputs in self._kernels:
            kernel.assign(rounded(tf.convert_to_tensor(kernel), outputs))


def rounded(kernel: tf.Tensor, outputs: Sequence[int]) -> tf.Tensor:
    """The nearest whole multiples, -127 to 127 of them, of a 127th of the largest weight of each output.

    Args:
        kernel: float.
        outputs: The axes that count outputs.
    """
    exact = tf.cast(kernel, tf.float32)
    summed = [axis for axis in range(len(kernel.shape)) if axis not in outputs]
    largest = tf.reduce_max(tf.abs(exact), axis=summed, keepdims=True)
    scale = tf.where(largest > 0, largest / _LARGEST, tf.ones_like(largest))
    return tf.cast(tf.round(exact / scale) * scale, kernel.dtype)


def rounded_to_range(values: Any) -> Any:
    """The nearest of 256 equally spaced values, zero among them, from the smallest to the largest; their gradient is
    that of `values`. What is no dense tensor of floats stays as it is."""
    if not isinstance(values, tf.Tensor) or not values.dtype.is_floating:
        return values
    exact = tf.cast(tf.stop_gradient(values), tf.float32)
    low, high = tf.minimum(tf.reduce_min(exact), 0.0), tf.maximum(tf.reduce_max(exact), 0.0)
    nearest = tf.quantization.fake_quant_with_min_max_vars(exact, low, high, num_bits=8)
    return values + tf.cast(nearest - exact, values.dtype)
