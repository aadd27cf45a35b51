import dataclasses
import gzip
import os
import pathlib
import re
import sys
import zipfile
from collections import OrderedDict

import h5py
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tf_keras

import aimp_tf
from aimp_tf import exporting
from aimp_tf.exporting.inputs import arrange
from aimp_tf.exporting.lite import to_tflite
from aimp_tf.exporting.saved_model import weight_arrays, write_keras
from aimp_tf.exporting.verification import made_up, use_in_fresh_process

FILES = {
    "saved_model": "saved_model",
    "keras": "model.keras",
    "tflite": "model.tflite",
    "tflite_fp16": "model_fp16.tflite",
    "tflite_dynamic": "model_dynamic.tflite",
    "tflite_int8": "model_int8.tflite",
    "tflite_sparse": "model_sparse.tflite",
    "onnx": "model.onnx",
    "coded": "model.coded",
    "weights": "weights.npz",
}


@pytest.fixture
def result(make_mlp, blobs):
    return aimp_tf.prune(make_mlp(), blobs, target_sparsity=0.75, rate=0.5, epochs=1, verbose=0)


@pytest.fixture
def pruned(result):
    return result.model


def change(monkeypatch, name, **fields):
    """Replaces fields of a format's entry in the table."""
    monkeypatch.setitem(exporting.FORMATS, name, dataclasses.replace(exporting.FORMATS[name], **fields))


