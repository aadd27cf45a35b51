"""Times exported models side by side, in a process of its own that has TensorFlow and nothing of aimp_tf.

    python timing_worker.py IDLE_SECONDS

Each line of its input is a job: "kind", "saved_model" or "tflite"; "paths", the models; "batch_size"; "threads", the
same in all jobs; "seconds", how long a turn of a model takes; "turns", how many each has at least, and "enough", how
many seconds all turns take together at least. The line that answers it: of each model, the seconds of its single calls.
It ends with its input, or when no job has come for so many seconds.
"""

from __future__ import annotations

import gc
import json
import os
import select
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import numpy as np
import tensorflow as tf


def main(idle_seconds: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What others print is no answer.
    while select.select([sys.stdin], [], [], float(idle_seconds))[0] and (line := sys.stdin.readline()):
        print(json.dumps(_timed(json.loads(line))), file=answers, flush=True)
        gc.collect()  # A SavedModel that nobody needs any more is in cycles, and keeps its weights.


def _timed(job: dict[str, Any]) -> list[list[float]]:
    tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(job["threads"])
    load = {"saved_model": _saved_model, "tflite": _tflite}[job["kind"]]
    calls = [load(path, job["batch_size"], job["threads"]) for path in job["paths"]]
    seconds: list[list[float]] = [[] for _ in calls]
    pairs, turn, begun_at = list(zip(calls, seconds, strict=True)), 0, time.perf_counter()
    while turn < job["turns"] or time.perf_counter() - begun_at < job["enough"]:
        for call, times in pairs[:: 1 if turn % 2 == 0 else -1]:
            times += _time(call, job["seconds"])
        turn += 1
    return seconds


def _time(call: Callable[[], object], enough: float) -> list[float]:
    """Times of single calls, 3 at least and so many that together they take this many seconds."""
    call()  # The model before this one has the caches.
    times: list[float] = []
    while len(times) < 3 or sum(times) < enough:
        begun_at = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun_at)
    return times


def _saved_model(path: str, batch_size: int, threads: int) -> Callable[[], object]:
    loaded = tf.saved_model.load(path)
    signature = loaded.signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    inputs = {
        name: tf.constant(_made_up(spec.shape.as_list(), spec.dtype.as_numpy_dtype, batch_size))
        for name, spec in specs.items()
    }

    def call() -> object:
        assert loaded  # Which the signature does not keep alive.
        return [output.numpy() for output in signature(**inputs).values()]

    return call


def _tflite(path: str, batch_size: int, threads: int) -> Callable[[], object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow names the package that is to replace this class some day.
        interpreter = tf.lite.Interpreter(model_path=path, num_threads=threads)
    inputs: dict[int, np.ndarray] = {}
    for details in interpreter.get_input_details():
        array = _made_up(details["shape_signature"].tolist(), details["dtype"], batch_size)
        if details["shape_signature"][0] not in (-1, batch_size):
            sys.exit(
                f"the TFLite file takes batches of {details['shape_signature'][0]} alone, which batch_size must be"
            )
        interpreter.resize_tensor_input(details["index"], array.shape)
        inputs[details["index"]] = array
    interpreter.allocate_tensors()
    outputs = [details["index"] for details in interpreter.get_output_details()]

    def call() -> object:
        for index, array in inputs.items():
            interpreter.set_tensor(index, array)
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return call


def _made_up(shape: list[Any], dtype: Any, batch_size: int) -> np.ndarray:
    """Normal numbers of a dtype, or zeros and ones where that is of integers; the first axis is the batch."""
    lengths = [batch_size, *shape[1:]]
    generator = np.random.default_rng(0)
    if np.issubdtype(dtype, np.floating):
        return generator.normal(size=lengths).astype(dtype)
    return generator.integers(0, 2, lengths).astype(dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
