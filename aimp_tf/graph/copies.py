"""Copies of layers and models, some of them with other weights or in place of others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.functional import is_function, lambda_like, sharing
from aimp_tf.compat.models import children, finalize, is_keras_own, layers_of
from aimp_tf.graph.model_graph import Call, ModelGraph, Tensor, filled_in
from aimp_tf.graph.trials import alike

_log = logging.getLogger(__name__)

_OPEN = 3
"""What an axis of open size has where a layer is tried."""


def rebuilt(
    graph: ModelGraph, layer_for: Callable[[Call, Copies], Any] = lambda call, copies: copies.of(call)
) -> tuple[Any, Copies]:
    """A model of what `layer_for` gives for the first call of each layer, a copy unless it says otherwise, compiled and
    distributed as the graph's; and the copies that it was given to take from.

    It is compiled with the same loss and metrics where these can be made from their configs. Layers that cannot be made
    from theirs share their weights with the graph's model; they are logged at level INFO.
    """
    with graph.model.distribute_strategy.scope():
        copies = Copies(graph)
        model = graph.build(lambda call: layer_for(call, copies))
        copies.set_weights()
        compile_alike(model, graph.model)
    return model, copies


class Copies:
    """Copies of layers, whose weights are set when all of them are built.

    A layer that cannot be made again from its config, and need not change, is shared: what takes its place has the same
    variables and all else that it holds, but a name and a place in models of its own, so that nothing of it changes.

    Attributes:
        shared: Name of each layer that is shared -> its class.
    """

    def __init__(self, graph: ModelGraph) -> None:
        self.shared: dict[str, str] = {}
        self._keras = graph.keras
        self._pending: list[tuple[Any, list[Any]]] = []

    def of(self, call: Call, weights: list[Any] | None = None, **changes: Any) -> Any:
        """A copy of a call's layer, with other weights or fields of its config if these are given.

        Raises ValueError where a layer that is to change cannot be made from its config.
        """
        layer = call.layer
        # Operations have no state, and lookups one that is no weight.
        if not isinstance(layer, self._keras.layers.Layer) or hasattr(layer, "get_vocabulary"):
            return layer
        if type(layer) is self._keras.layers.Lambda:  # Keras does not make its function from a config unasked.
            return lambda_like(layer, call.name)
        same_shapes = weights is None or list(map(np.shape, weights)) == [tuple(each.shape) for each in layer.weights]
        try:
            copy = _remade(call, changes, same_shapes)
        except Exception as error:  # Whatever a constructor of the user's raises.
            if _is_change(layer, weights, changes):
                raise ValueError(
                    f"The layer {layer.name!r} of the class {type(layer).__name__} has to change, but cannot be made "
                    "from its config. A layer of your own must give all arguments of its constructor in get_config. "
                    f"The error was: {error}"
                ) from error
            if not is_function(layer):
                self.shared[call.name] = type(layer).__name__
            return sharing(layer, call.name)
        copy.supports_masking = layer.supports_masking
        self._pending.append((copy, layer.get_weights() if weights is None else weights))
        return copy

    def set_weights(self) -> None:
        """Gives the copies their weights. All of them must have been called."""
        for copy, weights in self._pending:
            copy.set_weights(weights)
            finalize(layers_of(copy))
        if self.shared:
            _log.info(
                "Layers that cannot be made from their configs, and share their weights with the model: %s.",
                ", ".join(f"{name} ({kind})" for name, kind in self.shared.items()),
            )


def compile_alike(model: Any, other: Any) -> None:
    """Compiles `model` with the loss, metrics and a new optimizer like those of `other`, where configs allow it."""
    config = other.get_compile_config() if getattr(other, "optimizer", None) is not None else None
    if not config:
        return
    with contextlib.suppress(TypeError, ValueError):  # A loss or metric of one's own that is not registered.
        model.compile_from_config(config)


def _remade(call: Call, changes: Mapping[str, Any], same_shapes: bool) -> Any:
    """A layer made from the config of a call's, without its weights, which will have the same shapes, or not. Raises
    what a constructor does, and ValueError."""
    layer = call.layer
    config = {**layer.get_config(), "name": call.name}
    functions = _functions(layer, config)
    if is_keras_own(type(layer)) and hides_functions(layer):
        raise ValueError("A layer within it has a function of your own, for which a config holds a name alone.")
    try:
        # Themselves, for their names may stand for nothing, or for other functions.
        copy = type(layer).from_config({**config, **functions, **changes})
    except Exception:
        if is_keras_own(type(layer)):
            raise
        copy = type(layer).from_config({**config, **changes})  # That may expect just what get_config gave.
    if not changes and same_shapes and (not is_keras_own(type(layer)) or children(layer)):
        _check_alike(copy, call)
    return copy


def hides_functions(layer: Any) -> bool:
    """Whether layers within one of Keras have functions that are none of Keras, for which its config does not do."""
    within = (_functions(part, part.get_config()) for part in layers_of(layer) if part is not layer)
    hidden = {id(value) for part in within for value in part.values() if not is_keras_own(value)}
    return bool(hidden - set(map(id, _functions(layer, layer.get_config()).values())))


def _functions(layer: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The functions that a layer was given, by the names of their fields in its config."""
    values = {name: getattr(layer, name, None) for name in config}
    return {
        name: value
        for name, value in values.items()
        if callable(value) and not hasattr(value, "get_config") and getattr(value, "__self__", None) is not layer
    }


