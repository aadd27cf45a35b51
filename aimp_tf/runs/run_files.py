"""Which files of a folder are a run's, whose it is now, and how a run that is begun anew takes their place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from aimp_tf.files import UNFINISHED, check_writable, making, remove

LOCK = ".aimp_tf_lock"
"""The name of the file by which a run locks its folder."""

OVERWRITTEN = f"{UNFINISHED}overwritten"
"""The folder, within that of a run, with the files of the one that it takes the place of."""

_ROUND_NAMES = re.compile(r"round_\d{3,}|final")
_OWN_NAMES = re.compile(
    rf"(config|environment|latency|outcome|signature)\.json|teacher\.npz|metrics\.jsonl|tensorboard|{_ROUND_NAMES.pattern}"
)


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
    if path.is_dir() and not (path / LOCK).exists() and (entries := sorted(path.iterdir())):
        raise ValueError(
            f"workdir {path} holds files already that are not of a run, such as {entries[0].name!r}; name a folder "
            "that is new or empty, or one of a run to go on with."
        )
    check_writable(path, "workdir")
    return path


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Makes a folder, if it is missing, and keeps other processes out of it, until the context or this process ends.

    If an exception ends it, the folder goes again, with those that were made for it, if nothing but the lock is there.

    Raises:
        RuntimeError: Another process uses the folder.
        OSError: It cannot be written.
    """
    with making(path):
        # Whoever held it may have removed it as it ended.
        while not _is_open_at(lock := _taken_lock(path), path / LOCK):
            os.close(lock)
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError):
                if {entry.name for entry in path.iterdir()} == {LOCK}:
                    (path / LOCK).unlink()
            raise
        finally:
            os.close(lock)


def _taken_lock(path: pathlib.Path) -> int:
    path.mkdir(parents=True, exist_ok=True)
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise RuntimeError(f"Another process uses workdir {path}; name another folder.") from error
    return lock


def _is_folder(path: pathlib.Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_open_at(descriptor: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


class RunFiles:
    """The files of a run in a folder, and those of one that it takes the place of.

    The latter lie in a folder whose name says, at any moment, what is to become of them: `_aside` waits for whether
    something is saved, `_moving` goes back to where it was, as far as it is not there, `_wanted` goes back in place of
    what is there, and `_unwanted` goes. So a process can be killed anywhere, and `recover` ends what it did.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._aside = path / OVERWRITTEN
        self._moving, self._wanted, self._unwanted = (
            path / f"{OVERWRITTEN}_{name}" for name in ("moving", "wanted", "unwanted")
        )

    @property
    def hold_run(self) -> bool:
        return os.path.lexists(self._path / "signature.json") or bool(self.rounds())

    def rounds(self) -> list[pathlib.Path]:
        return [path for path in self._entries() if _ROUND_NAMES.fullmatch(path.name) and not path.is_symlink()]

    def put_aside(self) -> None:
        """Keeps what is there, if anything is, until `forget_aside` or `put_back`."""
        # The signature last, for it says that this is a run.
        entries = sorted(self._entries(), key=lambda entry: entry.name == "signature.json")
        if entries:
            self._moving.mkdir()
            for entry in entries:
                os.replace(entry, self._moving / entry.name)
            os.replace(self._moving, self._aside)

    def put_back(self) -> None:
        """Gives back what was put aside, if that was so, in place of what is there."""
        if _is_folder(self._aside):
            os.replace(self._aside, self._wanted)
        remove(self._entries())
        if _is_folder(self._wanted):
            os.replace(self._wanted, self._moving)
        self._end_moving()

    def forget_aside(self) -> None:
        """Removes what was put aside, if that was so."""
        if _is_folder(self._aside):
            remove([self._unwanted])
            os.replace(self._aside, self._unwanted)
            remove([self._unwanted])

    def recover(self) -> None:
        """Settles what a process that was killed while it began anew did not."""
        if _is_folder(self._moving):
            self._end_moving()
        elif _is_folder(self._wanted):
            self.put_back()
        elif self.rounds() or (self._path / "metrics.jsonl").exists():
            self.forget_aside()
        elif _is_folder(self._aside):
            self.put_back()

    def _end_moving(self) -> None:
        """Gives back what had been moved, beside what is there."""
        if not _is_folder(self._moving):
            return
        # The signature first, for it says that this is a run.
        for entry in sorted(self._moving.iterdir(), key=lambda entry: entry.name != "signature.json"):
            os.replace(entry, self._path / entry.name)
        self._moving.rmdir()

    def remove_beyond(self, done: Sequence[pathlib.Path], next_folder: pathlib.Path) -> None:
        """Removes the rounds that are neither done nor next, backups of those that are, and what is half written."""
        # Links first, lest what they lead to be taken for the run's.
        mine = (*done, next_folder)
        remove(path for folder in mine for path in (folder, folder / "backup") if path.is_symlink())
        remove(folder for folder in self.rounds() if folder not in mine)
        remove(folder / "backup" for folder in done)
        for folder in (self._path, *mine):
            remove(path for path in folder.glob(f"{UNFINISHED}*") if path != self._aside)

    def _entries(self) -> list[pathlib.Path]:
        return sorted(path for path in self._path.iterdir() if _OWN_NAMES.fullmatch(path.name))
