"""What a run has left in its folder, if that can be trusted. Only plain data is read: JSON, npz without pickles."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.config.latency import Timings
from aimp_tf.files import (
    DamagedFileError,
    checksum,
    pack,
    read_arrays,
    read_json,
    unpack,
    write_arrays,
    write_json,
)
from aimp_tf.runs.outcome import Outcome
from aimp_tf.training.rounds import RoundResult

SIGNED_FILES = ("config.json", "environment.json")
ROUND_FILES = ("masks.npz", "state.npz", "weights.weights.h5")
BACKUP_FILES = ("state.npz",)


@dataclasses.dataclass(frozen=True)
class FinishedRound:
    """A round that is done.

    Attributes:
        result: What came of it.
        logs: The logs of each of its epochs.
        state: What `save_round` was given.
    """

    result: RoundResult
    logs: list[dict[str, Any]]
    state: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """What there is to tell of a run, be it done or not.

    Attributes:
        name: What to call it.
        config: The version and the fields of its `PruningConfig`, as they come from JSON.
        environment: What `describe_environment` gave when it began, and the time.
        rounds: The rounds that are done.
        finished: Whether the final training is among them.
        outcome: The pruned model beside the dense one, as far as that was measured.
    """

    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rounds: Sequence[RoundResult]
    finished: bool
    outcome: Outcome = Outcome()


def read_run(path: str | os.PathLike[str]) -> RecordedRun:
    """What a run has left in its folder so far. It may still be training there: nothing is locked or written.

    Raises:
        ValueError: The folder holds no run, or one whose files are damaged.
        RuntimeError: It cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    if not os.path.lexists(path / "signature.json"):
        raise ValueError(f"{path} holds no run: there is no signature.json in it. Name the workdir of a run.")
    with naming_the_folder(path):
        _, config, environment = read_beginning(path)
        rounds: list[RoundResult] = []
        while os.path.lexists(path / f"round_{len(rounds):03d}" / "result.json"):
            rounds.append(_read_result(path / f"round_{len(rounds):03d}", len(rounds)))
        finished = os.path.lexists(path / "final" / "result.json")
        if finished:
            rounds.append(_read_result(path / "final", len(rounds)))
        outcome = read_outcome(path / "outcome.json")
    return RecordedRun(os.fspath(path), config, environment, rounds, finished, outcome)


