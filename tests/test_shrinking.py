import numpy as np
import pytest

import aimp_tf
from aimp_tf.masking import MaskedModel, mask_model
from aimp_tf.training.shrinking import Shrinking, fraction_moved, sample_of


def test_all_of_small_arrays_count():
    weights = {"a": np.array([[3.0, 0.0], [0.0, 1.0]]), "b": np.array([2.0])}
    sample = sample_of(weights)
    assert fraction_moved(sample, weights) == 0
    weights["a"][:] = [[0.0, 4.0], [0.0, 1.0]]  # The sample is a copy.
    assert fraction_moved(sample, weights) == pytest.approx(np.sqrt((9 + 16) / (16 + 1 + 4)))


def test_large_arrays_count_by_their_size():
    """A million weights that move by 1 of 2, and one that moves by 300 of 300."""
    weights = {"large": np.ones((1000, 1024), np.float32), "small": np.zeros(1, np.float32)}
    sample = sample_of(weights)
    assert 2**15 < sample[0].size <= 2**16
    moved = fraction_moved(sample, {"large": 2 * weights["large"], "small": np.full(1, 300.0)})
    assert moved == pytest.approx(np.sqrt((1024000 + 90000) / (4 * 1024000 + 90000)), rel=1e-3)


def test_zeros_alone_have_not_moved():
    assert fraction_moved([np.ones(3)], {"a": np.zeros(3)}) == 0


@pytest.fixture
def make_normalized(K):
    """A function that makes a compiled classifier of 8 numbers with normalisation of several kinds."""

    def make():
        K.utils.set_random_seed(3)
        layers = K.layers
        inputs = K.Input((8,))
        x = layers.ReLU()(_norm(K)(layers.Dense(16, name="free")(inputs)))
        y = layers.Dense(16, name="read_twice")(x)
        x = layers.Add()([_norm(K)(y), y])
        x = _norm(K)(layers.Dense(16, activation="tanh", name="bent")(x))
        shared = layers.Dense(16, name="shared")
        x = layers.Add()([_norm(K)(shared(x)), shared(x)])
        x = _norm(K, trainable=False)(layers.Dense(16, name="frozen_norm")(x))
        inner = K.Input((16,))
        nested = K.Model(inner, _norm(K)(layers.Dense(16, name="at_inference")(inner)))
        x = layers.Activation("tanh")(nested(x, training=False))
        timed = layers.Dense(16, name="elsewhere_too")
        again = layers.Flatten()(layers.TimeDistributed(timed)(layers.Reshape((1, 16))(x)))
        x = layers.Add()([_norm(K)(timed(x)), again])
        x = _norm(K)(layers.Dense(16, name="free_too", use_bias=False, kernel_regularizer="l2")(x))
        model = K.Model(inputs, layers.Dense(3, name="logits")(x))
        model.compile(K.optimizers.Adam(0.1), K.losses.SparseCategoricalCrossentropy(from_logits=True))
        return model

    return make


def _norm(K, **settings):
    return K.layers.BatchNormalization(epsilon=1e-9, **settings)


def test_what_shrinks_in_full_is_what_the_outputs_do_not_see(make_normalized, blobs):
    """After rounds of 4 steps, that is. Each kernel is scaled by hand to tell whether it is seen."""
    x, y = blobs
    masked = aimp_tf.wrap(make_normalized())
    scaled = MaskedModel.of(masked)
    before = np.array(masked(x, training=True))
    unseen = set()
    for path in scaled.variables:
        scaled.shrink({**dict.fromkeys(scaled.variables, 1.0), path: 0.5})
        change = np.abs(np.array(masked(x, training=True)) - before).max()
        scaled.shrink({**dict.fromkeys(scaled.variables, 1.0), path: 2.0})
        assert change < 1e-4 or change > 1e-2
        unseen |= {path} if change < 1e-4 else set()
    pruning = aimp_tf.GlobalMagnitudePruning(target_sparsity=0.5, rate=0.3, epochs=3, round_epochs=2)
    while not pruning.finished:
        masked.fit(x, y, epochs=pruning.next_epochs, verbose=0, callbacks=[pruning])
    in_full = {layer.path for layer in pruning.rounds[1].layers if layer.shrink == pytest.approx(0.7)}
    assert {path.split("/")[-2] for path in in_full} == {"free", "free_too"}
    assert in_full <= unseen and len(unseen) < 6
    others = [layer.shrink for layer in pruning.rounds[1].layers if layer.path not in in_full]
    assert others == pytest.approx([0.7 ** (4 / 500)] * 7)


