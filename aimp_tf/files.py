"""Files that are whole or not there at all, and that are not trusted when they are read; and how large they are."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np

UNFINISHED = ".unfinished_"
_CHECKSUM = "checksum"
_ARRAY = "array of state.npz"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class DamagedFileError(ValueError):
    """A file is missing, was changed since it was written, or is not what this package writes."""


def check_writable(path: str | os.PathLike[str], name: str) -> None:
    """Checks, writing nothing, that `path` is a folder that may be written to or can be made.

    Raises:
        ValueError: It is not; the message speaks of it by `name`.
    """
    absolute = pathlib.Path(path).expanduser().absolute()
    existing = next(folder for folder in (absolute, *absolute.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(
            f"{name} {path} cannot be written: {existing} is not a folder in which you may write; name another one."
        )


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Writes a text file so that a reader sees all of it or nothing, also after a crash."""
    with replacing(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def write_json(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Writes `fields` with a checksum of their own, as `write_atomically`."""
    write_atomically(path, json.dumps({**fields, _CHECKSUM: _checksum_of(fields)}, indent=2))


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """What `write_json` wrote. Raises DamagedFileError if it is anything else, OSError if it cannot be read."""
    try:
        fields = json.loads(_regular(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    if not isinstance(fields, dict) or fields.pop(_CHECKSUM, None) != _checksum_of(fields):
        raise DamagedFileError(f"{path} is damaged: its checksum is not that of its content")
    return fields


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Writes arrays of numbers and bools as npz, as `write_atomically`."""
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        save_arrays(file, arrays, compressed=compressed)


def save_arrays(file: IO[bytes], arrays: Mapping[str, np.ndarray], *, compressed: bool = False) -> None:
    """Writes arrays of numbers and bools as npz. Raises ValueError for others, which would be pickled."""
    if objects := [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        raise ValueError(f"Arrays of objects cannot be written: {', '.join(objects)}.")
    # NumPy before 2.1 would take allow_pickle=False for one more array.
    save: Any = np.savez_compressed if compressed else np.savez
    save(file, **arrays)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file, none of them a pickle and all of them together no larger than the file.

    Raises:
        DamagedFileError: The file is something else.
        OSError: It cannot be read.
    """
    try:
        with zipfile.ZipFile(_regular(path)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise DamagedFileError(f"{path} holds arrays that are larger than the file")
            return {member.filename.removesuffix(".npy"): _read_array(archive, member) for member in members}
    except DamagedFileError:
        raise
    except (ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # Which is what seeking to where nothing can be gives.
            raise
        raise DamagedFileError(f"{path} is damaged: {error}") from error


def pack(value: Any, arrays: dict[str, np.ndarray], name: str = "array") -> Any:
    """The value as JSON can hold it; the arrays in it go to `arrays`, and a reference to each stays in its place.

    Args:
        value: Numbers, texts, None, arrays, and lists, tuples and dicts with keys of text that hold these.
        arrays: Gets the arrays, under names that begin with `name`.
        name: What to call them.
    """
    if isinstance(value, Mapping):
        return {key: pack(item, arrays, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(item, arrays, f"{name}.{position}") for position, item in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        return value
    key = f"{len(arrays):05d}.{name}".replace("/", ".")
    # npz knows no bfloat16: it stores the bits.
    arrays[key] = value.view(f"u{value.dtype.itemsize}") if value.dtype.kind == "V" else value
    return {_ARRAY: key, "dtype": value.dtype.name}


def unpack(packed: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value that `pack` was given, its tuples as lists. Raises DamagedFileError for a reference to nothing."""
    if isinstance(packed, list):
        return [unpack(item, arrays) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if _ARRAY not in packed:
        return {key: unpack(item, arrays) for key, item in packed.items()}
    try:
        array, dtype = arrays[packed[_ARRAY]], np.dtype(packed["dtype"])
        return array.view(dtype) if dtype.kind == "V" else array
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"an array {packed[_ARRAY]!r} of the state is missing or damaged: {error}") from error


def checksum_of_arrays(arrays: Iterable[np.ndarray]) -> int:
    """CRC-32 of what arrays hold, one after another, without copying those that lie in one piece."""
    sum_ = 0
    for array in arrays:
        sum_ = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, sum_)
    return sum_


def checksum(path: pathlib.Path) -> str:
    """Of the content of a file. Raises DamagedFileError where there is none, or a link in its place."""
    with open(_regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stored_bytes(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def gzip_bytes(path: pathlib.Path) -> int:
    """Bytes of a file as gz, or of a folder as tar.gz."""
    if path.is_file():
        return len(gzip.compress(path.read_bytes()))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(path, arcname=path.name)
    return buffer.tell()


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the path of a file or a folder to make, which then takes the place of `path`.

    Nothing is left of it if an exception comes between. Raises OSError where `path` is a folder that is not empty.
    """
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    remove([unfinished])
    try:
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
        _sync(path.parent)
    finally:
        remove([unfinished])


def remove(paths: Iterable[pathlib.Path]) -> None:
    """Removes files, links and folders, of these first what marks one as whole, lest the rest be taken for one."""
    for path in list(paths):
        if path.is_dir() and not path.is_symlink():
            for name in ("result.json", "state.json"):
                (path / name).unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def making(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder, if it is missing. After an exception it goes again, with those made for it, as far as empty."""
    made = [each for each in (folder, *folder.absolute().parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()
        raise


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checksum_of(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _regular(path: pathlib.Path) -> pathlib.Path:
    """The path itself. Raises DamagedFileError for a link, a folder, a device."""
    if path.is_symlink() or not path.is_file():
        raise DamagedFileError(
            f"{path} is {'a link' if path.is_symlink() else 'not a file' if path.exists() else 'missing'}"
        )
    return path


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    where = f"{archive.filename} holds {member.filename!r}"
    with archive.open(member) as file:
        read_header = _HEADERS.get(np.lib.format.read_magic(file))
        if read_header is None:
            raise DamagedFileError(f"{where} in an unknown format")
        shape, fortran_order, dtype = read_header(file)
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "biuf" or size != member.file_size - file.tell():
            raise DamagedFileError(f"{where} as {dtype}{list(shape)}, which is not an array of numbers of that size")
        # To the end, where zipfile compares its own checksum.
        content = file.read()
    if len(content) != size:
        raise DamagedFileError(f"{where} with {len(content)} bytes; expected {size}")
    # A copy, for what comes from bytes cannot be written to.
    return np.frombuffer(content, dtype).copy().reshape(shape, order="F" if fortran_order else "C")
