"""Weights that share values, and train on sharing them."""

import numpy as np
import pytest
import sklearn.cluster
import tensorflow as tf

import aimp_tf
from aimp_tf.coding.levels import kmeans, stochastic
from aimp_tf.coding.tensors import common_levels, is_shared, levels_of
from aimp_tf.compat.step import changed_gradients
from aimp_tf.exporting.coded import write_coded
from aimp_tf.graph.prunable import prunable_variables
from aimp_tf.training.shared_weights import SharedWeights


def normal(count=2000, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


# Levels


@pytest.mark.parametrize("initial", ["linear", "density"])
@pytest.mark.parametrize("count", [2, 5, 16])
def test_kmeans_is_that_of_scikit_learn(initial, count):
    weights = normal()
    ordered = np.sort(weights)
    begin = {
        "linear": np.linspace(ordered[0], ordered[-1], count),
        "density": np.quantile(ordered, (np.arange(count) + 0.5) / count),
    }[initial]
    other = sklearn.cluster.KMeans(count, init=begin[:, np.newaxis], n_init=1, tol=0, max_iter=1000)
    other.fit(weights[:, np.newaxis])
    levels, places = kmeans(weights, count, initial)
    if (initial, count) != ("linear", 16):  # Where some begin with no weight at all.
        np.testing.assert_allclose(levels, np.sort(other.cluster_centers_[:, 0]), atol=1e-4)
    assert ((weights - levels[places]) ** 2).sum() == pytest.approx(other.inertia_, rel=0.03)
    # Each weight takes the nearest level, and each level is the mean of its weights.
    np.testing.assert_array_equal(places, np.abs(weights[:, np.newaxis] - levels).argmin(axis=1))
    np.testing.assert_allclose(levels, [weights[places == each].mean(dtype=np.float64) for each in range(count)])


def test_kmeans_of_weights_that_leave_levels_empty():
    levels, places = kmeans(np.array([0.0, 0.1, 10.0, 10.1]), 6)
    np.testing.assert_array_equal(levels[places], [0.0, 0.1, 10.0, 10.1])
    levels, places = kmeans(np.array([0.0, 0.1, 10.0, 10.1, 100.0]), 3)
    np.testing.assert_allclose(levels, [0.05, 10.05, 100.0])
    levels, places = kmeans(np.full(9, 3.0), 4)
    np.testing.assert_array_equal(levels, [3.0])
    assert not places.any()


def test_stochastic_levels_are_quantiles_and_keep_the_mean():
    weights = normal(50_000)
    levels, places = stochastic(weights, 5, np.random.default_rng(0))
    np.testing.assert_allclose(levels, np.quantile(weights.astype(np.float64), [0, 0.25, 0.5, 0.75, 1]))
    below, above = levels[:-1], levels[1:]
    between = (below <= weights[:, np.newaxis]) & (weights[:, np.newaxis] <= above)
    assert (
        between[np.arange(len(weights)), np.minimum(places, 3)] | between[np.arange(len(weights)), places - 1]
    ).all()
    middle = (weights > levels[1]) & (weights < levels[2])
    error = levels[places][middle].mean() - weights[middle].mean()
    assert abs(error) < 4 * (levels[2] - levels[1]) / 2 / np.sqrt(middle.sum())
    assert set(np.unique(places[middle])) == {1, 2}


def test_common_levels_are_those_that_arrays_share():
    levels = np.arange(1, 17, dtype=np.float32)
    generator = np.random.default_rng(0)
    some = [generator.choice(levels, 200) for _ in range(3)]
    np.testing.assert_array_equal(common_levels(some), levels)
    assert common_levels([each + 0.5 * place for place, each in enumerate(some)][:2]) is None
    # A few that are the same by chance do not count.
    assert common_levels([levels, np.append(levels[:2], levels[2:] + 0.5)]) is None
    assert common_levels(some[:1]) is None
    np.testing.assert_array_equal(common_levels([levels, levels[:3]]), levels)
    assert is_shared(some[0]) and not is_shared(levels) and not is_shared(np.zeros(9, np.float32))
    assert not is_shared(normal()) and not is_shared(np.full(20, np.inf, np.float32))


# Models


@pytest.fixture
def pruned(make_mlp, blobs):
    return aimp_tf.prune(make_mlp(), blobs, target_sparsity=0.5, rate=0.5, epochs=1, verbose=0)


def kernels(model):
    return {path: np.asarray(weight) for path, weight in prunable_variables(model).items()}


def test_weights_share_values_and_zeros_stay(pruned):
    before = [weight.copy() for weight in pruned.model.get_weights()]
    model = aimp_tf.share_weights(pruned, levels=4)
    for (path, new), old in zip(kernels(model).items(), kernels(pruned.model).values(), strict=True):
        assert len(levels_of(new)) <= 4, path
        np.testing.assert_array_equal(new == 0, old == 0)
        # As near as means of values as near as possible are.
        assert np.abs(new - old).max() <= np.ptp(old) / 3
    for old, new in zip(before, pruned.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for path, weight in {name: np.asarray(w) for name, w in zip("ab", model.get_weights()[1::2], strict=False)}.items():
        np.testing.assert_array_equal(weight, before[1 if path == "a" else 3])
    assert model.optimizer is not None
    again = aimp_tf.share_weights(model, levels=4)
    for old, new in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_bits_per_model_and_half_precision(pruned):
    model = aimp_tf.share_weights(pruned.model, bits=2, per="model", centroids="float16", others="bfloat16")
    together = np.concatenate([each.reshape(-1) for each in kernels(model).values()])
    assert len(levels_of(together)) <= 4
    np.testing.assert_array_equal(together, together.astype(np.float16).astype(np.float32))
    bits = np.concatenate([w.reshape(-1) for w in model.get_weights() if w.ndim == 1]).view(np.uint32)
    assert not (bits & 0xFFFF).any()


def test_patterns_choose_kernels(pruned):
    first, second = kernels(pruned.model)
    model = aimp_tf.share_weights(pruned, levels=2, exclude=[first])
    np.testing.assert_array_equal(kernels(model)[first], kernels(pruned.model)[first])
    assert len(levels_of(kernels(model)[second])) == 2


def test_kernels_of_nested_models_share_values(K):
    inner = K.Sequential([K.Input((8,)), K.layers.Dense(20, name="inner")])
    model = K.Sequential([K.Input((8,)), inner, K.layers.Dense(3, name="outer")])
    of_inner, of_outer = kernels(model)
    assert [len(levels_of(each)) for each in kernels(aimp_tf.share_weights(model, levels=4)).values()] == [4, 4]
    shared = kernels(aimp_tf.share_weights(model, levels=4, include=[of_inner]))
    assert [len(levels_of(each)) for each in shared.values()] == [4, 60]


def test_stochastic_levels_are_drawn_by_a_seed(pruned):
    models = [aimp_tf.share_weights(pruned, levels=3, method="stochastic", seed=seed) for seed in (0, 0, 1)]
    first, again, other = (list(kernels(model).values())[0] for model in models)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and len(levels_of(first)) == 3


def test_survivors_never_become_zero(K):
    model = K.Sequential([K.Input((4,)), K.layers.Dense(6)])
    values = np.where(np.arange(24) % 3 == 0, 0, np.where(np.arange(24) % 3 == 1, 1e-12, 1.0))
    model.layers[0].kernel.assign(values.reshape(4, 6))
    (kernel,) = kernels(aimp_tf.share_weights(model, levels=2, centroids="float16")).values()
    assert np.count_nonzero(kernel) == 16


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"levels": 1}, ValueError, "levels must be 2 to 256; got 1"),
        ({"levels": 2.5}, TypeError, "levels must be a whole number; got 2.5"),
        ({"bits": 9}, ValueError, "bits must be 1 to 8; got 9"),
        ({"levels": 4, "bits": 2}, ValueError, "levels=4 and bits=2 say the same"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number; got 0.5"),
        ({"seed": -1}, ValueError, "seed must be at least 0; got -1"),
        ({"per": "network"}, ValueError, "per must be one of layer, model; got 'network'"),
        ({"method": "huffman"}, ValueError, "method must be one of kmeans, stochastic"),
        ({"initial": "random"}, ValueError, "initial must be one of linear, density"),
        ({"fold_normalization": "yes"}, TypeError, "fold_normalization must be True or False; got 'yes'"),
        ({"centroids": "int8"}, ValueError, "centroids must be one of float32, float16, bfloat16"),
        ({"include": "x*"}, TypeError, "include"),
        ({"exclude": ["nothing*"]}, ValueError, "nothing"),
    ],
)
def test_wrong_settings_are_refused(make_mlp, settings, error, message):
    with pytest.raises(error, match=message):
        aimp_tf.share_weights(make_mlp(), **settings)


