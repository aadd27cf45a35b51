"""TFLite files, which LiteRT runs on phones and other small machines."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.mixed_precision import computing_in_float32
from aimp_tf.exporting.inputs import arrange, input_specs
from aimp_tf.exporting.saved_model import explaining, write_saved_model

logger = logging.getLogger(__name__)

_CALIBRATION_EXAMPLES = 256


def to_tflite(
    model: Any, *, sparse: bool = False, weights: str = "float32", representative_inputs: Any = None
) -> bytes:
    """The inference of a built model as the content of a TFLite file, which computes in float32 or int8.

    Inputs and outputs are those of the model's SavedModel, by the same names in the signature `serving_default`, in
    float32 also where int8 is what lies between. The batch is of any size, which `resize_tensor_input` sets, but for
    models that can be converted for a batch of one alone, such as those with recurrent layers; these not in int8.

    Args:
        model: A built Keras 3 or tf_keras model. One that computes in half precision is converted as if in float32.
        sparse: Stores the kernels that are sparse enough as their nonzero entries, which makes the file small. LiteRT
            expands most of them as it loads it, but multiplies Dense layers in 1x4 blocks, or very sparse ones, faster.
        weights: What the weights are stored as: "float32"; "float16", from which LiteRT makes float32 as it loads them;
            or "int8", scaled by output or by kernel, which it multiplies with inputs that it makes int8 in each call
            (dynamic range).
        representative_inputs: Inputs as `export` takes them. If given, weights and activations become int8, scaled to
            what the model makes of up to 256 of these examples. In all forms zeros stay exactly zero.

    Raises:
        ValueError: The model cannot be converted, `representative_inputs` are not inputs of it, `weights` is none of
            those above, or more than one of `sparse`, `weights` and `representative_inputs` is given.
    """
    if weights not in _WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(_WEIGHTS)}; got {weights!r}.")
    if sparse + (weights != "float32") + (representative_inputs is not None) > 1:
        raise ValueError(
            "Only one of sparse, weights and representative_inputs can be given: each is a form of its own."
        )
    examples = None
    if representative_inputs is not None:
        examples = _calibration_examples(model, arrange(representative_inputs, model))
    with computing_in_float32(model):
        try:
            return _convert(model, None, sparse, weights, examples)
        except ValueError:
            if examples is not None:  # TensorFlow's calibration of a recurrent layer ends the process.
                raise
            return _convert(model, 1, sparse, weights, None)


_WEIGHTS = ("float32", "float16", "int8")


def _convert(
    model: Any, batch_size: int | None, sparse: bool, weights: str, examples: list[dict[str, np.ndarray]] | None
) -> bytes:
    kind = "TFLite" if examples is None else "int8 TFLite"
    with tempfile.TemporaryDirectory() as folder:
        write_saved_model(model, folder, batch_size)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if sparse:
            # With Optimize.DEFAULT as well, the interpreter refuses the file.
            converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]
        if examples is not None or weights != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if weights == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if examples is not None:
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.representative_dataset = lambda: examples
        with explaining(f"The model {model.name!r} cannot be converted to {kind}", "Export another format."), quiet():
            return converter.convert()


def _calibration_examples(model: Any, inputs: Any) -> list[dict[str, np.ndarray]]:
    """Some of the inputs, spread over all of them, each as a batch of one by the names in the signature."""
    specs, arrays = tf.nest.flatten(input_specs(model)), tf.nest.flatten(inputs)
    chosen = np.unique(np.linspace(0, len(arrays[0]) - 1, _CALIBRATION_EXAMPLES).astype(int))
    return [{spec.name: array[at : at + 1] for spec, array in zip(specs, arrays, strict=True)} for at in chosen]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Sends what is printed within it, by C++ code too, to the log at level DEBUG."""
    with contextlib.ExitStack() as stack:
        printed = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        stack.callback(_log_content, printed)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(printed))
        stack.enter_context(contextlib.redirect_stderr(printed))
        for descriptor in (1, 2):
            before = os.dup(descriptor)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, descriptor)
            os.dup2(printed.fileno(), descriptor)
        yield


def _log_content(file: IO[str]) -> None:
    file.seek(0)
    logger.debug("%s", file.read())
