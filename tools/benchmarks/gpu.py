"""Times of steps and runs on a GPU: masked beside dense, mixed precision beside float32, data there beside the host."""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.mixed_precision import resolve_policy
from aimp_tf.config import PruningConfig
from aimp_tf.masking import wrap
from aimp_tf.pruning import prune
from benchmarks.networks import compiled_model, global_policy, made_up_images, repeated
from benchmarks.side_by_side import spread_text, tell, time_in_turn
from benchmarks.step import alike_but_for_rounding, time_fits

# The batch, and the images and classes of the data sets that these networks were made for: CIFAR-10 and ImageNet.
_SHAPES = {"resnet_20": (128, (32, 32, 3), 10), "resnet_50": (64, (224, 224, 3), 1000)}


def run(
    repetitions: int,
    architectures: Sequence[str] = tuple(_SHAPES),
    generations: Sequence[str] = ("keras", "tf_keras"),
    steps: int = 50,
    device: str = "GPU",
) -> dict[str, Any]:
    """Trains networks of both generations of Keras on made-up images.

    In float32 and in mixed precision, and with `data_on_device` and without. Dense and masked steps must end with the
    same weights, and runs with the same sparsity.

    Args:
        architectures: Of "resnet_20" and "resnet_50".
        steps: Batches in an epoch.
        device: Kind of device to measure on. Where there is none, nothing is measured.
    """
    if not tf.config.list_physical_devices(device):
        return {"table": f"TensorFlow finds no {device} here, so nothing was measured."}
    policies = ["float32", *filter(None, [resolve_policy("auto")])]
    figures: dict[str, Any] = {}
    lines = [f"{repetitions} times each: median (lowest to highest)"]

    def add(network: str, name: str, seconds: Mapping[str, Sequence[float]], per: int = 1) -> None:
        (first, one), (second, other) = seconds.items()
        ratios = [there / here for here, there in zip(one, other, strict=True)]
        figures.setdefault(network, {})[name] = {
            **{f"{side}_seconds": statistics.median(times) / per for side, times in seconds.items()},
            "ratio": statistics.median(ratios),
        }
        for side, times in seconds.items():
            lines.append(f"{network}, {name}, {side}: {spread_text([1000 * value / per for value in times], ' ms')}")
        lines.append(f"{network}, {name}, {second} over {first}: {spread_text(ratios)}")
        tell("\n".join(lines[-3:]))

    for architecture in architectures:
        for generation in generations:
            keras, network = importlib.import_module(generation), f"{architecture} ({generation})"
            for policy in policies:
                add(network, f"step in {policy}", _time_steps(architecture, keras, policy, steps, repetitions), steps)
            if len(policies) > 1:
                add(network, "epochs of a run", _time_runs(architecture, keras, steps, repetitions))
            add(network, "epochs of a training", _time_data(architecture, keras, steps, repetitions))
    return {**figures, "table": "\n".join(lines)}


def _time_steps(architecture: str, keras: Any, policy: str, steps: int, repetitions: int) -> dict[str, list[float]]:
    data = _batches(architecture, steps)
    with global_policy(keras, policy):
        dense, plain = _compiled(architecture, keras), _compiled(architecture, keras)
    return time_fits({"dense": (dense, []), "masked": (wrap(plain), [])}, data, repetitions)


def _time_runs(architecture: str, keras: Any, steps: int, repetitions: int) -> dict[str, list[float]]:
    data = _batches(architecture, steps)

    def train(mixed_precision: str | None, clock: Any) -> list[np.ndarray]:
        model = _compiled(architecture, keras)
        config = PruningConfig(target_sparsity=0.5, rate=0.3, epochs=2, round_epochs=1, mixed_precision=mixed_precision)
        result = prune(model, data, config=config, callbacks=clock, verbose=0)
        # Half precision finds other weights; what must be the same is how many are left.
        return [np.array([round_.kept for round_ in result.rounds])]

    return _time_later_epochs(keras, train, {"float32": None, "mixed precision": "auto"}, repetitions)


def _time_data(architecture: str, keras: Any, steps: int, repetitions: int) -> dict[str, list[float]]:
    batch_size, shape, classes = _SHAPES[architecture]
    data = made_up_images(batch_size * min(steps, 8), shape, classes)

    def train(data_on_device: bool, clock: Any) -> list[np.ndarray]:
        model = _compiled(architecture, keras)
        config = PruningConfig(target_sparsity=0.5, method="dense", epochs=4, seed=0)
        prune(
            model,
            data,
            config=config,
            batch_size=batch_size,
            steps_per_epoch=steps,
            data_on_device=data_on_device,
            callbacks=clock,
            verbose=0,
        )
        return [np.asarray(variable.numpy()) for variable in model.trainable_variables]

    sides = {"data on the host": False, "data on the device": True}
    return _time_later_epochs(keras, train, sides, repetitions, same=alike_but_for_rounding)


def _time_later_epochs(
    keras: Any,
    train: Callable[[Any, Any], Sequence[np.ndarray]],
    sides: Mapping[str, Any],
    repetitions: int,
    same: Callable[[np.ndarray, np.ndarray], bool] = np.array_equal,
) -> dict[str, list[float]]:
    """Seconds from the end of the first epoch, in which a model is traced and compiled, to the end of the last.

    `train` takes the setting of a side, of name -> setting, and a callback, and gives what must be the same.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}

    def timed(name: str) -> Sequence[np.ndarray]:
        ends: list[float] = []
        clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
        trained = train(sides[name], clock)
        seconds[name].append(ends[-1] - ends[0])
        return trained

    time_in_turn({name: functools.partial(timed, name) for name in sides}, repetitions, same=same)
    return seconds


def _batches(architecture: str, steps: int) -> tf.data.Dataset:
    return repeated(made_up_images(*_SHAPES[architecture]), steps)


def _compiled(architecture: str, keras: Any) -> Any:
    return compiled_model(architecture, keras, *_SHAPES[architecture][1:])
