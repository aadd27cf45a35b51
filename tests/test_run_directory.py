import itertools
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.runs import run_directory
from aimp_tf.runs.run_directory import RunDirectory
from aimp_tf.runs.run_files import OVERWRITTEN, RunFiles, check_workdir
from aimp_tf.runs.sameness import data_signature

SETTINGS = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 3, "round_epochs": 2, "verbose": 0, "seed": 1}


def test_what_a_run_leaves(make_mlp, blobs, tmp_path):
    result = aimp_tf.prune(make_mlp(), blobs, validation_data=blobs, workdir=tmp_path / "a" / "run", **SETTINGS)
    folder = tmp_path / "a" / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".aimp_tf_lock",
        "config.json",
        "environment.json",
        "final",
        "metrics.jsonl",
        "outcome.json",
        "round_000",
        "round_001",
        "signature.json",
        "tensorboard",
    ]
    for name in ("round_000", "round_001", "final"):
        own = {"masks.npz", "result.json", "state.npz", "weights.weights.h5"}
        exported = {"saved_model"} if name == "final" else set()
        assert {path.name for path in (folder / name).iterdir()} == own | exported
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["tensorflow"] == tf.__version__ and environment["devices"] == ["CPU"]
    config = aimp_tf.PruningConfig.from_json((folder / "config.json").read_text())
    assert config.target_sparsity == 0.75 and config.round_epochs == 2

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    expected = [
        (index, epoch, split)
        for index, epochs in ((0, 2), (1, 2), (2, 3))
        for epoch in range(epochs)
        for split in ("train", "validation")
    ]
    assert [(line["round"], line["epoch"], line["split"]) for line in lines] == expected
    last = result.rounds[-1].metrics
    assert lines[-1]["accuracy"] == last["val_accuracy"] and lines[-2]["loss"] == last["loss"]

    for round_, name in zip(result.rounds, ("round_000", "round_001", "final"), strict=True):
        saved = json.loads((folder / name / "result.json").read_text())
        assert saved["kept"] == round_.kept and saved["metrics"] == round_.metrics
        with np.load(folder / name / "masks.npz", allow_pickle=False) as masks:
            assert sum(masks[path].sum() for path in masks) == round_.kept
    with np.load(folder / "final" / "masks.npz") as masks:
        for path, mask in result.masks.items():
            np.testing.assert_array_equal(masks[path], mask)

    plain = make_mlp()
    plain.load_weights(folder / "round_001" / "weights.weights.h5")
    assert aimp_tf.sparsity(plain) == pytest.approx(result.rounds[1].sparsity)
    plain.load_weights(folder / "final" / "weights.weights.h5")
    for here, there in zip(plain.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)

    loaded = tf.saved_model.load(str(folder / "final" / "saved_model"))
    np.testing.assert_allclose(loaded.serve(blobs[0]), result.model.predict(blobs[0], verbose=0), atol=1e-6)


