"""RunProgress: follows a run from epoch to epoch, for data that is read in order and for going on after a crash."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from aimp_tf.callback import GlobalMagnitudePruning
from aimp_tf.input_pipeline import Order
from aimp_tf.masked_model import MaskedModel
from aimp_tf.run_directory import RunDirectory
from aimp_tf.safe_files import DamagedFileError

# A backup that took a second is followed by this many without one, so that backups take 2% of the time at most.
_SECONDS_PER_BACKUP_SECOND = 50


class RunProgress(keras.callbacks.Callback):
    """Tells the order of the examples where the run stands and, where there is a run directory, saves it there.

    It must be the last of the callbacks, so that what it saves holds what the others did.

    Args:
        pruning: The run. It must have begun.
        masked: The model.
        callbacks: The user's callbacks.
        order: The order of the examples; None where the data has one of its own.
        directory: Where to save; None saves nothing.
    """

    def __init__(
        self,
        pruning: GlobalMagnitudePruning,
        masked: MaskedModel,
        callbacks: Sequence[Any],
        order: Order | None,
        directory: RunDirectory | None,
    ) -> None:
        super().__init__()
        self._pruning = pruning
        self._masked = masked
        self._callbacks = callbacks
        self._order = order
        self._directory = directory
        self._resumed_callbacks: list[list[Any]] | None = None
        self._next_backup_at = 0.0
        self.initial_epoch = 0

    def begin(self) -> None:
        """Begins the run or, where the run directory holds a part of it already, goes on there.

        Raises:
            ValueError: The run directory is that of another run.
            RuntimeError: What it holds does not fit the model, though its checksums are right, or it cannot be written.
        """
        if self._directory is None:
            return
        self._directory.begin()
        pruning, masked, directory = self._pruning, self._masked, self._directory
        try:
            rounds = directory.finished_rounds(pruning.round_count, masked.masks())
            final = len(rounds) == pruning.round_count - 1
            backup = None if len(rounds) == pruning.round_count else directory.backup(len(rounds), final=final)
            directory.go_on(rounds, backup.state["pruning"]["epoch_logs"] if backup else (), pruning.round_count)
            if rounds:
                masked.original.load_weights(str(rounds[-1].weights))
                masked.set_masks(rounds[-1].masks)
                if _digest(masked.snapshot()) != rounds[-1].state["weights"]:
                    raise DamagedFileError(
                        f"{rounds[-1].weights} does not give back all weights of the model; Keras does not save those "
                        "of layers that it does not know of"
                    )
            if backup:
                masked.set_masks(backup.state["masks"])
                masked.restore(_like(masked.snapshot(), backup.state["weights"]))
            if backup or rounds:
                state = backup.state if backup else rounds[-1].state
                snapshots = rounds[0].state["snapshots"] if rounds else state["snapshots"]
                self._restore(state, snapshots, [round_.result for round_ in rounds], in_round=backup is not None)
        except (DamagedFileError, ImportError, KeyError, IndexError, TypeError, ValueError) as error:
            raise RuntimeError(
                f"workdir {directory.path} holds a run that does not fit this model: {error}. Name another folder, or "
                "pass overwrite=True to begin anew in this one."
            ) from error

    def save_round(self) -> None:
        """Saves the round that has just ended. Without a run directory, nothing happens."""
        self.initial_epoch = 0
        if self._directory is None:
            return
        snapshot = self._masked.snapshot()
        state = {"weights": _digest(snapshot), **self._state(slots=False)}
        result = self._pruning.rounds[-1]
        self._directory.save_round(
            result,
            self._pruning.epoch_logs,
            self._masked.masks(),
            self._masked.original.save_weights,
            state if result.index else {**state, "snapshots": self._pruning.snapshots()},
            final=self._pruning.finished,
        )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._resumed_callbacks is not None:
            # Now, for their own on_train_begin has just made them as they are at the start of a round.
            self._pruning.restore_others(self._callbacks, self._resumed_callbacks)
            self._resumed_callbacks = None
        self._follow(self.initial_epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._follow(epoch + 1)
        if self._directory is None:
            return
        index = self._pruning.round.index
        self._directory.add_metrics(index, epoch, self._pruning.epoch_logs[-1])
        begun_at = time.monotonic()
        if epoch + 1 < self._pruning.round.epochs and not self.model.stop_training and begun_at >= self._next_backup_at:
            state = {
                "weights": self._masked.snapshot(),
                "masks": self._masked.masks(),
                "callbacks": self._pruning.state_of_others(self._callbacks),
                **self._state(slots=True),
            }
            if not index:
                state["snapshots"] = self._pruning.snapshots()
            self._directory.save_backup(index, epoch + 1, state, final=index == self._pruning.round_count - 1)
            ended_at = time.monotonic()
            self._next_backup_at = ended_at + _SECONDS_PER_BACKUP_SECOND * (ended_at - begun_at)

    def _follow(self, epoch: int) -> None:
        if self._order is not None:
            self._order.begin(self._pruning.round.index, epoch)

    def _state(self, slots: bool) -> dict[str, Any]:
        version, key, cached = random.getstate()
        return {
            "pruning": self._pruning.state(),
            "variables": {name: np.asarray(value.numpy()) for name, value in self._masked.state(slots=slots).items()},
            "order": None if self._order is None else self._order.seed,
            "random": [version, np.array(key, np.uint64), cached],
            "numpy": list(np.random.get_state()),
        }

    def _restore(
        self,
        state: Mapping[str, Any],
        snapshots: Mapping[str, list[np.ndarray] | None],
        rounds: list[Any],
        *,
        in_round: bool,
    ) -> None:
        variables = self._masked.state(slots=in_round)
        if state["variables"].keys() != variables.keys():
            raise DamagedFileError("the variables of the optimizer are others")
        for variable, value in zip(
            variables.values(),
            _like([np.asarray(variable.numpy()) for variable in variables.values()], list(state["variables"].values())),
            strict=True,
        ):
            variable.assign(value)
        here = self._masked.snapshot()
        snapshots = {name: value and _like(here, value) for name, value in snapshots.items()}
        self._pruning.resume(rounds, state["pruning"], snapshots, in_round=in_round)
        if self._order is not None:
            self._order.seed = state["order"]
        version, key, cached = state["random"]
        random.setstate((version, tuple(map(int, key)), cached))
        np.random.set_state(tuple(state["numpy"]))
        if in_round:
            self.initial_epoch = len(self._pruning.epoch_logs)
            self._resumed_callbacks = state["callbacks"]

    # tf_keras asks a callback which batches it wants to hear of; Keras 3 finds out by itself.
    _supports_tf_logs = True
    _chief_worker_only = False

    def _no(self) -> bool:
        return False

    _implements_train_batch_hooks = _implements_test_batch_hooks = _implements_predict_batch_hooks = _no


def _digest(weights: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.tobytes())
    return digest.hexdigest()


def _like(expected: Sequence[np.ndarray], values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The values themselves. Raises DamagedFileError where their shapes or dtypes are others."""
    kinds = [[f"{array.dtype}{list(array.shape)}" for array in arrays] for arrays in (expected, values)]
    if kinds[0] != kinds[1]:
        raise DamagedFileError(f"its weights are {', '.join(kinds[1])}; the model's are {', '.join(kinds[0])}")
    return list(values)
