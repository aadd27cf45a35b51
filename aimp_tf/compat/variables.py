"""What variables of either generation of Keras stand for, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def resource_of(variable: Any) -> Any:
    """TensorFlow's variable within one of Keras; of a distributed one, that of the first replica of this process."""
    return components_of(variable)[0]


def components_of(variable: Any) -> Sequence[Any]:
    """TensorFlow's variable within one of Keras; of a distributed one, that of each replica of this process."""
    whole = bare(variable)
    return getattr(whole, "values", (whole,))


def key_of(variable: Any) -> int:
    """What a variable is known by, in whichever wrapper of Keras or of a strategy it comes, as long as it is there."""
    return id(resource_of(variable))


def local_value(variable: Any) -> np.ndarray:
    """A copy of what the first replica of this process holds. Reading a variable may ask all other processes."""
    return np.array(local_view(variable))


def local_view(variable: Any) -> np.ndarray:
    """What `local_value` copies, read-only; on a CPU this is the memory of the variable."""
    return np.asarray(tf.convert_to_tensor(resource_of(variable)))


def bare(variable: Any) -> Any:
    """The variable of TensorFlow in one of Keras 3, or in an AutoCastVariable of tf_keras."""
    attributes = vars(variable)  # Not getattr, at which a distributed variable may ask all other processes.
    return attributes.get("_value", attributes.get("_variable", variable))


def set_constraint(variable: Any, constraint: Any) -> None:
    """Gives a variable of either generation a constraint, on each replica; None takes it off."""
    for holder in [variable] if "_value" in vars(variable) else components_of(variable):  # Of Keras 3, itself.
        holder._constraint = constraint


class Values(Mapping[str, np.ndarray]):
    """Path -> what `local_view` gives of a variable, each read when it is asked for."""

    def __init__(self, variables: Mapping[str, Any]) -> None:
        self._variables = variables

    def __getitem__(self, path: str) -> np.ndarray:
        return local_view(self._variables[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)
