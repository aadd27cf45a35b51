"""One optimizer of a masked model: what is reset between rounds and what must stay, in both generations of Keras."""

from __future__ import annotations

import concurrent.futures
import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import is_keras_own, keras_bases
from aimp_tf.compat.variables import key_of


class ResettableOptimizer:
    """Resets and stretches a Keras optimizer between rounds without touching its type, its rate or its loss scale.

    Args:
        optimizer: A Keras 3 or tf_keras optimizer, legacy and loss-scaling ones included. It is built if need be.
        trainable_variables: The variables that it trains, or more. One that is built and knows its own trains those.
        name: What to call it in errors.

    Attributes:
        optimizer: The optimizer.

    Raises:
        ValueError: It averages weights (`use_ema`), which undoes pruning; it is made of several optimizers; it keeps
            copies of the weights, which cannot be reset; or it was trained and cannot be copied to learn what its slots
            started from, or trained other variables.
    """

    def __init__(self, optimizer: Any, trainable_variables: Sequence[Any], name: str = "The optimizer") -> None:
        self.optimizer = optimizer
        *_, self._inner = with_inner(optimizer)  # The user's own.
        self._name = f"{name} {type(self._inner).__name__}"
        if getattr(self._inner, "use_ema", False):
            raise ValueError(
                f"{self._name} was made with use_ema=True: the moving average writes over pruned weights. Make it with "
                "use_ema=False."
            )
        if hasattr(self._inner, "optimizers"):
            raise ValueError(
                f"{self._name} is made of several, whose schedules and averages are not looked into. Compile the model "
                "with one optimizer."
            )
        _build(optimizer, trainable_variables)
        # Not the property, which is a quotient under gradient accumulation.
        self._iterations = self._inner._iterations
        self._trainable_variables = list(trainable_variables)
        self._slots = self._slots_of(self._inner)
        self._initial_slots = self._initial_values(trainable_variables)
        self._schedule: Any = None
        self._initial_rate: np.ndarray | None = None
        self.note_rate()

    def note_rate(self) -> None:
        """Takes the rate that the optimizer has now, or its schedule, for that to begin each round with.

        It is that of the moment when this is made, until the run begins: it may be set in between.
        """
        learning_rate = _learning_rate(self._inner)
        if learning_rate is self._schedule:
            return
        self._schedule, self._initial_rate = stretchable(learning_rate), None
        if self._schedule is not None:
            self._inner.learning_rate = self._schedule
        elif hasattr(learning_rate, "assign"):
            self._initial_rate = _value(learning_rate)

    @property
    def steps(self) -> int:
        """The step counter: steps taken since the last reset, and those that it began with."""
        return int(_value(self._iterations))

    @property
    def steps_per_update(self) -> int:
        """How many steps' gradients are gathered before weights change."""
        return getattr(self._inner, "gradient_accumulation_steps", None) or 1

    @property
    def rate(self) -> float | None:
        """The learning rate of the next step; None where it is neither a variable nor a LearningRateSchedule."""
        if self._schedule is not None:
            return float(_value(tf.convert_to_tensor(self._schedule(self._iterations))))
        learning_rate = _learning_rate(self._inner)
        return float(_value(learning_rate)) if hasattr(learning_rate, "assign") else None

    def state(self, *, slots: bool = True) -> list[Any]:
        """Every variable of the optimizer and of its stretched schedule, with or without those that a reset clears."""
        variables = [*_variables_of(self.optimizer), *_variables_of(self._inner)]
        # What tf_keras does not list: the hyperparameters of legacy optimizers, and the loss scale.
        holders = [vars(self._inner).get("_hyper", {}), vars(getattr(self.optimizer, "_loss_scale", object))]
        if self._schedule is not None:
            holders.append(vars(self._schedule))
        variables += [value for holder in holders for value in holder.values() if isinstance(value, tf.Variable)]
        cleared = {id(slot) for slot in self._slots}
        return [
            variable
            for variable in {id(variable): variable for variable in variables}.values()
            if slots or id(variable) not in cleared
        ]

    def check_by_weight(self) -> None:
        """Raises ValueError if what the optimizer makes of a weight may depend on others, or on more than its gradient.

        A part of a variable cannot be trained by itself then.
        """
        kind, inner = type(self._inner), self._inner
        clipped = next((name for name in ("clipnorm", "global_clipnorm") if getattr(inner, name, None)), None)
        # A subclass may do anything.
        stock = is_keras_own(kind) and kind.__name__ in _OPTIMIZERS_BY_WEIGHT
        if clipped or not stock:
            what = f"with {clipped}" if clipped else f"of the class {kind.__name__}"
            raise ValueError(
                f"The optimizer, {what}, looks at whole variables, of which compact_rounds trains parts, or may do so. "
                "Compile the model with one of Keras that looks at each weight by itself "
                f"({', '.join(sorted(_OPTIMIZERS_BY_WEIGHT))}; clipvalue is fine), or set compact_rounds=False."
            )

    def check_dead_rows(self) -> None:
        """Raises ValueError if the optimizer divides by the mean square of the gradients of a row or a column.

        That is 0 where a channel is gone: all weights would become NaN.
        """
        if type(self._inner).__name__ == "Adafactor":
            raise ValueError(
                "Adafactor makes NaN of variables in which no gradient reaches a whole row, as where a channel is "
                "gone. Compile the model with another one, such as AdamW, or set granularity='unstructured'."
            )

    def slots(self) -> dict[int, list[Any]]:
        """Id of the `resource_of` a trainable variable -> its slots, if the optimizer is one of `check_by_weight`."""
        inner, wanted = self._inner, {id(slot) for slot in self._slots}
        lists = [value for value in vars(inner).values() if isinstance(value, list)]
        lists = [value for value in lists if len(value) == len(self._trainable_variables)]
        found: dict[int, list[Any]] = {}
        for index, variable in enumerate(self._trainable_variables):
            slots = [values[index] for values in lists]
            if hasattr(inner, "get_slot_names"):  # tf_keras.optimizers.legacy
                slots += [inner.get_slot(variable, name) for name in inner.get_slot_names()]
            found[key_of(variable)] = [slot for slot in slots if id(slot) in wanted]
        return found

    def forget_traced(self) -> None:
        """Has the optimizer's own compiled step traced anew. That of tf_keras on a GPU keeps the slots that it saw."""
        if hasattr(type(self._inner), "_update_step_xla"):
            step = self._inner._update_step
            vars(self._inner)["_update_step_xla"] = tf.function(
                lambda gradient, variable, key: step(gradient, variable), jit_compile=True
            )

    def reset(self, steps: int = 0) -> None:
        """Slots as they were before the first step, the step counter at `steps`, a rate in a variable as at the start.

        An optimizer whose first step, with averages of nothing, would be another one at a later count starts from step
        0 whatever `steps` is. Adam, which divides its averages by what the step counter says they have seen, would take
        far too large steps.

        The loss scale of mixed precision is left alone: it belongs to the numbers' range, not to the training.
        """
        for slot, value in zip(self._slots, self._initial_slots, strict=True):
            slot.assign(tf.fill(slot.shape, value))
        self._iterations.assign(0 if steps and self._needs_all_steps else steps)
        if self._initial_rate is not None:
            _learning_rate(self._inner).assign(self._initial_rate)

    @functools.cached_property
    def _needs_all_steps(self) -> bool:
        """Whether a first step, with slots of nothing, is another one where the step counter does not stand at 0.

        It is tried on four numbers, with a copy of the optimizer that has a constant rate. One that cannot be copied or
        tried so is taken to need them all.
        """

        def first_move(steps: int) -> np.ndarray:
            kind, config = type(self._inner), self._inner.get_config()
            constant = {"learning_rate": 0.01, "gradient_accumulation_steps": None}
            copy = kind.from_config({**config, **{name: constant[name] for name in constant.keys() & config}})
            of_keras_3 = any(base.__module__.split(".")[0] == "keras" for base in kind.__mro__)
            variable_kind = importlib.import_module("keras").Variable if of_keras_3 else tf.Variable
            with tf.device("CPU:0"):
                weights = variable_kind(np.full((2, 2), 0.5, np.float32))
                _build(copy, [weights])
                copy._iterations.assign(steps)
                copy.apply_gradients([(tf.constant([[1.0, -2.0], [0.5, 3.0]]), weights)])
            return _value(weights)

        # In a thread of its own, which is under no strategy.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            try:
                early, late = (thread.submit(first_move, steps).result() for steps in (0, 1000))
            except Exception:
                return True
        return not np.allclose(early, late, rtol=1e-4)

    def stretch(self, scale: float, start: float) -> None:
        """Starts the learning-rate schedule, if any, at its step `start`; `scale` of its steps pass in each step."""
        if self._schedule is not None:
            self._schedule.stretch(scale, start - self.steps * scale)

    def release(self) -> None:
        """Gives the optimizer its own schedule back, or the rate that it had."""
        vars(self._inner).pop("_update_step_xla", None)
        if self._schedule is not None:
            self._inner.learning_rate = self._schedule.original
        elif self._initial_rate is not None:
            _learning_rate(self._inner).assign(self._initial_rate)

    def _slots_of(self, optimizer: Any) -> list[Any]:
        variables = _variables_of(optimizer)
        # Zeroing the first two with the slots would stop the training; the third follows from the others.
        spared = {
            id(optimizer._iterations),
            id(_learning_rate(optimizer)),
            id(getattr(optimizer, "_current_learning_rate", None)),
        }
        return list({id(variable): variable for variable in variables if id(variable) not in spared}.values())

    def _initial_values(self, trainable_variables: Sequence[Any]) -> list[np.ndarray]:
        """One number a slot; not always zero, for Adagrad and FTRL start their accumulators elsewhere."""
        slots = self._slots
        if self.steps > 0:
            try:
                fresh = type(self._inner).from_config(self._inner.get_config())
                _build(fresh, trainable_variables)
            except Exception as error:
                raise ValueError(
                    f"{self._name} has already trained and cannot be copied from its config ({error}). Compile the "
                    "model with a new optimizer before pruning."
                ) from error
            slots = self._slots_of(fresh)
        if len(slots) != len(self._slots):
            raise ValueError(
                f"{self._name} was built for other variables than the model trains now: `trainable` was changed since. "
                "Compile the model again before pruning."
            )
        values = [_value(slot) for slot in slots]
        if any(value.size and np.any(value != value.flat[0]) for value in values):
            raise ValueError(
                f"{self._name} starts from copies of the weights, which a reset between rounds would bring back. "
                "Compile the model with another optimizer."
            )
        return [value.reshape(-1)[:1].sum(dtype=value.dtype) for value in values]


