"""factorize and merge_factors: of made-up networks, and the whole way on real data (scikit-learn's digits)."""

import importlib
import logging

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import GENERATIONS, Network, outputs_of, randomize

import aimp_tf
from aimp_tf.exporting.compaction import compact_and_report
from aimp_tf.factorization import factorize, merge_factors
from aimp_tf.graph.prunable import prunable_variables


def check_alike(model, other, inputs):
    """Checks that two models give the same within 1e-5 of the largest entry of each output."""
    for one, two in zip(outputs_of(model, inputs), outputs_of(other, inputs), strict=True):
        assert one.shape == two.shape
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5 * max(np.abs(one).max(), 1e-3))


def matrix_of(layer):
    kernel = np.asarray(layer.kernel, np.float64)
    return kernel.reshape(-1, kernel.shape[-1])


def signature(model):
    """What a model is made of."""
    return [
        (layer.name, type(layer).__name__, [weight.shape for weight in layer.get_weights()]) for layer in model.layers
    ]


class Windows(Network):
    """Networks with convolutions that stride and dilate."""

    def conv(self, x, filters=None):
        if filters is not None or x.shape[1] < 3:
            return super().conv(x, filters)
        window = self.one_of({}, {"strides": 2}, {"strides": (1, 2)}, {"dilation_rate": 2}, {"dilation_rate": (2, 1)})
        layer = self.L.Conv2D(
            self.one_of(2, 5, 20),
            self.one_of(1, 2, 3, (1, 3)) if "strides" in window or x.shape[1] > 4 else 1,
            padding=self.one_of("same", "valid") if "strides" in window else "same",
            use_bias=self.one_of(True, False),
            activation=self.one_of(None, "relu", "tanh"),
            **window,
        )
        return layer(x)


def check_any_network(data, generation):
    keras = importlib.import_module(generation)
    keras.backend.clear_session()
    model = Windows(data.draw, keras).model()
    randomize(model, np.random.default_rng(0))
    inputs = np.random.default_rng(1).normal(size=(3, 5, 5, 2)).astype(np.float32)
    before = [weight.copy() for weight in model.get_weights()]
    factors = factorize(model)
    check_alike(model, factors, inputs)
    merged = merge_factors(factors)
    check_alike(model, merged, inputs)
    assert merged.count_params() == model.count_params() < factors.count_params()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    assert type(factors).__module__.split(".")[0] == type(merged).__module__.split(".")[0] == generation
    assert list(factors.output_names) == list(merged.output_names) == list(model.output_names)


ANY = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@settings(max_examples=5, derandomize=True, **ANY)
@given(data=st.data(), generation=st.sampled_from(GENERATIONS))
def test_some_networks_compute_the_same(data, generation):
    check_any_network(data, generation)


@pytest.mark.slow
@settings(max_examples=60, **ANY)
@given(data=st.data(), generation=st.sampled_from(GENERATIONS))
def test_any_network_computes_the_same(data, generation):
    check_any_network(data, generation)


