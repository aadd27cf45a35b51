import dataclasses
import gzip
import json
import os
import pathlib
import re

import numpy as np
import pytest

from aimp_tf import Latency, PruningConfig
from aimp_tf.graph.prunable import prunable_variables
from aimp_tf.runs.recorded_run import RecordedRun
from aimp_tf.runs.run_files import locked
from experiments import datasets, exports, models
from experiments.experiment import CHOICES, Experiment
from experiments.run import Comparison, compare, compiled_model, load_data, train_dense, weight_count

IDX_DIR = pathlib.Path(os.environ.get("FASHION_MNIST_IDX_DIR", "/usr/share/datasets/fashion-mnist"))


def test_digits_are_split_by_class():
    data = datasets.load("digits")
    assert data.train_images.shape == (1437, 8, 8, 1) and data.test_images.shape == (360, 8, 8, 1)
    assert data.train_images.dtype == np.float32
    assert data.train_images.min() == 0 and data.train_images.max() == 1
    assert np.bincount(data.test_labels).min() >= 34 and data.classes == 10
    assert datasets.IMAGE_SETS["digits"] == datasets.ImageSet((8, 8, 1), 10, 1437)


@pytest.mark.slow
@pytest.mark.skipif(not IDX_DIR.is_dir(), reason="no IDX files of Fashion-MNIST; Debian: dataset-fashion-mnist")
def test_fashion_mnist_from_idx_files(tmp_path):
    datasets.prepare_fashion_mnist(IDX_DIR, tmp_path)
    data = datasets.load("fashion_mnist", tmp_path)
    assert data.train_images.shape == (60_000, 28, 28, 1) and data.test_images.shape == (10_000, 28, 28, 1)
    known = datasets.IMAGE_SETS["fashion_mnist"]
    assert (known.image_shape, known.classes, known.train_examples) == ((28, 28, 1), data.classes, 60_000)
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
        ("wide_mlp", (28, 28, 1), 785 * 2048 + 2049 * 2048 + 2049 * 10),
        # Stem, blocks of a depthwise and a pointwise convolution, logits; and four numbers of batch normalisation for
        # each filter.
        (
            "tiny_mobilenet",
            (28, 28, 1),
            (9 * 16 + 9 * (16 + 32 + 64 + 64) + 16 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 1290)
            + 4 * (16 + 16 + 32 + 32 + 64 + 64 + 64 + 64 + 128),
        ),
        # Embedding, four projections of attention, two of the block, two norms, logits.
        (
            "row_attention",
            (8, 8, 1),
            (8 + 1) * 32 + 4 * (32 + 1) * 32 + (32 + 1) * 64 + (64 + 1) * 32 + 2 * 64 + (256 + 1) * 10,
        ),
        # Four gates of 28 inputs, 128 states and a bias, logits.
        ("row_lstm", (28, 28, 1), 4 * 128 * (28 + 128 + 1) + 1290),
        # Stem, three stages of two convolutions (the first of stages 2 and 3 doubles the filters), two projections, 10
        # logits; and four numbers of batch normalisation for each filter.
        (
            "resnet_8",
            (28, 28, 1),
            (9 * 16 + 9 * (2 * 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2) + 16 * 32 + 32 * 64 + 650)
            + 4 * (16 + 2 * 16 + 3 * 32 + 3 * 64),
        ),
        # As above, and two more blocks a stage.
        (
            "resnet_20",
            (28, 28, 1),
            (9 * 16 + 9 * (6 * 16**2 + 16 * 32 + 5 * 32**2 + 32 * 64 + 5 * 64**2) + 16 * 32 + 32 * 64 + 650)
            + 4 * (16 + 6 * 16 + 7 * 32 + 7 * 64),
        ),
        # Four times the channels.
        (
            "wide_resnet_20",
            (28, 28, 1),
            (9 * 64 + 9 * (6 * 64**2 + 64 * 128 + 5 * 128**2 + 128 * 256 + 5 * 256**2) + 64 * 128 + 128 * 256 + 2570)
            + 4 * (64 + 6 * 64 + 7 * 128 + 7 * 256),
        ),
    ],
)
def test_architectures_have_their_known_sizes(K, name, shape, count):
    model = models.build(name, K, shape, 10)
    assert model.count_params() == count
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize("name", CHOICES["architecture"])
def test_paths_do_not_depend_on_the_models_made_before(K, name):
    """So that `include` and `exclude` mean the same in each of the models of a run, and in any process."""
    first, second = (list(prunable_variables(models.build(name, K, (28, 28, 1), 10))) for _ in range(2))
    assert first == second and first[-1] == "logits/kernel"


