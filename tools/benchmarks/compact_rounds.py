"""What `compact_rounds` saves: training steps of the live part of a pruned network beside those of the whole one."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.graph.model_graph import ModelGraph
from aimp_tf.masking import MaskedModel, mask_model
from aimp_tf.training.callback import GlobalMagnitudePruning
from aimp_tf.training.live_rounds import LiveNetwork
from benchmarks.networks import BATCH_SIZE, compiled_model, made_up_images, repeated
from benchmarks.side_by_side import compare, time_in_turn
from experiments import datasets

# Examples of an epoch, learning rate, and steps in each repetition. A ResNet takes too long for all examples.
_RECIPES = {"lenet_300_100": (60000, 0.1, 400), "lenet_5": (60000, 0.1, 100), "resnet_20": (5000, 0.3, 8)}
_SPARSITIES = (0.98, 0.99, 0.995)
# But for rounding, which may differ where zeros are left out of sums.
_same = functools.partial(np.allclose, rtol=1e-4, atol=1e-5)


def run(
    repetitions: int,
    data_dir: str | os.PathLike[str] | None = None,
    recipes: Mapping[str, tuple[int, float, int]] = _RECIPES,
    generations: Sequence[str] = ("keras", "tf_keras"),
    dataset: str = "fashion_mnist",
) -> dict[str, Any]:
    """Prunes each network in rounds of an epoch, and times steps with the masks of 98%, 99% and 99.5% on one batch.

    Args:
        recipes: Architecture -> examples in an epoch, learning rate of SGD, and steps in each repetition.

    Returns:
        By network, generation and sparsity, medians of seconds a step and ratios, which fraction of the multiplications
        is left, and how many seconds the first steps took, tracing included.
    """
    data = datasets.load(dataset, data_dir)
    figures: dict[str, Any] = {}
    lines = []
    for architecture, (examples, rate, steps) in recipes.items():
        images, labels = data.train_images[:examples], data.train_labels[:examples]
        for generation in generations:
            make = functools.partial(
                compiled_model, architecture, importlib.import_module(generation), images.shape[1:], data.classes
            )
            for sparsity, weights, masks in _prune(make(learning_rate=rate), images, labels):
                title = f"{architecture}, {sparsity:.1%} ({generation})"
                part = mask_model(make())
                sides = {"whole": mask_model(make()), "live part": part}
                for masked in sides.values():
                    masked.set_masks(masks)
                live = LiveNetwork(ModelGraph.of(part.original), part).part()
                part.train_part(live.weights, live.attributes)
                batch = repeated(made_up_images(BATCH_SIZE, images.shape[1:], data.classes), steps)
                fits = {name: functools.partial(_fit, masked, weights, batch) for name, masked in sides.items()}
                first = time_in_turn(fits, 1, _same)
                figures[title], added = compare(title, time_in_turn(fits, repetitions, _same), "whole", per=steps)
                figures[title] |= {
                    "multiply_adds": live.share,
                    "first_seconds": {name: seconds for name, (seconds,) in first.items()},
                }
                lines += [*added, f"{'':28}{live.share:.1%} of the multiplications"]
    return {**figures, "table": "\n".join(lines)}


def _prune(
    model: Any, images: np.ndarray, labels: np.ndarray
) -> Iterator[tuple[float, list[np.ndarray], dict[str, np.ndarray]]]:
    """Sparsity, weights and masks of the first round at each of the sparsities or beyond."""
    config = PruningConfig(_SPARSITIES[-1], rate=0.3, epochs=1, round_epochs=1, seed=0, compact_rounds=True)
    masked, pruning, left = mask_model(model), GlobalMagnitudePruning(config), list(_SPARSITIES)
    while not pruning.finished:
        masked.model.fit(images, labels, batch_size=BATCH_SIZE, epochs=1, callbacks=[pruning], verbose=0)
        sparsity = pruning.rounds[-1].sparsity
        if left and sparsity >= left[0] - 1e-4:
            yield sparsity, masked.snapshot(), masked.masks()
            left = [later for later in left if later > sparsity + 1e-4]


def _fit(masked: MaskedModel, weights: list[np.ndarray], batch: Any) -> list[np.ndarray]:
    """Trains from these weights on, so that rounding does not add up from repetition to repetition.

    Gives losses and trainable weights: moving statistics of what nothing reads stay behind.
    """
    masked.restore(weights)
    masked.optimizer.reset()
    history = masked.model.fit(batch, verbose=0)
    masked.part.put_back()
    trained = [np.array(variable.numpy()) for variable in masked.original.trainable_variables]
    return [np.array(history.history["loss"]), *trained]