def test_normalisation_is_folded_into_half_as_many_numbers(K, tmp_path):
    rng = np.random.default_rng(0)
    inputs = K.Input((6, 6, 2))
    x = K.layers.BatchNormalization(epsilon=0.1, name="folded")(K.layers.Conv2D(64, 3, name="conv")(inputs))
    x = K.layers.BatchNormalization(scale=False, name="unscaled")(x)
    model = K.Model(inputs, K.layers.Dense(3)(K.layers.GlobalAveragePooling2D()(x)))
    model.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in model.get_weights()])
    images = rng.normal(size=(8, 6, 6, 2)).astype(np.float32)
    plain, folded = (aimp_tf.share_weights(model, fold_normalization=fold) for fold in (False, True))
    expected, got = plain(images, training=False).numpy(), folded(images, training=False).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    gamma, beta, mean, variance = folded.get_layer("folded").get_weights()
    assert not mean.any() and (variance == 1).all() and not np.allclose(gamma, 1) and beta.any()
    for own, other in zip(plain.get_layer("unscaled").get_weights(), folded.get_layer("unscaled").get_weights()):
        np.testing.assert_array_equal(own, other)
    sizes = [write_coded(each, tmp_path / "model.coded").bytes for each in (plain, folded)]
    assert sizes[0] - sizes[1] > 0.9 * 2 * 4 * 64
    assert not np.allclose(got, plain(images, training=True).numpy(), rtol=1e-2)  # They are looked at.


