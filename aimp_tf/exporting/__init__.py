"""Writing a pruned model to disk, in formats that others read, and in one that takes as little room as can be."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import logging
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from aimp_tf.compat.mixed_precision import computes_in_half_precision
from aimp_tf.compat.models import layers_of, model_of
from aimp_tf.config.texts import nearest
from aimp_tf.exporting.coded import write_coded
from aimp_tf.exporting.inputs import arrange
from aimp_tf.exporting.lite import to_tflite
from aimp_tf.exporting.onnx import write_onnx
from aimp_tf.exporting.saved_model import weight_arrays, write_keras, write_saved_model
from aimp_tf.exporting.sparse import sparse_inference
from aimp_tf.exporting.verification import differences, made_up
from aimp_tf.files import UNFINISHED, check_writable, gzip_bytes, making, stored_bytes, write_arrays
from aimp_tf.masking import check_plain

__all__ = ["FORMATS", "Artefact", "Format", "Target", "choose_formats", "export"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Artefact(os.PathLike[str]):
    """A file or folder that `export` wrote, and which may be used as its path.

    Attributes:
        format: One of `FORMATS`.
        path: Where it lies.
        bytes: Its size; of a folder, that of all its files.
        max_difference: The maximum absolute difference of its outputs, or its weights, from the model's own; None if it
            was not verified.
        relative_difference: The same as a fraction of the largest entry of that output.
        examples: On how many examples the outputs were compared.
        made_up: Whether these were made up by `export`.
    """

    format: str
    path: pathlib.Path
    bytes: int
    max_difference: float | None = None
    relative_difference: float | None = None
    examples: int = 0
    made_up: bool = False

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @functools.cached_property
    def gzip_bytes(self) -> int:
        """Its size as gz or, of a folder, as tar.gz. Measured when it is first asked for."""
        return gzip_bytes(self.path)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What writers may need beside the model: inputs in its own structure, and the batch to be fast at."""

    inputs: Any
    batch_size: int


_Writer = Callable[[Any, pathlib.Path, Settings], object]


@dataclasses.dataclass(frozen=True)
class Format:
    """How a format is written and read.

    Attributes:
        file: Its name in the folder.
        kind: How it is used in a fresh process, as in `verification.differences`.
        write: Writes a model to a path.
        same: Whether it must give what the model gives.
    """

    file: str
    kind: str
    write: _Writer
    same: bool = True


def _write_tflite(**options: Any) -> _Writer:
    return lambda model, path, _: path.write_bytes(to_tflite(model, **options))


def _write_tflite_int8(model: Any, path: pathlib.Path, settings: Settings) -> None:
    path.write_bytes(to_tflite(model, representative_inputs=settings.inputs))


def _write_coded(model: Any, path: pathlib.Path, _: Settings) -> None:
    logger.info("Coded:\n%s", write_coded(model, path).table())


def _write_sparse_saved_model(model: Any, path: pathlib.Path, settings: Settings) -> None:
    write_saved_model(sparse_inference(model, settings.batch_size), path)


FORMATS: dict[str, Format] = {
    "saved_model": Format("saved_model", "saved_model", lambda model, path, _: write_saved_model(model, path)),
    "sparse_saved_model": Format("sparse_saved_model", "saved_model", _write_sparse_saved_model),
    "keras": Format("model.keras", "keras", lambda model, path, _: write_keras(model, path)),
    "tflite": Format("model.tflite", "tflite", _write_tflite()),
    "tflite_fp16": Format("model_fp16.tflite", "tflite", _write_tflite(weights="float16"), same=False),
    "tflite_dynamic": Format("model_dynamic.tflite", "tflite", _write_tflite(weights="int8"), same=False),
    "tflite_int8": Format("model_int8.tflite", "tflite", _write_tflite_int8, same=False),
    "tflite_sparse": Format("model_sparse.tflite", "tflite", _write_tflite(sparse=True)),
    "onnx": Format("model.onnx", "onnx", lambda model, path, _: write_onnx(model, path)),
    "coded": Format("model.coded", "coded", _write_coded),
    "weights": Format(
        "weights.npz", "weights", lambda model, path, _: write_arrays(path, weight_arrays(model), compressed=True)
    ),
}


_SUFFIXES = {".keras": "keras", ".tflite": "tflite", ".onnx": "onnx", ".coded": "coded", ".npz": "weights"}
"""How the path of a single file ends -> the format that it is in."""


