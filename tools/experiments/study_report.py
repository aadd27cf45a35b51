"""What a study found: a CSV file, a Markdown table and two plots."""

from __future__ import annotations

import csv
import itertools
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aimp_tf.reports.plots import COLOURS, MARKERS, survivor_scale, tidy
from experiments.study import CellResult, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = ("arm", "sparsity", "seed", "accuracy", "measured_sparsity", "epochs", "seconds")


def write_report(study: Study, results: Sequence[CellResult], workdir: pathlib.Path) -> str:
    """Writes results.csv, results.md, accuracy_by_sparsity.png and accuracy_by_epochs.png into the workdir.

    Args:
        study: A valid study.
        results: Of the cells that are done, at least one.
        workdir: The study's folder.

    Returns:
        The table, and where it lies.
    """
    table = markdown(study, results)
    with open(workdir / "results.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows([getattr(result, column) for column in _COLUMNS] for result in results)
    (workdir / "results.md").write_text(table, encoding="utf-8")
    for name, figure in (("sparsity", plot_by_sparsity(study, results)), ("epochs", plot_by_epochs(study, results))):
        figure.savefig(workdir / f"accuracy_by_{name}.png", dpi=200, bbox_inches="tight")
    return f"\n{table}\nThe same, every cell and two plots: {workdir}/results.md, results.csv, accuracy_by_*.png"


def markdown(study: Study, results: Sequence[CellResult]) -> str:
    """A row an arm, and for each sparsity the test accuracy and the epochs."""
    experiment = study.experiment
    header = ["arm"] + [title for sparsity in study.sparsities for title in (f"sparsity {sparsity}", "epochs")]
    rows = [header, ["---"] * len(header)]
    for arm in study.arms:
        groups = [group(study, results, arm, sparsity) for sparsity in study.sparsities]
        rows.append([arm] + [text for cells in groups for text in _texts(cells)])
    dense = [arm for arm in study.arms if study.is_dense(arm)]
    notes = (
        f"{experiment.architecture} on {experiment.dataset}: {experiment.judged_by} accuracy in percent, mean ± "
        "standard deviation (number of seeds), and epochs trained in all."
    )
    if dense and len(study.sparsities) > 1:
        notes += f" Not pruned, and so the same in every column: {', '.join(dense)}."
    return "\n".join([notes, "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def plot_by_sparsity(study: Study, results: Sequence[CellResult]) -> Figure:
    """Accuracy against sparsity, on a scale where equal steps divide the weights that are left by the same number."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 + 1.2 * len(study.sparsities), 4.5), layout="constrained")
    axes = figure.add_subplot()
    ticks = {sparsity: survivor_scale(sparsity) for sparsity in sorted(study.sparsities)}
    width = 0.4 * min((after - before for before, after in itertools.pairwise(ticks.values())), default=1.0)
    points = {
        arm: [(tick + shift, group(study, results, arm, sparsity)) for sparsity, tick in ticks.items()]
        for arm, shift in zip(study.arms, _spread(len(study.arms), width), strict=True)
    }
    _draw(axes, study, points, joined=True)
    axes.set_xticks(list(ticks.values()), [str(sparsity) for sparsity in ticks])
    axes.set_xlim(min(ticks.values()) - width, max(ticks.values()) + width)
    axes.set_xlabel("sparsity")
    _finish(figure, study)
    return figure


def plot_by_epochs(study: Study, results: Sequence[CellResult]) -> Figure:
    """Accuracy against the epochs trained in all, a panel for each sparsity."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(1.8 + 4.2 * len(study.sparsities), 4.5), layout="constrained")
    panels = figure.subplots(1, len(study.sparsities), squeeze=False)[0]
    for axes, sparsity in zip(panels, study.sparsities, strict=True):
        by_epochs: dict[float, list[str]] = {}
        for arm in study.arms:
            if cells := group(study, results, arm, sparsity):
                by_epochs.setdefault(statistics.fmean(result.epochs for result in cells), []).append(arm)
        points = {
            arm: [(epochs * 10**shift, group(study, results, arm, sparsity))]
            for epochs, arms in by_epochs.items()
            for arm, shift in zip(arms, _spread(len(arms), 0.02 * (len(arms) - 1)), strict=True)
        }
        _draw(axes, study, points, joined=False)
        axes.set_xscale("log")
        ticks = _apart(by_epochs)
        axes.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.1)
        axes.set_title(f"sparsity {sparsity}")
        axes.set_xlabel("training epochs")
    _finish(figure, study)
    return figure


def group(study: Study, results: Sequence[CellResult], arm: str, sparsity: float) -> list[CellResult]:
    """The results of an arm at a sparsity; a dense arm of fixed length has the same at each."""
    if study.is_dense(arm):
        sparsity = 0.0
    return [result for result in results if result.arm == arm and result.sparsity == sparsity]


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the standard deviation of the sample (over n - 1), 0 where there is a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def percent_text(fractions: Sequence[float]) -> str:
    """The mean in percent, and the standard deviation where there is one."""
    mean, deviation = mean_and_deviation([100 * fraction for fraction in fractions])
    return f"{mean:.2f} ± {deviation:.2f}" if len(fractions) > 1 else f"{mean:.2f}"


def _draw(
    axes: Any, study: Study, points: Mapping[str, Sequence[tuple[float, Sequence[CellResult]]]], joined: bool
) -> None:
    """The means of arms with their standard deviations, at arm -> (x, results). Far outliers are marked at the edge."""
    summaries = {
        arm: [(x, *mean_and_deviation([100 * result.accuracy for result in cells])) for x, cells in groups if cells]
        for arm, groups in points.items()
    }
    bottom = _bottom([mean for summary in summaries.values() for _, mean, _ in summary])
    height = 0.03
    for number, arm in enumerate(study.arms):
        if not summaries.get(arm):
            continue
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.errorbar(
            *zip(*summaries[arm], strict=True),
            label=arm,
            color=colour,
            marker=marker,
            linestyle=("--" if study.is_dense(arm) else "-") if joined else "none",
            linewidth=1,
            capsize=2,
        )
        for x, mean, _ in summaries[arm]:
            if mean < bottom:
                axes.plot(x, height, marker, color=colour, transform=axes.get_xaxis_transform())
                axes.annotate(
                    f"↓ {mean:.1f}",
                    (x, height),
                    xycoords=axes.get_xaxis_transform(),
                    xytext=(7, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize="small",
                )
                height += 0.06  # The next one above it, that no label hides another.
    low, _ = axes.get_ylim()
    axes.set_ylim(bottom=max(low, bottom))


def _finish(figure: Figure, study: Study) -> None:
    """What all panels have in common, and one legend beside them, which hides nothing."""
    figure.axes[0].set_ylabel(f"{study.experiment.judged_by} accuracy in percent")
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        tidy(axes)
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    drawn = [arm for arm in study.arms if arm in handles]
    figure.legend(handles=[handles[arm] for arm in drawn], loc="outside right upper", frameon=False)


def _spread(count: int, width: float) -> list[float]:
    """So many shifts round 0, `width` apart from first to last, so that no marker hides another."""
    return [width * (number / (count - 1) - 0.5) for number in range(count)] if count > 1 else [0.0]


def _bottom(means: Sequence[float]) -> float:
    """Where to cut the axis, in percent, so that one arm far below does not flatten the others."""
    if not means:
        return 0.0
    middle = statistics.median(means)
    return middle - 5 * max(max(means) - middle, 0.5)


def _apart(ticks: Iterable[float]) -> list[float]:
    """Those of the ticks, in ascending order, whose labels do not touch on a logarithmic scale."""
    kept: list[float] = []
    for tick in sorted(ticks):
        if not kept or tick > 1.25 * kept[-1]:
            kept.append(tick)
    return kept


def _texts(cells: Sequence[CellResult]) -> tuple[str, str]:
    """Their accuracy and their epochs."""
    if not cells:
        return "", ""
    accuracy = percent_text([result.accuracy for result in cells])
    return f"{accuracy} ({len(cells)})", f"{statistics.fmean(result.epochs for result in cells):.4g}"
