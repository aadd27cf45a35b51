"""Runs exported models and times them, in a process of its own that has TensorFlow and nothing of aimp_tf."""

from __future__ import annotations

import importlib
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.side_by_side import resident_bytes

Function = Callable[[np.ndarray], np.ndarray]


def measure(
    files: Mapping[str, tuple[str, str]],
    inputs: str,
    batch_sizes: Sequence[int],
    threads: int,
    rounds: int,
    seconds: float,
) -> dict[str, Any]:
    """Calls and times exported models.

    Args:
        files: Name -> kind, of "saved_model", "onnx" and "tflite", and path.
        inputs: A .npy file.
        batch_sizes: How many of them at a time.
        threads: 0 for all.
        rounds: How often each file is timed at each batch size.
        seconds: How long, each time.

    Returns:
        "seconds", name -> batch size -> times of single calls; "outputs", name -> a .npy file beside the inputs; and
        "memory_bytes", what loading and running took beside TensorFlow itself, which says something of one file alone.
    """
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.linalg.matmul(tf.ones((8, 8)), tf.ones((8, 8))).numpy()  # Whatever TensorFlow sets up at its first operation.
    before = resident_bytes("VmHWM")
    examples = np.load(inputs)
    batches = {size: examples[:size] for size in batch_sizes}
    functions = {
        name: {size: _load(kind, path, batch, threads) for size, batch in batches.items()}
        for name, (kind, path) in files.items()
    }
    largest = max(batches)
    outputs = {}
    for number, (name, by_size) in enumerate(functions.items()):
        outputs[name] = str(pathlib.Path(inputs).with_name(f"outputs_{number}.npy"))
        np.save(outputs[name], by_size[largest](batches[largest]))
        for size, batch in batches.items():
            by_size[size](batch)
    memory = resident_bytes("VmHWM") - before
    times: dict[str, dict[int, list[float]]] = {name: {size: [] for size in batches} for name in functions}
    for round_ in range(rounds):
        for name in list(functions)[:: 1 if round_ % 2 == 0 else -1]:
            for size, batch in batches.items():
                times[name][size] += times_of_calls(functions[name][size], batch, seconds)
    return {"seconds": times, "outputs": outputs, "memory_bytes": max(memory, 0)}


def times_of_calls(function: Function, batch: np.ndarray, enough: float) -> list[float]:
    """Times of single calls, 5 at least and so many that together they take this many seconds."""
    for _ in range(2):  # The model before this one has the caches.
        function(batch)
    times: list[float] = []
    while len(times) < 5 or sum(times) < enough:
        begun_at = time.perf_counter()
        function(batch)
        times.append(time.perf_counter() - begun_at)
    return times


def _load(kind: str, path: str, batch: np.ndarray, threads: int) -> Function:
    """A function from arrays to arrays for batches of this shape."""
    if kind == "saved_model":
        model = tf.saved_model.load(path)
        return lambda x: model.serve(x).numpy()
    if kind == "tflite":
        return in_litert(batch.shape, threads, model_path=path)
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    return lambda x: session.run(None, {taken.name: x})[0]


def in_litert(shape: tuple[int, ...], threads: int = 0, **source: Any) -> Function:
    """What a TFLite file computes for inputs of a shape: `source` is its `model_path` or `model_content`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow names the package that is to replace this class some day.
        interpreter = tf.lite.Interpreter(**source, num_threads=threads or len(os.sched_getaffinity(0)))
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(taken["index"], shape)
    interpreter.allocate_tensors()

    def run(x: np.ndarray) -> Any:
        interpreter.set_tensor(taken["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    return run
