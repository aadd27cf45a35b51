"""Tensors as bytes, exactly: zeros take no room, values that many entries share are told once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from aimp_tf.coding.entropy import Decoder, Encoder, Table, entropy_of
from aimp_tf.coding.positions import Positions, PositionsReader
from aimp_tf.coding.reading import Bytes, number
from aimp_tf.files import DamagedFileError

MOST_LEVELS = 256
"""Nonzero entries of no more values than these are told by a code for each value."""

_DTYPES = tuple(
    np.dtype(name)
    for name in (
        *("float32", "float16", ml_dtypes.bfloat16, "float64"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"),
    )
)
"""In the order of their numbers in a file."""
_NARROW = (np.dtype("float16"), np.dtype(ml_dtypes.bfloat16))
_MOST_AXES = 32
_LONGEST_AXIS = 2**40
_WHOLE, _SPARSE, _SHARED = range(3)


@dataclasses.dataclass(frozen=True)
class Part:
    """What a tensor takes in a file.

    Attributes:
        shape: Its shape.
        survivors: How many entries are not zero.
        kind: "whole", "sparse" or "shared".
        way: How positions are told: "bitmap", "gaps" or "runs"; "" where they are not.
        levels: How many values the survivors have, where they are told by codes; 0 where they are not.
        bytes: What it takes, with its tables and all.
        stream_bytes: The part of it that is coded by entropy.
        entropy_bits: What no static table could do with less than for that part.
        position_bits: The part of these that positions take.
    """

    shape: tuple[int, ...]
    survivors: int
    kind: str
    way: str = ""
    levels: int = 0
    bytes: int = 0
    stream_bytes: int = 0
    entropy_bits: float = 0.0
    position_bits: float = 0.0


def levels_of(array: np.ndarray) -> np.ndarray:
    """The values of the entries that are not zero, each once, rising; of its dtype."""
    return np.unique(array[array != 0])


def common_levels(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """The values of arrays that share their values with one another, and so have hardly more together than one of them;
    None where each has its own, of which some may be the same by chance."""
    levels = [levels_of(array) for array in arrays]
    if len(levels) < 2:
        return None
    union = np.unique(np.concatenate(levels))
    return union if len(union) <= min(MOST_LEVELS, 1.25 * max(map(len, levels))) else None


def is_shared(array: np.ndarray) -> bool:
    """Whether entries of a float32 array that are not zero share few values."""
    if array.dtype != np.float32 or not np.isfinite(array).all():
        return False
    # Of many entries a few tell in most cases.
    nonzero = array[array != 0]
    if len(np.unique(nonzero[: 8 * MOST_LEVELS])) > MOST_LEVELS:
        return False
    return 0 < 2 * len(np.unique(nonzero)) <= min(2 * MOST_LEVELS, len(nonzero))


def write_levels(levels: np.ndarray) -> bytes:
    """Values that entries share, float32, in their order."""
    return number(len(levels)) + _values(levels)


def read_levels(content: Bytes) -> np.ndarray | None:
    """What `write_levels` wrote; None for a 0 alone. Raises DamagedFileError where something else comes."""
    count = content.number()
    if count > MOST_LEVELS:
        raise DamagedFileError(f"it tells {count:,} values for all entries of a tensor")
    return _read_values(content, count, np.dtype(np.float32)) if count else None


def write(array: np.ndarray, common: np.ndarray | None = None) -> tuple[bytes, Part]:
    """A tensor as bytes, which `read` gives back bit for bit, but for negative zeros, which become positive ones.

    Args:
        array: Of numbers or bools.
        common: The values of all tensors that share values, float32, if these are the same in all.

    Raises:
        ValueError: It is of no such dtype.
    """
    if array.dtype not in _DTYPES:
        raise ValueError(f"Arrays of the dtype {array.dtype} cannot be coded.")
    kept = array != 0
    part = Part(array.shape, int(np.count_nonzero(kept)), "whole")
    whole = np.where(kept, array, np.zeros((), array.dtype)).reshape(-1)
    found = [(bytes([_WHOLE]) + _values(whole), part)]
    levels = levels_of(array) if is_shared(array) else None
    if levels is not None or (array.dtype == np.float32 and part.survivors < array.size):
        found.append(_coded(array[kept], Positions.of(kept), part, levels, common))
    content, part = min(found, key=lambda each: len(each[0]))
    head = bytes([_DTYPES.index(array.dtype), array.ndim]) + b"".join(map(number, array.shape))
    return head + content, dataclasses.replace(part, bytes=len(head) + len(content))


def _coded(
    survivors: np.ndarray, positions: Positions, part: Part, levels: np.ndarray | None, common: np.ndarray | None
) -> tuple[bytes, Part]:
    """Survivors and where they lie: as codes for the levels that they share, or as they are."""
    encoder = Encoder()
    positions.write(encoder)
    position_bits = positions.entropy()
    if levels is None:
        kind, count, entropy_bits = "sparse", 0, position_bits
        content = bytes([_SPARSE]) + number(part.survivors) + _values(survivors)
    else:
        book = common if common is not None and np.isin(levels, common).all() else levels
        codes = np.searchsorted(book, survivors)
        counts = np.bincount(codes)
        kind, count, entropy_bits = "shared", len(levels), position_bits + entropy_of(counts)
        table = Table.of(counts)
        encoder.write(codes, table)
        content = bytes([_SHARED]) + (number(0) if book is common else write_levels(levels))
        content += number(len(table.costs)) + table.costs.tobytes()
    words = encoder.words()
    content += positions.header() + number(len(words)) + words.astype("<u4").tobytes()
    return content, dataclasses.replace(
        part,
        kind=kind,
        way=positions.way,
        levels=count,
        stream_bytes=4 * len(words),
        entropy_bits=entropy_bits,
        position_bits=position_bits,
    )


def _values(values: np.ndarray) -> bytes:
    """Values in the narrowest dtype that holds them exactly."""
    dtype = values.dtype
    if dtype == np.float32:
        with np.errstate(over="ignore"):
            narrow = (each for each in _NARROW if np.array_equal(values.astype(each).astype(dtype), values))
            dtype = next(narrow, dtype)
    stored = dtype if dtype.kind == "V" else dtype.newbyteorder("<")
    return bytes([_DTYPES.index(dtype)]) + values.astype(stored).tobytes()


def read(content: Bytes, most: int, common: np.ndarray | None = None) -> np.ndarray:
    """A tensor that `write` wrote.

    Args:
        content: Where it comes next.
        most: How many entries it may have.
        common: As in `write`.

    Raises:
        DamagedFileError: Something else comes, or it has more.
    """
    dtype = _dtype(content)
    (rank,) = content.take(1)
    shape = tuple(content.number() for _ in range(rank))
    size = math.prod(shape)
    if size > most or rank > _MOST_AXES or max(shape, default=0) > _LONGEST_AXIS:
        raise DamagedFileError(f"it holds a tensor of the shape {shape}, which is more than its {most:,} entries")
    (kind,) = content.take(1)
    if kind == _WHOLE:
        return _read_values(content, size, dtype).reshape(shape)
    if kind not in (_SPARSE, _SHARED) or dtype != np.float32:
        raise DamagedFileError(f"it holds a tensor of {dtype} of an unknown kind, {kind}")
    return _read_coded(content, shape, common, shared=kind == _SHARED)


def _read_coded(content: Bytes, shape: tuple[int, ...], common: np.ndarray | None, *, shared: bool) -> np.ndarray:
    if shared:
        own = read_levels(content)
        values = common if own is None else own
        if values is None:
            raise DamagedFileError("it tells no values for the entries of a tensor")
        symbols = content.number()
        table = Table(np.frombuffer(content.take(symbols), np.uint8))
        if symbols > len(values):
            raise DamagedFileError(f"it tells codes for {symbols:,} values of {len(values):,}")
    else:
        values = _read_values(content, content.number(), np.dtype(np.float32))
    positions = PositionsReader(content, shape)
    decoder = Decoder(content.array(content.number(), np.dtype(np.uint32)).astype(np.uint32))
    kept = positions.read(decoder)
    if shared:
        values = values[decoder.read(int(np.count_nonzero(kept)), table)]
    decoder.finish()
    if np.count_nonzero(kept) != len(values):
        raise DamagedFileError("it tells more or fewer positions of a tensor than values")
    array = np.zeros(shape, np.float32)
    array[kept] = values
    return array


def _read_values(content: Bytes, count: int, dtype: np.dtype) -> np.ndarray:
    stored = _dtype(content)
    if stored != dtype and not (dtype == np.float32 and stored in _NARROW):
        raise DamagedFileError(f"it stores {dtype} as {stored}")
    return content.array(count, stored).astype(dtype)


def _dtype(content: Bytes) -> np.dtype:
    (index,) = content.take(1)
    if index >= len(_DTYPES):
        raise DamagedFileError(f"it names an unknown dtype, {index}")
    return _DTYPES[index]
