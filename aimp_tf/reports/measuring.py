"""What a pruned model is worth: its file, its multiplications and the time of a call, beside those of the dense one."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.cluster import Cluster
from aimp_tf.exporting.compaction import compact, compact_and_report
from aimp_tf.exporting.inputs import make_up
from aimp_tf.exporting.saved_model import write_keras
from aimp_tf.exporting.sparse import sparse_inference
from aimp_tf.files import gzip_bytes, stored_bytes
from aimp_tf.graph.prunable import named_weights

_TURNS = 30
_SECONDS_PER_TURN = 0.02


def measure_sizes(model: Any, masks: Mapping[str, np.ndarray], *, channels: bool = False) -> dict[str, Any]:
    """The fields of `Outcome` on sizes and multiplications that can be measured on a pruned model.

    The dense model is this one with random numbers in place of what the masks prune, while its file is written.

    What cannot be measured is left out. With several workers, that is all, for they would have to do it together.

    Args:
        model: A built model without masks.
        masks: Path -> bool array, True for what is kept.
        channels: Whether whole channels were pruned, so that the compacted model is what counts.
    """
    measured: dict[str, Any] = {}
    if Cluster(model.distribute_strategy).size > 1:
        return measured
    # A layer of the user's may have no config, or may not be seen through; a disk may be full.
    small = model
    with contextlib.suppress(ValueError):
        small, report = compact_and_report(model)
        measured |= {"parameters": report.parameters, "multiply_adds": report.multiply_adds}
        if channels:
            measured["channels"] = report.channels
    with contextlib.suppress(OSError, ValueError):
        pruned = _file_sizes(small if channels else model)
        with _filled(model, masks):
            dense = _file_sizes(model)
        measured["file_format"] = ".keras file"
        measured["bytes"], measured["gzip_bytes"] = zip(dense, pruned, strict=True)
    return measured


def measure_calls(model: Any) -> dict[str, Any]:
    """The fields of `Outcome` on the time of a call with one example, where the model can be compacted.

    The pruned model is compacted, and its layers are sparse products where that is faster on this machine. Nothing is
    measured where that cannot be done, or made-up inputs do not suit the model.
    """
    if Cluster(model.distribute_strategy).size > 1:
        return {}
    try:
        fast = sparse_inference(compact(model))
        inputs = tf.nest.map_structure(lambda array: tf.convert_to_tensor(array[:1]), make_up(model))
        calls = [tf.function(lambda batch, each=each: each(batch, training=False)) for each in (model, fast)]
        counts = [max(1, round(_SECONDS_PER_TURN / _seconds_of(call, inputs))) for call in calls]
    except (TypeError, ValueError, tf.errors.OpError):
        return {}
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_TURNS):
        for call, count, timings in zip(calls, counts, seconds, strict=True):
            timings.append(_seconds_of(call, inputs, count))
    device = "a GPU" if tf.config.get_visible_devices("GPU") else "a CPU"
    return {
        "call_seconds": (tuple(seconds[0]), tuple(seconds[1])),
        "call": f"1 example on {device}, the pruned model compacted and with sparse products where they are faster",
    }


def _seconds_of(call: Any, inputs: Any, count: int = 3) -> float:
    """Seconds of a call, on average over so many after one that is not counted."""
    call(inputs)
    begun_at = time.perf_counter()
    for _ in range(count):
        outputs = call(inputs)
    tf.nest.map_structure(lambda tensor: tensor.numpy(), outputs)
    return (time.perf_counter() - begun_at) / count


def _file_sizes(model: Any) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        write_keras(model, path)
        return stored_bytes(path), gzip_bytes(path)


@contextlib.contextmanager
def _filled(model: Any, masks: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Within it, what the masks prune is drawn like what they keep."""
    variables = named_weights(model)
    generator = np.random.default_rng(0)
    with contextlib.ExitStack() as undo:
        for path, mask in masks.items():
            value = np.asarray(variables[path].numpy())
            undo.callback(variables[path].assign, value)
            kept = value[mask]
            scale = float(np.std(kept.astype(np.float64))) if kept.size else 1.0
            drawn = generator.normal(0, scale or 1.0, value.shape).astype(value.dtype)
            variables[path].assign(np.where(mask, value, drawn))
        yield