# Layer -> its input, its settings, and what its matrix has: rows, outputs, and positions in which it is multiplied.
KERNELS = {
    "dense": ((7,), "Dense", {"units": 5}, (7, 5, 1)),
    "wide": ((4,), "Dense", {"units": 9, "use_bias": False}, (4, 9, 1)),
    "along an axis": ((3, 6), "Dense", {"units": 4, "activation": "relu"}, (6, 4, 3)),
    "causal": ((9, 2), "Conv1D", {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2}, (6, 4, 9)),
    "strides": ((7, 8, 2), "Conv2D", {"filters": 5, "kernel_size": (3, 2), "strides": (2, 3)}, (12, 5, 3 * 3)),
    "borders": ((5, 5, 1), "Conv2D", {"filters": 12, "kernel_size": 3, "padding": "same", "strides": 2}, (9, 12, 9)),
    "dilated": ((6, 6, 2), "Conv2D", {"filters": 3, "kernel_size": 2, "dilation_rate": (2, 3)}, (8, 3, 4 * 3)),
    "volume": ((3, 4, 3, 2), "Conv3D", {"filters": 4, "kernel_size": 2, "padding": "same"}, (16, 4, 36)),
}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("case", KERNELS)
def test_counts_and_balance(case, generation):
    keras = importlib.import_module(generation)
    shape, kind, fields, (rows, outputs, positions) = KERNELS[case]
    layer = getattr(keras.layers, kind)(name="whole", **fields)
    model = keras.Sequential([keras.Input(shape), layer])
    randomize(model, np.random.default_rng(0))
    inputs = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    factors = factorize(model)
    check_alike(model, factors, inputs)

    rank, bias = min(rows, outputs), outputs * layer.use_bias
    report = compact_and_report(factors)[1]
    assert compact_and_report(model)[1].multiply_adds[0] == positions * rows * outputs
    assert report.multiply_adds[0] == positions * rank * (rows + outputs)
    assert report.parameters[0] == factors.count_params() == rank * (rows + outputs) + bias
    assert report.channels["whole_factor"] == (rank, rank)

    first, second = (matrix_of(factors.get_layer(name)) for name in ("whole_factor", "whole"))
    whole = matrix_of(layer)
    singular = np.linalg.svd(whole, compute_uv=False)
    np.testing.assert_allclose(first @ second, whole, atol=1e-6)
    np.testing.assert_allclose(first.T @ first, np.diag(singular), atol=1e-6)
    np.testing.assert_allclose(second @ second.T, np.diag(singular), atol=1e-6)
    assert (np.sum(first**2) + np.sum(second**2)) / 2 == pytest.approx(np.linalg.norm(whole, "nuc"))

    merged = merge_factors(factors)
    check_alike(model, merged, inputs)
    assert signature(merged)[-1] == signature(model)[-1]


def doubled(values):
    return values * 2.0


def test_what_a_layer_is_beside_its_kernel(K):
    """Activation, biases and what holds for them go to the second layer; policy and freezing to both."""
    layers = K.layers
    model = K.Sequential(
        [
            K.Input((6,)),
            layers.Dense(
                5,
                activation=doubled,
                bias_regularizer=K.regularizers.L2(0.5),
                bias_constraint=K.constraints.NonNeg(),
                activity_regularizer=K.regularizers.L1(0.25),
                kernel_initializer=K.initializers.Constant(np.ones((6, 5)).tolist()),
                name="own",
            ),
            layers.Dense(4, dtype="mixed_bfloat16", name="half"),
            layers.Dense(4, dtype="float32", trainable=False, name="frozen"),
        ]
    )
    randomize(model, np.random.default_rng(0))
    factors = factorize(model)
    inputs = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    halves = [np.asarray(K.Model(each.inputs[0], each.get_layer("own").output)(inputs)) for each in (model, factors)]
    np.testing.assert_allclose(*halves, atol=1e-5)
    first, second = factors.get_layer("own_factor"), factors.get_layer("own")
    for field in ("bias_regularizer", "bias_constraint", "activity_regularizer"):
        assert getattr(first, field) is None
        assert type(getattr(second, field)) is type(getattr(model.get_layer("own"), field))
    assert not first.use_bias and first.activation is K.activations.linear
    assert second.activation is model.get_layer("own").activation
    for name, policy, trainable in (
        ("own", "float32", True),
        ("half", "mixed_bfloat16", True),
        ("frozen", "float32", False),
    ):
        for layer in (factors.get_layer(name), factors.get_layer(f"{name}_factor")):
            assert (layer.dtype_policy.name, layer.trainable) == (policy, trainable)
            assert all(weight.dtype == np.float32 for weight in layer.get_weights())
    # A frozen one has both.
    assert len(factors.trainable_weights) == 6


