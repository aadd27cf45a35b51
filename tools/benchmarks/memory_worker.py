"""Trains a wide network in a process of its own, plainly or in the rounds of `prune`, and says what memory it took.

    python memory_worker.py JOB.json RESULT.json

The job: "generation", "keras" or "tf_keras"; "widths", of the inputs and of each Dense layer; "batch_size"; "steps", in
an epoch; "epochs"; and "settings", those of `prune`, or None for a plain `fit` of as many epochs.
The result: "peak_bytes", the most memory that was resident; "weights", how many the kernels have; "variables", how many
numbers a snapshot of the model has; and "epochs", how many were trained.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from aimp_tf.pruning import prune
from aimp_tf.training.input_pipeline import array_dataset
from benchmarks.side_by_side import resident_bytes


def main(job_file: str, result_file: str) -> None:
    job = json.loads(pathlib.Path(job_file).read_text())
    model = _compiled(importlib.import_module(job["generation"]), job["widths"])
    sizes = [int(np.prod(weight.shape)) for weight in model.weights]
    generator = np.random.default_rng(0)
    examples = job["batch_size"] * job["steps"]
    x = generator.normal(size=(examples, job["widths"][0])).astype(np.float32)
    y = generator.integers(0, job["widths"][-1], examples)
    if job["settings"] is None:
        data = array_dataset((x, y), job["batch_size"], seed=0)
        epochs = len(model.fit(data, epochs=job["epochs"], verbose=0).epoch)
    else:
        options = {"batch_size": job["batch_size"]}
        result = prune(model, x, y, **options, seed=0, verbose=0, **job["settings"])
        epochs = sum(round_.epochs for round_ in result.rounds)
    figures = {
        "peak_bytes": resident_bytes("VmHWM"),
        "weights": sum(size for size, weight in zip(sizes, model.weights, strict=True) if len(weight.shape) > 1),
        "variables": sum(sizes),
        "epochs": epochs,
    }
    pathlib.Path(result_file).write_text(json.dumps(figures))


def _compiled(keras: Any, widths: list[int]) -> Any:
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(width, activation="relu") for width in widths[1:-1]]
    model = keras.Sequential([keras.Input((widths[0],)), *hidden, keras.layers.Dense(widths[-1])])
    model.compile(keras.optimizers.Adam(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


if __name__ == "__main__":
    main(*sys.argv[1:])
