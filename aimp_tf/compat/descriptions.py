"""Models as what JSON holds of them, without weights, and made anew from that."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from aimp_tf.compat.models import keras_generation, layers_of

_BYTECODE = ('"__lambda__"', '"function_type": "lambda"')
"""What a config has in it where it holds bytecode, in Keras 3 and in tf_keras."""
_SPARE = 2**20
"""So many numbers a model may hold beside its weights, such as the states of its random numbers."""


def described(model: Any) -> dict[str, Any]:
    """What a built model of either generation is made of, as JSON would give it back: no weights, nothing of `compile`.

    Raises:
        TypeError: Something in it is not for JSON, such as a `get_config` that gives arrays.
        ValueError: It has functions that would be bytecode, or vocabularies, which are no weights.
        Others: What a `get_config` raises.
    """
    generation = keras_generation(model)
    config = dict(importlib.import_module(generation).saving.serialize_keras_object(model))
    config.pop("compile_config", None)
    text = json.dumps(config)
    if any(mark in text for mark in _BYTECODE):
        raise ValueError("A function that was made by lambda, as in a Lambda layer, would be code.")
    if looked_up := [layer.name for layer in layers_of(model) if hasattr(layer, "get_vocabulary")]:
        raise ValueError(f"The vocabularies of {', '.join(looked_up)} would not be in it.")
    return {"keras": generation, "model": json.loads(text)}


def made_of(description: Mapping[str, Any], entries: int, custom_objects: Mapping[str, Any] | None) -> Any:
    """A model of what `described` gave, its weights fresh. No code is run but that of Keras and of modules that are
    imported already.

    Args:
        description: Of a model; not trusted.
        entries: How many weights it may have; one that would have many more is not made.
        custom_objects: Name -> class or function of one's own, as in Keras.

    Raises:
        ValueError: The description is of no model, of a larger one, or names modules that are not imported.
        Others: What is raised where a class is missing, or a constructor fails.
    """
    if description.get("keras") not in ("keras", "tf_keras"):
        raise ValueError(f"it is of an unknown generation of Keras, {description.get('keras')!r:.40}")
    saving = importlib.import_module(description["keras"]).saving
    config = json.loads(json.dumps(description["model"]))  # A copy, for Keras changes it.
    _check_modules(config)
    with _no_more_than(entries + _SPARE):
        model = saving.deserialize_keras_object(config, custom_objects=dict(custom_objects or {}), safe_mode=True)
    keras_generation(model)
    return model


def _check_modules(config: Any) -> None:
    """Raises ValueError where anything names a module that reading it would import."""
    if isinstance(config, dict):
        name = config.get("module")
        if isinstance(name, str) and name not in sys.modules and name.split(".")[0] not in ("keras", "tf_keras"):
            raise ValueError(f"it names the module {name!r:.80}, which is not imported")
    for item in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        _check_modules(item)


@contextlib.contextmanager
def _no_more_than(entries: int) -> Iterator[None]:
    """Within it, variables of more entries than these, all together, are not made: ValueError is raised before."""
    left = entries

    def create(next_creator: Any, **settings: Any) -> Any:
        nonlocal left
        left -= _size_of(settings)
        if left < 0:
            raise ValueError(f"its architecture has more weights than the {entries - _SPARE:,} that it holds")
        return next_creator(**settings)

    with tf.variable_creator_scope(create):
        yield


def _size_of(settings: Mapping[str, Any]) -> int:
    """How many entries a variable gets; 0 where that is open."""
    shape, value = settings.get("shape"), settings.get("initial_value")
    if shape is None and callable(value):  # Traced, so that nothing is computed.
        shape = tf.function(value).get_concrete_function().structured_outputs.shape
    shape = tf.TensorShape(getattr(value, "shape", None) if shape is None else shape)
    return math.prod(shape.as_list()) if shape.is_fully_defined() else 0
