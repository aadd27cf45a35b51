from collections import OrderedDict

import numpy as np
import pytest
import tensorflow as tf

from aimp_tf.graph.copies import rebuilt
from aimp_tf.graph.model_graph import ModelGraph


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
    copy, _ = rebuilt(ModelGraph.of(model))
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

    copy, _ = rebuilt(ModelGraph.of(model), lambda call, copies: without_bias(call.layer) or copies.of(call))
    assert [layer.name for layer in copy.layers if isinstance(layer, K.layers.Dense)] == ["other"]
    assert copy.count_params() == model.count_params() - 5


@pytest.mark.parametrize("training", [None, False])
def test_a_nested_model_that_does_not_train_does_not_in_a_copy(training, K):
    """When what is around it trains, that is; in Keras 3 it does train then."""
    nested, vector = K.Sequential([K.Input((4,)), K.layers.BatchNormalization()]), K.Input((4,))
    model = K.Model(vector, K.layers.Dense(2)(nested(vector, training=training)))
    copy, _ = rebuilt(ModelGraph.of(model))
    values = np.random.default_rng(0).normal(3, 2, (8, 4)).astype(np.float32)
    rests = np.asarray(copy(values, training=False))
    here, there = (np.asarray(each(values, training=True)) for each in (model, copy))
    np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-6)
    assert np.allclose(there, rests) == (training is False and K.__name__ == "tf_keras")


def test_several_inputs_and_one_that_is_not_used(K):
    left, right = K.Input((4,), name="left"), K.Input((4,), name="right")
    shared = K.layers.Dense(4)
    try:
        model = K.Model([left, right], [shared(shared(left)), left])
    except ValueError:
        pytest.skip(f"{K.__name__} {K.__version__} takes no input that is not used")
    inputs = [np.eye(4, dtype=np.float32), np.ones((4, 4), np.float32)]
    copy, _ = rebuilt(ModelGraph.of(model))
    for here, there in zip(outputs_of(copy, inputs), outputs_of(model, inputs), strict=True):
        np.testing.assert_array_equal(here, there)
    assert len(copy.inputs) == 2


@pytest.mark.parametrize("outer", [None, 6])
def test_what_an_ordered_dict_holds_stays_in_its_order(outer, K):
    """Keras 3 does not sort its keys, as TensorFlow does."""

    class Apart(K.layers.Layer):
        def __init__(self, **settings):
            super().__init__(**settings)
            self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

        def call(self, inputs):
            return OrderedDict(twice=2.0 * inputs, scaled=3.0 * inputs * tf.convert_to_tensor(self.scale))

    def pair(size=None):
        return OrderedDict((name, K.Input((size, 4), name=name)) for name in ("b", "a"))

    inner = pair()
    nested = K.Model(inner, OrderedDict(y=inner["b"] - 2.0 * inner["a"], x=K.layers.Dense(4, name="x")(inner["a"])))
    inputs = pair(outer)
    x = nested(OrderedDict(b=inputs["a"], a=inputs["b"]))
    parts = Apart()(x["y"])
    outputs = OrderedDict(
        late=K.layers.Dense(2, name="late")(parts["twice"]),
        early=K.layers.Dense(3, name="early")(K.layers.Add()([parts["scaled"], x["x"]])),
    )
    model = K.Model(inputs, outputs)
    copy, _ = rebuilt(ModelGraph.of(model))
    generator = np.random.default_rng(0)
    values = OrderedDict((name, generator.normal(size=(3, 6, 4)).astype(np.float32)) for name in ("b", "a"))
    for here, there in zip(outputs_of(copy, values), outputs_of(model, values), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-6)
    assert [each.name for each in copy.inputs] == [each.name for each in model.inputs]
    assert list(copy.output_names) == list(model.output_names)


def test_masks_are_known_where_they_flow(K):
    """From embeddings, through what hands them on, into nested models and out of them, up to what drops them."""
    layers, ids, numbers = K.layers, K.Input((4,), dtype="int32"), K.Input((4, 3))
    embedded = layers.Embedding(9, 3, mask_zero=True, name="embedded")(ids)
    through = layers.Dense(3, name="through")(embedded)
    dropped = layers.Conv1D(3, 1, name="dropped")(through)
    added = layers.Add(name="added")([through, layers.Dense(3, name="plain")(numbers)])
    inner = K.Input((3,))
    outer = [layers.Masking(name="made")(numbers), layers.LSTM(3, name="read")(embedded), added, dropped]
    outer.append(K.Model(inner, layers.Dense(2, name="inner")(inner))(outer[1]))
    graph = ModelGraph.of(K.Model([ids, numbers], outer))
    names = {call.name for call in graph.calls if call.outputs[0] in graph.masked}
    # Keras 3 masks a sum only where all that is added is masked.
    assert names - {"NotEqual", "not_equal"} == {"embedded", "through", "made"} | (
        {"added"} if K.__name__ == "tf_keras" else set()
    )


def test_a_layer_that_cannot_be_asked_for_masks_is_taken_to_give_them(K):
    class Eager(K.layers.Layer):
        def call(self, inputs):
            if tf.inside_function() and Eager.strict:
                raise RuntimeError("not in a graph")
            return inputs + 1.0

    Eager.strict = False
    inputs = K.Input((3,))
    graph = ModelGraph.of(K.Model(inputs, K.layers.Dense(2)(Eager()(inputs))))
    assert graph.masked == set()
    Eager.strict = True
    graph = ModelGraph.of(graph.model)
    assert {call.outputs[0] for call in graph.calls} < graph.masked


def test_weights_of_layers_that_no_config_makes_are_shared(K):
    class Scale(K.layers.Layer):
        def __init__(self, start):
            super().__init__(name="scale")
            self.factor = self.add_weight(name="factor", shape=(), initializer=lambda *_, **__: tf.constant(start))

        def call(self, inputs):
            return inputs * tf.convert_to_tensor(self.factor)

    model = K.Sequential([K.Input((3,)), K.layers.Dense(2, name="first"), Scale(2.0)])
    copy, _ = rebuilt(ModelGraph.of(model))
    model.layers[1].factor.assign(5.0)
    model.layers[0].kernel.assign(np.ones((3, 2)))
    before = copy(np.ones((1, 3)))
    copy.layers[1].kernel.assign(np.ones((3, 2)))
    assert copy.layers[2].factor is model.layers[1].factor and copy.layers[2] is not model.layers[1]
    np.testing.assert_allclose(copy(np.ones((1, 3))), np.full((1, 2), 15.0))
    assert not np.allclose(before, 15.0)


@pytest.mark.parametrize(("length", "known"), [(5, 5), (None, None)])
def test_sizes_that_layers_leave_open_follow_from_those_of_the_inputs(length, known, K):
    inputs = K.Input((length, 3))
    heads = K.layers.EinsumDense("btc,cnh->btnh", (None, 2, 4))(inputs)
    graph = ModelGraph.of(K.Model(inputs, K.layers.Activation("relu")(heads)))
    first, second = graph.calls
    assert first.outputs == second.inputs and second.outputs == (graph.outputs,)
    assert [call.outputs[0].shape for call in graph.calls] == [(None, known, 2, 4)] * 2
