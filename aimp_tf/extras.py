"""Packages that come with an extra of aimp_tf, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def imported(extra: str, name: str, *others: str) -> Any:
    """The module of a name, if it and others can be imported.

    Raises ImportError, with what to install, if any cannot be.
    """
    try:
        module, *_ = [importlib.import_module(each) for each in (name, *others)]
    except ImportError as error:
        raise ImportError(
            f'The format {extra!r} needs the package {error.name or name}; install it with pip install ".[{extra}]".'
        ) from error
    return module
