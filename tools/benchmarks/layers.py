"""From which sparsity on a Dense layer gets faster, by sparse product, batch size and structure of the zeros."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aimp_tf.exporting.lite import to_tflite
from aimp_tf.exporting.sparse import METHODS, sparse_layer
from benchmarks.inference_worker import Function, in_litert, times_of_calls
from benchmarks.side_by_side import time_in_turn


def run(
    repetitions: int,
    width: int = 1024,
    sparsities: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99),
    batch_sizes: Sequence[int] = (1, 8, 32, 128),
    seconds: float = 0.02,
) -> dict[str, Any]:
    """Times a Dense layer with as many outputs as inputs, of random weights, with all threads.

    Its zeros lie anywhere, but for "blocks": there, of four consecutive inputs of an output all or none are zero.

    Args:
        width: Number of inputs, a multiple of 4.
        sparsities: Fractions of the weights that are zero.
        batch_sizes: Examples a call.
        seconds: How long each side is timed in a repetition.

    Returns:
        "microseconds": batch size -> sparsity -> side -> median time of a call, the call itself included.
    """
    generator = np.random.default_rng(0)
    microseconds: dict[str, dict[str, dict[str, float]]] = {str(size): {} for size in batch_sizes}
    for sparsity in sparsities:
        model, blocks = _model(_kernel(width, sparsity)), _model(_kernel(width, sparsity, block=4))
        layer = model.layers[-1]
        kernel, bias = layer.get_weights()
        in_tensorflow = {
            "dense": layer,
            **{way: sparse_layer(keras)(kernel, bias, layer.activation, (), way, name=way) for way in METHODS},
        }
        anywhere = {"LiteRT": to_tflite(model), "LiteRT sparse": to_tflite(model, sparse=True)}
        in_blocks = {"LiteRT, blocks": to_tflite(blocks), "LiteRT sparse, blocks": to_tflite(blocks, sparse=True)}
        for size in batch_sizes:
            x = generator.normal(size=(size, width)).astype(np.float32)
            sides = {name: _in_tensorflow(candidate, x) for name, candidate in in_tensorflow.items()}
            sides |= {name: in_litert(x.shape, model_content=content) for name, content in anywhere.items()}
            of_blocks = {name: in_litert(x.shape, model_content=content) for name, content in in_blocks.items()}
            microseconds[str(size)][str(sparsity)] = {
                **_time(sides, x, repetitions, seconds),
                **_time(of_blocks, x, repetitions, seconds),
            }
    return {"width": width, "microseconds": microseconds, "table": _table(width, repetitions, microseconds)}


def _model(kernel: np.ndarray) -> Any:
    model = keras.Sequential([keras.Input(kernel.shape[:1]), keras.layers.Dense(kernel.shape[1])])
    model.layers[-1].set_weights([kernel, np.zeros(kernel.shape[1], np.float32)])
    return model


def _kernel(width: int, sparsity: float, block: int = 1) -> np.ndarray:
    """Random numbers, with an exact fraction of the blocks of so many inputs zero."""
    generator = np.random.default_rng(0)
    kernel = generator.normal(size=(width, width)).astype(np.float32)
    count = kernel.size // block
    dead = np.zeros(count, bool)
    dead[generator.permutation(count)[: round(sparsity * count)]] = True
    # A row of the transposed kernel holds the inputs of an output.
    kernel.T[np.repeat(dead, block).reshape(width, width)] = 0
    return kernel


def _in_tensorflow(layer: Any, x: np.ndarray) -> Function:
    traced = tf.function(lambda x: layer(x)).get_concrete_function(tf.TensorSpec(x.shape))
    return lambda x: traced(tf.constant(x)).numpy()


def _time(functions: dict[str, Function], x: np.ndarray, repetitions: int, seconds: float) -> dict[str, float]:
    """Median microseconds of a call of each function, of all calls of all repetitions in turn."""
    calls: dict[str, list[float]] = {name: [] for name in functions}

    def call_often(name: str) -> Sequence[np.ndarray]:
        calls[name] += times_of_calls(functions[name], x, seconds)
        return [functions[name](x)]

    time_in_turn(
        {name: functools.partial(call_often, name) for name in functions},
        repetitions,
        same=lambda here, there: bool(np.abs(here - there).max() <= 1e-4 * np.abs(here).max()),
    )
    return {name: 1e6 * statistics.median(times) for name, times in calls.items()}


def _table(width: int, repetitions: int, microseconds: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = []
    for batch_size, by_sparsity in microseconds.items():
        names = list(next(iter(by_sparsity.values())))
        lines.append(
            f"Dense {width} x {width}, batch {batch_size}, {repetitions} times: median of a call in microseconds"
        )
        lines.append(f"{'sparsity':10}" + "  ".join(f"{name:>12}" for name in names))
        lines += [
            f"{sparsity:10}" + "  ".join(f"{times[name]:{max(12, len(name))}.0f}" for name in names)
            for sparsity, times in by_sparsity.items()
        ]
    return "\n".join(lines)