def content(folder):
    """Path -> bytes of all files below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run_tflite(file, x):
    """The one output for the one input."""
    interpreter = tf.lite.Interpreter(model_content=file)
    [name] = interpreter.get_signature_list()["serving_default"]["inputs"]
    [output] = interpreter.get_signature_runner()(**{name: x}).values()
    return output


@pytest.mark.slow
def test_all_formats_in_a_fresh_process(result, K, blobs, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # A relative path must do, too.
    optimizer, before = result.model.optimizer, result.model.get_weights()
    capfd.readouterr()
    artefacts = aimp_tf.export(result, "out/new", tuple(FILES), inputs=blobs[0])
    assert capfd.readouterr() == ("", "")
    assert {name: artefact.path for name, artefact in artefacts.items()} == {
        name: pathlib.Path("out/new", file) for name, file in FILES.items()
    }
    assert sorted(os.listdir("out/new")) == sorted(FILES.values())
    for name, artefact in artefacts.items():
        assert (artefact.format, os.fspath(artefact)) == (name, f"out/new/{FILES[name]}")
        if name == "tflite_int8":
            assert 1e-4 < artefact.relative_difference < 0.2
        elif name == "tflite_fp16":
            assert 1e-6 < artefact.relative_difference < 2e-3
        else:  # "tflite_dynamic" leaves kernels of less than a thousand weights as they are.
            assert artefact.relative_difference <= 1e-5
        if name == "tflite_int8":
            largest = np.abs(result.model.predict(blobs[0], verbose=0)).max()
            assert artefact.max_difference / artefact.relative_difference == pytest.approx(largest, rel=1e-4)
        assert (artefact.examples, artefact.made_up) == (0 if name == "weights" else 64, False)
        files = content(artefact.path) if name == "saved_model" else {"": artefact.path.read_bytes()}
        assert artefact.bytes == sum(map(len, files.values()))
        assert 0.5 < artefact.gzip_bytes / len(gzip.compress(b"".join(files.values()))) < 1.3

    # The model is as it was, and what is stored is pruned, and stored once.
    assert result.model.optimizer is optimizer
    for here, there in zip(before, result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)
    mask = result.masks["hidden/kernel"]
    stored = tf.train.load_checkpoint("out/new/saved_model/variables/variables").get_variable_to_shape_map()
    shapes = sorted(list(shape) for name, shape in stored.items() if "OBJECT_GRAPH" not in name)
    assert shapes == sorted(list(weight.shape) for weight in before)
    loaded = tf.saved_model.load(artefacts["saved_model"])
    kernels = [variable.numpy() for variable in loaded.variables if tuple(variable.shape) == mask.shape]
    assert [variable.shape for variable in loaded.trainable_variables] == [
        variable.shape for variable in result.model.trainable_variables
    ]
    with zipfile.ZipFile(artefacts["keras"]) as archive, archive.open("model.weights.h5") as file:
        found = []
        h5py.File(file).visititems(
            lambda name, item: found.append(item[()]) if isinstance(item, h5py.Dataset) else None
        )
        shapes = [item.shape for item in found if item.shape]  # But for the scalars that metrics count with.
        assert sorted(shapes) == sorted(weight.shape for weight in before)
        kernels += [item for item in found if item.shape == mask.shape]
        assert b"aimp_tf" not in archive.read("config.json") and b"tfmot" not in archive.read("config.json")
    with np.load(artefacts["weights"]) as arrays:
        kernels.append(arrays["hidden/kernel"])
    assert len(kernels) == 3
    for kernel in kernels:
        np.testing.assert_array_equal(kernel != 0, mask)
    compiled = K.models.load_model("out/new/model.keras")
    assert compiled.evaluate(*blobs, verbose=0) == pytest.approx(result.model.evaluate(*blobs, verbose=0), rel=1e-5)


@pytest.mark.slow
def test_several_inputs_and_outputs_in_their_structures(K, tmp_path):
    a, b = K.Input((4, 4, 2), name="a"), K.Input((3,), dtype="int32", name="b")
    h = K.layers.Flatten()(K.layers.Conv2D(3, 3)(a))
    h = K.layers.Concatenate()([h, K.layers.Flatten()(K.layers.Embedding(9, 2)(b))])
    heads = {name: K.layers.Dense(units, name=name)(h) for name, units in (("x", 2), ("y", 5))}
    rng = np.random.default_rng(0)
    inputs = {"a": rng.normal(size=(6, 4, 4, 2)), "b": rng.integers(0, 9, (6, 3))}
    by_name = K.Model({"a": a, "b": b}, heads)
    exported = aimp_tf.export(by_name, tmp_path, ("saved_model", "keras", "tflite"), inputs=inputs)
    assert all(artefact.relative_difference < 1e-5 for artefact in exported.values())
    in_order = K.Model([a, b], list(heads.values()))
    path = aimp_tf.export(in_order, tmp_path / "list", "saved_model", inputs=list(inputs.values()), verify=False)
    loaded = tf.saved_model.load(path["saved_model"])
    arrays = [tf.constant(inputs["a"], tf.float32), tf.constant(inputs["b"], tf.int32)]
    signature = loaded.signatures["serving_default"](a=arrays[0], b=arrays[1])
    expected = [np.asarray(output) for output in in_order(arrays)]
    for found in (loaded.serve(arrays), [signature["output_0"], signature["output_1"]]):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    with pytest.raises(ValueError, match=r"takes a: float32\[None, 4, 4, 2\], b: int32\[None, 3\]; got 1 arrays"):
        aimp_tf.export(in_order, tmp_path / "c", inputs=inputs["a"])
    for wrong in ({**inputs, "b": inputs["b"][:5]}, {**inputs, "a": inputs["a"][:, :3]}, {"a": [], "b": []}):
        with pytest.raises(ValueError, match="as many examples of each and at least one; got "):
            aimp_tf.export(in_order, tmp_path / "c", inputs=wrong)


@pytest.mark.parametrize("kind", [list, dict])
def test_a_dict_of_inputs_goes_by_their_names_however_these_are_written(kind, K):
    names = ("z-in", "a.in")
    inputs = [K.Input((3,), name=name) for name in names]
    joined = K.layers.Concatenate()(inputs)
    model = K.Model(inputs if kind is list else dict(zip(names, inputs, strict=True)), joined)
    arrays = [np.full((2, 3), value, np.float32) for value in (1.0, 2.0)]
    declared, cleaned = (dict(zip(some, arrays, strict=True)) for some in (names, ("z_in", "a_in")))
    for given in (declared, cleaned, *([arrays] if kind is list else [])):
        np.testing.assert_array_equal(model(arrange(given, model)), np.concatenate(arrays, axis=1))
    with pytest.raises(ValueError, match=r"takes .*z_in.*; got a dict of 'z', 'a'. Give it by these names."):
        arrange(dict(zip("za", arrays, strict=True)), model)


def test_inputs_of_an_ordered_dict_go_by_their_names(K, tmp_path):
    """Keras 3 does not sort its keys, as TensorFlow does."""
    inputs = OrderedDict((name, K.Input((3,), name=name)) for name in ("b", "a"))
    model = K.Model(inputs, K.layers.Dense(2)(inputs["b"] - 2.0 * inputs["a"]))
    values = OrderedDict(b=np.ones((4, 3), np.float32), a=np.zeros((4, 3), np.float32))
    path = aimp_tf.export(model, tmp_path, ("saved_model", "keras"), inputs=values)
    loaded = tf.saved_model.load(path["saved_model"])
    expected = np.asarray(model(values))
    for found in (loaded.serve(dict(values)), loaded.signatures["serving_default"](**values)["output_0"]):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_subclassed_models_become_what_needs_no_code(K, tmp_path):
    class Net(K.Model):
        def __init__(self):
            super().__init__()
            self.head = K.layers.Dense(3, name="head")

        def call(self, inputs):
            return {"sum": self.head(inputs["u"]) + inputs["v"]}

    model = Net()
    with pytest.raises(ValueError, match="has no weights yet"):
        aimp_tf.export(model, tmp_path / "out")
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(size=(5, units)).astype("float32") for name, units in (("u", 4), ("v", 3))}
    expected = model(inputs)["sum"]
    exported = aimp_tf.export(model, tmp_path / "out", ("saved_model", "tflite", "weights"), verify=False)
    with np.load(exported["weights"]) as arrays:
        assert list(arrays) == ["head/kernel", "head/bias"]
    loaded = tf.saved_model.load(exported["saved_model"])
    interpreter = tf.lite.Interpreter(os.fspath(exported["tflite"]))
    for outputs in (
        loaded.serve(inputs),
        loaded.signatures["serving_default"](**{name: tf.constant(array) for name, array in inputs.items()}),
        interpreter.get_signature_runner()(**inputs),
    ):
        np.testing.assert_allclose(outputs["sum"], expected, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_goes_in_and_out_as_float32(K, policy, tmp_path):
    inputs = K.Input((6,))
    hidden = K.layers.Dense(8, activation="relu", dtype=policy)(inputs)
    model = K.Model(inputs, K.layers.Dense(3, dtype=policy)(hidden))
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    exported = aimp_tf.export(model, tmp_path, ("saved_model", "tflite"), verify=False)
    loaded = tf.saved_model.load(exported["saved_model"])
    served = loaded.serve(x).numpy()
    [lite] = (
        tf.lite.Interpreter(os.fspath(exported["tflite"]))
        .get_signature_runner()(
            **{
                tf.lite.Interpreter(os.fspath(exported["tflite"])).get_signature_list()["serving_default"]["inputs"][
                    0
                ]: x
            }
        )
        .values()
    )
    assert served.dtype == lite.dtype == np.float32
    own = np.asarray(tf.cast(model(x), tf.float32))
    np.testing.assert_array_equal(served, own)
    kernels = [np.asarray(weight) for weight in model.get_weights()]
    exact = np.maximum(x @ kernels[0] + kernels[1], 0) @ kernels[2] + kernels[3]
    np.testing.assert_allclose(lite, exact, atol=1e-5)
    assert np.abs(own - exact).max() > 1e-4  # So it still computes in half precision.
    assert model.layers[1].compute_dtype == policy.removeprefix("mixed_")


def wide(K, sparsity=0.9):
    """A network with kernels large enough for all forms of TFLite to change them, pruned at random."""
    K.utils.set_random_seed(0)
    layers = K.layers
    image = layers.Input((8, 8, 4))
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(image)
    x = layers.Flatten()(layers.MaxPooling2D(4)(x))
    model = K.Model(image, layers.Dense(10)(layers.Dense(64, activation="relu")(x)))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) > 1:
            weight.assign(np.where(generator.random(weight.shape) < sparsity, 0, weight))
    return model


def stored(file):
    """The tensors in a TFLite file of weights: numbers of zeros by the number of entries."""
    interpreter = tf.lite.Interpreter(model_content=file)
    found = {}
    for details in interpreter.get_tensor_details():
        if len(details["shape"]) > 1 and details["dtype"] in (np.int8, np.float16, np.float32):
            try:
                array = interpreter.get_tensor(details["index"])
            except ValueError:  # One that is computed.
                continue
            scales = details["quantization_parameters"]
            assert not scales["zero_points"].any() or array.size not in (1152, 8192, 640)
            found[array.size] = array.dtype, np.count_nonzero(array == 0)
    return found


@pytest.mark.parametrize(("weights", "dtype"), [("float16", np.float16), ("int8", np.int8), (None, np.int8)])
def test_zeros_stay_zero_in_fewer_bits(K, weights, dtype):
    model = wide(K)
    zeros = {weight.size: np.count_nonzero(weight == 0) for weight in model.get_weights() if weight.ndim > 1}
    x = np.random.default_rng(1).normal(size=(50, 8, 8, 4)).astype(np.float32)
    options = {"representative_inputs": x} if weights is None else {"weights": weights}
    file = to_tflite(model, **options)
    kept = stored(file)
    for size, count in zeros.items():
        if size < 1024 and weights == "int8":
            continue
        assert kept[size][0] == dtype
        # A weight that is smaller than half a step of int8 becomes zero, too.
        assert count <= kept[size][1] <= count + 0.02 * size
    interpreter = tf.lite.Interpreter(model_content=file)
    [(name, details)] = interpreter.get_signature_runner().get_input_details().items()
    assert details["dtype"] == np.float32
    [found] = interpreter.get_signature_runner()(**{name: x}).values()
    np.testing.assert_allclose(found, model(x), atol=0.05 * np.abs(np.asarray(model(x))).max())
    assert len(file) < 0.65 * len(to_tflite(model))


def test_forms_of_tflite_are_told_apart(K):
    with pytest.raises(ValueError, match="weights must be one of float32, float16, int8; got 'int4'"):
        to_tflite(wide(K), weights="int4")
    with pytest.raises(ValueError, match="Only one of sparse, weights and representative_inputs"):
        to_tflite(wide(K), weights="float16", sparse=True)


@pytest.mark.slow
def test_compacted_and_coded_models_go_through_all_formats(K, tmp_path):
    model = wide(K)
    kernel, bias = model.layers[1].get_weights()
    kernel[..., ::2], bias[::2] = 0, 0
    model.layers[1].set_weights([kernel, bias])
    shared = aimp_tf.share_weights(aimp_tf.compact(model), levels=8, centroids="float16")
    assert shared.layers[1].get_weights()[0].shape[-1] <= 16
    aimp_tf.export(shared, tmp_path / "model.coded")
    loaded = aimp_tf.load_coded(tmp_path / "model.coded")
    x = np.random.default_rng(1).normal(size=(50, 8, 8, 4)).astype(np.float32)
    artefacts = aimp_tf.export(loaded, tmp_path / "all", list(exporting.FORMATS), inputs=x)
    bounds = {"tflite_int8": 0.1, "tflite_dynamic": 0.1, "tflite_fp16": 2e-3}
    for name, artefact in artefacts.items():
        assert artefact.relative_difference <= bounds.get(name, 1e-5), name
    sizes = {name: artefact.bytes for name, artefact in artefacts.items()}
    assert sizes["coded"] < sizes["tflite_int8"] < sizes["tflite_fp16"] < sizes["tflite"]
    assert sizes["coded"] == (tmp_path / "model.coded").stat().st_size < sizes["onnx"] / 10


def test_onnx_takes_any_batch_by_the_names_of_the_signature(K, tmp_path):
    a, b = K.Input((4, 4, 2), name="a"), K.Input((3,), name="b")
    h = K.layers.Concatenate()([K.layers.Flatten()(K.layers.Conv2D(3, 3, activation="gelu")(a)), b])
    model = K.Model({"a": a, "b": b}, {name: K.layers.Dense(2, name=name)(h) for name in ("x", "y")})
    aimp_tf.export(model, tmp_path / "model.onnx", verify=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert {each.name for each in session.get_inputs()} == {"a", "b"}
    for count in (1, 5):
        generator = np.random.default_rng(count)
        inputs = {"a": generator.normal(size=(count, 4, 4, 2)), "b": generator.normal(size=(count, 3))}
        inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
        for name, found in zip(("x", "y"), session.run(["x", "y"], inputs), strict=True):
            np.testing.assert_allclose(found, model(inputs)[name], atol=1e-5)


def test_what_onnx_does_not_know_is_refused(K, tmp_path):
    class Own(K.layers.Layer):
        def call(self, inputs):
            return tf.cast(tf.math.igamma(tf.abs(inputs), tf.abs(inputs)), tf.float32)

    model = K.Sequential([K.Input((3,)), Own()])
    with pytest.raises(ValueError, match="cannot be converted to ONNX. Export another format"):
        aimp_tf.export(model, tmp_path / "model.onnx", verify=False)
    assert not list(tmp_path.iterdir())


def test_a_format_without_its_extra_says_what_to_install(K, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs the package onnxruntime; install it with pip install \"\.\[onnx\]\""):
        aimp_tf.export(wide(K), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_recurrent_layers(K):
    """In Keras 3 alone: tf_keras' become an operation of TFLite that keeps its state from call to call."""
    if K.__name__ == "tf_keras":
        pytest.skip("not converted to the same function")
    model = K.Sequential([K.Input((5, 2)), K.layers.LSTM(3), K.layers.Dense(1)])
    x = np.random.default_rng(0).normal(size=(4, 5, 2)).astype("float32")
    file = to_tflite(model)
    found = [run_tflite(file, x[at : at + 1])[0] for at in range(4)]
    np.testing.assert_allclose(found, model(x), atol=1e-5)
    with pytest.raises(ValueError, match="cannot be converted to int8 TFLite"):
        to_tflite(model, representative_inputs=x)


