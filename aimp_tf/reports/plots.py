"""Pictures of runs, with matplotlib, which comes with the extras `report` and `study`."""

from __future__ import annotations

import importlib.util
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aimp_tf.runs.outcome import accuracy_margin
from aimp_tf.training.rounds import MAGNITUDE_EDGES, LayerResult, RoundResult, is_accuracy, percent_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008). Their number and that of the markers have no
# common factor, so that no two lines of a plot look alike.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
_LIGHT = "#CFD8DC"
_INK = "#24292F"
_GRID = "#E3E7EB"
# What each of these becomes on a dark page.
_IN_THE_DARK = {
    "#0072B2": "#4FA9E6",
    "#D55E00": "#FF8C42",
    "#009E73": "#35C79A",
    "#CC79A7": "#E29CC4",
    "#E69F00": "#F2B632",
    "#56B4E9": "#A9DDF8",
    "#000000": "#F4F6F8",
    _LIGHT: "#46525C",
    _INK: "#D5DBE1",
    _GRID: "#323A43",
}
_WIDTH = 5.6  # Inches: on a phone, too, one must be able to read what is written.
_SPARSITY_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


def check_matplotlib(extra: str) -> None:
    """Raises ModuleNotFoundError, which names the extra to install, where nothing can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(f'matplotlib is not installed; install it with pip install ".[{extra}]".')


def svg_text(figure: Figure, name: str) -> str:
    """A figure of this module as SVG without a background, in the reader's font, and in other colours on a dark page.

    The same figure and name of the picture give the same text every time.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    rules = [
        "text { font-family: system-ui, sans-serif !important; }",
        "@media screen and (prefers-color-scheme: dark) {",
    ]
    for light, dark in _IN_THE_DARK.items():
        # Not as variables in place of the colours: what knows none, such as Inkscape, draws the light ones.
        rules += [f'[style*="{kind}: {light.lower()}"] {{ {kind}: {dark} !important; }}' for kind in ("fill", "stroke")]
    style = "\n".join([*rules, "}"])
    return re.sub(r"(<svg\b[^>]*>)", rf"\1\n <style>\n{style}\n </style>", file.getvalue(), count=1)


def survivor_scale(sparsity: float) -> float:
    """Where to draw a sparsity in [0, 1): equal steps divide the weights that are left by the same number."""
    return -math.log10(1 - sparsity)


def plot_metric(
    runs: Mapping[str, Sequence[RoundResult]],
    metric: str,
    label: str,
    dense: Mapping[str, float] | None = None,
    examples: Mapping[str, int] | None = None,
    *,
    axes: Any = None,
) -> Figure:
    """A metric at the end of each round against the sparsity, a line for each run.

    Args:
        runs: Name -> its rounds, whose last is drawn larger.
        metric: Its name in `RoundResult.metrics`; rounds without it are left out.
        label: What to write beside the axis.
        dense: Name -> the metric of the dense model, a dashed line.
        examples: Name -> number of examples that an accuracy is of, for the 95% interval of the last round.
        axes: Those of matplotlib to draw on; None makes a figure of its own.
    """
    axes = _figure(3.4).add_subplot() if axes is None else axes
    highest = 0.0
    in_percent = True
    for number, (name, rounds) in enumerate(runs.items()):
        points = [(round_.sparsity, round_.metrics[metric]) for round_ in rounds if metric in round_.metrics]
        if not points:
            continue
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        places = [survivor_scale(sparsity) for sparsity, _ in points]
        values = [value for _, value in points]
        in_percent = in_percent and all(is_accuracy(metric, value) for value in values)
        if examples and name in examples and is_accuracy(metric, values[-1]):
            margin = accuracy_margin(values[-1], examples[name])
            axes.errorbar(places[-1:], values[-1:], yerr=margin, color=colour, capsize=3, elinewidth=1.2)
        axes.plot(places, values, color=colour, marker=marker, markersize=4, linewidth=1.4, label=name)
        axes.plot(places[-1:], values[-1:], color=colour, marker=marker, markersize=9, linestyle="none")
        highest = max(highest, points[-1][0])
    ticks = [tick for tick in _SPARSITY_TICKS if tick <= highest + 0.3 * (1 - highest)]
    # What is the same for all runs is drawn once.
    levels = dense or {}
    if len(set(levels.values())) == 1:
        levels = {"": next(iter(levels.values()))}
    for name, value in levels.items():
        colour = COLOURS[list(runs).index(name) % len(COLOURS)] if name else _INK
        label_of_line = f"{name}: dense" if name else "dense"
        axes.axhline(value, color=colour, linestyle=(0, (4, 3)), linewidth=1.2, label=label_of_line)
    axes.set_xticks([survivor_scale(tick) for tick in ticks], [f"{100 * tick:g}%" for tick in ticks])
    axes.set_xlabel("sparsity (share of the prunable weights that are zero)")
    axes.set_ylabel(label)
    if in_percent:
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.6g}%")
    tidy(axes)
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, labelcolor=_INK)
    return axes.figure


