"""The user's callbacks in the rounds of a run: Keras' own start each one afresh, rates follow the round, and what logs
counts on."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import is_keras_own, keras_bases, train_counter
from aimp_tf.compat.swap import Swap
from aimp_tf.config.texts import nearest
from aimp_tf.training.run import Run

logger = logging.getLogger(__name__)

_SETTINGS = {"min_delta", "params"}
"""What no training changes, but that Keras 3 gives `min_delta` its sign in the first epoch that it looks at."""


class OtherCallbacks:
    """Remembers what the callbacks were like when they first came, and makes them so again for each round of a run."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._first_states: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._logs: dict[int, _Log] = {}
        self._stock: list[Any] = []

    def for_round(self, callbacks: Sequence[Any]) -> list[Any]:
        """The Keras callbacks, of either generation, for the next `fit`.

        They are the same, but a LearningRateScheduler is a copy that follows the round, and those of Keras that log are
        stand-ins with the same attributes, which are told the epochs of the run.
        """
        ready: list[Any] = []
        for callback in callbacks:
            if not _is_stock(callback):
                ready.append(callback)
            elif _is_rate_scheduler(callback):
                ready.append(_following(callback, self._run))
            else:
                self._make_as_first(callback)
                ready.append(_counting(callback, self._logs.setdefault(id(callback), _Log(self._run))))
        self._stock = list(filter(_is_stock, ready))
        return ready

    def state(self) -> list[list[Any]]:
        """Of each of Keras' own callbacks in the round: its class's name, and the numbers and arrays that it holds."""
        return [
            [type(callback).__name__, {name: value for name, value in vars(callback).items() if _is_plain(value)}]
            for callback in self._stock
        ]

    def restore(self, state: Sequence[Sequence[Any]]) -> None:
        """Gives the same callbacks what `state` gave. Call it after their `on_train_begin`."""
        here, there = [type(callback).__name__ for callback in self._stock], [name for name, _ in state]
        if here != there:
            logger.warning("The callbacks were %s and are %s: they start afresh within the round.", there, here)
            return
        for callback, (_, values) in zip(self._stock, state, strict=True):
            # Names that it does not have, and texts such as where it writes, are nothing that training changes.
            names = (vars(callback).keys() & values.keys()) - _SETTINGS
            vars(callback).update({name: values[name] for name in names})

    def _make_as_first(self, callback: Any) -> None:
        # The callback is kept with its state, so that its id is not given to another one.
        _, state = self._first_states.setdefault(id(callback), (callback, _copied(vars(callback))))
        vars(callback).clear()
        vars(callback).update(_copied(state))


def as_callbacks(callbacks: Any, generation: str | None = None) -> list[Any]:
    """What `fit` takes for callbacks, None and a single one included, as a list.

    Raises:
        TypeError: They are something else, or of another generation of Keras than the model's, where that is given.
    """
    if callbacks is None:
        return []
    listed = list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    for callback in listed:
        if isinstance(callback, type):
            raise TypeError(
                f"callbacks must be objects; got the class {callback.__name__}. Write {callback.__name__}()."
            )
        if not hasattr(callback, "on_train_begin"):
            raise TypeError(
                f"callbacks must be Keras callbacks, one or a list of them; got {callback!r:.80} of type "
                f"{type(callback).__name__}."
            )
        if type(callback).__module__.startswith("tensorflow_model_optimization"):
            raise TypeError(
                f"{type(callback).__name__} is for tfmot's own wrappers. Leave it out: what prunes here is a callback "
                "of aimp_tf, which prune and the loop around GlobalMagnitudePruning hand to fit."
            )
        bases = [base for base in keras_bases(type(callback)) if base.__name__ == "Callback"]
        theirs = bases[0].__module__.split(".")[0] if bases else generation
        # What is the user's own may do in Keras 3, which asks less of a callback.
        if generation not in (None, theirs) and (generation == "tf_keras" or is_keras_own(type(callback))):
            raise TypeError(
                f"{type(callback).__name__} is a callback of {theirs}, and the model is one of {generation}. Write "
                f"{generation}.callbacks.{type(callback).__name__ if is_keras_own(type(callback)) else 'Callback'}."
            )
    return listed


def check_for_rounds(callbacks: Sequence[Any]) -> None:
    """Raises ValueError for callbacks that would take the rounds of a run for something else."""
    for callback in callbacks:
        names = [base.__name__ for base in type(callback).__mro__]
        if "GlobalMagnitudePruning" in names:
            raise ValueError(
                "GlobalMagnitudePruning is for a loop of your own, where pruning.among(callbacks) adds it, and prune "
                "has one itself. Leave it out, and give its settings to prune."
            )
        if "BackupAndRestore" in names:
            raise ValueError(
                "BackupAndRestore would skip rounds, for it knows of one fit alone. Leave it out, and write "
                "workdir='runs/mine': the same call then goes on where it was stopped."
            )


def watch_from(callbacks: Sequence[Any], epoch: int) -> contextlib.ExitStack:
    """Lets EarlyStopping look at no epoch before this one, from 0, until what it returns is closed: those are less
    sparse than the last, and better."""
    undo = contextlib.ExitStack()
    if epoch <= 0:
        return undo
    for callback in callbacks:
        if hasattr(callback, "start_from_epoch"):
            first = max(callback.start_from_epoch, epoch)
            undo.enter_context(Swap(callback, "start_from_epoch", first))
        if getattr(callback, "save_best_only", False):
            logger.warning(
                "%s(save_best_only=True) may keep an epoch before %d, which is less sparse than the target.",
                type(callback).__name__,
                epoch + 1,
            )
    return undo


