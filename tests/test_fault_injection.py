"""Runs that are killed at random moments, again and again. Mechanics only, on made-up data.

The long form: tools/test tests/test_fault_injection.py --kills=40
"""

import json
import pathlib
import subprocess
import sys

import h5py
import numpy as np
import pytest

pytestmark = pytest.mark.slow

PROGRAM = pathlib.Path(__file__).with_name("killed_run.py")


def content_of(folder, read_events):
    """Everything that a run left and that must not depend on when it was killed."""
    content = {"tensorboard": read_events(folder / "tensorboard")}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith("tensorboard/"):
            continue
        if path.suffix == ".npz":
            content[name] = {key: array.tolist() for key, array in np.load(path).items()}
        elif path.suffix == ".h5":
            with h5py.File(path) as file:
                names = []
                file.visit(names.append)
                content[name] = {key: file[key][()].tolist() for key in names if isinstance(file[key], h5py.Dataset)}
        elif path.name == "result.json":
            fields = json.loads(path.read_text())
            for field in ("seconds", "checksum", "files"):
                del fields[field]
            del fields["state"]["pruning"]["seconds"]
            content[name] = fields
        elif path.name == "metrics.jsonl":
            content[name] = path.read_text().splitlines()
        elif "saved_model" not in name and path.name != "environment.json":
            content[name] = path.read_text() if path.name == "config.json" else None
    return content


@pytest.mark.parametrize("keras_name", ["keras", pytest.param("tf_keras", marks=pytest.mark.exhaustive)])
def test_killed_runs_end_as_if_nothing_had_happened(keras_name, tmp_path, request, read_events):
    kills = request.config.getoption("--kills")
    command = [sys.executable, PROGRAM, keras_name, tmp_path, str(kills), "1"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["killed"] == kills
    whole = content_of(tmp_path / "whole", read_events)
    assert len(whole["metrics.jsonl"]) == 2 * (5 * 3 + 6)
    for folder in tmp_path.glob("killed_*"):
        killed = content_of(folder, read_events)
        assert whole.keys() == killed.keys()
        for name, content in whole.items():
            assert killed[name] == content, name