def nested(K):
    """Two outputs, a nested model that is used twice, a layer that is used twice, and a residual."""
    layers = K.layers
    stem = K.Sequential([K.Input((8, 8, 3)), layers.Conv2D(6, 3, padding="same", name="core")], name="stem")
    image = K.Input((8, 8, 3), name="image")
    features = layers.Add()([stem(image), stem(layers.Rescaling(0.5)(image))])
    again = layers.Conv2D(6, 3, padding="same", activation="relu", name="again")
    features = layers.Add()([again(again(features)), features])
    pooled = layers.GlobalAveragePooling2D(name="pooled")(features)
    model = K.Model(image, {"class": layers.Dense(5, activation="softmax", name="core")(pooled), "mean": pooled})
    model.compile(K.optimizers.SGD(0.25), {"class": "mse", "mean": "mae"}, metrics={"class": ["accuracy"]})
    return model


@pytest.mark.parametrize("generation", GENERATIONS)
def test_shared_and_nested_layers_and_what_is_compiled(generation, tmp_path):
    K = importlib.import_module(generation)
    model = nested(K)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    factors = factorize(model)
    check_alike(model, factors, images)
    names = [layer.name for layer in factors.layers if layer.weights]
    assert names == ["stem_core_factor", "stem_core", "again_factor", "again", "core_factor", "core"]
    assert list(factors.output_names) == list(model.output_names) == ["core", "pooled"]
    assert isinstance(factors.output, dict) and list(factors.output) == ["class", "mean"]
    # One pair of 54 x 6 and 6 x 6 for all calls, of either; then 6 x 5 and 5 x 5.
    assert factors.count_params() == (27 * 6 + 6 * 6 + 6) + (54 * 6 + 6 * 6 + 6) + (6 * 5 + 5 * 5 + 5)

    assert factors.optimizer is not model.optimizer and float(factors.optimizer.learning_rate) == 0.25
    targets = {"class": np.eye(5, dtype=np.float32)[[0, 1, 2, 3]], "mean": np.zeros((4, 6), np.float32)}
    try:
        before = model.evaluate(images, targets, verbose=0, return_dict=True)
    except ValueError:
        pytest.skip(f"{K.__name__} {K.__version__} takes metrics by the names of layers, not of outputs")
    after = factors.evaluate(images, targets, verbose=0, return_dict=True)
    assert before.keys() == after.keys() and after == pytest.approx(before, rel=1e-5)
    factors.fit(images, targets, epochs=1, verbose=0)

    path = tmp_path / "factors.keras"
    factors.save(path)
    loaded = K.models.load_model(path)
    check_alike(factors, loaded, images)
    merged = merge_factors(loaded)
    check_alike(factors, merged, images)
    assert merged.count_params() == model.count_params() and list(merged.output_names) == ["core", "pooled"]
    assert [layer.name for layer in merged.layers if layer.weights] == ["stem_core", "again", "core"]


def test_masks_of_padding_go_through_both(K):
    ids = K.Input((5,), dtype="int32")
    values = K.layers.Dense(4, name="between")(K.layers.Embedding(7, 3, mask_zero=True)(ids))
    model = K.Model(ids, K.layers.GlobalAveragePooling1D()(values))
    factors = factorize(model)
    check_alike(model, factors, np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]]))
    check_alike(model, merge_factors(factors), np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0]]))


def test_patterns_choose(K):
    model = nested(K)
    factors = factorize(model, include=("stem/*", "*/kernel"), exclude=("core/*", "again/*"))
    assert [layer.name for layer in factors.layers if "_factor" in layer.name] == ["stem_core_factor"]
    assert factors.get_layer("again").get_weights()[0].shape == (3, 3, 6, 6)
    # What is left may be factorised later.
    further = factorize(factors, exclude=("again/*",))
    assert [layer.name for layer in further.layers if "_factor" in layer.name] == ["stem_core_factor", "core_factor"]


