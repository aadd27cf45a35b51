"""TFLite files, which LiteRT runs on phones and other small machines."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.exporting.inputs import arrange, input_specs
from aimp_tf.exporting.saved_model import write_saved_model
from aimp_tf.masked_model import computing_in_float32

logger = logging.getLogger(__name__)

_CALIBRATION_EXAMPLES = 256


def to_tflite(model: Any, *, sparse: bool = False, representative_inputs: Any = None) -> bytes:
    """The inference of a built model as the content of a TFLite file, which computes in float32 or int8.

    Inputs and outputs are those of the model's SavedModel, by the same names in the signature `serving_default`, in
    float32 also where int8 is what lies between. The batch is of any size: `resize_tensor_input` sets it.

    Args:
        model: A built Keras 3 or tf_keras model. One that computes in half precision is converted as if in float32.
        sparse: Stores the kernels that are sparse enough as their nonzero entries. LiteRT expands them as it loads the
            file, but for 1x4 blocks in Dense layers, which it also multiplies faster.
        representative_inputs: Inputs as `export` takes them. If given, weights and activations become int8, scaled to
            what the model makes of up to 256 of these examples.

    Raises:
        ValueError: The model cannot be converted, `representative_inputs` are not inputs of it, or `sparse` and
            `representative_inputs` are both given.
    """
    if sparse and representative_inputs is not None:
        raise ValueError("sparse=True gives float32; leave representative_inputs out, or sparse.")
    specs = tf.nest.flatten(input_specs(model))
    with tempfile.TemporaryDirectory() as folder, computing_in_float32(model):
        write_saved_model(model, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if sparse:
            # With Optimize.DEFAULT as well, the interpreter refuses the file.
            converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
        if representative_inputs is not None:
            arrays = tf.nest.flatten(arrange(representative_inputs, model))
            chosen = np.unique(np.linspace(0, len(arrays[0]) - 1, _CALIBRATION_EXAMPLES).astype(int))
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: (
                {spec.name: array[index : index + 1] for spec, array in zip(specs, arrays, strict=True)}
                for index in chosen
            )
        try:
            with _quiet():
                return converter.convert()
        except Exception as error:
            kind = "int8 TFLite" if representative_inputs is not None else "TFLite"
            raise ValueError(f"The model {model.name!r} cannot be converted to {kind}: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Sends what is printed within it, by C++ code too, to the log at level DEBUG."""
    text = io.StringIO()
    with contextlib.ExitStack() as stack:
        printed = stack.enter_context(tempfile.TemporaryFile())
        stack.callback(lambda: logger.debug("%s", text.getvalue() + _content(printed)))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(text))
        stack.enter_context(contextlib.redirect_stderr(text))
        for descriptor in (1, 2):
            before = os.dup(descriptor)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, descriptor)
            os.dup2(printed.fileno(), descriptor)
        yield


def _content(file: Any) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
