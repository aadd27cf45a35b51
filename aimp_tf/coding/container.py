"""One file of a description and tensors, of which nothing is trusted that has not been checked."""

from __future__ import annotations

import json
import lzma
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.coding import tensors
from aimp_tf.coding.reading import Bytes
from aimp_tf.files import DamagedFileError

VERSION = 1

_MAGIC = b"\x93AIMPTF"
_HEAD = struct.Struct("<7sBIIIQQ")
"""Magic, version, CRC-32 of all that follows it, bytes of the description as it lies and as it is, bytes of the
tensors, and how many entries these have."""
_AFTER_SUM = 12
_LONGEST = 2**26
_TEXT_A_BYTE = 1000
_ENTRIES_A_BYTE = 2**13
"""A file holds no more entries than so many for each of its bytes, so that a small one cannot ask for much memory."""
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**20}]


def pack(description: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> tuple[bytes, list[tensors.Part], int]:
    """A file of a description, of what JSON knows, and tensors, in their order; what each tensor takes of it, and how
    many bytes the description does, compressed.

    Raises:
        TypeError: The description holds something that JSON does not know.
        ValueError: An array has an unknown dtype, or nearly all of a large model is zero.
    """
    text = json.dumps(description, separators=(",", ":")).encode()
    packed = lzma.compress(text, format=lzma.FORMAT_RAW, filters=_FILTERS)
    common = tensors.common_levels([array for array in arrays if array.ndim > 1 and tensors.is_shared(array)])
    book = b"\0" if common is None else tensors.write_levels(common)
    written = [tensors.write(array, common) for array in arrays]
    payload = book + b"".join(content for content, _ in written)
    entries = sum(array.size for array in arrays)
    head = _HEAD.pack(_MAGIC, VERSION, 0, len(packed), len(text), len(payload), entries)
    content = bytearray(head + packed + payload)
    if entries > len(content) * _ENTRIES_A_BYTE:
        raise ValueError(
            f"Hardly any of {entries:,} weights is not zero, so that a file of them would be refused when it is read. "
            "Compact the model first: aimp_tf.compact(model)."
        )
    content[_AFTER_SUM - 4 : _AFTER_SUM] = struct.pack("<I", zlib.crc32(memoryview(content)[_AFTER_SUM:]))
    return bytes(content), [part for _, part in written], len(packed)


def unpack(content: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The description and the tensors that `pack` was given.

    The sizes in the file are checked before anything is unpacked, and no more is than they say.

    Raises:
        DamagedFileError: It is something else.
    """
    memory = memoryview(content)
    if len(memory) < _HEAD.size or memory[: len(_MAGIC)] != _MAGIC:
        raise DamagedFileError("it does not begin as a coded file does")
    _, version, checksum, packed, text, payload, entries = _HEAD.unpack(memory[: _HEAD.size])
    if version != VERSION:
        raise DamagedFileError(f"it is of version {version}; this package reads version {VERSION}")
    if len(memory) != _HEAD.size + packed + payload:
        raise DamagedFileError(f"it is of {len(memory):,} bytes, and should be of {_HEAD.size + packed + payload:,}")
    if zlib.crc32(memory[_AFTER_SUM:]) != checksum:
        raise DamagedFileError("its checksum is not that of its content")
    if text > min(_LONGEST, _TEXT_A_BYTE * packed) or entries > len(memory) * _ENTRIES_A_BYTE:
        raise DamagedFileError(f"it claims {entries:,} weights and a description of {text:,} bytes, which is absurd")
    description = _description(memory[_HEAD.size : _HEAD.size + packed], text)
    return description, _tensors(Bytes(memory[_HEAD.size + packed :]), entries)


def _description(packed: memoryview, size: int) -> dict[str, Any]:
    try:
        found = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS).decompress(packed, max_length=size)
        description = json.loads(found)
    except (lzma.LZMAError, EOFError, ValueError, RecursionError) as error:
        raise DamagedFileError(f"its description cannot be read: {error}") from error
    if len(found) != size or not isinstance(description, dict):
        raise DamagedFileError("its description is not what it should be")
    return description


def _tensors(content: Bytes, entries: int) -> list[np.ndarray]:
    common = tensors.read_levels(content)
    found: list[np.ndarray] = []
    while content.left:
        found.append(tensors.read(content, entries, common))
        entries -= found[-1].size
    if entries:
        raise DamagedFileError(f"it lacks {entries:,} of its weights")
    return found
