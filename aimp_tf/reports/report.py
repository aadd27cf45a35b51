"""A report on one run or several, as one HTML page or as Markdown with pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aimp_tf.config import default_fields, upgrade
from aimp_tf.files import check_writable, write_atomically
from aimp_tf.reports.answer import answer_of, opening
from aimp_tf.reports.blocks import (
    Block,
    Columns,
    Details,
    Heading,
    Picture,
    Table,
    Text,
    html_of,
    html_page,
    markdown_of,
    pictures_in,
)
from aimp_tf.reports.plots import (
    check_matplotlib,
    plot_channels,
    plot_cost,
    plot_latency,
    plot_layers,
    plot_magnitudes,
    plot_metric,
    svg_text,
)
from aimp_tf.reports.reported_run import ReportedRun, choose_metric
from aimp_tf.runs.recorded_run import RecordedRun
from aimp_tf.training.rounds import (
    budget_text,
    duration_text,
    layer_notes,
    layer_table,
    names_accuracy,
    percent_text,
    round_table,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    runs: Sequence[RecordedRun],
    path: str | os.PathLike[str],
    metric: str | None = None,
    inference: str | os.PathLike[str] | None = None,
    title: str | None = None,
) -> list[pathlib.Path]:
    """Writes a report on runs, finished or not, side by side.

    Args:
        runs: At least one, of which one at least has a round that is done. What `recorded_run.read_run` gives.
        path: A file that ends in .html, for one page that needs no other file, or in .md, for Markdown with its
            pictures in a folder beside it, such as report_files. What is there is replaced.
        metric: The metric to plot, of those in `RoundResult.metrics`. None takes the first of the validation metrics
            but the loss, or the nearest to that which the runs have.
        inference: The file that `tools/benchmark.py inference` wrote, to be shown too.
        title: The heading. None makes one that names the runs.

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
        write_atomically(path, html_page(blocks))
        return [path]
    folder = path.with_name(f"{path.stem}_files")
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {folder / f"{picture.name}.svg": picture.svg for picture in pictures_in(blocks)}
    for file, svg in pictures.items():
        write_atomically(file, svg)
    write_atomically(path, "\n\n".join(markdown_of(block, folder.name) for block in blocks))
    return [path, *pictures]


def html_view(run: RecordedRun) -> str:
    """A finished run as HTML for a notebook: the answer, the rounds and, with matplotlib, their metric."""
    run, metric = _with_fields_of_today(run), ""
    with contextlib.suppress(ValueError):  # There is no metric.
        metric = choose_metric([run], None)
    plan = ReportedRun(run, metric)
    blocks: list[Block] = [answer_of(plan), Table(round_table(run.rounds))]
    blocks += map(Text, run.outcome.notes(run.rounds[-1].metrics))
    if metric and importlib.util.find_spec("matplotlib") is not None:
        blocks.append(_metric_picture([plan]))
    return "\n".join(map(html_of, blocks))


def draw(run: RecordedRun, axes: Any, metric: str | None = None) -> None:
    """Draws the metric of a run against its sparsity on axes of matplotlib. Raises ValueError for an unknown one."""
    _plot_metric([ReportedRun(_with_fields_of_today(run), choose_metric([run], metric))], axes)


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
) -> list[Block]:
    shown = [run for run in runs if run.rounds]
    if not shown:
        raise ValueError(f"No round is done yet in {', '.join(run.name for run in runs)}; there is nothing to report.")
    metric = choose_metric(shown, metric)
    plans = [ReportedRun(run, metric) for run in shown]
    blocks: list[Block] = [Heading(1, title or _title(runs)), *opening(plans)]
    if len(shown) < len(runs):
        waiting = ", ".join(run.name for run in runs if not run.rounds)
        blocks.append(Text(f"No round is done yet, and nothing to show, in: {waiting}."))
    return [
        *blocks,
        Columns([_quality_section(plans), _cost_section(plans)]),
        *_layers_and_rounds(plans),
        *([] if inference is None else _inference_section(inference)),
        Columns([_config_section(runs), _environment_section(runs)]),
    ]


