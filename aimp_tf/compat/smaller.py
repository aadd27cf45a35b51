"""Smaller variables that stand in for those of a model while it trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from aimp_tf.compat.swap import Swap
from aimp_tf.compat.variables import components_of

Indices = tuple[np.ndarray, ...]
"""Along each axis of a variable, the indices of what stays, rising."""


class SmallerVariables:
    """Puts parts of variables in the place of these variables, and back.

    The objects stay the same, so that layers, optimizers and constraints need not know: what changes is the memory that
    they stand for. A function of TensorFlow keeps to the memory that was there when it was traced.

    Args:
        variables: (variable, what stays of it), of either generation of Keras or of TensorFlow itself; of a
            distributed one, that of each replica of this process.
        attributes: (layer, its attributes that change with that -> what they become).
        layers: All layers. They do not insist on the shapes of their inputs meanwhile.
    """

    def __init__(
        self,
        variables: Iterable[tuple[Any, Indices]],
        attributes: Iterable[tuple[Any, Mapping[str, Any]]],
        layers: Iterable[Any],
    ) -> None:
        self._in_place = False
        self._copies = []
        self._swaps: list[Swap] = []
        for variable, indices in variables:
            shape = tuple(map(len, indices))
            for whole in components_of(variable):
                part = _part_of(whole, shape)
                self._copies.append((whole, part, np.ix_(*indices)))
                self._swaps += [Swap(whole, "_handle", part._handle), Swap(whole, "_shape", part._shape)]
            if hasattr(variable, "_ndim"):  # Of Keras 3.
                self._swaps.append(Swap(variable, "_shape", shape))
        for layer, values in attributes:
            self._swaps += [Swap(layer, name, value) for name, value in values.items()]
        for layer in layers:
            # Where it is kept depends on the class. None under another name than that does nothing.
            for name in ("input_spec", "_input_spec", "_manual_input_spec"):
                if name in vars(layer) or name == "_manual_input_spec":
                    self._swaps.append(Swap(layer, name, None))

    def put_in(self) -> None:
        """Copies the parts and puts them in the variables' place, unless they are there already."""
        if self._in_place:
            return
        for whole, part, indices in self._copies:
            part.assign(np.asarray(whole.read_value())[indices])
        self._in_place = True  # First, so that what is interrupted here is put back.
        for swap in self._swaps:
            swap.do()

    def put_back(self) -> None:
        """Puts the variables back, with what has become of the parts, unless they are there already."""
        if not self._in_place:
            return
        for swap in self._swaps:
            swap.undo()
        for whole, part, indices in self._copies:
            values = whole.numpy()
            values[indices] = np.asarray(part.read_value())
            whole.assign(values)
        self._in_place = False


def _part_of(whole: Any, shape: tuple[int, ...]) -> Any:
    """A variable of this shape beside a plain one, on its device, also within the scope of a strategy."""
    with tf.device(whole.device):
        part = ResourceVariable(tf.zeros(shape, whole.dtype), trainable=False)
    replicas = getattr(whole._handle, "_distributed_container", None)
    if replicas is not None:  # By which an optimizer knows the variable of all replicas.
        part._handle._distributed_container = replicas
    return part
