"""Training steps of a masked model beside those of the plain one and of the same model as stock tfmot wraps it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.importing import import_with_tfmot
from aimp_tf.masking import wrap
from benchmarks.networks import BATCH_SIZE, compiled_model, made_up_images, repeated
from benchmarks.side_by_side import compare, time_in_turn

_STEPS = {"lenet_300_100": 400, "lenet_5": 100, "resnet_20": 8}

alike_but_for_rounding = functools.partial(np.allclose, rtol=1e-2, atol=1e-3)
"""Whether two weights are what short trainings at a low rate give, with sums in other orders."""


def run(
    repetitions: int,
    steps: Mapping[str, int] = _STEPS,
    generations: Sequence[str] = ("keras", "tf_keras"),
) -> dict[str, Any]:
    """Trains each network on one batch of 128 made-up images of 28 x 28, over and over.

    The masks are all ones, so that all sides train alike; what a mask costs does not depend on what it holds.

    Args:
        steps: Architecture -> steps in each repetition.
    """
    figures: dict[str, Any] = {}
    lines = []
    for architecture, count in steps.items():
        for generation in generations:
            keras, title = importlib.import_module(generation), f"{architecture} ({generation})"
            fits: dict[str, tuple[Any, Sequence[Any]]] = {
                "plain": (compiled_model(architecture, keras), []),
                "masked": (wrap(compiled_model(architecture, keras)), []),
            }
            if generation == "tf_keras":
                stock_tfmot = import_with_tfmot("benchmarks.stock_tfmot")
                fits["tfmot"] = stock_tfmot.wrap_without_pruning(compiled_model(architecture, keras))
            seconds = time_fits(fits, repeated(made_up_images(BATCH_SIZE), count), repetitions)
            figures[title], added = compare(title, seconds, "plain", per=count)
            lines += added
    return {**figures, "table": "\n".join(lines)}


def time_fits(
    fits: Mapping[str, tuple[Any, Sequence[Any]]], data: tf.data.Dataset, repetitions: int
) -> dict[str, list[float]]:
    """`time_in_turn` of `fit`, for models that begin with the same weights, once each of them has been traced.

    Args:
        fits: Side -> compiled model and the callbacks that its `fit` needs.
        data: Batches of an epoch.
        repetitions: As in `time_in_turn`.

    Raises:
        RuntimeError: The weights differ by more than what rounding in another order makes of them.
    """

    def train(name: str) -> list[np.ndarray]:
        model, callbacks = fits[name]
        model.fit(data, callbacks=list(callbacks), verbose=0)
        return [np.asarray(variable.numpy()) for variable in model.trainable_variables]

    for name in fits:
        train(name)
    # Masks of ones change no weight, but XLA may round their graph in another way.
    return time_in_turn(
        {name: functools.partial(train, name) for name in fits}, repetitions, same=alike_but_for_rounding
    )
