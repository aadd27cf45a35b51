"""What is Keras' own, of either generation, and what is the user's."""

from __future__ import annotations

from typing import Any


def is_keras_own(defined: Any) -> bool:
    """Whether a class or a method was defined by Keras itself. Needs neither generation to be imported."""
    return defined.__module__.split(".")[0] in ("keras", "tf_keras")
