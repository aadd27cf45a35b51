"""Pictures of runs, with matplotlib, which comes with the extras `report` and `study`."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aimp_tf.rounds import MAGNITUDE_EDGES, LayerResult, RoundResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that colour-blind readers can tell apart (Okabe and Ito, 2008). Their number and that of the markers have no
# common factor, so that no two lines of a plot look alike.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
_LIGHT = "#CFD8DC"
_SPARSITY_TICKS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


def check_matplotlib(extra: str) -> None:
    """Raises ModuleNotFoundError, which names the extra to install, where nothing can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ModuleNotFoundError(f'matplotlib is not installed; install it with pip install ".[{extra}]".')


def survivor_scale(sparsity: float) -> float:
    """Where to draw a sparsity in [0, 1): equal steps divide the weights that are left by the same number."""
    return -math.log10(1 - sparsity)


def plot_metric(runs: Mapping[str, Sequence[RoundResult]], metric: str, label: str) -> Figure:
    """A metric at the end of each round against the sparsity, a line for each run.

    Args:
        runs: Name -> its rounds, whose last is drawn larger.
        metric: Its name in `RoundResult.metrics`; rounds without it are left out.
        label: What to write beside the axis.
    """
    figure = _figure(6.5, 3.8)
    axes = figure.add_subplot()
    highest = 0.0
    for number, (name, rounds) in enumerate(runs.items()):
        points = [(round_.sparsity, round_.metrics[metric]) for round_ in rounds if metric in round_.metrics]
        if not points:
            continue
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        places = [survivor_scale(sparsity) for sparsity, _ in points]
        values = [value for _, value in points]
        axes.plot(places, values, color=colour, marker=marker, markersize=4, linewidth=1, label=name)
        axes.plot(places[-1:], values[-1:], color=colour, marker=marker, markersize=9, linestyle="none")
        highest = max(highest, points[-1][0])
    ticks = [tick for tick in _SPARSITY_TICKS if tick <= highest + 0.3 * (1 - highest)]
    axes.set_xticks([survivor_scale(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("sparsity (fraction of the prunable weights that are zero)")
    axes.set_ylabel(label)
    tidy(axes)
    if len(runs) > 1:
        axes.legend(frameon=False)
    return figure


def plot_cost(costs: Mapping[str, Sequence[tuple[str, float, float]]]) -> Figure:
    """Bars of what runs took, beside what plain iterative magnitude pruning takes, a panel for each kind of cost.

    Args:
        costs: What the panel shows, such as "epochs" -> (name of the run, what it took, what plain IMP takes) of each.
    """
    count = max(len(bars) for bars in costs.values())
    figure = _figure(6.5, 0.9 + 0.7 * count)
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    for axes, (title, bars) in zip(panels, costs.items(), strict=True):
        places = np.arange(len(bars))
        took, plain = [bar[1] for bar in bars], [bar[2] for bar in bars]
        drawn = [
            axes.barh(places - 0.2, took, 0.36, color=COLOURS[0], label="this run"),
            axes.barh(places + 0.2, plain, 0.36, color=_LIGHT, edgecolor="0.4", hatch="//", label="plain IMP"),
        ]
        for container, numbers in zip(drawn, (took, plain), strict=True):
            axes.bar_label(container, [f"{number:,.0f}" for number in numbers], padding=2, fontsize="small")
        axes.set_yticks(places, [bar[0] for bar in bars])
        axes.set_xlim(0, 1.25 * max(*took, *plain))
        axes.set_title(title, fontsize="medium")
        tidy(axes, grid="x")
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def plot_layers(layers: Sequence[LayerResult]) -> Figure:
    """The sparsity of each prunable variable as a bar and, beside it, how many of its weights are left."""
    figure = _figure(6.5, 1.1 + 0.24 * len(layers))
    sparsities, counts = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(layers))
    bars = sparsities.barh(places, [layer.sparsity for layer in layers], color=COLOURS[0])
    sparsities.bar_label(bars, [f"{layer.sparsity:.3f}" for layer in layers], padding=2, fontsize="small")
    sparsities.set_yticks(places, [layer.path for layer in layers])
    sparsities.set_xlim(0, 1.25)
    sparsities.set_xticks([0, 0.5, 1])
    sparsities.set_xlabel("sparsity")
    counts.barh(places, [layer.size for layer in layers], color=_LIGHT, label="all")
    counts.barh(places, [layer.kept for layer in layers], color=COLOURS[1], label="kept")
    counts.set_xscale("log")
    counts.set_xlim(left=0.8)
    counts.set_xlabel("weights")
    for axes in (sparsities, counts):
        tidy(axes, grid="x")
    sparsities.set_ylim(len(layers) - 0.4, -0.6)
    handles, labels = counts.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=2, frameon=False)
    return figure


def plot_latency(panels: Mapping[str, Sequence[tuple[str, float, float]]]) -> Figure:
    """Bars of the time that a call takes, with a line from the median to the 95th percentile, in panels two by two.

    Args:
        panels: Title -> (name, median, 95th percentile in seconds) of each bar; the same names in all.
    """
    count = max(len(bars) for bars in panels.values())
    rows = -(-len(panels) // 2)
    figure = _figure(6.5, 0.4 + rows * (0.7 + 0.2 * count))
    grid = figure.subplots(rows, 2, squeeze=False, sharey=True)
    for axes, (title, bars) in zip(grid.flat, panels.items(), strict=False):
        places = np.arange(len(bars))
        medians, highs = [1e3 * bar[1] for bar in bars], [1e3 * bar[2] for bar in bars]
        beyond = np.maximum(np.subtract(highs, medians), 0)
        drawn = axes.barh(places, medians, 0.7, color=COLOURS[0], xerr=[np.zeros(len(bars)), beyond], ecolor="0.5")
        axes.bar_label(drawn, [f"{median:.3g} " for median in medians], padding=2, fontsize="x-small")
        axes.set_yticks(places, [bar[0] for bar in bars], fontsize="small")
        axes.set_xscale("log")
        axes.set_xlim(min(medians) / 3, max(highs) * 4)
        axes.set_xlabel("ms a call")
        axes.set_title(title, fontsize="medium")
        tidy(axes, grid="x")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    grid[0, 0].invert_yaxis()
    return figure


def plot_magnitudes(rounds: Sequence[RoundResult]) -> Figure:
    """Histograms of the magnitudes of the surviving weights after the first round and after the last one."""
    figure = _figure(6.5, 3.2)
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
        axes.axvline(min(thresholds), color="0.2", linestyle="--", linewidth=1, label=label)
    axes.set_xscale("log")
    if occupied:
        axes.set_xlim(MAGNITUDE_EDGES[max(0, min(occupied) - 1)], MAGNITUDE_EDGES[max(occupied) + 1])
    axes.set_xlabel("magnitude of a weight")
    axes.set_ylabel("weights in a bin")
    tidy(axes, grid="y")
    axes.legend(loc="upper left", frameon=False, fontsize="small")
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # Not at the top: the extra may not be installed.

    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Any, grid: str = "both") -> None:
    """A light grid, on the axis "x", "y" or "both", behind what is drawn, and no frame."""
    axes.grid(color="0.9", axis=grid)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
