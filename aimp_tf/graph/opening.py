"""Layers and models that are made of others, as the functional models that they amount to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.functional import declared_inputs, functional_within, structures_of
from aimp_tf.compat.models import children, flattened, is_keras_own, keras_of
from aimp_tf.compat.tracing import holds_weights_itself, replaced, seen, traced
from aimp_tf.compat.variables import bare

_log = logging.getLogger(__name__)

_EXAMPLES, _OPEN = 3, 3
"""Sizes to try with: of the axis of examples, and of others that are open."""


def opened(
    layer: Any, keras: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], flowing: Any
) -> tuple[Any, Sequence[Any]] | None:
    """The functional model that a call of a layer amounts to, and what goes into it; None where there is none, as for
    all but nested models and layers that are not Keras' own and made of others.

    What stands in a tensor's place among its arguments is of the type `flowing`, and has a shape and a dtype.
    """
    leaves = [leaf for leaf in flattened((args, dict(kwargs)), keras) if isinstance(leaf, flowing)]
    if isinstance(layer, keras.Model) and (nested := functional_within(layer, keras)) is not None:
        fits = not any(value for value in tf.nest.flatten(dict(kwargs))) and len(args) == 1
        if not fits or not _is_alike(args[0], structures_of(nested)[0], len(leaves)):
            return None
        given, declared = ([tuple(each.shape) for each in some] for some in (leaves, nested.inputs))
        return (nested if given == declared else _of_shapes_given(nested, args[0], keras)), leaves
    if not isinstance(layer, keras.layers.Layer) or is_keras_own(type(layer)) or not layer.built:
        return None
    if not leaves or not children(layer) or holds_weights_itself(layer):
        return None
    functional = _traced(layer, *_symbolic(leaves, args, kwargs, keras), keras)
    if functional is None:
        _log.debug("The layer %s is left as it is: its call cannot be traced.", layer.name)
        return None
    return functional, list({id(leaf): leaf for leaf in leaves}.values())


def look_into(layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], flowing: Any) -> Any | None:
    """A functional model that tells what a call of a layer computes, but cannot take its place: the layer may hold
    weights itself, and the number of examples be fixed. None where that cannot be seen; arguments as of `opened`."""
    leaves = [leaf for leaf in tf.nest.flatten((args, dict(kwargs))) if isinstance(leaf, flowing)]
    keras = keras_of(layer)
    if not leaves or not isinstance(layer, keras.layers.Layer):
        return None
    return seen(layer, *_symbolic(leaves, args, kwargs, keras), keras)


def _symbolic(
    leaves: Sequence[Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], keras: Any
) -> tuple[tuple[Any, ...], dict[str, Any], list[Any]]:
    """What a layer is called with, Keras tensors in place of what flows, and these."""
    made = {id(leaf): keras.Input(leaf.shape[1:], leaf.shape[0], dtype=leaf.dtype) for leaf in leaves}
    return *replaced((args, dict(kwargs)), made), list(made.values())


def opened_model(model: Any, keras: Any) -> Any | None:
    """The functional model that a subclassed model amounts to; None where its call cannot be traced."""
    if holds_weights_itself(model):
        return None
    try:
        declared = declared_inputs(model)
    except ValueError:
        return None
    inputs = tf.nest.map_structure(
        lambda spec: keras.Input(tuple(spec.shape)[1:], dtype=tf.as_dtype(spec.dtype).name), declared
    )
    return _traced(model, (inputs,), {}, inputs, keras)


def _traced(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Any, keras: Any) -> Any | None:
    """As `traced`, if it computes the same."""
    functional = traced(layer, args, kwargs, inputs, keras)
    same = functional is not None and _computes_the_same(functional, layer, args, kwargs, tf.nest.flatten(inputs))
    return functional if same else None


def _of_shapes_given(nested: Any, given: Any, keras: Any) -> Any:
    """A nested model that knows the sizes that it is called with, which layers within it may ask for."""
    inputs = tf.nest.map_structure(lambda leaf: keras.Input(leaf.shape[1:], leaf.shape[0], dtype=leaf.dtype), given)
    return traced(nested, (inputs,), {}, flattened(inputs, keras), keras) or nested


def _is_alike(given: Any, declared: Any, count: int) -> bool:
    flat = tf.nest.flatten(declared)
    return isinstance(given, dict) == isinstance(declared, dict) and len(flat) == len(tf.nest.flatten(given)) == count


def _computes_the_same(
    functional: Any, layer: Any, args: Any, kwargs: Mapping[str, Any], leaves: Sequence[Any]
) -> bool:
    """Whether both give the same for numbers that are made up, and would with other weights: so do their gradients.

    What was computed from weights while the call was traced has none.
    """
    generator = np.random.default_rng(0)
    values = {}
    for leaf in leaves:
        shape = (_EXAMPLES, *(_OPEN if size is None else size for size in tuple(leaf.shape)[1:]))
        dtype = tf.as_dtype(leaf.dtype)
        numbers = generator.normal(size=shape) if dtype.is_floating else generator.integers(0, 2, shape)
        values[id(leaf)] = tf.cast(numbers, dtype)
    given, named = replaced((args, kwargs), values)
    flat = tf.nest.pack_sequence_as(functional.input, [values[id(leaf)] for leaf in leaves])
    weights = [bare(weight) for weight in layer.weights if tf.as_dtype(weight.dtype).is_floating]
    try:
        expected, found = (
            _with_gradients(call, weights) for call in (lambda: layer(*given, **named), lambda: functional(flat))
        )
    except Exception as error:  # Whatever code of the user's raises.
        _log.debug("%s could not be tried: %s", layer.name, error)
        return False
    return len(expected) == len(found) and all(
        here.shape == there.shape and np.allclose(here, there, rtol=1e-3, atol=1e-4 * np.abs(here).max(initial=1))
        for here, there in zip(expected, found, strict=True)
    )


def _with_gradients(call: Callable[[], Any], weights: Sequence[Any]) -> list[np.ndarray]:
    """What a call gives, and the gradients of the sum of its squares by these weights."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(weights)
        outputs = [tf.cast(output, tf.float32) for output in tf.nest.flatten(call())]
        total = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
    gradients = tape.gradient(total, weights, unconnected_gradients="zero")
    return [np.asarray(tf.cast(tf.convert_to_tensor(each), tf.float32)) for each in (*outputs, *gradients)]
