"""Whether a run that is in a folder is the one that is to go on there, and what it is trained with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import pathlib
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from aimp_tf.config import PruningConfig, kept_defaults, upgrade
from aimp_tf.config.texts import list_differences
from aimp_tf.runs.recorded_run import read_beginning

logger = logging.getLogger(__name__)

_PACKAGES = ("aimp_tf", "tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")
_ELSEWHERE = "Name another folder, or pass overwrite=True to begin anew in this one."
_TOLD = 6
"""How many of the differences between two runs an error tells."""
_CHECKSUMS = {
    "data.crc32": "the values of its training data were others",
    "validation_data.crc32": "the values of its validation data were others",
    "teacher": "it learned from another teacher, or another one's weights",
    "masks": "it began with other masks",
    "trained_weights": "it began with other weights than the model has (start='trained': load that model anew)",
}


def describe_environment() -> dict[str, Any]:
    """The command, versions and devices of this process."""
    return {
        "command": list(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "devices": [
            tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
            for device in tf.config.list_physical_devices()
        ],
    }


def _version(name: str) -> str | None:
    """Of a package; None where it is not installed by that name, as of tensorflow-cpu."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def kept_by(path: pathlib.Path, config: PruningConfig) -> dict[str, Any]:
    """The fields that a run in a folder goes on with rather than those of a config: defaults of an older version."""
    with _trusting(path):
        _, stored, _ = read_beginning(path)
        kept = kept_defaults(config, stored)
    if kept:
        logger.info(
            "The run in %s was begun by an older version and goes on with its defaults: %s.",
            path,
            ", ".join(f"{name}={value!r}" for name, value in kept.items()),
        )
    return kept


def check_same(path: pathlib.Path, config: PruningConfig, signature: Mapping[str, Any]) -> None:
    """Raises ValueError unless the run in a folder is the one that goes on there; warns of other versions and devices.

    Args:
        path: The folder, with the signature of a run.
        config: What the run goes on with.
        signature: What that assumes of the model and the data: nested dicts as they come from JSON.
    """
    with _trusting(path):
        there, stored, environment = read_beginning(path)
        there["config"] = upgrade(stored)
    here = {"config": json.loads(config.to_json()), **signature}
    # What earlier versions did not write down.
    if "trained_weights" not in there:
        here.pop("trained_weights", None)
    optimizers = [side.get("model", {}).get("optimizer") for side in (there, here)]
    if list(map(type, optimizers)) == [str, dict]:
        here["model"] = {**here["model"], "optimizer": optimizers[0]}
    if differing := [_in_words(text) for text in list_differences(there, here)]:
        more = f"; and {len(differing) - _TOLD} more" if len(differing) > _TOLD else ""
        raise ValueError(f"workdir {path} holds another run: {'; '.join(differing[:_TOLD])}{more}. {_ELSEWHERE}")
    now = describe_environment()
    for name in ("python", "versions", "devices"):
        if environment.get(name) != now[name]:
            logger.warning(
                "The run in %s was begun with %s %s and goes on with %s: it may end with other numbers.",
                path,
                name,
                environment.get(name),
                now[name],
            )


@contextlib.contextmanager
def _trusting(path: pathlib.Path) -> Iterator[None]:
    """Around reading what the run in a folder says of itself. Raises ValueError where that cannot be trusted."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"workdir {path} holds a run that cannot be trusted: {error}. {_ELSEWHERE}") from error


def _in_words(difference: str) -> str:
    """A line of `list_differences`, where it is of checksums on both sides, as what that means."""
    name, _, values = difference.partition(":")
    return difference if "'nothing'" in values else _CHECKSUMS.get(name, difference)