def test_sparse_files_are_smaller(K):
    model = K.Sequential([K.Input((256,)), K.layers.Dense(256)])
    kernel, bias = model.get_weights()
    rng = np.random.default_rng(0)
    model.set_weights([kernel * (rng.random(kernel.shape) < 0.05), bias])
    dense, sparse = to_tflite(model), to_tflite(model, sparse=True)
    assert len(sparse) < len(dense) / 5
    x = rng.normal(size=(1, 256)).astype("float32")
    np.testing.assert_allclose(run_tflite(sparse, x), run_tflite(dense, x), atol=1e-5)


def test_all_weights_have_paths(make_mlp, K):
    arrays = weight_arrays(make_mlp())
    assert list(arrays) == [
        *("hidden/kernel", "hidden/bias", "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance"),
        *("logits/kernel", "logits/bias"),
    ]
    inner = K.Sequential([K.Input((3, 4)), K.layers.Bidirectional(K.layers.LSTM(2), name="rnn")], name="inner")
    shared = K.layers.Dense(4, name="shared")
    inputs = K.Input((3, 4))
    model = K.Model(inputs, inner(shared(shared(inputs))))
    arrays = weight_arrays(model)
    assert len(arrays) == len(model.weights) == 8
    kernels = {path for path in arrays if path.endswith("kernel")}
    assert kernels == set(aimp_tf.masking.select_prunable(model))


