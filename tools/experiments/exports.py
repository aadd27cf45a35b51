"""Exports pruned models from where they were saved: a Keras file, or the run directory of an experiment."""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from aimp_tf.config import kept_defaults, upgrade
from aimp_tf.config.texts import list_differences
from aimp_tf.exporting import Artefact
from aimp_tf.exporting.saved_model import weight_arrays
from aimp_tf.runs.recorded_run import final_weights, read_run
from experiments.experiment import Experiment
from experiments.run import untrained_model


def load_keras_file(path: str | os.PathLike[str]) -> Any:
    """The model in a `.keras` file of either generation, not compiled.

    Raises:
        ValueError: There is none, or it needs code that is not here.
        OSError: It cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            version = str(json.loads(archive.read("metadata.json"))["keras_version"])
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a .keras file: {error}.") from error
    keras = importlib.import_module("tf_keras" if version.startswith("2.") else "keras")
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras' own are of all kinds.
        raise ValueError(f"{path} cannot be loaded, for it may need code that is not here: {error}") from error


def load_inputs(path: str | os.PathLike[str]) -> Any:
    """The array in an npy file, or the dict of arrays in an npz file. Raises ValueError or OSError."""
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is neither npy nor npz with arrays of numbers: {error}") from error


def load_run(experiment: Experiment, workdir: str | os.PathLike[str]) -> Any:
    """The pruned model of a finished run of an experiment, not compiled.

    Raises:
        ValueError: The run is of another config, is not finished, or is damaged.
        RuntimeError: It cannot be read.
    """
    stored = read_run(workdir).config
    pruning = experiment.pruning.replace(**kept_defaults(experiment.pruning, stored))
    here, there = {**json.loads(pruning.to_json()), "seed": experiment.seed}, upgrade(stored)
    del here["mixed_precision"], there["mixed_precision"]  # Of which "auto" has become what prune chose.
    if differing := list_differences(there, here):
        raise ValueError(f"workdir {workdir} holds a run of another config: {'; '.join(differing)}.")
    weights = final_weights(workdir)
    model = untrained_model(experiment)
    try:
        model.load_weights(weights)
    except Exception as error:  # Keras' own are of all kinds.
        raise ValueError(
            f"{weights} does not fit the architecture {experiment.architecture} in {experiment.keras}: {error}"
        ) from error
    return model


def table(model: Any, artefacts: Mapping[str, Artefact]) -> str:
    """What `export` wrote, beside the weights of `model` as they are in memory, zeros and all."""
    dense = sum(array.nbytes for array in weight_arrays(model).values())
    rows = [
        ("", "bytes", "gzip bytes", "smaller", "max difference", "path"),
        ("weights in memory", f"{dense:,}", "", "1.0x", "", ""),
    ]
    for name, artefact in artefacts.items():
        sizes = f"{artefact.bytes:,}", f"{artefact.gzip_bytes:,}", f"{dense / artefact.gzip_bytes:.1f}x"
        rows.append((name, *sizes, f"{artefact.max_difference:.1e}", os.fspath(artefact)))
    lines = [f"{name:18}{''.join(f'{cell:>16}' for cell in cells)}  {path}".rstrip() for name, *cells, path in rows]
    compared = next((artefact for artefact in artefacts.values() if artefact.examples), None)
    if compared is not None:
        made_up = "made-up " if compared.made_up else ""
        lines += ["", f"Differences from the outputs of the model on {compared.examples:,} {made_up}examples."]
    lines.append("Smaller: the weights in memory over the bytes after gzip.")
    return "\n".join(lines)
