"""What a round must end with, and the metrics of its weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.planning import Round
from aimp_tf.selection.ranking import check_finite
from aimp_tf.training.rounds import ADDED_TO_LOSS, last_epoch_with
from aimp_tf.training.state import RunState

logger = logging.getLogger(__name__)

Measure = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def check_loss(state: RunState, number: int, masked: MaskedModel) -> None:
    """Raises RuntimeError where the last epoch of a round, which count from 1, ended with a loss that is not finite."""
    loss = state.epoch_logs[-1].get("loss", 0.0)
    if np.all(np.isfinite(loss)):
        return
    in_float16 = masked.settings["mixed_precision"] == "mixed_float16"
    hint = ", or train in mixed_bfloat16, which has the range of float32" if in_float16 else ""
    raise RuntimeError(
        f"The loss became {loss} in epoch {len(state.epoch_logs)} of round {number}. Pruning stops here, for diverged "
        "weights cannot be ranked. Lower the learning rate, clip the gradients (clipnorm=1.0 in the optimizer), or "
        f"look for NaN in the data{hint}."
    )


def check_end(
    config: PruningConfig, round_: Round, epochs: int, masked: MaskedModel, masks: Mapping[str, np.ndarray]
) -> None:
    """Checks the weights and masks that a round ended with.

    Raises:
        RuntimeError: Weights are not finite, what is pruned is not zero, masks are not those of units, the round does
            not keep what it is to keep, or it ended too early to rewind to it.
    """
    check_finite(masked.weights(), masks)
    masked.check_sparse()
    masked.units.check(masks)
    kept = masked.kept
    timed = config.latency is not None  # When its masks were set, and it may not be the same now.
    if not timed and kept > round_.kept or masked.units.exact and kept != round_.kept:
        early = f": fit ended after {epochs} of {round_.epochs} epochs" if kept > round_.kept else ""
        counted = f"{config.counted}s"
        raise RuntimeError(f"The masks keep {kept} {counted}, but this round is to keep {round_.kept}{early}.")
    if round_.index == 0 and epochs < config.rewind_epoch:
        raise RuntimeError(
            f"The first round ended after {epochs} epochs, before rewind_epoch={config.rewind_epoch}. Lower that, or "
            "let no callback stop the round so early."
        )


def metrics_at_end(state: RunState, number: int, masked: MaskedModel, measure: Measure | None) -> Mapping[str, Any]:
    """The metrics of the weights that a model has after a round: those of one of its epochs, or measured, or none."""
    logs = state.epoch_logs
    if not logs:
        return {}
    epoch = masked.cluster.from_chief(last_epoch_with(masked.checksum(), state.checksums))
    if epoch is not None:
        return logs[epoch]
    if measure is None:
        logger.warning(
            "The weights at the end of round %d are those of none of its epochs, for something set others, such as "
            "a callback or a projection: its result has no metrics. Evaluate the model.",
            number,
        )
        return {}
    # What evaluating does not tell is of the training.
    return {**{name: logs[-1][name] for name in ADDED_TO_LOSS if name in logs[-1]}, **measure(logs[-1])}
