"""Rounds that train what their masks leave alive of a network alone, for `compact_rounds`."""

from __future__ import annotations

import logging

import numpy as np

from aimp_tf.compat.models import is_keras_own
from aimp_tf.graph.model_graph import ModelGraph
from aimp_tf.masking import MaskedModel
from aimp_tf.masking.live_part import LiveNetwork
from aimp_tf.training.state import RunState

logger = logging.getLogger(__name__)

_WORTH_TRACING = 0.9
"""What is alive is traced when it takes this fraction of the multiplications of what was."""

_PASSES, _BATCH_SIZE = 3, 32
"""A step multiplies forward, and back for weights and inputs; how many examples it has is not known, so many at least
are usual."""


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
