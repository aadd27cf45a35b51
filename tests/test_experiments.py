import gzip
import json
import os
import pathlib

import numpy as np
import pytest

from aimp_tf import PruningConfig
from aimp_tf.experiments import datasets, models
from aimp_tf.experiments.experiment import CHOICES, Experiment
from aimp_tf.experiments.run import Comparison, run

IDX_DIR = pathlib.Path(os.environ.get("FASHION_MNIST_IDX_DIR", "/usr/share/datasets/fashion-mnist"))


def test_digits_are_split_by_class():
    data = datasets.load("digits")
    assert data.train_images.shape == (1437, 8, 8, 1) and data.test_images.shape == (360, 8, 8, 1)
    assert data.train_images.dtype == np.float32
    assert data.train_images.min() == 0 and data.train_images.max() == 1
    assert np.bincount(data.test_labels).min() >= 34 and data.classes == 10


@pytest.mark.skipif(not IDX_DIR.is_dir(), reason="no IDX files of Fashion-MNIST; Debian: dataset-fashion-mnist")
def test_fashion_mnist_from_idx_files(tmp_path):
    datasets.prepare_fashion_mnist(IDX_DIR, tmp_path)
    data = datasets.load("fashion_mnist", tmp_path)
    assert data.train_images.shape == (60_000, 28, 28, 1) and data.test_images.shape == (10_000, 28, 28, 1)
    assert (np.bincount(data.train_labels) == 6000).all() and (np.bincount(data.test_labels) == 1000).all()
    # tensorflow-datasets shuffles, so only what does not depend on the order is compared.
    with gzip.open(IDX_DIR / "t10k-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(), np.uint8, offset=16)
    assert np.rint(data.test_images * 255).astype(np.int64).sum() == raw.sum(dtype=np.int64)


def test_wrong_idx_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz cannot be read"):
        datasets.prepare_fashion_mnist(tmp_path, tmp_path / "data")
    for name in datasets._IDX_FILES:
        with gzip.open(tmp_path / name, "wb") as file:
            file.write(b"not an IDX file")
    with pytest.raises(ValueError, match="is not the IDX file that its name says"):
        datasets.prepare_fashion_mnist(tmp_path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_unknown_names_are_refused(K):
    with pytest.raises(ValueError, match="Unknown data set 'mnist'"):
        datasets.load("mnist")
    with pytest.raises(ValueError, match="Unknown architecture 'vgg'"):
        models.build("vgg", K, (8, 8, 1), 10)


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        ("small_cnn", (8, 8, 1), 144 + 64 + 4608 + 128 + 128 * 64 + 64 + 650),
        ("lenet_300_100", (28, 28, 1), 266_610),
        ("lenet_5", (28, 28, 1), 61_706),
    ],
)
def test_architectures_have_their_known_sizes(K, name, shape, count):
    model = models.build(name, K, shape, 10)
    assert model.count_params() == count
    assert model.output_shape == (None, 10)


def test_every_choice_can_be_built():
    assert set(CHOICES["architecture"]) == set(models._LAYERS)


def test_an_experiment_compares_dense_and_pruned(K, tmp_path):
    """On real digits, too short to be good."""
    pruning = PruningConfig(target_sparsity=0.8, rate=0.6, epochs=4, round_epochs=1)
    experiment = Experiment("digits", "lenet_300_100", pruning, keras=K.__name__)
    comparison = run(experiment, tmp_path / "run", verbose=0)
    assert comparison.dense_accuracy > 0.8 and comparison.pruned_accuracy > 0.8
    assert comparison.sparsity == pytest.approx(0.8, abs=1e-4)
    assert comparison.survivors == comparison.weights - round(0.8 * comparison.weights)
    assert (comparison.dense_epochs, comparison.epochs, comparison.imp_epochs) == (4, 2 * 1 + 4, 3 * 4)
    assert comparison.gzip_bytes < comparison.dense_gzip_bytes / 2
    assert Comparison(**json.loads((tmp_path / "run" / "comparison.json").read_text())) == comparison
    assert f"{comparison.pruned_accuracy:.2%}" in comparison.table()
    with pytest.raises(ValueError, match="holds files already"):
        run(experiment, tmp_path / "run", verbose=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digit"}, "dataset must be one of.*Did you mean 'digits'"),
        ({"architecture": "lenet5"}, "Did you mean 'lenet_5'"),
        ({"keras": "keras3"}, "Did you mean 'keras'"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"momentum": 1.0}, "momentum must lie in"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"pruning": PruningConfig(2.0, epochs=1)}, "target_sparsity must lie in"),
    ],
)
def test_bad_experiments_are_refused(changes, message, tmp_path):
    fields = {"dataset": "digits", "architecture": "lenet_300_100", "pruning": PruningConfig(0.5, epochs=1), **changes}
    with pytest.raises(ValueError, match=message):
        run(Experiment(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()
