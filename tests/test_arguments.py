"""What a call is given, as what a run needs. Made-up data: this tests mechanics only."""

import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.arguments import fit_arguments, split_off, training_data
from aimp_tf.masking import MaskedModel

X, Y, WEIGHTS = np.arange(20.0).reshape(10, 2), np.arange(10), np.ones(10)


def test_data_is_what_fit_would_make_of_it(make_mlp):
    model = make_mlp()
    for given, expected in (
        ((X, Y, None), (X, Y)),
        ((X, Y, WEIGHTS), (X, Y, WEIGHTS)),
        (((X, Y), None, None), (X, Y)),
        (((X, Y), None, WEIGHTS), (X, Y, WEIGHTS)),
        (((X, Y, WEIGHTS), None, None), (X, Y, WEIGHTS)),
        (([X, X], Y, None), ([X, X], Y)),
        (({"a": X}, Y, None), ({"a": X}, Y)),
    ):
        taken = training_data("prune", model, *given)
        assert len(taken) == len(expected)
        assert all(here is there or here == there for here, there in zip(taken, expected, strict=True))
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)
    assert training_data("prune", model, dataset, None, None) is dataset
    for given, message in (
        (((X, Y, WEIGHTS), None, WEIGHTS), "weights twice, or weights without targets"),
        (((X,), None, WEIGHTS), "weights twice, or weights without targets"),
        ((dataset, None, WEIGHTS), "whose batches must hold the weights"),
        ((X, None, WEIGHTS), "x came without y"),
    ):
        with pytest.raises(TypeError, match=message):
            training_data("prune", model, *given)


def test_a_model_with_a_loss_of_its_own_needs_no_targets(K):
    class Own(K.Model):
        def __init__(self):
            super().__init__()
            self.dense = K.layers.Dense(2)

        def call(self, inputs):
            return self.dense(inputs)

        def train_step(self, data):
            x = data[0] if isinstance(data, tuple) else data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x) - x) ** 2)
            variables = self.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return {"loss": loss}

    model = Own()
    if K.__name__ == "tf_keras":  # It cannot be wrapped.
        model.compile("sgd")
        assert len(training_data("prune", model, X, None, None)) == 1
        return
    model.compile("sgd")
    result = aimp_tf.prune(model, X.astype("float32"), target_sparsity=0.5, rate=0.5, epochs=1, verbose=0)
    assert result.sparsity == 0.5


def test_arguments_that_a_fit_of_ones_own_hands_on_are_known(K, blobs):
    class Own(K.Sequential):
        def fit(self, *args, **kwargs):
            return super().fit(*args, **kwargs)

    model = Own([K.Input((8,)), K.layers.Dense(16, name="hidden"), K.layers.Dense(3, name="logits")])
    assert "batch_size" in fit_arguments(model) and not {"args", "kwargs", "x"} & set(fit_arguments(model))


def test_the_last_part_of_arrays_is_split_off():
    (x, y), (x_last, y_last) = split_off((X, Y), 0.25)
    np.testing.assert_array_equal(x, X[:7])
    np.testing.assert_array_equal(y_last, Y[7:])
    assert len(y) == 7 and len(x_last) == 3
    assert split_off((X, Y), 0.0) == ((X, Y), None)
    (nested, _), (last, _) = split_off(({"a": (X,)}, Y), 0.5)
    np.testing.assert_array_equal(nested["a"][0], X[:5])
    np.testing.assert_array_equal(last["a"][0], X[5:])
    ((kept,), (rest,)) = split_off((tf.Variable(X),), 0.5)
    np.testing.assert_array_equal(kept, X[:5])
    np.testing.assert_array_equal(rest, X[5:])
    for split, error, message in (
        (1.0, ValueError, "must lie in"),
        ("0.1", TypeError, "must be a number"),
        (0.99, ValueError, "leaves 0 of 10 examples for training, and 10 for validation"),
    ):
        with pytest.raises(error, match=message):
            split_off((X, Y), split)


@pytest.mark.slow
def test_a_split_is_what_fit_takes(make_mlp, blobs):
    x, y = blobs
    settings = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 2, "round_epochs": 1, "verbose": 0, "seed": 1}
    split = aimp_tf.prune(make_mlp(), x, y, validation_split=0.25, **settings)
    by_hand = aimp_tf.prune(make_mlp(), x[:48], y[:48], validation_data=(x[48:], y[48:]), **settings)
    assert [round_.metrics for round_ in split.rounds] == [round_.metrics for round_ in by_hand.rounds]
    assert split.outcome.examples == 16
    both = aimp_tf.prune(make_mlp(), x, y, validation_split=0.25, validation_data=(x[:8], y[:8]), **settings)
    assert both.outcome.examples == 8


def test_wrap_and_the_callback_take_one_config(make_mlp, blobs):
    config = aimp_tf.PruningConfig(0.5, rate=0.5, epochs=1, exclude=("logits/*",))
    masked = aimp_tf.wrap(make_mlp(), config)
    assert list(MaskedModel.of(masked).variables) == ["hidden/kernel"]
    pruning = aimp_tf.GlobalMagnitudePruning(config, epochs=2, round_epochs=1)
    while not pruning.finished:
        masked.fit(*blobs, epochs=pruning.next_epochs, callbacks=[pruning], verbose=0)
    assert [round_.epochs for round_ in pruning.rounds] == [1, 2]
    aimp_tf.strip(masked)
    again = aimp_tf.wrap(make_mlp(), config, exclude=())
    assert list(MaskedModel.of(again).variables) == ["hidden/kernel", "logits/kernel"]
    with pytest.raises(ValueError, match=r"asks for exclude=\('logits/\*',\), but .* wrapped with exclude=\(\)"):
        again.fit(*blobs, callbacks=[aimp_tf.GlobalMagnitudePruning(config)], verbose=0)
