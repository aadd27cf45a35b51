"""How far what was exported is from the model that it was made of, when a process uses it that knows nothing of
aimp_tf or tfmot."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import keras_generation
from aimp_tf.exporting.inputs import arrange, input_specs, make_up
from aimp_tf.exporting.saved_model import infer, output_names, weight_arrays

_BATCH_SIZE = 256

_LENGTHS = (8, 16, 32, 64, 128, 256)
"""To make up inputs of, where an axis is of any length."""

_PROGRAM = """
import ast, importlib, os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import numpy as np

job = ast.literal_eval(sys.argv[1])
with np.load("inputs.npz") as arrays:
    inputs = list(arrays.values())


def reader(kind, path):
    '''Gives a function: a part of the inputs -> the outputs, as a list.'''
    if kind == "onnx":
        import onnxruntime
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda part: session.run(job["output_names"], dict(zip(job["input_names"], part, strict=True)))
    import tensorflow as tf
    if kind == "tflite":
        interpreter = tf.lite.Interpreter(path)
        run = by_name(interpreter.get_signature_runner("serving_default"))
        if any(details["shape_signature"][0] != -1 for details in interpreter.get_input_details()):
            return lambda part: one_by_one(run, part)
        return run
    if kind == "saved_model":
        loaded = tf.saved_model.load(path)
        signature = by_name(loaded.signatures["serving_default"])

        def serve(part):
            served = tf.nest.flatten(loaded.serve(tf.nest.pack_sequence_as(job["structure"], part)))
            if job["input_names"]:
                for one, other in zip(served, signature(part), strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
            return served

        return serve
    if kind == "coded":
        import aimp_tf
        model = aimp_tf.load_coded(path)
    else:
        model = importlib.import_module(kind).models.load_model(path, compile=False)
    return lambda part: tf.nest.flatten(model(tf.nest.pack_sequence_as(job["structure"], part), training=False))


def by_name(function):
    def call(part):
        outputs = function(**dict(zip(job["input_names"], part, strict=True)))
        return [outputs[name] for name in job["output_names"]]

    return call


def one_by_one(run, part):
    outputs = [run([array[at:at + 1] for array in part]) for at in range(len(part[0]))]
    return [np.concatenate(output) for output in zip(*outputs)]


def joined(parts):
    whole = np.concatenate([np.asarray(part) for part in parts])
    return whole.astype("float32") if whole.dtype.kind == "V" else whole


# What aimp_tf reads comes last, for the others must do without it.
for index, (kind, path) in sorted(enumerate(job["artefacts"]), key=lambda each: each[1][0] == "coded"):
    if kind == "weights":
        with np.load(path) as arrays:
            outputs = dict(arrays)
    else:
        read = reader(kind, path)
        # The first part is one example, so that more than one size of a batch is tried.
        starts = [0, *range(1, len(inputs[0]), job["batch_size"])]
        parts = [read([array[start:stop] for array in inputs]) for start, stop in zip(starts, [*starts[1:], None])]
        outputs = {str(i): joined(output) for i, output in enumerate(zip(*parts, strict=True))}
    assert kind == "coded" or not {"aimp_tf", "tensorflow_model_optimization"} & sys.modules.keys()
    np.savez(f"outputs_{index}.npz", **outputs)
"""


def use_in_fresh_process(
    artefacts: Sequence[tuple[str, str | os.PathLike[str]]],
    inputs: Any = (),
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    batch_size: int = 1024,
) -> list[dict[str, np.ndarray]]:
    """What a new Python process gets from files and folders with nothing but TensorFlow, Keras and NumPy, on the CPU;
    from coded files with aimp_tf.

    Args:
        artefacts: Kind and path of each. The kinds are "saved_model", "keras", "tf_keras" (a file of that generation),
            "tflite", "onnx", which takes ONNX Runtime alone, "coded" and "weights".
        inputs: Of the models among them: arrays in the structure of their inputs, (examples, ...) each.
        input_names: The names of these in the signature. Without them, that of a SavedModel is left out.
        output_names: The names of the outputs in the signature, in the order of `tf.nest.flatten`.
        batch_size: Examples a call.

    Returns:
        Of each artefact, name -> array: the weights, or else the outputs, (examples, ...) each, as "0", "1" and so on.

    Raises:
        RuntimeError: The process failed; the artefact and its last lines are in the message.
    """
    leaves = tf.nest.flatten(inputs)
    job = {
        "artefacts": [(kind, os.path.abspath(path)) for kind, path in artefacts],
        "structure": tf.nest.pack_sequence_as(inputs, list(range(len(leaves)))),
        "input_names": list(input_names),
        "output_names": list(output_names),
        "batch_size": batch_size,
    }
    with tempfile.TemporaryDirectory() as folder:
        np.savez(pathlib.Path(folder) / "inputs.npz", *leaves)
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, repr(job)], cwd=folder, capture_output=True, text=True, errors="replace"
        )
        outputs = []
        for index, (_, path) in enumerate(artefacts):
            file = pathlib.Path(folder) / f"outputs_{index}.npz"
            if not file.exists():
                hint = ""
                if os.fspath(path).endswith(".keras"):
                    hint = " Where it needs some, write formats=('saved_model',), or verify=False."
                # From the beginning of a line.
                last = done.stderr[-2000:].partition("\n")[2] if len(done.stderr) > 2000 else done.stderr
                raise RuntimeError(
                    f"{os.path.basename(path)} could not be used in a fresh process, which has no code of yours."
                    f"{hint}\n{last}"
                )
            with np.load(file) as arrays:
                outputs.append(dict(arrays))
        return outputs


def differences(
    model: Any, artefacts: Sequence[tuple[str, str | os.PathLike[str]]], inputs: Any
) -> list[tuple[float, float]]:
    """Uses what a model was exported to in a fresh process, and compares what comes of it with the model's own outputs.

    Both compute on the CPU: a GPU may round to fewer digits.

    Args:
        model: A built model.
        artefacts: Kind, as in `use_in_fresh_process`, and path of each; "keras" stands for both generations.
        inputs: Arrays in the structure of the model's inputs. Not looked at if all the kinds are "weights".

    Returns:
        Of each artefact the maximum absolute difference, and the maximum as a fraction of an output's largest entry.

    Raises:
        RuntimeError: One cannot be used, or gives arrays of other names or shapes.
    """
    generation = keras_generation(model)
    artefacts = [(generation if kind == "keras" else kind, path) for kind, path in artefacts]
    expected: dict[str, np.ndarray] = {}
    told: tuple[Any, ...] = ()
    if any(kind != "weights" for kind, _ in artefacts):
        outputs = _outputs(model, inputs)
        expected = {str(position): output for position, output in enumerate(tf.nest.flatten(outputs))}
        told = inputs, [spec.name for spec in tf.nest.flatten(input_specs(model))], output_names(outputs), _BATCH_SIZE
    found = use_in_fresh_process(artefacts, *told)
    return [
        _compare(weight_arrays(model) if kind == "weights" else expected, arrays, path)
        for (kind, path), arrays in zip(artefacts, found, strict=True)
    ]


def largest_difference(model: Any, other: Any, inputs: Any = None) -> float:
    """The maximum absolute difference of the outputs of two models that take the same inputs, as `export` takes them.

    Without inputs it is that on made-up ones. Raises ValueError as `export`.
    """
    inputs = made_up(model) if inputs is None else arrange(inputs, model)
    outputs = [tf.nest.flatten(_outputs(one, inputs)) for one in (model, other)]
    return max(_difference(*pair) for pair in zip(*outputs, strict=True))


def made_up(model: Any) -> Any:
    """Inputs as of `make_up`, of the first of `_LENGTHS` of which something comes out that can be compared.

    Raises:
        ValueError: As `make_up`, or there is none.
    """
    for length in _LENGTHS:
        inputs = make_up(model, length)
        if all(map(_tells, tf.nest.flatten(_outputs(model, inputs)))):
            return inputs
        if all(None not in spec.shape[1:] for spec in tf.nest.flatten(input_specs(model))):
            break
    raise ValueError(
        f"The model {model.name!r} gives no numbers for inputs that are made up, so that there is nothing to compare: "
        "give inputs, or pass verify=False."
    )


def _tells(output: np.ndarray) -> bool:
    """Whether an output has entries that are not all NaN or infinite."""
    return output.size > 0 and (output.dtype.kind != "f" or bool(np.isfinite(output).any()))


def _outputs(model: Any, inputs: Any) -> Any:
    count = len(tf.nest.flatten(inputs)[0])
    with tf.device("/CPU:0"):
        parts = [
            infer(model, tf.nest.map_structure(lambda array, at=start: array[at : at + _BATCH_SIZE], inputs))
            for start in range(0, count, _BATCH_SIZE)
        ]
    return tf.nest.map_structure(lambda *outputs: np.concatenate(outputs), *parts)


def _compare(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], path: str | os.PathLike[str]
) -> tuple[float, float]:
    shapes = [{name: array.shape for name, array in arrays.items()} for arrays in (expected, found)]
    if shapes[0] != shapes[1]:
        raise RuntimeError(f"{path} gives {shapes[1]} in a fresh process; expected {shapes[0]}.")
    largest_difference = largest_fraction = 0.0
    for name, wanted in expected.items():
        difference = _difference(wanted, found[name])
        largest = float(np.max(np.abs(wanted), initial=0, where=np.isfinite(wanted)))
        largest_difference = max(largest_difference, difference)
        largest_fraction = max(largest_fraction, difference / (largest or 1.0))
    return largest_difference, largest_fraction


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest; that of NaN or infinity to anything but the same is infinite."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(one - other)
    difference[(one == other) | (np.isnan(one) & np.isnan(other))] = 0
    return float(np.max(np.where(np.isnan(difference), np.inf, difference), initial=0))
