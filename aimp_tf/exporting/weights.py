"""The weights of a model alone, as arrays that NumPy reads."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from aimp_tf.files import write_arrays
from aimp_tf.graph.prunable import named_weights


def write_weights(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes a compressed npz without pickles: path, such as "head/dense/kernel" -> array."""
    write_arrays(pathlib.Path(path), weight_arrays(model), compressed=True)


def weight_arrays(model: Any) -> dict[str, np.ndarray]:
    """Path -> value of all weights, moving statistics included; bfloat16, which npz does not know, as float32."""
    arrays = {path: np.asarray(variable.numpy()) for path, variable in named_weights(model).items()}
    return {path: array.astype(np.float32) if array.dtype.kind == "V" else array for path, array in arrays.items()}