def _title(runs: Sequence[RecordedRun]) -> str:
    """A sentence that names the runs, but not as Keras does where nobody chose a name."""
    if len(runs) > 3:
        return f"What pruning made of {len(runs)} runs"
    if len(runs) == 1 and re.fullmatch(r"(run|model|sequential|functional)(_\d+)?", runs[0].name):
        return "What pruning made of the model"
    *names, last = (run.name for run in runs)
    return f"What pruning made of {', '.join(names)}{' and ' if names else ''}{last}"


def _plot_metric(plans: Sequence[ReportedRun], axes: Any = None) -> Figure:
    rounds = {plan.run.name: plan.run.rounds for plan in plans}
    dense = {plan.run.name: plan.dense for plan in plans if plan.dense is not None}
    examples = {plan.run.name: plan.examples for plan in plans if plan.examples is not None}
    return plot_metric(rounds, plans[0].metric, plans[0].label, dense, examples, axes=axes)


def _metric_picture(plans: Sequence[ReportedRun]) -> Picture:
    last = ", ".join(
        f"{plan.told(plan.last)} at {percent_text(plan.last.sparsity)} of {plan.run.name}" for plan in plans
    )
    return _picture("metric", f"{plans[0].label} against sparsity", _plot_metric(plans), last)


def _quality_section(plans: Sequence[ReportedRun]) -> list[Block]:
    return [
        Heading(2, "Accuracy against sparsity" if names_accuracy(plans[0].metric) else "Quality against sparsity"),
        Text(
            f"The {plans[0].label} at the end of each round, before the ranking that follows it. The larger marker is "
            "the last round that is done: in a finished run, the training in full."
        ),
        _metric_picture(plans),
    ]


def _cost_section(plans: Sequence[ReportedRun]) -> list[Block]:
    costs: dict[str, list[tuple[str, float, float]]] = {
        "epochs": [(plan.run.name, plan.epochs, plan.imp_epochs) for plan in plans],
        "seconds": [(plan.run.name, plan.seconds, plan.imp_seconds) for plan in plans],
    }
    return [
        Heading(2, "Cost"),
        Text(
            "Plain iterative magnitude pruning (IMP) trains every round in full. It was not run: its epochs are "
            "counted, and its seconds are those of this run, scaled to its epochs. A run that is not done is compared "
            "with the rounds of plain IMP that lead as far."
        ),
        _picture("cost", "epochs and seconds beside plain IMP", plot_cost(costs)),
        _overview(plans),
    ]


def _layers_and_rounds(plans: Sequence[ReportedRun]) -> list[Block]:
    """Of one run side by side; of several, the layers of all and then the rounds of all."""
    layers = [_layers_section(plan, number) for number, plan in enumerate(plans, start=1)]
    rounds: list[list[Block]] = [[Table(round_table(plan.run.rounds, plan.run.finished))] for plan in plans]
    for number, plan in enumerate(plans, start=1):
        about = f"magnitudes of the surviving weights before and after pruning, {plan.run.name}"
        picture = _picture(f"magnitudes_{number}", about, plot_magnitudes(plan.run.rounds))
        # Below the shorter of the two.
        longer = len(plan.last.layers) > len(plan.run.rounds)
        (rounds if longer and len(plans) == 1 else layers)[number - 1].append(picture)
    if len(plans) == 1:
        return [Columns([[Heading(2, "Layers"), *layers[0]], [Heading(2, "Rounds"), *rounds[0]]])]
    blocks: list[Block] = []
    for title, sections in (("Layers", layers), ("Rounds", rounds)):
        parts = [[Heading(3, plan.run.name), *section] for plan, section in zip(plans, sections, strict=True)]
        blocks += [Heading(2, title), Columns(parts)]
    return blocks


def _inference_section(path: str | os.PathLike[str]) -> list[Block]:
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
            "the others compute what the pruned one does, those of float16 and int8 but nearly. Memory is what loading "
            "and running takes beside TensorFlow itself; how often as fast is told in comparison with the dense form."
        )
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)} is not what tools/benchmark.py inference --output writes: {error!r}"
        ) from error
    return [
        Heading(2, "Inference"),
        Text(about),
        Table(rows),
        _picture("latency", "latency: the median and, as a line, the 95th percentile", plot_latency(panels)),
    ]