def test_what_shrinks_in_full_shrinks_the_statistics_too(make_normalized, blobs):
    """So that the model gives the same outside training, too: after no steps, nothing else shrinks."""
    x, y = blobs
    model = aimp_tf.wrap(make_normalized())
    model.fit(x, y, epochs=3, verbose=0)
    masked, before = MaskedModel.of(model), np.array(model(x, training=False))
    kernels = {path: weight.copy() for path, weight in masked.weights().items()}
    shrinking = Shrinking(0.5, masked)
    shrinking.resume({**shrinking.state(), "moved": 1.0})
    shrinking.shrink(masked, steps=0)
    assert sorted(shrinking.factors.values())[:3] == [0.5, 0.5, 1.0]
    for path, weight in masked.weights().items():
        np.testing.assert_array_equal(weight, np.float32(shrinking.factors[path]) * kernels[path])
    np.testing.assert_allclose(np.array(model(x, training=False)), before, rtol=1e-4, atol=1e-4)


def test_nothing_shrinks_by_more_than_the_factor(make_mlp):
    """However long the round was and however far it went."""
    masked = mask_model(make_mlp())
    shrinking = Shrinking(0.5, masked)
    for steps, factor in ((250, 0.5**0.5), (500, 0.5), (5000, 0.5)):
        shrinking.resume({**shrinking.state(), "moved": 1.0})
        shrinking.shrink(masked, steps=steps)
        assert shrinking.factors["logits/kernel"] == pytest.approx(factor)
    masked.strip()


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_gradients_that_are_gathered_are_steps_once_they_are_used(K, make_mlp, blobs):
    told = {}
    for gathered in (1, 4):
        model = make_mlp()
        optimizer = K.optimizers.SGD(0.3, gradient_accumulation_steps=gathered if gathered > 1 else None)
        model.compile(optimizer, K.losses.SparseCategoricalCrossentropy(from_logits=True))
        settings = {"target_sparsity": 0.5, "rate": 0.5, "epochs": 2, "round_epochs": 2, "verbose": 0}
        told[gathered] = aimp_tf.prune(model, blobs, shrink=0.5, **settings).rounds[1].layers[0].shrink
    assert told[1] ** (1 / 4) == pytest.approx(told[4], rel=1e-5) and told[1] < 0.995


def test_what_training_does_not_change_is_not_shrunk(K, blobs):
    K.utils.set_random_seed(3)
    frozen = K.layers.Dense(16, name="frozen", trainable=False)
    model = K.Sequential([K.Input((8,)), frozen, _norm(K), K.layers.Dense(3, name="logits")])
    model.compile(K.optimizers.SGD(0.3), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    settings = {"target_sparsity": 0.5, "rate": 0.5, "epochs": 2, "round_epochs": 2, "verbose": 0}
    result = aimp_tf.prune(model, blobs, include=("*",), **settings)
    factors = {layer.path.split("/")[0]: layer.shrink for layer in result.rounds[1].layers}
    assert factors["frozen"] == 1 > factors["logits"]


@pytest.fixture(params=["subclassed", "odd"])
def unseen_model(request):
    """A compiled Keras 3 model whose calls cannot be seen, or not be sorted."""
    import keras

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden, self.norm = keras.layers.Dense(16), keras.layers.BatchNormalization()
            self.logits = keras.layers.Dense(3)
            self.scale = self.add_weight(shape=(), initializer="ones", trainable=False)

        def call(self, inputs, training=None):
            return self.scale * self.logits(self.norm(self.hidden(inputs), training=training))

    class Odd(keras.layers.Layer):
        def call(self, inputs, options=None):
            return inputs

    inputs = keras.Input((8,))
    if request.param == "odd":
        x = keras.layers.BatchNormalization()(keras.layers.Dense(16)(Odd()(inputs, options={1: 2, "a": 3})))
        model = keras.Model(inputs, keras.layers.Dense(3)(x))
    else:
        model = Subclassed()
        model(np.zeros((1, 8)))
    model.compile(keras.optimizers.SGD(0.3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def test_a_model_that_cannot_be_seen_through_shrinks_by_its_steps(unseen_model, blobs):
    result = aimp_tf.prune(unseen_model, blobs, target_sparsity=0.5, rate=0.5, epochs=2, round_epochs=2, verbose=0)
    assert [layer.shrink for layer in result.rounds[1].layers] == pytest.approx([0.7 ** (4 / 500)] * 2)


@pytest.mark.parametrize("settings", [{"rewind": "weights"}, {"shrink": 1.0}, {"start": "trained", "rate": 0.5}])
def test_weights_that_return_or_just_came_are_not_shrunk(make_normalized, blobs, settings):
    settings = {"target_sparsity": 0.5, "rate": 0.3, "epochs": 2, "round_epochs": 2, "verbose": 0, **settings}
    result = aimp_tf.prune(make_normalized(), blobs, **settings)
    assert {layer.shrink for round_ in result.rounds for layer in round_.layers} == {1.0}


@pytest.mark.slow
def test_weights_that_return_for_the_last_training_alone(make_normalized, blobs):
    settings = {"target_sparsity": 0.5, "rate": 0.3, "epochs": 2, "round_epochs": 2, "verbose": 0}
    result = aimp_tf.prune(make_normalized(), blobs, final_rewind="weights", **settings)
    second, last = ({layer.shrink for layer in result.rounds[index].layers} for index in (1, -1))
    assert max(second) < 1 and last == {1.0}
