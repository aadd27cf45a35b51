"""What lies between one round and the next: from the end of an epoch to the beginning of the next one's first step."""

from __future__ import annotations

import contextlib
import importlib
import statistics
import time
from collections.abc import Iterator, Sequence
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

    An epoch is so many batches of 128 made-up images of 28 x 28. No round may be traced again.
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
                with _clock(keras) as (clock, begins, ends, traces):
                    sides[name](architecture, keras, steps_per_epoch, clock)
                if traces[-1] != traces[0]:
                    raise RuntimeError(f"{title}, {name}: the training step was traced again after the first epoch.")
                gaps[name] += [begin - end for end, begin in zip(ends, begins[1:], strict=False)]
                epochs += [end - begin for begin, end in zip(begins[1:], ends[1:], strict=True)]
                lengths.append(len(ends))
            if len(set(lengths)) != 1:
                raise RuntimeError(f"{title}: the sides trained {lengths} epochs, so their times do not compare.")
        medians = {name: statistics.median(values) for name, values in gaps.items()}
        added, epoch = medians["prune"] - medians["fit after fit"], statistics.median(epochs)
        figures[title] = {"gap_seconds": medians, "added_seconds": added, "epoch_seconds": epoch}
        for name, values in gaps.items():
            lines.append(f"{title:28}{name:18}{spread_text([1000 * value for value in values], ' ms')} between epochs")
        lines.append(
            f"{title:28}{'added':18}{1000 * added:.4g} ms, {100 * (added / epoch):.2g}% of an epoch of {epoch:.3g} s; "
            "nothing traced again"
        )
    return {**figures, "table": "\n".join(lines)}


@contextlib.contextmanager
def _clock(keras: Any) -> Iterator[tuple[Any, list[float], list[float], list[int]]]:
    """A callback, and what it notes: when epochs take their first step, when they end, and how often `train_step` had
    been called then, which happens only when it is traced."""
    begins: list[float] = []
    ends: list[float] = []
    traces: list[int] = []
    calls: list[Any] = []
    train_step = keras.Model.train_step

    def counted(model: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(model)
        return train_step(model, *arguments, **options)

    def begin(batch: int, logs: Any = None) -> None:
        if batch == 0:
            begins.append(time.perf_counter())

    def end(epoch: int, logs: Any = None) -> None:
        ends.append(time.perf_counter())
        traces.append(len(calls))

    with mock.patch.object(keras.Model, "train_step", counted):
        yield keras.callbacks.LambdaCallback(on_train_batch_begin=begin, on_epoch_end=end), begins, ends, traces


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
