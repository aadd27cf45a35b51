"""How much each layer keeps: by one ranking of all, or by a share of its own. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aimp_tf.selection.activation_criteria import ActivationDensity
from aimp_tf.selection.channel_layout import Channels
from aimp_tf.selection.statistics import Statistics

BY_DENSITY = "activation_density"


def needs_of(scope: object) -> tuple[str, ...]:
    """What a value of `PruningConfig.scope` needs of `Statistics`, as `Criterion.needs`."""
    return ActivationDensity.channel_needs if scope == BY_DENSITY else ()


def shares_of(scope: object, seen: Statistics | Channels) -> list[float] | None:
    """Of each variable, or set of channels, which part of it stays, beside those of others. None ranks all together.

    Args:
        scope: "global", "layer", "activation_density", or a function that is given `seen` and returns the shares by
            their paths, or the names of the sets.
        seen: Statistics of single weights, or of whole channels.

    Raises:
        TypeError: The function returns something other than a dict.
        ValueError: It leaves some out, or has shares that are no numbers above 0; or the scope is for whole channels.
    """
    names = [each.name for each in seen.sets] if isinstance(seen, Channels) else list(seen.weights)
    if scope == "global":
        return None
    if scope == "layer":
        return [1.0] * len(names)
    if callable(scope):
        return _checked(scope(seen), names)
    if not isinstance(seen, Channels):
        raise ValueError(f"scope={scope!r} is of whole channels. Write granularity='channel', or scope='layer'.")
    densities = ActivationDensity().channel_scores(seen)
    # A layer that is never active still has to have its least.
    return [max(float(densities[each.units].mean()), 1e-6) if len(each.units) else 1.0 for each in seen.sets]


def _checked(shares: Any, names: list[str]) -> list[float]:
    expected = "scope must return a dict with a share above 0 for each variable, or each set of channels"
    if not isinstance(shares, Mapping):
        raise TypeError(f"{expected}; got {type(shares).__name__}.")
    if missing := [name for name in names if name not in shares]:
        raise ValueError(f"{expected}; missing: {', '.join(missing)}.")
    values = np.array([shares[name] for name in names], np.float64)
    if not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(f"{expected}; got {dict(zip(names, values.tolist(), strict=True))}.")
    return list(values.tolist())
