"""Rounds that train what their masks leave alive of a network alone, for `compact_rounds`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from aimp_tf.compat.models import is_keras_own
from aimp_tf.compat.variables import key_of
from aimp_tf.config.structure import Structure
from aimp_tf.graph.liveness import Liveness
from aimp_tf.graph.model_graph import Call, ModelGraph
from aimp_tf.masking import MaskedModel
from aimp_tf.training.state import RunState

logger = logging.getLogger(__name__)

_WORTH_TRACING = 0.9
"""What is alive is traced when it takes this fraction of the multiplications of what was."""

_PASSES, _BATCH_SIZE = 3, 32
"""A step multiplies forward, and back for weights and inputs; how many examples it has is not known, so many at least
are usual."""

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
        attributes: (layer, an attribute of it that changes, what that becomes).
    """

    needed: np.ndarray
    share: float
    of_whole: int
    weights: Sequence[tuple[Any, tuple[np.ndarray, ...]]]
    attributes: Sequence[tuple[Any, str, Any]]


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

    def part(self, needed: np.ndarray | None = None) -> LivePart:
        """What stays.

        Args:
            needed: What stayed with earlier masks, to let the same stay. None lets as little stay as can be, but of
                each Dense or convolution layer as many channels as suits what is pruned.
        """
        needed = self._liveness.filled_up(self._multiple) if needed is None else needed
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
            for name, value in {**rule.attributes(kept), **rule.while_trained()}.items():
                if rule.in_place and value != getattr(call.layer, name):
                    attributes.append((call.layer, name, value))
        return LivePart(needed, multiply_adds / max(of_whole, 1), of_whole, weights, attributes)


class LiveRounds:
    """Lets `fit` train the live part of a masked model.

    Args:
        masked: The model.
        worth: How many multiply-adds a round must save to be traced for.
        own_step: Whether a `train_step` or `compute_loss` of the user's may look at the model's outputs alone.

    Raises:
        ValueError: It is not functional, or has an optimizer or a step that does not allow it.
    """

    def __init__(self, masked: MaskedModel, worth: int = 0, *, own_step: bool = False) -> None:
        self._graph = _graph_of(masked, own_step)
        self._worth = worth
        # Which classes of channels `fit` has been traced for in this process. None is all.
        self._traced: np.ndarray | None = None

    def forget_traced(self) -> None:
        """`fit` will trace its step anew, of the whole model."""
        self._traced = None

    def begin_round(self, state: RunState, masked: MaskedModel, steps: float, resumed: bool) -> None:
        """Lets the round train what its masks leave alive, where that is enough less than what was traced last and pays
        within so many steps; or, where it goes on within it, what was found before.

        Which it is does not depend on how fast the machine is, so that a run that is repeated is the same.
        """
        network = LiveNetwork(self._graph, masked)
        part = network.part()
        before = None if state.channels is None else network.part(state.channels)
        whole = 1.0 if before is None else before.share
        saved = _PASSES * _BATCH_SIZE * steps * (whole - part.share) * part.of_whole
        if resumed or part.share > _WORTH_TRACING * whole or saved < self._worth:
            if before is None:
                return
            part = before
        state.channels = part.needed
        if self._traced is not None and np.array_equal(state.channels, self._traced):
            return
        self._traced = state.channels
        masked.train_part(part.weights, part.attributes)
        logger.info(
            "Round %d trains without %d of %d channels, which nothing reads any more: %.1f%% of the multiplications.",
            state.round.index + 1,
            np.count_nonzero(~part.needed),
            part.needed.size,
            100 * part.share,
        )


def _graph_of(masked: MaskedModel, own_step: bool) -> ModelGraph:
    for name in ("train_step", "compute_loss"):
        if not own_step and not is_keras_own(getattr(type(masked.original), name)):
            raise ValueError(
                f"What the {name} of {type(masked.original).__name__} looks at beside the model's outputs is not "
                "known. If it is nothing, set compact_rounds=True."
            )
    for optimizer in masked.optimizers.all:
        optimizer.check_by_weight()
    try:
        graph = ModelGraph.of(masked.original)
        LiveNetwork(graph, masked)
        return graph
    except ValueError as error:
        raise ValueError(f"compact_rounds must know how the layers are connected. {error}") from error


def _check_unshared(graph: ModelGraph) -> None:
    owners: dict[int, Call] = {}
    for call in graph.calls:
        for variable in getattr(call.layer, "weights", ()):
            owner = owners.setdefault(key_of(variable), call)
            if owner.layer is not call.layer:
                raise ValueError(
                    f"The layers {owner.name!r} and {call.name!r} hold the same variable, {variable.name}."
                )
