"""Plain numbers and arrays in a row of bytes, which is not trusted as it is read."""

from __future__ import annotations

import numpy as np

from aimp_tf.files import DamagedFileError

_LARGEST = 2**62


class Bytes:
    """Reads a row of bytes from its beginning. All its methods raise DamagedFileError where it ends too early."""

    def __init__(self, content: bytes | memoryview) -> None:
        self._content = memoryview(content)
        self._at = 0

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._content) - self._at

    def take(self, count: int) -> memoryview:
        """The next so many bytes."""
        if not 0 <= count <= self.left:
            raise DamagedFileError(f"it ends {count - self.left:,} bytes too early")
        self._at += count
        return self._content[self._at - count : self._at]

    def number(self) -> int:
        """What `number` wrote."""
        value = 0
        for shift in range(0, 63, 7):
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                break
        if not value < _LARGEST:
            raise DamagedFileError("a number in it is absurd")
        return value

    def array(self, count: int, dtype: np.dtype) -> np.ndarray:
        """The next so many values of a dtype, little endian."""
        found = np.frombuffer(self.take(count * dtype.itemsize), np.uint8)
        return found.view(dtype.newbyteorder("<") if dtype.kind != "V" else dtype)


def number(value: int) -> bytes:
    """A number from 0 on in as few bytes as it takes: seven bits each, the lowest first (LEB128)."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
