"""Using what was exported in a process that knows nothing of aimp_tf or tfmot."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

_PROGRAM = """
import ast, importlib, os, sys
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import numpy as np

job = ast.literal_eval(sys.argv[1])
with np.load("inputs.npz") as arrays:
    inputs = list(arrays.values())


def reader(kind, path):
    '''Gives a function: a part of the inputs -> the outputs, as a list.'''
    if kind == "tflite":
        import tensorflow as tf
        interpreter = tf.lite.Interpreter(path)
        run = by_name(interpreter.get_signature_runner("serving_default"))
        if any(details["shape_signature"][0] != -1 for details in interpreter.get_input_details()):
            return lambda part: one_by_one(run, part)
        return run
    if kind == "onnx":
        import onnxruntime
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda part: session.run(job["output_names"], dict(zip(job["input_names"], part, strict=True)))
    if kind == "coded":
        import aimp_tf, tensorflow as tf
        model = aimp_tf.load_coded(path)
        return lambda part: tf.nest.flatten(model(packed(job["structure"], part), training=False))
    if kind != "saved_model":
        model = importlib.import_module(kind).models.load_model(path, compile=False)
        import tensorflow as tf
        return lambda part: tf.nest.flatten(model(packed(job["structure"], part), training=False))
    import tensorflow as tf
    loaded = tf.saved_model.load(path)
    signature = by_name(loaded.signatures["serving_default"])

    def serve(part):
        served = tf.nest.flatten(loaded.serve(packed(job["structure"], part)))
        if job["input_names"]:
            for one, other in zip(served, signature(part), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        return served

    return serve


def by_name(function):
    def call(part):
        outputs = function(**dict(zip(job["input_names"], part, strict=True)))
        return [outputs[name] for name in job["output_names"]]

    return call


def one_by_one(run, part):
    outputs = [run([array[at:at + 1] for array in part]) for at in range(len(part[0]))]
    return [np.concatenate(output) for output in zip(*outputs)]


def packed(structure, part):
    if isinstance(structure, int):
        return part[structure]
    if isinstance(structure, dict):
        return {key: packed(item, part) for key, item in structure.items()}
    return type(structure)(packed(item, part) for item in structure)


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
