"""What starts again between two rounds: weights, optimizers, learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from aimp_tf.masking import MaskedModel
from aimp_tf.selection.planning import Round
from aimp_tf.training.state import RunState


def rewind(
    masked: MaskedModel,
    round_: Round,
    plan: Sequence[Round],
    state: RunState,
    generator: Callable[[int], np.random.Generator],
    batches: int | None,
) -> None:
    """Starts again what a round starts with again.

    Args:
        masked: The model, with the masks of the round.
        round_: The round, which is about to begin.
        plan: All rounds.
        state: That of the run. What no later round needs is let go of.
        generator: Gives the random numbers of a round.
        batches: Of an epoch; None where that is not known.
    """
    if round_.rewind == "weights":
        assert state.snapshot is not None
        masked.restore(state.snapshot)
    elif round_.rewind == "reinitialize":
        assert state.first is not None
        masked.restore(_drawn_anew(state.first, generator(round_.index), masked.is_trained()))
    elif round_.index == 0 and state.first is not None:
        masked.restore(state.first)
    if round_.index and all(later.rewind != "reinitialize" for later in plan):
        state.first = None  # Rounds after the first rewind to the other snapshot, if there is one.
    optimizers = masked.optimizers
    optimizers.reset(state.rewind_steps if round_.index else ())
    steps = state.steps_per_epoch
    if len(steps) != len(optimizers.steps):
        steps = [batches or 0] * len(optimizers.steps)  # Others than those that were counted.
    optimizers.stretch(round_.schedule_scale, round_.schedule_start, steps)


def _drawn_anew(
    first: Sequence[np.ndarray], generator: np.random.Generator, trained: Sequence[bool]
) -> Iterator[np.ndarray]:
    """The first values of the weights that are trained in a new order, and those of the others as they were."""
    for value, trains in zip(first, trained, strict=True):
        # Drawn for all, so that what the others are does not change what these get.
        drawn = generator.permutation(value.reshape(-1)).reshape(value.shape)
        yield drawn if trains else value
