"""What came of a run: a sentence, and four figures beside those of the dense model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aimp_tf.reports.blocks import NOT_MEASURED, Bar, Block, KeyFigure, KeyFigures, List, Table, Text
from aimp_tf.reports.reported_run import ReportedRun
from aimp_tf.runs.outcome import accuracy_margin, difference_margin, times_as_fast
from aimp_tf.training.rounds import counted_text, is_accuracy, metric_text, number_text, percent_text

_THE_SAME = "the same as the dense model's"
_HOW_TO_MEASURE = {
    "File size": "result.report and tools/prune.py measure it, where the model can be written as a .keras file.",
    "Time a call": "result.report and tools/prune.py time it, where the model can be compacted.",
}


def opening(plans: Sequence[ReportedRun]) -> list[Block]:
    """The answer in a sentence and four figures; of several runs, a sentence each and a table of the figures."""
    figures = [[_metric_figure(plan), _weights_figure(plan), _file_figure(plan), _call_figure(plan)] for plan in plans]
    sure = [Text(text, "note") for text in _how_sure(plans)]
    if len(plans) == 1:
        return [answer_of(plans[0]), KeyFigures(figures[0]), *sure]
    rows = [["", *(plan.run.name for plan in plans)]]
    # The same figure of all runs, and what belongs to it below.
    for of_runs in zip(*figures, strict=True):
        title = of_runs[0].title
        rows += [
            [title, *(f"{figure.value} {figure.aside}".strip() for figure in of_runs)],
            [f"{title}: dense", *(next((bar.text for bar in figure.bars if bar.dense), "") for figure in of_runs)],
            [f"{title}: change", *(figure.change for figure in of_runs)],
            [f"{title}: notes", *(" ".join(figure.notes) for figure in of_runs)],
        ]
    answers = {plan.run.name: answer_of(plan) for plan in plans}
    return [List(answers), Table([row for row in rows if any(row[1:])], kind="facts"), *sure]


def answer_of(plan: ReportedRun) -> Text:
    """What came of a run, in one sentence; of one that is not done, what has come of it so far."""
    gone = f"{percent_text(plan.last.sparsity, 1)} of the prunable weights are gone"
    if plan.value is not None:
        name = plan.metric.removeprefix("val_").replace("_", " ")
        name = f"validation {name}" if plan.metric.startswith("val_") else f"{name} in training"
        gone += f", and the {name} is {metric_text(plan.metric, plan.value, 1)}{_against_dense(plan)}"
    if plan.run.finished:
        return Text(f"{gone}.", "answer")
    done = f"{len(plan.run.rounds)} of {plan.round_count} rounds are done"
    return Text(f"Not finished: {done}. So far, {gone}.", "unfinished")


def _against_dense(plan: ReportedRun) -> str:
    """The end of a sentence on the metric: what it is beside that of the dense model; "" where that is not known."""
    change, margin = _change(plan)
    if plan.value is None or plan.dense is None or not change:
        return ""
    asides = []
    if margin is not None:
        unsure = _margin_text(margin)
        if change != _THE_SAME and abs(plan.value - plan.dense) <= margin:
            unsure += f": {plan.examples:,} examples cannot tell them apart"
        asides.append(unsure)
    epochs = plan.outcome.dense_epochs
    if plan.run.finished and epochs and epochs != plan.epochs:
        asides.append(f"it was trained for {counted_text(epochs, 'epoch')}, the pruned one for {plan.epochs}")
    return f", {change} ({'; '.join(asides)})" if asides else f", {change}"


def _change(plan: ReportedRun) -> tuple[str, float | None]:
    """The metric in comparison with that of the dense model, and how sure that is.

    "" where that is not known; None where its margin is not, or the metric is no accuracy.
    """
    value, dense, margin = plan.value, plan.dense, None
    if value is None or dense is None or not math.isfinite(value - dense):
        return "", None
    by = value - dense
    if is_accuracy(plan.metric, value) and is_accuracy(plan.metric, dense):
        amount, unit = f"{100 * abs(by):.1f}", " points"
        margin = None if plan.examples is None else difference_margin(value, dense, plan.examples)
    else:
        amount, unit = number_text(abs(by)), ""
    if not float(amount):
        return _THE_SAME, margin
    return f"{amount}{unit} {'above' if by > 0 else 'below'} the dense model's", margin


def _margin_text(margin: float) -> str:
    return f"±\u00a0{100 * margin:.1f}"


def _metric_figure(plan: ReportedRun) -> KeyFigure:
    title = plan.label[:1].upper() + plan.label[1:]
    unknown = Bar("dense", NOT_MEASURED, dense=True)
    if plan.value is None:
        return KeyFigure(title, NOT_MEASURED, bars=[unknown])

    def spread(accuracy: float) -> str:
        if plan.examples is None or not is_accuracy(plan.metric, accuracy):
            return ""
        return _margin_text(accuracy_margin(accuracy, plan.examples))

    def bar(name: str, number: float, trained: str = "") -> Bar:
        text = f"{metric_text(plan.metric, number, 1)} {spread(number)}".strip() + trained
        # The length of another metric than an accuracy would say nothing: the greater one may be better or worse.
        return Bar(name, text, number if is_accuracy(plan.metric, number) else None, name == "dense")

    if plan.dense is None:
        before, notes = unknown, ["dense_baseline=True has prune measure the dense model too."]
    else:
        epochs = plan.outcome.dense_epochs
        trained = f", {epochs} epoch{'s' * (epochs > 1)}" if epochs else "" if epochs is None else ", as it came"
        before, notes = bar("dense", plan.dense, trained), []
    change, margin = _change(plan)
    if margin is not None:
        change += f", {_margin_text(margin)}"
    value = metric_text(plan.metric, plan.value, 1)
    return KeyFigure(title, value, spread(plan.value), change, [before, bar("now", plan.value)], notes)


def _weights_figure(plan: ReportedRun) -> KeyFigure:
    kept = plan.last.kept / plan.weight_count
    return KeyFigure(
        "Weights left",
        percent_text(kept, 1),
        change=f"1 in {1 / kept:.3g} of those that can be pruned" if kept else "none",
        bars=[Bar("dense", f"{plan.weight_count:,}", 1.0, True), Bar("now", f"{plan.last.kept:,}", kept)],
    )


def _file_figure(plan: ReportedRun) -> KeyFigure:
    outcome = plan.outcome
    sizes = {name: pair for name, pair in (("", outcome.bytes), (", gzip", outcome.gzip_bytes)) if pair is not None}
    if not sizes:
        return _missing("File size", plan)
    longest = max(1, *(size for pair in sizes.values() for size in pair))
    bars = [
        Bar(f"{model}{name}", _bytes_text(size), size / longest, model == "dense")
        for name, pair in sizes.items()
        for model, size in zip(("dense", "now"), pair, strict=True)
    ]
    changes = [_smaller(*pair) + (" as gzip" if name else "") for name, pair in sizes.items()]
    first, now = next((name, now) for name, (_, now) in sizes.items())
    aside = f"{outcome.file_format or ''}{first}".removeprefix(", ")
    return KeyFigure("File size", _bytes_text(now), aside, "; ".join(changes), bars)


def _call_figure(plan: ReportedRun) -> KeyFigure:
    outcome = plan.outcome
    notes = []
    if outcome.multiply_adds is not None:
        notes.append("Multiply-adds for one example: {:,} dense, {:,} now.".format(*outcome.multiply_adds))
    if outcome.call_seconds is None:
        return _missing("Time a call", plan, notes)
    if outcome.call is not None:
        notes.insert(0, f"{outcome.call}.")
    quartiles = [np.quantile(seconds, [0.25, 0.5, 0.75]).tolist() for seconds in outcome.call_seconds]
    (_, dense, _), (low, now, high) = quartiles
    least, times, most = times_as_fast(*outcome.call_seconds)
    bars = [
        Bar(name, f"{_call_text(median)} ({_range_text(first, last)})", median / max(dense, now), name == "dense")
        for name, (first, median, last) in zip(("dense", "now"), quartiles, strict=True)
    ]
    change = f"{times:.3g} times as fast ({least:.3g} to {most:.3g})"
    if least < 1 < most:
        change = f"no difference that could be measured ({least:.3g} to {most:.3g} times as fast)"
    return KeyFigure("Time a call", _call_text(now), f"({_range_text(low, high)})", change, bars, notes)


def _missing(title: str, plan: ReportedRun, notes: Sequence[str] = ()) -> KeyFigure:
    """A figure that nobody has measured, which says how it can be."""
    how = _HOW_TO_MEASURE[title] if plan.run.finished else "The run is not done."
    return KeyFigure(title, NOT_MEASURED, notes=[how, *notes])


def _how_sure(plans: Sequence[ReportedRun]) -> list[str]:
    """What the figures behind the signs of uncertainty are, as far as there are any."""
    notes = []
    counts = sorted({plan.examples for plan in plans if plan.examples is not None})
    if counts and any(is_accuracy(plan.metric, plan.value) for plan in plans):
        notes.append(
            f"± is 95%: about 1.96 standard errors of an accuracy on {' or '.join(f'{count:,}' for count in counts)} "
            "examples (the farther end of Wilson's interval). Of a difference, it is as if the two models erred "
            "independently; they mostly err on the same examples, and then it is less. Training with another seed "
            "changes the figures as well, which is not in it."
        )
    repeats = sorted({len(plan.outcome.call_seconds[0]) for plan in plans if plan.outcome.call_seconds is not None})
    if repeats:
        notes.append(
            f"A time is the median of {' or '.join(map(str, repeats))} calls, with the range of their middle half. The "
            "models were called in turn; how many times as fast is the median of the ratios, with its 95% interval."
        )
    return notes


def _bytes_text(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{_three_digits(count / size)} {unit}"
    return f"{count} B"


def _call_text(seconds: float) -> str:
    unit, scale = _call_unit(seconds)
    return f"{_three_digits(seconds * scale)} {unit}"


def _range_text(low: float, high: float) -> str:
    """Two times, in the unit of the second."""
    unit, scale = _call_unit(high)
    return f"{_three_digits(low * scale)} to {_three_digits(high * scale)} {unit}"


def _call_unit(seconds: float) -> tuple[str, float]:
    if seconds >= 1:
        return "s", 1.0
    return ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)


def _three_digits(number: float) -> str:
    """At least three digits that count, none of them as a power of ten."""
    return f"{number:.0f}" if number >= 100 else f"{number:#.3g}"


def _smaller(dense: int, now: int) -> str:
    if not dense or not now or round(dense / now, 1) == 1.0:
        return "as large as the dense one"
    return f"{dense / now:.1f} times smaller" if dense > now else f"{now / dense:.1f} times larger"
