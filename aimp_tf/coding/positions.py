"""Where the survivors of a tensor lie, as symbols: as a bitmap, as gaps between them, or as runs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from aimp_tf.coding.entropy import Decoder, Encoder, Table, entropy_of
from aimp_tf.coding.reading import Bytes, number
from aimp_tf.files import DamagedFileError

_EXACT = 8
"""Numbers below this one are symbols of their own; of larger ones, four symbols share each octave."""
_SYMBOLS = _EXACT + 4 * 50


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Whole numbers of all sizes as symbols of a table and, of the larger ones, bits that are as likely 0 as 1.

    Attributes:
        symbols: int (n,).
        extra: What the symbols leave open, int (n,); of no entries where they leave nothing open.
    """

    symbols: np.ndarray
    extra: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Numbers:
        """That of numbers from 0 to 2^52, int (n,)."""
        if np.max(values, initial=0) < _EXACT:
            return cls(values, np.zeros(0, np.int64))
        octave = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
        rest = np.maximum(octave - 2, 0)
        symbols = np.where(values < _EXACT, values, _EXACT + 4 * (octave - 3) + (values >> rest & 3))
        return cls(symbols, np.where(values < _EXACT, 0, values & (1 << rest) - 1))

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """How often each symbol occurs, int (symbols,)."""
        return np.bincount(self.symbols)

    @functools.cached_property
    def table(self) -> Table:
        """The table that they are written with."""
        return Table.of(self.counts)

    def bits(self) -> float:
        """What they and their table take in a file."""
        return self.table.bits(self.counts) + self._open() + 8 * len(self.table.costs)

    def entropy(self) -> float:
        """That of the symbols, with the bits that they leave open."""
        return entropy_of(self.counts) + self._open()

    def _open(self) -> float:
        return float((self.counts * _open_bits(np.arange(len(self.counts)))).sum())

    def write(self, encoder: Encoder) -> None:
        """Writes them."""
        encoder.write(self.symbols, self.table)
        if not len(self.extra):
            return
        bits = _open_bits(self.symbols)
        for size in np.unique(bits[bits > 0]).tolist():
            encoder.write_evenly(self.extra[bits == size], size)

    @staticmethod
    def read(decoder: Decoder, count: int, table: Table) -> np.ndarray:
        """As they were given to `of`, int64 (count,)."""
        symbols = decoder.read(count, table)
        if len(table.costs) <= _EXACT:
            return symbols
        bits = _open_bits(symbols)
        values = np.where(symbols < _EXACT, symbols, (4 + (symbols - _EXACT) % 4) << bits)
        for size in np.unique(bits[bits > 0]).tolist():
            values[bits == size] |= decoder.read_evenly(int(np.count_nonzero(bits == size)), size)
        return values


