"""Keras 3: masks held as constraints on the prunable variables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from aimp_tf.compat.keras_distribution import repaired
from aimp_tf.compat.step import forget_traced
from aimp_tf.compat.variables import local_value
from aimp_tf.masking.masked_model import MaskedModel, zeroed


class MaskConstraint(keras.constraints.Constraint):
    """Zeroes the masked entries of a variable after every optimizer step, before and after a constraint of the user's.

    Before, for that must not see what is pruned, such as in the norm of a column. After, for it may move zero.

    Args:
        mask: Variable of the weight's shape, bool; False marks a pruned entry. Changing its values takes effect at
            once, without tracing anything again.
        previous: The constraint that the variable had, or None.
    """

    def __init__(self, mask: tf.Variable, previous: Callable[[Any], Any] | None) -> None:
        self.mask = mask
        self.previous = previous

    def __call__(self, weight: Any) -> tf.Tensor:
        weight = zeroed(weight, self.mask)
        return weight if self.previous is None else zeroed(self.previous(weight), self.mask)


class ConstrainedModel(MaskedModel):
    """A Keras 3 model whose prunable variables carry a `MaskConstraint`. The model is changed in place."""

    def _attach(self) -> None:
        self._repairs = contextlib.ExitStack()
        for path, variable in self.variables.items():
            # The mask lives outside the layers: a built layer takes no new variables, and nothing of it is exported.
            mask = tf.Variable(tf.ones(variable.shape, tf.bool), trainable=False, name=f"{path}/mask")
            self._masks[path] = mask
            variable.constraint = MaskConstraint(mask, variable.constraint)
        # A train function traced earlier does not know the constraints and would never call them.
        forget_traced(self.model)
        self._repairs.enter_context(repaired(self.model))

    def _compiled_again(self) -> None:
        self._repairs.close()
        self._repairs.enter_context(repaired(self.model))

    def _detach(self) -> None:
        for variable in self.variables.values():
            if isinstance(variable.constraint, MaskConstraint):
                variable.constraint = variable.constraint.previous
        forget_traced(self.model)
        self._repairs.close()

    def synchronize(self) -> None:
        """Keras 3 averages nothing, and saves the first replica's moving statistics."""
        if self.cluster.replicas > 1:
            variables = self.original.non_trainable_weights
            values = self.cluster.from_chief([local_value(variable) for variable in variables])
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
