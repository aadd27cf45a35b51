"""Weights that train as those of which int8 keeps but the nearest of 255 values an output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from aimp_tf.compat.gradients import changed_gradients
from aimp_tf.compat.step import changed_step

_LARGEST = 127


class Int8Weights:
    """Kernels that each step sees as int8 would store them, while the numbers themselves train.

    Args:
        variables: Path -> kernel. Each entry of its last axis, which of Dense layers and convolutions counts outputs,
            has a scale of its own, by its largest weight; zeros stay zero.
    """

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = list(variables.values())

    @contextlib.contextmanager
    def held(self, model: Any) -> Iterator[None]:
        """Within it, a compiled model is trained so; at the end its kernels are what int8 can store exactly.

        A step computes its gradients at the rounded weights, and the optimizer takes them for those of the weights
        themselves (a straight-through estimator).

        Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", CVPR 2018, section 3; here of weights alone.
        """
        exact: list[tf.Tensor] = []

        def change(train: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def train_rounded(batch: Any) -> Any:
                exact[:] = [tf.identity(tf.convert_to_tensor(variable)) for variable in self._variables]
                for variable, value in zip(self._variables, exact, strict=True):
                    variable.assign(rounded(value))
                return train(batch)

            return train_rounded

        def put_back(pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
            for variable, value in zip(self._variables, exact, strict=False):  # Of several updates, before the first.
                variable.assign(value)
            exact.clear()
            return pairs

        with changed_step(model, change), changed_gradients(model, put_back):
            yield
        for variable in self._variables:
            variable.assign(rounded(tf.convert_to_tensor(variable)))


def rounded(kernel: tf.Tensor) -> tf.Tensor:
    """The nearest whole multiples, -127 to 127 of them, of a 127th of the largest weight of each output.

    Args:
        kernel: float (..., outputs).
    """
    largest = tf.reduce_max(tf.abs(kernel), axis=tuple(range(len(kernel.shape) - 1)), keepdims=True)
    scale = tf.where(largest > 0, largest / _LARGEST, tf.ones_like(largest))
    return tf.round(kernel / scale) * scale
