"""What came of the rounds of a run, as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.selection.planning import Round
from aimp_tf.selection.ranking import surviving

_LOWEST_OCTAVE, _HIGHEST_OCTAVE = -20, 4
_BINS_PER_OCTAVE = 4
ADDED_TO_LOSS = ("penalty", "distillation")
"""Names in the logs of what is added to the loss."""

_LAST_CHOICES = ("loss", "mask_distance", *ADDED_TO_LOSS)

MAGNITUDE_EDGES: tuple[float, ...] = tuple(
    2.0 ** (step / _BINS_PER_OCTAVE)
    for step in range(_LOWEST_OCTAVE * _BINS_PER_OCTAVE, _HIGHEST_OCTAVE * _BINS_PER_OCTAVE + 1)
)
"""Edges of the bins of `LayerResult.magnitudes`: four to each octave from 2**-20 to 2**4."""


@dataclasses.dataclass(frozen=True)
class LayerResult:
    """One prunable variable at the end of a training.

    Attributes:
        path: Its path, such as "head/dense/kernel".
        shape: Its shape.
        kept: Number of its weights that were not masked.
        threshold: The smallest magnitude that the last ranking kept in it; None where nothing was ranked or kept.
        magnitudes: How many of its surviving weights have a magnitude in each of the bins between `MAGNITUDE_EDGES`.
            Smaller ones, zeros included, are counted in the first bin, larger ones in the last.
        shrink: What was left of each of its surviving weights when the training began, in (0, 1].
    """

    path: str
    shape: tuple[int, ...]
    kept: int
    threshold: float | None
    magnitudes: tuple[int, ...] = dataclasses.field(repr=False)
    shrink: float = 1.0

    @classmethod
    def of(
        cls, path: str, weight: np.ndarray, mask: np.ndarray, threshold: float | None, shrink: float = 1.0
    ) -> LayerResult:
        """The result of a variable from its value and its mask, arrays of one shape."""
        return cls(
            path=path,
            shape=weight.shape,
            kept=int(np.count_nonzero(mask)),
            threshold=threshold,
            magnitudes=_count_magnitudes(weight, mask),
            shrink=shrink,
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> LayerResult:
        """From `dataclasses.asdict`, as it comes back from JSON. Raises KeyError, TypeError, ValueError for others."""
        threshold = fields["threshold"]
        layer = cls(
            path=str(fields["path"]),
            shape=tuple(map(int, fields["shape"])),
            kept=int(fields["kept"]),
            threshold=None if threshold is None else float(threshold),
            magnitudes=tuple(map(int, fields["magnitudes"])),
            shrink=float(fields.get("shrink", 1.0)),
        )
        if not 0 <= layer.kept <= layer.size or len(layer.magnitudes) != len(MAGNITUDE_EDGES) - 1:
            raise ValueError(f"{layer.path} keeps {layer.kept} of {layer.size} weights in {len(layer.magnitudes)} bins")
        return layer

    @property
    def size(self) -> int:
        """Number of its weights."""
        return math.prod(self.shape)

    @property
    def sparsity(self) -> float:
        """Fraction of its weights that were masked, in [0, 1]."""
        return 1 - self.kept / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a training was to leave of a network, and what it left.

    Attributes:
        counted: What is counted: "weight", "channel", "multiply-add" or "microsecond".
        asked: How many of them were to be left, at most.
        kept: How many were left.
        dense: How many there were before anything was pruned.
        of: Of what, where that is not the model itself, such as "a call of the TFLite file with 1 example and 1
            thread".
    """

    counted: str
    asked: int
    kept: int
    dense: int
    of: str = ""


