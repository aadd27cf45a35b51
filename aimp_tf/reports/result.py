"""What `prune` gives back."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.config.texts import aligned
from aimp_tf.exporting.compaction import compact
from aimp_tf.reports.measuring import measure_calls, measure_sizes
from aimp_tf.reports.plots import check_matplotlib
from aimp_tf.reports.report import draw, html_view, write_report
from aimp_tf.runs.outcome import Outcome
from aimp_tf.runs.recorded_run import RecordedRun
from aimp_tf.runs.sameness import describe_environment
from aimp_tf.training.rounds import (
    Budget,
    RoundResult,
    budget_text,
    counted_text,
    layer_notes,
    layer_table,
    number_text,
    percent_text,
    round_table,
    telling_metric,
)


@dataclasses.dataclass(frozen=True, repr=False)
class PruningResult:
    """A pruned model and how it came about.

    Attributes:
        model: The user's own model, pruned and compiled as before, with weights of the dtype it was made with.
        masks: Variable path, such as "head/dense/kernel" -> bool array of the variable's shape; True is kept.
        rounds: Every training, the final one as its last.
        sparsity: Fraction of the prunable weights that are exactly zero, measured on the weights.
        imp_epochs: Epochs that plain iterative magnitude pruning would have trained to the same sparsity.
        config: What the run was told to do, with `epochs` where `total_epochs` were given.
        outcome: The pruned model beside the dense one, as far as the run has measured that.
    """

    model: Any
    masks: dict[str, np.ndarray]
    rounds: list[RoundResult]
    sparsity: float
    imp_epochs: int
    config: PruningConfig
    outcome: Outcome = Outcome()

    @functools.cached_property
    def measured(self) -> Outcome:
        """`outcome` with the sizes of the model's file and the multiplications, which are measured at the first use."""
        if self.model is None or self.outcome.bytes is not None:
            return self.outcome
        return dataclasses.replace(
            self.outcome, **measure_sizes(self.model, self.masks, channels=self.config.structure.channels)
        )

    @property
    def epochs(self) -> int:
        """Epochs trained in all."""
        return sum(round_.epochs for round_ in self.rounds)

    @property
    def left_dense(self) -> Mapping[str, str]:
        """Path -> why, of weight matrices that were not pruned though no pattern excludes them."""
        return self.rounds[-1].left_dense

    @property
    def model_sparsity(self) -> float:
        """Fraction of all weights of the model that were pruned, in [0, 1): biases, normalisation, embeddings and what
        else was left dense count as well."""
        weights = sum(math.prod(weight.shape) for weight in self.model.weights if hasattr(weight, "assign"))
        return sum(mask.size - int(np.count_nonzero(mask)) for mask in self.masks.values()) / weights

    @property
    def seconds(self) -> float:
        """Wall time in all."""
        return sum(round_.seconds for round_ in self.rounds)

    @property
    def budget(self) -> Budget | None:
        """What was to be left of what the budget counts, what was, and what there was at first."""
        return self.rounds[-1].budget

    def compact(self) -> Any:
        """The model without the units and channels that pruning left dead; see `aimp_tf.compact`."""
        return compact(self.model)

    @functools.cached_property
    def shipped(self) -> Any:
        """The model to ship, which `export` and a workdir write: with whole channels pruned, the compacted one."""
        return self.compact() if self.config.structure.channels else self.model

    def __getattr__(self, name: str) -> Any:
        if hasattr(type(self), name):
            return object.__getattribute__(self, name)  # It is a property in which an attribute is missing.
        what = f"{type(self).__name__} has no attribute {name!r}"
        if name == "export":
            what += ". Write aimp_tf.export(result, 'pruned.keras')"
        elif name == "history":
            what += ". Each of result.rounds has its metrics; a workdir keeps those of every epoch in metrics.jsonl"
        elif not name.startswith("_") and callable(getattr(vars(self).get("model"), name, None)):
            what += f". It holds the model: write result.model.{name}"
        raise AttributeError(f"{what}.", name=name, obj=self)

    def __repr__(self) -> str:
        metrics = self.rounds[-1].metrics
        metric = telling_metric(list(metrics))
        told = "" if metric is None else f"{metric} {number_text(metrics[metric])}, "
        last = self.rounds[-1]
        trained = f"{counted_text(len(self.rounds), 'training')}, {counted_text(self.epochs, 'epoch')}"
        return (
            f"PruningResult({percent_text(self.sparsity, 1)} sparse, {told}{last.kept:,} of "
            f"{sum(layer.size for layer in last.layers):,} weights left, {trained if self.epochs else 'not trained'}; "
            "see .summary(), .plot(), .report('page.html'))"
        )

    def summary(self) -> str:
        """The rounds as a table, the layers as another, and one line that sums up."""
        lines = [*aligned(round_table(self.rounds)), "", *aligned(layer_table(self.rounds[-1].layers)), ""]
        if table := self.measured.channel_table():
            lines += [*aligned(table), ""]
        for note in layer_notes(self.rounds):
            lines += [note, ""]
        if self.model is not None:
            lines += [f"Of all weights of the model, {self.model_sparsity:.2%} were pruned.", ""]
        if self.budget is not None and (told := budget_text(self.budget)):
            lines += [told, ""]
        lines += [text for note in self.measured.notes(self.rounds[-1].metrics) for text in (note, "")]
        zero = f"{self.sparsity:.2%} of the prunable weights are zero, after"
        lines.append(
            f"{zero} {counted_text(self.epochs, 'epoch')} in {self.seconds:.0f} s; plain iterative magnitude pruning "
            f"trains for {self.imp_epochs}."
            if self.epochs
            else f"{zero} {self.seconds:.0f} s without training."
        )
        return "\n".join(lines)

    def report(
        self, path: str | os.PathLike[str], metric: str | None = None, title: str | None = None
    ) -> list[pathlib.Path]:
        """Writes what `summary` tells as a page with pictures; `tools/report.py` writes the same from a run directory.

        Args:
            path: A file that ends in .html, for one page that needs no other file, or in .md, for Markdown with its
                pictures in a folder beside it. What is there is replaced.
            metric: As in `aimp_tf.reports.report.write_report`.
            title: The heading of the report. None makes one from the name of the model.

        Returns:
            The files that were written.

        Raises:
            ModuleNotFoundError: matplotlib is not installed, which comes with the extra `report`.
            ValueError: The path has another ending, its folder cannot be written, or there is no such metric.
        """
        outcome = self.measured
        if self.model is not None:
            outcome = dataclasses.replace(outcome, **measure_calls(self.model))
        return write_report([self._recorded(outcome)], path, metric, title=title)

    def plot(self, metric: str | None = None, axes: Any = None) -> Any:
        """Draws a metric at the end of each round against the sparsity, and that of the dense model where it is known.

        Args:
            metric: One of those in `RoundResult.metrics`. None takes the first of the validation metrics but the loss,
                or the nearest to that which there is.
            axes: The axes of matplotlib to draw on. None makes new ones, which a notebook shows.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is not installed, which comes with the extra `report`.
            ValueError: There is no such metric, or it is the name of a file, which the axes have a method for.
        """
        check_matplotlib("report")
        if metric is not None and pathlib.PurePath(metric).suffix in (".png", ".pdf", ".svg", ".jpg"):
            raise ValueError(f"plot takes a metric. Write result.plot().figure.savefig({metric!r}) for a file.")
        if axes is None:
            import matplotlib.pyplot

            axes = matplotlib.pyplot.subplots(layout="constrained")[1]
        draw(self._recorded(self.outcome), axes, metric)
        return axes

    def _repr_html_(self) -> str:
        return html_view(self._recorded(self.measured))

    def _recorded(self, outcome: Outcome) -> RecordedRun:
        name = getattr(self.model, "name", "run")
        fields = json.loads(self.config.to_json())
        return RecordedRun(name, fields, describe_environment(), self.rounds, finished=True, outcome=outcome)
