import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.exporting import sparse
from aimp_tf.exporting.sparse import METHODS, sparse_inference, sparse_inference_and_report


def with_zeros(model, sparsity=0.8):
    """The model with random zeros in its kernels and random biases."""
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if hasattr(layer, "kernel_initializer") and layer.built:
            kernel, *biases = layer.get_weights()
            kernel *= rng.random(kernel.shape) >= sparsity
            layer.set_weights([kernel, *(rng.normal(size=bias.shape) for bias in biases)])
    return model


@pytest.fixture
def timed(monkeypatch):
    """A function that sets how long each method is to take, 1 if nothing is said. Gives the shapes that were timed."""

    def set_times(**seconds):
        shapes_of = []

        def time(layers, shapes):
            shapes_of.append(shapes)
            return {name: seconds.get(name, 1.0) for name in layers}

        monkeypatch.setattr(sparse, "_time", time)
        return shapes_of

    return set_times


@pytest.fixture
def make_model(K):
    """1x1 convolutions with and without strides, Dense on time steps, a nested model whose layer is used twice."""

    def make():
        layers = K.layers
        images = K.Input((7, 7, 16), name="images")
        x = layers.Conv2D(24, 1, strides=2, padding="same", activation="relu", name="strided")(images)
        x = layers.Conv2D(12, 1, strides=(2, 1), use_bias=False, name="narrower")(x)
        x = layers.Reshape((8, 12))(x)
        x = layers.Conv1D(10, 1, name="steps")(x)
        x = layers.Dense(6, activation="tanh", name="dense")(x)
        nested = K.Sequential(
            [K.Input((6,)), layers.Dense(4, name="dense"), layers.Dense(5, name="last")], name="nested"
        )
        x = layers.Flatten()(x)
        x = layers.Add()([nested(layers.Dense(6, name="first")(x)), nested(layers.Dense(6, name="second")(x))])
        return with_zeros(K.Model(images, x))

    return make


@pytest.mark.parametrize("method", METHODS)
def test_it_computes_the_same(make_model, timed, method):
    timed(**{method: 0.1})
    model = make_model()
    before = [weight.copy() for weight in model.get_weights()]
    changed, report = sparse_inference_and_report(model)
    assert type(changed).__module__.split(".")[0] == type(model).__module__.split(".")[0]
    assert {layer.chosen for layer in report.layers} == {method}
    assert [layer.name for layer in report.layers][:4] == ["strided", "narrower", "steps", "dense"]
    # Two indices and a value for each weight that is left, and the biases.
    kept = sum(np.count_nonzero(weight) for weight in before if weight.ndim > 1)
    assert changed.count_params() == 3 * kept + sum(weight.size for weight in before if weight.ndim == 1)
    assert changed.output_shape == model.output_shape
    for batch_size in (1, 5):
        x = np.random.default_rng(batch_size).normal(size=(batch_size, 7, 7, 16)).astype("float32")
        np.testing.assert_allclose(changed(x), model(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(changed.predict(x, verbose=0), model(x), rtol=1e-5, atol=1e-5)
    for here, there in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(here, there)


def test_layers_are_timed_on_the_shapes_that_they_have(make_model, timed):
    shapes = timed()
    sparse_inference(make_model(), batch_size=3)
    assert shapes[:4] == [[(3, 7, 7, 16)], [(3, 4, 4, 24)], [(3, 8, 12)], [(3, 8, 10)]]
    assert shapes[4:] == [[(3, 48)], [(3, 48)], [(3, 6)] * 2, [(3, 4)] * 2]


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"coordinates": 0.89}, "coordinates"),
        ({"coordinates": 0.91}, "dense"),
        ({"coordinates": 0.8, "rows": 0.7}, "rows"),
        ({"rows": 1.5, "coordinates": 1.5}, "dense"),
    ],
)
def test_a_layer_is_only_changed_where_it_wins(K, timed, seconds, chosen, caplog):
    timed(**seconds)
    model = with_zeros(K.Sequential([K.Input((8,)), K.layers.Dense(16, name="hidden")]))
    with caplog.at_level(logging.INFO, "aimp_tf"):
        changed, report = sparse_inference_and_report(model)
    (layer,) = report.layers
    assert (layer.name, layer.shape, layer.chosen) == ("hidden", (8, 16), chosen)
    assert layer.sparsity == np.mean(np.asarray(model.layers[-1].kernel) == 0)
    assert isinstance(changed.layers[-1], K.layers.Dense) == (chosen == "dense")
    assert report.table().splitlines()[-1].split()[-1] == chosen
    assert report.table() in caplog.text


