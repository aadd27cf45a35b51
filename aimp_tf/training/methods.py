"""The methods of pruning: what each does as a training begins, within it, and at the end of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, cast

import numpy as np
import tensorflow as tf

from aimp_tf.config import PruningConfig
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.channels import ChannelUnits
from aimp_tf.selection.criteria import Given
from aimp_tf.selection.planning import Round, fraction_to_go, ramp_survivors
from aimp_tf.training.gates import Gates
from aimp_tf.training.ranking import RunRanking
from aimp_tf.training.rounds import RoundResult
from aimp_tf.training.state import RunState
from aimp_tf.training.terms import Terms

_RAMP_STEPS = 100
_FADE_STEPS = 20
_FIRST_MOMENTUM = 0.6
"""What a batch leaves of the utility of channels, at first; it rises to 1."""


class PruningRun(Protocol):
    """What a method may ask of its run, which is a `run.Run`, and have it do."""

    config: PruningConfig
    state: RunState
    rounds: list[RoundResult]
    plan: tuple[Round, ...]
    kept_first: int
    terms: Terms
    ranking: RunRanking
    batches_of: Callable[[], int | None]

    @property
    def round(self) -> Round: ...

    @property
    def round_count(self) -> int: ...

    def prune(self, masked: MaskedModel, keep: int, *, fade: bool = False) -> None: ...

    def would_be_masks(self, masked: MaskedModel, keep: int) -> dict[str, np.ndarray]: ...


class Method:
    """What a run does to a model by one of the values of `PruningConfig.method`; this one leaves it as it is.

    Args:
        run: The run.
    """

    ranks_within = False
    """Whether it ranks after batches."""

    def __init__(self, run: PruningRun) -> None:
        self._run = run

    @property
    def hears_batches(self) -> bool:
        """Whether `end_batch` is to be called, which takes time."""
        return self.ranks_within or self._run.config.fade_epochs > 0

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be ranked."""
        return True

    def begin(self, masked: MaskedModel) -> None:
        """Changes what `fit` is to trace, before it does. Raises what stands against the run."""

    def begin_round(self, masked: MaskedModel) -> None:
        """Prunes what a training is to begin without. Raises what stands against the training."""

    def resume_round(self, masked: MaskedModel) -> None:
        """Does the same where a training goes on that was begun before, whose state has been restored."""

    def end_batch(self, masked: MaskedModel, batch: int) -> None:
        """Prunes within an epoch, after its batch of this number, from 0."""

    def end_epoch(self, masked: MaskedModel, epoch: int) -> bool:
        """Prunes at the end of an epoch, which `fit` counts from 0. Returns whether the training is to end with it."""
        return False

    def end_round(self, masked: MaskedModel) -> None:
        """Prunes what is to be gone by the end of a training."""

    def _batches(self) -> int:
        """How many batches an epoch has. Raises ValueError where that is not known."""
        batches, config = self._run.batches_of(), self._run.config
        if not batches:
            what = "fade_epochs" if config.fade_epochs else f"method={config.method!r}"
            raise ValueError(
                f"{what} must know how many batches an epoch has, and the training data does not tell its "
                "length. Use dataset.apply(tf.data.experimental.assert_cardinality(batches)), or steps_per_epoch."
            )
        return batches

    def _epochs_done(self, batch: int) -> float:
        """How far the training is after a batch of this number, in epochs."""
        return len(self._run.state.epoch_logs) + min(1.0, (batch + 1) / self._batches())


