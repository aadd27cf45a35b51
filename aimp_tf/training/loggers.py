"""Keras' callbacks that log, which see one `fit` a round: what they write counts the epochs and steps of the run."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from aimp_tf.compat.models import keras_bases, train_counter
from aimp_tf.compat.swap import Swap
from aimp_tf.training.run import Run


class Log:
    """What a stand-in keeps from round to round, so that it leaves nothing on the user's callback."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.last_round = False
        self.append_header = True
        self.writers: dict[str, Any] = {}


class _CountsEpochs:
    """Mixed into a class of Keras' callbacks: it is told the epochs of the run."""

    _log: Log  # Of the class that is made of both.

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(self._log.run.earlier_epochs + epoch, logs)  # type: ignore[misc]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(self._log.run.earlier_epochs + epoch, logs)  # type: ignore[misc]


class _Appends(_CountsEpochs):
    """Mixed into a CSVLogger: it adds to what the run has written."""

    @property
    def append(self) -> bool:
        return vars(self)["append"] or self._log.run.epochs_done > 0

    @property
    def append_header(self) -> bool:
        return self._log.append_header

    @append_header.setter
    def append_header(self, value: bool) -> None:
        self._log.append_header = value


class _CountsSteps(_CountsEpochs):
    """Mixed into a TensorBoard: its steps are those of the run, and its files stay open until the last round ends."""

    @property
    def _writers(self) -> dict[str, Any]:
        return self._log.writers

    @_writers.setter
    def _writers(self, value: dict[str, Any]) -> None:
        """Keras empties them for each `fit`."""

    @property
    def _run_step(self) -> int:
        counter = train_counter(self.model)  # type: ignore[attr-defined]
        return self._global_train_batch if counter is None else int(counter.numpy())

    def set_model(self, model: Any) -> None:
        # One graph for the run is enough.
        write_graph = vars(self)["write_graph"] and not self._log.writers
        with Swap(self, "write_graph", write_graph):
            super().set_model(model)  # type: ignore[misc]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        run = self._log.run
        self._log.last_round = run.in_last_round
        steps = round(run.steps_of_epoch * run.epochs_done)
        counter = train_counter(self.model)  # type: ignore[attr-defined]
        if counter is not None:  # The step of what is written within the training step of tf_keras.
            counter.assign(steps)
        super().on_train_begin(logs)  # type: ignore[misc]
        self._global_train_batch = steps

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        # It would take the optimizer's count, which starts again in each round.
        step = tf.Variable(self._run_step, dtype=tf.int64, trainable=False)
        model = self.model  # type: ignore[attr-defined]
        counted = _InPlaceOf(model, optimizer=_InPlaceOf(model.optimizer, iterations=step))
        with Swap(self, "_model" if "_model" in vars(self) else "model", counted):
            super().on_test_end(logs)  # type: ignore[misc]

    def _close_writers(self) -> None:
        for writer in self._log.writers.values():
            writer.close() if self._log.last_round else writer.flush()
        if self._log.last_round:
            self._log.writers.clear()


class _InPlaceOf:
    """Has some attributes of its own, and otherwise those of another object."""

    def __init__(self, other: Any, **attributes: Any) -> None:
        vars(self).update(attributes, _other=other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)


_COUNTING: dict[str, type[_CountsEpochs]] = {
    "CSVLogger": _Appends,
    "RemoteMonitor": _CountsEpochs,
    "TensorBoard": _CountsSteps,
}
"""Keras' callbacks that log -> what is mixed into them."""


def counting(callback: Any, log: Log) -> Any:
    """A stand-in that shares the attributes of a callback which logs; any other callback itself."""
    kind: Any = type(callback)
    mixin = next((_COUNTING[base.__name__] for base in keras_bases(kind) if base.__name__ in _COUNTING), None)
    if mixin is None:
        return callback
    stand_in = object.__new__(type(kind)(kind.__name__, (mixin, kind), {"_log": log}))
    object.__setattr__(stand_in, "__dict__", vars(callback))
    return stand_in
