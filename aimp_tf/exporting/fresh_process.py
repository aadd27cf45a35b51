"""Using what was exported in a process that knows nothing of aimp_tf or tfmot."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

_PROGRAM = """
import sys
import numpy as np
import tensorflow as tf

folder, inputs, outputs, batch_size = sys.argv[1:]
model = tf.saved_model.load(folder)
inputs, batch_size = np.load(inputs), int(batch_size)
batches = [model.serve(inputs[start:start + batch_size]).numpy() for start in range(0, len(inputs), batch_size)]
assert not {"aimp_tf", "tensorflow_model_optimization"} & sys.modules.keys()
np.save(outputs, np.concatenate(batches))
"""


def predict_in_fresh_process(
    saved_model: str | os.PathLike[str], inputs: np.ndarray, batch_size: int = 1024
) -> np.ndarray:
    """Outputs of a SavedModel's `serve` endpoint, computed by a new Python process with TensorFlow alone.

    Args:
        saved_model: The SavedModel's folder.
        inputs: The one input of the model, (examples, ...).
        batch_size: Examples a call.

    Returns:
        The one output of the model, (examples, ...).

    Raises:
        RuntimeError: The process failed; its last lines are in the message.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs_file, outputs_file = pathlib.Path(folder) / "inputs.npy", pathlib.Path(folder) / "outputs.npy"
        np.save(inputs_file, inputs)
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, os.path.abspath(saved_model), inputs_file, outputs_file, str(batch_size)],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{saved_model} could not be used in a fresh process:\n{done.stderr[-2000:]}")
        return np.load(outputs_file)