class Rounds(Method):
    """Iterative magnitude pruning: what is to go goes between the trainings."""

    @property
    def settled(self) -> bool:
        return self._run.round.index + 1 == self._run.round_count

    def begin_round(self, masked: MaskedModel) -> None:
        fades = self._run.config.fade_epochs > 0
        if fades:
            self._batches()
            self._run.state.fade_step = 0
        # A fit that was interrupted and is called again finds its masks set, and begins its round anew.
        if self._run.round.kept < masked.kept and self._run.state.fading is None:
            self._run.prune(masked, self._run.round.kept, fade=fades)

    def end_batch(self, masked: MaskedModel, batch: int) -> None:
        if self._run.state.fading is not None:
            step = int(_FADE_STEPS * self._epochs_done(batch) / self._run.config.fade_epochs)
            self._fade(masked, min(step, _FADE_STEPS))

    def end_round(self, masked: MaskedModel) -> None:
        if self._run.config.fade_epochs:
            self._fade(masked, _FADE_STEPS)  # It may have been stopped early,
            masked.set_masks(masked.masks())  # or have the weights of an epoch in which something had not gone yet.

    def _fade(self, masked: MaskedModel, step: int) -> None:
        """Brings what is to go to a part of what it was as the round began, and to zero with the last step."""
        state = self._run.state
        if state.fading is None or step <= state.fade_step:
            return
        masks = dict(zip(masked.variables, state.fading, strict=True))
        masked.part.put_back()
        if step == _FADE_STEPS:
            masked.set_masks(masks)
            state.fading, state.fade_step = None, 0
            return
        _scale(masked, masks, (_FADE_STEPS - step) / (_FADE_STEPS - state.fade_step))
        state.fade_step = step

    def end_epoch(self, masked: MaskedModel, epoch: int) -> bool:
        run = self._run
        if run.round.index == 0 and len(run.state.epoch_logs) == run.config.rewind_epoch:
            run.state.rewind_steps = masked.optimizers.steps
            if any(round_.rewind == "weights" for round_ in run.plan):
                run.state.snapshot = masked.snapshot()
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

    ranks_within = True

    @property
    def settled(self) -> bool:
        return self._run.state.ramp_step == _RAMP_STEPS

    def begin_round(self, masked: MaskedModel) -> None:
        if masked.kept < self._run.kept_first:
            raise RuntimeError("A gradual fit that was interrupted cannot begin anew: wrap a new model.")
        self._batches()

    def end_batch(self, masked: MaskedModel, batch: int) -> None:
        self._raise_sparsity(masked, self._epochs_done(batch) / self._run.round.epochs)

    def end_epoch(self, masked: MaskedModel, epoch: int) -> bool:
        self._raise_sparsity(masked, (epoch + 1) / self._run.round.epochs)
        return False

    def _raise_sparsity(self, masked: MaskedModel, progress: float) -> None:
        """Prunes as the ramp asks for after the fraction `progress` of the training."""
        run, config = self._run, self._run.config
        ramp_step = int(min(1.0, progress / config.ramp) * _RAMP_STEPS)
        if ramp_step > run.state.ramp_step:
            run.state.ramp_step = ramp_step
            progress, target = ramp_step / _RAMP_STEPS, fraction_to_go(config, masked.total)
            keep = ramp_survivors(masked.total, target, progress, config.structure.block, run.kept_first)
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
        run, config = self._run, self._run.config
        super().end_epoch(masked, epoch)
        if run.round.index == 0:
            progress = min(1.0, (epoch + 1) / run.round.epochs / config.ramp)
            target = fraction_to_go(config, masked.total)
            keep = ramp_survivors(masked.total, target, progress, config.structure.block, run.kept_first)
            factor = config.softness * (run.round.epochs - epoch - 1) / max(run.round.epochs - 1, 1)
            _scale(masked, run.would_be_masks(masked, keep), factor)
        return False


class Dynamic(Rounds):
    """A round each step of which runs the channels alone that have been of most use so far; then the others go."""

    ranks_within = True

    def __init__(self, run: PruningRun) -> None:
        super().__init__(run)
        self._gates: Gates | None = None

    def begin(self, masked: MaskedModel) -> None:
        units = cast(ChannelUnits, masked.units)
        if self._run.state.utility is None:
            self._run.state.utility = np.zeros(units.count)
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
            self._close(masked, len(self._run.state.epoch_logs))
        elif self._gates is not None:
            self._gates.remove()

    def end_batch(self, masked: MaskedModel, batch: int) -> None:
        if self.settled or self._gates is None:
            return
        used, epochs = self._gates.contributions(), self._epochs_done(batch)
        for each in cast(ChannelUnits, masked.units).sets:
            largest = used[each.units].max(initial=0.0)
            used[each.units] /= largest or 1.0
        self._utility[:] *= _FIRST_MOMENTUM + (1 - _FIRST_MOMENTUM) * epochs / self._run.round.epochs
        self._utility[:] += used
        self._close(masked, epochs)

    @property
    def _utility(self) -> np.ndarray:
        assert self._run.state.utility is not None
        return self._run.state.utility

    def _close(self, masked: MaskedModel, epochs: float) -> None:
        """Lets the next step run those of most use, as many as after so many epochs of the round."""
        run, config, units = self._run, self._run.config, cast(ChannelUnits, masked.units)
        progress = min(1.0, epochs / run.round.epochs / config.ramp)
        keep = ramp_survivors(masked.total, fraction_to_go(config, masked.total), progress, 1, run.kept_first)
        assert self._gates is not None
        self._gates.let_through(run.ranking.choose(units, self._utility, units.kept(masked.masks()), keep))


METHODS: dict[str, type[Method]] = {
    "iterative": Rounds,
    "gradual": Gradual,
    "soft": Soft,
    "dynamic": Dynamic,
    "dense": Method,
}
