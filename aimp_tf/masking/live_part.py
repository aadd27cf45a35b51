"""The part of a masked network that training can change: without the channels that nothing reads any more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.compat.variables import key_of
from aimp_tf.config.structure import Structure
from aimp_tf.graph.liveness import Liveness
from aimp_tf.graph.model_graph import Call, ModelGraph
from aimp_tf.masking import MaskedModel

_MULTIPLE = 8
"""Of single weights, so few channels go at a time that convolutions with other numbers of them can take longer than the
whole ones: vector units are that wide."""


@dataclasses.dataclass(frozen=True)
class LivePart:
    """What stays of a network, layer by layer.

    Attributes:
        needed: Whether each class of channels stays, bool. Which classes there are depends on the graph alone.
        share: Its multiplications with weights, as a fraction of those of the whole network, where they are known.
        of_whole: Those of the whole network, for one example.
        weights: (variable, the indices that stay along each of its axes), of the variables that lose something.
        attributes: (layer, its attributes that change -> what they become).
    """

    needed: np.ndarray
    share: float
    of_whole: int
    weights: Sequence[tuple[Any, tuple[np.ndarray, ...]]]
    attributes: Sequence[tuple[Any, Mapping[str, Any]]]


class LiveNetwork:
    """What training can change of a masked network, and what that is computed from.

    A channel goes if all weights that lead from it to others that stay are masked: no gradient reaches what leads to
    it. So does one that is zero whatever becomes of the weights. The loss of what stays is the same, and so are its
    gradients, but for penalties on weights that go. Masks that prune more let no channel come back.

    Args:
        graph: The graph of `masked.original`.
        masked: The model, with its masks of now.

    Raises:
        ValueError: Two layers have a variable in common, of which each might lose another part.
    """

    def __init__(self, graph: ModelGraph, masked: MaskedModel) -> None:
        _check_unshared(graph)
        masks = masked.masks()
        by_resource = {key_of(variable): masks[path] for path, variable in masked.variables.items()}
        self._graph = graph
        self._liveness = Liveness(graph, by_resource)
        # Whole channels go many at a time, and what is left of them is what is going to be used.
        self._multiple = 1 if Structure.of(masked.settings["granularity"]).channels else _MULTIPLE

    def part(self, needed: np.ndarray | None = None, multiple: int | None = None) -> LivePart:
        """What stays.

        Args:
            needed: What stayed with earlier masks, to let the same stay. None lets as little stay as can be.
            multiple: So many channels of each Dense or convolution layer stay then as are a multiple of this, or all.
                None is what suits what is pruned.
        """
        needed = self._liveness.filled_up(multiple or self._multiple) if needed is None else needed
        multiply_adds = of_whole = 0
        weights, attributes = [], []
        seen: set[int] = set()
        for call in self._graph.calls:
            rule, kept = self._liveness.rules[call], self._liveness.kept(call, needed)
            multiply_adds += self._liveness.multiply_adds(call, needed) or 0
            of_whole += self._liveness.multiply_adds(call) or 0
            if id(call.layer) in seen or not rule.is_tied:
                continue
            seen.add(id(call.layer))
            variables = getattr(call.layer, "weights", ())
            for variable, indices in zip(variables, rule.indices(kept), strict=True):
                if tuple(map(len, indices)) != tuple(variable.shape):
                    weights.append((variable, indices))
            changes = {
                name: value
                for name, value in rule.attributes(kept).items()
                if rule.in_place and value != getattr(call.layer, name)
            }
            if changes:
                attributes.append((call.layer, changes))
        return LivePart(needed, multiply_adds / max(of_whole, 1), of_whole, weights, attributes)


def _check_unshared(graph: ModelGraph) -> None:
    owners: dict[int, Call] = {}
    for call in graph.calls:
        for variable in getattr(call.layer, "weights", ()):
            owner = owners.setdefault(key_of(variable), call)
            if owner.layer is not call.layer:
                raise ValueError(
                    f"The layers {owner.name!r} and {call.name!r} hold the same variable, {variable.name}."
                )
