"""What a run that goes on must share with the one in its folder, whether it does, and what it is trained with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import pathlib
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import is_keras_own, keras_generation, layers_of
from aimp_tf.config import PruningConfig, kept_defaults, upgrade
from aimp_tf.config.texts import list_differences
from aimp_tf.files import checksum_of_arrays
from aimp_tf.masking import select_prunable
from aimp_tf.runs.recorded_run import read_beginning
from aimp_tf.training.input_pipeline import batch_count, spec_of

logger = logging.getLogger(__name__)

_PACKAGES = ("aimp_tf", "tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")
_ELSEWHERE = "Name another folder, or pass overwrite=True to begin anew in this one."
_TOLD = 6
"""How many of the differences between two runs an error tells."""
_CHECKSUMS = {
    "data.crc32": "the values of its training data were others",
    "validation_data.crc32": "the values of its validation data were others",
    "teacher": "it learned from another teacher, or another one's weights",
    "masks": "it began with other masks",
    "trained_weights": "it began with other weights than the model has (start='trained': load that model anew)",
}


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
    if type(layer).__name__ == "RandomCrop" and is_keras_own(type(layer)) and config:
        config = {**config, "seed": None}  # It tells one that it has drawn as if it had been given.
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


def describe_environment() -> dict[str, Any]:
    """The command, versions and devices of this process."""
    return {
        "command": list(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": [
            tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
            for device in tf.config.list_physical_devices()
        ],
    }


def _version(name: str) -> str | None:
    """Of a package; None where it is not installed by that name, as of tensorflow-cpu."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def kept_by(path: pathlib.Path, config: PruningConfig) -> dict[str, Any]:
    """The fields that a run in a folder goes on with rather than those of a config: defaults of an older version."""
    with _trusting(path):
        _, stored, _ = read_beginning(path)
        kept = kept_defaults(config, stored)
    if kept:
        logger.info(
            "The run in %s was begun by an older version and goes on with its defaults: %s.",
            path,
            ", ".join(f"{name}={value!r}" for name, value in kept.items()),
        )
    return kept


def check_same(path: pathlib.Path, config: PruningConfig, signature: Mapping[str, Any]) -> None:
    """Raises ValueError unless the run in a folder is the one that goes on there; warns of other versions and devices.

    Args:
        path: The folder, with the signature of a run.
        config: What the run goes on with.
        signature: What that assumes of the model and the data: nested dicts as they come from JSON.
    """
    with _trusting(path):
        there, stored, environment = read_beginning(path)
        there["config"] = upgrade(stored)
    here = {"config": json.loads(config.to_json()), **signature}
    # What earlier versions did not write down.
    if "trained_weights" not in there:
        here.pop("trained_weights", None)
    optimizers = [side.get("model", {}).get("optimizer") for side in (there, here)]
    if list(map(type, optimizers)) == [str, dict]:
        here["model"] = {**here["model"], "optimizer": optimizers[0]}
    if differing := [_in_words(text) for text in list_differences(there, here)]:
        more = f"; and {len(differing) - _TOLD} more" if len(differing) > _TOLD else ""
        raise ValueError(f"workdir {path} holds another run: {'; '.join(differing[:_TOLD])}{more}. {_ELSEWHERE}")
    now = describe_environment()
    for name in ("python", "versions", "devices"):
        if environment.get(name) != now[name]:
            logger.warning(
                "The run in %s was begun with %s %s and goes on with %s: it may end with other numbers.",
                path,
                name,
                environment.get(name),
                now[name],
            )


@contextlib.contextmanager
def _trusting(path: pathlib.Path) -> Iterator[None]:
    """Around reading what the run in a folder says of itself. Raises ValueError where that cannot be trusted."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"workdir {path} holds a run that cannot be trusted: {error}. {_ELSEWHERE}") from error


def _in_words(difference: str) -> str:
    """A line of `list_differences`, where it is of checksums on both sides, as what that means."""
    name, _, values = difference.partition(":")
    return difference if "'nothing'" in values else _CHECKSUMS.get(name, difference)