def _overview(plans: Sequence[ReportedRun]) -> Table:
    facts = [_facts(plan) for plan in plans]
    rows = [[name, *(of_run[name] for of_run in facts)] for name in facts[0]]
    shown = [row for row in rows if row[0] != "budget" or any(row[1:])]
    return Table([_header([plan.run.name for plan in plans]), *shown], kind="facts")


def _facts(plan: ReportedRun) -> dict[str, str]:
    config, last = plan.run.config, plan.last
    target = f" (target {100 * config['target_sparsity']:g}%)" if config["budget"] == "weights" else ""
    return {
        "state": "done" if plan.run.finished else f"{len(plan.run.rounds)} of {plan.round_count} rounds done",
        "method": str(config["method"]),
        "sparsity": percent_text(last.sparsity) + target,
        "budget": budget_text(last.budget) if last.budget else "",
        "weights kept": f"{last.kept:,} of {plan.weight_count:,}",
        f"{plan.label}, last round": plan.told(last),
        f"{plan.label}, first round": plan.told(plan.run.rounds[0]),
        "epochs": f"{plan.epochs} ({plan.epochs / plan.imp_epochs:.0%} of plain IMP's {plan.imp_epochs})",
        "time": f"{duration_text(plan.seconds)} (plain IMP: about {duration_text(plan.imp_seconds)})",
    }


def _layers_section(plan: ReportedRun, number: int) -> list[Block]:
    name, rounds, channels = plan.run.name, plan.run.rounds, plan.outcome.channels
    about = f"channels of each layer, before and after, {name}"
    return [
        *([] if channels is None else [_picture(f"channels_{number}", about, plot_channels(channels))]),
        _picture(
            f"layers_{number}", f"sparsity and kept weights of each variable, {name}", plot_layers(plan.last.layers)
        ),
        Table(layer_table(plan.last.layers)),
        *(Text(note) for note in layer_notes(rounds)),
    ]


def _config_section(runs: Sequence[RecordedRun]) -> list[Block]:
    """The fields that a run has set, and those that all have left at their defaults, folded away."""
    defaults = default_fields()
    names = dict.fromkeys(name for run in runs for name in run.config)
    at_default = [
        name for name in names if name in defaults and all(run.config.get(name) == defaults[name] for run in runs)
    ]
    configs = {run.name: run.config for run in runs}
    blocks: list[Block] = [
        Heading(2, "Config"),
        _fields_table(configs, [name for name in names if name not in at_default]),
    ]
    if at_default:
        blocks.append(Details(f"{len(at_default)} fields at their defaults", [_fields_table(configs, at_default)]))
    return blocks


def _environment_section(runs: Sequence[RecordedRun]) -> list[Block]:
    known = {
        "Python": {run.environment.get("python") for run in runs},
        "TensorFlow": {run.environment.get("versions", {}).get("tensorflow") for run in runs},
        "on": {_value_text(run.environment["devices"]) for run in runs if "devices" in run.environment},
    }
    gist = [f"{name} {value}" for name, values in known.items() if len(values) == 1 and (value := values.pop())]
    names = dict.fromkeys(name for run in runs for name in run.environment)
    table = _fields_table({run.name: run.environment for run in runs}, names)
    return [Heading(2, "Environment"), Details(", ".join(gist) or "Versions and devices", [table])]


def _fields_table(fields: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> Table:
    """The fields of each run that are named, those that differ marked."""
    rows = [[name, *(_value_text(values.get(name)) for values in fields.values())] for name in names]
    return Table([_header(fields), *rows], frozenset(row[0] for row in rows if len(set(row[1:])) > 1), kind="texts")


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


def _picture(name: str, caption: str, figure: Figure, told: str = "") -> Picture:
    """A figure as a picture whose text for those who cannot see it is the caption and what is told."""
    return Picture(name, f"{caption}: {told}" if told else caption, svg_text(figure, name))
