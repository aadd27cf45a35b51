"""What a run that goes on must share with the one that was interrupted, as plain data."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.masked_model import keras_generation, select_prunable


def model_signature(model: Any, include: Sequence[str], exclude: Sequence[str]) -> dict[str, Any]:
    """Of a compiled, built, unmasked model: its weights and what trains them, but for their values."""
    try:
        compiled = {name: value for name, value in model.get_compile_config().items() if name in ("optimizer", "loss")}
    except Exception:  # A loss or a schedule that Keras cannot serialise.
        compiled = {"optimizer": type(model.optimizer).__name__}
    return _plain(
        {
            "keras": keras_generation(model),
            "weights": [f"{np.dtype(value.dtype).name}{list(value.shape)}" for value in model.get_weights()],
            "prunable": list(select_prunable(model, include, exclude)),
            **_nameless(compiled),
        }
    )


def data_signature(train_data: Any, prepared: Any, fit_options: Mapping[str, Any]) -> dict[str, Any]:
    """Of training data: its shapes and dtypes, its length and, of arrays, what is in them.

    Args:
        train_data: As `prune` takes it.
        prepared: What `input_pipeline.prepare` made of it.
        fit_options: As `prune` takes them.
    """
    signature: dict[str, Any] = {"fit_options": dict(fit_options)}
    if isinstance(prepared, tf.data.Dataset):
        signature |= {"batches": int(prepared.cardinality()), "spec": spec_of(prepared)}
    else:
        signature |= {"batches": len(prepared), "spec": spec_of(prepared)}
    if isinstance(train_data, tuple):
        checksum = 0
        for array in tf.nest.flatten(train_data):
            if array is not None:
                checksum = zlib.crc32(np.asarray(array).tobytes(), checksum)
        signature["crc32"] = checksum
    return _plain(signature)


def spec_of(data: Any) -> str:
    """The dtypes and shapes of a dataset's batches, or the type of another kind of data."""
    if not isinstance(data, tf.data.Dataset):
        return f"batches of a {type(data).__name__}"
    parts = tf.nest.map_structure(lambda spec: f"{spec.dtype.name}{list(spec.shape)}", data.element_spec)
    return str(parts).replace("'", "")


def _nameless(value: Any) -> Any:
    """Without the names of objects, which Keras numbers as they are made."""
    if isinstance(value, dict):
        return {key: _nameless(item) for key, item in value.items() if key != "name"}
    return [_nameless(item) for item in value] if isinstance(value, (list, tuple)) else value


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON; objects by the names of their types."""
    return json.loads(
        json.dumps(fields, default=lambda value: value.item() if hasattr(value, "item") else type(value).__qualname__)
    )
