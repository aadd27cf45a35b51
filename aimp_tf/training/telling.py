"""What the log says of a run as it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.channels import FAR
from aimp_tf.training.rounds import duration_text, shrink_text
from aimp_tf.training.state import RunState

logger = logging.getLogger(__name__)


def tell_beginning(state: RunState, masked: MaskedModel) -> None:
    """Tells of the round that begins."""
    round_, counted = state.round, state.config.counted
    shrunk = shrink_text(state.shrinking.factors.values())
    kept = min(round_.kept, masked.kept)  # At the end of a gradual one.
    logger.info(
        "Round %d of %d: %d epochs %s %.2f%% (%d of %d %ss kept%s)%s.",
        round_.index + 1,
        state.round_count,
        round_.epochs,
        "at sparsity" if counted == "weight" else "without",
        100 * (1 - kept / masked.total),
        kept,
        masked.total,
        counted,
        shrunk and f", each shrunk to {shrunk}",
        _time_left(state),
    )


def tell_going_on(state: RunState) -> None:
    """Tells of the round that goes on within it."""
    logger.info(
        "Round %d of %d goes on after %d of %d epochs%s.",
        state.round.index + 1,
        state.round_count,
        len(state.epoch_logs),
        state.round.epochs,
        _time_left(state),
    )


def warn_of_emptied(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> None:
    """Warns of variables of which a ranking leaves nothing, by their masks."""
    emptied = [path for path, mask in after.items() if before[path].any() and not mask.any()]
    if emptied:
        logger.warning(
            "Ranking leaves nothing of %s: nothing passes through there any more. Lower target_sparsity, name it "
            "in exclude, or set min_layer_share, max_layer_sparsity or min_layer_survivors.",
            ", ".join(emptied),
        )


def warn_of_time(config: PruningConfig, masked: MaskedModel, keep: int) -> None:
    """Warns where a model takes far less time than it may."""
    if config.latency is not None and masked.kept < FAR * keep:
        logger.warning(
            "%s takes %d microseconds now, of %d that it may: no number of channels between was found in time.",
            config.latency,
            masked.kept,
            keep,
        )


def _time_left(state: RunState) -> str:
    """ ", about 12 min left", or nothing where no epoch tells yet how long one takes."""
    seconds = sum(round_.seconds for round_ in state.rounds)
    if state.epoch_logs:
        seconds += time.monotonic() - state.started_at
    left = sum(round_.epochs for round_ in state.plan[len(state.rounds) :]) - len(state.epoch_logs)
    return f", about {duration_text(seconds / state.epochs_done * left)} left" if state.epochs_done else ""