def test_metrics_stand_at_their_epoch(make_mlp, blobs, tmp_path):
    options = {"validation_freq": 2}
    aimp_tf.prune(make_mlp(), blobs, validation_data=blobs, **options, workdir=tmp_path / "run", **SETTINGS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    validated = [(line["round"], line["epoch"]) for line in lines if line["split"] == "validation"]
    assert validated == [(0, 1), (1, 1), (2, 1)]


def test_a_failed_export_does_not_lose_the_run(make_mlp, blobs, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr(run_directory, "export", fail)
    model = make_mlp()
    with pytest.raises(RuntimeError, match="The run is complete.*no space left.*passed to prune is pruned"):
        aimp_tf.prune(model, blobs, workdir=tmp_path / "run", **SETTINGS)
    assert aimp_tf.sparsity(model) == 0.75
    assert (tmp_path / "run" / "final" / "result.json").exists()


def test_texts_are_told_apart_by_what_they_say():
    def signature(texts):
        data = (np.array(texts, object), np.zeros(2))
        return data_signature(data, tf.data.Dataset.from_tensors(0), {})["crc32"]

    # In two pieces, so that the same texts are other objects.
    assert signature(["a text", "another"]) == signature(["a " + "text"[:], "".join(["an", "other"])])
    assert signature(["a text", "another"]) != signature(["a text", "yet another"])


def test_a_folder_that_holds_something_is_refused(make_mlp, blobs, tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir, message in ((tmp_path, "not of a run, such as 'file'"), (tmp_path / "file", "is a file")):
        with pytest.raises(ValueError, match=message):
            aimp_tf.prune(make_mlp(), blobs, workdir=workdir, **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    assert check_workdir(tmp_path / "empty") == tmp_path / "empty"


def test_a_folder_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # Root may write everywhere.
    with pytest.raises(ValueError, match="not a folder in which you may write"):
        check_workdir(tmp_path / "run")


def test_bad_settings_leave_nothing(make_mlp, blobs, tmp_path):
    with pytest.raises(ValueError, match="leaves none"):
        aimp_tf.prune(make_mlp(), blobs, workdir=tmp_path / "a" / "run", **{**SETTINGS, "target_sparsity": 0.999})
    with pytest.raises(ValueError, match="fit failed before its first step"):
        aimp_tf.prune(make_mlp(), (blobs[0][:, :5], blobs[1]), workdir=tmp_path / "a" / "run", **SETTINGS)
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="leaves none"):
        aimp_tf.prune(make_mlp(), blobs, workdir=tmp_path / "mine", **{**SETTINGS, "target_sparsity": 0.999})
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.fixture
def directory(tmp_path):
    """A run directory that has begun, of a run of two rounds."""
    config = aimp_tf.PruningConfig(0.5, epochs=3)
    with RunDirectory(tmp_path / "run", config, {"model": {}, "data": {}}, overwrite=False) as directory:
        directory.begin(round_count=2)
        yield directory


def test_the_newest_backup_is_used_and_an_older_one_where_that_is_damaged(directory, tmp_path):
    """Both are there where a process is killed before it removes the older one."""
    folder = tmp_path / "run" / "round_000" / "backup"
    for epoch in (2, 10):
        directory.save_backup(0, epoch, {"epochs": epoch, "weights": np.arange(epoch)})
        shutil.copytree(folder / f"epoch_{epoch:06d}", tmp_path / f"epoch_{epoch:06d}")
    shutil.copytree(tmp_path / "epoch_000002", folder / "epoch_000002")
    assert len(list(folder.iterdir())) == 2 and directory.backup(0)["epochs"] == 10
    (folder / "epoch_000010" / "state.json").write_text("{}")
    assert directory.backup(0)["epochs"] == 2


@pytest.mark.parametrize("written", ["metrics.jsonl", "round_000", None])
def test_a_run_that_was_overwritten_comes_back_only_where_nothing_took_its_place(directory, tmp_path, written):
    """A process was killed after it had put the old run aside and begun a new one."""
    run = tmp_path / "run"
    old = run / ".unfinished_overwritten"
    old.mkdir()
    for name in ("config.json", "environment.json", "signature.json"):
        shutil.copy(run / name, old / name)
    (old / "metrics.jsonl").write_text("old")
    if written == "metrics.jsonl":
        (run / written).write_text("new")
    elif written is not None:
        (run / written).mkdir()
    directory.begin(round_count=2)
    assert not old.exists()
    texts = [path.read_text() for path in run.glob("metrics.jsonl")]
    assert texts == {"metrics.jsonl": ["new"], "round_000": [], None: ["old"]}[written]


def test_an_overwriting_that_is_killed_anywhere_ends_as_one_run_or_the_other(tmp_path, monkeypatch):
    """Before each file that is moved or removed, the process ends, and another one settles what it left."""
    old = {"config.json": "old", "signature.json": "old", "round_000/result.json": "old", "final/result.json": "old"}
    new = {"config.json": "new", "latency.json": "new", "signature.json": "new", "final/result.json": "new"}
    left, numbers = [0], itertools.count()

    class Killed(BaseException):
        pass

    def killing(function):
        def call(*arguments, **settings):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **settings)

        return call

    for owner, name in ((os, "replace"), (pathlib.Path, "unlink"), (pathlib.Path, "rmdir"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, killing(getattr(owner, name)))

    def write(run, files):
        for name, text in files.items():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text(text)

    def killed_after(count, change):
        left[0] = count
        try:
            change()
        except Killed:
            return True
        finally:
            left[0] = 1000
        return False

    def held_by(run):
        RunFiles(run).recover()
        files = {str(path.relative_to(run)): path.read_text() for path in run.rglob("*.json")}
        return {name: text for name, text in files.items() if not name.startswith(OVERWRITTEN)}

    def going_through(prepare, change, expected):
        for count in itertools.count():
            run = tmp_path / f"run_{next(numbers)}"
            write(run, old)
            files = RunFiles(run)
            left[0] = 1000
            prepare(run, files)
            killed = killed_after(count, lambda files=files: change(files))
            again = next(numbers) % 3
            while killed and killed_after(again, lambda run=run: RunFiles(run).recover()):
                again += 1  # So is the one that settles it.
            assert held_by(run) == expected
            if not killed:
                return count

    def begun(run, files):
        files.put_aside()
        write(run, {name: text for name, text in new.items() if "final" not in name})

    def saved(run, files):
        begun(run, files)
        write(run, new)

    assert going_through(lambda *_: None, RunFiles.put_aside, old) > 3
    assert going_through(begun, RunFiles.put_back, old) > 5
    assert going_through(saved, RunFiles.forget_aside, new) >= 2
