"""RunState: where a run stands, which is what is saved of it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.selection.planning import Round
from aimp_tf.training.rounds import RoundResult
from aimp_tf.training.shrinking import Shrinking

_OF_RUN = ("rewind_steps", "steps_per_epoch", "channels", "utility")
_OF_ROUND = (
    "epoch_logs",
    "checksums",
    "thresholds",
    "guarded",
    "would_be_masks",
    "ramp_step",
    "fading",
    "fade_step",
    "radii",
)


@dataclasses.dataclass(eq=False, repr=False)
class RunState:
    """Where a run stands: all that changes in it, beside the model and its optimizers.

    Attributes:
        config: What the run is to do.
        plan: The rounds of the run; empty until it begins.
        rounds: The results of the rounds that are done.
        kept_first: Number of weights that are left when it begins.
        first: The weights as the run began, in the order of `MaskedModel.snapshot`; None where no round needs them.
        snapshot: Those that later rounds rewind to; the same as `first` unless `rewind_epoch` says otherwise.
        rewind_steps: The steps that each optimizer then had taken.
        steps_per_epoch: How many steps each optimizer takes in an epoch; empty until the first round is done.
        shrinking: What weights are shrunk by, from when the run begins.
        channels: Which classes of channels rounds train, bool; None is all.
        resumed: Whether the next training goes on within its round.
        started_at: When the round began, on the monotonic clock of this process.
        epoch_logs: The logs of each epoch of the round that trains or was trained last.
        checksums: Of the weights at the end of each of these epochs; None where that is not known.
        thresholds: The smallest magnitude that was kept in each variable, of the ranking before the round.
        guarded: The variables that kept more then than their rank gave them.
        would_be_masks: The masks that ranking would have given at the end of the last epoch, for `stop_mask_distance`.
        ramp_step: How far a gradual rise of the sparsity has come.
        fading: The masks that the round is to have once what they prune has faded away; None where nothing fades.
        fade_step: How far that has come.
        utility: Of what use each channel has been in the steps so far, float (units,); None where nobody asks.
        radii: What the kernels were projected on at the end of the last epoch; None where they were not.
    """

    config: PruningConfig
    plan: tuple[Round, ...] = ()
    rounds: list[RoundResult] = dataclasses.field(default_factory=list)
    kept_first: int = 0
    first: list[np.ndarray] | None = None
    snapshot: list[np.ndarray] | None = None
    rewind_steps: list[int] = dataclasses.field(default_factory=list)
    steps_per_epoch: list[float] = dataclasses.field(default_factory=list)
    shrinking: Shrinking = dataclasses.field(init=False)
    channels: np.ndarray | None = None
    resumed: bool = False
    started_at: float = 0.0
    epoch_logs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    checksums: list[int | None] = dataclasses.field(default_factory=list)
    thresholds: list[float | None] = dataclasses.field(default_factory=list)
    guarded: tuple[str, ...] = ()
    would_be_masks: list[np.ndarray] | None = None
    ramp_step: int = 0
    fading: list[np.ndarray] | None = None
    fade_step: int = 0
    radii: list[float] | None = None
    utility: np.ndarray | None = None

    @property
    def finished(self) -> bool:
        """Whether the final training is done."""
        return 0 < len(self.plan) == len(self.rounds)

    @property
    def round_count(self) -> int:
        """Rounds of the run, the final training included."""
        return len(self.plan)

    @property
    def round(self) -> Round:
        """The round that trains, or the next one."""
        return self.plan[len(self.rounds)]

    @property
    def in_last_round(self) -> bool:
        """Whether that is the final training."""
        return self.round.index + 1 == self.round_count

    @property
    def earlier_epochs(self) -> int:
        """Epochs trained in the rounds that are done."""
        return sum(round_.epochs for round_ in self.rounds)

    @property
    def epochs_done(self) -> int:
        """Those and the ones of the round that trains."""
        return self.earlier_epochs + len(self.epoch_logs)

    def to_fields(self) -> dict[str, Any]:
        """What `resume` needs, but for rounds and snapshots: numbers, texts, arrays, and lists and dicts of these."""
        return {
            "seconds": time.monotonic() - self.started_at,
            "shrinking": self.shrinking.state(),
            **{name: getattr(self, name) for name in (*_OF_RUN, *_OF_ROUND)},
            "guarded": list(self.guarded),
        }

    def snapshots(self) -> dict[str, list[np.ndarray] | None]:
        """The weights that later rounds rewind to. Round 0 settles them."""
        return {"first": self.first, "snapshot": None if self.snapshot is self.first else self.snapshot}

    def resume(
        self,
        rounds: Sequence[RoundResult],
        fields: Mapping[str, Any],
        snapshots: Mapping[str, list[np.ndarray] | None],
        *,
        in_round: bool,
    ) -> None:
        """Goes on after these rounds where the run was saved. It must have begun, and the model be as it was then.

        `fields` and `snapshots` are what `to_fields` and `snapshots` gave. If that was `in_round` rather than after
        one, the next training goes on with that round.
        """
        self.rounds, self.resumed = list(rounds), in_round
        # Some of them earlier versions did not have.
        for name in (*_OF_RUN, *(_OF_ROUND if in_round else ())):
            if name in fields:
                setattr(self, name, fields[name])
        self.rewind_steps, self.steps_per_epoch = _as_list(self.rewind_steps), _as_list(self.steps_per_epoch)
        self.first = snapshots["first"]
        self.snapshot = snapshots["snapshot"] or self.first
        if fields.get("shrinking"):
            self.shrinking.resume(fields["shrinking"])
        if in_round:
            self.started_at = time.monotonic() - fields["seconds"]
            self.guarded = tuple(self.guarded)
            self.checksums = list(fields.get("checksums", [None] * len(self.epoch_logs)))


def _as_list(value: Any) -> list[Any]:
    """A run that was saved before models with several optimizers has one number, or None."""
    return [] if value is None else value if isinstance(value, list) else [value]
