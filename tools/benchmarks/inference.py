"""What a pruned model is worth in use: size, memory and latency of its exported forms, beside the dense model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.exporting import FORMATS, Settings
from aimp_tf.exporting.coded import load_coded, write_coded
from aimp_tf.exporting.compaction import compact
from aimp_tf.exporting.sparse import sparse_inference_and_report
from aimp_tf.files import gzip_bytes, stored_bytes
from aimp_tf.graph.prunable import prunable_variables
from benchmarks.side_by_side import spread_text
from experiments import call_in_fresh_process
from experiments.exports import load_inputs, load_keras_file

BATCH_SIZES = (1, 32)
_THREADS = (1, 0)
_EXAMPLES = 256
# Of the largest output; what float32 allows when sums are taken in another order.
_TOLERANCE = 1e-4
_LITE = {
    "LiteRT": "tflite",
    "LiteRT sparse": "tflite_sparse",
    "LiteRT float16": "tflite_fp16",
    "LiteRT dynamic": "tflite_dynamic",
    "LiteRT int8": "tflite_int8",
}
"""Form of the pruned model -> its format in `export`."""


def run(
    repetitions: int,
    model: str | os.PathLike[str],
    inputs: str | os.PathLike[str] | None = None,
    rounds: int = 5,
    seconds: float = 0.05,
) -> dict[str, Any]:
    """Exports a pruned model in all its forms and times these in fresh processes, in turn.

    "dense" is the model with random numbers in place of the zeros in its prunable weights: as large and as slow as
    before the pruning, and of no other use. In "sparse, for 1" and such, layers were chosen for that batch size.
    "coded" is as large as the coded file of the compacted model, and timed as a SavedModel of what was read from it.

    Args:
        repetitions: How often each setting of threads is timed, each time in a new process.
        model: A `.keras` file of either generation, of a pruned model with one input and one output.
        inputs: A .npy file of at least 32 examples. None makes up numbers in [0, 1).
        rounds: How often the forms take turns in a process.
        seconds: How long each is timed in a turn, at each batch size.

    Returns:
        "forms", name -> bytes, gzip_bytes, memory_bytes (beside TensorFlow's own), difference (the largest from the
        pruned model's outputs, as a fraction of the largest of these) and "latency": for each batch size and number of
        threads (0: all) the median and 95th percentile of all calls in seconds, and, for each repetition, how many
        times as fast as "dense" it was and, of LiteRT, as "LiteRT".

    Raises:
        RuntimeError: A float32 form did not compute what the pruned model does, so that their times do not compare.
        ValueError: The model or the inputs are not such.
    """
    pruned = _read(load_keras_file, model)
    data = _load_inputs(pruned, inputs)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        examples = str(folder / "inputs.npy")
        np.save(examples, data[: max(BATCH_SIZES)])
        forms = _Forms(folder)
        forms.write(_filled(load_keras_file(model)), pruned, data)
        measure = functools.partial(
            call_in_fresh_process,
            "benchmarks.inference_worker.measure",
            inputs=examples,
            batch_sizes=BATCH_SIZES,
            seconds=seconds,
        )
        figures: dict[str, dict[str, Any]] = {}
        for name, (kind, path) in forms.files.items():
            kept = pathlib.Path(forms.stored.get(name, path))
            figures[name] = {"bytes": stored_bytes(kept), "gzip_bytes": gzip_bytes(kept)}
            figures[name]["memory_bytes"] = measure(files={name: (kind, path)}, threads=0, rounds=0)["memory_bytes"]
        times: dict[tuple[int, int], list[dict[str, list[float]]]] = {}
        for repetition in range(repetitions):
            for threads in _THREADS[:: 1 if repetition % 2 == 0 else -1]:
                result = measure(files=forms.files, threads=threads, rounds=rounds)
                for name, difference in _differences(result["outputs"]).items():
                    figures[name]["difference"] = difference
                for size in BATCH_SIZES:
                    by_form = {name: by_size[str(size)] for name, by_size in result["seconds"].items()}
                    times.setdefault((size, threads), []).append(by_form)
    for name, figure in figures.items():
        figure["latency"] = _latency(name, times)
    about = {
        "model": os.fspath(model),
        "inputs": None if inputs is None else os.fspath(inputs),
        "repetitions": repetitions,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "missing": forms.missing,
    }
    return {**about, "forms": figures, "table": "\n\n".join([_table(about, figures), *forms.chosen])}


def _latency(name: str, times: dict[tuple[int, int], list[dict[str, list[float]]]]) -> list[dict[str, Any]]:
    """That of a form, as `run` gives it, of (batch size, threads) -> by repetition, form -> seconds of each call."""
    latency = []
    for size, threads in itertools.product(BATCH_SIZES, _THREADS):
        repeated = times[size, threads]
        calls = [seconds for by_form in repeated for seconds in by_form[name]]
        figures = {
            "batch_size": size,
            "threads": threads,
            "median_seconds": statistics.median(calls),
            "p95_seconds": float(np.percentile(calls, 95)),
            "calls": len(calls),
            "times_as_fast": _times_as_fast(repeated, name, "dense"),
        }
        if name in _LITE and name != "LiteRT":
            figures["times_as_fast_as_litert"] = _times_as_fast(repeated, name, "LiteRT")
        latency.append(figures)
    return latency


def _read(load: Callable[[str | os.PathLike[str]], Any], path: str | os.PathLike[str]) -> Any:
    try:
        return load(path)
    except OSError as error:
        raise ValueError(f"{os.fspath(path)} cannot be read: {error}") from error


def _load_inputs(model: Any, path: str | os.PathLike[str] | None) -> np.ndarray:
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"The model must have one input and one output; it has {len(model.inputs)} and {len(model.outputs)}."
        )
    shape = tuple(model.inputs[0].shape)[1:]
    if None in shape:
        raise ValueError(f"The model takes examples of the open shape {shape}; it must be known but for the batch.")
    dtype = tf.as_dtype(model.inputs[0].dtype)
    if not dtype.is_floating:
        raise ValueError(f"The model takes {dtype.name}; only models of floating point numbers are measured.")
    if path is None:
        return np.random.default_rng(0).random((_EXAMPLES, *shape), np.float32)
    data = _read(load_inputs, path)
    if not isinstance(data, np.ndarray):
        raise ValueError(f"{os.fspath(path)} must be a .npy file of one array.")
    if data.shape[1:] != shape or len(data) < max(BATCH_SIZES):
        raise ValueError(
            f"{os.fspath(path)} must hold at least {max(BATCH_SIZES)} examples of shape {shape}; its array has the "
            f"shape {data.shape}."
        )
    return data[:_EXAMPLES].astype(np.float32)


@dataclasses.dataclass
class _Forms:
    """Files of a dense and a pruned model, in all forms.

    Attributes:
        folder: Where to write them.
        files: Name -> (kind, path).
        stored: Name -> what is stored, if that is another file.
        missing: Name -> why there is none.
        chosen: The tables of sparse layers.
    """

    folder: pathlib.Path
    files: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    stored: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)
    chosen: list[str] = dataclasses.field(default_factory=list)

    def write(self, dense: Any, pruned: Any, data: np.ndarray) -> None:
        """Writes all of them; data are inputs to calibrate on."""
        compacted = compact(pruned)
        for name, model in (("dense", dense), ("pruned", pruned), ("compacted", compacted)):
            self._add(name, model)
        for first, model in (("sparse", pruned), ("compacted, sparse", compacted)):
            for size in BATCH_SIZES:
                sparse, report = sparse_inference_and_report(model, size)
                self._add(f"{first}, for {size}", sparse)
                self.chosen.append(f"{first}: {report.table()}")
        with self._if_it_can("coded"):
            path = str(self.folder / "model.coded")
            write_coded(compacted, path)
            self._add("coded", load_coded(path))
            self.stored["coded"] = path
        with self._if_it_can("ONNX Runtime"):
            self._add("ONNX Runtime", compacted, "onnx")
        for name, format_ in _LITE.items():
            with self._if_it_can(name):
                self._add(name, pruned, format_, data)

    def _add(self, name: str, model: Any, format_: str = "saved_model", inputs: Any = None) -> None:
        written = FORMATS[format_]
        path = self.folder / f"{len(self.files)}{pathlib.Path(written.file).suffix}"
        written.write(model, path, Settings(inputs, batch_size=1))
        self.files[name] = (written.kind, str(path))

    @contextlib.contextmanager
    def _if_it_can(self, name: str) -> Iterator[None]:
        """Notes why there is no such form, where that is so."""
        try:
            yield
        except (ImportError, ValueError) as error:
            self.missing[name] = str(error)


def _filled(model: Any) -> Any:
    """The model, whose prunable weights have random numbers as large as the others where they are zero."""
    generator = np.random.default_rng(0)
    for variable in prunable_variables(model).values():
        weights = np.array(variable)
        zeros = weights == 0
        spread = float(np.std(weights[~zeros].astype(np.float32))) if not zeros.all() else 0.01
        weights[zeros] = generator.normal(0, spread, int(zeros.sum()))
        variable.assign(weights)
    return model


def _differences(outputs: Mapping[str, str]) -> dict[str, float | None]:
    """The largest difference of each form from the pruned model, of whose largest output it is a fraction.

    Raises:
        RuntimeError: A float32 form did not compute the same.
    """
    pruned = np.load(outputs["pruned"])
    differences: dict[str, float | None] = {"dense": None}  # Other weights, another function.
    for name, path in outputs.items():
        if name == "dense":
            continue
        difference = float(np.abs(np.load(path) - pruned).max() / np.abs(pruned).max())
        if not difference <= _TOLERANCE and FORMATS[_LITE.get(name, "saved_model")].same:
            raise RuntimeError(
                f"{name!r} did not compute what the pruned model does, so their times do not compare: its outputs "
                f"differ by {difference:.2g} of the largest, where float32 allows for {_TOLERANCE:g}."
            )
        differences[name] = difference
    return differences


def _times_as_fast(repeated: Sequence[Mapping[str, Sequence[float]]], name: str, other: str) -> list[float]:
    """How many times as fast as another form one was in each repetition, by the medians; empty without the other."""
    return [
        statistics.median(by_form[other]) / statistics.median(by_form[name]) for by_form in repeated if other in by_form
    ]


def _processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _table(about: Mapping[str, Any], figures: Mapping[str, Mapping[str, Any]]) -> str:
    dense = figures["dense"]
    lines = [
        f"{about['model']}, {about['repetitions']} times, {about['cores']} cores of {about['processor']}",
        "",
        f"{'':28}{'MB':>9}{'dense /':>9}{'gzip, MB':>10}{'memory, MB':>12}  difference",
    ]
    for name, form in figures.items():
        difference = "other weights" if form["difference"] is None else f"{form['difference']:.1g}"
        lines.append(
            f"{name:28}{form['bytes'] / 1e6:9.3f}{dense['bytes'] / form['bytes']:9.1f}{form['gzip_bytes'] / 1e6:10.3f}"
            f"{form['memory_bytes'] / 1e6:12.1f}  {difference}"
        )
    for number, setting in enumerate(dense["latency"]):
        threads = "all threads" if setting["threads"] == 0 else f"{setting['threads']} thread"
        head = f"batch {setting['batch_size']}, {threads}"
        lines += ["", f"{head:28}{'ms':>9}{'95th':>9}  times as fast as dense"]
        for name, form in figures.items():
            latency = form["latency"][number]
            lite = latency.get("times_as_fast_as_litert")
            lines.append(
                f"{name:28}{latency['median_seconds'] * 1e3:9.3f}{latency['p95_seconds'] * 1e3:9.3f}  "
                f"{spread_text(latency['times_as_fast'])}" + (f"; as LiteRT: {spread_text(lite)}" if lite else "")
            )
    lines += ["", *(f"{name}: {reason}" for name, reason in about["missing"].items())]
    return "\n".join(lines).rstrip()