def export(
    model: Any,
    path: str | os.PathLike[str],
    formats: Sequence[str] | None = None,
    *,
    inputs: Any = None,
    overwrite: bool = False,
    batch_size: int = 1,
    verify: bool = True,
) -> dict[str, Artefact]:
    """Writes a Keras model into a file or a folder, all formats whole or nothing, and uses each in a fresh process.

    That process has neither aimp_tf, but for "coded", nor tfmot, and what it computes is compared with the model's own
    outputs. They must be the same but for rounding: within 1e-4 of the largest entry of each output or, where layers of
    the model compute in half precision, within 5e-2. "tflite_int8", "tflite_dynamic" and "tflite_fp16" just state their
    difference.

    Args:
        model: A built Keras 3 or tf_keras model without masks, or a `PruningResult`: of one with
            `granularity="channel"`, what `compact` makes of its model.
        path: A folder, made if it is missing; or a file of one format, which ends in .keras, .tflite, .onnx, .coded or
            .npz.
        formats: What the folder gets, "saved_model" and "keras" if this is None; or, of a file, which of the formats
            whose names in a folder end like it. Any of

            - "saved_model": `saved_model/`, a TensorFlow SavedModel whose endpoint `serve` and signature
              `serving_default` take a batch of any size, float32 in and out;
            - "sparse_saved_model": `sparse_saved_model/`, the same of what `sparse_inference` makes of the model for
              `batch_size`;
            - "keras": `model.keras`, the format of the model's own generation, compiled as the model is, but without
              the optimizer's slots;
            - "tflite", "tflite_sparse", "tflite_fp16", "tflite_dynamic", "tflite_int8": `model.tflite`,
              `model_sparse.tflite` and so on, as `exporting.lite.to_tflite` makes them: in float32, with sparse
              kernels stored so, with weights in float16 or in int8, all in int8; the last one is calibrated on
              `inputs`, which it needs;
            - "onnx": `model.onnx`, by the names and for any batch as the SavedModel; it needs the extra "onnx";
            - "coded": `model.coded`, which `load_coded` reads: survivors at the cost of their entropy, as
              `exporting.coded.write_coded` writes them, best after `share_weights`; it needs the extra "coded";
            - "weights": `weights.npz`, compressed: variable path, such as "head/dense/kernel" -> array.
        inputs: Real inputs to compare on, arrays of (examples, ...): one array or, for a model with several inputs, a
            list in their order or a dict by their names. Without them the comparison is on 32 made-up examples of the
            model's input shapes.
        overwrite: Whether to replace what is there already. It stays until all that is new is whole and compared.
        batch_size: The batch that formats made for one are to be fast at.
        verify: Whether to use what is written. Without it nothing is compared, and no process started.

    Returns:
        Format -> what was written.

    Raises:
        ImportError: A format needs an extra that is not installed.
        TypeError: `model` is neither a Keras model nor has one.
        ValueError: It still carries masks, is not built or cannot be written in one of the formats, a format is
            unknown, `inputs` are missing or are not inputs of the model, the folder cannot be written, or something of
            that name is in it already.
        OSError: Writing failed.
        RuntimeError: Something cannot be used in a fresh process, or gives other outputs.

        Nothing is written then, and what was there is as it was.
    """
    model = getattr(model, "shipped", None) or model_of(model)
    check_plain(model)
    target = Target.of(path, formats)
    chosen, directory = target.formats, target.folder
    if inputs is not None:
        inputs = arrange(inputs, model)
    elif "tflite_int8" in chosen:
        raise ValueError(
            "tflite_int8 is scaled to what the model makes of real inputs: pass some hundred examples as inputs."
        )
    target.check(overwrite)
    given = inputs is not None
    if verify and not given and any(format_.kind != "weights" for format_ in chosen.values()):
        inputs = made_up(model)
    with _unfinished_in(directory) as unfinished, _without_notes_of_tensorflow():
        for format_ in chosen.values():
            format_.write(model, unfinished / format_.file, Settings(inputs, batch_size))
        verified = _verified(model, chosen, unfinished, inputs, made_up=not given) if verify else {}
        artefacts = {
            name: Artefact(
                name, directory / format_.file, stored_bytes(unfinished / format_.file), **verified.get(name, {})
            )
            for name, format_ in chosen.items()
        }
        _put_in_place([artefact.path for artefact in artefacts.values()], unfinished)
    for artefact in artefacts.values():
        logger.info("Exported %s to %s: %d bytes.", artefact.format, artefact.path, artefact.bytes)
    return artefacts


