"""RunSaver: follows a run from epoch to epoch, saves it, and goes on with what was saved, the order of the data too."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.callbacks import EpochCallback
from aimp_tf.compat.variables import local_value
from aimp_tf.masking import MaskedModel
from aimp_tf.runs.recorded_run import FinishedRound
from aimp_tf.runs.run_directory import RunDirectory
from aimp_tf.training.callback import GlobalMagnitudePruning
from aimp_tf.training.input_pipeline import Order
from aimp_tf.training.rounds import RoundResult

# A second of saving is followed by this many without a backup, so that saving takes 2% of the time, or as little as the
# ends of rounds alone take.
_SECONDS_PER_BACKUP_SECOND = 50


class RunSaver(EpochCallback):
    """Tells the order of the examples where the run stands and, where there is a run directory, saves it there.

    It must be the last of the callbacks, so that what it saves holds what the others did.

    Args:
        pruning: The run. It must have begun.
        masked: The model.
        order: The order of the examples; None where the data has one of its own.
        directory: Where to save; None saves nothing, or is what the chief of a cluster does.
    """

    def __init__(
        self,
        pruning: GlobalMagnitudePruning,
        masked: MaskedModel,
        order: Order | None,
        directory: RunDirectory | None,
    ) -> None:
        super().__init__()
        self._pruning = pruning
        self._masked = masked
        self._order = order
        self._directory = directory
        self._resumed_callbacks: list[list[Any]] | None = None
        self._next_backup_at = 0.0
        # Settled by the chief, which alone has the run directory.
        self._saving: bool = masked.cluster.from_chief(directory is not None)
        self.initial_epoch = 0

    def begin(self) -> None:
        """Begins the run or, where the run directory holds a part of it already, goes on there.

        Raises:
            ValueError: The run directory is that of another run.
            RuntimeError: What it holds does not fit the model, though its checksums are right, or it cannot be written.
        """
        cluster, directory = self._masked.cluster, self._directory
        rounds: list[FinishedRound] = []
        state: dict[str, Any] = {}
        with cluster.as_one():
            if directory is not None:
                directory.begin(self._pruning.round_count)
                rounds = directory.finished_rounds()
                state = self._last_state(directory, rounds)
        # Only the chief reads, so that no worker can take the run to stand elsewhere.
        state = cluster.from_chief(state)
        with cluster.as_one(), self._naming_the_run():
            if state:
                self._restore(state)
        with cluster.as_one():
            if directory is not None:
                directory.go_on(rounds, self._pruning.epoch_logs)

    def _last_state(self, directory: RunDirectory, rounds: Sequence[FinishedRound]) -> dict[str, Any]:
        """What `_restore` needs: the state of the last backup, or of the last round; nothing where neither is there."""
        backup = directory.backup(len(rounds)) if len(rounds) < self._pruning.round_count else None
        if backup is None and not rounds:
            return {}
        with self._naming_the_run():
            state = backup or rounds[-1].state
            return {
                **state,
                "snapshots": (rounds[0].state if rounds else state)["snapshots"],
                "rounds": [dataclasses.asdict(round_.result) for round_ in rounds],
                "in_round": backup is not None,
            }

    @contextlib.contextmanager
    def _naming_the_run(self) -> Iterator[None]:
        try:
            yield
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, tf.errors.OpError) as error:
            folder = self._directory.path if self._directory else "of the chief"
            raise RuntimeError(
                f"workdir {folder} holds a run that does not fit this model: {error}. Name another folder, or pass "
                "overwrite=True to begin anew in this one."
            ) from error

    def save_round(self) -> None:
        """Saves the round that has just ended. Without a run directory, nothing happens."""
        self.initial_epoch = 0
        if not self._saving:
            return
        if self._directory is None:
            # Saving reads what all replicas hold, for which the chief needs the others.
            with tempfile.TemporaryDirectory() as folder:
                self._masked.original.save_weights(f"{folder}/own.weights.h5")
            return
        result = self._pruning.rounds[-1]
        with self._putting_off_backups():
            self._directory.save_round(
                result,
                self._pruning.epoch_logs,
                self._masked.masks(),
                self._masked.original.save_weights,
                self._state(result.index, slots=False),
            )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._resumed_callbacks is not None:
            # Now, for their own on_train_begin has just made them as they are at the start of a round.
            self._pruning.others.restore(self._resumed_callbacks)
            self._resumed_callbacks = None
        self._follow(self.initial_epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._follow(epoch + 1)
        if self._directory is None:
            return
        index = self._pruning.round.index
        self._directory.add_metrics(index, epoch, self._pruning.epoch_logs[-1])
        within = epoch + 1 < self._pruning.round.epochs and not self.model.stop_training
        if within and time.monotonic() >= self._next_backup_at:
            with self._putting_off_backups():
                state = {**self._state(index, slots=True), "callbacks": self._pruning.others.state()}
                self._directory.save_backup(index, epoch + 1, state)

    @contextlib.contextmanager
    def _putting_off_backups(self) -> Iterator[None]:
        begun_at = time.monotonic()
        yield
        ended_at = time.monotonic()
        self._next_backup_at = ended_at + _SECONDS_PER_BACKUP_SECOND * (ended_at - begun_at)

    def _follow(self, epoch: int) -> None:
        if self._order is not None:
            self._order.begin(self._pruning.round.index, epoch)

    def _state(self, index: int, slots: bool) -> dict[str, Any]:
        version, key, cached = random.getstate()
        return {
            "weights": self._masked.snapshot(),
            "masks": list(self._masked.masks().values()),
            # The first round settles them, and its state is kept.
            "snapshots": self._pruning.run.snapshots() if index == 0 else None,
            "pruning": self._pruning.run.to_fields(),
            "variables": {name: local_value(value) for name, value in self._masked.state(slots=slots).items()},
            "order": None if self._order is None else self._order.seed,
            "random": [version, np.array(key, np.uint64), cached],
            "numpy": list(np.random.get_state()),
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        masked, in_round = self._masked, state["in_round"]
        weights, masks = masked.snapshot(), masked.masks()
        variables = masked.state(slots=in_round)
        if state["variables"].keys() != variables.keys():
            raise ValueError("the variables of the optimizer are others")
        # All of it is looked at before any of it is used.
        new_masks = _like(list(masks.values()), state["masks"])
        new_weights = _like(weights, state["weights"])
        values = _like([local_value(value) for value in variables.values()], list(state["variables"].values()))
        snapshots = {name: value and _like(weights, value) for name, value in state["snapshots"].items()}
        rounds = [RoundResult.from_fields(fields) for fields in state["rounds"]]
        masked.set_masks(dict(zip(masks, new_masks, strict=True)))
        masked.restore(new_weights)
        for variable, value in zip(variables.values(), values, strict=True):
            variable.assign(value)
        self._pruning.run.resume(rounds, state["pruning"], snapshots, in_round=in_round)
        if self._order is not None:
            self._order.seed = state["order"]
        version, key, cached = state["random"]
        random.setstate((version, tuple(map(int, key)), cached))
        np.random.set_state(tuple(state["numpy"]))
        if in_round:
            self.initial_epoch = len(self._pruning.epoch_logs)
            self._resumed_callbacks = state["callbacks"]


def _like(expected: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The values themselves. Raises ValueError where their shapes or dtypes are others."""
    kinds = [[f"{array.dtype}{list(array.shape)}" for array in arrays] for arrays in (expected, values)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"its arrays are {', '.join(kinds[1])}; the model's are {', '.join(kinds[0])}")
    return list(values)