def follows_batches(callbacks: Sequence[Any]) -> bool:
    """Whether one of the callbacks must know how many batches an epoch has."""
    return any(map(_is_rate_scheduler, callbacks))


def check_monitors(
    callbacks: Sequence[Any], model: Any, logs: Mapping[str, Any] | None, others: Sequence[str] = ()
) -> None:
    """Raises ValueError if a callback of Keras, in a `fit` of the model, watches a metric that never comes.

    Keras warns after each epoch, and nothing happens. Callbacks and models of the user's may add to the logs, and are
    left alone. `logs` holds the metrics of the model by their names, as far as they are known, and is None where there
    is no validation data; `others` are names of what the run adds to the logs of training.
    """
    own = all(is_keras_own(type(callback)) for callback in callbacks)
    if not own or not all(is_keras_own(getattr(type(model), name)) for name in ("fit", "train_step")):
        return
    for callback in callbacks:
        metric = getattr(callback, "monitor", None)
        if not isinstance(metric, str) or not getattr(callback, "save_best_only", True):
            continue
        if logs is None and metric.startswith("val_"):
            raise ValueError(
                f"{type(callback).__name__} watches {metric}, and no validation data came. Write "
                f"validation_split=0.1 or validation_data=(x_val, y_val), or monitor={metric.removeprefix('val_')!r}."
            )
        known = [*(logs or ()), *(f"val_{name}" for name in logs or ()), *others]
        if logs and metric not in (*known, "learning_rate", "lr"):
            raise ValueError(
                f"{type(callback).__name__} watches {metric}, which is not among the metrics: {', '.join(known)}."
                f"{nearest(metric, known)}"
            )


def check_saving(callbacks: Sequence[Any]) -> None:
    """Raises ValueError if a callback saves the model between batches, when `compact_rounds` has made it smaller."""
    for callback in callbacks:
        frequency = getattr(callback, "save_freq", "epoch")
        if frequency != "epoch":
            raise ValueError(
                f"{type(callback).__name__} was made with save_freq={frequency!r}, but with compact_rounds the model "
                "is smaller between batches. Make it with save_freq='epoch', or set compact_rounds=False."
            )


def _copied(value: Any) -> Any:
    """A deep copy of containers and arrays. Other objects, such as models, stay the same: numbers do not change."""
    if type(value) in (list, tuple, set):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return value.copy() if isinstance(value, np.ndarray) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, np.ndarray, np.generic))


def _is_stock(callback: Any) -> bool:
    """Whether it is one of Keras' callbacks, or a subclass of one, rather than of the bare `Callback`."""
    return any(base.__name__ != "Callback" for base in keras_bases(type(callback)))


def _is_rate_scheduler(callback: Any) -> bool:
    return any(base.__name__ == "LearningRateScheduler" for base in keras_bases(type(callback)))


def _following(scheduler: Any, run: Run) -> Any:
    """A copy of a LearningRateScheduler that passes through the epochs of the schedule at the pace of the round."""
    kind = type(scheduler)

    class FollowingScheduler(kind):  # type: ignore[misc, valid-type]
        def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            if epoch == 0:
                self._called = 0
            self._epoch = epoch
            self._advance(0.0)

        def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            steps = run.steps_of_epoch
            if steps:
                # Where the length is not known, Keras 3 begins one batch more before it finds that there is none.
                self._advance(min(batch, steps - 1) / steps)
            elif batch == 1 and self._epoch == 0 and run.round.schedule_scale > 1:
                logger.warning(
                    "The training data does not tell how many batches an epoch has: in this round, %s follows it at "
                    "the beginning of each epoch only. Use "
                    "dataset.apply(tf.data.experimental.assert_cardinality(batches)).",
                    kind.__name__,
                )

        def _advance(self, fraction: float) -> None:
            position = run.round.schedule_start + (self._epoch + fraction) * run.round.schedule_scale
            # One after another, for a function may compute a rate from the last one.
            while self._called <= math.floor(position + 1e-6):
                kind.on_epoch_begin(self, self._called)
                self._called += 1

    following = copy.copy(scheduler)
    following.__class__ = FollowingScheduler
    following._called = 0
    return following


class _Log:
    """What a stand-in keeps from round to round, so that it leaves nothing on the user's callback."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.last_round = False
        self.append_header = True
        self.writers: dict[str, Any] = {}


class _CountsEpochs:
    """Mixed into a class of Keras' callbacks: it is told the epochs of the run."""

    _log: _Log  # Of the class that is made of both.

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


def _counting(callback: Any, log: _Log) -> Any:
    """A stand-in that shares the attributes of a callback which logs; any other callback itself."""
    kind: Any = type(callback)
    mixin = next((_COUNTING[base.__name__] for base in keras_bases(kind) if base.__name__ in _COUNTING), None)
    if mixin is None:
        return callback
    stand_in = object.__new__(type(kind)(kind.__name__, (mixin, kind), {"_log": log}))
    object.__setattr__(stand_in, "__dict__", vars(callback))
    return stand_in
