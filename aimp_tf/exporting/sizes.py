"""How much room what was exported takes."""

from __future__ import annotations

import gzip
import io
import pathlib
import tarfile


def stored_bytes(path: pathlib.Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


def gzip_bytes(path: pathlib.Path) -> int:
    """Bytes of a file as gz, or of a folder as tar.gz."""
    buffer = io.BytesIO()
    if path.is_dir():
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            archive.add(path, arcname=path.name)
    else:
        with gzip.GzipFile(fileobj=buffer, mode="wb") as file:
            file.write(path.read_bytes())
    return buffer.tell()
