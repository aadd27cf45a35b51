import numpy as np
import pytest
import tensorflow as tf

from aimp_tf.model_graph import copy_with


def outputs_of(model, inputs):
    return [np.asarray(output) for output in tf.nest.flatten(model(inputs, training=False))]


@pytest.fixture
def model(K):
    """Nested models of one name each, one of them used twice, a Lambda, functions and several named outputs."""
    layers = K.layers
    stem = K.Sequential([K.Input((8, 8, 3)), layers.Conv2D(4, 3, padding="same", name="core")], name="stem")
    head = K.Sequential([layers.Flatten(), layers.Dense(5, activation="softmax", name="core")], name="head")
    image = K.Input((8, 8, 3), name="image")
    features = stem(image) + stem(image * 2.0)
    brighter = layers.Lambda(lambda values: values + 1.0)(features)
    model = K.Model(image, {"class": head(features), "mean": layers.GlobalAveragePooling2D(name="pooled")(brighter)})
    model.compile("sgd", {"class": "mse", "mean": "mae"})
    return model


def test_a_copy_computes_the_same_and_shares_nothing(model):
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    copy = copy_with(model, lambda layer: None)
    before = outputs_of(model, images)
    for here, there in zip(outputs_of(copy, images), before, strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-6)
    assert list(copy.output_names) == list(model.output_names) == ["head", "pooled"]
    assert [layer.name for layer in copy.layers if layer.weights] == ["core", "head"]
    assert copy.loss == model.loss and copy.optimizer is not model.optimizer
    for weight in copy.weights:
        weight.assign(weight * 0)
    for here, there in zip(outputs_of(model, images), before, strict=True):
        np.testing.assert_array_equal(here, there)


def test_layers_are_replaced_in_nested_models(model, K):
    def without_bias(layer):
        return K.layers.Dense(5, use_bias=False, name="other") if isinstance(layer, K.layers.Dense) else None

    copy = copy_with(model, without_bias)
    assert [layer.name for layer in copy.layers if isinstance(layer, K.layers.Dense)] == ["other"]
    assert copy.count_params() == model.count_params() - 5


def test_several_inputs_and_one_that_is_not_used(K):
    left, right = K.Input((4,), name="left"), K.Input((4,), name="right")
    shared = K.layers.Dense(4)
    model = K.Model([left, right], [shared(shared(left)), left])
    inputs = [np.eye(4, dtype=np.float32), np.ones((4, 4), np.float32)]
    copy = copy_with(model, lambda layer: None)
    for here, there in zip(outputs_of(copy, inputs), outputs_of(model, inputs), strict=True):
        np.testing.assert_array_equal(here, there)
    assert len(copy.inputs) == 2
