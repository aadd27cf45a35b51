"""A report on one run or several, as one HTML page or as Markdown with pictures."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import os
import pathlib
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aimp_tf.config import PruningConfig, nearest, upgrade
from aimp_tf.planning import imp_epochs, make_plan
from aimp_tf.plots import check_matplotlib, plot_cost, plot_latency, plot_layers, plot_magnitudes, plot_metric
from aimp_tf.rounds import duration_text, layer_notes, layer_table, number_text, round_table, telling_metric
from aimp_tf.run_directory import RecordedRun
from aimp_tf.safe_files import check_writable, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class _Heading:
    level: int
    text: str


@dataclasses.dataclass(frozen=True)
class _Text:
    text: str


@dataclasses.dataclass(frozen=True)
class _Table:
    """The first row is the header. Of a row whose first cell is in `marked`, all cells are emphasised."""

    rows: Sequence[Sequence[str]]
    marked: frozenset[str] = frozenset()
    numbers: bool = True


@dataclasses.dataclass(frozen=True)
class _Picture:
    name: str
    caption: str
    svg: str


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Parts that stand side by side where there is room."""

    parts: Sequence[Sequence[_Block]]


_Block = _Heading | _Text | _Table | _Picture | _Columns


def write_report(
    runs: Sequence[RecordedRun],
    path: str | os.PathLike[str],
    metric: str | None = None,
    inference: str | os.PathLike[str] | None = None,
) -> list[pathlib.Path]:
    """Writes a report on runs, finished or not, side by side.

    Args:
        runs: At least one, of which one at least has a round that is done. What `run_directory.read_run` gives.
        path: A file that ends in .html, for one page that needs no other file, or in .md, for Markdown with its
            pictures in a folder beside it, such as report_files. What is there is replaced.
        metric: The metric to plot, of those in `RoundResult.metrics`. None takes the first of the validation metrics
            but the loss, or the nearest to that which the runs have.
        inference: The file that `tools/benchmark.py inference` wrote, to be shown too.

    Returns:
        The files that were written; the report is the first.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError, ValueError: The path has another ending or cannot be written, no round is done, no run has that
            metric, or a config is not that of a run.
    """
    check_matplotlib("report")
    path = pathlib.Path(path)
    if path.suffix not in (".html", ".md"):
        raise ValueError(f"The report must be a file that ends in .html or .md; got {path}.")
    check_writable(path.parent, "the folder of the report")
    blocks = _blocks(_with_short_names([_with_fields_of_today(run) for run in runs]), metric, inference)
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