_OPTIMIZERS_BY_WEIGHT = frozenset(("SGD", "Adam", "AdamW", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Lion"))
"""Optimizers of Keras whose every step changes each weight by its own gradient and slots alone, and not without them.

FTRL makes zeros of weights without gradients. Nadam of tf_keras counts how often it was traced."""


def stretchable(schedule: Any) -> Any | None:
    """Wraps a LearningRateSchedule so that it can start elsewhere and run faster than the optimizer's steps.

    It is led by variables, so that nothing is traced again.

    Args:
        schedule: A LearningRateSchedule of either generation of Keras, made for the full-length training.

    Returns:
        A LearningRateSchedule of the same generation with `stretch(scale, start)`, and with `schedule` as `original`.
        At step t it gives `schedule(floor(start + t * scale))`, so `scale` steps of `schedule` pass in each step. It
        starts with scale 1 from 0, which is `schedule` itself. None for anything else, such as a constant rate.
    """
    base = next((kind for kind in keras_bases(type(schedule)) if kind.__name__ == "LearningRateSchedule"), None)
    if base is None:
        return None

    class StretchedSchedule(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.original = schedule
            self._scale = tf.Variable(1.0, dtype=tf.float64, trainable=False, name="schedule_scale")
            self._start = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="schedule_start")

        def stretch(self, scale: float, start: float) -> None:
            self._scale.assign(scale)
            self._start.assign(start)

        def __call__(self, step: Any) -> Any:
            step = tf.convert_to_tensor(step)
            # float64 holds every step below 2**53 exactly, and whole steps are what a schedule is written for.
            position = self._start + tf.cast(step, tf.float64) * self._scale
            # Rounding errors must not make 4.999999 of step 5.
            return schedule(tf.cast(tf.floor(position + 1e-6), step.dtype))

        @property  # type: ignore[misc]
        def __class__(self) -> type:
            """A model that is saved while it trains is saved with the schedule itself."""
            return type(schedule)

        def __getattr__(self, name: str) -> Any:
            return getattr(schedule, name)

        def get_config(self) -> dict[str, Any]:
            return schedule.get_config()

    return StretchedSchedule()


def _variables_of(optimizer: Any) -> list[Any]:
    variables = optimizer.variables
    variables = list(variables() if callable(variables) else variables)
    # Nadam of tf_keras does not list its momentum product among its variables.
    return variables + [value for value in vars(optimizer).values() if isinstance(value, tf.Variable)]


def with_inner(optimizer: Any) -> Iterator[Any]:
    """An optimizer and those inside it, of loss scaling."""
    while optimizer is not None:
        yield optimizer
        optimizer = getattr(optimizer, "inner_optimizer", None)


def _build(optimizer: Any, trainable_variables: Sequence[Any]) -> None:
    if hasattr(optimizer, "_create_all_weights"):  # tf_keras.optimizers.legacy
        optimizer._create_all_weights(trainable_variables)
        return
    # Keras 3 builds that of a model from an .h5 file for no variables, and could not train with it.
    if getattr(optimizer, "_trainable_variables", None) == []:
        optimizer.built = False
    if not (getattr(optimizer, "built", False) or getattr(optimizer, "_built", False)):
        optimizer.build(trainable_variables)


def _learning_rate(optimizer: Any) -> Any:
    """The schedule or the variable itself, where `optimizer.learning_rate` may be its current value."""
    return optimizer._learning_rate if hasattr(optimizer, "_learning_rate") else optimizer.learning_rate


def _value(variable: Any) -> np.ndarray:
    return np.asarray(variable.numpy())
