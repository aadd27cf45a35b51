"""TensorFlow SavedModels and Keras' own file format."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from aimp_tf.exporting.serving import ServingModule

_LONGEST = 600


def write_saved_model(model: Any, path: str | os.PathLike[str], batch_size: int | None = None) -> None:
    """Writes a SavedModel with the endpoint `serve` and the signature `serving_default`.

    Args:
        model: A built model.
        path: The folder to make.
        batch_size: The one batch that it takes. None is any.

    Raises:
        ValueError: As `serving.ServingModule`, or TensorFlow cannot trace or save what the model does.
        OSError: Writing failed.
    """
    with explaining(f"The model {model.name!r} cannot be written as a SavedModel", "Its `call` must be a graph's."):
        module = ServingModule(model, batch_size)
        tf.saved_model.save(module, os.fspath(path), signatures={"serving_default": module.serving_default})


def write_keras(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes a `.keras` file of the model's own generation, with what it is compiled with, but not the optimizer's
    slots, which may take twice the room of the weights.

    Raises:
        ValueError: A layer cannot be serialised.
        OSError: Writing failed.
    """
    with explaining(
        f"The model {model.name!r} cannot be written as a Keras file",
        "Give layers and models of your own a get_config(), or export a SavedModel, which needs none.",
    ):
        with _without_optimizer(model):
            model.save(os.fspath(path))


@contextlib.contextmanager
def explaining(what: str, advice: str) -> Iterator[None]:
    """Around what Keras or TensorFlow may refuse to do, with errors of all kinds. Raises ValueError then."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        text = str(error)
        raise ValueError(
            f"{what}. {advice} The error was: {text[:_LONGEST]}{'...' * (len(text) > _LONGEST)}"
        ) from error


@contextlib.contextmanager
def _without_optimizer(model: Any) -> Iterator[None]:
    # Past the __setattr__ of Keras, which would track it.
    attributes = vars(model)
    optimizer = attributes.pop("optimizer", None)
    try:
        yield
    finally:
        if optimizer is not None:
            attributes["optimizer"] = optimizer
