import shutil

import pytest

import aimp_tf
from aimp_tf.runs import run_logs
from aimp_tf.runs.run_logs import RunLogs
from aimp_tf.training.rounds import MAGNITUDE_EDGES

SETTINGS = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 3, "round_epochs": 2, "verbose": 0, "seed": 1}


def test_what_tensorboard_shows(make_mlp, blobs, tmp_path, read_events):
    result = aimp_tf.prune(make_mlp(), blobs, validation_data=blobs, workdir=tmp_path / "run", **SETTINGS)
    shown = read_events(tmp_path / "run" / "tensorboard")
    assert set(shown) == {"train", "validation", "rounds"}
    for split, prefix in (("train", ""), ("validation", "val_")):
        assert [step for step, _ in shown[split]["epoch_accuracy"]] == [1, 2, 3, 4, 5, 6, 7]
        for round_, step in zip(result.rounds, (2, 4, 7), strict=True):
            assert dict(shown[split]["epoch_loss"])[step] == pytest.approx(round_.metrics[f"{prefix}loss"])
    rounds = shown["rounds"]
    assert rounds["sparsity"] == [(2, 0.0), (4, 0.5), (7, 0.75)]
    for layer in result.rounds[-1].layers:
        assert rounds[f"sparsity/{layer.path}"][-1] == (7, pytest.approx(layer.sparsity))
        assert [step for step, _ in rounds[f"threshold/{layer.path}"]] == [4, 7]
        assert rounds[f"threshold/{layer.path}"][-1][1] == pytest.approx(layer.threshold)
        step, bins = rounds[f"magnitudes/{layer.path}"][-1]
        assert step == 7 and [count for _, _, count in bins] == list(layer.magnitudes)
        assert bins[0][:2] == list(MAGNITUDE_EDGES[:2])
    for name in ("sparsity", "threshold"):
        low, high = (f(getattr(layer, name) for layer in result.rounds[-1].layers) for f in (min, max))
        _, bins = rounds[f"layers/{name}"][-1]
        assert bins[0][0] == pytest.approx(low) and bins[-1][1] == pytest.approx(high)


@pytest.mark.slow
def test_a_run_that_goes_on_is_shown_as_one(make_mlp, blobs, tmp_path, read_events):
    folder = tmp_path / "run"
    aimp_tf.prune(make_mlp(), blobs, validation_data=blobs, workdir=folder, **SETTINGS)
    before = read_events(folder / "tensorboard")
    shutil.rmtree(folder / "final")
    aimp_tf.prune(make_mlp(), blobs, validation_data=blobs, workdir=folder, **SETTINGS)
    after = read_events(folder / "tensorboard")
    assert steps(after) == steps(before)
    assert after["rounds"]["sparsity"] == before["rounds"]["sparsity"]


def steps(shown):
    return {part: {tag: [step for step, _ in events] for tag, events in tags.items()} for part, tags in shown.items()}


def test_without_tensorboard_a_run_goes_on(make_mlp, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(run_logs.importlib.util, "find_spec", lambda name: None)
    aimp_tf.prune(make_mlp(), blobs, workdir=tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("")
    logs = RunLogs(tmp_path)
    logs.add_epoch(0, 0, {"loss": 1.0})
    logs.add_epoch(0, 1, {"loss": 0.5})
    logs.close()
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    assert [record.getMessage()[:40] for record in caplog.records] == ["TensorBoard gets no more of this run, fo"]


def test_several_numbers_of_a_metric_are_shown_one_by_one(tmp_path, read_events):
    logs = RunLogs(tmp_path)
    logs.add_epoch(0, 0, {"loss": 1.0, "per_class": [0.25, 0.5]})
    logs.close()
    assert read_events(tmp_path / "tensorboard") == {
        "train": {"epoch_loss": [(1, 1.0)], "epoch_per_class/0": [(1, 0.25)], "epoch_per_class/1": [(1, 0.5)]}
    }
