"""What a run leaves on disk, and what of it can be trusted. Only plain data is read back: JSON, npz without pickles.

A round is done when its result.json is there, which is written last and holds the checksums of the round's other files.
Its state.npz is all that a run goes on from; masks.npz and weights.weights.h5 are for people. Within a round, backup/
holds the state at the end of an epoch. metrics.jsonl and tensorboard/ are made anew from these when a run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.config.latency import Timings
from aimp_tf.exporting import export
from aimp_tf.files import (
    DamagedFileError,
    remove,
    replacing,
    write_arrays,
    write_atomically,
    write_json,
)
from aimp_tf.runs.outcome import Outcome
from aimp_tf.runs.recorded_run import (
    BACKUP_FILES,
    ROUND_FILES,
    SIGNED_FILES,
    FinishedRound,
    naming_the_folder,
    read_backup,
    read_outcome,
    read_round,
    read_teacher,
    read_timings,
    write_noted,
    write_state,
)
from aimp_tf.runs.run_files import RunFiles, check_workdir, locked
from aimp_tf.runs.run_logs import RunLogs
from aimp_tf.runs.sameness import check_same, describe_environment, kept_by
from aimp_tf.training.rounds import RoundResult

logger = logging.getLogger(__name__)


class RunDirectory:
    """A folder that a run is written to and goes on from. As a context, it keeps every other process out.

    Args:
        path: A folder of a run, or one that is empty or does not exist yet. Nothing is written before `begin`, but for
            the folder itself and its lock; they go again if the context ends by an exception before anything is saved.
        config: The config of the run.
        signature: What the run assumes of the model and the data: nested dicts as they come from JSON.
        overwrite: Whether `begin` removes what a run left here first.

    Raises:
        ValueError: As `check_workdir`. Of the methods, what reads raises it for a damaged file or another run.
        RuntimeError: Of all methods: the folder cannot be read or written.
    """

    def __init__(
        self, path: str | os.PathLike[str], config: PruningConfig, signature: Mapping[str, Any], *, overwrite: bool
    ) -> None:
        self.path = check_workdir(path)
        self._config = config
        self._signature = signature
        self._overwrite = overwrite
        self._files = RunFiles(self.path)
        self._logs = RunLogs(self.path)
        self._round_count = 0
        self._teacher: Sequence[np.ndarray] | None = None
        self._unsaved = False  # Whether a run has begun here, of which nothing is saved yet.
        self._lock = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Makes the folder and takes its lock. Raises RuntimeError where another process uses it."""
        with naming_the_folder(self.path):
            self._lock.enter_context(locked(self.path))
        return self

    def __exit__(self, *exception: Any) -> None:
        """Lets other processes use the folder; if an exception came before anything was saved, all is as it was."""
        self._logs.close()
        if exception[0] is not None and self._unsaved:
            with contextlib.suppress(OSError):
                self._files.put_back()
        self._lock.__exit__(*exception)

    @property
    def _goes_on(self) -> bool:
        """Whether there is a run here that will go on."""
        return not self._overwrite and self._files.hold_run

    def keep_defaults(self) -> dict[str, Any]:
        """Settles how a run of an older version that is here goes on: with the defaults of that version.

        Returns:
            The fields of the config, with their values, that this changes; what is planned must have them.
        """
        with naming_the_folder(self.path):
            self._files.recover()
            kept = kept_by(self.path, self._config) if self._goes_on else {}
        self._config = self._config.replace(**kept)
        return kept

    def begin(self, round_count: int) -> None:
        """Begins a run here, or makes sure that the one that is here is the same.

        Args:
            round_count: Rounds of the whole run, the final one included.

        Raises:
            ValueError: It has another config, model or data, or does not say which, for its files are damaged.
        """
        self._round_count = round_count
        with naming_the_folder(self.path):
            self._files.recover()
            if self._overwrite:
                self._files.put_aside()
            if self._files.hold_run:
                check_same(self.path, self._config, self._signature)
                return
            self._unsaved = True
            write_atomically(self.path / "config.json", self._config.to_json())
            started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            environment = {"started": started, **describe_environment()}
            write_atomically(self.path / "environment.json", json.dumps(environment, indent=2))
            if self._teacher is not None:
                write_arrays(self.path / "teacher.npz", {f"{i:04d}": value for i, value in enumerate(self._teacher)})
            # Last: without it, the run has not begun.
            write_noted(self.path / "signature.json", self._signature, SIGNED_FILES)

    def keep_teacher(self, weights: Sequence[np.ndarray] | None) -> None:
        """Lets a run that `begin` begins keep the weights of the dense model that it learns from."""
        self._teacher = weights

    def teacher(self) -> list[np.ndarray] | None:
        """The weights that `keep_teacher` was given, if a run is here that will go on."""
        with naming_the_folder(self.path):
            return read_teacher(self.path / "teacher.npz") if self._goes_on else None

    def outcome(self) -> Outcome:
        """What was measured of the run that is here beside the dense model, if there is one that will go on."""
        with naming_the_folder(self.path):
            if not self._goes_on:
                return Outcome()
            check_same(self.path, self._config, self._signature)
            try:
                known = read_outcome(self.path / "outcome.json")
            except DamagedFileError as error:
                raise ValueError(f"{error}. Remove the file, and the same call measures it anew.") from error
            if os.path.lexists(self.path / "final" / "result.json"):
                return known
            # The sizes are of a pruned model that is to be trained anew.
            return known.without_the_pruned()

    def timings(self) -> Timings:
        """What was timed in the run that is here, if there is one that will go on. What is added is saved as it comes.

        Raises ValueError, too, where the file is not there though rounds are done.
        """
        timings, path = Timings(), self.path / "latency.json"
        with naming_the_folder(self.path):
            expected = self._config.latency is not None and self._goes_on
            if expected and (os.path.lexists(path) or self._files.rounds()):
                timings = read_timings(path)
        timings.save = self._save_timings
        return timings

    def _save_timings(self, timings: Timings) -> None:
        if timings.dense is not None and self._round_count:  # The run has begun, or goes on.
            with naming_the_folder(self.path):
                write_json(self.path / "latency.json", timings.to_fields())

    def save_outcome(self, outcome: Outcome) -> None:
        """Saves what was measured of the run beside the dense model, in place of what is there."""
        with naming_the_folder(self.path):
            write_json(self.path / "outcome.json", outcome.to_fields())
            self._note_saved()

    def finished_rounds(self) -> list[FinishedRound]:
        """The rounds that are done, from the first one on."""
        rounds: list[FinishedRound] = []
        with naming_the_folder(self.path):
            for index, folder in enumerate(map(self._folder, range(self._round_count))):
                if not os.path.lexists(folder / "result.json"):
                    break
                try:
                    rounds.append(read_round(folder, index))
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
        with naming_the_folder(self.path):
            for path in sorted(folder.glob("epoch_*"), reverse=True):
                try:
                    return read_backup(path)
                except DamagedFileError as error:
                    logger.warning("%s. The round goes on from an earlier epoch.", error)
                    remove([path])
        return None

    def go_on(self, rounds: Sequence[FinishedRound], epoch_logs: Sequence[Mapping[str, Any]]) -> None:
        """Removes what is beyond these rounds and the epochs of the one that follows, and what writing left half-done.

        Args:
            rounds: What `finished_rounds` gave.
            epoch_logs: The logs of the epochs of the next round that a backup holds.
        """
        with naming_the_folder(self.path):
            *done, next_folder = map(self._folder, range(len(rounds) + 1))
            self._files.remove_beyond(done, next_folder)
            self._logs.begin(rounds, epoch_logs)

    def add_metrics(self, index: int, epoch: int, logs: Mapping[str, Any]) -> None:
        """Adds the logs of an epoch, which count from 0 in each round."""
        with naming_the_folder(self.path):
            self._logs.add_epoch(index, epoch, logs)
            self._note_saved()

    def save_backup(self, index: int, epoch: int, state: Mapping[str, Any]) -> None:
        """Saves the state of a round, as `files.pack` takes it, after so many epochs, in place of an earlier one."""
        folder = self._folder(index) / "backup"
        with naming_the_folder(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / f"epoch_{epoch:06d}") as path:
                path.mkdir()
                write_noted(path / "state.json", {"state": write_state(path, state)}, BACKUP_FILES)
            remove(sorted(folder.glob("epoch_*"))[:-1])

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
        with naming_the_folder(self.path):
            folder.mkdir(exist_ok=True)
            packed = write_state(folder, state)
            write_arrays(folder / "masks.npz", masks, compressed=True)
            with replacing(folder / "weights.weights.h5") as path:
                save_weights(str(path))
            fields = {**dataclasses.asdict(result), "logs": list(epoch_logs), "state": packed}
            write_noted(folder / "result.json", fields, ROUND_FILES)
            remove([folder / "backup"])
            self._logs.add_round(result)
            self._note_saved()

    def save_model(self, model: Any) -> None:
        """Exports the pruned model to final/saved_model, in place of what is there; no model is lost if that fails."""
        try:
            # What an earlier process left there may be anything, and a SavedModel is a program.
            remove([self.path / "final" / "saved_model"])
            export(model, self.path / "final", formats=("saved_model",), verify=False)
        except Exception as error:
            raise RuntimeError(
                f"The run is complete, but no SavedModel could be written to {self.path / 'final'}: {error}. The model "
                f"that was passed to prune is pruned, and the masks, weights and metrics of every round are in "
                f"{self.path}."
            ) from error

    def _folder(self, index: int) -> pathlib.Path:
        return self.path / ("final" if index == self._round_count - 1 else f"round_{index:03d}")

    def _note_saved(self) -> None:
        """Something is saved now, so that what it overwrites can go."""
        self._unsaved = False
        self._files.forget_aside()
