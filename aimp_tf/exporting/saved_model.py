"""TensorFlow SavedModels and Keras' own file format."""

from __future__ import annotations

import contextlib
import io
import pathlib
from typing import Any

from aimp_tf.masked_model import keras_generation


def write_saved_model(model: Any, path: pathlib.Path) -> None:
    """Writes a SavedModel with the endpoint `serve`, as Keras' `export` does, without its printed report."""
    if keras_generation(model) == "keras":
        model.export(str(path), verbose=False)
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            model.export(str(path))


def write_keras(model: Any, path: pathlib.Path) -> None:
    """Writes a `.keras` file of the model's own generation."""
    model.save(str(path))
