"""Hearing what the layers of a model are called with, or what they give."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from aimp_tf.compat.models import is_keras_own
from aimp_tf.compat.swap import Swap
from aimp_tf.compat.variables import key_of
from aimp_tf.graph.prunable import readers
from aimp_tf.masking import MaskedModel


@contextlib.contextmanager
def listening(
    layers: Mapping[str, Any], note: Callable[[str, tf.Tensor], tf.Tensor], *, outputs: bool = False
) -> Iterator[None]:
    """Within it, `note` hears of what each layer is called with, if that is neither sparse nor ragged, and gives what
    it is to be called with; or of what it gives."""

    def noting(path: str, layer: Any) -> Any:
        call = layer.call

        def call_and_note(*arguments: Any, **settings: Any) -> Any:
            if outputs:
                return note(path, call(*arguments, **settings))
            given = inspect.signature(call).bind(*arguments, **settings)
            first, value = next(iter(given.arguments.items()))
            if isinstance(value, tf.Tensor):
                given.arguments[first] = note(path, value)
            return call(*given.args, **given.kwargs)

        # A layer of the user's own may be written for AutoGraph, by which tf_keras calls it.
        of_keras = is_keras_own(type(layer).call)
        return tf.autograph.experimental.do_not_convert(call_and_note) if of_keras else call_and_note

    with contextlib.ExitStack() as swaps:
        for path, layer in layers.items():
            swaps.enter_context(Swap(layer, "call", noting(path, layer)))
        yield


def reading_layers(masked: MaskedModel) -> dict[str, Any]:
    """Path of a kernel -> the layer that multiplies what it is called with by it, of a masked model's variables."""
    keys = {key_of(variable): path for path, variable in masked.variables.items()}
    return {
        path: layer for variable, layer in readers(masked.original) if (path := keys.get(key_of(variable))) is not None
    }