def test_a_file_of_keras_leaves_a_model_that_is_not_compiled_as_it_was(tmp_path):
    """In tf_keras, it has an optimizer, which is None."""
    model = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(2)])
    write_keras(model, tmp_path / "model.keras")
    assert model.optimizer is None


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failed_export_leaves_what_was_there(make_mlp, tmp_path, monkeypatch, overwrite):
    model = make_mlp()
    folder = tmp_path / "a" / "b"
    if overwrite:
        aimp_tf.export(model, folder, ("saved_model", "keras", "weights"), verify=False)
    before = content(tmp_path)

    def fail(model, path, settings):
        path.write_text("half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        change(patch, "keras", write=fail)
        with pytest.raises(OSError, match="no space left"):
            aimp_tf.export(model, folder, ("saved_model", "keras", "weights"), overwrite=overwrite, verify=False)
    # Whatever happens while the new ones are moved to their places.
    replace = os.replace

    def fail_at_the_second(source, target):
        if target == folder / "model.keras" and "overwritten" not in str(source):
            raise OSError("no such folder")
        replace(source, target)

    model.set_weights([weight + 1 for weight in model.get_weights()])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_at_the_second)
        with pytest.raises(OSError, match="no such folder"):
            aimp_tf.export(model, folder, ("saved_model", "keras", "weights"), overwrite=overwrite, verify=False)
    assert content(tmp_path) == before
    assert overwrite or not list(tmp_path.iterdir())
    assert not list(tmp_path.rglob(".unfinished*"))
    if overwrite:
        new = aimp_tf.export(model, folder, ("saved_model", "keras", "weights"), overwrite=True, verify=False)
        assert sorted(os.listdir(folder)) == ["model.keras", "saved_model", "weights.npz"]
        with np.load(new["weights"]) as arrays:
            np.testing.assert_array_equal(arrays["norm/gamma"], np.full(16, 2))


