"""TensorFlow SavedModels and Keras' own file format."""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

from aimp_tf.exporting.serving import ServingModule


def write_saved_model(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes a SavedModel with the endpoint `serve` and the signature `serving_default`.

    Raises:
        ValueError: As `serving.ServingModule`.
    """
    module = ServingModule(model)
    tf.saved_model.save(module, os.fspath(path), signatures={"serving_default": module.serving_default})


def write_keras(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes a `.keras` file of the model's own generation."""
    model.save(os.fspath(path))