def final_weights(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file with the pruned weights of a finished run, for `model.load_weights`.

    Raises:
        ValueError: As `read_run`, or the run is not finished.
        RuntimeError: It cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    if not read_run(path).finished:
        raise ValueError(f"The run in {path} is not finished; the call that began it goes on with it.")
    with naming_the_folder(path):
        read_noted(path / "final" / "result.json", ROUND_FILES)
    return path / "final" / "weights.weights.h5"


@contextlib.contextmanager
def naming_the_folder(path: pathlib.Path) -> Iterator[None]:
    """Says of an error which folder it was and, of one of the file system, that nothing that was done is lost.

    Raises:
        ValueError: For a DamagedFileError.
        RuntimeError: For an OSError.
    """
    try:
        yield
    except DamagedFileError as error:
        raise ValueError(f"The run in {path} cannot be trusted: {error}.") from error
    except OSError as error:
        raise RuntimeError(
            f"workdir {path} cannot be read or written: {error}. What was saved there before is whole: make room, or "
            "give the permission, and the same call goes on from there."
        ) from error


def read_beginning(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The signature of the run in a folder, the fields of its config and its environment."""
    signature = read_noted(path / "signature.json", SIGNED_FILES)
    config, environment = (json.loads((path / name).read_text(encoding="utf-8")) for name in SIGNED_FILES)
    return signature, config, environment


def read_round(folder: pathlib.Path, index: int) -> FinishedRound:
    _refuse_links(folder)
    fields = read_noted(folder / "result.json", ROUND_FILES)
    with _as_damage(folder / "result.json", "the result of a round"):
        return FinishedRound(_result_in(folder, index, fields), fields["logs"], _read_state(folder, fields))


def read_backup(folder: pathlib.Path) -> dict[str, Any]:
    """The state within a round that a folder in that of its backups holds."""
    _refuse_links(folder, folder.parent, folder.parent.parent)
    with _as_damage(folder / "state.json", "the state of a round"):
        return _read_state(folder, read_noted(folder / "state.json", BACKUP_FILES))


def _read_result(folder: pathlib.Path, index: int) -> RoundResult:
    _refuse_links(folder)
    with _as_damage(folder / "result.json", "the result of a round"):
        return _result_in(folder, index, read_json(folder / "result.json"))


def _result_in(folder: pathlib.Path, index: int, fields: dict[str, Any]) -> RoundResult:
    result = RoundResult.from_fields(fields)
    if result.index != index:
        raise DamagedFileError(f"{folder} holds round {result.index + 1}")
    return result


def read_outcome(path: pathlib.Path) -> Outcome:
    """What `write_json` wrote of `Outcome.to_fields`; where there is no such file, nothing was measured."""
    if not os.path.lexists(path):
        return Outcome()
    with _as_damage(path, "the outcome of a run"):
        return Outcome.from_fields(read_json(path))


@contextlib.contextmanager
def _as_damage(path: pathlib.Path, what: str) -> Iterator[None]:
    """Raises DamagedFileError where a file, though it is whole, does not hold what it should."""
    try:
        yield
    except DamagedFileError:
        raise
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is not {what}: {error}") from error


def read_teacher(path: pathlib.Path) -> list[np.ndarray]:
    """The arrays of a file, in the order of their names. Raises ValueError where it is damaged or not there."""
    with _asking_for(path, "The model learns from it, and trained anew it would be another."):
        return [array for _, array in sorted(read_arrays(path).items())]


def read_timings(path: pathlib.Path) -> Timings:
    """What `write_json` wrote of `Timings.to_fields`. Raises ValueError where it is damaged or not there."""
    with _asking_for(path, "Timed anew, the run would be another one."):
        return Timings.from_fields(read_json(path))


@contextlib.contextmanager
def _asking_for(path: pathlib.Path, why: str) -> Iterator[None]:
    """Says of an error in a file, without which a run cannot go on, why that is so and what to do."""
    try:
        yield
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is missing or damaged: {error}. {why} Bring the file back, or pass overwrite=True to begin anew."
        ) from error


def write_state(folder: pathlib.Path, state: Mapping[str, Any]) -> Any:
    """Writes the arrays of a state to state.npz, and gives what is left of it for the JSON file beside it."""
    arrays: dict[str, np.ndarray] = {}
    packed = pack(state, arrays)
    write_arrays(folder / "state.npz", arrays)
    return packed


def _read_state(folder: pathlib.Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    return unpack(fields["state"], read_arrays(folder / "state.npz"))


def write_noted(path: pathlib.Path, fields: Mapping[str, Any], names: Sequence[str]) -> None:
    """Writes a JSON file that notes the checksums of the files beside it that are named."""
    write_json(path, {**fields, "files": {name: checksum(path.parent / name) for name in names}})


def read_noted(path: pathlib.Path, names: Sequence[str]) -> dict[str, Any]:
    """The fields that `write_noted` was given with these names.

    Raises:
        DamagedFileError: The file or one of those that it notes is damaged, or it notes others than `names`.
    """
    fields = read_json(path)
    files = fields.pop("files", None)
    if not isinstance(files, dict) or set(files) != set(names):
        raise DamagedFileError(f"{path} names other files than {', '.join(names)}")
    for name, expected in files.items():
        if checksum(path.parent / name) != expected:
            raise DamagedFileError(f"{path.parent / name} is damaged: its checksum is not the one that was noted")
    return fields


def _refuse_links(*folders: pathlib.Path) -> None:
    for folder in folders:
        if folder.is_symlink():
            raise DamagedFileError(f"{folder} is a link")
