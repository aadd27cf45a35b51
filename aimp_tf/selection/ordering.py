"""The order of scores as whole numbers, which compare fast and have no NaN. NumPy only."""

from __future__ import annotations

import numpy as np

_SIGN = np.uint32(0x80000000)


def ordered_bits(values: np.ndarray, signed: bool) -> np.ndarray:
    """The values in float32 as uint32, whose order is that of the values, or of the magnitudes unless `signed`."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not signed:
        return values.view(np.uint32) & ~_SIGN
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 is 0.0 now.
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)  # The bits of a negative number grow with its magnitude.
