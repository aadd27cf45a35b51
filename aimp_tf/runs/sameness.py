"""Whether a run that is in a folder is the one that is to go on there."""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from aimp_tf.config import PruningConfig, upgrade
from aimp_tf.config.texts import list_differences
from aimp_tf.runs.environment import describe_environment
from aimp_tf.runs.recorded_run import SIGNED_FILES, read_noted

logger = logging.getLogger(__name__)

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


def check_same(path: pathlib.Path, config: PruningConfig, signature: Mapping[str, Any]) -> None:
    """Raises ValueError unless the run in a folder is the one that goes on there; warns of other versions and devices.

    Args:
        path: The folder, with the signature of a run.
        config: What the run goes on with.
        signature: What that assumes of the model and the data: nested dicts as they come from JSON.
    """
    with trusting(path):
        there = read_noted(path / "signature.json", SIGNED_FILES)
        there["config"] = upgrade(stored_config(path))
        environment = json.loads((path / "environment.json").read_text(encoding="utf-8"))
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
def trusting(path: pathlib.Path) -> Iterator[None]:
    """Around reading what the run in a folder says of itself. Raises ValueError where that cannot be trusted."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"workdir {path} holds a run that cannot be trusted: {error}. {_ELSEWHERE}") from error


def stored_config(path: pathlib.Path) -> dict[str, Any]:
    """The fields of the config that a run was begun with, as `config.upgrade` takes them."""
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


def _in_words(difference: str) -> str:
    """A line of `list_differences`, where it is of checksums on both sides, as what that means."""
    name, _, values = difference.partition(":")
    return difference if "'nothing'" in values else _CHECKSUMS.get(name, difference)
