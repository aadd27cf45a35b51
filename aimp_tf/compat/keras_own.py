"""What is Keras' own, of either generation, and what is the user's."""

from __future__ import annotations

from typing import Any


def is_keras_own(defined: Any) -> bool:
    """Whether a class or a method was defined by Keras itself. Needs neither generation to be imported."""
    return defined.__module__.split(".")[0] in ("keras", "tf_keras")


def keras_bases(kind: type) -> list[type]:
    """The classes of Keras itself that a class is or comes from, the nearest first."""
    return [base for base in kind.__mro__ if is_keras_own(base)]
