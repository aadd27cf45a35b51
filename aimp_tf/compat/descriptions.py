"""Models as what JSON holds of them, without weights, and made anew from that."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from aimp_tf.compat.models import keras_generation


def described(model: Any) -> dict[str, Any]:
    """What a built model of either generation is made of, as JSON would give it back: no weights, nothing of `compile`.

    Raises:
        TypeError: Something in it is not for JSON, such as a `get_config` that gives arrays.
        Others: What a `get_config` raises.
    """
    generation = keras_generation(model)
    config = dict(importlib.import_module(generation).saving.serialize_keras_object(model))
    config.pop("compile_config", None)
    return {"keras": generation, "model": json.loads(json.dumps(config))}


def made_of(
    description: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], custom_objects: Mapping[str, Any] | None
) -> Any:
    """A model of what `described` gave, its weights fresh, if these are of the shapes that are expected.

    That is looked at before any of them takes memory. Functions that came as bytecode are not made.

    Args:
        description: Of a model; not trusted.
        shapes: Those of its weights, in their order.
        custom_objects: Name -> class or function of one's own, as in Keras.

    Raises:
        ValueError: The weights are of other shapes, or the description is of no model.
        Others: What is raised where a class is missing, or a constructor fails.
    """
    if description.get("keras") not in ("keras", "tf_keras"):
        raise ValueError(f"it is of an unknown generation of Keras, {description.get('keras')!r:.40}")
    saving = importlib.import_module(description["keras"]).saving

    def make() -> Any:
        return saving.deserialize_keras_object(
            copy.deepcopy(description["model"]), custom_objects=dict(custom_objects or {}), safe_mode=True
        )

    with tf.Graph().as_default():
        model = make()
        keras_generation(model)
        found = [tuple(weight.shape) for weight in model.weights]
    if found != list(shapes):
        raise ValueError(f"its model has weights of the shapes {found!r:.200}, and it holds {list(shapes)!r:.200}")
    return make()
