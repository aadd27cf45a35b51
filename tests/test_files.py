import contextlib
import errno
import json
import os
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from aimp_tf import files
from aimp_tf.files import (
    DamagedFileError,
    checksum,
    pack,
    read_arrays,
    read_json,
    replacing,
    unpack,
    write_arrays,
    write_atomically,
    write_json,
)
from aimp_tf.runs.recorded_run import read_noted, write_noted

ARRAYS = {"a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.array(True), "c": np.zeros((0, 2))}


def assert_equal(here, there):
    assert here.keys() == there.keys()
    for name, array in here.items():
        np.testing.assert_array_equal(array, there[name])
        assert (array.shape, array.dtype) == (there[name].shape, there[name].dtype)


def changed_at_each_byte(path, step=1):
    """Changes one byte after another of a file, and in the end cuts it short."""
    content = path.read_bytes()
    for position in range(0, len(content), step):
        yield path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
    for length in (0, 1, len(content) // 2, len(content) - 1):
        yield path.write_bytes(content[:length])


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", fail)
    for write in (lambda: write_atomically(path, "new"), lambda: write_arrays(path, ARRAYS)):
        with pytest.raises(OSError, match="no space left"):
            write()
    with pytest.raises(OSError, match="no space left"), replacing(tmp_path / "folder") as folder:
        folder.mkdir()
        write_arrays(folder / "file", ARRAYS)
    assert path.read_text() == "old\n" and [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_json_is_checked_at_every_byte(tmp_path):
    path = tmp_path / "result.json"
    fields = {"a": [1, 0.1, None, float("inf")], "text": "ä"}
    write_json(path, fields)
    assert read_json(path) == fields
    damaged = found = 0
    for _ in changed_at_each_byte(path):
        damaged += 1
        try:
            assert read_json(path) == fields, "a changed blank means the same"
        except DamagedFileError as error:
            assert str(path) in str(error)
            found += 1
    assert found > 0.8 * damaged
    path.write_text("[" * 100_000)
    with pytest.raises(DamagedFileError):
        read_json(path)


def test_arrays_come_back(tmp_path):
    write_arrays(tmp_path / "a.npz", ARRAYS)
    assert_equal(read_arrays(tmp_path / "a.npz"), ARRAYS)
    for compressed in (False, True):
        write_arrays(tmp_path / "a.npz", ARRAYS, compressed=compressed)
        with np.load(tmp_path / "a.npz", allow_pickle=False) as loaded:
            assert_equal(dict(loaded), ARRAYS)
    with pytest.raises(ValueError, match="Arrays of objects cannot be written: evil"):
        write_arrays(tmp_path / "a.npz", {**ARRAYS, "evil": np.array([print], object)})
    assert_equal(read_arrays(tmp_path / "a.npz"), ARRAYS)


def test_damaged_arrays_are_found_or_whole(tmp_path):
    """Also without their checksum: zip has its own of the content, and what says how large an array is must agree."""
    path = tmp_path / "a.npz"
    write_arrays(path, ARRAYS)
    found = 0
    for _ in changed_at_each_byte(path):
        try:
            arrays = read_arrays(path)
        except DamagedFileError:
            found += 1
            continue
        for name, array in arrays.items():
            assert name not in ARRAYS or sorted(array.ravel().tolist()) == sorted(ARRAYS[name].ravel().tolist())
    assert found > 0.3 * path.stat().st_size


def header_of(shape, dtype):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def test_hostile_arrays_are_refused(tmp_path):
    path = tmp_path / "a.npz"

    def refused(message):
        with pytest.raises(DamagedFileError, match=message):
            read_arrays(path)

    for array in (np.array([print], dtype=object), np.array(["text"])):
        np.savez(path, a=array)
        refused("not an array of numbers")
    for shape in ((10**15,), (10**9, 10**9, 10**9), (-1, 3), (2.5,), (5,), (7,)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", header_of(shape, "<f4") + bytes(24))
        refused("not an array of numbers of that size|is damaged")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # A bomb: 400 kB of file, 400 MB of zeros.
        archive.writestr("a.npy", header_of((10**8,), "<f4") + bytes(4 * 10**8))
    tracemalloc.start()
    refused("larger than the file")
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    path.write_text("text")
    refused("is damaged")


def test_links_are_refused(tmp_path):
    write_json(tmp_path / "there.json", {})
    (tmp_path / "here.json").symlink_to(tmp_path / "there.json")
    for name, message in (("here.json", "is a link"), ("nothing.json", "is missing"), (".", "is not a file")):
        with pytest.raises(DamagedFileError, match=message):
            read_json(tmp_path / name)
        with pytest.raises(DamagedFileError, match=message):
            checksum(tmp_path / name)


def test_noted_files_are_checked_and_no_others(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    write_noted(tmp_path / "a" / "noted.json", {"field": 1}, ["file"])
    assert read_noted(tmp_path / "a" / "noted.json", ["file"]) == {"field": 1}
    (tmp_path / "a" / "file").write_text("z")
    with pytest.raises(DamagedFileError, match="a/file is damaged"):
        read_noted(tmp_path / "a" / "noted.json", ["file"])
    (tmp_path / "secret").write_text("s")
    for name in ("../secret", str(tmp_path / "secret")):
        write_noted(tmp_path / "a" / "noted.json", {}, [name])
        with pytest.raises(DamagedFileError, match="names other files than file"):
            read_noted(tmp_path / "a" / "noted.json", ["file"])


def test_what_a_crash_left_of_a_folder_is_in_nobodys_way(tmp_path):
    left = tmp_path / f"{files.UNFINISHED}folder"
    left.mkdir()
    (left / "half").write_text("half")
    for _ in range(2):  # The second one is not put in the place of the first.
        with contextlib.suppress(OSError), replacing(tmp_path / "folder") as folder:
            assert not folder.exists()
            folder.mkdir()
            (folder / "whole").write_text("whole")
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "whole"]


def test_what_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    """Such as a file on a server that is away for a moment."""
    write_json(tmp_path / "a.json", {})
    write_arrays(tmp_path / "a.npz", ARRAYS)

    def fail(*arguments, **options):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("builtins.open", fail)
    monkeypatch.setattr("io.open", fail)
    for read in (
        lambda: read_json(tmp_path / "a.json"),
        lambda: read_arrays(tmp_path / "a.npz"),
        lambda: checksum(tmp_path / "a.npz"),
    ):
        with pytest.raises(OSError, match="Stale"):
            read()


def test_values_with_arrays_come_back(tmp_path):
    half = np.arange(4).astype(ml_dtypes.bfloat16)
    value = {"list": [1, None, np.float32(0.5), (True, "text")], "arrays": {"a/b": [half, np.eye(2)]}, "none": {}}
    arrays = {}
    packed = json.loads(json.dumps(pack(value, arrays)))
    write_arrays(tmp_path / "state.npz", arrays)
    back = unpack(packed, read_arrays(tmp_path / "state.npz"))
    assert back["list"] == [1, None, 0.5, [True, "text"]] and back["none"] == {}
    np.testing.assert_array_equal(back["arrays"]["a/b"][0], half)
    assert back["arrays"]["a/b"][0].dtype == half.dtype
    back["arrays"]["a/b"][1][0, 0] = 2  # It can be written to.
    reference = packed["arrays"]["a/b"][0]
    for damaged in ({**reference, "dtype": "float33"}, {**reference, files._ARRAY: "other"}):
        with pytest.raises(DamagedFileError):
            unpack(damaged, arrays)
