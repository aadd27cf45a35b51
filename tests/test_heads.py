"""Attention heads as units, alone and with channels: on digits where it says so, or else mechanics only."""

import importlib

import numpy as np
import pytest

import aimp_tf
from aimp_tf import PruningConfig
from experiments import models


def transformer(K):
    model = models.build("tiny_bert", K, (8, 8, 1), 10)
    model.compile(
        K.optimizers.Adam(2e-3), K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return model


def heads_of(model):
    """Heads and feed-forward units of each block."""
    sizes = {}
    for layer in model.layers:
        if type(layer).__name__ == "MultiHeadAttention":
            sizes[layer.name] = layer.get_config()["num_heads"]
        elif layer.name.endswith("hidden"):
            sizes[layer.name] = layer.units
    return sizes


def test_groups_of_heads(K):
    model = transformer(K)
    heads = aimp_tf.groups(model, granularity="head")
    assert [(group.layers, group.channels) for group in heads.groups] == [
        (("block_1_attention",), 4),
        (("block_2_attention",), 4),
    ]
    # A head is 16 dimensions of queries, keys and values, and the rows that read these; in 64 positions.
    assert [(group.weights, group.multiply_adds) for group in heads.groups] == [(4 * 64 * 16, 64 * 4 * 64 * 16)] * 2
    assert "normalises over all channels" in heads.pinned["block_1_attention"][1]
    both = aimp_tf.groups(model, granularity=("channel", "head"))
    assert {group.layers: group.channels for group in both.groups} == {
        ("block_1_attention",): 4,
        ("block_2_attention",): 4,
        ("block_1_hidden",): 128,
        ("block_2_hidden",): 128,
    }
    flat = K.Sequential([K.Input((4,)), K.layers.Dense(3), K.layers.Dense(2)])
    with pytest.raises(ValueError, match="No head of the model .* can go"):
        aimp_tf.groups(flat, granularity="head")


@pytest.mark.parametrize("excluded", ["*", "query/*", "key/*", "value/*"])
def test_an_excluded_projection_keeps_its_heads(excluded, K):
    found = aimp_tf.groups(transformer(K), granularity="head", exclude=[f"*block_1_attention/{excluded}"])
    assert [group.layers for group in found.groups] == [("block_2_attention",)]


def test_groups_of_dimensions(K):
    """Those of keys are those of queries; those of values are what the output reads; in 64 positions."""
    model = transformer(K)
    found = aimp_tf.groups(model, granularity="dimension", exclude=["*block_2_attention/query/*"])
    assert [(group.layers, group.channels, group.weights, group.multiply_adds) for group in found.groups] == [
        (("block_1_attention",), 16, 2 * 64 * 4, 64 * 2 * 64 * 4),
        (("block_1_attention",), 16, 2 * 64 * 4, 64 * 2 * 64 * 4),
        (("block_2_attention",), 16, 2 * 64 * 4, 64 * 2 * 64 * 4),
    ]
    assert all("/query/" in path or "/key/" in path for path in found.groups[0].variables)
    if K.__name__ == "keras":
        sequence = K.Input((5, 8))
        grouped = K.Model(sequence, K.layers.Dense(2)(K.layers.GroupQueryAttention(4, 6, 2)(sequence, sequence)))
        with pytest.raises(ValueError, match="No dimension of the model .* can go"):
            aimp_tf.groups(grouped, granularity="dimension")


def test_dimensions_go_with_the_scale_that_they_had(K):
    """Attention divides by the root of how many there were, masked and compacted alike."""
    images, labels = np.random.default_rng(0).random((32, 8, 8, 1), np.float32), np.arange(32) % 10
    kinds = ("channel", "head", "dimension")
    settings = {"granularity": kinds, "budget": "channels", "target_sparsity": 0.4, "rate": 0.4, "epochs": 1}
    result = aimp_tf.prune(transformer(K), images, labels, min_layer_survivors=1, verbose=0, seed=0, **settings)
    small = result.compact()
    sizes = [
        (layer.get_config()["num_heads"], layer.get_config()["key_dim"], layer.get_config()["value_dim"])
        for layer in small.layers
        if type(layer).__name__ == "MultiHeadAttention"
    ]
    assert len(sizes) == 2 and any(key < 16 for _, key, _ in sizes) and any(value < 16 for *_, value in sizes)
    outputs = [np.asarray(model(images)) for model in (result.model, small)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-5 * np.abs(outputs[0]).max())


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["head", pytest.param(("channel", "head"), marks=pytest.mark.exhaustive)])
def test_digits_with_fewer_heads(granularity, digits, K, tmp_path):
    """Real data: the target, what is zero, and the smaller model, which computes the same."""
    images, labels = digits
    images = images.reshape(-1, 8, 8, 1)
    K.utils.set_random_seed(0)
    target = 0.5 if isinstance(granularity, tuple) else 0.3
    settings = {"target_sparsity": target, "rate": 0.4, "epochs": 8, "round_epochs": 2, "seed": 0, "verbose": 0}
    result = aimp_tf.prune(
        transformer(K),
        (images[:1200], labels[:1200]),
        validation_data=(images[1200:], labels[1200:]),
        granularity=granularity,
        budget="flops",
        workdir=tmp_path,
        **settings,
    )
    small = result.compact()
    sizes = heads_of(small)
    assert sum(sizes[f"block_{block}_attention"] for block in (1, 2)) < 8
    assert (sizes["block_1_hidden"] < 128 or sizes["block_2_hidden"] < 128) == isinstance(granularity, tuple)
    outputs = [np.asarray(model(images[:20])) for model in (result.model, small)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=0, atol=1e-4 * np.abs(outputs[0]).max())
    report = importlib.import_module("aimp_tf.exporting.compaction").compact_and_report(result.model)[1]
    assert report.multiply_adds[1] <= (1 - target) * report.multiply_adds[0] * 1.001
    assert result.rounds[-1].metrics["accuracy"] > 0.5
    assert PruningConfig.from_json((tmp_path / "config.json").read_text()).granularity == granularity


