"""Size against accuracy for each step from a dense network to a coded file: pruned, compacted, shared, coded."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aimp_tf.coding.tensors import MOST_LEVELS
from aimp_tf.exporting.coded import load_coded, write_coded
from aimp_tf.exporting.compaction import compact
from aimp_tf.extras import imported
from aimp_tf.files import write_atomically
from aimp_tf.fine_tuning import fine_tune
from aimp_tf.runs.recorded_run import read_run
from aimp_tf.sharing import share_weights
from experiments import datasets
from experiments.experiment import Experiment
from experiments.exports import load_run
from experiments.run import accuracy_of, load_data
from experiments.study_report import percent_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HALF: dict[str, Any] = {"centroids": "float16", "others": "float16", "fold_normalization": True}


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of one run.

    Attributes:
        name: Such as "shared by 8 a layer".
        seed: Of the run.
        bytes: Of its weights as they are stored, or of the whole file.
        accuracy: Fraction of the test images that it gets right; of a file, as it is read back.
        dense_accuracy: The same of the dense network.
        dense_bytes: Of the weights of that.
    """

    name: str
    seed: int
    bytes: int
    accuracy: float
    dense_accuracy: float
    dense_bytes: int


def levels_of(texts: Sequence[str]) -> list[int]:
    """How many values to share, of texts. Raises ValueError for those that `share_weights` does not take."""
    levels = [int(text) for text in texts if text.isdecimal()]
    if not levels or len(levels) < len(texts) or not all(2 <= each <= MOST_LEVELS for each in levels):
        raise ValueError(f"--levels must be whole numbers from 2 to {MOST_LEVELS}; got {','.join(texts)}.")
    return levels


def load(
    experiment: Experiment, workdirs: Sequence[str | os.PathLike[str]], data_dir: str | os.PathLike[str] | None
) -> list[Chain]:
    """What finished runs of an experiment have pruned. Nothing is written.

    Args:
        experiment: That of the runs, which differ by their seeds alone.
        workdirs: Where they are.
        data_dir: As `datasets.load` takes it.

    Raises:
        ValueError: A run has no dense network beside it, or two have the same seed.
        RuntimeError, ValueError: As `exports.load_run` and `datasets.load`.
        ImportError: The extra `coded` is not installed.
    """
    imported("coded", "constriction")
    seeded = [dataclasses.replace(experiment, seed=int(read_run(workdir).config["seed"])) for workdir in workdirs]
    seeds = [each.seed for each in seeded]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"The runs must be of different seeds; theirs are {', '.join(map(str, seeds))}.")
    data = load_data(experiment, data_dir)
    return [Chain(each, workdir, data) for each, workdir in zip(seeded, workdirs, strict=True)]


def run(
    chains: Sequence[Chain],
    output: pathlib.Path,
    levels: Sequence[int],
    per: Sequence[str],
    epochs: int,
    learning_rate: float,
) -> str:
    """Codes what runs have pruned, and writes files, with a line as each is there, steps.json and steps.png.

    Args:
        chains: Those of the runs.
        output: The folder to write.
        levels: How many values a kernel or the model gets: each is tried.
        per: "layer", "model": each is tried.
        epochs: How long values are fine-tuned, by Adam.
        learning_rate: Of that.

    Returns:
        A table of means over the runs.
    """
    for chain in chains:
        chain.before_sharing(output)
        for count in levels:
            for each in per:
                chain.share(output, count, each, epochs, learning_rate)
                print(_line(chain.steps[-1:]))
    steps = [step for chain in chains for step in chain.steps]
    write_atomically(output / "steps.json", json.dumps([dataclasses.asdict(step) for step in steps], indent=2))
    if importlib.util.find_spec("matplotlib"):
        plot(steps, chains[0].experiment.architecture).savefig(output / "steps.png", dpi=120)
    return table(steps)


