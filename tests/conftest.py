"""Fixtures of all tests. Tests that say nothing of real data test mechanics only, on small made-up data."""

import gc
import importlib
import importlib.util
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import settings
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# The same examples every time, so that a run tells of the change alone: new ones are drawn in the long form.
settings.register_profile("aimp_tf", derandomize="AIMP_TF_EXAMPLES" not in os.environ)
settings.load_profile("aimp_tf")

# Two devices, for tests of strategies.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="module", autouse=True)
def out_of_the_way_of_the_collector():
    """What the tests of a file leave for good, traced graphs above all, is not looked through again and again."""
    yield
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="Run the tests that are marked slow, too.")
    parser.addoption("--exhaustive", action="store_true", help="Run all tests, slow ones in both generations of Keras.")
    parser.addoption("--kills", type=int, default=2, help="How often test_fault_injection.py kills each run.")


_IN_BOTH_GENERATIONS = {
    f"test_{room}.py" for room in "masking callback statistics precision model_graph learning_rate compaction".split()
}
"""Files of tests that run in tf_keras by default, too: of what knows two generations of Keras, or leans on it most."""


def _weight(item, names):
    """How much it takes to run a test: 0 by default, 1 with --slow, 2 or more with --exhaustive alone.

    A mark weighs 1, or 2 if it is "exhaustive", and tf_keras 1 more, where the same is tested in Keras 3, by its name.
    """
    marked = 2 if item.get_closest_marker("exhaustive") else 1 if item.get_closest_marker("slow") else 0
    if "callspec" not in vars(item) or item.callspec.params.get("K") != "tf_keras":
        return marked
    again = item.path.name not in _IN_BOTH_GENERATIONS and item.name.replace("tf_keras", "keras") in names
    return marked + again


def pytest_collection_modifyitems(config, items):
    """Leaves out the tests that take too long, unless one is asked for by its name."""
    limit = 1 if config.getoption("slow") else 0
    names = {item.name for item in items}
    left_out = [item for item in items if _weight(item, names) > limit]
    if left_out and not config.getoption("exhaustive") and not any("::" in argument for argument in config.args):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def get_config():
    """A function that gives the Experiment of a file in configs/. They are files, not part of the package."""

    def get(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config()

    return get


@pytest.fixture(scope="session")
def read_events():
    """A function that reads what TensorBoard is to show of a folder, as part -> tag -> [(step, value), ...].

    Values of histograms are lists of [left, right, count].
    """

    def read(folder):
        contents = {}
        for path in sorted(folder.iterdir()):
            events = EventAccumulator(str(path), size_guidance={"tensors": 0}).Reload()
            contents[path.name] = {
                tag: [(event.step, tf.make_ndarray(event.tensor_proto).tolist()) for event in events.Tensors(tag)]
                for tag in events.Tags()["tensors"]
            }
        return contents

    return read


@pytest.fixture(params=["keras", "tf_keras"])
def K(request):
    """The module of each generation of Keras in turn, freshly seeded."""
    module = importlib.import_module(request.param)
    module.utils.set_random_seed(0)
    return module


@pytest.fixture(scope="session")
def strategy():
    """Two replicas. One for all tests: TensorFlow takes the collectives of another strategy in the same process, which
    count from the same number, for those of this one."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def digits():
    """scikit-learn's 1,797 digits as (images, labels), in an order of their own."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 16).astype("float32"), labels[order].astype("int64")


@pytest.fixture
def blobs():
    """64 points of 8 numbers and a class of 3 for each: made up."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 64)
    return (rng.normal(size=(64, 8)) + labels[:, None]).astype("float32"), labels


@pytest.fixture
def make_mlp(K):
    """A function that makes a compiled 8-16-3 classifier with batch normalisation, always of the same weights."""

    def make(optimizer=None, **compile_options):
        K.utils.set_random_seed(3)
        model = K.Sequential(
            [
                K.Input((8,)),
                K.layers.Dense(16, activation="relu", name="hidden"),
                K.layers.BatchNormalization(name="norm"),
                K.layers.Dense(3, name="logits"),
            ]
        )
        model.compile(
            optimizer=K.optimizers.SGD(0.1, momentum=0.9) if optimizer is None else optimizer,
            loss=K.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            **compile_options,
        )
        return model

    return make


@pytest.fixture
def ends_alike(K, tmp_path):
    """A function that asserts that a run which is stopped, time and again, ends with the weights of one that is not.

    It takes `prune`, which takes `workdir` and `callbacks` and gives the model, and how many epochs each part has done
    when it is stopped.
    """

    class Stop(Exception):
        pass

    class Stopping(K.callbacks.Callback):
        def __init__(self, epochs):
            super().__init__()
            self.left = epochs

        def on_epoch_begin(self, epoch, logs=None):
            if self.left == 0:
                raise Stop
            self.left -= 1

    def check(prune, parts):
        whole = prune(workdir=tmp_path / "whole", callbacks=[])
        for epochs in parts:
            with pytest.raises(Stop):
                prune(workdir=tmp_path / "parts", callbacks=[Stopping(epochs)])
        ended = prune(workdir=tmp_path / "parts", callbacks=[])
        for one, two in zip(whole.get_weights(), ended.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)

    return check


@pytest.fixture
def make_gan():
    """A function that makes a compiled model of two networks, each with an optimizer of its own, in Keras 3; `compile`
    gets none of them. Always of the same weights."""

    def make(optimizers=None, **held):
        import keras

        def network(inputs, outputs):
            return keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(16), keras.layers.Dense(outputs)])

        class Gan(keras.Model):
            def __init__(self):
                super().__init__()
                self.generator, self.critic = network(4, 8), network(8, 1)

            def compile(self, optimizers, **held):
                super().compile()
                self.own = optimizers
                for name, value in held.items():
                    setattr(self, name, value)

            def call(self, noise):
                return self.critic(self.generator(noise))

            def train_step(self, data):
                for name, part in (("critic", self.critic), ("generator", self.generator)):
                    with tf.GradientTape() as tape:
                        loss = tf.reduce_mean(part(data[0][:, : part.input_shape[1]]) ** 2)
                    gradients = tape.gradient(loss, part.trainable_weights)
                    self.own[name].apply_gradients(zip(gradients, part.trainable_weights, strict=True))
                return {"loss": loss}

        keras.utils.set_random_seed(5)
        model = Gan()
        if optimizers is None:
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay([9], [0.01, 0.0])
            optimizers = {
                "critic": keras.optimizers.Adam(schedule),
                "generator": keras.optimizers.SGD(0.02, momentum=0.9),
            }
        model.compile(optimizers, **held)
        model(np.zeros((1, 4), "float32"))
        return model

    return make
