"""The methods of pruning: what each does as a training begins, within it, and at the end of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.planning import Round, ramp_survivors
from aimp_tf.training.rounds import RoundResult
from aimp_tf.training.state import RunState

_RAMP_STEPS = 100


class PruningRun(Protocol):
    """What a method may ask of its run, which is a `run.Run`, and have it do."""

    config: PruningConfig
    state: RunState
    rounds: list[RoundResult]
    plan: tuple[Round, ...]
    kept_first: int
    batches_of: Callable[[], int | None]

    @property
    def round(self) -> Round: ...

    @property
    def round_count(self) -> int: ...

    def prune(self, masked: MaskedModel, keep: int) -> None: ...

    def would_be_masks(self, masked: MaskedModel, keep: int) -> dict[str, np.ndarray]: ...


class Method:
    """What a run does to a model by one of the values of `PruningConfig.method`; this one leaves it as it is.

    Args:
        run: The run.
    """

    hears_batches = False
    """Whether `end_batch` is to be called, which takes time."""

    def __init__(self, run: PruningRun) -> None:
        self._run = run

    def begin_round(self, masked: MaskedModel) -> None:
        """Prunes what a training is to begin without. Raises what stands against the training."""

    def end_batch(self, masked: MaskedModel, batch: int) -> None:
        """Prunes within an epoch, after its batch of this number, from 0."""

    def end_epoch(self, masked: MaskedModel, epoch: int) -> bool:
        """Prunes at the end of an epoch, which `fit` counts from 0. Returns whether the training is to end with it."""
        return False


class Rounds(Method):
    """Iterative magnitude pruning: what is to go goes between the trainings."""

    def begin_round(self, masked: MaskedModel) -> None:
        # A fit that was interrupted and is called again finds its masks set, and begins its round anew.
        if self._run.round.kept < masked.kept:
            self._run.prune(masked, self._run.round.kept)

    def end_epoch(self, masked: MaskedModel, epoch: int) -> bool:
        run = self._run
        if run.round.index == 0 and len(run.state.epoch_logs) == run.config.rewind_epoch:
            run.state.snapshot, run.state.rewind_steps = masked.snapshot(), masked.optimizers.steps
        distance = run.config.stop_mask_distance
        return distance is not None and run.round.index + 1 < run.round_count and self._is_settled(masked, distance)

    def _is_settled(self, masked: MaskedModel, distance: float) -> bool:
        """Whether the masks that ranking would give have changed little in the epoch (early-bird tickets)."""
        run = self._run
        masks = masked.masks()
        would_be = run.would_be_masks(masked, run.plan[len(run.rounds) + 1].kept)
        before, run.state.would_be_masks = run.state.would_be_masks, list(would_be.values())
        if before is None:
            return False
        changed = sum(
            int(np.count_nonzero(here ^ there)) for here, there in zip(run.state.would_be_masks, before, strict=True)
        )
        ranked = sum(int(np.count_nonzero(mask)) for mask in masks.values())
        run.state.epoch_logs[-1]["mask_distance"] = changed / ranked
        beyond_rewind_epoch = run.round.index > 0 or len(run.state.epoch_logs) >= run.config.rewind_epoch
        return changed <= distance * ranked and beyond_rewind_epoch


class Gradual(Method):
    """One training, within which the sparsity rises, in a hundred steps at most."""

    hears_batches = True

    def begin_round(self, masked: MaskedModel) -> None:
        if masked.kept < self._run.kept_first:
            raise RuntimeError("A gradual fit that was interrupted cannot begin anew: wrap a new model.")
        self._batches()

    def end_batch(self, masked: MaskedModel, batch: int) -> None:
        epochs = len(self._run.state.epoch_logs) + min(1.0, (batch + 1) / self._batches())
        self._raise_sparsity(masked, epochs / self._run.round.epochs)

    def end_epoch(self, masked: MaskedModel, epoch: int) -> bool:
        self._raise_sparsity(masked, (epoch + 1) / self._run.round.epochs)
        return False

    def _raise_sparsity(self, masked: MaskedModel, progress: float) -> None:
        """Prunes as the ramp asks for after the fraction `progress` of the training."""
        run, config = self._run, self._run.config
        ramp_step = int(min(1.0, progress / config.ramp) * _RAMP_STEPS)
        if ramp_step > run.state.ramp_step:
            run.state.ramp_step = ramp_step
            progress, target = ramp_step / _RAMP_STEPS, config.fraction_to_go(masked.total)
            keep = ramp_survivors(masked.total, target, progress, config.block_size, run.kept_first)
            if keep < masked.kept:
                run.prune(masked, keep)

    def _batches(self) -> int:
        """How many batches an epoch has. Raises ValueError where that is not known."""
        batches = self._run.batches_of()
        if not batches:
            raise ValueError(
                "method='gradual' must know how many batches an epoch has, and the training data does not tell its "
                "length. Use dataset.apply(tf.data.experimental.assert_cardinality(batches)), or steps_per_epoch."
            )
        return batches


METHODS: dict[str, type[Method]] = {"iterative": Rounds, "gradual": Gradual, "dense": Method}
