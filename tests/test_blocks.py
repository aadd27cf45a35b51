"""Residual blocks as units: on digits where it says so, or else mechanics only."""

import numpy as np
import pytest
import tensorflow as tf
from random_networks import check_same, fill

import aimp_tf
from aimp_tf import PruningConfig
from aimp_tf.exporting.compaction import compact_and_report
from aimp_tf.masking import mask_model
from aimp_tf.selection.statistics import Statistics
from aimp_tf.training.statistics import ModelSample


def residual(K, blocks=4, width=12):
    """A convolution, blocks that add to it what two more make of it, one that halves the image, and a head."""
    layers = K.layers
    image = K.Input((8, 8, 1))
    stream = layers.Conv2D(width, 3, padding="same", name="stem")(image)
    for block in range(blocks):
        y = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"a_{block}")(stream)
        y = layers.ReLU()(layers.BatchNormalization(name=f"norm_{block}")(y))
        y = layers.Conv2D(width, 3, padding="same", name=f"b_{block}")(y)
        stream = layers.ReLU()(layers.Add(name=f"block_{block}")([stream, y]))
    halved = [layers.Conv2D(width, 3, strides=2, name=f"half_{part}")(stream) for part in "ab"]
    y = layers.GlobalAveragePooling2D()(layers.Add(name="halving")(halved))
    return K.Model(image, layers.Dense(10, name="logits")(y))


def compiled(model, K):
    model.compile(
        K.optimizers.Adam(3e-3), K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model


def test_groups_of_blocks(K):
    found = aimp_tf.groups(residual(K), granularity="block")
    (group,) = found.groups
    names = tuple(f"block_{block}" for block in range(4))
    assert (group.layers, group.channels, group.least) == (names, 4, 0)
    weights = 2 * 9 * 12 * 12
    assert (group.weights, group.multiply_adds) == (weights, 64 * weights)
    assert sorted(path.split("/")[-2:] for path in group.variables) == [
        ["a_0", "kernel"], ["b_0", "bias"], ["b_0", "kernel"], ["norm_0", "beta"], ["norm_0", "gamma"],
    ]  # fmt: skip
    assert found.pinned == {"halving": (1, "what it is added to has weights of its own")}
    assert found.weights[0] - found.weights[1] == 4 * weights
    assert "blocks of" in found.summary() and "halving: 1 block stays (what it is added" in found.summary()


def branch(K, *layers, after=()):
    """A model of one block, which these layers make, and its groups."""
    inputs = K.Input((6,))
    stream = K.layers.Dense(5)(inputs)
    y = stream
    for layer in layers:
        y = layer(y)
    y = K.layers.Add(name="block")([y, stream])
    for layer in after:
        y = layer(y)
    return K.Model(inputs, K.layers.Dense(2)(y))


def test_blocks_that_cannot_go(K):
    layers = K.layers
    twice, frozen = layers.Dense(5), layers.Dense(5, trainable=False)
    cases = [
        (branch(K, layers.Dense(5, activation="sigmoid")), None),  # What is left of it is an offset.
        (branch(K, layers.Dense(5), layers.LayerNormalization()), "without its weights it is not known to be zero"),
        (branch(K, twice, after=[twice]), "its weights are used elsewhere as well"),
        (branch(K, frozen), "is frozen"),
        (branch(K, layers.BatchNormalization()), "nothing of it is prunable"),
        (branch(K, layers.Dense(5), layers.Dropout(0.5), layers.LayerNormalization(), layers.Dense(5)), None),
    ]
    for model, why in cases:
        if why is None:
            group = aimp_tf.groups(model, granularity="block").groups
            assert [each.layers for each in group] == [("block",)]
        else:
            with pytest.raises(ValueError, match=f"No block of the model .* can go: 1 block of block .*{why}"):
                aimp_tf.groups(model, granularity="block")
    model = branch(K, layers.Dense(5, name="within"))
    with pytest.raises(ValueError, match="within/kernel is excluded"):
        aimp_tf.groups(model, granularity="block", exclude=["within/*"])
    assert aimp_tf.groups(branch(K, frozen), granularity="block", include=["*"]).groups


def test_inner_blocks_alone_are_units(K):
    """Of a branch that has a block within."""
    layers = K.layers
    inputs = K.Input((6,))
    outer = stream = layers.Dense(5)(inputs)
    stream = layers.Dense(5)(stream)
    stream = layers.Add(name="inner")([stream, layers.Dense(5)(stream)])
    model = K.Model(inputs, layers.Dense(2)(layers.Add(name="outer")([outer, stream])))
    assert [group.layers for group in aimp_tf.groups(model, granularity="block").groups] == [("inner",)]


def test_blocks_that_are_gone_leave_the_rest_as_it_is(K):
    model = residual(K)
    fill(model, np.random.default_rng(0))
    images = np.random.default_rng(1).random((32, 8, 8, 1), np.float32)
    settings = {"granularity": "block", "budget": "channels", "target_sparsity": 0.5}
    result = aimp_tf.one_shot(compiled(model, K), images, np.arange(32) % 10, **settings)
    small, report = check_same(result.model, images)
    left = [layer.name for layer in small.layers if layer.name.startswith("block_")]
    assert len(left) == 2 and report.multiply_adds[0] - report.multiply_adds[1] == 2 * 64 * 2 * 9 * 12 * 12
    assert sum(layer.name.startswith("norm_") for layer in small.layers) == 2


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "fisher"])
def test_the_least_of_blocks_go(criterion, K):
    """Those that add next to nothing, which are the last, lest ties by position choose them."""
    model = residual(K)
    fill(model, np.random.default_rng(0))
    for block in (1, 3):
        for name in (f"a_{block}", f"b_{block}", f"norm_{block}"):
            for weight in model.get_layer(name).trainable_weights:
                weight.assign(weight * 0.01)
    images, labels = np.random.default_rng(1).random((32, 8, 8, 1), np.float32), np.arange(32) % 10
    settings = {"granularity": "block", "budget": "flops", "target_sparsity": 0.4}
    result = aimp_tf.one_shot(compiled(model, K), images, labels, criterion=criterion, **settings)
    gone = {path.split("/")[-2] for path, mask in result.masks.items() if not mask.any()}
    assert gone == {f"{part}_{block}" for part in ("a", "b", "norm") for block in (1, 3)}