def test_what_stays_whole_says_why(K, caplog):
    layers, image = K.layers, K.Input((6, 6, 4))
    x = layers.Conv2D(8, 3, groups=2, name="grouped")(image)
    x = layers.SeparableConv2D(8, 3, name="separable")(x)
    x = layers.DepthwiseConv2D(2, name="depthwise")(x)
    x = layers.Conv2D(6, 1, kernel_regularizer="l2", name="regularized")(x)
    x = layers.Conv2D(6, 1, kernel_constraint="non_neg", name="constrained")(x)
    x = layers.TimeDistributed(layers.Dense(3, name="within"), name="around")(x)
    x = layers.EinsumDense("abcd,de->abce", (1, 1, 4), name="einsum")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(4, name="broken")(x)
    x = layers.Dense(4, name="taken")(x)
    x = layers.Dense(4, activation="relu", name="taken_factor")(x)
    model = K.Model(image, layers.Dense(1, name="column")(x))
    model.get_layer("broken").kernel.assign(model.get_layer("broken").kernel * np.nan)
    with caplog.at_level(logging.INFO, "aimp_tf"):
        factors = factorize(model)
    assert [layer.name for layer in factors.layers if layer.name not in {each.name for each in model.layers}] == [
        "taken_factor_factor"
    ]
    reasons = {
        "grouped": "in groups",
        "separable": "not of a Dense or convolution layer that the model itself calls",
        "regularized": "under a kernel_regularizer, which would not be that of the product of two",
        "constrained": "under a kernel_constraint",
        "around": "not of a Dense or convolution layer",
        "einsum": "of the class EinsumDense",
        "broken": "not finite",
        "taken": "there is a layer taken_factor already",
        "column": "a single row or column",
    }
    told = caplog.records[0].getMessage()
    assert told.startswith("Left whole: ")
    for name, reason in reasons.items():
        assert any(f"{name}/" in part and reason in part for part in told.split(";")), (name, told)
    named = [path for path in prunable_variables(model) if not path.startswith("taken_factor/")]
    for path in named:
        with pytest.raises(
            ValueError, match=f"No kernel of the pattern '{path}' in include can be factorised: {path} "
        ):
            factorize(model, include=("taken_factor/*", path))
    with pytest.raises(ValueError, match="No kernel of the model .* can be factorised: grouped/kernel"):
        factorize(model, exclude=("taken_factor/*",))


def test_errors(K):
    layers = K.layers
    model = K.Sequential([K.Input((4,)), layers.Dense(3, name="only"), layers.Dense(3, name="more")])
    for arguments, error, message in (
        ({"include": "only"}, TypeError, "include must be a tuple of patterns"),
        ({"include": ("other/*",)}, ValueError, "The pattern 'other/\\*' in include matches no prunable variable"),
        ({"exclude": ("only",)}, ValueError, "did you mean 'only/\\*'"),
        ({"exclude": ("*",)}, ValueError, "leave no prunable variable"),
        (
            {"include": ("only/*", "more/*"), "exclude": ("only/*",)},
            ValueError,
            "'only/\\*' in include .* names them all",
        ),
    ):
        with pytest.raises(error, match=message):
            factorize(model, **arguments)
    with pytest.raises(ValueError, match="a factor already"):
        factorize(factorize(model))
    with pytest.raises(ValueError, match="no prunable weights"):
        factorize(K.Sequential([K.Input((4,)), layers.BatchNormalization()]))

    class Subclassed(K.Model):
        def __init__(self):
            super().__init__()
            self.only = layers.Dense(3)
            self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

        def call(self, inputs):
            return self.scale * self.only(inputs)

    subclassed = Subclassed()
    subclassed(np.ones((1, 4), np.float32))

    class OwnStep(K.Model):
        def train_step(self, data):
            return {}

    image = K.Input((4,))
    own = OwnStep(image, layers.Dense(3)(image))
    masked = K.Sequential([K.Input((4,)), layers.Dense(3)])
    masked.compile("sgd", "mse")
    masked = aimp_tf.wrap(masked)
    for function in (factorize, merge_factors):
        for wrong, error, message in (
            (subclassed, ValueError, "whose own call cannot be seen through"),
            (K.Sequential([layers.Dense(3)]), ValueError, "has no weights yet"),
            (masked, ValueError, "carries masks"),
            ("model.keras", TypeError, "Load it first"),
        ):
            with pytest.raises(error, match=message):
                function(wrong)
    with pytest.raises(ValueError, match="a train_step of its own, that of its class OwnStep"):
        factorize(own)
    assert factorize(K.Model(own.inputs, own.outputs)).count_params() == 4 * 3 + 3 * 3 + 3


