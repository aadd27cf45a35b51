import pathlib
import subprocess
import sys
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf import exporting
from aimp_tf.exporting.fresh_process import predict_in_fresh_process


@pytest.fixture
def result(make_mlp, blobs):
    return aimp_tf.prune(make_mlp(), blobs, target_sparsity=0.75, rate=0.5, epochs=1, verbose=0)


@pytest.fixture
def pruned(result):
    return result.model


def test_exported_weights_are_zero_where_pruned(result, tmp_path):
    paths = aimp_tf.export(result.model, tmp_path)
    mask = result.masks["hidden/kernel"]
    loaded = tf.saved_model.load(str(paths["saved_model"]))
    kernels = [np.array(variable) for variable in loaded.variables if tuple(variable.shape) == mask.shape]
    assert len(kernels) == 1
    np.testing.assert_array_equal(kernels[0] != 0, mask)
    with (
        zipfile.ZipFile(paths["keras"]) as archive,
        archive.open("model.weights.h5") as file,
        h5py.File(file) as weights,
    ):
        found = []
        weights.visititems(lambda name, item: found.append(item) if getattr(item, "shape", 0) == mask.shape else None)
        stored = [np.array(item) for item in found if "optimizer" not in item.name]
    assert len(stored) == 1
    np.testing.assert_array_equal(stored[0] != 0, mask)


def test_saved_model_in_a_fresh_process(pruned, blobs, tmp_path, monkeypatch):
    """The process imports TensorFlow alone and checks that it did."""
    monkeypatch.chdir(tmp_path)  # A relative path must do, too.
    paths = aimp_tf.export(pruned, "out", formats=("saved_model",))
    assert paths == {"saved_model": pathlib.Path("out/saved_model")}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["saved_model"]
    expected = pruned.predict(blobs[0], verbose=0)
    for batch_size in (64, 5):
        served = predict_in_fresh_process(paths["saved_model"], blobs[0], batch_size)
        np.testing.assert_allclose(served, expected, atol=1e-6)


def test_keras_file_in_a_fresh_process(pruned, K, blobs, tmp_path):
    path = aimp_tf.export(pruned, tmp_path, formats="keras")["keras"]
    np.save(tmp_path / "x.npy", blobs[0])
    program = (
        f"import sys, numpy as np, {K.__name__} as K; model = K.models.load_model({str(path)!r});"
        f"np.save({str(tmp_path / 'y.npy')!r}, model.predict(np.load({str(tmp_path / 'x.npy')!r}), verbose=0));"
        "assert not {'aimp_tf', 'tensorflow_model_optimization'} & sys.modules.keys();"
        "model.evaluate(np.zeros((2, 8)), np.zeros(2), verbose=0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), pruned.predict(blobs[0], verbose=0), atol=1e-6)


def test_nothing_is_printed(pruned, tmp_path, capfd):
    aimp_tf.export(pruned, tmp_path)
    assert capfd.readouterr().out == ""


def test_a_failed_export_leaves_nothing(pruned, tmp_path, monkeypatch):
    def fail(model, path):
        path.mkdir()
        (path / "half").write_text("half")
        raise OSError("no space left")

    monkeypatch.setitem(exporting._WRITERS, "saved_model", ("saved_model", fail))
    with pytest.raises(OSError, match="no space left"):
        aimp_tf.export(pruned, tmp_path, formats=("saved_model",))
    assert list(tmp_path.iterdir()) == []


def test_bad_calls_are_refused(pruned, make_mlp, tmp_path):
    with pytest.raises(ValueError, match="Unknown format 'savedmodel'.*Did you mean 'saved_model'"):
        aimp_tf.export(pruned, tmp_path / "a", formats=("keras", "savedmodel"))
    with pytest.raises(ValueError, match="carries masks"):
        aimp_tf.export(aimp_tf.wrap(make_mlp()), tmp_path / "a")
    with pytest.raises(TypeError, match="Expected a Keras model"):
        aimp_tf.export(None, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "model.keras").write_text("mine")
    with pytest.raises(ValueError, match="model.keras exists already"):
        aimp_tf.export(pruned, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_a_broken_saved_model_is_reported(tmp_path):
    with pytest.raises(RuntimeError, match="could not be used in a fresh process"):
        predict_in_fresh_process(tmp_path, np.zeros((1, 2)))
