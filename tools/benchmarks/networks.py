"""Compiled networks and made-up images for the benchmarks, always the same."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import runpy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.training.input_pipeline import without_autotuning
from experiments import models
from experiments.experiment import Experiment

SHAPE, CLASSES = (28, 28, 1), 10
"""Of the images, unless it is said."""
BATCH_SIZE = 128


def recipe_of(study: str, *network: str) -> Experiment:
    """The experiment of a study in configs/, which is to look at its test images at the end alone."""
    config = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "configs" / f"{study}.py"))
    return dataclasses.replace(config["get_config"](*network).experiment, validation_freq=1000)


def compiled_model(
    architecture: str,
    keras: Any,
    shape: tuple[int, ...] = SHAPE,
    classes: int = CLASSES,
    *,
    learning_rate: float = 1e-4,
    metrics: Sequence[str] = (),
) -> Any:
    """A model with the same first weights every time, to be trained by SGD with momentum.

    Args:
        architecture: As `experiments.models.build` takes it, or "resnet_50".
        keras: The module `keras` or `tf_keras`.
        shape: Of an image.
        classes: Number of logits.
        learning_rate: By default so low that rounding does not add up.
        metrics: As in `compile`.
    """
    keras.utils.set_random_seed(0)
    if architecture == "resnet_50":
        model = keras.applications.ResNet50(
            weights=None, input_shape=shape, classes=classes, classifier_activation=None
        )
    else:
        model = models.build(architecture, keras, shape, classes)
    model.compile(
        keras.optimizers.SGD(learning_rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=list(metrics),
    )
    return model


@contextlib.contextmanager
def global_policy(keras: Any, policy: str) -> Iterator[None]:
    """Within it, layers are made with a policy of mixed precision, such as "float64"."""
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def made_up_images(count: int, shape: tuple[int, ...] = SHAPE, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Images, float32 (count, *shape), and labels, int64 (count,)."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(count, *shape)).astype(np.float32)
    return images, generator.integers(0, classes, count)


def repeated(batch: tuple[np.ndarray, np.ndarray], steps: int) -> tf.data.Dataset:
    """A dataset of the same batch over and over, which takes no time to make."""
    return without_autotuning(tf.data.Dataset.from_tensors(batch).repeat(steps).prefetch(2))
