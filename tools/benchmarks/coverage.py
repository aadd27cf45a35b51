"""How much of what can go `aimp_tf.compact` takes out of the networks of `keras.applications` and others."""

from __future__ import annotations

import collections
import gc
import importlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import coverage_networks
from benchmarks.coverage_kernels import MODES, draw
from benchmarks.coverage_networks import Network, inputs_of, specs_of
from benchmarks.coverage_oracle import Truth, truths
from benchmarks.coverage_package import Outcome, outcome_of
from benchmarks.coverage_products import count_products
from benchmarks.side_by_side import tell

_BATCHES, _EXAMPLES = 2, 16
"""How many batches, in which channels that are not constant must move, and of how many examples."""
_SAME = 1e-5
"""How far outputs may differ from what they were, beside the largest, to count as the same, unless float32 is still
farther from float64."""
_NAMED = 5
"""How many layers, and kinds of layers, the table names."""


def run(
    repetitions: int,
    networks: str | Sequence[Network] | None = None,
    compact: str | None = None,
) -> dict[str, Any]:
    """Draws random weights for each network, so that channels can go in one of two ways, and looks for them twice.

    Three of eight channels are "dead", as far as the weights that read them go, or "constant", as far as those that
    make them do. What can go is found by numbers alone, from gradients and from what does not move. A constant channel
    cannot always go: "held" are those added to or multiplied with what moves or normalised with it, and the few that
    have to stand in for all others where padding makes constants differ by place. What the package takes is measured
    beside all, and beside those that are "free" of that.

    Args:
        repetitions: How often the graph of each network is read.
        networks: Patterns of names such as "keras/MobileNet*", with commas between them, or the networks themselves.
            None for all.
        compact: "all" to compact all networks; None for the first of each family, with the graphs of the others read.

    Raises:
        ValueError: No network matches.
    """
    notes: list[str] = []
    if networks is None or isinstance(networks, str):
        networks, notes = coverage_networks.networks((networks or "*").split(","))
    figures: dict[str, Any] = {}
    lines = list(_HEAD)
    for network in networks:
        begun_at = time.perf_counter()
        figures[network.name] = _measure(network, compact == "all" or network.is_first, repetitions)
        rows = _rows(network.name, figures[network.name])
        lines += rows
        tell("\n".join([*rows, f"    {time.perf_counter() - begun_at:.0f} s in all"]))
    return {**figures, "table": "\n".join([*lines, *notes])}


def _measure(network: Network, compacted: bool, repetitions: int) -> dict[str, Any]:
    """All figures of a network; "failed" -> why, where it cannot be made or called."""
    try:
        return _figures_of(network, compacted, repetitions)
    except Exception as error:  # Whatever comes of networks of others.
        return {"failed": f"{type(error).__name__}: {error}"}
    finally:
        for generation in ("keras", "tf_keras"):
            importlib.import_module(generation).backend.clear_session()
        gc.collect()


def _figures_of(network: Network, compacted: bool, repetitions: int) -> dict[str, Any]:
    model = network.build()
    generator = np.random.default_rng(0)
    data = [inputs_of(model, _EXAMPLES, generator) for _ in range(_BATCHES)]
    figures: dict[str, Any] = {"parameters": model.count_params()}
    for mode in MODES:
        draw(model, data[0], mode)
        known = truths(model, data)
        outcome = outcome_of(model, network.build_double if compacted else None, data, known, repetitions)
        figures[mode] = _figures(known, outcome)
    weighted, between = count_products(model, specs_of(model))
    ours = outcome.multiply_adds
    ratio = ours / weighted if ours and weighted else None
    return {
        **figures,
        "multiply_adds": {"package": ours, "graph": weighted, "of activations": between, "ratio": ratio},
        "left_alone": dict(outcome.left_alone),
        "not_counted": dict(outcome.not_counted),
    }


def _figures(known: Mapping[str, Truth], outcome: Outcome) -> dict[str, Any]:
    """What of all that can go is taken; where it falls "short", and where more is taken than can go ("beyond")."""
    can_go = {label: int(truth.can_go.sum()) for label, truth in known.items()}
    free = {label: int((truth.can_go & ~truth.held).sum()) for label, truth in known.items()}
    taken = {label: min(outcome.taken.get(label, 0), can_go[label]) for label in known}
    short = collections.Counter({label: free[label] - taken[label] for label in known if taken[label] < free[label]})
    beyond = [label for label in known if outcome.taken.get(label, 0) > can_go[label]]
    of_free = sum(min(taken[label], free[label]) for label in known)
    return {
        "can_go": sum(can_go.values()),
        "held": sum(can_go.values()) - sum(free.values()),
        "taken": sum(taken.values()),
        "share": sum(taken.values()) / sum(can_go.values()) if any(can_go.values()) else None,
        "share_of_free": of_free / sum(free.values()) if any(free.values()) else None,
        "short": {label: [taken[label], free[label]] for label, _ in short.most_common()},
        "beyond": {label: [outcome.taken[label], can_go[label]] for label in beyond},
        "read_seconds": outcome.read_seconds,
        "compact_seconds": outcome.compact_seconds,
        "difference": outcome.difference,
        "rounding": outcome.rounding,
        "refused": outcome.refused,
    }


_COLUMNS = f"{'can go':>8}{'held':>7}{'taken':>8}{'of free':>9}"
_HEAD = [
    f"{'':32}{'dead':^32}{'constant':^32}",
    f"{'network':32}{_COLUMNS}{_COLUMNS}{'m-adds':>8}{'read s':>8}{'compact s':>11}{'difference':>12}",
]


def _rows(name: str, measured: Mapping[str, Any]) -> list[str]:
    """Lines of the table."""
    if "failed" in measured:
        return [f"{name:32}failed: {_in_short(measured['failed'])}"]
    modes = [measured[mode] for mode in MODES]
    line = f"{name:32}"
    for mode in modes:
        line += f"{mode['can_go']:8}{mode['held']:7}{_number(mode['share'], '.1%'):>8}"
        line += f"{_number(mode['share_of_free'], '.1%'):>9}"
    line += f"{_number(measured['multiply_adds']['ratio'], '.3f'):>8}"
    for key, width, form in (("read_seconds", 8, ".1f"), ("compact_seconds", 11, ".1f"), ("difference", 12, ".0e")):
        figures = [mode[key] for mode in modes if mode[key] is not None]
        line += f"{_number(max(figures, default=None), form):>{width}}"
    same = [mode["difference"] is None or mode["difference"] <= max(_SAME, mode["rounding"]) for mode in modes]
    return [line if all(same) else f"{line} (not the same)", *_notes(measured)]


def _notes(measured: Mapping[str, Any]) -> list[str]:
    """Lines below a row."""
    lines = []
    for title, key in (("left alone", "left_alone"), ("not counted", "not_counted")):
        if kinds := collections.Counter(measured[key]).most_common(_NAMED):
            lines.append(f"    {title}: {', '.join(f'{count} {kind}' for kind, count in kinds)}")
    for mode in MODES:
        if refused := measured[mode]["refused"]:
            lines.append(f"    {mode}, refused: {_in_short(refused)}")
            continue
        for title, key in (("taken less than is free", "short"), ("taken more than can go", "beyond")):
            if layers := list(measured[mode][key].items()):
                named = ", ".join(f"{label} {took} of {count}" for label, (took, count) in layers[:_NAMED])
                more = f", and {len(layers) - _NAMED} more layers" if len(layers) > _NAMED else ""
                lines.append(f"    {mode}, {title}: {named}{more}")
    return lines


def _in_short(error: str) -> str:
    return error.splitlines()[0][:200]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
