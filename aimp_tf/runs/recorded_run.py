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
    check_files,
    checksum,
    pack,
    read_arrays,
    read_json,
    unpack,
    write_arrays,
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
        title: The heading of a report on it alone. None makes one from the name.
    """

    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    rounds: Sequence[RoundResult]
    finished: bool
    outcome: Outcome = Outcome()
    title: str | None = None


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
        try:
            read_noted(path / "signature.json", SIGNED_FILES)
            config, environment = (json.loads((path / name).read_text(encoding="utf-8")) for name in SIGNED_FILES)
            rounds: list[RoundResult] = []
            while os.path.lexists(path / f"round_{len(rounds):03d}" / "result.json"):
                rounds.append(_read_result(path / f"round_{len(rounds):03d}", len(rounds))[0])
            finished = os.path.lexists(path / "final" / "result.json")
            if finished:
                rounds.append(_read_result(path / "final", len(rounds))[0])
            outcome = read_outcome(path / "outcome.json")
        except DamagedFileError as error:
            raise ValueError(f"The run in {path} cannot be trusted: {error}.") from error
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
    folder = path / "final"
    with naming_the_folder(folder.parent):
        try:
            _check_noted(folder / "result.json", read_json(folder / "result.json"), ROUND_FILES)
        except DamagedFileError as error:
            raise ValueError(f"The run in {path} cannot be trusted: {error}.") from error
    return folder / "weights.weights.h5"


@contextlib.contextmanager
def naming_the_folder(path: pathlib.Path) -> Iterator[None]:
    """Says of an error of the file system which folder it was, and that nothing that was done is lost."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(
            f"workdir {path} cannot be read or written: {error}. What was saved there before is whole: make room, or "
            "give the permission, and the same call goes on from there."
        ) from error


def read_round(folder: pathlib.Path, index: int) -> FinishedRound:
    result, fields = _read_result(folder, index)
    _check_noted(folder / "result.json", fields, ROUND_FILES)
    try:
        return FinishedRound(result, fields["logs"], read_state(folder, fields["state"]))
    except KeyError as error:
        raise DamagedFileError(f"{folder / 'result.json'} is not the result of a round: {error}") from error


def read_backup(folder: pathlib.Path) -> dict[str, Any]:
    """The state within a round that a folder in that of its backups holds."""
    check_folders(folder, folder.parent, folder.parent.parent)
    try:
        return read_state(folder, read_noted(folder / "state.json", BACKUP_FILES)["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(str(error)) from error


def _read_result(folder: pathlib.Path, index: int) -> tuple[RoundResult, dict[str, Any]]:
    """What came of a round, and all that its result.json holds."""
    check_folders(folder)
    fields = read_json(folder / "result.json")
    try:
        result = RoundResult.from_fields(fields)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{folder / 'result.json'} is not the result of a round: {error}") from error
    if result.index != index:
        raise DamagedFileError(f"{folder} holds round {result.index + 1}")
    return result, fields


def read_outcome(path: pathlib.Path) -> Outcome:
    """What `write_json` wrote of `Outcome.to_fields`; where there is no such file, nothing was measured."""
    if not os.path.lexists(path):
        return Outcome()
    fields = read_json(path)
    try:
        return Outcome.from_fields(fields)
    except (OverflowError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is not the outcome of a run: {error}") from error


def read_teacher(path: pathlib.Path) -> list[np.ndarray]:
    """The arrays of a file, in the order of their names. Raises ValueError where it is damaged or not there."""
    try:
        return [array for _, array in sorted(read_arrays(path).items())]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} is missing or damaged: {error}. The model learns from it, and trained anew it would be another. "
            "Bring the file back, or pass overwrite=True to begin anew."
        ) from error


def read_timings(path: pathlib.Path, *, needed: bool) -> Timings:
    """What `write_json` wrote of `Timings.to_fields`; where there is no such file, nothing was timed.

    Raises:
        ValueError: It is damaged, or is not there and `needed`.
    """
    if not needed and not os.path.lexists(path):
        return Timings()
    try:
        return Timings.from_fields(read_json(path))
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is missing or damaged: {error}. Timed anew, the run would be another one. Bring the file back, or "
            "pass overwrite=True to begin anew."
        ) from error


def write_state(folder: pathlib.Path, state: Mapping[str, Any]) -> Any:
    """Writes the arrays of a state to state.npz, and gives what is left of it for the JSON file beside it."""
    arrays: dict[str, np.ndarray] = {}
    packed = pack(state, arrays)
    write_arrays(folder / "state.npz", arrays)
    return packed


def read_state(folder: pathlib.Path, packed: Any) -> dict[str, Any]:
    return unpack(packed, read_arrays(folder / "state.npz"))


def checksums(folder: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
    return {name: checksum(folder / name) for name in names}


def read_noted(path: pathlib.Path, names: Sequence[str]) -> dict[str, Any]:
    """The fields of a JSON file, but for "files": the `checksums` of the files beside it, which are compared.

    Raises:
        DamagedFileError: One of them, or the file itself, is damaged, or it names others than `names`.
    """
    fields = read_json(path)
    _check_noted(path, fields, names)
    del fields["files"]
    return fields


def _check_noted(path: pathlib.Path, fields: Mapping[str, Any], names: Sequence[str]) -> None:
    """Compares the checksums in a JSON file with those of the files beside it. Raises as `read_noted`."""
    files = fields.get("files")
    if not isinstance(files, dict) or set(files) != set(names):
        raise DamagedFileError(f"{path} names other files than {', '.join(names)}")
    check_files(path.parent, files)


def check_folders(*folders: pathlib.Path) -> None:
    for folder in folders:
        if folder.is_symlink():
            raise DamagedFileError(f"{folder} is a link")