def _blocks(runs: Sequence[RecordedRun], metric: str | None, inference: str | os.PathLike[str] | None) -> list[_Block]:
    shown = [run for run in runs if run.rounds]
    if not shown:
        raise ValueError(f"No round is done yet in {', '.join(run.name for run in runs)}; there is nothing to report.")
    plans = [_Plan(run) for run in shown]
    chosen = _choose_metric(shown, metric)
    label = chosen.removeprefix("val_").replace("_", " ") + (" (validation)" if chosen.startswith("val_") else "")
    title = "Pruning report" if len(runs) > 1 else f"Pruning report: {runs[0].name}"
    blocks: list[_Block] = [_Heading(1, title), _overview(plans, chosen, label)]
    if len(shown) < len(runs):
        waiting = ", ".join(run.name for run in runs if not run.rounds)
        blocks.append(_Text(f"No round is done yet, and nothing to show, in: {waiting}."))
    rounds = {run.name: run.rounds for run in shown}
    blocks += [
        _Heading(2, "Accuracy against sparsity" if "acc" in chosen else "Quality against sparsity"),
        _Text(
            f"The {label} at the end of each round, before the ranking that follows it. The larger marker is the last "
            "round that is done: in a finished run, the training in full."
        ),
        _picture("metric", f"{label} against sparsity", plot_metric(rounds, chosen, label)),
        _Heading(2, "Cost"),
        _Text(
            "Plain iterative magnitude pruning (IMP) trains every round in full. It was not run: its epochs are "
            "counted, and its seconds are those of this run, scaled to its epochs. A run that is not done is compared "
            "with the rounds of plain IMP that lead as far."
        ),
        _picture("cost", "epochs and seconds beside plain IMP", plot_cost(_costs(plans))),
        _Heading(2, "Layers"),
        _Columns([_layers_section(plan, number, len(shown) > 1) for number, plan in enumerate(plans, start=1)]),
        _Heading(2, "Rounds"),
        _Columns([_rounds_section(run, len(shown) > 1) for run in shown]),
        *([] if inference is None else _inference_section(inference)),
        _Heading(2, "Config"),
        _fields_table({run.name: run.config for run in runs}),
        _Heading(2, "Environment"),
        _fields_table({run.name: run.environment for run in runs}),
    ]
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
            # Rounds go down from what was left when they began.
            first = run.rounds[0].kept if config.method == "iterative" else None
            self.round_count = len(make_plan(config, self.weight_count, first))
        except (TypeError, ValueError) as error:
            raise ValueError(f"The config of {run.name} is not that of a run: {error}") from error
        self.epochs = sum(round_.epochs for round_ in run.rounds)
        self.seconds = sum(round_.seconds for round_ in run.rounds)
        self.imp_epochs = (
            imp_epochs(config, self.weight_count, first) if run.finished else len(run.rounds) * config.epochs
        )
        self.imp_seconds = self.seconds / self.epochs * self.imp_epochs if self.epochs else 0.0


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
    def state(plan: _Plan) -> str:
        return "done" if plan.run.finished else f"{len(plan.run.rounds)} of {plan.round_count} rounds done"

    def trained(plan: _Plan) -> str:
        return f"{plan.epochs} ({plan.epochs / plan.imp_epochs:.0%} of plain IMP's {plan.imp_epochs})"

    def time(plan: _Plan) -> str:
        return f"{duration_text(plan.seconds)} (plain IMP: about {duration_text(plan.imp_seconds)})"

    rows: dict[str, Callable[[_Plan], str]] = {
        "state": state,
        "method": lambda plan: str(plan.run.config.get("method")),
        "sparsity": lambda plan: f"{plan.run.rounds[-1].sparsity:.4f} (target {plan.run.config['target_sparsity']})",
        "weights kept": lambda plan: f"{plan.run.rounds[-1].kept:,} of {plan.weight_count:,}",
        f"{label}, last round": lambda plan: number_text(plan.run.rounds[-1].metrics.get(metric)),
        f"{label}, first round": lambda plan: number_text(plan.run.rounds[0].metrics.get(metric)),
        "epochs": trained,
        "time": time,
    }
    return _Table(
        [
            ["", *(plan.run.name for plan in plans)],
            *([name, *(text(plan) for plan in plans)] for name, text in rows.items()),
        ]
    )


def _costs(plans: Sequence[_Plan]) -> dict[str, list[tuple[str, float, float]]]:
    return {
        "epochs": [(plan.run.name, plan.epochs, plan.imp_epochs) for plan in plans],
        "seconds": [(plan.run.name, plan.seconds, plan.imp_seconds) for plan in plans],
    }


def _layers_section(plan: _Plan, number: int, named: bool) -> list[_Block]:
    name, rounds = plan.run.name, plan.run.rounds
    return [
        *([_Heading(3, name)] if named else []),
        _picture(
            f"layers_{number}", f"sparsity and kept weights of each variable, {name}", plot_layers(rounds[-1].layers)
        ),
        _picture(
            f"magnitudes_{number}",
            f"magnitudes of the surviving weights before and after pruning, {name}",
            plot_magnitudes(rounds),
        ),
        _Table(layer_table(rounds[-1].layers)),
        *map(_Text, layer_notes(rounds)),
    ]


def _rounds_section(run: RecordedRun, named: bool) -> list[_Block]:
    return [*([_Heading(3, run.name)] if named else []), _Table(round_table(run.rounds, run.finished))]


