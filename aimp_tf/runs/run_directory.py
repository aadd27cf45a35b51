"""What a run leaves on disk, and what of it can be trusted. Only plain data is read back: JSON, npz without pickles.

A round is done when its result.json is there, which is written last and holds the checksums of the round's other files.
Its state.npz is all that a run goes on from; masks.npz and weights.weights.h5 are for people. Within a round, backup/
holds the state at the end of an epoch. metrics.jsonl and tensorboard/ are made anew from these when a run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import importlib.util
import json
import logging
import os
import pathlib
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from aimp_tf.config import PruningConfig, kept_defaults, upgrade
from aimp_tf.config.texts import list_differences
from aimp_tf.files import (
    UNFINISHED,
    DamagedFileError,
    check_files,
    check_writable,
    checksum,
    folder_that_appears_whole,
    pack,
    read_arrays,
    read_json,
    replacing,
    unpack,
    write_arrays,
    write_atomically,
    write_json,
)
from aimp_tf.runs.outcome import Outcome
from aimp_tf.training.rounds import RoundResult, by_split

if TYPE_CHECKING:
    from aimp_tf.runs.tensorboard import TensorBoardLog

logger = logging.getLogger(__name__)

_ELSEWHERE = "Name another folder, or pass overwrite=True to begin anew in this one."
_TOLD = 6
"""How many of the differences between two runs an error tells."""
_CHECKSUMS = {
    "data.crc32": "the values of its training data were others",
    "validation_data.crc32": "the values of its validation data were others",
    "trained_weights": "it began with other weights than the model has (start='trained': load that model anew)",
}
_LOCK = ".aimp_tf_lock"
_OVERWRITTEN = f"{UNFINISHED}overwritten"
_ROUND_NAMES = re.compile(r"round_\d{3,}|final")
_OWN_NAMES = re.compile(
    rf"(config|environment|outcome|signature)\.json|metrics\.jsonl|tensorboard|{_ROUND_NAMES.pattern}"
)
_SIGNED_FILES = ("config.json", "environment.json")
_ROUND_FILES = ("masks.npz", "state.npz", "weights.weights.h5")
_BACKUP_FILES = ("state.npz",)
_PACKAGES = ("aimp_tf", "tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "numpy")


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
    with _naming_the_folder(path):
        try:
            _read_noted(path / "signature.json", _SIGNED_FILES)
            config, environment = (json.loads((path / name).read_text(encoding="utf-8")) for name in _SIGNED_FILES)
            rounds: list[RoundResult] = []
            while os.path.lexists(path / f"round_{len(rounds):03d}" / "result.json"):
                rounds.append(_read_result(path / f"round_{len(rounds):03d}", len(rounds))[0])
            finished = os.path.lexists(path / "final" / "result.json")
            if finished:
                rounds.append(_read_result(path / "final", len(rounds))[0])
            outcome = _read_outcome(path / "outcome.json")
        except DamagedFileError as error:
            raise ValueError(f"The run in {path} cannot be trusted: {error}.") from error
    return RecordedRun(os.fspath(path), config, environment, rounds, finished, outcome)


def final_weights(path: str | os.PathLike[str]) -> pathlib.Path:
    """The file with the pruned weights of a finished run, for `model.load_weights`.

    Raises:
        ValueError: As `read_run`, or the run is not finished.
        RuntimeError: It cannot be read.
    """
    run = read_run(path)
    if not run.finished:
        raise ValueError(f"The run in {path} is not finished; the call that began it goes on with it.")
    folder = pathlib.Path(path) / "final"
    with _naming_the_folder(folder.parent):
        try:
            _check_noted(folder / "result.json", read_json(folder / "result.json"), _ROUND_FILES)
        except DamagedFileError as error:
            raise ValueError(f"The run in {path} cannot be trusted: {error}.") from error
    return folder / "weights.weights.h5"


def check_workdir(path: str | os.PathLike[str]) -> pathlib.Path:
    """Checks, writing nothing, that a run can be written to `path`, or goes on there.

    Raises:
        ValueError: The folder holds something that is not of a run, is a file, or cannot be written.
        OSError: It cannot be read.
    """
    path = pathlib.Path(path).expanduser()
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"workdir {path} is a file; name a folder that is new or empty, or one of a run to go on with."
        )
    if path.is_dir() and not (path / _LOCK).exists() and (entries := sorted(path.iterdir())):
        raise ValueError(
            f"workdir {path} holds files already that are not of a run, such as {entries[0].name!r}; name a folder "
            "that is new or empty, or one of a run to go on with."
        )
    check_writable(path, "workdir")
    return path


class RunDirectory:
    """A folder that a run is written to and goes on from. As a context, it keeps every other process out.

    Args:
        path: A folder of a run, or one that is empty or does not exist yet. Nothing is written before `begin`, but for
            the folder itself and its lock; they go again if the context ends by an exception before anything is saved.
        config: The config of the run.
        signature: What the run assumes of the model and the data: nested dicts as they come from JSON.
        overwrite: Whether `begin` removes what a run left here first.

    Raises:
        ValueError: As `check_workdir`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: PruningConfig,
        signature: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = check_workdir(path)
        self._config = config
        self._signature = signature
        self._overwrite = overwrite
        self._lock: int | None = None
        self._made: list[pathlib.Path] = []
        self._round_count = 0
        self._begun = False
        self._saved = False
        self._tensorboard: TensorBoardLog | None = None

    def __enter__(self) -> RunDirectory:
        """Makes the folder and takes its lock, which ends with this process, however that comes about.

        Raises:
            RuntimeError: Another process uses the folder, or it cannot be written.
        """
        with _naming_the_folder(self.path):
            self._made = [folder for folder in (self.path, *self.path.absolute().parents) if not folder.exists()]
            while self._lock is None:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    os.close(lock)
                    raise RuntimeError(f"Another process uses workdir {self.path}; name another folder.") from error
                if _is_open_at(lock, self.path / _LOCK):  # Whoever held it may have removed it as it ended.
                    self._lock = lock
                else:
                    os.close(lock)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Lets other processes use the folder; if an exception came before anything was saved, all is as it was."""
        assert self._lock is not None
        if self._tensorboard is not None:
            self._tensorboard.close()
        if kind is not None and self._begun and not self._saved:
            with contextlib.suppress(OSError):
                self._put_back()
        if kind is not None and {entry.name for entry in self.path.iterdir()} == {_LOCK}:
            with contextlib.suppress(OSError):
                (self.path / _LOCK).unlink()
                for folder in self._made:
                    folder.rmdir()
        os.close(self._lock)
        self._lock = None

    def keep_defaults(self) -> dict[str, Any]:
        """Settles how a run of an older version that is here goes on: with the defaults of that version.

        Returns:
            The fields of the config, with their values, that this changes; what is planned must have them.

        Raises:
            ValueError, RuntimeError: As `begin`.
        """
        with _naming_the_folder(self.path):
            self._recover()
            if self._overwrite or not self._holds_run:
                return {}
            with self._trusting():
                _read_noted(self.path / "signature.json", _SIGNED_FILES)
                kept = kept_defaults(self._config, self._stored_config())
        if kept:
            logger.info(
                "The run in %s was begun by an older version and goes on with its defaults: %s.",
                self.path,
                ", ".join(f"{name}={value!r}" for name, value in kept.items()),
            )
        self._config = self._config.replace(**kept)
        return kept

    def begin(self, round_count: int) -> None:
        """Begins a run here, or makes sure that the one that is here is the same.

        Args:
            round_count: Rounds of the whole run, the final one included.

        Raises:
            ValueError: It has another config, model or data, or does not say which, for its files are damaged.
            RuntimeError: The folder cannot be written.
        """
        self._round_count = round_count
        with _naming_the_folder(self.path):
            self._recover()
            if self._overwrite and self._own_entries():
                (self.path / _OVERWRITTEN).mkdir()
                # The signature last, for it says that this is a run.
                for entry in sorted(self._own_entries(), key=lambda entry: entry.name == "signature.json"):
                    os.replace(entry, self.path / _OVERWRITTEN / entry.name)
            if self._holds_run:
                self._check_same()
                return
            self._begun = True
            write_atomically(self.path / "config.json", self._config.to_json())
            started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            environment = {"started": started, **describe_environment()}
            write_atomically(self.path / "environment.json", json.dumps(environment, indent=2))
            # Last: without it, the run has not begun.
            write_json(self.path / "signature.json", {**self._signature, "files": _checksums(self.path, _SIGNED_FILES)})

    def outcome(self) -> Outcome:
        """What was measured of the run that is here beside the dense model, if there is one that will go on.

        Raises:
            ValueError: It is another run, or the file is damaged.
            RuntimeError: It cannot be read.
        """
        with _naming_the_folder(self.path):
            if self._overwrite or not self._holds_run:
                return Outcome()
            self._check_same()
            try:
                known = _read_outcome(self.path / "outcome.json")
                if os.path.lexists(self.path / "final" / "result.json"):
                    return known
                # The sizes are of a pruned model that is to be trained anew.
                return Outcome(known.dense_metrics, known.dense_epochs, known.examples)
            except DamagedFileError as error:
                raise ValueError(f"{error}. Remove the file, and the same call measures it anew.") from error

    def save_outcome(self, outcome: Outcome) -> None:
        """Saves what was measured of the run beside the dense model, in place of what is there."""
        with _naming_the_folder(self.path):
            write_json(self.path / "outcome.json", outcome.to_fields())
            self._note_saved()

    def finished_rounds(self) -> list[FinishedRound]:
        """The rounds that are done, from the first one on.

        Raises:
            ValueError: A file of one is damaged.
            RuntimeError: One cannot be read.
        """
        rounds: list[FinishedRound] = []
        with _naming_the_folder(self.path):
            for index in range(self._round_count):
                folder = self._folder(index)
                if not os.path.lexists(folder / "result.json"):
                    break
                try:
                    rounds.append(_read_round(folder, index))
                except DamagedFileError as error:
                    raise ValueError(
                        f"{error}. Nothing that a run writes is ever so by itself. Bring the file back, or remove "
                        f"{folder}, and the same call trains that round and those after it anew."
                    ) from error
        return rounds

    def backup(self, index: int) -> dict[str, Any] | None:
        """The newest state within a round, as `save_backup` got it, if there is one.

        What is damaged is named in the log and removed.
        """
        folder = self._folder(index) / "backup"
        with _naming_the_folder(self.path):
            for path in sorted(folder.glob("epoch_*"), reverse=True):
                try:
                    _check_folders(path, folder, folder.parent)
                    return _read_state(path, _read_noted(path / "state.json", _BACKUP_FILES)["state"])
                except (KeyError, TypeError, ValueError) as error:
                    logger.warning("%s. The round goes on from an earlier epoch.", error)
                    self._remove([path])
        return None

    def go_on(self, rounds: Sequence[FinishedRound], epoch_logs: Sequence[Mapping[str, Any]]) -> None:
        """Removes what is beyond these rounds and the epochs of the one that follows, and what writing left half-done.

        Args:
            rounds: What `finished_rounds` gave.
            epoch_logs: The logs of the epochs of the next round that a backup holds.
        """
        with _naming_the_folder(self.path):
            *done, next_folder = map(self._folder, range(len(rounds) + 1))
            # Links first, lest what they lead to be taken for the run's.
            links = [
                path for folder in (*done, next_folder) for path in (folder, folder / "backup") if path.is_symlink()
            ]
            self._remove(links)
            self._remove(folder for folder in self._rounds() if folder not in done and folder != next_folder)
            self._remove(folder / "backup" for folder in done)
            for folder in (self.path, *done, next_folder):
                self._remove(path for path in folder.glob(f"{UNFINISHED}*") if path.name != _OVERWRITTEN)
            logs = [*(round_.logs for round_ in rounds), epoch_logs]
            lines = [line for index, of_round in enumerate(logs) for line in _metric_lines(index, of_round)]
            path = self.path / "metrics.jsonl"
            # Also in place of a link.
            if lines:
                write_atomically(path, "\n".join(lines))
            else:
                path.unlink(missing_ok=True)
            self._begin_tensorboard(rounds, epoch_logs)

    def add_metrics(self, index: int, epoch: int, logs: Mapping[str, Any]) -> None:
        """Adds the logs of an epoch to metrics.jsonl, a line for training and, where it was validated, another."""
        with _naming_the_folder(self.path):
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in _metric_lines(index, [logs], epoch))
            if self._tensorboard is not None:
                self._tensorboard.add_epoch(logs)
            self._note_saved()

    def save_backup(self, index: int, epoch: int, state: Mapping[str, Any]) -> None:
        """Saves the state of a round after `epoch` of its epochs, in place of an earlier one.

        Args:
            index: The round's.
            epoch: Number of epochs done.
            state: As `files.pack` takes it.
        """
        folder = self._folder(index) / "backup"
        with _naming_the_folder(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            with folder_that_appears_whole(folder / f"epoch_{epoch:06d}") as path:
                packed = _write_state(path, state)
                write_json(path / "state.json", {"state": packed, "files": _checksums(path, _BACKUP_FILES)})
            self._remove(sorted(folder.glob("epoch_*"))[:-1])

    def save_round(
        self,
        result: RoundResult,
        epoch_logs: Sequence[Mapping[str, Any]],
        masks: Mapping[str, np.ndarray],
        save_weights: Callable[[str], object],
        state: Mapping[str, Any],
    ) -> None:
        """Saves a finished round: its masks, weights and state and, last of all, its result.json.

        Args:
            result: What came of it.
            epoch_logs: The logs of each epoch.
            masks: Path -> bool array.
            save_weights: Writes the weights of the model to a file whose name it is given.
            state: As `files.pack` takes it.
        """
        folder = self._folder(result.index)
        with _naming_the_folder(self.path):
            folder.mkdir(exist_ok=True)
            packed = _write_state(folder, state)
            write_arrays(folder / "masks.npz", masks, compressed=True)
            with replacing(folder / "weights.weights.h5") as path:
                save_weights(str(path))
            fields = {**dataclasses.asdict(result), "logs": list(epoch_logs), "state": packed}
            write_json(folder / "result.json", {**fields, "files": _checksums(folder, _ROUND_FILES)})
            self._remove([folder / "backup"])
            if self._tensorboard is not None:
                self._tensorboard.add_round(result)
            self._note_saved()

    def save_model(self, model: Any) -> None:
        """Exports the pruned model to final/saved_model, in place of what is there.

        Raises:
            RuntimeError: That fails; the model is not lost.
        """
        from aimp_tf.exporting import export  # Not at the top: to check a folder, nobody need wait for TensorFlow.

        try:
            # What an earlier process left there may be anything, and a SavedModel is a program.
            self._remove([self.path / "final" / "saved_model"])
            export(model, self.path / "final", formats=("saved_model",), verify=False)
        except Exception as error:
            raise RuntimeError(
                f"The run is complete, but no SavedModel could be written to {self.path / 'final'}: {error}. The model "
                f"that was passed to prune is pruned, and the masks, weights and metrics of every round are in "
                f"{self.path}."
            ) from error

    def _begin_tensorboard(self, rounds: Sequence[FinishedRound], epoch_logs: Sequence[Mapping[str, Any]]) -> None:
        self._remove([self.path / "tensorboard"])
        if importlib.util.find_spec("tensorboard") is None:
            return
        from aimp_tf.runs.tensorboard import TensorBoardLog  # As `export` above.

        self._tensorboard = TensorBoardLog(self.path / "tensorboard")
        for round_ in rounds:
            for epoch in round_.logs:
                self._tensorboard.add_epoch(epoch)
            self._tensorboard.add_round(round_.result)
        for logs in epoch_logs:
            self._tensorboard.add_epoch(logs)

    def _check_same(self) -> None:
        with self._trusting():
            there = _read_noted(self.path / "signature.json", _SIGNED_FILES)
            there["config"] = upgrade(self._stored_config())
            environment = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        here = {"config": json.loads(self._config.to_json()), **self._signature}
        # What earlier versions did not write down.
        if "trained_weights" not in there:
            here.pop("trained_weights", None)
        optimizers = [side.get("model", {}).get("optimizer") for side in (there, here)]
        if list(map(type, optimizers)) == [str, dict]:
            here["model"] = {**here["model"], "optimizer": optimizers[0]}
        if differing := [_in_words(text) for text in list_differences(there, here)]:
            more = f"; and {len(differing) - _TOLD} more" if len(differing) > _TOLD else ""
            raise ValueError(
                f"workdir {self.path} holds another run: {'; '.join(differing[:_TOLD])}{more}. {_ELSEWHERE}"
            )
        now = describe_environment()
        for name in ("python", "versions", "devices"):
            if environment.get(name) != now[name]:
                logger.warning(
                    "The run in %s was begun with %s %s and goes on with %s: it may end with other numbers.",
                    self.path,
                    name,
                    environment.get(name),
                    now[name],
                )

    @contextlib.contextmanager
    def _trusting(self) -> Iterator[None]:
        """Around reading what the run that is here says of itself."""
        try:
            yield
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"workdir {self.path} holds a run that cannot be trusted: {error}. {_ELSEWHERE}"
            ) from error

    def _stored_config(self) -> dict[str, Any]:
        return json.loads((self.path / "config.json").read_text(encoding="utf-8"))

    def _recover(self) -> None:
        """Settles what a process that was killed while it began anew did not."""
        if not self._put_aside:
            return
        if self._rounds() or (self.path / "metrics.jsonl").exists():
            shutil.rmtree(self.path / _OVERWRITTEN)
        else:
            self._put_back()

    @property
    def _holds_run(self) -> bool:
        return os.path.lexists(self.path / "signature.json") or bool(self._rounds())

    def _folder(self, index: int) -> pathlib.Path:
        return self.path / ("final" if index == self._round_count - 1 else f"round_{index:03d}")

    def _rounds(self) -> list[pathlib.Path]:
        return [path for path in self._own_entries() if _ROUND_NAMES.fullmatch(path.name) and not path.is_symlink()]

    def _own_entries(self) -> list[pathlib.Path]:
        return sorted(path for path in self.path.iterdir() if _OWN_NAMES.fullmatch(path.name))

    def _put_back(self) -> None:
        """Gives back what `begin` put aside, if it did, in place of what it began."""
        self._remove(self._own_entries())
        if not self._put_aside:
            return
        # The signature first, for it says that this is a run.
        entries = sorted((self.path / _OVERWRITTEN).iterdir(), key=lambda entry: entry.name != "signature.json")
        for entry in entries:
            os.replace(entry, self.path / entry.name)
        (self.path / _OVERWRITTEN).rmdir()

    def _note_saved(self) -> None:
        """Something is saved now, so that what it overwrites can go."""
        self._saved = True
        if self._put_aside:
            shutil.rmtree(self.path / _OVERWRITTEN)

    @property
    def _put_aside(self) -> bool:
        return (self.path / _OVERWRITTEN).is_dir() and not (self.path / _OVERWRITTEN).is_symlink()

    def _remove(self, paths: Iterable[pathlib.Path]) -> None:
        for path in list(paths):
            if path.is_dir() and not path.is_symlink():
                # The mark of a whole folder first, lest the rest be taken for one.
                for name in ("result.json", "state.json"):
                    (path / name).unlink(missing_ok=True)
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming_the_folder(path: pathlib.Path) -> Iterator[None]:
    """Says of an error of the file system which folder it was, and that nothing that was done is lost."""
    try:
        yield
    except OSError as error:
        raise RuntimeError(
            f"workdir {path} cannot be read or written: {error}. What was saved there before is whole: make room, or "
            "give the permission, and the same call goes on from there."
        ) from error


def _is_open_at(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _read_round(folder: pathlib.Path, index: int) -> FinishedRound:
    result, fields = _read_result(folder, index)
    _check_noted(folder / "result.json", fields, _ROUND_FILES)
    try:
        return FinishedRound(result, fields["logs"], _read_state(folder, fields["state"]))
    except KeyError as error:
        raise DamagedFileError(f"{folder / 'result.json'} is not the result of a round: {error}") from error


def _read_result(folder: pathlib.Path, index: int) -> tuple[RoundResult, dict[str, Any]]:
    """What came of a round, and all that its result.json holds."""
    _check_folders(folder)
    fields = read_json(folder / "result.json")
    try:
        result = RoundResult.from_fields(fields)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{folder / 'result.json'} is not the result of a round: {error}") from error
    if result.index != index:
        raise DamagedFileError(f"{folder} holds round {result.index + 1}")
    return result, fields


def _read_outcome(path: pathlib.Path) -> Outcome:
    """What `write_json` wrote of `Outcome.to_fields`; where there is no such file, nothing was measured."""
    if not os.path.lexists(path):
        return Outcome()
    fields = read_json(path)
    try:
        return Outcome.from_fields(fields)
    except (OverflowError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is not the outcome of a run: {error}") from error


def _write_state(folder: pathlib.Path, state: Mapping[str, Any]) -> Any:
    """Writes the arrays of a state to state.npz, and gives what is left of it for the JSON file beside it."""
    arrays: dict[str, np.ndarray] = {}
    packed = pack(state, arrays)
    write_arrays(folder / "state.npz", arrays)
    return packed


def _read_state(folder: pathlib.Path, packed: Any) -> dict[str, Any]:
    return unpack(packed, read_arrays(folder / "state.npz"))


def _checksums(folder: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
    return {name: checksum(folder / name) for name in names}


def _read_noted(path: pathlib.Path, names: Sequence[str]) -> dict[str, Any]:
    """The fields of a JSON file, but for "files": the `_checksums` of the files beside it, which are compared.

    Raises:
        DamagedFileError: One of them, or the file itself, is damaged, or it names others than `names`.
    """
    fields = read_json(path)
    _check_noted(path, fields, names)
    del fields["files"]
    return fields


def _check_noted(path: pathlib.Path, fields: Mapping[str, Any], names: Sequence[str]) -> None:
    """Compares the checksums in a JSON file with those of the files beside it. Raises as `_read_noted`."""
    files = fields.get("files")
    if not isinstance(files, dict) or set(files) != set(names):
        raise DamagedFileError(f"{path} names other files than {', '.join(names)}")
    check_files(path.parent, files)


def _check_folders(*folders: pathlib.Path) -> None:
    for folder in folders:
        if folder.is_symlink():
            raise DamagedFileError(f"{folder} is a link")


def describe_environment() -> dict[str, Any]:
    """The command, versions and devices of this process."""
    import tensorflow as tf

    return {
        "command": list(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "devices": [
            tf.config.experimental.get_device_details(device).get("device_name", device.device_type)
            for device in tf.config.list_physical_devices()
        ],
    }


def _metric_lines(index: int, epoch_logs: Sequence[Mapping[str, Any]], first_epoch: int = 0) -> list[str]:
    """A line for the training of each epoch and, where it was validated, one for validation."""
    lines = []
    for epoch, logs in enumerate(epoch_logs, start=first_epoch):
        lines += [
            json.dumps({"round": index, "epoch": epoch, "split": split, **metrics})
            for split, metrics in by_split(logs).items()
        ]
    return lines


def _in_words(difference: str) -> str:
    """A line of `list_differences`, where it is of checksums, as what that means."""
    return _CHECKSUMS.get(difference.partition(":")[0], difference)