def test_statistics_that_are_rounded_are_those_it_computes_with(K):
    points = np.random.default_rng(0).normal(100, 3, (64, 4)).astype(np.float32)
    normalization = K.layers.Normalization()
    normalization.adapt(points)
    model = aimp_tf.share_weights(K.Sequential([K.Input((4,)), normalization, K.layers.Dense(6)]), others="bfloat16")
    mean, variance, *_ = model.layers[1].get_weights()
    expected = (points - mean) / np.sqrt(variance) @ model.layers[2].kernel.numpy()
    np.testing.assert_allclose(model(points).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_values_beyond_half_precision_are_refused(K):
    model = K.Sequential([K.Input((4,)), K.layers.Dense(6)])
    model.layers[0].bias.assign(np.full(6, 1e6))
    with pytest.raises(ValueError, match="bias has values beyond float16: give others='bfloat16'"):
        aimp_tf.share_weights(model, others="float16")
    model.layers[0].kernel.assign(np.full((4, 6), 1e5))
    with pytest.raises(ValueError, match="kernel has values beyond float16: give centroids='bfloat16'"):
        aimp_tf.share_weights(model, centroids="float16")
    model.layers[0].kernel.assign(np.full((4, 6), np.nan))
    with pytest.raises(ValueError, match="kernel has weights that are not finite"):
        aimp_tf.share_weights(model)
    double = K.Sequential([K.Input((4,)), K.layers.Dense(6, dtype="float64")])
    with pytest.raises(ValueError, match="No kernel of .* that is chosen has float32 weights"):
        aimp_tf.share_weights(double)


# Training


def small(K, optimizer):
    """A network of two kernels that share values, and its data."""
    K.utils.set_random_seed(0)
    model = K.Sequential([K.Input((6,)), K.layers.Dense(12, activation="relu"), K.layers.Dense(3)])
    model.compile(optimizer, K.losses.SparseCategoricalCrossentropy(from_logits=True))
    for weight in model.weights[::2]:
        weight.assign(np.where(np.random.default_rng(0).random(weight.shape) < 0.3, 0, weight))
    generator = np.random.default_rng(1)
    return model, generator.normal(size=(64, 6)).astype(np.float32), generator.integers(0, 3, 64)


def places_of(array):
    return np.where(array == 0, -1, np.searchsorted(levels_of(array), array))


@pytest.mark.parametrize("per", ["layer", "model"])
@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop"])
def test_values_are_trained_and_stay_shared(K, per, name, monkeypatch):
    monkeypatch.setattr(SharedWeights, "_settle", lambda self: None)  # All steps keep them equal by themselves.
    model, x, y = small(K, "sgd")
    model = aimp_tf.share_weights(model, levels=5, per=per)
    model.compile(getattr(K.optimizers, name)(1e-3), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = kernels(model)
    aimp_tf.fine_tune(model, x, y, epochs=2, batch_size=16, weights="shared", verbose=0)
    for path, after in kernels(model).items():
        assert len(levels_of(after)) == len(levels_of(before[path])), path
        np.testing.assert_array_equal(after == 0, before[path] == 0)
        for level in levels_of(before[path]):
            assert len(np.unique(after[before[path] == level])) == 1
        assert (after[after != 0] != before[path][after != 0]).all()
    if per == "model":
        assert len(levels_of(np.concatenate([each.reshape(-1) for each in kernels(model).values()]))) == 5


def test_the_gradient_of_a_value_is_the_sum_of_those_of_its_weights(K):
    model, x, y = small(K, "sgd")
    model = aimp_tf.share_weights(model, levels=5)
    model.compile(K.optimizers.SGD(1.0), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = kernels(model)
    plain = K.models.clone_model(model)
    plain.set_weights(model.get_weights())
    plain.compile(K.optimizers.SGD(1.0), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    plain.fit(x, y, batch_size=64, shuffle=False, verbose=0)
    aimp_tf.fine_tune(model, x, y, epochs=1, batch_size=64, shuffle=False, weights="shared", verbose=0)
    for path, other in zip(before, kernels(plain).values(), strict=True):
        gradients, moved = before[path] - other, before[path] - kernels(model)[path]
        for level in levels_of(before[path]):
            there = before[path] == level
            np.testing.assert_allclose(moved[there], gradients[there].sum(), rtol=1e-3, atol=1e-5)


def test_what_an_optimizer_makes_of_several_weights_is_averaged(K):
    model, x, y = small(K, "sgd")
    model = aimp_tf.share_weights(model, levels=5)
    model.compile(K.optimizers.Adafactor(1e-2), K.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = kernels(model)
    aimp_tf.fine_tune(model, x, y, epochs=2, batch_size=16, weights="shared", verbose=0)
    for path, after in kernels(model).items():
        np.testing.assert_array_equal(places_of(after) == -1, before[path] == 0)
        assert len(levels_of(after)) <= 5
        assert (after != before[path]).any()


def test_nothing_to_share_is_refused_before_training(K):
    model, x, y = small(K, "sgd")
    before = model.get_weights()
    with pytest.raises(ValueError, match="weights='shared' needs kernels whose weights share values, at most 256 each"):
        aimp_tf.fine_tune(model, x, y, epochs=1, weights="shared", verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_gradients_are_changed_within_and_not_after(K):
    model, x, y = small(K, "sgd")
    before = model.get_weights()
    with changed_gradients(model, lambda pairs: [(0 * gradient, variable) for gradient, variable in pairs]):
        model.fit(x, y, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    model.fit(x, y, verbose=0)
    assert (before[0] != model.get_weights()[0]).any()


def loss_and_gradients(model, x, y):
    """For a `train_step` of one's own."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x, training=True)))
    return loss, tape.gradient(loss, model.trainable_weights)


@pytest.mark.parametrize("way", ["apply", "apply_gradients", "past it"])
@pytest.mark.parametrize("weights", ["shared", "int8"])
def test_a_train_step_of_ones_own(K, way, weights):
    class Own(K.Model):
        def train_step(self, data):
            loss, gradients = loss_and_gradients(self, *data)
            if way == "past it":
                for gradient, weight in zip(gradients, self.trainable_weights, strict=True):
                    weight.assign(weight - 0.01 * gradient)
            elif way == "apply" and K.__name__ == "keras":
                self.optimizer.apply(gradients, self.trainable_weights)
            else:
                self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            return {"loss": loss}

    model, x, y = small(K, "sgd")
    shared = aimp_tf.share_weights(model, levels=5)
    model = Own(shared.inputs, shared.outputs)
    model.compile(K.optimizers.Adam(1e-3))
    before = kernels(model)
    if way == "past it":
        with pytest.raises(RuntimeError, match="The train_step of Own changes weights past self.optimizer"):
            aimp_tf.fine_tune(model, x, y, epochs=1, weights=weights, verbose=0)
        return
    aimp_tf.fine_tune(model, x, y, epochs=2, weights=weights, verbose=0)
    for path, after in kernels(model).items():
        assert (after[after != 0] != before[path][after != 0]).any()
        if weights == "shared":
            assert len(levels_of(after)) == 5
    assert not {"apply", "apply_gradients"} & vars(model.optimizer).keys()


@pytest.mark.slow
def test_digits_are_read_as_well_from_a_file_a_twentieth_as_large(K, digits, tmp_path):
    """On real data: pruned to a tenth, eight values a layer, half precision, all counted."""
    x, y = digits
    K.utils.set_random_seed(0)
    layers = [K.Input(x.shape[1:]), K.layers.Flatten(), K.layers.Dense(300, activation="relu")]
    model = K.Sequential([*layers, K.layers.Dense(100, activation="relu"), K.layers.Dense(10)])
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(K.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    train, test = slice(0, 1300), slice(1300, None)
    result = aimp_tf.prune(model, x[train], y[train], target_sparsity=0.9, epochs=20, method="gradual", verbose=0)
    exact = result.model.evaluate(x[test], y[test], verbose=0)[1]
    shared = aimp_tf.share_weights(result, levels=8, centroids="float16", others="float16")
    shared.compile(K.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    aimp_tf.fine_tune(shared, x[train], y[train], epochs=3, weights="shared", verbose=0)
    shared = aimp_tf.share_weights(shared, levels=8, centroids="float16", others="float16")
    report = write_coded(shared, tmp_path / "model.coded")
    assert shared.evaluate(x[test], y[test], verbose=0)[1] > exact - 0.02
    assert report.dense_bytes / report.bytes > 20
