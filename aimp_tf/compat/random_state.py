"""What Python and NumPy draw next, kept while something else draws."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def drawing_apart() -> Iterator[None]:
    """Within it, what is drawn from the global generators of Python and NumPy, such as the first weights of layers that
    are made, does not change what is drawn afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
