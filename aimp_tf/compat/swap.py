"""Another value of an attribute, for a while."""

from __future__ import annotations

from typing import Any

_ABSENT = object()


class Swap:
    """Another value of an attribute, past the `__setattr__` of Keras, which would track it.

    Args:
        owner: An object with attributes of its own.
        name: The attribute, which it need not have.
        value: What it is after `do`, or within a `with`. After `undo` it is as it was when this was made.
    """

    def __init__(self, owner: Any, name: str, value: Any) -> None:
        self._attributes = vars(owner)
        self._name = name
        self._value = value
        self._before = self._attributes.get(name, _ABSENT)

    def do(self) -> None:
        """Puts the value in place."""
        self._attributes[self._name] = self._value

    def undo(self, *_: object) -> None:
        """Puts back what was there."""
        if self._before is _ABSENT:
            self._attributes.pop(self._name, None)
        else:
            self._attributes[self._name] = self._before

    __enter__, __exit__ = do, undo
