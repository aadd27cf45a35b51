"""A report on one run or several, as one HTML page or as Markdown with pictures."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import html
import importlib.util
import json
import math
import os
import pathlib
import re
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aimp_tf.config import PruningConfig, default_fields, upgrade
from aimp_tf.config.texts import nearest
from aimp_tf.files import check_writable, write_atomically
from aimp_tf.reports.plots import (
    check_matplotlib,
    draw_metric,
    plot_cost,
    plot_latency,
    plot_layers,
    plot_magnitudes,
    plot_metric,
    svg_text,
)
from aimp_tf.runs.outcome import Outcome, accuracy_margin, difference_margin, middle_half, times_as_fast
from aimp_tf.runs.run_directory import RecordedRun
from aimp_tf.selection.planning import imp_epochs, make_plan, settled
from aimp_tf.training.rounds import (
    counted_text,
    duration_text,
    is_accuracy,
    layer_notes,
    layer_table,
    metric_text,
    number_text,
    percent_text,
    round_table,
    telling_metric,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOT_MEASURED = "not measured"
_THE_SAME = "the same as the dense model's"
_HOW_TO_MEASURE = {
    "dense": "dense_baseline=True has prune measure the dense model too.",
    "file": "result.report and tools/prune.py measure it, where the model can be written as a .keras file.",
    "call": "result.report and tools/prune.py time it, where the model can be compacted.",
}


@dataclasses.dataclass(frozen=True)
class _Heading:
    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class _Text:
    """A paragraph. Its kind is "answer", "unfinished" for an answer that is not final, "note", or none of these."""

    text: str
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class _List:
    """The answers on several runs: name -> sentence."""

    items: Mapping[str, _Text]


@dataclasses.dataclass(frozen=True)
class _Bar:
    """What the dense model has, or the pruned one: a text and, if it is measured, a length in [0, 1], linear in it."""

    name: str
    text: str
    length: float | None = None
    dense: bool = False


@dataclasses.dataclass(frozen=True)
class _Figure:
    """A figure that a reader wants first, beside that of the dense model.

    Attributes:
        title: What it is of.
        value: Of the pruned model.
        aside: What belongs to the value, such as how sure it is: "± 1.6"; "" for nothing.
        change: The same in comparison with the dense model.
        bars: The dense model and the pruned one, as far as they are measured.
        notes: What else there is to say.
    """

    title: str
    value: str
    aside: str = ""
    change: str = ""
    bars: Sequence[_Bar] = ()
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class _Figures:
    figures: Sequence[_Figure]


@dataclasses.dataclass(frozen=True)
class _Table:
    """The first row is the header. Of a row whose first cell is in `marked`, all cells are emphasised.

    Its kind is "numbers", "facts", which may be longer, or "texts", which begin at the left.
    """

    rows: Sequence[Sequence[str]]
    marked: frozenset[str] = frozenset()
    kind: str = "numbers"


@dataclasses.dataclass(frozen=True)
class _Picture:
    name: str
    caption: str
    svg: str


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Parts that stand side by side where there is room."""

    parts: Sequence[Sequence[_Block]]


@dataclasses.dataclass(frozen=True)
class _Details:
    """What is folded away until a reader asks for it, and open in print."""

    summary: str
    blocks: Sequence[_Block]


_Block = _Heading | _Text | _List | _Figures | _Table | _Picture | _Columns | _Details


def write_report(
    runs: Sequence[RecordedRun],
    path: str | os.PathLike[str],
    metric: str | None = None,
    inference: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> list[pathlib.Path]:
    """Writes a report on runs, finished or not, side by side.

    Args:
        runs: At least one, of which one at least has a round that is done. What `run_directory.read_run` gives.
        path: A file that ends in .html, for one page that needs no other file, or in .md, for Markdown with its
            pictures in a folder beside it, such as report_files. What is there is replaced.
        metric: The metric to plot, of those in `RoundResult.metrics`. None takes the first of the validation metrics
            but the loss, or the nearest to that which the runs have.
        inference: The file that `tools/benchmark.py inference` wrote, to be shown too.
        title: The heading. None takes that of the run, where it is one and has one, or names the runs.

    Returns:
        The files that were written; the report is the first.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError, ValueError: The path has another ending or cannot be written, no round is done, no run has that
            metric, or a config is not that of a run.
    """
    check_matplotlib("report")
    path = pathlib.Path(path).expanduser()
    if path.suffix not in (".html", ".md"):
        raise ValueError(f"The report must be a file that ends in .html or .md; got {path}.")
    check_writable(path.parent, "the folder of the report")
    blocks = _blocks(_with_short_names([_with_fields_of_today(run) for run in runs]), metric, inference, title)
    if path.suffix == ".html":
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, _html_page(blocks))
        return [path]
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {folder / f"{picture.name}.svg": picture.svg for picture in _pictures(blocks)}
    for file, svg in pictures.items():
        write_atomically(file, svg)
    write_atomically(path, "\n\n".join(_markdown(block, folder.name) for block in blocks))
    return [path, *pictures]