def _fields_table(fields: Mapping[str, Mapping[str, Any]]) -> _Table:
    """The fields of each run, those that differ marked."""
    names = list(dict.fromkeys(name for values in fields.values() for name in values))
    rows = [[name, *(_value_text(values.get(name)) for values in fields.values())] for name in names]
    return _Table([["", *fields], *rows], frozenset(row[0] for row in rows if len(set(row[1:])) > 1), numbers=False)


def _value_text(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)


def _picture(name: str, caption: str, figure: Figure) -> _Picture:
    import matplotlib

    file = io.StringIO()
    # The same figure gives the same text every time.
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _Picture(name, caption, file.getvalue())


def _pictures(blocks: Sequence[_Block]) -> list[_Picture]:
    nested = [_pictures(part) for block in blocks if isinstance(block, _Columns) for part in block.parts]
    return [block for block in blocks if isinstance(block, _Picture)] + [picture for part in nested for picture in part]


def _html_page(blocks: Sequence[_Block]) -> str:
    title = next(block.text for block in blocks if isinstance(block, _Heading))
    body = "\n".join(map(_html, blocks))
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body)


def _html(block: _Block) -> str:
    if isinstance(block, _Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, _Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, _Picture):
        # Not as elements of the page, where the ids of two pictures would be the same.
        data = base64.b64encode(block.svg.encode()).decode()
        return f'<img alt="{html.escape(block.caption)}" src="data:image/svg+xml;base64,{data}">'
    if isinstance(block, _Columns):
        parts = ("\n".join(map(_html, part)) for part in block.parts)
        return '<div class="columns">\n' + "\n".join(f"<section>{part}</section>" for part in parts) + "\n</div>"
    header, *rows = block.rows
    lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in header)}</tr>"]
    for row in rows:
        mark = ' class="marked"' if row[0] in block.marked else ""
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        lines.append(f"<tr{mark}><th>{html.escape(row[0])}</th>{cells}</tr>")
    kind = "numbers" if block.numbers else "texts"
    return f'<div class="table"><table class="{kind}">\n' + "\n".join(lines) + "\n</table></div>"


def _markdown(block: _Block, folder: str) -> str:
    """A block as Markdown, its pictures in `folder`."""
    if isinstance(block, _Heading):
        return f"{'#' * block.level} {_escaped(block.text)}"
    if isinstance(block, _Text):
        return _escaped(block.text)
    if isinstance(block, _Picture):
        return f"![{_escaped(block.caption)}]({quote(folder)}/{block.name}.svg)"
    if isinstance(block, _Columns):
        return "\n\n".join(_markdown(inner, folder) for part in block.parts for inner in part)
    header, *rows = block.rows
    lines = [list(map(_escaped, header)), ["---", *["---:" if block.numbers else "---"] * (len(header) - 1)]]
    for row in rows:
        cells = map(_escaped, row)
        lines.append([f"**{cell}**" if cell and row[0] in block.marked else cell for cell in cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    """A text that Markdown takes as it is, in one line."""
    return re.sub(r"([\\`*<\[\]|])", r"\\\1", " ".join(text.split()))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>"""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 88rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; } p { max-width: 46rem; }
img { display: block; width: 100%; max-width: 46rem; height: auto; margin: 1rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(32rem, 100%), 1fr)); gap: 0 2.5rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.6rem 0; }
th, td { padding: 0.15rem 0.8rem 0.15rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: top; }
tr:first-child th { border-bottom: 1px solid #888; }
th { text-align: left; font-weight: 600; }
.numbers td, .numbers th:nth-child(n + 2) { text-align: right; }
.columns table { font-size: 0.9em; } .columns th, .columns td { padding-right: 0.5rem; }
.texts td { overflow-wrap: anywhere; }
.marked { background: #fff3d6; }
@media print {
  body { font-size: 9pt; max-width: none; margin: 0; padding: 0; } img, tr, h2, h3 { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .table { overflow: visible; } .columns { display: block; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
