"""Configs that earlier versions wrote, with the meaning that they had then."""

import math
import numbers
from collections.abc import Mapping
from typing import Any

from aimp_tf.config.checks import NOT_USED_BY
from aimp_tf.config.texts import is_number

VERSION = 5
"""Of the fields that `to_json` writes. Whoever changes a default raises it, and has `upgrade` write the former one."""


def upgraded_to(defaults: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that any version of `to_json` wrote as `VERSION` has them, whose defaults these are, and with the
    meaning that they had then.

    A field that is missing gets the default that it had when they were written, and so does one of which None stood for
    what followed from other fields. Those of version 1 do not say their version.

    Raises:
        ValueError: The version is not known.
    """
    upgraded = {"version": 1, **fields}
    version = upgraded["version"]
    if not is_number(version, numbers.Integral) or not 1 <= version <= VERSION:
        raise ValueError(
            f"The config is of version {version!r}, and this aimp_tf reads versions 1 to {VERSION}. If a newer one "
            "wrote it, install that one."
        )
    for former in range(version, VERSION):
        for name, default in _FORMER_DEFAULTS.get(former, {}).items():
            if callable(default) and upgraded.get(name) is None:
                upgraded[name] = default(upgraded)
            upgraded.setdefault(name, default)
    if version == 1:
        upgraded.pop("data_on_device", None)  # An argument of `prune` since, which changes no result.
    upgraded = {**defaults, **upgraded}
    if version < 5:
        if upgraded["compact_rounds"] is False:  # Which is what None is, but for whole channels, which there were not.
            upgraded["compact_rounds"] = None
        # What a method did not use was not heeded at first, and is refused since.
        unused = NOT_USED_BY.get(upgraded["method"], NOT_USED_BY["gradual"])  # That of "tfmot", which it had as well.
        upgraded |= {name: defaults[name] for name in unused}
    return {**upgraded, "version": VERSION}


def _fifth_of_epochs(fields: Mapping[str, Any]) -> int | None:
    epochs: Any = fields.get("epochs")
    return max(1, math.ceil(epochs / 5)) if is_number(epochs, numbers.Integral) else None


# Version -> the fields that it lacks, but for those with the defaults of today, or whose defaults the next one has
# changed -> their defaults, or a function of the other fields that gives what None stood for.
_FORMER_DEFAULTS: dict[int, dict[str, Any]] = {
    1: {"round_epochs": _fifth_of_epochs, "min_layer_share": 0.0},
    2: {"shrink": 1.0, "round_schedule": "compress"},
}