def plot_cost(costs: Mapping[str, Sequence[tuple[str, float, float]]]) -> Figure:
    """Bars of what runs took, beside what plain iterative magnitude pruning takes, a panel for each kind of cost.

    Args:
        costs: What the panel shows, such as "epochs" -> (name of the run, what it took, what plain IMP takes) of each.
    """
    count = max(len(bars) for bars in costs.values())
    figure = _figure(0.9 + 0.7 * count)
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    for axes, (title, bars) in zip(panels, costs.items(), strict=True):
        places = np.arange(len(bars))
        took, plain = [bar[1] for bar in bars], [bar[2] for bar in bars]
        drawn = [
            axes.barh(places - 0.2, took, 0.36, color=COLOURS[0], label="this run"),
            axes.barh(places + 0.2, plain, 0.36, color=_LIGHT, label="plain IMP"),
        ]
        for container, numbers in zip(drawn, (took, plain), strict=True):
            axes.bar_label(container, [f"{number:,.0f}" for number in numbers], padding=2, fontsize="small")
        axes.set_yticks(places, [bar[0] for bar in bars])
        axes.set_xlim(0, 1.25 * max(*took, *plain))
        axes.set_title(title, fontsize="medium")
        tidy(axes, grid="x")
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, labelcolor=_INK)
    return figure


def plot_layers(layers: Sequence[LayerResult]) -> Figure:
    """The sparsity of each prunable variable as a bar and, beside it, how many of its weights are left."""
    figure = _figure(1.1 + 0.28 * len(layers))
    sparsities, counts = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(layers))
    bars = sparsities.barh(places, [layer.sparsity for layer in layers], 0.7, color=COLOURS[0])
    sparsities.bar_label(bars, [percent_text(layer.sparsity, 1) for layer in layers], padding=3, fontsize="small")
    # Long paths leave little room for what belongs to them.
    size = "small" if max(len(layer.path) for layer in layers) > 24 else "medium"
    sparsities.set_yticks(places, [layer.path for layer in layers], fontsize=size)
    sparsities.set_xlim(0, 1.3)
    sparsities.set_xticks([0, 0.5, 1], ["0%", "50%", "100%"])
    sparsities.set_xlabel("sparsity")
    whole = counts.barh(places, [layer.size for layer in layers], 0.7, color=_LIGHT, label="all")
    counts.barh(places, [layer.kept for layer in layers], 0.7, color=COLOURS[1], label="kept: the number")
    counts.bar_label(whole, [f"{layer.kept:,}" for layer in layers], padding=3, fontsize="small")
    largest = max(layer.size for layer in layers)
    counts.set_xlim(0, 1.3 * max(largest, 1))
    counts.set_xticks([0, largest], ["0", f"{largest:,}"])
    counts.set_xlabel("weights")
    for axes in (sparsities, counts):
        tidy(axes, grid="x")
        axes.tick_params(axis="x", labelsize="small")
    sparsities.set_ylim(len(layers) - 0.4, -0.6)
    figure.legend(loc="outside lower right", ncols=2, frameon=False, labelcolor=_INK)
    return figure


