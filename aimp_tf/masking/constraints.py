"""What keeps pruned weights at zero while a model trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


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


def zeroed(weight: Any, mask: Any) -> tf.Tensor:
    """`weight` with 0.0 where the bool `mask` is False, computed where they lie.

    Not a product: zero times NaN is NaN, and zero times -1 is -0. Nor SelectV2, which can broadcast and so takes twice
    the time on a CPU.
    """
    weight = tf.convert_to_tensor(weight)
    # Not zeros_like, which becomes a constant of a traced step: as much memory as the weights, for good. After the
    # weight, or those of all variables would be there from the beginning of the step.
    with tf.control_dependencies([weight]):
        zeros = tf.raw_ops.Empty(shape=weight.shape, dtype=weight.dtype, init=True)
    return tf.raw_ops.Select(condition=mask, x=weight, y=zeros)
