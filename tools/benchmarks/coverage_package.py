"""What the package makes of a network: which channels it takes out, and what stands in its way."""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.variables import resource_of
from aimp_tf.exporting.compaction import compact_and_report
from aimp_tf.graph.liveness import Liveness
from aimp_tf.graph.model_graph import ModelGraph
from aimp_tf.graph.multiplications import multiply_adds
from benchmarks.coverage_kernels import Kernel
from benchmarks.coverage_oracle import Truth

_COMPARED = 4
"""Examples of each batch on which outputs are compared, some of them in float64, which takes long."""


@dataclasses.dataclass
class Outcome:
    """What came of a network.

    Attributes:
        taken: Label of a layer -> how many of its channels go.
        left_alone: Class of the layers that are not seen through -> their number.
        not_counted: Class of the layers whose multiplications are not known -> their number.
        multiply_adds: Those with weights, for one example.
        read_seconds: To read the graph.
        compact_seconds: To compact; None where the graph was only read.
        difference: Between the outputs before and after in float64, beside the largest.
        rounding: Between the outputs in float32 and in float64, likewise.
        refused: Why it could not be read or compacted.
    """

    taken: Mapping[str, int] = dataclasses.field(default_factory=dict)
    left_alone: Mapping[str, int] = dataclasses.field(default_factory=dict)
    not_counted: Mapping[str, int] = dataclasses.field(default_factory=dict)
    multiply_adds: int | None = None
    read_seconds: float | None = None
    compact_seconds: float | None = None
    difference: float | None = None
    rounding: float | None = None
    refused: str | None = None


def outcome_of(
    model: Any, double: Callable[[], Any] | None, data: Sequence[Any], known: Mapping[str, Truth], repetitions: int
) -> Outcome:
    """Has the package read the graph of a model so often, which says what one pass of a compaction takes out, and
    compact it.

    Args:
        model: The model.
        double: Makes the same in float64, with any weights. There outputs are compared, for in float32 rounding alone
            may move those of a deep network far. None to read the graph alone.
        data: Batches to compare outputs on.
        known: What can go.
        repetitions: How often the graph is read.
    """
    outcome, seconds = Outcome(), []
    try:
        for _ in range(repetitions):
            begun_at = time.perf_counter()
            removed = _read(model, outcome)
            seconds.append(time.perf_counter() - begun_at)
        outcome.read_seconds = statistics.median(seconds)
        outcome.taken = {label: removed.get(id(truth.layer), 0) for label, truth in known.items()}
        if double is not None:
            _compact(model, double, data, known, outcome)
    except Exception as error:  # Whatever comes of layers of others.
        outcome.refused = f"{type(error).__name__}: {error}"
    return outcome


def _read(model: Any, outcome: Outcome) -> dict[int, int]:
    """Id of a layer -> how many of its channels go. The one place that knows the package's own parts."""
    graph = ModelGraph.of(model)
    liveness = Liveness(graph)
    removed: dict[int, int] = {}
    for call in graph.calls:
        if not liveness.rules[call].is_opaque:
            removed |= _removed(call.layer, liveness.rules[call].rewritten(liveness.kept(call))[0])
    counts = {call: multiply_adds(call) for call in graph.calls}
    left_alone = {call.name: call.layer for call in graph.calls if liveness.rules[call].is_opaque}
    not_counted = {call.name: call.layer for call, count in counts.items() if count is None}
    outcome.left_alone = collections.Counter(type(layer).__name__ for layer in left_alone.values())
    outcome.not_counted = collections.Counter(type(layer).__name__ for layer in not_counted.values())
    outcome.multiply_adds = sum(count or 0 for count in counts.values())
    return removed


def _removed(layer: Any, weights: Sequence[np.ndarray] | None) -> dict[int, int]:
    """Id of a layer, or of one within it such as a projection of attention -> how many channels fewer it has with other
    weights of the outer one; nothing where these stay."""
    if weights is None:
        return {}
    places = {id(resource_of(weight)): place for place, weight in enumerate(layer.weights)}
    found = {}
    for part in layer._flatten_layers():
        if (kernel := Kernel.of(part)) is not None:
            axes = kernel.order[len(kernel.order) - kernel.outputs :]
            after = weights[places[id(resource_of(kernel.variable))]]
            before, left = (np.prod([shape[axis] for axis in axes]) for shape in (kernel.variable.shape, after.shape))
            found[id(part)] = int(before - left)
    return found


def _compact(
    model: Any, double: Callable[[], Any], data: Sequence[Any], known: Mapping[str, Truth], outcome: Outcome
) -> None:
    """Adds to the outcome of reading a graph what comes of a compaction."""
    begun_at = time.perf_counter()
    _, report = compact_and_report(model)
    outcome.compact_seconds = time.perf_counter() - begun_at
    by_name = {call.name: id(call.layer) for call in ModelGraph.of(model).calls}
    removed = {by_name[name]: before - after for name, (before, after) in report.channels.items()}
    # Later passes may take out more; the report counts the last axis alone where a kernel makes several.
    outcome.taken = {
        label: max(removed.get(id(truth.layer), 0), outcome.taken.get(label, 0)) for label, truth in known.items()
    }
    exact = double()
    exact.set_weights(model.get_weights())
    outcome.difference = _difference(exact, compact_and_report(exact)[0], data)
    outcome.rounding = _difference(exact, model, data)


def _difference(model: Any, other: Any, data: Sequence[Any]) -> float:
    """The largest between the outputs of both, beside the largest output.

    Raises:
        RuntimeError: The outputs do not depend on the inputs.
    """
    worst = 0.0
    for batch in data:
        before, after = (_outputs(part, batch) for part in (model, other))
        for here, there in zip(before, after, strict=True):
            largest = np.abs(here).max()
            if np.std(here, axis=0).max() < 1e-3 * largest:
                raise RuntimeError(f"The outputs of {model.name} hardly depend on its inputs.")
            worst = max(worst, float(np.abs(here - there).max() / largest))
    return worst


def _outputs(model: Any, batch: Any) -> list[np.ndarray]:
    taken = tf.nest.map_structure(lambda part, tensor: tf.cast(part[:_COMPARED], tensor.dtype), batch, model.input)
    return [np.asarray(output, np.float64) for output in tf.nest.flatten(model(taken, training=False))]
