"""A part of a model that `fit` trains in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

from aimp_tf.compat.models import layers_of
from aimp_tf.compat.step import begin_steps_with, forget_traced
from aimp_tf.compat.swap import Swap
from aimp_tf.compat.variables import components_of

Indices = tuple[np.ndarray, ...]
"""Along each axis of a variable, the indices of what stays, rising."""


class TrainedPart:
    """Lets `fit` train a part of a model only, and so in less time. It is traced anew for that.

    From the first batch of each epoch on, until `put_back`, everything that belongs to the model is as small as the
    part. What the rest computes must not matter to it.

    The objects stay the same, so that layers, optimizers and constraints need not know: what changes is the memory that
    variables stand for. A function of TensorFlow keeps to the memory that was there when it was traced.

    Args:
        model: A compiled model of either generation.
        original: What holds the same layers and may be evaluated in its place.
    """

    def __init__(self, model: Any, original: Any) -> None:
        self._model = model
        self._original = original
        self._in_place = False
        self._copies: list[tuple[Any, Any, Any]] = []
        self._swaps: list[Swap] = []
        self._undoing = contextlib.ExitStack()

    def begin(self, variables: Iterable[tuple[Any, Indices]], attributes: Iterable[tuple[Any, str, Any]]) -> None:
        """Trains a part from the next epoch on. None may be trained now.

        Args:
            variables: (variable, the indices that stay along each of its axes), of all that become smaller. They are of
                either generation of Keras or of TensorFlow itself; of a distributed one, that of each replica of this
                process does.
            attributes: (layer, an attribute of it that changes with that, what that becomes).
        """
        for variable, indices in variables:
            shape = tuple(map(len, indices))
            for whole in components_of(variable):
                part = _part_of(whole, shape)
                self._copies.append((whole, part, np.ix_(*indices)))
                self._swaps += [Swap(whole, "_handle", part._handle), Swap(whole, "_shape", part._shape)]
            if hasattr(variable, "_ndim"):  # Of Keras 3.
                self._swaps.append(Swap(variable, "_shape", shape))
        self._swaps += [Swap(*attribute) for attribute in attributes]
        # No layer insists on the shapes of its inputs meanwhile.
        for layer in (layer for layer in layers_of(self._model) if layer is not self._model):
            # Where they are kept depends on the class. None under another name than that does nothing.
            for name in ("input_spec", "_input_spec", "_manual_input_spec"):
                if name in vars(layer) or name == "_manual_input_spec":
                    self._swaps.append(Swap(layer, name, None))
        self._undoing.callback(forget_traced, self._model)
        begin_steps_with(self._model, self._put_in)
        for model in (self._model, self._original):
            for name in ("make_test_function", "make_predict_function"):
                self._undoing.enter_context(Swap(model, name, self._on_the_whole(getattr(model, name))))

    def put_back(self) -> None:
        """Brings the model back to its own size, with what training has made of its part, unless it has that."""
        if not self._in_place:
            return
        for swap in self._swaps:
            swap.undo()
        for whole, part, indices in self._copies:
            values = whole.numpy()
            values[indices] = np.asarray(part.read_value())
            whole.assign(values)
        self._in_place = False

    def end(self) -> None:
        """Lets `fit` train the whole model again."""
        self.put_back()
        self._copies, self._swaps = [], []
        self._undoing.close()

    def _put_in(self) -> None:
        """Copies the parts and puts them in the place of what they are of, unless they are there already."""
        if self._in_place:
            return
        for whole, part, indices in self._copies:
            part.assign(np.asarray(whole.read_value())[indices])
        self._in_place = True  # First, so that what is interrupted here is put back.
        for swap in self._swaps:
            swap.do()

    def _on_the_whole(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """`make_test_function` and the like of the model, which are called before anything is evaluated."""

        def make_for_whole(*arguments: Any, **settings: Any) -> Any:
            self.put_back()
            return make(*arguments, **settings)

        return make_for_whole


def _part_of(whole: Any, shape: tuple[int, ...]) -> Any:
    """A variable of this shape beside a plain one, on its device, also within the scope of a strategy."""
    with tf.device(whole.device):
        part = ResourceVariable(tf.zeros(shape, whole.dtype), trainable=False)
    replicas = getattr(whole._handle, "_distributed_container", None)
    if replicas is not None:  # By which an optimizer knows the variable of all replicas.
        part._handle._distributed_container = replicas
    return part
