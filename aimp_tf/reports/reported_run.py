"""A run beside what it was to do, and a metric to report it by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aimp_tf.config import PruningConfig
from aimp_tf.config.texts import nearest
from aimp_tf.runs.recorded_run import RecordedRun
from aimp_tf.selection.planning import imp_epochs, make_plan, settled
from aimp_tf.training.rounds import RoundResult, metric_text, telling_metric

_NOT_PLANNED_BY: Mapping[str, Any] = {
    "criterion": "magnitude",
    "round_schedule": "head",
    "scope": "global",
    "regularizer": None,
    "projection": None,
    "distillation": None,
}
"""Settings that the plan of a run does not depend on, as they may stand beside any others."""


class ReportedRun:
    """A run beside what it was to do and, by a metric, beside the dense model.

    Attributes:
        imp_epochs, imp_seconds: What plain iterative magnitude pruning would take to where the run is.
        value: The metric at the end of the last round that is done; None where it is no number.
        dense: That of the dense model; None where it is not known.
        examples: How many examples it is of; None where that is not known, as for those of training.
        outcome: What else is known of it beside the dense model.
    """

    def __init__(self, run: RecordedRun, metric: str) -> None:
        self.run, self.metric = run, metric
        layers = run.rounds[-1].layers
        self.weight_count = sum(layer.size for layer in layers)
        try:
            # Without what does not matter to the plan and can be no choice of today: functions and objects of the
            # user's, which are stored by their names, and a schedule and a method, of one `fit`, of earlier versions.
            fields = {**run.config, **_NOT_PLANNED_BY}
            if fields.get("method") == "tfmot":
                fields["method"] = "gradual"
            config = PruningConfig.from_fields(fields)
            config.validate()
            budget = run.rounds[0].budget
            total, kept = (self.weight_count, run.rounds[0].kept) if budget is None else (budget.dense, budget.asked)
            config, first = _planned_as(config, total, kept)
            self.round_count = len(make_plan(config, total, first))
        except (TypeError, ValueError) as error:
            raise ValueError(f"The config of {run.name} is not that of a run: {error}") from error
        self.epochs = sum(round_.epochs for round_ in run.rounds)
        self.seconds = sum(round_.seconds for round_ in run.rounds)
        self.imp_epochs = imp_epochs(config, total, first) if run.finished else len(run.rounds) * config.resolved_epochs
        self.imp_seconds = self.seconds / self.epochs * self.imp_epochs if self.epochs else 0.0
        self.last = run.rounds[-1]
        # The files and the calls are of the pruned model, which a run that is not done has not got.
        self.outcome = run.outcome if run.finished else run.outcome.without_the_pruned()
        self.value = _number_in(self.last.metrics, metric)
        self.dense = _number_in(self.outcome.dense_metrics or {}, metric)
        self.examples = self.outcome.examples if metric.startswith("val_") else None

    @property
    def label(self) -> str:
        """The name of the metric for people."""
        name = self.metric.removeprefix("val_").replace("_", " ")
        return f"{name} (validation)" if self.metric.startswith("val_") else name

    def told(self, round_: RoundResult) -> str:
        """The metric at the end of a round."""
        return metric_text(self.metric, round_.metrics.get(self.metric))


def _number_in(metrics: Mapping[str, Any], name: str) -> float | None:
    value = metrics.get(name)
    return value if isinstance(value, (int, float)) else None


def choose_metric(runs: Sequence[RecordedRun], metric: str | None) -> str:
    metrics = [run.rounds[-1].metrics for run in runs]
    names = list(dict.fromkeys(name for each in metrics for name in each if _number_in(each, name) is not None))
    if metric is not None:
        if metric not in names:
            raise ValueError(
                f"No run has the metric {metric!r}; there are {', '.join(names) or 'none'}.{nearest(metric, names)}"
            )
        return metric
    chosen = telling_metric(names)
    if chosen is None:
        raise ValueError(f"There is no metric to plot in {', '.join(run.name for run in runs)}.")
    return chosen


def _planned_as(config: PruningConfig, weight_count: int, kept: int) -> tuple[PruningConfig, int | None]:
    """The settled config of a run, and what was left when it began, from what its first training kept."""
    if not config.has_rounds:
        return settled(config, weight_count), None
    if config.start == "trained":
        whole = settled(config, weight_count)
        if make_plan(whole, weight_count)[0].kept == kept:
            return whole, None
        # It began with masks, of which the first training alone can tell: from there, it is a run like any other.
        config = config.replace(start="untrained")
    return settled(config, weight_count, kept), kept
