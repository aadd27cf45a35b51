"""What a run directory costs: the same run with and without `workdir`."""

from __future__ import annotations

import pathlib
import statistics
import tempfile
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aimp_tf.pruning import prune
from aimp_tf.runs.run_directory import RunDirectory
from aimp_tf.runs.saving import RunSaver
from benchmarks.networks import BATCH_SIZE, compiled_model, made_up_images
from benchmarks.side_by_side import spread_text, time_in_turn, timing


def run(repetitions: int, architecture: str = "resnet_20", steps_per_epoch: int = 20) -> dict[str, Any]:
    """Prunes a network on made-up images of 28 x 28, in two rounds of 2 epochs and a last one of 6.

    Epochs are short, of so many batches of 128, and saving costs more than it does in use. Both sides must end with the
    same weights, bit for bit.
    """
    tf.config.experimental.enable_op_determinism()
    shares: list[float] = []
    exports: list[float] = []

    def with_workdir() -> list[np.ndarray]:
        saving = timing(RunSaver, "begin", "on_epoch_end", "save_round")
        exporting = timing(RunDirectory, "save_model")
        with tempfile.TemporaryDirectory() as folder, saving as saves, exporting as export:
            result = _prune(architecture, steps_per_epoch, pathlib.Path(folder) / "run")
        exports.append(sum(export))
        shares.append(sum(saves) / result.seconds)
        return result.model.get_weights()

    sides = {
        "with workdir": with_workdir,
        "without": lambda: _prune(architecture, steps_per_epoch, None).model.get_weights(),
    }
    seconds = time_in_turn(sides, repetitions)
    pairs = zip(seconds["with workdir"], exports, seconds["without"], strict=True)
    ratios = [(here - export) / there for here, export, there in pairs]
    table = [
        f"{architecture}, 10 epochs of {steps_per_epoch} steps, {repetitions} times each: median (lowest to highest)",
        *(f"{name:42}{spread_text(values, ' s')}" for name, values in seconds.items()),
        f"{'saving, share of the run':42}{spread_text([100 * share for share in shares], '%')}",
        f"{'with workdir, but export, over without':42}{spread_text(ratios)}",
        f"{'exporting the SavedModel at the end':42}{spread_text(exports, ' s')}",
    ]
    return {
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "saving_share": statistics.median(shares),
        "ratio": statistics.median(ratios),
        "export_seconds": statistics.median(exports),
        "table": "\n".join(table),
    }


def _prune(architecture: str, steps_per_epoch: int, workdir: pathlib.Path | None) -> Any:
    return prune(
        compiled_model(architecture, keras, learning_rate=0.01),
        made_up_images(BATCH_SIZE * steps_per_epoch),
        target_sparsity=0.5,
        rate=0.3,
        epochs=6,
        round_epochs=2,
        seed=0,
        workdir=workdir,
        batch_size=BATCH_SIZE,
        verbose=0,
    )
