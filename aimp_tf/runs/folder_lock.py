"""A folder that one process at a time uses."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib

LOCK = ".aimp_tf_lock"
"""The name of the file that is locked."""


class FolderLock:
    """The lock of a folder, which ends with the process that holds it, however that comes about.

    Args:
        path: The folder.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._made: list[pathlib.Path] = []
        self._descriptor: int | None = None

    def take(self) -> None:
        """Makes the folder, if it is missing, and takes its lock.

        Raises:
            RuntimeError: Another process uses the folder.
            OSError: It cannot be written.
        """
        self._made = [folder for folder in (self._path, *self._path.absolute().parents) if not folder.exists()]
        while self._descriptor is None:
            self._path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise RuntimeError(f"Another process uses workdir {self._path}; name another folder.") from error
            if _is_open_at(lock, self._path / LOCK):  # Whoever held it may have removed it as it ended.
                self._descriptor = lock
            else:
                os.close(lock)

    def give_back(self, *, vanish: bool) -> None:
        """Lets other processes use the folder.

        Args:
            vanish: Whether the folder goes again, with those that were made for it, if nothing but the lock is there.
        """
        assert self._descriptor is not None
        with contextlib.suppress(OSError):
            if vanish and {entry.name for entry in self._path.iterdir()} == {LOCK}:
                (self._path / LOCK).unlink()
                for folder in self._made:
                    folder.rmdir()
        os.close(self._descriptor)
        self._descriptor = None


def _is_open_at(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False
