"""The folder of a run: which run it is, whose it is now, and what an earlier one left there."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from aimp_tf.config import PruningConfig, kept_defaults
from aimp_tf.files import (
    write_arrays,
    write_atomically,
    write_json,
)
from aimp_tf.runs.environment import describe_environment
from aimp_tf.runs.folder_lock import FolderLock
from aimp_tf.runs.recorded_run import (
    SIGNED_FILES,
    checksums,
    naming_the_folder,
    read_noted,
    read_teacher,
)
from aimp_tf.runs.run_files import RunFiles, check_workdir
from aimp_tf.runs.run_logs import RunLogs
from aimp_tf.runs.sameness import check_same, stored_config, trusting

logger = logging.getLogger(__name__)


class RunFolder:
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
        self._lock = FolderLock(self.path)
        self._files = RunFiles(self.path)
        self._round_count = 0
        self._teacher: Sequence[np.ndarray] | None = None
        self._begun = False
        self._saved = False
        self._logs = RunLogs(self.path)

    def __enter__(self) -> Self:
        """Makes the folder and takes its lock, which ends with this process, however that comes about.

        Raises:
            RuntimeError: Another process uses the folder, or it cannot be written.
        """
        with naming_the_folder(self.path):
            self._lock.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """Lets other processes use the folder; if an exception came before anything was saved, all is as it was."""
        self._logs.close()
        if kind is not None and self._begun and not self._saved:
            with contextlib.suppress(OSError):
                self._files.put_back()
        self._lock.give_back(vanish=kind is not None)

    def keep_defaults(self) -> dict[str, Any]:
        """Settles how a run of an older version that is here goes on: with the defaults of that version.

        Returns:
            The fields of the config, with their values, that this changes; what is planned must have them.

        Raises:
            ValueError, RuntimeError: As `begin`.
        """
        with naming_the_folder(self.path):
            self._files.recover()
            if self._overwrite or not self._files.hold_run:
                return {}
            with trusting(self.path):
                read_noted(self.path / "signature.json", SIGNED_FILES)
                kept = kept_defaults(self._config, stored_config(self.path))
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
        with naming_the_folder(self.path):
            self._files.recover()
            if self._overwrite:
                self._files.put_aside()
            if self._files.hold_run:
                check_same(self.path, self._config, self._signature)
                return
            self._begun = True
            write_atomically(self.path / "config.json", self._config.to_json())
            started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            environment = {"started": started, **describe_environment()}
            write_atomically(self.path / "environment.json", json.dumps(environment, indent=2))
            if self._teacher is not None:
                write_arrays(self.path / "teacher.npz", {f"{i:04d}": value for i, value in enumerate(self._teacher)})
            # Last: without it, the run has not begun.
            write_json(self.path / "signature.json", {**self._signature, "files": checksums(self.path, SIGNED_FILES)})

    def keep_teacher(self, weights: Sequence[np.ndarray] | None) -> None:
        """Lets a run that `begin` begins keep the weights of the dense model that it learns from."""
        self._teacher = weights

    def teacher(self) -> list[np.ndarray] | None:
        """The weights that `keep_teacher` was given, if a run is here that will go on. Raises as `timings`."""
        with naming_the_folder(self.path):
            if self._overwrite or not self._files.hold_run:
                return None
            return read_teacher(self.path / "teacher.npz")

    def _note_saved(self) -> None:
        """Something is saved now, so that what it overwrites can go."""
        self._saved = True
        self._files.forget_aside()