def halves(K, end=lambda y: y):
    """A model of four blocks, of which the second and the last work on numbers that the outputs do not see."""
    inputs = stream = K.Input((8,))
    seen = np.arange(8) < 4
    kernels = []
    for block in range(4):
        a, b = (
            K.layers.Dense(8, activation, name=f"{name}_{block}") for name, activation in (("a", "relu"), ("b", None))
        )
        stream = K.layers.Add(name=f"block_{block}")([stream, end(b(a(stream)))])
        kernels += [(layer, seen != block % 2) for layer in (a, b)]
    head = K.layers.Dense(3, name="head")
    model = K.Model(inputs, head(stream))
    generator = np.random.default_rng(0)
    for layer, half in [*kernels, (head, seen)]:
        drawn = generator.normal(size=layer.kernel.shape)
        layer.kernel.assign(drawn * half[:, np.newaxis] * (half[np.newaxis] if layer is not head else 1))
    model.compile("sgd", "mse")
    return model


def test_blocks_that_tell_nothing_of_the_outputs_go(K):
    """However much they add."""
    model, generator = halves(K), np.random.default_rng(1)
    for name in ("b_1", "b_3"):
        model.get_layer(name).kernel.assign(100 * model.get_layer(name).kernel)
    x, y = generator.normal(size=(512, 8)).astype(np.float32), generator.normal(size=(512, 3))
    settings = {"granularity": "block", "budget": "channels", "target_sparsity": 0.5}
    for criterion in ("output_information", aimp_tf.criteria.OutputInformation(batches=16)):
        result = aimp_tf.one_shot(model, x, y, criterion=criterion, **settings)
        gone = {path.split("/")[-2] for path, mask in result.masks.items() if not mask.any()}
        assert gone == {"a_1", "b_1", "a_3", "b_3"}