def _check_alike(copy: Any, call: Call) -> None:
    """Builds a copy by calling it on zeros, and raises what it does, or ValueError if it has other weights, or with the
    same weights computes something else: a config may leave out what the layer holds."""
    args, kwargs = filled_in(call, lambda tensor: tf.zeros([size or 1 for size in tensor.shape], tensor.dtype))
    copy(*args, **kwargs)
    shapes, expected = ([weight.shape for weight in layer.get_weights()] for layer in (copy, call.layer))
    if shapes != expected:
        raise ValueError(f"What its config gives has weights of the shapes {shapes} instead of {expected}.")
    if is_keras_own(type(call.layer)):
        return
    copy.set_weights(call.layer.get_weights())
    finalize(layers_of(copy))
    if (made := _made(call.layer, call)) is None:
        return
    again, found = (_made(layer, call) for layer in (call.layer, copy))
    # Of a layer that draws numbers, nothing can be said.
    if again is not None and _are_alike(made, again) and (found is None or not _are_alike(made, found)):
        raise ValueError("What its config gives computes something else, with the same weights.")


def _made(layer: Any, call: Call) -> list[np.ndarray] | None:
    """What a layer gives in inference where a call is of numbers that are made up; None if that is an error."""
    generator = np.random.default_rng(0)

    def numbers(tensor: Tensor) -> Any:
        shape, dtype = [size or _OPEN for size in tensor.shape], tf.as_dtype(tensor.dtype)
        return tf.cast(generator.normal(size=shape) if dtype.is_floating else generator.integers(0, 2, shape), dtype)

    args, kwargs = filled_in(call, numbers)
    try:
        outputs = layer(*args, **{**kwargs, **({"training": False} if "training" in kwargs else {})})
        return [np.asarray(tf.cast(output, tf.float32)) for output in tf.nest.flatten(outputs)]
    except Exception:  # Whatever a layer of the user's raises, which may take other numbers alone.
        return None


def _are_alike(some: list[np.ndarray], others: list[np.ndarray]) -> bool:
    return len(some) == len(others) and all(map(alike, some, others))


def _is_change(layer: Any, weights: list[Any] | None, changes: Mapping[str, Any]) -> bool:
    """Whether any of these weights and attributes are not those of the layer."""
    if any(getattr(layer, name, None) != value for name, value in changes.items()):
        return True
    return weights is not None and not all(map(np.array_equal, weights, layer.get_weights()))
