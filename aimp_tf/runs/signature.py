"""What a run that goes on must share with the one that was interrupted, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import keras_generation, layers_of
from aimp_tf.files import checksum_of_arrays
from aimp_tf.masking import select_prunable
from aimp_tf.training.input_pipeline import batch_count, spec_of


def model_signature(model: Any, include: Sequence[str], exclude: Sequence[str]) -> dict[str, Any]:
    """Of a compiled, built, unmasked model: its layers, its weights but for their values, and what trains them."""
    try:
        settings = model.get_compile_config()
        compiled = {name: settings.get(name) for name in ("optimizer", "loss", "loss_weights")}
        if isinstance(compiled["optimizer"], str):  # As tf_keras was given it, whatever has been set since.
            compiled["optimizer"] = {
                "class_name": type(model.optimizer).__name__,
                "config": model.optimizer.get_config(),
            }
    except Exception:  # A loss or a schedule that Keras cannot serialise.
        compiled = {"optimizer": type(model.optimizer).__name__}
    return _plain(
        {
            "keras": keras_generation(model),
            # Not by name, for Keras numbers layers as they are made.
            "layers": [_layer_signature(layer) for layer in layers_of(model) if not hasattr(layer, "layers")],
            # Not their values, for which tf_keras would ask all workers.
            "weights": [_array_signature(variable) for variable in model.weights if hasattr(variable, "assign")],
            "trainable": [list(variable.shape) for variable in model.trainable_variables],
            "prunable": [_array_signature(value) for value in select_prunable(model, include, exclude).values()],
            **compiled,
        }
    )


def data_signature(data: Any, prepared: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Of training or validation data: its shapes and dtypes, its length and, of arrays, what is in them.

    Args:
        data: A tuple of arrays, or batches.
        prepared: What `input_pipeline.prepare` made of it.
        options: The arguments of `fit` that it is read with.
    """
    signature = {"fit_options": options, "batches": batch_count(prepared), "spec": spec_of(prepared)}
    if isinstance(data, tuple):
        signature["crc32"] = checksum_of_arrays(_values(part) for part in tf.nest.flatten(data) if part is not None)
    return _plain(signature)


def _values(part: Any) -> np.ndarray:
    array = np.asarray(part)
    # Of texts, an array holds addresses.
    return np.frombuffer(repr(array.tolist()).encode(), np.uint8) if array.dtype.hasobject else array


def _layer_signature(layer: Any) -> dict[str, Any]:
    try:
        config = layer.get_config()
    except Exception:  # A layer of the user's that says nothing of itself.
        config = None
    return {
        "class": type(layer).__qualname__,
        "compute_dtype": str(getattr(layer, "compute_dtype", None)),
        "config": config,
    }


def _array_signature(array: Any) -> str:
    """Of an array or a variable of either generation of Keras."""
    return f"{getattr(array.dtype, 'name', array.dtype)}{list(array.shape)}"


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON; objects by the names of their types."""
    return json.loads(
        json.dumps(
            _nameless(fields),
            default=lambda value: value.item() if hasattr(value, "item") else type(value).__qualname__,
        )
    )


def _nameless(value: Any) -> Any:
    """Keys as texts, and without the names of objects, which Keras numbers as they are made."""
    if isinstance(value, Mapping):
        return {str(key): _nameless(item) for key, item in value.items() if key not in ("name", "shared_object_id")}
    return [_nameless(item) for item in value] if isinstance(value, (list, tuple)) else value