def test_what_a_block_adds_may_be_one_of_several_outputs(K):
    inputs = stream = K.Input((5, 4))
    for block in range(2):
        layer = K.layers.LSTM(4, return_sequences=True, return_state=True, name=f"lstm_{block}")
        stream = K.layers.Add(name=f"block_{block}")([stream, layer(stream)[0]])
    outputs = K.layers.Dense(3)(K.layers.Flatten()(stream))
    total = K.layers.Lambda(lambda x: tf.reduce_mean(x), output_shape=())(outputs)
    model = K.Model(inputs, [outputs, total])
    model.compile("sgd", ["mse", None])
    x = np.random.default_rng(0).normal(size=(64, 5, 4)).astype(np.float32)
    masked = mask_model(model, granularity="block")
    statistics = Statistics(masked.weights(), masked.masks(), np.random.default_rng(0), ModelSample(masked, [(x,)], 1))
    added = model.layers[1](x)[0]
    np.testing.assert_allclose(statistics.branches["block_0"][0], np.mean(added, axis=1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(statistics.outputs[0], model(x)[0], rtol=0, atol=1e-6)  # Of examples alone.
    masked.strip()
    settings = {"granularity": "block", "budget": "channels", "target_sparsity": 0.5}
    with pytest.raises(ValueError, match="OutputInformation goes by several examples; got 1"):
        aimp_tf.one_shot(model, x[:1], criterion="output_information", **settings)
    alone = K.Model(inputs, total)
    alone.compile("sgd", "mse")
    with pytest.raises(ValueError, match="it gives one number for all"):
        aimp_tf.one_shot(alone, x, criterion="output_information", **settings)


def test_what_no_layer_adds_is_told(K):
    x, y = np.ones((32, 8), np.float32), np.ones((32, 3), np.float32)
    shared = K.layers.Activation("relu", name="shared")
    settings = {"granularity": "block", "budget": "channels", "target_sparsity": 0.5}
    with pytest.raises(
        ValueError, match="what block_0, block_1, block_2, block_3 adds is given by no layer, or by one"
    ):
        aimp_tf.one_shot(halves(K, shared), x, y, criterion="output_information", **settings)


@pytest.mark.slow
def test_digits_with_fewer_blocks(digits, K, tmp_path):
    """Real data: the target, rounds, what is zero, and the smaller model, which computes the same."""
    images, labels = digits
    images = images.reshape(-1, 8, 8, 1)
    result = aimp_tf.prune(
        compiled(residual(K), K),
        (images[:1200], labels[:1200]),
        validation_data=(images[1200:], labels[1200:]),
        granularity="block",
        budget="flops",
        target_sparsity=0.65,
        rate=0.3,
        epochs=8,
        round_epochs=2,
        seed=0,
        verbose=0,
        workdir=tmp_path,
    )
    small, report = compact_and_report(result.model)
    assert sum(layer.name.startswith("block_") for layer in small.layers) == 1
    assert report.multiply_adds[1] <= 0.35 * report.multiply_adds[0]
    outputs = [np.asarray(model(images[:20])) for model in (result.model, small)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-4 * np.abs(outputs[0]).max())
    assert result.rounds[-1].metrics["accuracy"] > 0.9
    assert PruningConfig.from_json((tmp_path / "config.json").read_text()).granularity == "block"


def test_settings_of_blocks():
    config = PruningConfig(0.5, epochs=3, granularity="block", budget="flops")
    config.validate()
    for changes, message in (
        ({"criterion": "votes"}, "criterion='votes' does not know blocks, which granularity='block' ranks"),
        (
            {"granularity": "channel", "criterion": "output_information"},
            "ranks whole blocks. Write granularity='block'",
        ),
        ({"repair": True}, "repair does not know blocks"),
        ({"method": "dynamic"}, "method='dynamic' does not know blocks"),
        ({"channel_multiple": 4}, "channel_multiple does not know blocks"),
        ({"regrow": 0.1}, "regrow is for single weights"),
    ):
        with pytest.raises(ValueError, match=message):
            config.replace(**changes).validate()
