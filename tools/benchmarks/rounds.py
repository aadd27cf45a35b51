"""What lies between one round and the next: from the end of an epoch to the beginning of the next one's first step."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Sequence
from typing import Any
from unittest import mock

from aimp_tf.pruning import prune
from aimp_tf.training.input_pipeline import array_dataset
from benchmarks.networks import BATCH_SIZE, compiled_model, made_up_images
from benchmarks.side_by_side import spread_text


def run(
    repetitions: int,
    architecture: str = "resnet_20",
    generations: Sequence[str] = ("keras", "tf_keras"),
    steps_per_epoch: int = 20,
) -> dict[str, Any]:
    """Times the gaps between rounds of an epoch that rewind all weights, and between as many plain `fit` calls.

    Args:
        repetitions: How often each run is made.
        architecture: As `experiments.models.build` takes it.
        generations: Of "keras" and "tf_keras".
        steps_per_epoch: Batches of 128 made-up images of 28 x 28 in an epoch.

    Returns:
        Medians of seconds and shares by generation, and "table", the same as a text.

    Raises:
        RuntimeError: The two sides did not train as many epochs, or a round was traced again.
    """
    figures: dict[str, Any] = {}
    lines = []
    for generation in generations:
        keras, title = importlib.import_module(generation), f"{architecture} ({generation})"
        sides = {"fit after fit": _fit, "prune": _prune}
        gaps: dict[str, list[float]] = {name: [] for name in sides}
        epochs: list[float] = []
        for repetition in range(repetitions):
            lengths = []
            for name in list(sides)[:: 1 if repetition % 2 == 0 else -1]:
                clock = _clock(keras)
                with mock.patch.object(keras.Model, "train_step", _counted(keras.Model.train_step, clock)):
                    sides[name](architecture, keras, steps_per_epoch, clock)
                if clock.traces[-1] != clock.traces[0]:
                    raise RuntimeError(f"{title}, {name}: the training step was traced again after the first epoch.")
                gaps[name] += [begin - end for end, begin in zip(clock.ends, clock.begins[1:], strict=False)]
                epochs += [end - begin for begin, end in zip(clock.begins[1:], clock.ends[1:], strict=True)]
                lengths.append(len(clock.ends))
            if len(set(lengths)) != 1:
                raise RuntimeError(f"{title}: the sides trained {lengths} epochs, so their times do not compare.")
        added = statistics.median(gaps["prune"]) - statistics.median(gaps["fit after fit"])
        figures[title] = {
            "gap_seconds": {name: statistics.median(values) for name, values in gaps.items()},
            "added_seconds": added,
            "epoch_seconds": statistics.median(epochs),
        }
        for name, values in gaps.items():
            lines.append(f"{title:28}{name:18}{spread_text([1000 * value for value in values], ' ms')} between epochs")
        share = added / statistics.median(epochs)
        lines.append(
            f"{title:28}{'added':18}{1000 * added:.4g} ms, {100 * share:.2g}% of an epoch of "
            f"{statistics.median(epochs):.3g} s; nothing traced again"
        )
    return {**figures, "table": "\n".join(lines)}


def _counted(train_step: Any, clock: Any) -> Any:
    """`train_step` as a method that counts its calls, which happen only when it is traced."""

    def call(model: Any, *arguments: Any, **options: Any) -> Any:
        clock.calls += 1
        return train_step(model, *arguments, **options)

    return call


def _clock(keras: Any) -> Any:
    class Clock(keras.callbacks.Callback):
        """Remembers when epochs take their first step and end, and how often `train_step` had been called then."""

        def __init__(self) -> None:
            super().__init__()
            self.begins: list[float] = []
            self.ends: list[float] = []
            self.calls = 0
            self.traces: list[int] = []

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 0:
                self.begins.append(time.perf_counter())

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.ends.append(time.perf_counter())
            self.traces.append(self.calls)

    return Clock()


def _prune(architecture: str, keras: Any, steps: int, clock: Any) -> None:
    prune(
        compiled_model(architecture, keras),
        made_up_images(BATCH_SIZE * steps),
        target_sparsity=0.9,
        rate=0.4,
        epochs=1,
        round_epochs=1,
        rewind="weights",
        seed=0,
        callbacks=[clock],
        batch_size=BATCH_SIZE,
        verbose=0,
    )


def _fit(architecture: str, keras: Any, steps: int, clock: Any) -> None:
    model = compiled_model(architecture, keras)
    data = array_dataset(made_up_images(BATCH_SIZE * steps), BATCH_SIZE, seed=0)
    for _ in range(6):
        model.fit(data, callbacks=[clock], verbose=0)