def plot_channels(channels: Mapping[str, tuple[int, int]]) -> Figure:
    """Bars of how many channels each layer has, and how many of them are left.

    Args:
        channels: Layer -> channels of the dense model and of the pruned one.
    """
    figure = _figure(1.1 + 0.22 * len(channels))
    axes = figure.add_subplot()
    places = np.arange(len(channels))
    dense, left = ([pair[which] for pair in channels.values()] for which in (0, 1))
    axes.barh(places, dense, 0.7, color=_LIGHT, label="dense")
    bars = axes.barh(places, left, 0.7, color=COLOURS[0], label="left: the number")
    axes.bar_label(bars, [f"{count:,}" for count in left], padding=3, fontsize="small")
    axes.set_yticks(places, list(channels), fontsize="small")
    axes.set_ylim(len(channels) - 0.4, -0.6)
    axes.set_xlabel("channels")
    tidy(axes, grid="x")
    figure.legend(loc="outside lower right", ncols=2, frameon=False, labelcolor=_INK)
    return figure


def plot_latency(panels: Mapping[str, Sequence[tuple[str, float, float]]]) -> Figure:
    """Bars of the time that a call takes, with a line from the median to the 95th percentile, in panels two by two.

    Args:
        panels: Title -> (name, median, 95th percentile in seconds) of each bar; the same names in all.
    """
    count = max(len(bars) for bars in panels.values())
    rows = -(-len(panels) // 2)
    figure = _figure(0.4 + rows * (0.7 + 0.2 * count))
    grid = figure.subplots(rows, 2, squeeze=False, sharey=True)
    for axes, (title, bars) in zip(grid.flat, panels.items(), strict=False):
        places = np.arange(len(bars))
        medians, highs = [1e3 * bar[1] for bar in bars], [1e3 * bar[2] for bar in bars]
        beyond = np.maximum(np.subtract(highs, medians), 0)
        drawn = axes.barh(places, medians, 0.7, color=COLOURS[0], xerr=[np.zeros(len(bars)), beyond], ecolor=_INK)
        axes.bar_label(drawn, [f"{median:.3g} " for median in medians], padding=2, fontsize="x-small")
        axes.set_yticks(places, [bar[0] for bar in bars], fontsize="small")
        axes.set_xscale("log")
        axes.set_xlim(min(medians) / 3, max(highs) * 4)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("ms a call")
        axes.set_title(title, fontsize="medium")
        tidy(axes, grid="x")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    grid[0, 0].invert_yaxis()
    return figure


def plot_magnitudes(rounds: Sequence[RoundResult]) -> Figure:
    """Histograms of the magnitudes of the surviving weights after the first round and after the last one."""
    figure = _figure(2.9)
    axes = figure.add_subplot()
    last = rounds[-1]
    shown = [(last, "after the last training" if len(rounds) > 1 else "after training", COLOURS[1])]
    if len(rounds) > 1:
        shown.insert(0, (rounds[0], "after the first round", COLOURS[0]))
    occupied: list[int] = []
    for round_, label, colour in shown:
        counts = np.sum([layer.magnitudes for layer in round_.layers], axis=0)
        occupied += np.flatnonzero(counts).tolist()
        label = f"{label}: {round_.kept:,} weights"
        axes.stairs(counts, MAGNITUDE_EDGES, color=colour, fill=True, alpha=0.35)
        axes.stairs(counts, MAGNITUDE_EDGES, color=colour, linewidth=1, label=label)
    thresholds = [layer.threshold for layer in last.layers if layer.threshold]
    if thresholds:
        label = "lowest threshold of the last ranking"
        axes.axvline(min(thresholds), color=_INK, linestyle="--", linewidth=1, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    if occupied:
        axes.set_xlim(MAGNITUDE_EDGES[max(0, min(occupied) - 1)], MAGNITUDE_EDGES[max(occupied) + 1])
    axes.set_xlabel("magnitude of a weight")
    axes.set_ylabel("weights in a bin")
    tidy(axes, grid="y")
    axes.legend(loc="upper left", frameon=False, fontsize="small", labelcolor=_INK)
    return figure


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure  # Not at the top: the extra may not be installed.

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def tidy(axes: Any, grid: str = "both") -> None:
    """A light grid, on the axis "x", "y" or "both", behind what is drawn, no frame, and all in one ink."""
    axes.grid(color=_GRID, axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(_INK)
    axes.tick_params(which="both", color=_INK, labelcolor=_INK)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts):
        text.set_color(_INK)
