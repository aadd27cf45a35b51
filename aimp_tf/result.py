"""What a pruning run gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class RoundResult:
    """One training of a run.

    Attributes:
        index: Position in the run, from 0; the final training is the last.
        epochs: Epochs trained; fewer than planned where a stopping rule ended the round.
        kept: Number of prunable weights that were not masked.
        sparsity: Fraction of the prunable weights that were masked, in [0, 1).
        seconds: Wall time from the beginning of its `fit`, ranking and rewinding included, to its end.
        metrics: The logs of its last epoch, such as {"loss": 0.1, "accuracy": 0.97, "val_accuracy": 0.95}; a list of
            numbers where a metric gives several.
        emptied: Paths of the variables of which nothing was left.
        guarded: Paths of the variables that kept more weights than their rank gave them, for `max_layer_sparsity` or
            `min_layer_survivors`.
    """

    index: int
    epochs: int
    kept: int
    sparsity: float
    seconds: float
    metrics: dict[str, Any]
    emptied: tuple[str, ...] = ()
    guarded: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        index: int,
        epoch_logs: Sequence[Mapping[str, Any]],
        masks: Mapping[str, np.ndarray],
        seconds: float,
        guarded: tuple[str, ...] = (),
    ) -> RoundResult:
        """The result of a training from the logs of its epochs and its masks."""
        weight_count = sum(mask.size for mask in masks.values())
        kept = sum(int(np.count_nonzero(mask)) for mask in masks.values())
        return cls(
            index=index,
            epochs=len(epoch_logs),
            kept=kept,
            sparsity=1 - kept / weight_count,
            seconds=seconds,
            metrics=dict(epoch_logs[-1]) if epoch_logs else {},
            emptied=tuple(path for path, mask in masks.items() if not mask.any()),
            guarded=guarded,
        )


def plain_logs(logs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The logs that Keras gives at the end of an epoch, as numbers and lists of numbers."""
    return {name: np.asarray(value).tolist() for name, value in (logs or {}).items()}


def duration_text(seconds: float) -> str:
    """A duration in the unit that suits it, such as "12 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@dataclasses.dataclass(frozen=True)
class PruningResult:
    """A pruned model and how it came about.

    Attributes:
        model: The user's own model, pruned and compiled as before, with weights of the dtype it was made with.
        masks: Variable path, such as "head/dense/kernel" -> bool array of the variable's shape; True is kept.
        rounds: Every training, the final one as its last.
        sparsity: Fraction of the prunable weights that are exactly zero, measured on the weights.
        imp_epochs: Epochs that plain iterative magnitude pruning would have trained to the same sparsity.
    """

    model: Any
    masks: dict[str, np.ndarray]
    rounds: list[RoundResult]
    sparsity: float
    imp_epochs: int

    @property
    def epochs(self) -> int:
        """Epochs trained in all."""
        return sum(round_.epochs for round_ in self.rounds)

    @property
    def seconds(self) -> float:
        """Wall time in all."""
        return sum(round_.seconds for round_ in self.rounds)

    def summary(self) -> str:
        """The rounds as a table, the layers as another, and one line that sums up."""
        names = list(self.rounds[-1].metrics)
        rows = [["round", "epochs", "kept", "sparsity", "seconds", *names]]
        for round_ in self.rounds:
            label = "final" if round_ is self.rounds[-1] else str(round_.index)
            metrics = [_number(round_.metrics.get(name)) for name in names]
            rows.append(
                [label, str(round_.epochs), f"{round_.kept:,}", f"{round_.sparsity:.4f}", f"{round_.seconds:.1f}"]
                + metrics
            )
        layers = [["variable", "shape", "kept", "sparsity"]]
        for path, mask in self.masks.items():
            shape = " x ".join(map(str, mask.shape))
            layers.append([path, shape, f"{np.count_nonzero(mask):,}", f"{1 - mask.mean():.4f}"])
        emptied = self.rounds[-1].emptied
        lines = [*_table(rows), "", *_table(layers), ""]
        if emptied:
            lines += [f"Nothing is left of: {', '.join(emptied)}.", ""]
        guarded = sorted({path for round_ in self.rounds for path in round_.guarded})
        if guarded:
            lines += [f"Kept above their rank by the limits on single variables: {', '.join(guarded)}.", ""]
        lines.append(
            f"{self.sparsity:.2%} of the prunable weights are zero, after {self.epochs} epochs in "
            f"{self.seconds:.0f} s; plain iterative magnitude pruning trains for {self.imp_epochs}."
        )
        return "\n".join(lines)


def _number(value: Any) -> str:
    if value is None:
        return ""
    return " ".join(f"{number:.4f}" for number in np.ravel(value))


def _table(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
