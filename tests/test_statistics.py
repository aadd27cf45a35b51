import numpy as np
import pytest
import tensorflow as tf

import aimp_tf
from aimp_tf.masking import MaskedModel
from aimp_tf.training.statistics import ModelSample

SETTINGS = {"target_sparsity": 0.5, "rate": 0.3, "epochs": 2, "seed": 1, "verbose": 0}


class Taylor(aimp_tf.Criterion):
    """|w * dL/dw|, as a user would write it."""

    def __init__(self, batches=4):
        self.batches = batches
        self.asked = []

    def scores(self, statistics):
        gradients = statistics.gradients
        self.asked.append(gradients)
        return {path: np.abs(weight * gradients[path]) for path, weight in statistics.weights.items()}


def convolutional(K, strategy=None, **compiled):
    """Branches, a shared layer, dropout and normalisation, none of which may draw or change anything here."""
    with strategy.scope() if strategy else tf.init_scope():
        K.utils.set_random_seed(3)
        inputs = K.Input((6, 6, 2))
        shared = K.layers.Conv2D(4, 3, padding="same", name="shared")
        x = K.layers.Conv2D(4, 1, name="first")(inputs)
        x = shared(K.layers.Activation("tanh")(shared(x)))
        x = K.layers.Dropout(0.5)(K.layers.BatchNormalization(name="norm")(x))
        x = K.layers.Dense(3, name="head")(K.layers.GlobalAveragePooling2D()(x))
        model = K.Model(inputs, x)
        loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(**{"optimizer": "sgd", "loss": loss, "metrics": ["accuracy"], **compiled})
    return model


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 6, 6, 2)).astype(np.float32), rng.integers(0, 3, 20)


def gradients_of(masked, batches, count):
    return ModelSample(masked, batches, count).collect(["gradients"])["gradients"]


def batches_of(images, size=5):
    x, y = images
    return [(x[first : first + size], y[first : first + size]) for first in range(0, len(x), size)]


def by_differences(model, variable, index, batches, step=1e-2):
    """The slope of the mean loss, by central differences."""
    before = variable.numpy()
    losses = []
    for sign in (1, -1):
        moved = before.copy()
        moved[index] += sign * step
        variable.assign(moved)
        losses.append(np.mean([model.evaluate(x, y, verbose=0)[0] for x, y in batches]))
    variable.assign(before)
    return (losses[0] - losses[1]) / (2 * step)


def test_gradients_are_the_slopes_of_the_loss(K, images):
    model = convolutional(K)
    masked = MaskedModel.of(aimp_tf.wrap(model))
    batches = batches_of(images)
    before = model.get_weights()
    gradients = gradients_of(masked, batches, 3)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    model = masked.strip()
    assert list(gradients) == ["first/kernel", "shared/kernel", "head/kernel"]
    for path, index in (("first/kernel", (0, 0, 1, 2)), ("shared/kernel", (1, 1, 0, 3)), ("head/kernel", (2, 1))):
        variable = model.get_layer(path.split("/")[0]).kernel
        assert gradients[path].dtype == np.float32 and gradients[path].shape == tuple(variable.shape)
        slope = by_differences(model, variable, index, batches[:3])
        assert gradients[path][index] == pytest.approx(slope, rel=0.02, abs=1e-4)


def test_weights_times_gradients_are_activations_times_theirs(K, images):
    """Identity 1 of Taylor criteria, of each channel c."""
    model = convolutional(K)
    masked = MaskedModel.of(aimp_tf.wrap(model))
    batches = batches_of(images)[:1]
    sample = ModelSample(masked, batches, 1)
    (inputs,) = sample.inputs()
    assert [len(inputs[path]) for path in ("first/kernel", "shared/kernel", "head/kernel")] == [1, 2, 1]
    np.testing.assert_array_equal(inputs["first/kernel"][0], batches[0][0])
    gradients = sample.collect(["gradients"])["gradients"]["head/kernel"]
    pooled, kernel = inputs["head/kernel"][0], masked.weights()["head/kernel"]
    with tf.GradientTape() as tape:
        a = tf.constant(pooled)
        tape.watch(a)
        outputs = a @ kernel + model.get_layer("head").bias
        loss = masked.model.compute_loss(x=a, y=tf.constant(batches[0][1]), y_pred=outputs)
    np.testing.assert_allclose(
        (kernel * gradients).sum(axis=1), (a * tape.gradient(loss, a)).numpy().sum(axis=0), rtol=1e-4, atol=1e-7
    )


def test_a_model_without_a_loss_has_no_gradients(K, images):
    model = convolutional(K, loss=None, metrics=None)
    with pytest.raises(ValueError, match="was compiled without one"):
        gradients_of(MaskedModel.of(aimp_tf.wrap(model)), batches_of(images), 2)


