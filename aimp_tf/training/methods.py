"""The methods of pruning: what each does as a training begins, within it, and at the end of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import tensorflow as tf

from aimp_tf.masking import MaskedModel
from aimp_tf.selection.channels import ChannelUnits
from aimp_tf.selection.criteria import Given
from aimp_tf.training.gates import Gates
from aimp_tf.training.run import Method, Run

_RAMP_STEPS = 100
_FADE_STEPS = 20
_FIRST_MOMENTUM = 0.6
"""What a batch leaves of the utility of channels, at first; it rises to 1."""


class Rounds(Method):
    """Iterative magnitude pruning: what is to go goes between the trainings."""

    @property
    def settled(self) -> bool:
        return self._run.in_last_round

    def begin_round(self, masked: MaskedModel) -> None:
        fades = self._run.config.fade_epochs > 0
        if fades:
            self._batches()
            self._run.fade_step = 0
        # A fit that was interrupted and is called again finds its masks set, and begins its round anew.
        if self._run.round.kept < masked.kept and self._run.fading is None:
            self._run.prune(masked, self._run.round.kept, fade=fades)

    def end_batch(self, masked: MaskedModel, batch: int) -> None:
        if self._run.fading is not None:
            step = int(_FADE_STEPS * self._epochs_done(batch) / self._run.config.fade_epochs)
            self._fade(masked, min(step, _FADE_STEPS))

    def end_round(self, masked: MaskedModel) -> None:
        if self._run.config.fade_epochs:
            self._fade(masked, _FADE_STEPS)  # It may have been stopped early,
            masked.set_masks(masked.masks())  # or have the weights of an epoch in which something had not gone yet.

    def _fade(self, masked: MaskedModel, step: int) -> None:
        """Brings what is to go to a part of what it was as the round began, and to zero with the last step."""
        run = self._run
        if run.fading is None or step <= run.fade_step:
            return
        masks = dict(zip(masked.variables, run.fading, strict=True))
        masked.part.put_back()
        if step == _FADE_STEPS:
            masked.set_masks(masks)
            run.fading, run.fade_step = None, 0
            return
        _scale(masked, masks, (_FADE_STEPS - step) / (_FADE_STEPS - run.fade_step))
        run.fade_step = step

    def end_epoch(self, masked: MaskedModel, epoch: int) -> bool:
        run = self._run
        if run.round.index == 0 and len(run.epoch_logs) == run.config.rewind_epoch:
            run.rewind_steps = masked.optimizers.steps
            if any(round_.rewind == "weights" for round_ in run.plan):
                run.snapshot = masked.snapshot()
        distance = run.config.stop_mask_distance
        return distance is not None and not run.in_last_round and self._is_settled(masked, distance)

    def _is_settled(self, masked: MaskedModel, distance: float) -> bool:
        """Whether the masks that ranking would give have changed little in the epoch (early-bird tickets)."""
        run = self._run
        masks = masked.masks()
        would_be = run.masks_keeping(masked, run.plan[len(run.rounds) + 1].kept)
        before, run.would_be_masks = run.would_be_masks, list(would_be.values())
        if before is None:
            return False
        changed = sum(
            int(np.count_nonzero(here ^ there)) for here, there in zip(run.would_be_masks, before, strict=True)
        )
        ranked = sum(int(np.count_nonzero(mask)) for mask in masks.values())
        run.epoch_logs[-1]["mask_distance"] = changed / ranked
        beyond_rewind_epoch = run.round.index > 0 or len(run.epoch_logs) >= run.config.rewind_epoch
        return changed <= distance * ranked and beyond_rewind_epoch


class Gradual(Method):
    """One training, within which the sparsity rises, in a hundred steps at most."""

    ranks_within = True

    @property
    def settled(self) -> bool:
        return self._run.ramp_step == _RAMP_STEPS

    def begin_round(self, masked: MaskedModel) -> None:
        if masked.kept < self._run.kept_first:
            raise RuntimeError("A gradual fit that was interrupted cannot begin anew: wrap a new model.")
        self._batches()

    def end_batch(self, masked: MaskedModel, batch: int) -> None:
        self._raise_sparsity(masked, self._epochs_done(batch))

    def end_epoch(self, masked: MaskedModel, epoch: int) -> bool:
        self._raise_sparsity(masked, epoch + 1)
        return False

    def _raise_sparsity(self, masked: MaskedModel, epochs: float) -> None:
        """Prunes as the ramp asks for after so many epochs of the training."""
        run = self._run
        ramp_step = int(self._progress(epochs) * _RAMP_STEPS)
        if ramp_step > run.ramp_step:
            run.ramp_step = ramp_step
            keep = self._ramped(masked, ramp_step / _RAMP_STEPS)
            if keep < masked.kept:
                run.prune(masked, keep)
            run.terms.weigh(self.settled)


def _scale(masked: MaskedModel, masks: Mapping[str, np.ndarray], factor: float) -> None:
    """Multiplies by the factor what these masks would prune."""
    for path, variable in masked.variables.items():
        value = tf.convert_to_tensor(variable)
        variable.assign(tf.where(masks[path], value, factor * value))


class Soft(Rounds):
    """A round within which the least units get smaller after each epoch, and may come back; then they go."""

    def end_epoch(self, masked: MaskedModel, epoch: int) -> bool:
        run = self._run
        super().end_epoch(masked, epoch)
        if run.round.index == 0:
            keep = self._ramped(masked, self._progress(epoch + 1))
            factor = run.config.softness * (run.round.epochs - epoch - 1) / max(run.round.epochs - 1, 1)
            _scale(masked, run.masks_keeping(masked, keep), factor)
        return False


class Dynamic(Rounds):
    """A round each step of which runs the channels alone that have been of most use so far; then the others go."""

    ranks_within = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._gates: Gates | None = None

    def begin(self, masked: MaskedModel) -> None:
        units = cast(ChannelUnits, masked.units)
        if self._run.utility is None:
            self._run.utility = np.zeros(units.count)
        if self._gates is None or not self._gates.installed:
            self._gates = Gates(masked)

    def begin_round(self, masked: MaskedModel) -> None:
        self._batches()
        self.resume_round(masked)
        super().begin_round(masked)

    def resume_round(self, masked: MaskedModel) -> None:
        self._run.ranking.criterion = Given(self._utility)
        if not self.settled:
            self.begin(masked)
            self._close(masked, len(self._run.epoch_logs))
        elif self._gates is not None:
            self._gates.remove()

    def end_batch(self, masked: MaskedModel, batch: int) -> None:
        if self.settled or self._gates is None:
            return
        used, epochs = self._gates.contributions(), self._epochs_done(batch)
        if np.isfinite(used).all():  # Else the loss was scaled too far for half precision, and the step was left out.
            for each in cast(ChannelUnits, masked.units).sets:
                largest = used[each.units].max(initial=0.0)
                used[each.units] /= largest or 1.0
            self._utility[:] *= _FIRST_MOMENTUM + (1 - _FIRST_MOMENTUM) * epochs / self._run.round.epochs
            self._utility[:] += used
        self._close(masked, epochs)

    @property
    def _utility(self) -> np.ndarray:
        assert self._run.utility is not None
        return self._run.utility

    def _close(self, masked: MaskedModel, epochs: float) -> None:
        """Lets the next step run those of most use, as many as after so many epochs of the round."""
        units = cast(ChannelUnits, masked.units)
        keep = self._ramped(masked, self._progress(epochs))
        assert self._gates is not None
        self._gates.let_through(self._run.ranking.choose(units, self._utility, units.kept(masked.masks()), keep))


METHODS: dict[str, type[Method]] = {
    "iterative": Rounds,
    "gradual": Gradual,
    "soft": Soft,
    "dynamic": Dynamic,
    "dense": Method,
}