def html_view(run: RecordedRun) -> str:
    """A finished run as HTML for a notebook: the answer, the rounds and, with matplotlib, their metric."""
    run = _with_fields_of_today(run)
    plan, metric = _Plan(run), None
    with contextlib.suppress(ValueError):  # There is no metric.
        metric = _choose_metric([run], None)
    blocks: list[_Block] = [_answer(plan, metric or ""), _Table(round_table(run.rounds))]
    blocks += map(_Text, run.outcome.notes(run.rounds[-1].metrics))
    if metric is not None and importlib.util.find_spec("matplotlib") is not None:
        blocks.append(_metric_picture([plan], metric, _label(metric)))
    return "\n".join(map(_html, blocks))


def draw(run: RecordedRun, axes: Any, metric: str | None = None) -> None:
    """Draws the metric of a run against its sparsity on axes of matplotlib. Raises ValueError for an unknown one."""
    plan, chosen = _Plan(_with_fields_of_today(run)), _choose_metric([run], metric)
    draw_metric(axes, *_drawn([plan], chosen, _label(chosen)))


def _with_fields_of_today(run: RecordedRun) -> RecordedRun:
    """With the config as this version would have written it, but for the version itself."""
    try:
        config = upgrade(run.config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The config of {run.name} is not that of a run: {error}") from error
    del config["version"]
    return dataclasses.replace(run, config=config)


def _with_short_names(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Named by the last part of their paths, where that is enough to tell them apart."""
    short = [pathlib.PurePath(run.name).name or run.name for run in runs]
    if len(set(short)) < len(short):
        return list(runs)
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, short, strict=True)]


def _blocks(
    runs: Sequence[RecordedRun], metric: str | None, inference: str | os.PathLike[str] | None, title: str | None
) -> list[_Block]:
    shown = [run for run in runs if run.rounds]
    if not shown:
        raise ValueError(f"No round is done yet in {', '.join(run.name for run in runs)}; there is nothing to report.")
    plans = [_Plan(run) for run in shown]
    chosen = _choose_metric(shown, metric)
    label = _label(chosen)
    if title is None and len(runs) == 1:
        title = runs[0].title
    blocks: list[_Block] = [_Heading(1, title or _title(runs)), *_opening(plans, chosen, label)]
    if len(shown) < len(runs):
        waiting = ", ".join(run.name for run in runs if not run.rounds)
        blocks.append(_Text(f"No round is done yet, and nothing to show, in: {waiting}."))
    return [
        *blocks,
        _Columns([_quality_section(plans, chosen, label), _cost_section(plans, chosen, label)]),
        *_layers_and_rounds(plans),
        *([] if inference is None else _inference_section(inference)),
        _Columns([_config_section(runs), _environment_section(runs)]),
    ]


def _label(metric: str) -> str:
    return metric.removeprefix("val_").replace("_", " ") + (" (validation)" if metric.startswith("val_") else "")


def _title(runs: Sequence[RecordedRun]) -> str:
    """A sentence that names the runs, but not as Keras does where nobody chose a name."""
    if len(runs) > 3:
        return f"What pruning made of {len(runs)} runs"
    if len(runs) == 1 and re.fullmatch(r"(run|model|sequential|functional)(_\d+)?", runs[0].name):
        return "What pruning made of the model"
    *names, last = (run.name for run in runs)
    return f"What pruning made of {', '.join(names)}{' and ' if names else ''}{last}"


def _opening(plans: Sequence[_Plan], metric: str, label: str) -> list[_Block]:
    """The answer in a sentence and four figures; of several runs, a sentence each and a table of the figures."""
    figures = [_figures(plan, metric, label) for plan in plans]
    sure = [_Text(text, "note") for text in _how_sure(plans, metric)]
    if len(plans) == 1:
        return [_answer(plans[0], metric), _Figures(figures[0]), *sure]
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
    answers = {plan.run.name: _answer(plan, metric) for plan in plans}
    return [_List(answers), _Table([row for row in rows if any(row[1:])], kind="facts"), *sure]


def _answer(plan: _Plan, metric: str) -> _Text:
    """What came of a run, in one sentence; of one that is not done, what has come of it so far."""
    gone = f"{percent_text(plan.last.sparsity, 1)} of the prunable weights are gone"
    value = plan.last.metrics.get(metric)
    if isinstance(value, (int, float)):
        name = metric.removeprefix("val_").replace("_", " ")
        name = f"validation {name}" if metric.startswith("val_") else f"{name} in training"
        gone += f", and the {name} is {metric_text(metric, value, 1)}{_against_dense(plan, metric)}"
    if plan.run.finished:
        return _Text(f"{gone}.", "answer")
    done = f"{len(plan.run.rounds)} of {plan.round_count} rounds are done"
    return _Text(f"Not finished: {done}. So far, {gone}.", "unfinished")


def _against_dense(plan: _Plan, metric: str) -> str:
    """The end of a sentence on a metric: what it is beside that of the dense model; "" where that is not known."""
    change, margin = _change(plan, metric), _change_margin(plan, metric)
    if not change:
        return ""
    asides = []
    if margin is not None:
        unsure = f"±\u00a0{100 * margin:.1f}"
        if change != _THE_SAME and abs(plan.last.metrics[metric] - plan.dense(metric)) <= margin:
            unsure += f": {plan.examples(metric):,} examples cannot tell them apart"
        asides.append(unsure)
    epochs = plan.outcome.dense_epochs
    if plan.run.finished and epochs and epochs != plan.epochs:
        asides.append(f"it was trained for {counted_text(epochs, 'epoch')}, the pruned one for {plan.epochs}")
    return f", {change} ({'; '.join(asides)})" if asides else f", {change}"


def _change(plan: _Plan, metric: str) -> str:
    """A metric in comparison with that of the dense model; "" where that is not known."""
    value, dense = plan.last.metrics.get(metric), plan.dense(metric)
    if not isinstance(value, (int, float)) or dense is None or not math.isfinite(value - dense):
        return ""
    by = value - dense
    if is_accuracy(metric, value) and is_accuracy(metric, dense):
        amount, unit = f"{100 * abs(by):.1f}", " points"
    else:
        amount, unit = number_text(abs(by)), ""
    if not float(amount):
        return _THE_SAME
    return f"{amount}{unit} {'above' if by > 0 else 'below'} the dense model's"


def _change_margin(plan: _Plan, metric: str) -> float | None:
    """How sure that is; None where it is not known, or the metric is no accuracy."""
    value: Any = plan.last.metrics.get(metric)
    dense, examples = plan.dense(metric), plan.examples(metric)
    if examples is None or dense is None or not is_accuracy(metric, value) or not is_accuracy(metric, dense):
        return None
    return difference_margin(value, dense, examples)


def _figures(plan: _Plan, metric: str, label: str) -> list[_Figure]:
    return [_metric_figure(plan, metric, label), _weights_figure(plan), _file_figure(plan), _call_figure(plan)]


def _metric_figure(plan: _Plan, metric: str, label: str) -> _Figure:
    value, dense, examples = plan.last.metrics.get(metric), plan.dense(metric), plan.examples(metric)
    title = label[:1].upper() + label[1:]
    if not isinstance(value, (int, float)):
        return _Figure(title, _NOT_MEASURED, bars=[_Bar("dense", _NOT_MEASURED, dense=True)])

    def spread(accuracy: float) -> str:
        if examples is None or not is_accuracy(metric, accuracy):
            return ""
        return f"±\u00a0{100 * accuracy_margin(accuracy, examples):.1f}"

    def bar(name: str, number: float, dense: bool) -> _Bar:
        text = f"{metric_text(metric, number, 1)} {spread(number)}".strip()
        # The length of another metric than an accuracy would say nothing: the greater one may be better or worse.
        return _Bar(name, text, number if is_accuracy(metric, number) else None, dense)

    notes = []
    if dense is None:
        before = _Bar("dense", _NOT_MEASURED, dense=True)
        notes.append(_HOW_TO_MEASURE["dense"])
    else:
        before = bar("dense", dense, True)
        epochs = plan.outcome.dense_epochs
        if epochs is not None:
            trained = f"{epochs} epoch{'s' * (epochs > 1)}" if epochs else "as it came"
            before = dataclasses.replace(before, text=f"{before.text}, {trained}")
    change, margin = _change(plan, metric), _change_margin(plan, metric)
    if margin is not None:
        change += f", ±\u00a0{100 * margin:.1f}"
    return _Figure(
        title, metric_text(metric, value, 1), spread(value), change, [before, bar("now", value, False)], notes
    )


def _weights_figure(plan: _Plan) -> _Figure:
    kept = plan.last.kept / plan.weight_count
    return _Figure(
        "Weights left",
        percent_text(kept, 1),
        change=f"1 in {1 / kept:.3g} of those that can be pruned" if kept else "none",
        bars=[_Bar("dense", f"{plan.weight_count:,}", 1.0, True), _Bar("now", f"{plan.last.kept:,}", kept)],
    )


def _file_figure(plan: _Plan) -> _Figure:
    outcome = plan.outcome
    sizes = {name: pair for name, pair in (("", outcome.bytes), (", gzip", outcome.gzip_bytes)) if pair is not None}
    if not sizes:
        return _missing("File size", "file", plan)
    longest = max(1, *(size for pair in sizes.values() for size in pair))
    bars = [
        _Bar(f"{model}{name}", _bytes_text(size), size / longest, model == "dense")
        for name, pair in sizes.items()
        for model, size in zip(("dense", "now"), pair, strict=True)
    ]
    changes = [_smaller(*pair) + (" as gzip" if name else "") for name, pair in sizes.items()]
    first, now = next((name, now) for name, (_, now) in sizes.items())
    aside = f"{outcome.file_format or ''}{first}".removeprefix(", ")
    return _Figure("File size", _bytes_text(now), aside, "; ".join(changes), bars)


def _call_figure(plan: _Plan) -> _Figure:
    outcome = plan.outcome
    notes = []
    if outcome.multiply_adds is not None:
        notes.append("Multiply-adds for one example: {:,} dense, {:,} now.".format(*outcome.multiply_adds))
    if outcome.call_seconds is None:
        return _missing("Time a call", "call", plan, notes)
    if outcome.call is not None:
        notes.insert(0, f"{outcome.call}.")
    quartiles = [middle_half(seconds) for seconds in outcome.call_seconds]
    (_, dense, _), (low, now, high) = quartiles
    least, times, most = times_as_fast(*outcome.call_seconds)
    bars = [
        _Bar(name, f"{_call_text(median)} ({_range_text(first, last)})", median / max(dense, now), name == "dense")
        for name, (first, median, last) in zip(("dense", "now"), quartiles, strict=True)
    ]
    change = f"{times:.3g} times as fast ({least:.3g} to {most:.3g})"
    if least < 1 < most:
        change = f"no difference that could be measured ({least:.3g} to {most:.3g} times as fast)"
    return _Figure("Time a call", _call_text(now), f"({_range_text(low, high)})", change, bars, notes)


def _missing(title: str, what: str, plan: _Plan, notes: Sequence[str] = ()) -> _Figure:
    """A figure that nobody has measured, which says how it can be."""
    how = _HOW_TO_MEASURE[what] if plan.run.finished else "The run is not done."
    return _Figure(title, _NOT_MEASURED, notes=[how, *notes])


def _how_sure(plans: Sequence[_Plan], metric: str) -> list[str]:
    """What the figures behind the signs of uncertainty are, as far as there are any."""
    notes = []
    counts = sorted({count for plan in plans if (count := plan.examples(metric)) is not None})
    if counts and any(is_accuracy(metric, plan.last.metrics.get(metric)) for plan in plans):
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


def _drawn(plans: Sequence[_Plan], metric: str, label: str) -> tuple[Any, ...]:
    """What `plot_metric` and `draw_metric` show of runs."""
    rounds = {plan.run.name: plan.run.rounds for plan in plans}
    dense = {plan.run.name: value for plan in plans if (value := plan.dense(metric)) is not None}
    examples = {plan.run.name: count for plan in plans if (count := plan.examples(metric)) is not None}
    return rounds, metric, label, dense, examples


def _metric_picture(plans: Sequence[_Plan], metric: str, label: str) -> _Picture:
    last = ", ".join(
        f"{metric_text(metric, plan.last.metrics.get(metric))} at {percent_text(plan.last.sparsity)} of {plan.run.name}"
        for plan in plans
    )
    return _picture("metric", f"{label} against sparsity", plot_metric(*_drawn(plans, metric, label)), last)


def _quality_section(plans: Sequence[_Plan], metric: str, label: str) -> list[_Block]:
    return [
        _Heading(2, "Accuracy against sparsity" if "acc" in metric else "Quality against sparsity"),
        _Text(
            f"The {label} at the end of each round, before the ranking that follows it. The larger marker is the last "
            "round that is done: in a finished run, the training in full."
        ),
        _metric_picture(plans, metric, label),
    ]


def _cost_section(plans: Sequence[_Plan], metric: str, label: str) -> list[_Block]:
    return [
        _Heading(2, "Cost"),
        _Text(
            "Plain iterative magnitude pruning (IMP) trains every round in full. It was not run: its epochs are "
            "counted, and its seconds are those of this run, scaled to its epochs. A run that is not done is compared "
            "with the rounds of plain IMP that lead as far."
        ),
        _picture("cost", "epochs and seconds beside plain IMP", plot_cost(_costs(plans))),
        _overview(plans, metric, label),
    ]


def _layers_and_rounds(plans: Sequence[_Plan]) -> list[_Block]:
    """Of one run side by side; of several, the layers of all and then the rounds of all."""
    layers = [_layers_section(plan, number) for number, plan in enumerate(plans, start=1)]
    rounds: list[list[_Block]] = [[_Table(round_table(plan.run.rounds, plan.run.finished))] for plan in plans]
    for number, plan in enumerate(plans, start=1):
        about = f"magnitudes of the surviving weights before and after pruning, {plan.run.name}"
        picture = _picture(f"magnitudes_{number}", about, plot_magnitudes(plan.run.rounds))
        # Below the shorter of the two.
        longer = len(plan.last.layers) > len(plan.run.rounds)
        (rounds if longer and len(plans) == 1 else layers)[number - 1].append(picture)
    if len(plans) == 1:
        return [_Columns([[_Heading(2, "Layers"), *layers[0]], [_Heading(2, "Rounds"), *rounds[0]]])]
    blocks: list[_Block] = []
    for title, sections in (("Layers", layers), ("Rounds", rounds)):
        parts = [[_Heading(3, plan.run.name), *section] for plan, section in zip(plans, sections, strict=True)]
        blocks += [_Heading(2, title), _Columns(parts)]
    return blocks


def _inference_section(path: str | os.PathLike[str]) -> list[_Block]:
    """The sizes and latencies of the exported forms of a model, as a table and a picture of each setting."""
    try:
        figures = json.loads(pathlib.Path(path).read_text())
        forms = figures["forms"]
        settings = [
            f"batch {setting['batch_size']}, "
            + (f"{setting['threads']} thread" if setting["threads"] else "all threads")
            for setting in forms["dense"]["latency"]
        ]
        rows = [["form", "MB", "gzip, MB", "memory, MB", *(f"{setting}: times as fast" for setting in settings)]]
        panels: dict[str, list[tuple[str, float, float]]] = {setting: [] for setting in settings}
        for name, form in forms.items():
            speeds = (f"{statistics.median(latency['times_as_fast']):.2f}" for latency in form["latency"])
            sizes = (f"{form[key] / 1e6:.3f}" for key in ("bytes", "gzip_bytes", "memory_bytes"))
            rows.append([name, *sizes, *speeds])
            for setting, latency in zip(settings, form["latency"], strict=True):
                panels[setting].append((name, latency["median_seconds"], latency["p95_seconds"]))
        about = (
            f"The exported forms of {figures['model']}, {figures['repetitions']} times in turn on {figures['cores']} "
            f"cores of {figures['processor']}. The dense form is the same network with numbers in place of the zeros; "
            "the others compute what the pruned one does, int8 but nearly. Memory is what loading and running takes "
            "beside TensorFlow itself; how often as fast is told in comparison with the dense form."
        )
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)} is not what tools/benchmark.py inference --output writes: {error!r}"
        ) from error
    return [
        _Heading(2, "Inference"),
        _Text(about),
        _Table(rows),
        _picture("latency", "latency: the median and, as a line, the 95th percentile", plot_latency(panels)),
    ]


def _planned_as(config: PruningConfig, weight_count: int, kept: int) -> tuple[PruningConfig, int | None]:
    """The settled config of a run, and what was left when it began, from what its first training kept."""
    if config.method != "iterative":
        return settled(config, weight_count), None
    if config.start == "trained":
        whole = settled(config, weight_count)
        if make_plan(whole, weight_count)[0].kept == kept:
            return whole, None
        # It began with masks, of which the first training alone can tell: from there, it is a run like any other.
        config = config.replace(start="untrained")
    return settled(config, weight_count, kept), kept


class _Plan:
    """A run beside what it was to do, and beside plain iterative magnitude pruning."""

    def __init__(self, run: RecordedRun) -> None:
        self.run = run
        layers = run.rounds[-1].layers
        self.weight_count = sum(layer.size for layer in layers)
        try:
            # A criterion of the user's is stored by its name, and does not matter here.
            config = PruningConfig.from_fields({**run.config, "criterion": "magnitude"})
            config.validate()
            config, first = _planned_as(config, self.weight_count, run.rounds[0].kept)
            self.round_count = len(make_plan(config, self.weight_count, first))
        except (TypeError, ValueError) as error:
            raise ValueError(f"The config of {run.name} is not that of a run: {error}") from error
        self.epochs = sum(round_.epochs for round_ in run.rounds)
        self.seconds = sum(round_.seconds for round_ in run.rounds)
        self.imp_epochs = (
            imp_epochs(config, self.weight_count, first) if run.finished else len(run.rounds) * config.resolved_epochs
        )
        self.imp_seconds = self.seconds / self.epochs * self.imp_epochs if self.epochs else 0.0
        self.last = run.rounds[-1]
        # The files and the calls are of the pruned model, which a run that is not done has not got.
        dense, epochs, examples = run.outcome.dense_metrics, run.outcome.dense_epochs, run.outcome.examples
        self.outcome = run.outcome if run.finished else Outcome(dense, epochs, examples)

    @property
    def state(self) -> str:
        return "done" if self.run.finished else f"{len(self.run.rounds)} of {self.round_count} rounds done"

    def dense(self, metric: str) -> float | None:
        """A metric of the dense model; None where it is not known."""
        value = (self.outcome.dense_metrics or {}).get(metric)
        return value if isinstance(value, (int, float)) else None

    def examples(self, metric: str) -> int | None:
        """How many examples a metric is of; None where that is not known, as for those of training."""
        return self.outcome.examples if metric.startswith("val_") else None


def _choose_metric(runs: Sequence[RecordedRun], metric: str | None) -> str:
    names = list(
        dict.fromkeys(
            name for run in runs for name, value in run.rounds[-1].metrics.items() if isinstance(value, (int, float))
        )
    )
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


def _overview(plans: Sequence[_Plan], metric: str, label: str) -> _Table:
    def trained(plan: _Plan) -> str:
        return f"{plan.epochs} ({plan.epochs / plan.imp_epochs:.0%} of plain IMP's {plan.imp_epochs})"

    def time(plan: _Plan) -> str:
        return f"{duration_text(plan.seconds)} (plain IMP: about {duration_text(plan.imp_seconds)})"

    rows: dict[str, Callable[[_Plan], str]] = {
        "state": lambda plan: plan.state,
        "method": lambda plan: str(plan.run.config.get("method")),
        "sparsity": lambda plan: (
            f"{percent_text(plan.last.sparsity)} (target {100 * plan.run.config['target_sparsity']:g}%)"
        ),
        "weights kept": lambda plan: f"{plan.last.kept:,} of {plan.weight_count:,}",
        f"{label}, last round": lambda plan: metric_text(metric, plan.last.metrics.get(metric)),
        f"{label}, first round": lambda plan: metric_text(metric, plan.run.rounds[0].metrics.get(metric)),
        "epochs": trained,
        "time": time,
    }
    return _Table(
        [
            _header([plan.run.name for plan in plans]),
            *([name, *(text(plan) for plan in plans)] for name, text in rows.items()),
        ],
        kind="facts",
    )


def _costs(plans: Sequence[_Plan]) -> dict[str, list[tuple[str, float, float]]]:
    return {
        "epochs": [(plan.run.name, plan.epochs, plan.imp_epochs) for plan in plans],
        "seconds": [(plan.run.name, plan.seconds, plan.imp_seconds) for plan in plans],
    }


def _layers_section(plan: _Plan, number: int) -> list[_Block]:
    name, rounds = plan.run.name, plan.run.rounds
    return [
        _picture(
            f"layers_{number}", f"sparsity and kept weights of each variable, {name}", plot_layers(plan.last.layers)
        ),
        _Table(layer_table(plan.last.layers)),
        *(_Text(note) for note in layer_notes(rounds)),
    ]


def _config_section(runs: Sequence[RecordedRun]) -> list[_Block]:
    """The fields that a run has set, and those that all have left at their defaults, folded away."""
    defaults = default_fields()
    names = dict.fromkeys(name for run in runs for name in run.config)
    at_default = [
        name for name in names if name in defaults and all(run.config.get(name) == defaults[name] for run in runs)
    ]
    set_, left = (
        {
            run.name: {name: value for name, value in run.config.items() if (name in at_default) == folded}
            for run in runs
        }
        for folded in (False, True)
    )
    blocks: list[_Block] = [_Heading(2, "Config"), _fields_table(set_)]
    if at_default:
        blocks.append(_Details(f"{len(at_default)} fields at their defaults", [_fields_table(left)]))
    return blocks


def _environment_section(runs: Sequence[RecordedRun]) -> list[_Block]:
    versions = {name: version for run in runs for name, version in run.environment.get("versions", {}).items()}
    known = {
        "Python": {run.environment.get("python") for run in runs},
        "TensorFlow": {run.environment.get("versions", {}).get("tensorflow") for run in runs if versions},
        "on": {_value_text(run.environment["devices"]) for run in runs if "devices" in run.environment},
    }
    gist = [f"{name} {value}" for name, values in known.items() if len(values) == 1 and (value := values.pop())]
    return [
        _Heading(2, "Environment"),
        _Details(
            ", ".join(gist) or "Versions and devices", [_fields_table({run.name: run.environment for run in runs})]
        ),
    ]


def _fields_table(fields: Mapping[str, Mapping[str, Any]]) -> _Table:
    """The fields of each run, those that differ marked."""
    names = list(dict.fromkeys(name for values in fields.values() for name in values))
    rows = [[name, *(_value_text(values.get(name)) for values in fields.values())] for name in names]
    return _Table([_header(fields), *rows], frozenset(row[0] for row in rows if len(set(row[1:])) > 1), kind="texts")


def _header(names: Collection[str]) -> list[str]:
    """The names of several runs, to stand above their columns; that of one needs no mention."""
    return ["", *(names if len(names) > 1 else [""])]


def _value_text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _picture(name: str, caption: str, figure: Figure, told: str = "") -> _Picture:
    """A figure as a picture whose text for those who cannot see it is the caption and what is told."""
    return _Picture(name, f"{caption}: {told}" if told else caption, svg_text(figure, name))


def _pictures(blocks: Sequence[_Block]) -> list[_Picture]:
    """In the order of the page."""
    found = []
    for block in blocks:
        if isinstance(block, _Picture):
            found.append(block)
        elif isinstance(block, _Columns):
            found += [picture for part in block.parts for picture in _pictures(part)]
        elif isinstance(block, _Details):
            found += _pictures(block.blocks)
    return found


def _html_page(blocks: Sequence[_Block]) -> str:
    title = next(block.text for block in blocks if isinstance(block, _Heading))
    style = pathlib.Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    body = "\n".join(map(_html, blocks))
    return _PAGE.format(title=html.escape(title), style=style, body=body)


def _html(block: _Block) -> str:
    match block:
        case _Heading():
            return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
        case _Text():
            kind = f' class="{block.kind}"' if block.kind else ""
            return f"<p{kind}>{html.escape(block.text)}</p>"
        case _List():
            items = (f"<li><h2>{html.escape(name)}</h2>{_html(text)}</li>" for name, text in block.items.items())
            return '<ul class="answers">\n' + "\n".join(items) + "\n</ul>"
        case _Figures():
            return '<div class="figures">\n' + "\n".join(map(_html_figure, block.figures)) + "\n</div>"
        case _Picture():
            # Not as elements of the page, where the ids of two pictures would be the same.
            data = base64.b64encode(block.svg.encode()).decode()
            return f'<img alt="{html.escape(block.caption)}" src="data:image/svg+xml;base64,{data}">'
        case _Columns():
            parts = ("\n".join(map(_html, part)) for part in block.parts)
            return '<div class="columns">\n' + "\n".join(f"<section>{part}</section>" for part in parts) + "\n</div>"
        case _Details():
            inner = "\n".join(map(_html, block.blocks))
            return f"<details><summary>{html.escape(block.summary)}</summary>\n{inner}\n</details>"
        case _Table():
            return _html_table(block)


def _html_figure(figure: _Figure) -> str:
    missing = " missing" if figure.value == _NOT_MEASURED else ""
    aside = f' <span class="aside">{html.escape(figure.aside)}</span>' if figure.aside else ""
    lines = [f"<h2>{html.escape(figure.title)}</h2>", f'<p class="value">{html.escape(figure.value)}{aside}</p>']
    if figure.change:
        lines.append(f'<p class="change">{html.escape(figure.change)}</p>')
    for bar in figure.bars:
        drawn = ""
        if bar.length is not None:
            model = "dense" if bar.dense else "now"
            drawn = f'<div class="bar"><div class="{model}" style="width: {100 * bar.length:.2f}%"></div></div>'
        lines.append(f'<p class="of"><span>{bar.name}</span> <span>{html.escape(bar.text)}</span></p>{drawn}')
    lines += [f'<p class="note">{html.escape(note)}</p>' for note in figure.notes]
    return f'<section class="figure{missing}">\n' + "\n".join(lines) + "\n</section>"


def _html_table(table: _Table) -> str:
    header, *rows = table.rows
    lines = []
    if any(header):
        names = (f'<th scope="col">{html.escape(cell)}</th>' if cell else "<td></td>" for cell in header)
        lines.append(f"<thead><tr>{''.join(names)}</tr></thead>")
    lines.append("<tbody>")
    for row in rows:
        mark = ' class="marked"' if row[0] in table.marked else ""
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        lines.append(f'<tr{mark}><th scope="row">{html.escape(row[0])}</th>{cells}</tr>')
    # With the keyboard, too, one can scroll what can take the focus.
    return (
        f'<div class="table" tabindex="0"><table class="{table.kind}">\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _markdown(block: _Block, folder: str) -> str:
    """A block as Markdown, its pictures in `folder`."""
    match block:
        case _Heading():
            return f"{'#' * block.level} {_escaped(block.text)}"
        case _Text():
            text = _escaped(block.text)
            return f"**{text}**" if block.kind in ("answer", "unfinished") else text
        case _List():
            return "\n".join(f"- **{_escaped(name)}**: {_escaped(text.text)}" for name, text in block.items.items())
        case _Figures():
            return "\n".join(map(_markdown_figure, block.figures))
        case _Picture():
            return f"![{_escaped(block.caption)}]({quote(folder)}/{block.name}.svg)"
        case _Columns():
            return "\n\n".join(_markdown(inner, folder) for part in block.parts for inner in part)
        case _Details():
            inner = "\n\n".join(_markdown(inner, folder) for inner in block.blocks)
            return f"<details><summary>{html.escape(block.summary)}</summary>\n\n{inner}\n\n</details>"
        case _Table():
            return _markdown_table(block)


def _markdown_figure(figure: _Figure) -> str:
    value = f"**{figure.title}: {figure.value}**{figure.aside and ' '}{figure.aside}"
    dense = [f"{bar.name}: {bar.text}" for bar in figure.bars if bar.dense]
    said = "; ".join(filter(None, [value, figure.change, *dense]))
    return f"- {' '.join([f'{said}.', *figure.notes])}"


def _markdown_table(table: _Table) -> str:
    header, *rows = table.rows
    lines = [list(map(_escaped, header)), ["---", *["---" if table.kind == "texts" else "---:"] * (len(header) - 1)]]
    for row in rows:
        cells = map(_escaped, row)
        lines.append([f"**{cell}**" if cell and row[0] in table.marked else cell for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """A text that Markdown takes as it is, in one line."""
    return re.sub(r"([\\`*<\[\]|])", r"\\\1", " ".join(text.split()))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>"""
