"""Symbols at the cost of their entropy: static tables, and one stream a tensor of an asymmetric numeral system."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from aimp_tf.extras import imported
from aimp_tf.files import DamagedFileError

_STEPS = 8
"""A table tells costs in steps of so many to a bit."""
ABSENT = 255
"""What a table tells of a symbol that does not occur."""
_PIECE = 16
"""So many bits, of which all are as likely, the coder takes at once."""


@dataclasses.dataclass(frozen=True)
class Table:
    """How likely symbols are, as a byte for each: what it costs to write it once, in eighths of a bit.

    Attributes:
        costs: uint8 (symbols,), rounded; `ABSENT` for a symbol that does not occur.
    """

    costs: np.ndarray

    @classmethod
    def of(cls, counts: np.ndarray) -> Table:
        """That of symbols that occur so often, int (symbols,). Those after the last that occurs are left out."""
        counts = counts[: np.max(np.flatnonzero(counts), initial=-1) + 1]
        with np.errstate(divide="ignore"):
            costs = np.round(-_STEPS * np.log2(counts / max(1, counts.sum())))
        return cls(np.where(counts > 0, np.minimum(costs, ABSENT - 1), ABSENT).astype(np.uint8))

    @property
    def symbols(self) -> np.ndarray:
        """Those that occur, rising, int."""
        return np.flatnonzero(self.costs != ABSENT)

    def bits(self, counts: np.ndarray) -> float:
        """What it costs to write symbols that occur so often, int (symbols,)."""
        counts = counts[self.symbols]
        return float((counts * -np.log2(self._probabilities())).sum()) if len(counts) > 1 else 0.0

    def model(self) -> Any:
        """What `constriction` calls a model, of the places of symbols among those that occur."""
        return _constriction().stream.model.Categorical(self._probabilities(), perfect=False)

    def _probabilities(self) -> np.ndarray:
        """Quotients of whole numbers, so that these are the same on every machine."""
        frequencies = _FREQUENCIES[self.costs[self.symbols]].astype(np.float64)
        return frequencies / frequencies.sum()


_FREQUENCIES = np.array([max(1, round(2 ** (24 - cost / _STEPS))) for cost in range(ABSENT)], np.int64)


class Encoder:
    """Takes symbols in the order in which a `Decoder` gives them back."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, Any]] = []

    def write(self, symbols: np.ndarray, table: Table) -> None:
        """Symbols of a table, int (n,). Where there is but one, it takes nothing."""
        if len(table.symbols) > 1:
            self._parts.append((np.searchsorted(table.symbols, symbols).astype(np.int32), table.model()))

    def write_evenly(self, numbers: np.ndarray, bits: int) -> None:
        """Numbers of so many bits each, at most 62, int (n,)."""
        for shift, some in _pieces(bits):
            self._parts.append(((numbers >> shift & (1 << some) - 1).astype(np.int32), _even(some)))

    def words(self) -> np.ndarray:
        """The stream, uint32."""
        coder = _constriction().stream.stack.AnsCoder()
        for symbols, model in reversed(self._parts):
            coder.encode_reverse(symbols, model)
        return np.asarray(coder.get_compressed(), np.uint32)


class Decoder:
    """Reads the stream of an `Encoder`.

    Args:
        words: uint32.

    Raises:
        DamagedFileError: It cannot be such a stream.
    """

    def __init__(self, words: np.ndarray) -> None:
        try:
            self._coder = _constriction().stream.stack.AnsCoder(words)
        except ValueError as error:
            raise DamagedFileError(str(error)) from error

    def read(self, count: int, table: Table) -> np.ndarray:
        """So many symbols, int (count,)."""
        symbols = table.symbols
        if count and not symbols.size:
            raise DamagedFileError("a table of no symbols is read from")
        if symbols.size < 2:
            return np.full(count, symbols[0] if count else 0)
        return symbols[self._coder.decode(table.model(), count)]

    def read_evenly(self, count: int, bits: int) -> np.ndarray:
        """As they were given to `write_evenly`."""
        found = np.zeros(count, np.int64)
        for shift, some in _pieces(bits):
            found |= self._coder.decode(_even(some), count).astype(np.int64) << shift
        return found

    def finish(self) -> None:
        """Raises DamagedFileError unless all has been read."""
        if not self._coder.is_empty():
            raise DamagedFileError("a stream does not end where it should")


def _pieces(bits: int) -> list[tuple[int, int]]:
    """(where it begins, how many bits) of the pieces that the coder takes of numbers of so many bits."""
    return [(shift, min(_PIECE, bits - shift)) for shift in range(0, bits, _PIECE)]


def _even(bits: int) -> Any:
    return _constriction().stream.model.Uniform(2**bits)


def entropy_of(counts: np.ndarray) -> float:
    """The entropy of symbols that occur so often, all of them together, in bits."""
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def _constriction() -> Any:
    return imported("coded", "constriction")