def test_what_is_measured_decides(K):
    """So wide a layer, so sparse, is many times faster; so narrow a one is all overhead."""
    model = K.Sequential([K.Input((2048,)), K.layers.Dense(2048, name="wide"), K.layers.Dense(4, name="narrow")])
    changed, report = sparse_inference_and_report(with_zeros(model, 0.995))
    wide, narrow = report.layers
    assert wide.chosen == "coordinates" and narrow.shape == (2048, 4)
    assert wide.seconds["coordinates"] < wide.seconds["dense"]
    assert set(narrow.seconds) == {"dense", *METHODS} and all(seconds > 0 for seconds in narrow.seconds.values())


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (lambda K: [K.Input((8,)), K.layers.Dense(8, dtype="bfloat16")], "computes in bfloat16"),
        (lambda K: [K.Input((None, 8)), K.layers.Dense(8)], "its input has an open axis beside that of the batch"),
        (lambda K: [K.Input((4, 4, 8)), K.layers.Conv2D(8, 1, groups=2)], "has groups of channels"),
        (lambda K: [K.Input((8, 4)), K.layers.Conv1D(4, 1, data_format="channels_first")], "its channels come first"),
    ],
)
def test_layers_that_cannot_be_changed_are_left(K, timed, make, note):
    shapes = timed(coordinates=0.1)
    _, report = sparse_inference_and_report(with_zeros(K.Sequential(make(K))))
    assert [(layer.chosen, layer.note, layer.seconds) for layer in report.layers] == [("dense", note, {})]
    assert not shapes and report.table().endswith(f"dense: {note}")


def test_other_layers_are_none_of_its_business(K, timed):
    timed(coordinates=0.1)

    class Doubling(K.layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    layers = [K.Input((4, 4, 8)), K.layers.Conv2D(8, 2), K.layers.Flatten(), Doubling(3), K.layers.Dense(3)]
    model = with_zeros(K.Sequential(layers), sparsity=0.3)
    changed, report = sparse_inference_and_report(model)
    assert [layer.note for layer in report.layers] == ["too few zeros"]
    x = np.ones((2, 4, 4, 8), "float32")
    np.testing.assert_allclose(changed(x), model(x), rtol=1e-6)


def test_layers_without_a_weight_give_their_bias(K, timed):
    for method in METHODS:
        timed(**{method: 0.1})
        model = with_zeros(K.Sequential([K.Input((8,)), K.layers.Dense(4)]), sparsity=1.0)
        np.testing.assert_array_equal(sparse_inference(model)(np.ones((2, 8))), np.tile(model.layers[-1].bias, (2, 1)))


@pytest.mark.slow
def test_it_is_small_and_needs_tensorflow_alone(K, monkeypatch, tmp_path):
    batch_sizes = []

    def time(layers, shapes):
        batch_sizes.append(shapes[0][0])
        return {"dense": 1.0, "coordinates": 0.1, "rows": 0.05 if len(shapes[0]) > 2 else 0.2}

    monkeypatch.setattr(sparse, "_time", time)
    layers = K.layers.Conv2D(200, 1), K.layers.Flatten(), K.layers.Dense(256)
    model = with_zeros(K.Sequential([K.Input((2, 2, 100)), *layers]))
    x = np.random.default_rng(0).normal(size=(5, 2, 2, 100)).astype("float32")
    exported = aimp_tf.export(model, tmp_path, formats="sparse_saved_model", inputs=x, batch_size=7)
    assert exported["sparse_saved_model"].max_difference < 1e-4 and set(batch_sizes) == {7}
    # Two indices and a value for each weight that is left, and the biases, each once; the rest is the table of these.
    numbers = 200 + 256 + 3 * sum(np.count_nonzero(weight) for weight in model.get_weights() if weight.ndim > 1)
    stored = sum(file.stat().st_size for file in (tmp_path / "sparse_saved_model" / "variables").glob("*.data*"))
    assert 4 * numbers <= stored < 4.1 * numbers


def test_it_is_evaluated_as_the_model_is_and_not_written_as_a_keras_file(make_mlp, blobs, timed, tmp_path):
    timed(coordinates=0.1)
    model = with_zeros(make_mlp())
    changed = sparse_inference(model)
    assert not changed.trainable_weights and model.trainable_weights
    assert changed.evaluate(*blobs, verbose=0) == pytest.approx(model.evaluate(*blobs, verbose=0), rel=1e-5)
    with pytest.raises(NotImplementedError, match="The layer 'hidden' of sparse_inference is for SavedModels only"):
        changed.save(tmp_path / "model.keras")


@pytest.mark.parametrize(
    ("batch_size", "error", "message"),
    [(0, ValueError, "at least 1; got 0"), (1.5, TypeError, "whole number; got 1.5"), (True, TypeError, "got True")],
)
def test_a_bad_batch_size_is_refused(batch_size, error, message):
    with pytest.raises(error, match=message):
        sparse_inference(keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]), batch_size)


