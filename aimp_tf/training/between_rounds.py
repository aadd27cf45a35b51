"""What lies between two rounds: what the one must end with, the metrics of its weights, and what starts again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.masking import MaskedModel
from aimp_tf.selection.ranking import check_finite
from aimp_tf.training.rounds import ADDED_TO_LOSS, counted_text
from aimp_tf.training.state import RunState

logger = logging.getLogger(__name__)

Measure = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def check_loss(state: RunState, masked: MaskedModel) -> None:
    """Raises RuntimeError where the last epoch of a round ended with a loss that is not finite."""
    loss = state.epoch_logs[-1].get("loss", 0.0)
    if np.all(np.isfinite(loss)):
        return
    in_float16 = masked.settings["mixed_precision"] == "mixed_float16"
    hint = ", or train in mixed_bfloat16, which has the range of float32" if in_float16 else ""
    raise RuntimeError(
        f"The loss became {loss} in epoch {len(state.epoch_logs)} of round {state.round.index + 1}. Pruning stops "
        "here, for diverged weights cannot be ranked. Lower the learning rate, clip the gradients (clipnorm=1.0 in the "
        f"optimizer), or look for NaN in the data{hint}."
    )


def check_end(state: RunState, masked: MaskedModel, masks: Mapping[str, np.ndarray]) -> None:
    """Checks the weights and masks that a round ended with.

    Raises:
        RuntimeError: Weights are not finite, what is pruned is not zero, masks are not those of units, the round does
            not keep what it is to keep, or it ended too early to rewind to it.
    """
    config, round_, epochs = state.config, state.round, len(state.epoch_logs)
    check_finite(masked.weights(), masks)
    masked.check_sparse()
    masked.units.check(masks)
    kept = masked.kept
    timed = config.latency is not None  # When its masks were set, and it may not be the same now.
    if not timed and kept > round_.kept or masked.units.exact and kept != round_.kept:
        in_all = counted_text(round_.epochs, "epoch")
        early = f": fit ended after {epochs} of {in_all}" if kept > round_.kept else ""
        counted = f"{config.counted}s"
        raise RuntimeError(f"The masks keep {kept} {counted}, but this round is to keep {round_.kept}{early}.")
    if round_.index == 0 and epochs < config.rewind_epoch:
        raise RuntimeError(
            f"The first round ended after {counted_text(epochs, 'epoch')}, before rewind_epoch={config.rewind_epoch}. "
            "Lower that, or let no callback stop the round so early."
        )


def metrics_at_end(state: RunState, masked: MaskedModel, measure: Measure | None) -> Mapping[str, Any]:
    """The metrics of the weights that a model has after a round: those of one of its epochs, or measured, or none."""
    logs = state.epoch_logs
    if not logs:
        return {}
    checksum = masked.checksum()
    ended_with_them = [epoch for epoch, other in enumerate(state.checksums) if other == checksum]
    epoch = masked.cluster.from_chief(max(ended_with_them, default=None))
    if epoch is not None:
        return logs[epoch]
    if measure is None:
        logger.warning(
            "The weights at the end of round %d are those of none of its epochs, for something set others, such as "
            "a callback or a projection: its result has no metrics. Evaluate the model.",
            state.round.index + 1,
        )
        return {}
    # What evaluating does not tell is of the training.
    return {**{name: logs[-1][name] for name in ADDED_TO_LOSS if name in logs[-1]}, **measure(logs[-1])}


def rewind(
    state: RunState, masked: MaskedModel, generator: Callable[[int], np.random.Generator], batches: int | None
) -> None:
    """Starts weights, optimizers and schedules again, as the next round does; lets go of what no later one needs.

    `generator` gives the random numbers of a round, and `batches` is of an epoch, None where that is not known. The
    model has the masks of the round.
    """
    round_ = state.round
    if round_.rewind == "weights":
        assert state.snapshot is not None
        masked.restore(state.snapshot)
    elif round_.rewind == "reinitialize":
        assert state.first is not None
        masked.restore(_drawn_anew(state.first, generator(round_.index), masked.is_trained()))
    elif round_.index == 0 and state.first is not None:
        masked.restore(state.first)
    if round_.index and all(later.rewind != "reinitialize" for later in state.plan):
        state.first = None  # Rounds after the first rewind to the other snapshot, if there is one.
    optimizers = masked.optimizers
    optimizers.reset(state.rewind_steps if round_.index else ())
    steps = state.steps_per_epoch
    if len(steps) != len(optimizers.all):
        steps = [batches or 0] * len(optimizers.all)  # Others than those that were counted.
    for optimizer, in_epoch in zip(optimizers.all, steps, strict=True):
        optimizer.stretch(round_.schedule_scale, round_.schedule_start * in_epoch)


def _drawn_anew(
    first: Sequence[np.ndarray], generator: np.random.Generator, trained: Sequence[bool]
) -> Iterator[np.ndarray]:
    """The first values of the weights that are trained in a new order, and those of the others as they were."""
    for value, trains in zip(first, trained, strict=True):
        # Drawn for all, so that what the others are does not change what these get.
        drawn = generator.permutation(value.reshape(-1)).reshape(value.shape)
        yield drawn if trains else value
