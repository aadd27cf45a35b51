"""ONNX files, which ONNX Runtime and many others run."""

from __future__ import annotations

import importlib
import os
from typing import Any

import numpy as np

from aimp_tf.compat.mixed_precision import computing_in_float32
from aimp_tf.exporting.lite import quiet
from aimp_tf.exporting.saved_model import ServingModule, explaining
from aimp_tf.extras import imported

_OPSET = 17


def write_onnx(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes the inference of a built model as an ONNX file of opset 17.

    Inputs and outputs are those of the model's SavedModel, by the same names and with a batch of any size. A model of a
    mixed policy is converted as if it computed in float32.

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
        serve = module.serving_default
        found, _ = convert.from_function(
            serve, serve.input_signature, opset=_OPSET, custom_op_handlers={"Erfc": (_as_erf, [])}
        )
        onnx.checker.check_model(found)
    onnx.save(found, os.fspath(path))


def _as_erf(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """Puts 1 - Erf in the place of Erfc, of which Keras makes the exact GELU and which ONNX does not have."""
    (given,), outputs, (shape,), (dtype,) = node.input, node.output, node.output_shapes, node.output_dtypes
    kind = importlib.import_module("onnx").helper.tensor_dtype_to_np_dtype(dtype)
    one = graph.make_const(f"{name}_one", np.array(1, kind)).output[0]
    graph.remove_node(node.name)
    erf = graph.make_node("Erf", [given], name=f"{name}_erf", shapes=[shape], dtypes=[dtype]).output[0]
    graph.make_node("Sub", [one, erf], outputs=outputs, name=name, shapes=[shape], dtypes=[dtype])
