"""Wall time of a whole run of `prune` beside a plain `fit` of as many epochs."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from aimp_tf.compat.importing import import_with_tfmot
from aimp_tf.pruning import prune
from aimp_tf.training.input_pipeline import array_dataset
from benchmarks.networks import BATCH_SIZE, compiled_model
from benchmarks.side_by_side import compare, time_in_turn
from experiments import datasets

_TARGET_SPARSITY = 0.97  # Sixteen rounds and a last training.


def run(
    repetitions: int,
    data_dir: str | os.PathLike[str] | None = None,
    architecture: str = "lenet_300_100",
    generations: Sequence[str] = ("keras", "tf_keras"),
    dataset: str = "fashion_mnist",
) -> dict[str, Any]:
    """Trains a network for 17 epochs on Fashion-MNIST: in one `fit`, in 17 of them, and in the rounds of `prune`.

    Each side begins with a new model and so traces it. The plain sides hand arrays to `fit`, but for one that hands it
    the dataset that `array_dataset` makes of them. All must train as many epochs, and learn.
    """
    data = datasets.load(dataset, data_dir)
    figures: dict[str, Any] = {}
    lines = []
    for generation in generations:
        keras, title = importlib.import_module(generation), f"{architecture} ({generation})"
        in_rounds = functools.partial(_prune, architecture, keras, data)
        epochs = int(in_rounds()[0])
        sides = {
            "one fit": functools.partial(_fit, architecture, keras, data, fits=1, epochs=epochs),
            "fits of an epoch": functools.partial(_fit, architecture, keras, data, fits=epochs, epochs=1),
            "array_dataset": functools.partial(_fit, architecture, keras, data, 1, epochs, on_dataset=True),
            "prune": in_rounds,
        }
        if generation == "tf_keras":
            sides["tfmot"] = functools.partial(_prune_with_tfmot, architecture, keras, data, epochs)
        figures[title], added = compare(title, time_in_turn(sides, repetitions), "one fit")
        lines += added
    return {**figures, "table": "\n".join(lines)}


def _fit(
    architecture: str, keras: Any, data: datasets.ImageData, fits: int, epochs: int, on_dataset: bool = False
) -> Sequence[np.ndarray]:
    x, y = data.train_images, data.train_labels
    inputs: dict[str, Any] = {"x": x, "y": y, "batch_size": BATCH_SIZE}
    if on_dataset:
        inputs = {"x": array_dataset((x, y), BATCH_SIZE, seed=0)}
    model = _model(architecture, keras, data)
    for _ in range(fits):
        history = model.fit(**inputs, epochs=epochs, verbose=0)
    return _epochs_if_learnt(fits * epochs, history.history["accuracy"][-1], data.classes)


def _prune(architecture: str, keras: Any, data: datasets.ImageData) -> Sequence[np.ndarray]:
    result = prune(
        _model(architecture, keras, data),
        (data.train_images, data.train_labels),
        target_sparsity=_TARGET_SPARSITY,
        epochs=1,
        seed=0,
        batch_size=BATCH_SIZE,
        verbose=0,
    )
    epochs = sum(round_.epochs for round_ in result.rounds)
    return _epochs_if_learnt(epochs, result.rounds[-1].metrics["accuracy"], data.classes)


def _prune_with_tfmot(architecture: str, keras: Any, data: datasets.ImageData, epochs: int) -> Sequence[np.ndarray]:
    stock_tfmot = import_with_tfmot("benchmarks.stock_tfmot")
    model = _model(architecture, keras, data)
    history = stock_tfmot.train_pruned(model, data, _TARGET_SPARSITY, BATCH_SIZE, epochs)
    return _epochs_if_learnt(len(history["accuracy"]), history["accuracy"][-1], data.classes)


def _epochs_if_learnt(epochs: int, accuracy: float, classes: int) -> Sequence[np.ndarray]:
    """What the sides must have in common: their weights differ, for only some are pruned."""
    if accuracy < 2 / classes:
        raise RuntimeError(f"A side ended with a training accuracy of {accuracy:.2f}: it did not train.")
    return [np.array(epochs)]


def _model(architecture: str, keras: Any, data: datasets.ImageData) -> Any:
    shape = data.train_images.shape[1:]
    return compiled_model(architecture, keras, shape, data.classes, learning_rate=0.01, metrics=["accuracy"])
