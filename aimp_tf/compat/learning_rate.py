"""Learning-rate schedules fitted to a round, through variables, so that nothing is traced again."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from aimp_tf.compat.keras_own import keras_bases


def stretchable(schedule: Any) -> Any | None:
    """Wraps a LearningRateSchedule so that it can start elsewhere and run faster than the optimizer's steps.

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