def test_resnets_halve_the_image_twice(K):
    model = models.build("resnet_20", K, (28, 28, 1), 10)
    convolutions = [layer for layer in model.layers if isinstance(layer, K.layers.Conv2D)]
    assert len(convolutions) == 19 + 2  # The nineteen convolutions of the twenty layers, and the two projections.
    sizes = {layer.name: tuple(layer.output.shape[1:]) for layer in convolutions}
    assert sizes["stage_1_block_3_second_conv"] == (28, 28, 16)
    assert sizes["stage_2_block_1_first_conv"] == sizes["stage_2_block_1_shortcut_conv"] == (14, 14, 32)
    assert sizes["stage_3_block_3_second_conv"] == (7, 7, 64)
    # A block adds its input: with the second normalisation at zero, it gives what it was given.
    block = K.Model(
        model.get_layer("stage_1_block_2_first_conv").input, model.get_layer("stage_1_block_3_first_conv").input
    )
    norm = model.get_layer("stage_1_block_2_second_norm")
    norm.gamma.assign(np.zeros(16))
    x = np.random.default_rng(0).uniform(0, 1, (2, 28, 28, 16)).astype("float32")
    np.testing.assert_allclose(block.predict(x, verbose=0), x, rtol=1e-6)


@pytest.mark.slow
def test_an_experiment_compares_dense_and_pruned(K, tmp_path):
    """On real digits, too short to be good."""
    pruning = PruningConfig(target_sparsity=0.8, rate=0.6, epochs=4, round_epochs=1)
    experiment = Experiment("digits", "lenet_300_100", pruning, keras=K.__name__)
    data = load_data(experiment, None)
    comparison = compare(experiment, data, tmp_path / "run", verbose=0)
    assert comparison.dense_accuracy > 0.8 and comparison.pruned_accuracy > 0.8
    assert comparison.sparsity == pytest.approx(0.8, abs=1e-4)
    assert comparison.survivors == comparison.weights - round(0.8 * comparison.weights)
    assert (comparison.dense_epochs, comparison.epochs, comparison.imp_epochs) == (4, 2 * 1 + 4, 3 * 4)
    assert comparison.gzip_bytes < comparison.dense_gzip_bytes / 2
    assert Comparison(**json.loads((tmp_path / "run" / "comparison.json").read_text())) == comparison
    assert f"{comparison.pruned_accuracy:.2%}" in comparison.table()
    with pytest.raises(ValueError, match="holds another run: config.rate: 0.6 there, 0.5 here"):
        compare(dataclasses.replace(experiment, pruning=pruning.replace(rate=0.5)), data, tmp_path / "run", verbose=0)


def test_a_table_has_no_empty_cells():
    comparison = Comparison(0.96, 0.95, 0.8, 2, 10, 4, 6, 12, 1.0, 2.0, 4.0, 9, 5, "saved", 0.97, 3.0)
    for shown, columns in ((comparison, 4), (dataclasses.replace(comparison, long_accuracy=None), 3)):
        head, *rows = shown.table().splitlines()
        cells = [re.split("  +", row) for row in rows]
        assert len(re.split("  +", head.strip())) == columns
        assert all(len(row) == columns + 1 and all(row) for row in cells)


@pytest.mark.slow
def test_fewer_images_and_more_steps_at_a_time(K):
    """Twelve steps an epoch, in calls of five, five and two, are the same training as one by one."""
    pruning = PruningConfig(target_sparsity=0.5, rate=0.5, epochs=2)
    experiment = Experiment("digits", "lenet_300_100", pruning, keras=K.__name__, train_examples=12 * 64)
    data = load_data(experiment, None)
    assert data.train_images.shape == (768, 8, 8, 1) and data.test_images.shape == (360, 8, 8, 1)
    np.testing.assert_array_equal(data.train_labels, datasets.load("digits").train_labels[:768])
    one_by_one, _ = train_dense(experiment, data, verbose=0)
    experiment.steps_per_execution = 5
    five_by_five, _ = train_dense(experiment, data, verbose=0)
    assert five_by_five.optimizer.iterations == one_by_one.optimizer.iterations == 2 * 12
    for here, there in zip(one_by_one.get_weights(), five_by_five.get_weights(), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-5)


def test_a_dense_training_needs_no_clock(capsys):
    """For a budget of time, which is for the pruning run."""
    budget = Latency(speedup=2)
    pruning = PruningConfig(epochs=1, granularity="channel", budget=budget)
    experiment = Experiment("digits", "small_cnn", pruning, train_examples=64)
    train_dense(experiment, load_data(experiment, None), verbose="auto")
    assert "dense, 1 epoch " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["unstructured", "channel"])
def test_weights_that_are_left_are_prunable_ones(granularity, monkeypatch, tmp_path):
    """Of whole channels, biases and the like have masks, too."""

    def accuracies(saved_models, data):
        with pytest.raises(RuntimeError, match="Another process uses workdir"), locked(tmp_path / "run"):
            pass
        return [0.5 for _ in saved_models]

    monkeypatch.setattr("experiments.run._accuracies", accuracies)
    pruning = PruningConfig(0.5, rate=0.9, epochs=1, granularity=granularity)
    experiment = Experiment("digits", "small_cnn", pruning, train_examples=64)
    comparison = compare(experiment, load_data(experiment, None), tmp_path / "run", verbose=0)
    assert comparison.weights == 13_584
    assert comparison.survivors == round((1 - comparison.sparsity) * comparison.weights)