def test_metrics_of_an_epoch_do_not_see_the_sample(K, images):
    model = convolutional(K, loss={"head": "sparse_categorical_crossentropy"})
    masked = MaskedModel.of(aimp_tf.wrap(model))
    masked.model.train_on_batch(*images)
    before = [v.numpy() for metric in masked.model.metrics for v in metric.variables]
    gradients_of(masked, batches_of(images), 2)
    after = [v.numpy() for metric in masked.model.metrics for v in metric.variables]
    assert before and all(map(np.array_equal, before, after))


def test_two_replicas_see_the_same_gradients(K, strategy, images):
    both = [
        gradients_of(MaskedModel.of(aimp_tf.wrap(convolutional(K, each))), batches_of(images), 2)
        for each in (None, strategy)
    ]
    for path, gradient in both[0].items():
        assert np.abs(gradient).max() > 0
        np.testing.assert_allclose(both[1][path], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_underflows_no_gradients(K, images, precision):
    """Those of float16 would be zero if the loss, as small as here, were not scaled."""
    exact, half = (
        gradients_of(
            MaskedModel.of(aimp_tf.wrap(convolutional(K, loss_weights=[1e-4]), **settings)), batches_of(images), 2
        )
        for settings in ({}, {"mixed_precision": precision})
    )
    for path, gradient in exact.items():
        assert np.linalg.norm(half[path] - gradient) < 0.1 * np.linalg.norm(gradient)


def test_a_criterion_of_gradients_goes_through_the_rounds(K, images):
    criterion = Taylor()
    result = aimp_tf.prune(convolutional(K), *images, criterion=criterion, batch_size=4, **SETTINGS)
    assert result.sparsity == pytest.approx(0.5, abs=0.01)
    first, again, later = criterion.asked[:3]  # Whether it can rank, and then after the first and the second round.
    assert not np.array_equal(first["head/kernel"], again["head/kernel"])
    assert not np.array_equal(again["head/kernel"], later["head/kernel"])
    # The same again, to the last bit: batches and their order are those of the seed.
    repeated = Taylor()
    aimp_tf.prune(convolutional(K), *images, criterion=repeated, batch_size=4, **SETTINGS)
    for one, other in zip(criterion.asked, repeated.asked, strict=True):
        np.testing.assert_array_equal(one["shared/kernel"], other["shared/kernel"])


def test_the_sample_is_of_all_the_data(make_mlp):
    """Not of the first class alone, where the examples are sorted."""

    class Listening(aimp_tf.Criterion):
        batches = 2

        def scores(self, statistics):
            self.seen = np.concatenate([batch["hidden/kernel"][0] for batch in statistics.inputs()])
            return statistics.weights

    criterion = Listening()
    x = np.repeat(np.arange(50, dtype=np.float32), 8).reshape(50, 8)
    aimp_tf.prune(make_mlp(), x, np.zeros(50, int), criterion=criterion, batch_size=10, **SETTINGS)
    assert criterion.seen.shape == (20, 8) and criterion.seen.max() > 30 and criterion.seen.min() < 20
    assert len(np.unique(criterion.seen)) == 20


def test_nothing_is_read_for_what_does_not_ask(make_mlp, blobs):
    def reading(*_):
        raise AssertionError("read")

    x, y = blobs
    pruning = aimp_tf.GlobalMagnitudePruning(target_sparsity=0.5, rate=0.5, epochs=1)
    pruning.sample = tf.data.Dataset.from_tensors(0).map(lambda _: tf.py_function(reading, [0], tf.float32))
    masked = aimp_tf.wrap(make_mlp())
    while not pruning.finished:
        masked.fit(x, y, epochs=pruning.next_epochs, callbacks=[pruning], verbose=0)


def test_a_callback_without_data_says_so_before_any_training(make_mlp, blobs):
    masked = aimp_tf.wrap(make_mlp())
    pruning = aimp_tf.GlobalMagnitudePruning(target_sparsity=0.5, rate=0.5, epochs=1, criterion=Taylor())
    with pytest.raises(ValueError, match=r"set pruning.sample to a few batches, such as dataset.take\(8\)"):
        masked.fit(*blobs, epochs=1, callbacks=[pruning], verbose=0)
    assert not any(MaskedModel.of(masked).optimizers.steps)
    pruning.sample = aimp_tf.array_dataset(blobs, batch_size=16)
    while not pruning.finished:
        masked.fit(*blobs, epochs=1, callbacks=[pruning], verbose=0)
    pruning.sample = []
    with pytest.raises(ValueError, match="has no batches"):
        gradients_of(MaskedModel.of(masked), [], 2)


def test_a_criterion_is_written_with_its_settings():
    config = aimp_tf.PruningConfig(0.5, epochs=1, criterion=Taylor(batches=3))
    config.validate()
    assert '"criterion": "test_statistics.Taylor(batches=3, asked=[])"' in config.to_json()
    with pytest.raises(ValueError, match="a criterion, or a function"):
        config.replace(criterion=Taylor).validate()
