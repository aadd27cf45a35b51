"""ONNX files, which ONNX Runtime and many others run."""

from __future__ import annotations

import importlib
import os
from typing import Any

from aimp_tf.compat.mixed_precision import computing_in_float32
from aimp_tf.exporting.lite import quiet
from aimp_tf.exporting.saved_model import explaining
from aimp_tf.exporting.serving import ServingModule
from aimp_tf.extras import imported

_OPSET = 17


def write_onnx(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes the inference of a built model as an ONNX file of opset 17.

    Inputs and outputs are those of the model's SavedModel, by the same names and with a batch of any size. A model of a
    mixed policy is converted as if it computed in float32.

    Args:
        model: A built Keras 3 or tf_keras model.
        path: The file to write.

    Raises:
        ImportError: The extra "onnx" is not installed.
        ValueError: The model has operations that tf2onnx does not convert.
        OSError: Writing failed.
    """
    convert = imported("onnx", "tf2onnx.convert", "onnx", "onnxruntime")
    onnx = importlib.import_module("onnx")
    what = f"The model {model.name!r} cannot be converted to ONNX"
    with computing_in_float32(model), explaining(what, "Export another format."), quiet():
        module = ServingModule(model)
        found, _ = convert.from_function(
            module.serving_default, input_signature=module.serving_default.input_signature, opset=_OPSET
        )
        onnx.checker.check_model(found)
    onnx.save(found, os.fspath(path))