def test_settings_of_heads():
    config = PruningConfig(0.5, epochs=3, granularity=("channel", "head"), budget="flops")
    config.validate()
    assert PruningConfig.from_json(config.to_json()) == config
    assert config.replace(granularity=["dimension", "head"]).structure.kinds == ("head", "dimension")
    assert config.structure.kinds == ("channel", "head") and str(config.structure) == "granularity=('channel', 'head')"
    for changes, message in (
        ({"criterion": "votes"}, "criterion='votes' does not know heads"),
        ({"repair": True}, "repair does not know heads"),
        ({"granularity": ("head", "block")}, r"granularity must be .*'head'.* got \('head', 'block'\)"),
        ({"granularity": ()}, r"granularity must be .* got \(\)"),
        ({"granularity": "heads"}, "Did you mean 'head'"),
    ):
        with pytest.raises(ValueError, match=message):
            config.replace(**changes).validate()


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "fisher"])
def test_criteria_of_heads(criterion, K):
    """The least of each are those whose rows are small; they come first, lest ties by position choose them."""
    images, labels = np.random.default_rng(0).random((64, 8, 8, 1), np.float32), np.arange(64) % 10
    model = transformer(K)
    for weight in model.weights:
        if tuple(weight.shape) == (4, 16, 64):
            value = np.array(weight.numpy())
            value[:2] /= 100
            weight.assign(value)
    settings = {"granularity": "head", "budget": "channels", "target_sparsity": 0.5, "min_layer_survivors": 1}
    result = aimp_tf.one_shot(model, images, labels, criterion=criterion, repair=False, **settings)
    assert sum(count for name, count in heads_of(result.compact()).items() if "attention" in name) == 4
    outputs = [mask for path, mask in result.masks.items() if path.endswith("attention_output/kernel")]
    kept = np.concatenate([mask.any(axis=(1, 2)) for mask in outputs])
    assert kept.tolist() == 2 * [False, False, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "SeparableConv1D"])
def test_criteria_that_go_by_what_layers_read(kind, K):
    """They know Dense layers and plain convolutions; those that go by weights know all."""
    layers = K.layers
    settings = {"LSTM": {"units": 6, "return_sequences": True}, "SeparableConv1D": {"filters": 6, "kernel_size": 1}}
    sequence = K.Input((5, 3))
    middle = getattr(layers, kind)(name="middle", **settings[kind])(layers.Dense(8, name="first")(sequence))
    model = K.Model(sequence, layers.Dense(2)(layers.GlobalAveragePooling1D()(layers.Dense(7, name="free")(middle))))
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = np.random.default_rng(0).random((32, 5, 3), np.float32), np.arange(32) % 2
    arguments = {"granularity": "channel", "target_sparsity": 0.5, "epochs": 1, "verbose": 0}
    for choice in ({"criterion": name} for name in ("votes", "gradient", "reconstruction", "utility")):
        with pytest.raises(ValueError, match="plain convolutions read and make, and middle read or make"):
            aimp_tf.prune(model, x, y, **choice, **arguments)
    with pytest.raises(ValueError, match="and middle read or make channels otherwise"):
        aimp_tf.prune(model, x, y, method="dynamic", **arguments)
    result = aimp_tf.prune(model, x, y, criterion="taylor", budget="channels", **arguments)
    small = result.compact()
    np.testing.assert_allclose(np.asarray(small(x)), np.asarray(result.model(x)), rtol=0, atol=1e-5)
    assert sum(small.get_layer(name).output.shape[-1] for name in ("first", "middle", "free")) == 11
