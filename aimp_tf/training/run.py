"""Run: what lies between one training of a masked model and the next, whatever calls `fit`; and what a method adds."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from aimp_tf.compat.step import trace_in_fit
from aimp_tf.config import PruningConfig
from aimp_tf.config.distillation import Distillation
from aimp_tf.exporting.timing import with_clock
from aimp_tf.masking import WRAPPED_FIELDS, MaskedModel
from aimp_tf.selection.planning import make_plan, ramp_survivors
from aimp_tf.selection.ranking import smallest_magnitude
from aimp_tf.training.between_rounds import Measure, check_end, check_loss, metrics_at_end, rewind
from aimp_tf.training.live_rounds import LiveRounds
from aimp_tf.training.projections import Projecting, projection_of
from aimp_tf.training.ranking import RunRanking
from aimp_tf.training.repair import repairs
from aimp_tf.training.rounds import Budget, RoundResult, plain_logs
from aimp_tf.training.shrinking import Shrinking
from aimp_tf.training.state import RunState
from aimp_tf.training.telling import tell_beginning, tell_going_on, warn_of_emptied, warn_of_time
from aimp_tf.training.terms import Terms

logger = logging.getLogger(__name__)

_WORTH_MULTIPLY_ADDS = 10**11
"""Tracing a step anew takes as long as so many multiply-adds, a second or two of a few cores."""


class Run(RunState):
    """A run of pruning over consecutive trainings of a masked model.

    Args:
        config: What to do; valid.
        batches_of: Gives how many batches an epoch has; None where that is not known.
        method: Makes what prunes.

    Attributes:
        batches_of: As above.
        ranking: What its ranking goes by.
        terms: What its trainings add to the loss.
        projecting: What its trainings project.
        method: What prunes.
        compacts: Whether rounds are to train the live part alone, if nothing stands against it.
    """

    def __init__(
        self, config: PruningConfig, batches_of: Callable[[], int | None], method: Callable[[Run], Method]
    ) -> None:
        super().__init__(config)
        self.batches_of = batches_of
        self.ranking = RunRanking(config)
        self.terms = Terms(config)
        self.projecting = Projecting(projection_of(config.projection))
        self.method = method(self)
        in_channels = config.structure.channels and config.has_rounds
        self.compacts = in_channels if config.compact_rounds is None else config.compact_rounds
        self._live: LiveRounds | None = None

    @property
    def steps_of_epoch(self) -> float:
        """Batches in each epoch; 0 where that is not known."""
        return self.batches_of() or max(self.steps_per_epoch, default=0)

    def stay_whole(self, why: ValueError) -> None:
        """Lets rounds train the whole model, where nobody has asked for anything else; raises `why` otherwise."""
        if self.config.compact_rounds:
            raise why
        self.compacts, self._live = False, None
        logger.info("Rounds train the whole model, masked channels included. %s", why)

    def begin(self, masked: MaskedModel, stretch: float = 1.0, *, trial: bool = True) -> None:
        """Plans the run, as `GlobalMagnitudePruning.begin` says, and unless `trial` is False tries out the ranking."""
        _check_wrapped(self.config, masked)
        if self.config.structure.channels:
            masked.optimizer.check_dead_rows()
        masked.units = with_clock(masked.units, self.config.latency, masked.original, masked.variables)
        looks = "regularizer" if self.config.regularizer is not None else ""
        looks = looks or ("distillation with features" if Distillation.of(self.config.distillation).features else "")
        if self.compacts and looks:
            self.stay_whole(ValueError(f"{looks} looks at whole layers. Leave out compact_rounds."))
        if self.compacts:
            try:
                asked = bool(self.config.compact_rounds)
                self._live = LiveRounds(masked, 0 if asked else _WORTH_MULTIPLY_ADDS, own_step=asked)
            except ValueError as why:
                self.stay_whole(why)
        plan = make_plan(self.config, masked.total, masked.kept)
        plan = tuple(dataclasses.replace(each, schedule_scale=stretch * each.schedule_scale) for each in plan)
        self.ranking.begin(masked)
        if self.config.method != "dense" and trial:
            self.ranking.check(masked, plan[-1].kept)
        if {"weights", "reinitialize"} & {round_.rewind for round_ in plan}:
            self.first = self.snapshot = masked.snapshot()
        self.terms.check_heard(plan)
        masked.while_masked.close()  # What an earlier run on the model has changed.
        stay = any(round_.rewind == "learning_rate" for round_ in plan)
        self.shrinking = Shrinking(self.config.shrink if stay else 1.0, masked)
        self._install(masked)
        for optimizer in masked.optimizers.all:
            optimizer.note_rate()
        masked.rounds_left = len(plan)
        self.kept_first = masked.kept
        self.plan = plan

    def _install(self, masked: MaskedModel) -> None:
        """Changes what `fit` is to trace."""
        try:
            self.method.begin(masked)
            self.terms.begin(masked)
            self.projecting.begin(masked)
        except BaseException:
            masked.while_masked.close()
            raise

    def optimizers_changed(self) -> None:
        """`fit` will trace its step anew, for the model has other optimizers than it had."""
        self.terms.remove()
        self.projecting.remove()
        if self._live is not None:
            self._live.forget_traced()

    def begin_round(self, masked: MaskedModel) -> None:
        """Makes the model what the round begins with, unless it goes on within it."""
        resumed, self.resumed = self.resumed, False
        if resumed:
            self.method.resume_round(masked)
            tell_going_on(self)
        else:
            self.started_at = time.monotonic()
            self.method.begin_round(masked)
            rewind(self, masked, self.ranking.generator, self.batches_of())
            self.shrinking.begin_round(masked)
            self.epoch_logs, self.checksums, self.would_be_masks, self.radii = [], [], None, None
            tell_beginning(self, masked)
        self.terms.begin(masked)
        self.terms.weigh(self.method.settled)
        self.projecting.begin(masked)
        self.projecting.begin_round(self.method.settled, self.radii)
        trace_in_fit(masked.model)
        if self._live is not None and (self.method.settled or not self.method.ranks_within):
            self._live.begin_round(self, masked, self.round.epochs * self.steps_of_epoch, resumed)

    def end_epoch(self, masked: MaskedModel, epoch: int, logs: Mapping[str, Any] | None) -> bool:
        """Takes the logs of an epoch, which `fit` counts from 0. Returns whether the round is to end with it."""
        self.epoch_logs.append(plain_logs(logs))
        check_loss(self, masked)
        masked.synchronize()
        self.checksums.append(masked.checksum())
        ends = self.method.end_epoch(masked, epoch)
        if self.config.projection is not None and not self.method.settled:
            self.radii = self.projecting.end_epoch(masked, self.plan[len(self.rounds) + 1].kept / masked.total)
        return ends

    def end_round(self, masked: MaskedModel, measure: Measure | None) -> None:
        """Checks what the round ended with, and takes its result. No callback sets weights after that.

        `measure` gives the metrics of the weights that the model has, from the logs of the last epoch; None where
        nothing can.
        """
        self.method.end_round(masked)
        weights, masks = masked.weights(), masked.masks()
        check_end(self, masked, masks)
        if not self.steps_per_epoch and self.epoch_logs:
            self.steps_per_epoch = [steps / len(self.epoch_logs) for steps in masked.optimizers.steps]
        self.rounds.append(
            RoundResult.of(
                self.round.index,
                self.epoch_logs,
                weights,
                {path: masks[path] for path in masked.prunable},
                time.monotonic() - self.started_at,
                thresholds=self.thresholds,
                guarded=self.guarded,
                shrink=self.shrinking.factors,
                left_dense=masked.left_dense,
                budget=Budget(
                    self.config.counted, self.round.kept, masked.kept, masked.total, str(self.config.latency or "")
                ),
                metrics=metrics_at_end(self, masked, measure),
            )
        )
        self.shrinking.end_round(weights)
        masked.rounds_left = self.round_count - len(self.rounds)
        if self.finished:
            masked.part.end()

    def prune(self, masked: MaskedModel, keep: int, *, fade: bool = False) -> None:
        """Keeps the best `keep` survivors, of what the budget counts; those that are left shrink, if they stay.

        With `fade`, what goes is left to fade away.
        """
        statistics = self.ranking.statistics(masked, len(self.rounds))
        weights, before = statistics.weights, statistics.masks
        after, self.guarded = self.ranking.rank(masked, statistics, keep)
        if "block" not in self.config.structure.kinds:
            warn_of_emptied(before, after)
        stayed = {path: after[path] & before[path] for path in masked.prunable}
        self.thresholds = [smallest_magnitude(weights[path], mask) for path, mask in stayed.items()]
        stay = self.round.rewind in (None, "learning_rate")
        for variable, value in repairs(masked, statistics, after) if self.config.repair and stay else ():
            variable.assign(value)
        if fade:
            self.fading = [after[path] for path in masked.variables]
            after = {path: after[path] | before[path] for path in masked.variables}
        masked.set_masks(after)
        warn_of_time(self.config, masked, keep)
        if self.round.rewind == "learning_rate":
            steps = zip(self.steps_per_epoch, masked.optimizers.all, strict=False)
            updates = max((per_epoch / each.steps_per_update for per_epoch, each in steps), default=0)
            self.shrinking.shrink(masked, self.rounds[-1].epochs * updates)
        masked.constrain()

    def masks_keeping(self, masked: MaskedModel, keep: int) -> dict[str, np.ndarray]:
        """The masks that keeping the best `keep` survivors would give now."""
        return self.ranking.rank(masked, self.ranking.statistics(masked, len(self.rounds)), keep)[0]


class Method:
    """What a run does to a model by one of the values of `PruningConfig.method`; this one leaves it as it is."""

    ranks_within = False
    """Whether it ranks after batches."""

    def __init__(self, run: Run) -> None:
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
        return len(self._run.epoch_logs) + min(1.0, (batch + 1) / self._batches())

    def _progress(self, epochs: float) -> float:
        """How far a rise of the sparsity over the training is after so many epochs, in [0, 1]."""
        return min(1.0, epochs / self._run.round.epochs / self._run.config.ramp)

    def _ramped(self, masked: MaskedModel, progress: float) -> int:
        """How much is left at that point of the rise."""
        return ramp_survivors(self._run.config, masked.total, progress, self._run.kept_first)


def _check_wrapped(config: PruningConfig, masked: MaskedModel) -> None:
    """Raises ValueError where a field that `wrap` heeds is not what the model was wrapped with."""
    for name in WRAPPED_FIELDS:
        asked, given = getattr(config, name), masked.settings[name]
        asked = tuple(asked) if isinstance(given, tuple) else asked
        if asked not in (given, (), None):
            raise ValueError(
                f"The config asks for {name}={asked!r}, but the model was wrapped with {name}={given!r}, which "
                f"decides. Call aimp_tf.wrap(model, config), or aimp_tf.wrap(model, {name}={asked!r})."
            )