def test_images_that_are_held_out_judge_in_place_of_the_test_images():
    experiment = Experiment(
        "digits", "lenet_300_100", PruningConfig(0.5, epochs=1), train_examples=1000, validation_examples=400
    )
    experiment.validate()
    data, every = load_data(experiment, None), datasets.load("digits")
    assert (experiment.judged_by, len(data.train_labels)) == ("validation", 1000)
    np.testing.assert_array_equal(data.train_images, every.train_images[:1000])
    np.testing.assert_array_equal(data.test_images, every.train_images[1000:1400])
    np.testing.assert_array_equal(data.test_labels, every.train_labels[1000:1400])


@pytest.mark.parametrize(
    ("architecture", "settings", "count"),
    [
        ("lenet_300_100", {}, 64 * 300 + 300 * 100 + 1000),
        ("lenet_300_100", {"exclude": ("logits/*",)}, 64 * 300 + 300 * 100),
        ("small_cnn", {}, 13_584),
        ("small_cnn", {"granularity": "1x4"}, 13_584 - 3 * 3 * 1 * 16),
    ],
)
def test_prunable_weights_are_counted_without_the_data(architecture, settings, count):
    pruning = PruningConfig(target_sparsity=0.5, epochs=1, **settings)
    assert weight_count(Experiment("digits", architecture, pruning)) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "digit"}, "dataset must be one of.*Did you mean 'digits'"),
        ({"architecture": "lenet5"}, "Did you mean 'lenet_5'"),
        ({"keras": "keras3"}, "Did you mean 'keras'"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"momentum": 1.0}, "momentum must lie in"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"steps_per_execution": 0}, "steps_per_execution must be at least 1"),
        ({"validation_freq": 0}, "validation_freq must be at least 1"),
        ({"train_examples": 0}, "train_examples must be at least 1"),
        ({"train_examples": 1438}, "at most 1437, all that digits has; got 1438"),
        ({"validation_examples": 100}, "among the 0 training images after"),
        ({"train_examples": 1400, "validation_examples": 38}, "validation_examples=38 must be among the 37"),
        ({"train_examples": 1400, "validation_examples": 0}, "validation_examples must be at least 1"),
        ({"pruning": PruningConfig(2.0, epochs=1)}, "target_sparsity must lie in"),
        ({"pruning": {"target_sparsity": 0.5}}, "pruning must be a PruningConfig; got {"),
    ],
)
def test_bad_experiments_are_refused(changes, message):
    fields = {"dataset": "digits", "architecture": "lenet_300_100", "pruning": PruningConfig(0.5, epochs=1), **changes}
    with pytest.raises((TypeError, ValueError), match=message):
        Experiment(**fields).validate()


def one_score(weights, masks):
    return {path: np.ones(1) for path in weights}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sparsity": 0.999999}, "leaves none"),
        ({"min_layer_survivors": 30_000}, "keep at least"),
        ({"criterion": one_score}, "got scores of shape"),
        ({"exclude": ("dense/*",)}, "matches no prunable variable"),
        ({"exclude": ("dense/*",), "method": "gradual"}, "matches no prunable variable"),
    ],
)
def test_what_the_model_cannot_give_is_said_before_the_dense_training(settings, message, monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.run.train_dense", lambda *arguments: pytest.fail("It trains."))
    experiment = Experiment(
        "digits", "lenet_300_100", PruningConfig(**{"target_sparsity": 0.5, "epochs": 1, **settings})
    )
    with pytest.raises(ValueError, match=message):
        compare(experiment, load_data(experiment, None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("steps", [1, 1, 0.1, 0.01]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.853553, 0.5, 0.146447])],
)
def test_how_the_rate_falls(K, schedule, rates):
    pruning = PruningConfig(0.5, epochs=4)
    experiment = Experiment("digits", "lenet_300_100", pruning, schedule=schedule, keras=K.__name__, learning_rate=0.3)
    optimizer = compiled_model(experiment, datasets.load("digits")).optimizer
    # 23 batches an epoch. A step into it, for a rate that drops at a step keeps it for that one.
    asked = [float(optimizer._learning_rate(epoch * 23 + (schedule == "steps"))) / 0.3 for epoch in range(4)]
    assert asked == pytest.approx(rates, rel=1e-5)


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_run_that_version_1_finished_is_exported(K, monkeypatch, tmp_path):
    experiment = Experiment("digits", "lenet_300_100", PruningConfig(0.9, epochs=30))
    model = models.build("lenet_300_100", K, (8, 8, 1), 10)
    model.save_weights(tmp_path / "a.weights.h5")
    stored = {"target_sparsity": 0.9, "epochs": 30, "round_epochs": None, "seed": 0}
    monkeypatch.setattr(exports, "read_run", lambda workdir: RecordedRun("run", stored, {}, [], finished=True))
    monkeypatch.setattr(exports, "final_weights", lambda workdir: tmp_path / "a.weights.h5")
    loaded = exports.load_run(experiment, tmp_path)
    for here, there in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)
    experiment.pruning.min_layer_share = 0.5
    with pytest.raises(ValueError, match="holds a run of another config: min_layer_share: 0.0 there, 0.5 here"):
        exports.load_run(experiment, tmp_path)