def factors_of_rank(K, rank, rows=4, outputs=4, first=None, second=None):
    """A model of two layers such as `factorize` makes, of any rank."""
    layers = [
        K.layers.Dense(rank, **{"use_bias": False, "name": "whole_factor", **(first or {})}),
        K.layers.Dense(outputs, **{"activation": "tanh", "name": "whole", **(second or {})}),
    ]
    return K.Sequential([K.Input((rows,)), *layers])


def test_what_does_not_pay_is_merged(K):
    """Two kernels of 4 x R and R x 4 take 8 R multiplications, one of 4 x 4 takes 16."""
    inputs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    for rank, merges in ((1, False), (2, True), (3, True), (6, True)):
        model = factors_of_rank(K, rank)
        merged = merge_factors(model)
        check_alike(model, merged, inputs)
        assert [layer.name for layer in merged.layers if layer.weights] == ["whole_factor"] * (not merges) + ["whole"]
        assert merged.count_params() == min(model.count_params(), 4 * 4 + 4)


def test_biases_of_both_factors_are_merged(K):
    """As compaction leaves them where the first reads a constant."""
    inputs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    for of_second in (True, False):
        model = factors_of_rank(K, 3, first={"use_bias": True}, second={"use_bias": of_second})
        randomize(model, np.random.default_rng(0))
        merged = merge_factors(model)
        check_alike(model, merged, inputs)
        assert merged.count_params() == 4 * 4 + 4

    whole = K.Sequential([K.Input((4,)), K.layers.Dense(3, "relu", name="before"), K.layers.Dense(4, name="whole")])
    randomize(whole, np.random.default_rng(3))
    whole.get_layer("before").set_weights(
        [np.eye(4, 3) * [0, 1, 1], np.array([2.0, 1.0, 0.0])]
    )  # The first is 2 always.
    small = factorize(whole, include=("whole/*",))
    small.get_layer("whole_factor").kernel.assign(np.arange(9.0).reshape(3, 3))
    compacted = aimp_tf.compact(small)
    assert compacted.get_layer("whole_factor").use_bias
    merged = merge_factors(compacted)
    check_alike(small, merged, inputs)
    assert not [layer for layer in merged.layers if "_factor" in layer.name]


def test_what_is_none_of_its_own_is_not_merged(K, caplog):
    others = [
        factors_of_rank(K, 3, first={"name": "other_factor"}),
        factors_of_rank(K, 3, first={"activation": "relu"}),
        factors_of_rank(K, 3, first={"activity_regularizer": "l2"}),
        factors_of_rank(K, 3, second={"kernel_regularizer": "l2"}),
    ]
    inputs = K.Input((4,))
    first, second = K.layers.Dense(3, use_bias=False, name="whole_factor"), K.layers.Dense(3, name="whole")
    inner = first(inputs)
    others.append(K.Model(inputs, [inner, second(inner)]))  # An output of its own.
    others.append(K.Model(inputs, K.layers.Add()([inner, second(inner)])))
    other = K.layers.Dense(4, name="other")(inputs)
    for more in (
        lambda first, second: [first(inputs)],  # The first is called once more.
        lambda first, second: [first(inputs), second(inputs)],  # So is the second, on what goes into the model.
    ):
        first, second = K.layers.Dense(4, use_bias=False, name="whole_factor"), K.layers.Dense(4, name="whole")
        others.append(K.Model(inputs, K.layers.Add()([second(first(other)), *more(first, second)])))
    image = K.Input((6, 6, 2))
    for fields in ({"kernel_size": 2}, {"kernel_size": 1, "strides": 2}):
        values = K.layers.Conv2D(8, 3, use_bias=False, name="whole_factor")(image)
        others.append(K.Model(image, K.layers.Conv2D(4, name="whole", **fields)(values)))
    for model in others:
        caplog.clear()
        with caplog.at_level(logging.INFO, "aimp_tf"):
            merged = merge_factors(model)
        assert "Merged 0 of 0 pairs" in caplog.text
        assert signature(merged) == signature(model) or signature(merged)[1:] == signature(model)
        check_alike(model, merged, np.ones((2, *model.input_shape[1:]), np.float32))