class Chain:
    """The steps of one run.

    Attributes:
        experiment: Its experiment, with its seed.
        steps: Those that were taken.
    """

    def __init__(self, experiment: Experiment, workdir: str | os.PathLike[str], data: datasets.ImageData) -> None:
        self.experiment = experiment
        self.steps: list[Step] = []
        self._data = data
        dense = (read_run(workdir).outcome.dense_metrics or {}).get("val_accuracy")
        if dense is None:
            raise ValueError(f"{workdir} has no dense network beside it: run tools/prune.py to its end.")
        self._pruned = load_run(experiment, workdir)
        self._keras = importlib.import_module(experiment.keras)
        self._compile(self._pruned)
        self._compacted = compact(self._pruned)
        self._dense = float(dense), _bytes(self._pruned)

    def before_sharing(self, output: pathlib.Path) -> None:
        """Adds the steps that lose nothing."""
        self._add("dense", self._dense[1], self._dense[0])
        self._add("pruned", _bytes(self._pruned), accuracy_of(self._pruned, self._data))
        self._add("compacted", _bytes(self._compacted), accuracy_of(self._compacted, self._data))
        self._code(output, "compacted, coded", self._compacted)

    def share(self, output: pathlib.Path, levels: int, per: str, epochs: int, learning_rate: float) -> None:
        """Adds a file of shared weights as they are, and one of those that were fine-tuned."""
        shared = share_weights(self._compacted, levels, per=per, **_HALF)
        name = f"shared by {levels} a {per}"
        self._code(output, f"{name}, coded", shared)
        self._keras.utils.set_random_seed(self.experiment.seed)
        shared = share_weights(self._compacted, levels, per=per)
        self._compile(shared, learning_rate)
        images, labels = self._data.train_images, self._data.train_labels
        batch_size = self.experiment.batch_size
        fine_tune(shared, images, labels, epochs=epochs, batch_size=batch_size, weights="shared", verbose=0)
        self._code(output, f"{name}, tuned, coded", share_weights(shared, levels, per=per, **_HALF))

    def _code(self, output: pathlib.Path, name: str, model: Any) -> None:
        folder = output / f"seed_{self.experiment.seed}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name.replace(', coded', '').replace(', ', '_').replace(' ', '_')}.coded"
        write_coded(model, path)
        loaded = load_coded(path)
        self._compile(loaded)
        self._add(name, path.stat().st_size, accuracy_of(loaded, self._data))

    def _add(self, name: str, size: int, accuracy: float) -> None:
        self.steps.append(Step(name, self.experiment.seed, size, accuracy, *self._dense))

    def _compile(self, model: Any, learning_rate: float = 1e-3) -> None:
        loss = self._keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(self._keras.optimizers.Adam(learning_rate), loss, metrics=["accuracy"])


def table(steps: Sequence[Step]) -> str:
    """The steps in their order, each with means over the runs."""
    names = list(dict.fromkeys(step.name for step in steps))
    head = f"{'':36}{'bytes':>12}{'dense / this':>14}  {'accuracy, %':22}less than dense, points"
    return "\n".join([head, *(_line([step for step in steps if step.name == name]) for name in names)])


def _line(steps: Sequence[Step]) -> str:
    size = statistics.mean(step.bytes for step in steps)
    times = statistics.mean(step.dense_bytes / step.bytes for step in steps)
    lost = [100 * (step.dense_accuracy - step.accuracy) for step in steps]
    spread = f" ({min(lost):.2f} to {max(lost):.2f})" if len(lost) > 1 else ""
    accuracy = percent_text([step.accuracy for step in steps])
    return f"{steps[0].name:36}{size:12,.0f}{times:14.1f}  {accuracy:22}{statistics.mean(lost):.2f}{spread}"


def plot(steps: Sequence[Step], title: str) -> Figure:
    """Accuracy against how many times smaller than the dense weights, a point for each file of each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    kinds = {
        "as it was pruned": lambda name: "shared" not in name and "coded" in name,
        "shared": lambda name: "shared" in name and "tuned" not in name,
        "shared and tuned": lambda name: "tuned" in name,
    }
    for (label, chosen), marker in zip(kinds.items(), "sox", strict=True):
        found = [step for step in steps if chosen(step.name)]
        times = [step.dense_bytes / step.bytes for step in found]
        axes.scatter(times, [100 * step.accuracy for step in found], marker=marker, label=label)
    dense = statistics.mean(step.dense_accuracy for step in steps)
    axes.axhline(100 * dense, color="0.5", linewidth=1, label="dense")
    axes.set(title=title, xlabel="times smaller than the dense float32 weights", ylabel="test accuracy, %")
    axes.legend()
    return figure


def _bytes(model: Any) -> int:
    return sum(weight.nbytes for weight in model.get_weights())