def _open_bits(symbols: np.ndarray) -> np.ndarray:
    """How many bits each symbol leaves open, int."""
    return np.where(symbols < _EXACT, 0, 1 + (symbols - _EXACT) // 4)


def _runs(kept: np.ndarray) -> list[np.ndarray]:
    """Of survivors side by side, how many they are, but for one, and how many lie between these and those before."""
    edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    between = starts - np.concatenate([[0], ends[:-1]]) if len(starts) else starts
    return [between, ends - starts - 1]


def _from_runs(parts: Sequence[np.ndarray], size: int) -> np.ndarray:
    between, lengths = parts[0], parts[1] + 1
    if lengths.sum() > size:
        raise DamagedFileError("runs in it are longer than the tensor")
    starts = np.cumsum(between + np.concatenate([[0], lengths[:-1]])) if len(between) else between
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within


@dataclasses.dataclass(frozen=True)
class _Way:
    """How positions are told.

    Attributes:
        parts: How many rows of numbers tell them.
        told: Gives these, of whether each entry survives, bool (size,).
        found: Gives the indices of the survivors, rising, of these and the size.
    """

    parts: int
    told: Callable[[np.ndarray], list[np.ndarray]]
    found: Callable[[Sequence[np.ndarray], int], np.ndarray]


_WAYS = {
    "bitmap": _Way(1, lambda kept: [kept.view(np.uint8)], lambda parts, _: np.flatnonzero(parts[0])),
    "gaps": _Way(
        1, lambda kept: [np.diff(np.flatnonzero(kept), prepend=-1) - 1], lambda parts, _: np.cumsum(parts[0] + 1) - 1
    ),
    "runs": _Way(2, _runs, _from_runs),
}
"""In the order of their numbers in a file."""


@dataclasses.dataclass(frozen=True)
class Positions:
    """Positions as they are written: the cheapest of all ways, row by row or column by column.

    Attributes:
        way: "bitmap", "gaps" or "runs".
        by_column: Whether the last axis of the tensor counts as the first.
        grain: So many entries after one another always survive together: they are told as one.
        parts: The numbers that tell them.
    """

    way: str
    by_column: bool
    grain: int
    parts: tuple[Numbers, ...]

    @classmethod
    def of(cls, kept: np.ndarray) -> Positions:
        """The cheapest for these survivors, bool of any shape."""
        told = []
        for by_column in (False, True):
            ordered = (np.moveaxis(kept, -1, 0) if by_column and kept.ndim else kept).reshape(-1)
            grain = _grain(ordered)
            for way in _WAYS:
                if way != "bitmap" or grain > 1 or not by_column:  # To a bitmap of single entries the order is all one.
                    parts = tuple(map(Numbers.of, _WAYS[way].told(ordered[::grain])))
                    told.append(cls(way, by_column, grain, parts))
        return min(told, key=cls.bits)

    def bits(self) -> float:
        """What they take in a file."""
        return sum(part.bits() for part in self.parts)

    def entropy(self) -> float:
        """The empirical entropy of what is written, in bits: no static table could do with less."""
        return sum(part.entropy() for part in self.parts)

    def header(self) -> bytes:
        """What has to be known before the stream is read."""
        found = bytes([list(_WAYS).index(self.way) << 1 | self.by_column]) + number(self.grain)
        for part in self.parts:
            costs = part.table.costs
            found += number(len(part.symbols)) + bytes([len(costs)]) + costs.tobytes()
        return found

    def write(self, encoder: Encoder) -> None:
        """Writes the numbers."""
        for part in self.parts:
            part.write(encoder)


class PositionsReader:
    """Reads positions.

    Args:
        content: Where what `Positions.header` gave comes next.
        shape: Of the tensor.

    Raises:
        DamagedFileError: Something else comes there.
    """

    def __init__(self, content: Bytes, shape: tuple[int, ...]) -> None:
        (first,) = content.take(1)
        if first >> 1 >= len(_WAYS):
            raise DamagedFileError(f"positions in it are told in an unknown way, {first >> 1}")
        self._way, self._by_column = list(_WAYS.values())[first >> 1], bool(first & 1)
        size = math.prod(shape)
        self._shape, self._grain = shape, content.number()
        if self._grain < 1 or size % self._grain or (self._by_column and not shape):
            raise DamagedFileError(f"it tells {size:,} entries by {self._grain:,}")
        self._size = size // self._grain
        self._parts: list[tuple[int, Table]] = []
        for _ in range(self._way.parts):
            count, (symbols,) = content.number(), content.take(1)
            if count > self._size or symbols > _SYMBOLS:
                raise DamagedFileError(f"it tells {count:,} positions of {symbols} kinds in a tensor of {self._size:,}")
            self._parts.append((count, Table(np.frombuffer(content.take(symbols), np.uint8))))

    def read(self, decoder: Decoder) -> np.ndarray:
        """The survivors, bool of the shape of the tensor."""
        parts = [Numbers.read(decoder, count, table) for count, table in self._parts]
        if any(len(part) != len(parts[0]) or (part < 0).any() or (part > self._size).any() for part in parts):
            raise DamagedFileError("positions in it are none of the tensor")
        found = self._way.found(parts, self._size)
        if found.size and not found[-1] < self._size:
            raise DamagedFileError("positions in it are beyond the tensor")
        kept = np.zeros(self._size, bool)
        kept[found] = True
        kept = np.repeat(kept, self._grain) if self._grain > 1 else kept
        if not self._by_column:
            return kept.reshape(self._shape)
        return np.moveaxis(kept.reshape(self._shape[-1], *self._shape[:-1]), 0, -1)


def _grain(kept: np.ndarray) -> int:
    """The largest number of entries, bool (size,), that survive or go together wherever one looks."""
    edges = np.flatnonzero(kept[1:] != kept[:-1]) + 1
    size = len(kept) or 1
    first = math.gcd(size, int(np.gcd.reduce(edges[:100]))) if len(edges) else size
    return math.gcd(first, int(np.gcd.reduce(edges))) if first > 1 and len(edges) else first