def test_ranks_of_a_distributed_model_are_distributed(K, strategy):
    with strategy.scope():
        model = K.Sequential([K.Input((6,)), K.layers.Dense(5, name="hidden"), K.layers.Dense(3, name="last")])
        model.compile("sgd", "mse")
    factors = factorize(model)
    assert factors.distribute_strategy is strategy
    check_alike(model, factors, np.eye(6, dtype=np.float32))
    factors.fit(np.eye(6, dtype=np.float32)[[0, 1, 2, 3]], np.ones((4, 3), np.float32), batch_size=4, verbose=0)
    check_alike(factors, merge_factors(factors), np.eye(6, dtype=np.float32))


def test_ranks_are_pruned_as_channels(K, digits):
    """On real data: the whole way from a trained model to a smaller one."""
    images, labels = digits
    images = images.reshape(-1, 8, 8, 1)
    layers = K.layers
    model = K.Sequential(
        [
            K.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation="relu", name="conv"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(48, activation="relu", name="hidden"),
            layers.Dense(10, name="logits"),
        ]
    )
    loss = K.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(K.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    train, test = (images[:1200], labels[:1200]), (images[1200:], labels[1200:])
    model.fit(*train, epochs=8, batch_size=64, verbose=0)
    dense = model.evaluate(*test, verbose=0)[1]
    assert dense > 0.93

    factors = factorize(model, exclude=("logits/*",))
    assert factors.evaluate(*test, verbose=0)[1] == pytest.approx(dense, abs=2e-3)
    found = aimp_tf.groups(factors, include=("*_factor/kernel",))
    assert [(group.layers, group.channels) for group in found.groups] == [
        (("conv_factor",), 9),
        (("hidden_factor",), 48),
    ]
    assert found.groups[0].multiply_adds == 64 * (9 + 16) and found.groups[1].multiply_adds == 256 + 48

    result = aimp_tf.prune(
        factors,
        *train,
        include=("*_factor/kernel",),
        granularity="channel",
        budget="flops",
        target_sparsity=0.6,
        rate=0.4,
        start="trained",
        round_epochs=1,
        epochs=3,
        batch_size=64,
        seed=0,
        verbose=0,
    )
    ranks = {
        name: int(result.masks[f"{name}_factor/kernel"].any(axis=0 if name == "hidden" else (0, 1, 2)).sum())
        for name in ("conv", "hidden")
    }
    assert 1 <= ranks["conv"] < 9 and 4 < ranks["hidden"] < 48
    assert merge_factors(result).count_params() == model.count_params()  # Nothing is taken out yet.
    compacted = result.compact()
    assert {name: compacted.get_layer(f"{name}_factor").kernel.shape[-1] for name in ranks} == ranks
    small = merge_factors(compacted)
    check_alike(result.model, small, test[0][:64])
    expected = 0
    for name, rows, outputs in (("conv", 9, 16), ("hidden", 256, 48)):
        expected += min(ranks[name] * (rows + outputs), rows * outputs) + outputs
    assert small.count_params() == expected + 48 * 10 + 10 < 0.6 * model.count_params()
    assert small.evaluate(*test, verbose=0)[1] > dense - 0.05
