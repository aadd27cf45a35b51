"""Writing a pruned model to disk, in formats that need neither aimp_tf nor tfmot to read."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from aimp_tf.config import nearest
from aimp_tf.exporting.saved_model import write_keras, write_saved_model
from aimp_tf.masked_model import MaskedModel, keras_generation

__all__ = ["export"]

_WRITERS: dict[str, tuple[str, Callable[[Any, pathlib.Path], None]]] = {
    "saved_model": ("saved_model", write_saved_model),
    "keras": ("model.keras", write_keras),
}


def export(
    model: Any, directory: str | os.PathLike[str], formats: Sequence[str] = ("saved_model", "keras")
) -> dict[str, pathlib.Path]:
    """Writes a Keras model into a folder, each format whole or not at all.

    Args:
        model: A built Keras 3 or tf_keras model without masks, such as `PruningResult.model`.
        directory: The folder, made if it is missing.
        formats: "saved_model" writes `saved_model/`, a TensorFlow SavedModel whose endpoint `serve` and signature
            `serving_default` take a batch of any size; "keras" writes `model.keras`, the format of the model's own
            generation.

    Returns:
        Format -> path of what was written.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: It still carries masks, a format is unknown, or something of that name is in the folder already.
            Nothing is written then.
    """
    keras_generation(model)
    if MaskedModel.of(model) is not None:
        raise ValueError("The model carries masks; export what aimp_tf.strip(model) returns.")
    if isinstance(formats, str):
        formats = (formats,)
    for name in formats:
        if name not in _WRITERS:
            raise ValueError(
                f"Unknown format {name!r}; the formats are {', '.join(_WRITERS)}.{nearest(name, _WRITERS)}"
            )
    directory = pathlib.Path(directory)
    targets = {name: directory / _WRITERS[name][0] for name in formats}
    for path in targets.values():
        if path.exists():
            raise ValueError(f"{path} exists already; name another directory or remove it.")
    directory.mkdir(parents=True, exist_ok=True)
    for name, path in targets.items():
        # Beside its place, so that moving it there is one step of the file system.
        unfinished = pathlib.Path(tempfile.mkdtemp(dir=directory, prefix=".unfinished_"))
        try:
            _WRITERS[name][1](model, unfinished / path.name)
            os.replace(unfinished / path.name, path)
        finally:
            shutil.rmtree(unfinished)
    return targets