@dataclasses.dataclass(frozen=True)
class RoundResult:
    """One training of a run.

    Attributes:
        index: Position in the run, from 0; the final training is the last.
        epochs: Epochs trained; fewer than planned where a stopping rule ended the round.
        kept: Number of prunable weights that were not masked.
        sparsity: Fraction of the prunable weights that were masked, in [0, 1).
        seconds: Wall time from the beginning of its `fit`, ranking and rewinding included, and timing models with a
            `Latency`, to its end.
        metrics: Those of the weights that it ended with, such as {"loss": 0.1, "accuracy": 0.97, "val_accuracy": 0.95};
            a list of numbers where a metric gives several. They are the logs of the last epoch, or of the one whose
            weights a callback brought back, such as EarlyStopping(restore_best_weights=True). Where weights came from
            elsewhere, they are measured anew; empty where that cannot be done.
        guarded: Paths of the variables that kept more weights than their rank gave them, for `max_layer_sparsity`,
            `min_layer_survivors` or `min_layer_share`.
        layers: Each prunable variable by itself.
        left_dense: Path -> why, of weight matrices that are not pruned and not counted, though no pattern excludes
            them: they are frozen, cannot hold the structure of `granularity`, or their layers are not known.
        budget: What was to be left of what the budget counts, and what was; None of runs by earlier versions.
    """

    index: int
    epochs: int
    kept: int
    sparsity: float
    seconds: float
    metrics: dict[str, Any]
    guarded: tuple[str, ...] = ()
    layers: tuple[LayerResult, ...] = dataclasses.field(default=(), repr=False)
    left_dense: Mapping[str, str] = dataclasses.field(default_factory=dict)
    budget: Budget | None = None

    @classmethod
    def of(
        cls,
        index: int,
        epoch_logs: Sequence[Mapping[str, Any]],
        weights: Mapping[str, np.ndarray],
        masks: Mapping[str, np.ndarray],
        seconds: float,
        *,
        thresholds: Sequence[float | None] = (),
        guarded: tuple[str, ...] = (),
        shrink: Mapping[str, float] | None = None,
        left_dense: Mapping[str, str] | None = None,
        metrics: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
    ) -> RoundResult:
        """The result of a training, whose weights and masks come by their paths.

        `thresholds` are in the order of `masks`, empty where nothing was ranked; `shrink` says by paths what was left
        of each weight when it began, 1 for others. Without `metrics`, they are the logs of the last epoch.
        """
        if metrics is None:
            metrics = epoch_logs[-1] if epoch_logs else {}
        layers = tuple(
            LayerResult.of(path, weights[path], mask, threshold, (shrink or {}).get(path, 1.0))
            for (path, mask), threshold in zip(masks.items(), thresholds or [None] * len(masks), strict=True)
        )
        kept = sum(layer.kept for layer in layers)
        return cls(
            index=index,
            epochs=len(epoch_logs),
            kept=kept,
            sparsity=1 - kept / sum(layer.size for layer in layers),
            seconds=seconds,
            metrics=dict(metrics),
            guarded=guarded,
            layers=layers,
            left_dense=dict(left_dense or {}),
            budget=budget,
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> RoundResult:
        """From `dataclasses.asdict`, as it comes back from JSON. Raises KeyError, TypeError, ValueError for others."""
        return cls(
            index=int(fields["index"]),
            epochs=int(fields["epochs"]),
            kept=int(fields["kept"]),
            sparsity=float(fields["sparsity"]),
            seconds=float(fields["seconds"]),
            metrics=dict(fields["metrics"]),
            guarded=tuple(map(str, fields["guarded"])),
            layers=tuple(map(LayerResult.from_fields, fields["layers"])),
            left_dense=_left_dense(fields.get("left_dense", {})),
            budget=Budget(**fields["budget"]) if fields.get("budget") else None,
        )

    @property
    def emptied(self) -> tuple[str, ...]:
        """Paths of the variables of which nothing was left."""
        return tuple(layer.path for layer in self.layers if not layer.kept)


def plain_logs(logs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The logs that Keras gives at the end of an epoch, as numbers and lists of numbers."""
    return {name: np.asarray(value).tolist() for name, value in (logs or {}).items()}


def by_split(logs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The logs of an epoch as those of "train" and, where it was validated, of "validation", without its "val_"."""
    splits: dict[str, dict[str, Any]] = {}
    for name, value in logs.items():
        split = "validation" if name.startswith("val_") else "train"
        splits.setdefault(split, {})[name.removeprefix("val_")] = value
    return splits


def duration_text(seconds: float) -> str:
    """A duration in the unit that suits it, such as "12 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def budget_text(budget: Budget) -> str:
    """What was asked for and what is left, as a sentence; nothing of single weights, which are told elsewhere."""
    if budget.counted == "weight" and budget.asked == budget.kept:
        return ""
    return (
        f"Of {counted_text(budget.dense, budget.counted)}{budget.of and f' of {budget.of}'}, {budget.kept:,} are left, "
        f"{percent_text(budget.kept / budget.dense, 1)}; at most {budget.asked:,} were to be."
    )


def plan_text(plan: Sequence[Round], total: int, at_most: bool = False, counted: str = "weight") -> str:
    """A plan in a line, such as "12 trainings, 96 epochs, 90.0% of 50,200 weights"; or "up to 96"."""
    epochs = counted_text(sum(round_.epochs for round_ in plan), "epoch")
    kept = plan[-1].kept
    removed = "none" if kept == total else percent_text(1 - kept / total, 1)
    return (
        f"{counted_text(len(plan), 'training')}, {'up to ' * at_most}{epochs}, {removed} of "
        f"{counted_text(total, counted)}"
    )


def counted_text(count: int, noun: str) -> str:
    """A number of things, such as "1 epoch" or "1,200 epochs"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def telling_metric(names: Sequence[str]) -> str | None:
    """Of the names of metrics, the one that tells most: the first of validation but the loss, or the nearest to that.

    It is one of training, if validation gives no more than its loss; None where there are no names.
    """
    return min(names, key=lambda name: (name.endswith(_LAST_CHOICES), not name.startswith("val_")), default=None)


def number_text(value: Any) -> str:
    """A metric, or the numbers of one that gives several, with four digits after the point; "" for None."""
    return "" if value is None else " ".join(f"{number:.4f}" for number in np.ravel(value))


def percent_text(fraction: float, digits: int = 2) -> str:
    """A fraction as percent. What is neither 0 nor 1 is never told as 0% or 100%: it gets more digits."""
    while 0 < fraction < 1 and digits < 9 and round(100 * fraction, digits) in (0, 100):
        digits += 1
    return f"{100 * fraction:.{digits}f}%"


def shrink_text(factors: Iterable[float]) -> str:
    """What is left of the weights of some variables, such as "70.0%" or "70.0% to 94.5%"; nothing where all is."""
    texts = [percent_text(factor, 1) for factor in sorted(set(factors)) or [1.0]]
    return "" if texts == [percent_text(1.0, 1)] else " to ".join(dict.fromkeys([texts[0], texts[-1]]))


def is_accuracy(name: str, value: Any) -> bool:
    """Whether a metric is a fraction of examples that are right, by its name and its value."""
    return names_accuracy(name) and isinstance(value, (int, float)) and 0 <= value <= 1


def names_accuracy(name: str) -> bool:
    """Whether a word of the name of a metric says that it is an accuracy."""
    return not {"acc", "accuracy"}.isdisjoint(name.lower().split("_"))


def metric_text(name: str, value: Any, digits: int = 2) -> str:
    """A metric by its name: an accuracy as percent with so many digits after the point, others as `number_text`."""
    return percent_text(value, digits) if is_accuracy(name, value) else number_text(value)


def round_table(rounds: Sequence[RoundResult], finished: bool = True) -> list[list[str]]:
    """A header and a row a round, as texts. Rounds count from 1; in a finished run, the final training is "last"."""
    names = list(rounds[-1].metrics)
    factors = [shrink_text(layer.shrink for layer in round_.layers) for round_ in rounds]
    shrunk = ["shrunk to"] if any(factors) else []
    rows = [["round", "epochs", "kept", "sparsity", *shrunk, "seconds", *names]]
    for round_, factor in zip(rounds, factors, strict=True):
        label = "last" if finished and round_ is rounds[-1] else str(round_.index + 1)
        numbers = [str(round_.epochs), f"{round_.kept:,}", percent_text(round_.sparsity)]
        numbers += [factor or "100%" for _ in shrunk] + [f"{round_.seconds:.1f}"]
        rows.append([label, *numbers, *(metric_text(name, round_.metrics.get(name)) for name in names)])
    return rows


def layer_table(layers: Sequence[LayerResult]) -> list[list[str]]:
    """A header and a row a variable, as texts."""
    rows = [["variable", "shape", "kept", "sparsity", "threshold"]]
    for layer in layers:
        shape = " x ".join(map(str, layer.shape))
        threshold = "" if layer.threshold is None else f"{layer.threshold:.3g}"
        rows.append([layer.path, shape, f"{layer.kept:,}", percent_text(layer.sparsity), threshold])
    return rows


def layer_notes(rounds: Sequence[RoundResult]) -> list[str]:
    """Sentences on variables of which nothing is left, that limits kept from losing more, or that are not pruned."""
    guarded = {path for round_ in rounds for path in round_.guarded}
    notes: dict[str, Collection[str]] = {
        "Nothing is left of": rounds[-1].emptied,
        "Kept above their rank by the limits on single variables": guarded,
    }
    left_dense = rounds[-1].left_dense
    for reason in sorted(set(left_dense.values())):
        notes[f"Left dense ({reason})"] = [path for path, why in left_dense.items() if why == reason]
    return [f"{note}: {', '.join(sorted(paths))}." for note, paths in notes.items() if paths]


def _left_dense(fields: Any) -> dict[str, str]:
    """As it comes from JSON. Older runs have none, or a list of those that blocks of four do not fit."""
    if not isinstance(fields, Mapping):
        fields = dict.fromkeys(fields, "its inputs are no multiple of 4")
    return {str(path): str(reason) for path, reason in fields.items()}


def _count_magnitudes(weight: np.ndarray, mask: np.ndarray) -> tuple[int, ...]:
    """How many survivors lie in each bin."""
    counts = np.zeros(len(MAGNITUDE_EDGES) - 1, np.int64)
    for values in surviving(weight, mask):
        with np.errstate(divide="ignore"):
            octaves = np.log2(np.abs(values.astype(np.float32)))
        bins = np.floor(octaves * _BINS_PER_OCTAVE) - _LOWEST_OCTAVE * _BINS_PER_OCTAVE
        counts += np.bincount(np.clip(bins, 0, counts.size - 1).astype(np.int64), minlength=counts.size)
    return tuple(counts.tolist())
