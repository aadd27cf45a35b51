"""What variables of either generation of Keras stand for, and what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf


def resource_of(variable: Any) -> Any:
    """TensorFlow's variable within one of Keras; of a distributed one, that of the first replica of this process."""
    # Inside an AutoCastVariable of tf_keras. Not getattr, at which a distributed variable may ask, too.
    variable = vars(variable).get("_variable", variable)
    inner = getattr(variable, "value", None)  # Of a variable of Keras 3; a method of others.
    components = inner if isinstance(inner, tf.Variable) else variable
    return getattr(components, "values", (components,))[0]


def local_value(variable: Any) -> np.ndarray:
    """A copy of what the first replica of this process holds. Reading a variable may ask all other processes."""
    return np.array(local_view(variable))


def local_view(variable: Any) -> np.ndarray:
    """What `local_value` copies, read-only; on a CPU this is the memory of the variable."""
    return np.asarray(tf.convert_to_tensor(resource_of(variable)))


def bare(variable: Any) -> Any:
    """The variable of TensorFlow in one of Keras 3, or in an AutoCastVariable of tf_keras."""
    attributes = vars(variable)
    return attributes.get("_value", attributes.get("_variable", variable))


def set_constraint(variable: Any, constraint: Any) -> None:
    """Gives a variable a constraint, on each replica; None takes it off."""
    variable = getattr(variable, "_variable", variable)  # Inside an AutoCastVariable of tf_keras' mixed precision.
    for component in getattr(variable, "values", (variable,)):  # One for each replica of a distributed variable.
        component._constraint = constraint
