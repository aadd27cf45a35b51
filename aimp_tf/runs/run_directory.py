"""What a run leaves on disk, and what of it can be trusted. Only plain data is read back: JSON, npz without pickles.

A round is done when its result.json is there, which is written last and holds the checksums of the round's other files.
Its state.npz is all that a run goes on from; masks.npz and weights.weights.h5 are for people. Within a round, backup/
holds the state at the end of an epoch. metrics.jsonl and tensorboard/ are made anew from these when a run goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.config.latency import Timings
from aimp_tf.files import (
    UNFINISHED,
    DamagedFileError,
    folder_that_appears_whole,
    replacing,
    write_arrays,
    write_json,
)
from aimp_tf.runs.outcome import Outcome
from aimp_tf.runs.recorded_run import (
    BACKUP_FILES,
    ROUND_FILES,
    FinishedRound,
    checksums,
    naming_the_folder,
    read_backup,
    read_outcome,
    read_round,
    read_timings,
    write_state,
)
from aimp_tf.runs.run_files import OVERWRITTEN, remove
from aimp_tf.runs.run_folder import RunFolder
from aimp_tf.runs.sameness import check_same
from aimp_tf.training.rounds import RoundResult

logger = logging.getLogger(__name__)


class RunDirectory(RunFolder):
    """A folder that a run is written to and goes on from."""

    def outcome(self) -> Outcome:
        """What was measured of the run that is here beside the dense model, if there is one that will go on.

        Raises:
            ValueError: It is another run, or the file is damaged.
            RuntimeError: It cannot be read.
        """
        with naming_the_folder(self.path):
            if self._overwrite or not self._files.hold_run:
                return Outcome()
            check_same(self.path, self._config, self._signature)
            try:
                known = read_outcome(self.path / "outcome.json")
                if os.path.lexists(self.path / "final" / "result.json"):
                    return known
                # The sizes are of a pruned model that is to be trained anew.
                return known.without_the_pruned()
            except DamagedFileError as error:
                raise ValueError(f"{error}. Remove the file, and the same call measures it anew.") from error

    def timings(self) -> Timings:
        """What was timed in the run that is here, if there is one that will go on. What is added is saved as it comes.

        Raises:
            ValueError: The file is damaged, or is not there though rounds are done.
            RuntimeError: It cannot be read.
        """
        timings = Timings()
        with naming_the_folder(self.path):
            if self._config.latency is not None and not self._overwrite and self._files.hold_run:
                timings = read_timings(self.path / "latency.json", needed=bool(self._files.rounds()))
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
        """The rounds that are done, from the first one on.

        Raises:
            ValueError: A file of one is damaged.
            RuntimeError: One cannot be read.
        """
        rounds: list[FinishedRound] = []
        with naming_the_folder(self.path):
            for index in range(self._round_count):
                folder = self._folder(index)
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
            # Links first, lest what they lead to be taken for the run's.
            links = [
                path for folder in (*done, next_folder) for path in (folder, folder / "backup") if path.is_symlink()
            ]
            remove(links)
            remove(folder for folder in self._files.rounds() if folder not in done and folder != next_folder)
            remove(folder / "backup" for folder in done)
            for folder in (self.path, *done, next_folder):
                remove(path for path in folder.glob(f"{UNFINISHED}*") if path.name != OVERWRITTEN)
            self._logs.begin(rounds, epoch_logs)

    def add_metrics(self, index: int, epoch: int, logs: Mapping[str, Any]) -> None:
        """Adds the logs of an epoch, which count from 0 in each round."""
        with naming_the_folder(self.path):
            self._logs.add_epoch(index, epoch, logs)
            self._note_saved()

    def save_backup(self, index: int, epoch: int, state: Mapping[str, Any]) -> None:
        """Saves the state of a round after `epoch` of its epochs, in place of an earlier one.

        Args:
            index: The round's.
            epoch: Number of epochs done.
            state: As `files.pack` takes it.
        """
        folder = self._folder(index) / "backup"
        with naming_the_folder(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            with folder_that_appears_whole(folder / f"epoch_{epoch:06d}") as path:
                packed = write_state(path, state)
                write_json(path / "state.json", {"state": packed, "files": checksums(path, BACKUP_FILES)})
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
            write_json(folder / "result.json", {**fields, "files": checksums(folder, ROUND_FILES)})
            remove([folder / "backup"])
            self._logs.add_round(result)
            self._note_saved()

    def save_model(self, model: Any) -> None:
        """Exports the pruned model to final/saved_model, in place of what is there.

        Raises:
            RuntimeError: That fails; the model is not lost.
        """
        from aimp_tf.exporting import export  # Not at the top: to check a folder, nobody need wait for TensorFlow.

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
