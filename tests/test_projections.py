"""Projections of kernels: against brute force on small inputs, and in runs on scikit-learn's digits."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import aimp_tf
from aimp_tf.training.projections import PROJECTIONS, _radii

SETTINGS = {
    "target_sparsity": 0.5,
    "rate": 0.3,
    "epochs": 2,
    "round_epochs": 2,
    "batch_size": 50,
    "seed": 0,
    "verbose": 0,
}

ROWS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=4), elements=st.floats(-4, 4, width=16))
RADII = st.floats(0.0625, 12, width=16)


def projected(name, rows, radius):
    return np.asarray(PROJECTIONS[name]().project(tf.constant(rows), tf.constant(np.float32(radius))), "float64")


def norm_of(name, rows):
    return float(np.linalg.norm(rows, axis=1).sum() if name == "l21" else np.abs(rows).sum())


def nearest_nonnegative(values, radius):
    """The nearest vector of no negative numbers whose sum is at most the radius, by trying every set of those that are
    not zero: of such a set, each gets smaller by the same, or by nothing."""
    best = np.zeros_like(values)
    for mask in range(1, 2 ** len(values)):
        chosen = np.array([bool(mask >> bit & 1) for bit in range(len(values))])
        less = max(0.0, (values[chosen].sum() - radius) / chosen.sum())
        candidate = np.where(chosen, values - less, 0)
        if candidate.min() >= 0 and ((candidate - values) ** 2).sum() < ((best - values) ** 2).sum():
            best = candidate
    return best


def by_brute_force(name, rows, radius):
    rows = rows.astype("float64")
    if name == "l21":
        lengths = np.linalg.norm(rows, axis=1)
        shorter = nearest_nonnegative(lengths, radius)
        return rows * np.divide(shorter, lengths, out=np.zeros_like(lengths), where=lengths > 0)[:, None]
    if name == "l1":
        nearest = nearest_nonnegative(np.abs(rows).ravel()[:12], radius).reshape(rows.shape)
        return np.sign(rows) * nearest
    radii = nearest_nonnegative(np.abs(rows).sum(axis=1), radius)
    return np.stack([np.sign(row) * nearest_nonnegative(np.abs(row), r) for row, r in zip(rows, radii, strict=True)])


@pytest.mark.parametrize("name", PROJECTIONS)
@settings(deadline=None, max_examples=60)
@given(rows=ROWS, radius=RADII)
@example(rows=np.zeros((2, 3), "float32"), radius=1.0)
@example(rows=np.array([[1, 1], [1, 1]], "float32"), radius=2.0)
def test_they_are_the_nearest_points(name, rows, radius):
    if rows.size > 12:
        rows = rows[:3]
    np.testing.assert_allclose(projected(name, rows, radius), by_brute_force(name, rows, radius), atol=1e-5)


@pytest.mark.parametrize("name", PROJECTIONS)
@settings(deadline=None, max_examples=60)
@given(rows=ROWS, radius=RADII)
def test_they_are_in_the_ball_and_stay(name, rows, radius):
    once = projected(name, rows, radius)
    assert norm_of(name, once) <= radius * (1 + 1e-5)
    np.testing.assert_allclose(projected(name, once.astype("float32"), radius), once, atol=1e-5)
    if norm_of(name, rows) <= radius:  # What is inside already is left alone, bit for bit.
        np.testing.assert_array_equal(once, rows)


@pytest.mark.parametrize("name", PROJECTIONS)
@settings(deadline=None, max_examples=60)
@given(rows=ROWS)
@example(rows=np.zeros((2, 3), "float32"))
@example(rows=np.array([[1, 0], [1, 1]], "float32"))
def test_weights_are_left_from_their_knots_on(name, rows):
    knots = np.asarray(PROJECTIONS[name]().knots(tf.constant(rows)))
    assert knots.shape == (rows.size,)
    bounds = np.unique(np.r_[0, knots, norm_of(name, rows)])
    for below, above in zip(bounds, bounds[1:], strict=False):
        if above - below > 1e-3:
            left = projected(name, rows, (below + above) / 2) != 0
            assert left.sum() == (knots <= below).sum()


@pytest.mark.parametrize("name", PROJECTIONS)
def test_what_is_chosen_leaves_what_is_kept(name):
    """Of kernels of many weights, as large as they come, to within a weight or a row, and never more."""
    generator = np.random.default_rng(0)
    kernels = {
        "wide": 10 * generator.normal(size=(300, 784)),
        "deep": generator.normal(size=(100, 300)) * generator.random((100, 1)) ** 3,
        "masked": generator.normal(size=(10, 100)) * (generator.random((10, 100)) < 0.1),
        "zero": np.zeros((20, 10)),
    }
    rows = {path: tf.constant(kernel, tf.float32) for path, kernel in kernels.items()}
    total = sum(kernel.size for kernel in kernels.values())
    projection = PROJECTIONS[name]()

    for share in (0.001, 0.02, 0.3, 0.9):
        radii = _radii(projection, rows, share)
        left = sum(np.count_nonzero(projection.project(each, tf.constant(radii[path]))) for path, each in rows.items())
        most = min(share * total, sum(map(np.count_nonzero, kernels.values())))
        assert most - (784 if name == "l21" else 2) <= left <= most


def test_many_numbers():
    """Sums of a million float32 are not exact; what is left of them has to be."""
    rows = np.random.default_rng(0).normal(size=(100, 10_000)).astype("float32")
    for name in PROJECTIONS:
        radius = norm_of(name, rows) / 50
        assert norm_of(name, projected(name, rows, radius)) == pytest.approx(radius, rel=1e-4)
        np.testing.assert_array_equal(projected(name, rows, 51 * radius), rows)


@pytest.mark.parametrize(
    ("name", "radius", "rows", "expected"),
    [
        ("l1", 2, [[3, -1, 0.5]], [[2, 0, 0]]),
        ("l21", 4, [[3, 4], [0, 1]], [[2.4, 3.2], [0, 0]]),
        ("l11", 3, [[3, 1], [0.5, 0.5]], [[2.5, 0.5], [0, 0]]),
    ],
)
def test_the_examples_of_the_docstrings(name, radius, rows, expected):
    np.testing.assert_allclose(projected(name, np.array(rows, "float32"), radius), expected, atol=1e-6)


@pytest.fixture
def make(K):
    def make():
        K.utils.set_random_seed(1)
        L = K.layers
        model = K.Sequential(
            [K.Input((8, 8, 1)), L.Conv2D(8, 3, activation="relu"), L.Conv2D(8, 3, activation="relu"), L.Flatten()]
        )
        model.add(L.Dense(10))
        loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(K.optimizers.SGD(0.1, momentum=0.9), loss, metrics=["accuracy"])
        return model

    return make


@pytest.fixture
def data(digits):
    return digits[0][:400].reshape(-1, 8, 8, 1), digits[1][:400]


class Noting:
    """Notes, at the end of each epoch, the kernels as they are then."""

    def __init__(self, K):
        kernels = self.kernels = []

        class Note(K.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                kernels.append([np.array(weight) for weight in self.model.get_weights() if weight.ndim > 1])

        self.callback = Note()


def share_of_zeros(kernels):
    return sum((kernel == 0).sum() for kernel in kernels) / sum(kernel.size for kernel in kernels)


@pytest.mark.parametrize("name", ["l1", "l11"])
def test_a_radius_is_chosen_for_what_the_next_round_keeps(K, make, data, name):
    noting = Noting(K)
    result = aimp_tf.prune(make(), *data, projection=name, callbacks=[noting.callback], **SETTINGS)
    shares = list(map(share_of_zeros, noting.kernels))
    # Two epochs in each of three trainings, of which the first two are projected to what the next one keeps.
    for epoch, kept in ((0, 1), (1, 1), (2, 2), (3, 2)):
        expected = 1 - result.rounds[kept].kept / result.rounds[0].kept
        assert expected - 1e-9 <= shares[epoch] < expected + 0.001
    assert shares[5] == pytest.approx(0.5, abs=0.02)
    assert result.rounds[-1].metrics["accuracy"] > 0.6


def test_rows_of_a_transposed_convolution(K):
    inputs = K.Input((4, 4, 3))
    model = K.Model(inputs, K.layers.GlobalAveragePooling2D()(K.layers.Conv2DTranspose(6, 3, name="up")(inputs)))
    model.compile("sgd", "mse")
    masked = aimp_tf.wrap(model)
    pruning = aimp_tf.GlobalMagnitudePruning(
        target_sparsity=0.5, rate=0.5, epochs=1, round_epochs=1, projection=aimp_tf.projections.L21(radius=0.1)
    )
    x = np.zeros((8, 4, 4, 3), "float32")
    masked.fit(x, np.zeros((8, 6), "float32"), callbacks=[pruning], verbose=0)
    kernel = np.asarray(model.get_layer("up").kernel)
    gone = (kernel == 0).all(axis=(0, 1, 3))
    assert 0 < gone.sum() < 6 and (kernel[:, :, ~gone] != 0).all()


def test_penalties_are_told_of_rounds_that_are_projected(make, data):
    result = aimp_tf.prune(make(), *data, projection="l1", regularizer="group_lasso", **SETTINGS)
    assert all("penalty" in round_.metrics for round_ in result.rounds) and result.rounds[0].metrics["penalty"] > 0


def test_rows_go_as_a_whole(K, make, data):
    noting = Noting(K)
    aimp_tf.prune(make(), *data, projection="l21", callbacks=[noting.callback], **SETTINGS)
    kernels = noting.kernels[0]
    outputs = [np.abs(kernel).reshape(-1, kernel.shape[-1]).sum(axis=0) for kernel in kernels]
    assert sum((each == 0).sum() for each in outputs) > 0
    for kernel, sums in zip(kernels, outputs, strict=True):
        assert (kernel[..., sums > 0] != 0).mean() > 0.99


def test_a_radius_that_is_given_holds_after_every_step(K, make, data):
    norms = []

    class Note(K.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            weights = [weight for weight in self.model.get_weights() if weight.ndim > 1]
            norms.append([np.abs(weight).sum() for weight in weights])

    projection = aimp_tf.projections.L1(radius=10.0, every="step")
    aimp_tf.prune(make(), *data, projection=projection, callbacks=[Note()], **SETTINGS)
    per_round = 2 * 8
    assert np.max(norms[: 2 * per_round]) <= 10 * (1 + 1e-4) and np.min(norms[:per_round]) > 5
    assert np.max(norms[2 * per_round :]) > 10.5  # In the last training, nothing is projected.


def test_steps_that_were_traced_before_project_as_well(K, make, data):
    model, norms = make(), []

    class Note(K.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            norms.append(np.abs(model.layers[0].kernel).sum())

    masked = aimp_tf.wrap(model)
    masked.fit(*data, verbose=0)
    pruning = aimp_tf.GlobalMagnitudePruning(
        target_sparsity=0.5,
        rate=0.3,
        epochs=1,
        round_epochs=1,
        projection=aimp_tf.projections.L1(radius=1.0, every="step"),
    )
    masked.fit(*data, callbacks=[pruning, Note()], verbose=0)
    assert 0 < np.max(norms) <= 1.0001


def test_kernels_that_steps_project_shrink_as_others_do(make, data):
    for every in ("epoch", "step"):
        projection = aimp_tf.projections.L1(radius=20.0, every=every)
        result = aimp_tf.prune(make(), *data, projection=projection, shrink=0.5, **SETTINGS)
        assert all(layer.shrink < 1 for layer in result.rounds[1].layers)


def test_it_comes_before_a_constraint_of_ones_own(K, make, data):
    model = make()
    model.layers[0].kernel_constraint = constraint = K.constraints.NonNeg()
    if K.__name__ == "keras":
        model.layers[0].kernel.constraint = constraint
    else:
        model.layers[0].kernel._constraint = constraint
    projection = aimp_tf.projections.L1(radius=5.0, every="step")
    masked = aimp_tf.wrap(model)
    pruning = aimp_tf.GlobalMagnitudePruning(
        target_sparsity=0.5, rate=0.3, epochs=1, round_epochs=1, projection=projection
    )
    masked.fit(*data, callbacks=[pruning], verbose=0)
    kernel = np.array(model.layers[0].kernel)
    assert kernel.min() >= 0 and kernel.sum() <= 5.001
    aimp_tf.strip(masked, unfinished=True)
    assert model.layers[0].kernel.constraint is constraint and model.layers[1].kernel.constraint is None


@pytest.mark.parametrize("every", ["epoch", pytest.param("step", marks=pytest.mark.slow)])
def test_it_goes_on_where_it_stopped(K, make, data, tmp_path, every):
    class Stop(Exception):
        pass

    class Stopping(K.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if int(self.model.optimizer.iterations) == 8:  # In the middle of the first round.
                raise Stop

    def prune(folder, *callbacks):
        model, projection = make(), aimp_tf.projections.L1(every=every)
        aimp_tf.prune(model, *data, projection=projection, workdir=tmp_path / folder, callbacks=callbacks, **SETTINGS)
        return model.get_weights()

    whole = prune("whole")
    with pytest.raises(Stop):
        prune("parts", Stopping())
    for one, two in zip(whole, prune("parts"), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.slow
def test_channels_replicas_and_half_precision(K, make, data, strategy):
    for options in ({"granularity": "channel"}, {"mixed_precision": "mixed_bfloat16"}, {"rewind": "weights"}):
        result = aimp_tf.prune(make(), *data, projection="l1", **SETTINGS, **options)
        assert result.rounds[-1].metrics["accuracy"] > 0.5
    with strategy.scope():
        model = make()
    projection = aimp_tf.projections.L1(radius=10.0, every="step")
    masked = aimp_tf.wrap(model)
    pruning = aimp_tf.GlobalMagnitudePruning(
        target_sparsity=0.5, rate=0.3, epochs=1, round_epochs=1, projection=projection
    )
    masked.fit(*data, callbacks=[pruning], verbose=0)
    assert np.abs(model.layers[0].kernel).sum() <= 10.001


def test_one_of_ones_own(make, data):
    class Box(aimp_tf.projections.Projection):
        """No magnitude above the radius."""

        def norm(self, rows):
            return tf.reduce_max(tf.abs(rows))

        def project(self, rows, radius):
            return tf.clip_by_value(rows, -radius, radius)

    model = make()
    masked = aimp_tf.wrap(model)
    pruning = aimp_tf.GlobalMagnitudePruning(
        target_sparsity=0.5, rate=0.3, epochs=1, round_epochs=1, projection=Box(0.05)
    )
    masked.fit(*data, callbacks=[pruning], verbose=0)
    assert all(np.abs(layer.kernel).max() <= 0.0500001 for layer in model.layers if hasattr(layer, "kernel"))


def test_mistakes():
    L1 = aimp_tf.projections.L1
    for arguments, error, message in (
        ({"radius": 0}, ValueError, "radius of L1 must be None or a number above 0; got 0"),
        ({"radius": "much"}, TypeError, "got 'much'"),
        ({"every": "batch"}, ValueError, "every of L1 must be 'epoch' or 'step'; got 'batch'"),
    ):
        with pytest.raises(error, match=message):
            L1(**arguments)
    with pytest.raises(ValueError, match="Ball cannot choose its radius, for it has no `knots`: define them, or give"):
        type("Ball", (aimp_tf.projections.Projection,), {})()
    for fields, message in (
        ({"projection": "l2"}, "projection must be None or one of 'l1', 'l21', 'l11'"),
        ({"projection": L1}, r"Write L1\(...\)"),
        ({"projection": "l1", "method": "gradual"}, "method='gradual' has no use for projection='l1'"),
    ):
        with pytest.raises(ValueError, match=message):
            aimp_tf.PruningConfig(0.5, epochs=2, **fields).validate()