@pytest.mark.slow
def test_what_gives_other_outputs_is_refused(make_mlp, tmp_path, monkeypatch):
    model = make_mlp()

    def write_another(model, path, settings):
        weights = model.get_weights()
        model.set_weights([weight * 1.001 for weight in weights])
        write(model, path, settings)
        model.set_weights(weights)

    write = exporting.FORMATS["saved_model"].write
    change(monkeypatch, "saved_model", write=write_another)
    with pytest.raises(RuntimeError, match="saved_model gives other outputs than the model .*the largest difference"):
        aimp_tf.export(model, tmp_path / "out", ("keras", "saved_model"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("formats", ["keras", "weights"])
def test_made_up_inputs(make_mlp, tmp_path, monkeypatch, formats):
    """Whether the other process is asked for what it should be asked for."""
    asked = []

    def answer(artefacts, inputs=(), *_):
        asked.append((artefacts, inputs))
        return [weight_arrays(model) if formats == "weights" else {"0": np.asarray(model(inputs))}]

    monkeypatch.setattr(exporting.verification, "use_in_fresh_process", answer)
    model = make_mlp()
    artefact = aimp_tf.export(model, tmp_path, formats)[formats]
    [([(kind, _)], inputs)] = asked
    if formats == "weights":
        assert (kind, inputs, artefact.examples, artefact.made_up) == ("weights", (), 0, False)
    else:
        assert kind == type(model).__module__.split(".")[0]
        assert (inputs.shape, artefact.examples, artefact.made_up) == ((32, 8), 32, True)
    assert artefact.max_difference < 1e-5


def test_made_up_images_are_large_enough_for_something_to_come_out(K, tmp_path):
    layers, inputs = K.layers, K.Input((None, None, 3))
    x = inputs
    for _ in range(5):
        x = layers.MaxPooling2D()(x)
    for last in (layers.GlobalAveragePooling2D(), layers.Conv2D(2, 1)):
        assert made_up(K.Model(inputs, last(x))).shape == (32, 32, 32, 3)
    assert made_up(K.Model(inputs, layers.Conv2D(2, 1)(inputs))).shape == (32, 8, 8, 3)
    model = K.Sequential([K.Input((4,)), layers.Dense(2, bias_initializer=K.initializers.Constant(np.nan))])
    with pytest.raises(ValueError, match="gives no numbers for inputs that are made up.*give inputs, or pass verify"):
        aimp_tf.export(model, tmp_path, "keras")


def test_bad_calls_are_refused(make_mlp, K, tmp_path, monkeypatch):
    model, folder = make_mlp(), tmp_path / "a"

    class Odd(K.layers.Layer):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def call(self, inputs):
            return self.function(inputs)

    odd = K.Sequential([K.Input((8,)), K.layers.Dense(2), Odd(tf.strings.as_string)])
    file = tmp_path / "file"
    file.write_text("mine")
    for arguments, settings, error, message in (
        ((model, folder, ("keras", "savedmodel")), {}, ValueError, "Unknown format 'savedmodel'.*mean 'saved_model'"),
        ((model, folder, ()), {}, ValueError, "No format is given"),
        ((aimp_tf.wrap(make_mlp()), folder), {}, ValueError, "carries masks"),
        ((None, folder), {}, TypeError, "Expected a Keras model"),
        ((K.Sequential([K.layers.Dense(2)]), folder), {}, ValueError, "has no weights yet"),
        ((model, folder, "tflite_int8"), {}, ValueError, "pass some hundred examples as inputs"),
        ((model, folder), {"inputs": np.zeros((2, 7))}, ValueError, r"float32\[None, 8\].*got float64\[2, 7\]"),
        ((model, folder), {"inputs": [["a"]]}, ValueError, "takes .*float32"),
        ((odd, folder, "keras"), {}, ValueError, r"cannot be written as a Keras file. Give .* a get_config\(\)"),
        ((odd, folder, ("weights", "tflite")), {}, ValueError, "cannot be converted to TFLite"),
        ((model, file / "below"), {}, ValueError, "directory .*below cannot be written: .*file is not a folder"),
    ):
        with pytest.raises(error, match=message):
            aimp_tf.export(*arguments, **settings)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ValueError, match="is not a folder in which you may write"):
        aimp_tf.export(model, folder)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "model.keras").symlink_to("nowhere")
    with pytest.raises(ValueError, match="model.keras exists already; pass overwrite=True"):
        aimp_tf.export(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model.keras"]


def test_a_model_that_was_made_in_a_loop_of_ones_own_is_taken_too(make_mlp, tmp_path):
    @dataclasses.dataclass
    class Mine:
        model: object

    assert aimp_tf.export(Mine(make_mlp()), tmp_path, "weights", verify=False)["weights"].path.exists()
    with pytest.raises(TypeError, match="Expected a Keras model"):
        aimp_tf.export(Mine("model"), tmp_path / "a")


@pytest.mark.slow
def test_a_broken_saved_model_is_reported(tmp_path):
    with pytest.raises(RuntimeError, match="saved_model could not be used in a fresh process"):
        use_in_fresh_process([("saved_model", tmp_path / "saved_model")], np.zeros((1, 2)))


@pytest.mark.slow
def test_a_path_of_a_file_is_that_file(make_mlp, blobs, tmp_path):
    model = make_mlp()
    for name, format_ in (("a.tflite", "tflite"), ("b.keras", "keras"), ("c.npz", "weights")):
        artefacts = aimp_tf.export(model, tmp_path / "out" / name)
        assert list(artefacts) == [format_] and artefacts[format_].path == tmp_path / "out" / name
        assert (tmp_path / "out" / name).stat().st_size == artefacts[format_].bytes > 0
    aimp_tf.export(model, tmp_path / "int8.tflite", "tflite_int8", inputs=blobs[0], verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.tflite", "out"]
    for name, formats, message in (
        ("a.tflite", ["tflite", "keras"], "is a file of one format, and formats are tflite, keras"),
        ("a.tflite", ["keras"], "is a file of one format, and formats are keras"),
        ("a.h5", None, r"Write .*a\.keras or .*a\.tflite"),
        ("out/a.tflite", None, "exists already"),
    ):
        with pytest.raises(ValueError, match=message):
            aimp_tf.export(model, tmp_path / name, formats)


@pytest.mark.slow
def test_prune_exports_where_it_is_told(make_mlp, K, blobs, tmp_path, capsys):
    settings = {"target_sparsity": 0.75, "rate": 0.75, "epochs": 1}
    result = aimp_tf.prune(make_mlp(), *blobs, **settings, export_to=tmp_path / "pruned.keras")
    size = (tmp_path / "pruned.keras").stat().st_size
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(rf"wrote {tmp_path}/pruned.keras: {size:,} bytes, [\d,]+ with gzip", last)
    settings["verbose"] = 0
    loaded = K.models.load_model(tmp_path / "pruned.keras")
    for here, there in zip(loaded.get_weights(), result.model.get_weights(), strict=True):
        np.testing.assert_array_equal(here, there)
    model = make_mlp()
    before = model.get_weights()
    for path, message in (("pruned.keras", "exists already"), ("pruned.h5", "does not write"), ("x/y", "not a folder")):
        (tmp_path / "x").write_text("")
        with pytest.raises(ValueError, match=message):
            aimp_tf.prune(model, *blobs, **settings, export_to=tmp_path / path)
    for here, there in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(here, there)


def test_what_cannot_be_exported_is_said_before_training(K, blobs, tmp_path):
    class Own(K.layers.Layer):
        def call(self, inputs):
            return inputs

        def get_config(self):
            raise RuntimeError("no config here")

    model = K.Sequential([K.Input((8,)), Own(), K.layers.Dense(3)])
    model.compile("sgd", K.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_weights()
    with pytest.raises(ValueError, match="cannot be written as a Keras file.*no config here"):
        aimp_tf.prune(
            model, *blobs, target_sparsity=0.5, epochs=1, rate=0.5, export_to=tmp_path / "own.keras", verbose=0
        )
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert not list(tmp_path.iterdir())
