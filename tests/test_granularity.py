"""Pruning in fours of inputs: mechanics on made-up data, unless a test says otherwise."""

import json
import logging

import numpy as np
import pytest

import aimp_tf
from aimp_tf import GlobalMagnitudePruning, PruningConfig
from aimp_tf.files import checksum, read_json, write_json
from aimp_tf.graph.prunable import prunable_variables, select_for
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.planning import ramp_survivors

N = 8 * 16 + 16 * 3


def counts_in_fours(kernel):
    """How many entries of each four consecutive rows of a Dense kernel are not zero or False."""
    return np.count_nonzero(kernel.reshape(-1, 4, kernel.shape[1]), axis=1)


LAYERS = {
    "dense": ((8,), lambda layers: layers.Dense(5)),
    "conv 1d": ((9, 8), lambda layers: layers.Conv1D(5, 4)),
    "grouped": ((9, 16), lambda layers: layers.Conv1D(4, 4, groups=2)),
    "conv 2d": ((9, 9, 8), lambda layers: layers.Conv2D(5, 4)),
    "conv 3d": ((5, 5, 5, 8), lambda layers: layers.Conv3D(5, 4)),
    "conv 1d transpose": ((9, 8), lambda layers: layers.Conv1DTranspose(4, 4)),
    "conv 2d transpose": ((9, 9, 8), lambda layers: layers.Conv2DTranspose(4, 4)),
    "conv 3d transpose": ((4, 4, 4, 8), lambda layers: layers.Conv3DTranspose(4, 4)),
    "separable": ((9, 9, 4), lambda layers: layers.SeparableConv2D(4, 4, depth_multiplier=2)),
    "recurrent": ((1, 8), lambda layers: layers.SimpleRNN(4)),
    "heads": ((5, 8), lambda layers: layers.EinsumDense("abc,cde->abde", (5, 4, 4))),
    "from heads": ((4, 2, 8), lambda layers: layers.EinsumDense("abcd,cde->abe", (4, 4))),
    "turned": ((5, 8), lambda layers: layers.EinsumDense("abc,dc->abd", (5, 4))),
    "any axes": ((5, 8), lambda layers: layers.EinsumDense("...x,xy->...y", (5, 4))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_four_inputs_are_those_of_one_output_unit(K, name):
    """A kernel that is zero but for one block, wherever it lies, reaches one output unit."""
    shape, make = LAYERS[name]
    inputs = K.Input(shape)
    layer = make(K.layers)
    model = K.Model(inputs, layer(inputs))
    selection = select_for("1x4", model)
    (kernel,) = (v for path, v in selection.variables.items() if "recurrent" not in path)
    axis = next(iter(selection.units.axes.values()))
    assert kernel.shape[axis] == 8
    x = np.random.default_rng(0).uniform(1, 2, (1, *shape)).astype("float32")
    units = 2 if name == "heads" else 1
    for flat in (0, 3, 77):
        value = np.zeros(kernel.shape, "float32")
        place = list(np.unravel_index(flat % value.size, value.shape))
        place[axis] = slice(place[axis] // 4 * 4, place[axis] // 4 * 4 + 4)
        value[tuple(place)] = 1
        assert value.sum() == 4
        kernel.assign(value)
        reached = np.any(np.asarray(model(x)) != 0, axis=tuple(range(len(model.output_shape) - units)))
        assert np.count_nonzero(reached) == 1


def test_axes_of_recurrent_and_attention_kernels_and_of_own_layers(K):
    class Own(K.layers.Layer):
        def build(self, input_shape):
            self.matrix = self.add_weight(shape=(input_shape[-1], 3), initializer="ones", name="matrix")
            self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
            self.inner = K.layers.Conv1DTranspose(3, 1, name="inner")
            self.inner.build((None, 5, 3))

        def call(self, inputs):
            return self.inner(inputs @ self.matrix)

        def get_prunable_weights(self):
            return [self.matrix, self.scale, self.inner.kernel]

    inputs = K.Input((5, 8))
    x = K.layers.MultiHeadAttention(2, 4, name="attention")(inputs, inputs)
    x = Own(name="own")(K.layers.EinsumDense("abc,c->abc", (5, 8), name="scaled")(x))
    model = K.Model(inputs, K.layers.LSTM(4, name="rnn")(x))
    assert select_for("unstructured", model).units.axes == {
        "attention/query/kernel": 0,
        "attention/key/kernel": 0,
        "attention/value/kernel": 0,
        "attention/attention_output/kernel": 1,
        "scaled/kernel": None,
        "own/matrix": 0,
        "own/scale": None,
        "own/kernel": 2,
        "rnn/lstm_cell/kernel": 0,
        "rnn/lstm_cell/recurrent_kernel": 0,
    }
    assert select_for("1x4", model).left_dense == dict.fromkeys(
        ["scaled/kernel", "own/scale", "own/kernel", "rnn/lstm_cell/kernel"],
        "its inputs are no multiple of 4, which granularity='1x4' needs",
    )


BLOCKS = {"granularity": "1x4", "target_sparsity": 0.7}
TWO_OF_FOUR = {"granularity": "2:4", "target_sparsity": 0.5}


class Masks:
    """A callback that keeps the masks at the end of each epoch."""

    def __new__(cls, K):
        class Callback(K.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                self.seen.append(MaskedModel.of(self.model).masks())

        callback = Callback()
        callback.seen = []
        return callback


@pytest.mark.parametrize(
    ("K", "settings"),
    [
        ("keras", BLOCKS),
        ("tf_keras", BLOCKS),
        ("keras", {**BLOCKS, "criterion": "lamp"}),
        ("tf_keras", {**BLOCKS, "scope": "layer"}),
        ("keras", {**BLOCKS, "method": "gradual"}),
        ("keras", TWO_OF_FOUR),
        ("tf_keras", TWO_OF_FOUR),
        ("keras", {**TWO_OF_FOUR, "scope": "layer"}),
        ("tf_keras", {**TWO_OF_FOUR, "method": "gradual"}),
    ],
    indirect=["K"],
)
def test_rounds_have_the_structure_and_exact_counts(K, make_mlp, blobs, settings):
    masks = Masks(K)
    block = settings["granularity"] == "1x4"
    kept = [N, 4 * 26, 4 * 16, 4 * 13] if block else [N, round(N * 0.6), N // 2]
    if "method" in settings:
        kept = kept[-1:]
    else:
        settings = {**settings, "rate": 0.4}
    result = aimp_tf.prune(make_mlp(), blobs, epochs=4, callbacks=[masks], verbose=0, seed=1, **settings)
    assert [round_.kept for round_ in result.rounds] == kept
    assert result.sparsity == 1 - kept[-1] / N
    for before, after in zip(masks.seen, masks.seen[1:], strict=False):
        for path, mask in after.items():
            assert not np.any(mask & ~before[path])
            assert np.isin(counts_in_fours(mask), (0, 4) if block else (2, 3, 4)).all()
    for path, variable in prunable_variables(result.model).items():
        counts = counts_in_fours(variable.numpy())
        np.testing.assert_array_equal(counts, counts_in_fours(result.masks[path]))
        assert np.isin(counts, (0, 4)).all() if block else np.all(counts == 2)
    if "method" in settings:
        seen = [sum(int(mask.sum()) for mask in state.values()) for state in masks.seen]
        steps = [ramp_survivors(result.config, N, min(1, epoch / 2)) for epoch in range(1, 5)]
        # This callback stands after the pruning callback.
        assert seen == steps and len(set(steps)) == 2
    if settings.get("scope") == "layer" and block:
        assert {path: int(mask.sum()) for path, mask in result.masks.items()} == {
            "hidden/kernel": 36,
            "logits/kernel": 16,
        }


@pytest.mark.parametrize("K", ["keras"], indirect=True)
@pytest.mark.parametrize(("granularity", "counts"), [("1x8", {0, 8}), ("3:8", {3}), ("1:2", {1})])
def test_structures_of_other_sizes(K, make_mlp, blobs, granularity, counts):
    settings = {"target_sparsity": 0.625 if granularity != "1:2" else 0.5, "rate": 0.4, "epochs": 1, "verbose": 0}
    result = aimp_tf.prune(make_mlp(), blobs, granularity=granularity, seed=1, **settings)
    m = int(granularity[2:])
    for path, variable in prunable_variables(result.model).items():
        in_parts = variable.numpy().reshape(-1, m, variable.shape[1])
        assert set(np.count_nonzero(in_parts, axis=1).ravel().tolist()) == counts, path
    assert result.sparsity == pytest.approx(settings["target_sparsity"], abs=4 / N)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("K", "kind", "granularity", "sparsity"),
    [("keras", "cnn", "1x4", 0.75), ("tf_keras", "mlp", "1x4", 0.75), ("tf_keras", "cnn", "2:4", 0.5)],
    indirect=["K"],
)
def test_real_digits_are_learnt_in_fours(K, digits, kind, granularity, sparsity):
    images, labels = digits
    layers = K.layers
    body = [layers.Flatten()] if kind == "mlp" else [layers.Reshape((4, 4, 4)), layers.Conv2D(24, 2), layers.ReLU()]
    model = K.Sequential(
        [
            K.Input((8, 8)) if kind == "mlp" else K.Input((64,)),
            *body,
            layers.Flatten(),
            layers.Dense(48, "relu"),
            layers.Dense(10),
        ]
    )
    model.compile("adam", K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    images = images.reshape((-1, *model.input_shape[1:]))
    settings = {"rate": 0.5, "epochs": 8, "round_epochs": 6, "verbose": 0, "seed": 1}
    options = {"batch_size": 32}
    result = aimp_tf.prune(
        model,
        (images[:1400], labels[:1400]),
        target_sparsity=sparsity,
        granularity=granularity,
        validation_data=(images[1400:], labels[1400:]),
        **options,
        **settings,
    )
    assert result.sparsity == pytest.approx(sparsity, abs=1e-3)
    assert result.rounds[-1].metrics["val_accuracy"] > 0.9


@pytest.fixture
def make_cnn(K):
    """A function that makes a compiled classifier whose first convolution has one input, and whose second has six."""

    def make():
        K.utils.set_random_seed(3)
        layers = K.layers
        model = K.Sequential(
            [
                K.Input((8,)),
                layers.Reshape((4, 2, 1)),
                layers.Conv2D(6, 2, padding="same", name="first"),
                layers.Conv2D(4, 2, padding="same", name="second"),
                layers.Flatten(),
                layers.Dense(3, name="logits"),
            ]
        )
        model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        return model

    return make


SETTINGS = {"target_sparsity": 0.5, "rate": 0.5, "epochs": 1, "granularity": "1x4", "verbose": 0, "seed": 1}


@pytest.mark.slow
def test_what_cannot_hold_blocks_is_left_dense_and_named(make_cnn, blobs, caplog, tmp_path):
    result = aimp_tf.prune(make_cnn(), blobs, workdir=tmp_path / "run", exclude=("first/*",), **SETTINGS)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "Left dense: second/kernel (its inputs are no multiple of 4, which granularity='1x4' needs). "
        "target_sparsity is that of the other variables."
    ]
    assert list(result.masks) == ["logits/kernel"] and result.sparsity == 0.5
    reason = "its inputs are no multiple of 4, which granularity='1x4' needs"
    assert [round_.left_dense for round_ in result.rounds] == [{"second/kernel": reason}] * 2
    assert [round_.kept for round_ in result.rounds] == [32 * 3, 48]
    note = f"Left dense ({reason}): second/kernel."
    assert note in result.summary()
    (page, *_) = result.report(tmp_path / "report.md")
    assert note in page.read_text()
    assert all(np.all(result.model.get_layer(name).kernel.numpy() != 0) for name in ("first", "second"))
    assert aimp_tf.sparsity(result.model, granularity="1x4") == 0.5
    assert aimp_tf.sparsity(result.model) == 48 / (4 * 6 + 4 * 6 * 4 + 32 * 3)
    # A run that is done says so, too.
    again = aimp_tf.prune(make_cnn(), blobs, workdir=tmp_path / "run", exclude=("first/*",), **SETTINGS)
    assert note in again.summary()


def test_what_cannot_hold_blocks_and_is_asked_for_is_refused_before_any_training(make_cnn, blobs, tmp_path):
    model = make_cnn()
    before = model.get_weights()
    for settings, message in (
        ({"include": ("logits/*", "second/kernel")}, "'second/kernel' in include names .* of 4: second/kernel"),
        ({"include": ("fir*", "*")}, "'fir.*' in include names .* of 4: first/kernel"),
        ({"exclude": ("logits/*",)}, "No variable can be pruned with granularity='1x4'.*: first/kernel, second/kernel"),
        ({"include": ("first/*",)}, "No variable can be pruned with granularity='1x4'.*: first/kernel"),
        ({"min_layer_survivors": 51}, "keep at least 52 weights, but target_sparsity=0.5 keeps 48 of 96"),
        ({"granularity": "2:4", "min_layer_survivors": 51}, "keeps at least 51 weights of logits/kernel, but .* 48 of"),
        ({"target_sparsity": 0.99}, "leaves none of the 24 prunable blocks of 4 weights"),
    ):
        with pytest.raises(ValueError, match=message):
            aimp_tf.prune(model, blobs, workdir=tmp_path / "run", **{**SETTINGS, **settings})
        assert not (tmp_path / "run").exists()
    with pytest.raises(
        ValueError,
        match="granularity must be 'unstructured', 'channel', .* blocks of weights such as '1x4', .* '2:4'; got '4:2'",
    ):
        aimp_tf.sparsity(model, granularity="4:2")
    for here, there in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)


def test_a_loop_of_your_own_wraps_with_the_granularity(make_mlp, blobs):
    config = PruningConfig(0.5, rate=0.5, epochs=2, granularity="2:4")
    masked = aimp_tf.wrap(make_mlp())
    with pytest.raises(ValueError, match="wrapped with granularity='unstructured'.*wrap.model, granularity='2:4'"):
        masked.fit(*blobs, epochs=1, verbose=0, callbacks=[GlobalMagnitudePruning(config)])
    masked = aimp_tf.wrap(aimp_tf.strip(masked), granularity="2:4")
    pruning = GlobalMagnitudePruning(config)
    while not pruning.finished:
        masked.fit(*blobs, epochs=pruning.next_epochs, verbose=0, callbacks=[pruning])
    for variable in prunable_variables(aimp_tf.strip(masked)).values():
        assert np.all(counts_in_fours(variable.numpy()) == 2)


@pytest.mark.parametrize("K", ["keras"], indirect=True)
@pytest.mark.parametrize("granularity", ["1x4", "2:4"])
def test_masks_that_lose_the_structure_are_an_error(K, make_mlp, blobs, granularity):
    class Other(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            masked = MaskedModel.of(self.model)
            masks = masked.masks()
            if not masks["hidden/kernel"].all():
                masks["hidden/kernel"] = np.sort(masks["hidden/kernel"], axis=None).reshape(8, 16)  # As many.
            masked.set_masks(masks)

    settings = {"target_sparsity": 0.5, "rate": 0.5, "epochs": 1, "granularity": granularity, "verbose": 0}
    with pytest.raises(RuntimeError, match="masks of hidden/kernel do not have the structure of granularity="):
        aimp_tf.prune(make_mlp(), blobs, callbacks=[Other()], **settings)


@pytest.mark.parametrize("K", ["keras"], indirect=True)
def test_a_run_that_is_older_than_the_setting_goes_on(K, make_mlp, blobs, tmp_path):
    settings = {"target_sparsity": 0.5, "rate": 0.5, "epochs": 1, "verbose": 0, "seed": 1, "workdir": tmp_path / "run"}
    whole = aimp_tf.prune(make_mlp(), blobs, **settings)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["granularity"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    signature = read_json(tmp_path / "run" / "signature.json")
    signature["files"]["config.json"] = checksum(tmp_path / "run" / "config.json")
    write_json(tmp_path / "run" / "signature.json", signature)
    result = read_json(tmp_path / "run" / "round_000" / "result.json")
    del result["left_dense"]
    write_json(tmp_path / "run" / "round_000" / "result.json", result)
    again = aimp_tf.prune(make_mlp(), blobs, **settings)
    assert again.rounds == whole.rounds and again.seconds == whole.seconds
    with pytest.raises(ValueError, match="another run: config.granularity: 'unstructured' there, '1x4' here. Name"):
        aimp_tf.prune(make_mlp(), blobs, granularity="1x4", **settings)