def test_models_that_cannot_be_rebuilt_are_refused(K, make_mlp):
    class Subclassed(K.Model):
        def __init__(self):
            super().__init__()
            self.dense = K.layers.Dense(2)
            self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

        def call(self, inputs):
            return self.scale * self.dense(inputs)

    subclassed = Subclassed()
    subclassed(np.ones((1, 2)))
    masked = make_mlp()
    aimp_tf.wrap(masked)
    for model, message in (
        (K.Sequential([K.layers.Dense(2)]), "has no weights yet"),
        (subclassed, "is of the class Subclassed, whose own call cannot be seen through"),
        (masked, "carries masks"),
    ):
        with pytest.raises(ValueError, match=message):
            sparse_inference(model)
    with pytest.raises(TypeError):
        sparse_inference("model.keras")


@pytest.mark.parametrize("layer", ["Dense", "Conv1D"])
def test_masks_of_padding_pass_where_they_did(K, timed, layer):
    """A convolution drops them."""
    timed(coordinates=0.1)
    layers = K.layers
    ids = K.Input((5,), dtype="int32")
    x = layers.Embedding(9, 8, mask_zero=True)(ids)
    x = layers.Dense(8, name="changed")(x) if layer == "Dense" else layers.Conv1D(8, 1, name="changed")(x)
    model = with_zeros(K.Model(ids, layers.GlobalAveragePooling1D()(x)))
    tokens = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]])
    changed, report = sparse_inference_and_report(model)
    assert report.layers[0].chosen == "coordinates"
    np.testing.assert_allclose(changed(tokens), model(tokens), rtol=1e-5, atol=1e-6)


def test_layers_that_no_config_makes_stay_trainable_in_the_model(K, timed):
    timed(coordinates=0.1)

    class Scale(K.layers.Layer):
        def __init__(self, function):
            super().__init__(name="scale")
            self.function = function

        def build(self, input_shape):
            self.factor = self.add_weight(name="factor", shape=())

        def call(self, inputs):
            return self.function(inputs * tf.convert_to_tensor(self.factor))

    layers = K.layers.Dense(8, activation=lambda x: x * 2), Scale(tf.abs), K.layers.Dense(2)
    model = with_zeros(K.Sequential([K.Input((4,)), *layers]))
    before = len(model.trainable_weights)
    changed, report = sparse_inference_and_report(model)
    assert {layer.chosen for layer in report.layers} == {"coordinates"}
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    np.testing.assert_allclose(changed(x), model(x), rtol=1e-5, atol=1e-6)
    assert len(model.trainable_weights) == before == 5
    assert [weight is layers[1].factor for weight in changed.trainable_weights] == [True]
