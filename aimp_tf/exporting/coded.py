"""The format "coded": a model as one file in which survivors take what their entropy says, and zeros nothing."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from aimp_tf.coding.container import pack, unpack
from aimp_tf.coding.tensors import Part
from aimp_tf.compat.descriptions import described, made_of
from aimp_tf.compat.models import finalize, layers_of
from aimp_tf.config.texts import aligned
from aimp_tf.exporting.saved_model import GIVE_CONFIGS, explaining
from aimp_tf.files import DamagedFileError
from aimp_tf.graph.prunable import named_weights


@dataclasses.dataclass(frozen=True)
class CodedReport:
    """What a file of the format "coded" takes.

    Attributes:
        parts: Path of each weight -> what it takes.
        architecture_bytes: What the architecture takes, compressed.
        bytes: The whole file.
        dense_bytes: What the weights take in their own dtypes.
    """

    parts: Mapping[str, Part]
    architecture_bytes: int
    bytes: int
    dense_bytes: int

    def table(self) -> str:
        """A line for each weight that is coded: what a survivor costs in bits, and the least that it could."""
        rows = [["weight", "survivors", "values", "positions", "bits each", "entropy", "of it positions", "bytes"]]
        coded = {path: part for path, part in self.parts.items() if part.kind != "whole"}
        for path, part in coded.items():
            each = [8 * part.stream_bytes, part.entropy_bits, part.position_bits]
            numbers = [f"{bits / max(1, part.survivors):.3f}" for bits in each]
            rows.append([path, f"{part.survivors:,}", str(part.levels or "own"), part.way, *numbers, f"{part.bytes:,}"])
        others = sum(part.bytes for path, part in self.parts.items() if path not in coded)
        rest = self.bytes - self.architecture_bytes - sum(part.bytes for part in self.parts.values())
        smaller = f"{self.dense_bytes / self.bytes:.1f} times smaller than the weights"
        rest_text = f"other weights {others:,}, architecture {self.architecture_bytes:,}, the rest {rest:,} bytes"
        return "\n".join([*aligned(rows), rest_text, f"{self.bytes:,} bytes: {smaller}"])


def write_coded(model: Any, path: str | os.PathLike[str]) -> CodedReport:
    """Writes a built model of either generation as one file, which `load_coded` reads.

    Nothing is lost: a weight of which few values are left, as after `share_weights`, is told by codes, any other by the
    values themselves, and all are stored in half precision where that is exact. Only negative zeros become positive.

    Raises:
        ImportError: The extra "coded" is not installed.
        ValueError: A layer cannot be described by its config, has a vocabulary or a lambda, or a weight is of an
            unknown dtype.
        OSError: Writing failed.
    """
    with explaining(f"The model {model.name!r} cannot be written as a coded file", GIVE_CONFIGS):
        description = described(model)
    # In their order, which goes by the structure of the model alone, and not by what is frozen.
    weights = named_weights(model)
    arrays = [np.asarray(weight) for weight in weights.values()]
    content, parts, architecture_bytes = pack(description, arrays)
    pathlib.Path(path).write_bytes(content)
    of_weights = dict(zip(weights, parts, strict=True))
    return CodedReport(of_weights, architecture_bytes, len(content), sum(array.nbytes for array in arrays))


def load_coded(path: str | os.PathLike[str], custom_objects: Mapping[str, Any] | None = None) -> Any:
    """The model in a file of the format "coded", which `aimp_tf.export` writes.

    The file is not trusted: it holds no code, no module is imported for it, and what is not as it was written is
    refused. One of n bytes is taken for no more than 8,192 n weights.

    Args:
        path: The file.
        custom_objects: Name -> class or function of your own, as in `keras.models.load_model`.

    Returns:
        The model, of the generation of Keras that it was written from and with the same weights bit for bit, but for
        zeros that were negative. It is not compiled.

    Raises:
        ImportError: The extra "coded" is not installed: pip install ".[coded]".
        ValueError: The file is damaged, is no such file, or has layers that cannot be made.
        OSError: It cannot be read.

    Example:
        ```python
        aimp_tf.export(aimp_tf.share_weights(result), "pruned.coded")
        model = aimp_tf.load_coded("pruned.coded")
        ```
    """
    try:
        description, arrays = unpack(pathlib.Path(path).read_bytes())
    except DamagedFileError as error:
        raise DamagedFileError(f"{os.fspath(path)} is no coded file, or is damaged: {error}.") from error
    try:
        model = made_of(description, sum(array.size for array in arrays), custom_objects)
        weights = list(named_weights(model).values())
        shapes, expected = [tuple(weight.shape) for weight in weights], [array.shape for array in arrays]
        if shapes != expected:
            raise ValueError(f"its model has weights of the shapes {shapes!r:.200}, and it holds {expected!r:.200}")
    except Exception as error:  # Whatever a constructor raises.
        raise ValueError(
            f"The model in {os.fspath(path)} cannot be made: {str(error)[:600]}. Give classes of your own as "
            "custom_objects={'Name': Class}."
        ) from error
    for weight, array in zip(weights, arrays, strict=True):
        weight.assign(array)
    finalize(layers_of(model))
    return model