@dataclasses.dataclass(frozen=True)
class Target:
    """Where `export` writes.

    Attributes:
        folder: The folder that everything lies in.
        formats: Name -> the format, under the name that its file gets.
    """

    folder: pathlib.Path
    formats: dict[str, Format]

    @classmethod
    def of(cls, path: str | os.PathLike[str], formats: Sequence[str] | None = None) -> Target:
        """As `export` takes its arguments. Raises ValueError for formats that are unknown, or do not fit a file."""
        path = pathlib.Path(path).expanduser()
        near = difflib.get_close_matches(path.suffix.lower(), _SUFFIXES, n=1, cutoff=0.7)
        if path.suffix not in _SUFFIXES and near and not path.is_dir():
            raise ValueError(f"{path} would be a folder. Write {path.with_suffix(near[0])} for a file.")
        if path.suffix.lower() in (".h5", ".hdf5", ".pb", ".pkl", ".pt"):
            raise ValueError(
                f"{path} would be of a format that export does not write. Write {path.with_suffix('.keras')} or "
                f"{path.with_suffix('.tflite')}, or name a folder for a SavedModel."
            )
        if path.suffix not in _SUFFIXES or path.is_dir():
            return cls(path, choose_formats(("saved_model", "keras") if formats is None else formats))
        chosen = choose_formats(_SUFFIXES[path.suffix] if formats is None else formats)
        if len(chosen) > 1 or pathlib.Path(next(iter(chosen.values())).file).suffix != path.suffix:
            raise ValueError(
                f"{path} is a file of one format, and formats are {', '.join(chosen)}. Name a folder for them, or "
                "leave formats out."
            )
        return cls(path.parent, {name: dataclasses.replace(form, file=path.name) for name, form in chosen.items()})

    def check(self, overwrite: bool) -> None:
        """Raises ValueError where something is there already, or nothing can be written."""
        for format_ in self.formats.values():
            if os.path.lexists(self.folder / format_.file) and not overwrite:
                raise ValueError(
                    f"{self.folder / format_.file} exists already; pass overwrite=True to replace it, or name another "
                    "path."
                )
        check_writable(self.folder, "directory")


def choose_formats(formats: Sequence[str]) -> dict[str, Format]:
    """The formats of these names. Raises ValueError where there is none, or one is unknown."""
    formats = (formats,) if isinstance(formats, str) else formats
    for name in formats:
        if name not in FORMATS:
            raise ValueError(f"Unknown format {name!r}; the formats are {', '.join(FORMATS)}.{nearest(name, FORMATS)}")
    if not formats:
        raise ValueError(f"No format is given; the formats are {', '.join(FORMATS)}.")
    return {name: FORMATS[name] for name in formats}


def _verified(
    model: Any, formats: Mapping[str, Format], folder: pathlib.Path, inputs: Any, *, made_up: bool
) -> dict[str, dict[str, Any]]:
    """Name -> fields of its `Artefact`, of what lies in `folder` and was compared. Raises RuntimeError as `export`."""
    found = differences(model, [(format_.kind, folder / format_.file) for format_ in formats.values()], inputs)
    # float32 adds up in another order elsewhere.
    rounding = 5e-2 if any(map(computes_in_half_precision, layers_of(model))) else 1e-4
    verified: dict[str, dict[str, Any]] = {}
    for (name, format_), (difference, fraction) in zip(formats.items(), found, strict=True):
        weights = format_.kind == "weights"
        allowed = 0.0 if weights else rounding
        if format_.same and not fraction <= allowed:
            raise RuntimeError(
                f"{format_.file} gives other outputs than the model {model.name!r}: the largest difference is "
                f"{difference:.2g}, {fraction:.2g} of the largest output; at most {allowed} of it is rounding. Choose "
                "other formats, or pass verify=False if you know better."
            )
        examples = 0 if weights else len(tf.nest.flatten(inputs)[0])
        verified[name] = {
            "max_difference": difference,
            "relative_difference": fraction,
            "examples": examples,
            "made_up": made_up and examples > 0,
        }
    return verified


@contextlib.contextmanager
def _without_notes_of_tensorflow() -> Iterator[None]:
    """Within it, TensorFlow does not tell at level INFO, which notebooks show, where it has written what."""
    tensorflow = logging.getLogger("tensorflow")
    with contextlib.ExitStack() as undo:
        undo.callback(tensorflow.setLevel, tensorflow.level)
        tensorflow.setLevel(max(tensorflow.level, logging.WARNING))
        yield


@contextlib.contextmanager
def _unfinished_in(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a new folder in `directory`, from where moving something there is one step of the file system.

    It is removed at the end and, after an exception, so are the folders that were made for it.
    """
    with making(directory), tempfile.TemporaryDirectory(dir=directory, prefix=UNFINISHED) as unfinished:
        yield pathlib.Path(unfinished)


def _put_in_place(paths: Sequence[pathlib.Path], unfinished: pathlib.Path) -> None:
    """Moves what was written to its places. What is there is put aside first, and put back should one fail."""
    (unfinished / "overwritten").mkdir()
    with contextlib.ExitStack() as undo:
        for path in paths:
            if os.path.lexists(path):
                aside = unfinished / "overwritten" / path.name
                os.replace(path, aside)
                undo.callback(os.replace, aside, path)
            os.replace(unfinished / path.name, path)
            undo.callback(os.replace, path, unfinished / path.name)
        undo.pop_all()
