"""tfmot, imported when it is needed."""

from __future__ import annotations

import importlib
import os
from typing import Any

import tensorflow as tf

_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"


def import_with_tfmot(name: str) -> Any:
    """Imports a module that needs tfmot without the side effect of that: it sets TF_USE_LEGACY_KERAS, and so turns a
    `tf.keras` that nobody has used yet into Keras 2 for the rest of the process."""
    before = os.environ.get(_LEGACY_KERAS)
    _ = tf.keras.layers  # Settles tf.keras as the environment says now.
    try:
        return importlib.import_module(name)
    finally:
        if before is None:
            os.environ.pop(_LEGACY_KERAS, None)
        else:
            os.environ[_LEGACY_KERAS] = before
