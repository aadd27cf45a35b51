"""Tensors and models as coded files: nothing is lost, little is wasted, and nothing else is read. Mechanics only."""

import json
import lzma
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aimp_tf
from aimp_tf.coding import container, entropy, tensors
from aimp_tf.coding.positions import Numbers, Positions, PositionsReader
from aimp_tf.coding.reading import Bytes, number
from aimp_tf.compat.mixed_precision import computes_in_half_precision
from aimp_tf.exporting.coded import write_coded
from aimp_tf.files import DamagedFileError

SHAPES = st.lists(st.integers(0, 40), min_size=0, max_size=4).filter(lambda shape: np.prod(shape) < 20000)


@st.composite
def arrays(draw):
    """Pruned ones of any density, of few values or many, of blocks, columns or entries anywhere."""
    shape = tuple(draw(SHAPES))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.normal(0, draw(st.sampled_from([1e-6, 1.0, 1e6])), shape)
    if levels := draw(st.sampled_from([0, 1, 2, 16, 200, 256, 257])):
        values = generator.choice(np.append(generator.normal(size=levels - 1), 0.5), shape)
    density = draw(st.sampled_from([0.0, 0.001, 0.02, 0.5, 0.97, 1.0]))
    kept = generator.random(shape) < density
    if shape and draw(st.booleans()):
        kept = np.broadcast_to(generator.random(shape[-1]) < density, shape)
    found = np.where(kept, values, 0)
    dtype = draw(st.sampled_from(["float32", "float32", "float16", "float64", "int8", "int64", "uint32", "bool"]))
    with np.errstate(over="ignore", invalid="ignore"):
        return found.astype(dtype)


@settings(max_examples=200, deadline=None)
@given(array=arrays())
def test_tensors_come_back_bit_for_bit(array):
    content, part = tensors.write(array)
    assert part.bytes == len(content) and part.survivors == np.count_nonzero(array)
    reader = Bytes(content)
    found = tensors.read(reader, array.size)
    assert reader.left == 0 and found.dtype == array.dtype and found.shape == array.shape
    # Zeros come back as positive ones.
    assert found.tobytes() == np.where(array == 0, np.zeros((), array.dtype), array).tobytes()


def test_what_is_not_finite_and_negative_zeros():
    array = np.array([np.nan, np.inf, -0.0, -np.inf, 1e-45, 0.0], np.float32)
    array[0] = np.frombuffer(b"\x01\x02\xc0\x7f", "<f4")[0]  # A NaN with a payload.
    found = tensors.read(Bytes(tensors.write(array)[0]), array.size)
    expected = array.view(np.uint32).copy()
    expected[2] = 0
    np.testing.assert_array_equal(found.view(np.uint32), expected)


def test_unknown_dtypes_are_refused():
    with pytest.raises(ValueError, match="complex64"):
        tensors.write(np.zeros(3, np.complex64))


def shared(shape, sparsity, levels, seed=0):
    generator = np.random.default_rng(seed)
    values = np.sort(generator.normal(size=levels)).astype(np.float16).astype(np.float32)
    return np.where(generator.random(shape) < sparsity, 0, generator.choice(values, shape)).astype(np.float32)


@pytest.mark.parametrize("sparsity", [0.2, 0.9, 0.99])
@pytest.mark.parametrize("levels", [2, 16, 250])
def test_a_payload_is_what_its_entropy_says(sparsity, levels):
    array = shared((300, 200), sparsity, levels)
    content, part = tensors.write(array)
    kept = array != 0
    counts = np.unique(array[kept], return_counts=True)[1]
    survivors = counts.sum()
    of_codes = float((counts * np.log2(survivors / counts)).sum())
    share = survivors / array.size
    of_positions = array.size * -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    # Of positions that are independent of one another no way is better than this by more than chance.
    assert part.entropy_bits == pytest.approx(of_codes + of_positions, rel=0.02)
    assert 8 * part.stream_bytes <= 1.03 * part.entropy_bits + 8 * 64
    # Tables and values: a byte for each symbol, two for each value.
    assert len(content) <= part.stream_bytes + 3 * levels + 100


def test_positions_are_told_in_the_cheapest_way():
    generator = np.random.default_rng(0)
    anywhere = generator.random((400, 300)) < 0.3
    blocks = np.repeat(generator.random((100, 300)) < 0.1, 4, axis=0)  # Of four inputs each.
    spread = np.zeros(120_007, bool)
    spread[::5] = True
    found = {name: Positions.of(kept) for name, kept in locals().items() if isinstance(kept, np.ndarray)}
    assert found["anywhere"].way == "bitmap"
    assert (found["blocks"].grain, found["blocks"].by_column) == (4, True)
    fives = np.repeat(np.arange(4_000) % 2 == 1, np.where(np.arange(4_000) % 2, 5, generator.integers(1, 30, 4_000)))
    assert Positions.of(fives).way == "runs"
    assert found["spread"].way == "gaps" and found["spread"].bits() < 700
    # A block takes what a single entry of so many fewer would.
    assert found["blocks"].bits() == pytest.approx(30_000 * 0.469, rel=0.03)


@given(st.lists(st.integers(0, 2**52), max_size=30))
@settings(deadline=None)
def test_numbers_of_any_size(values):
    values = np.array(values, np.int64)
    numbers = Numbers.of(values)
    encoder = entropy.Encoder()
    numbers.write(encoder)
    decoder = entropy.Decoder(encoder.words())
    np.testing.assert_array_equal(Numbers.read(decoder, len(values), numbers.table), values)
    decoder.finish()


@given(st.integers(0, 2**62 - 1))
def test_plain_numbers(value):
    reader = Bytes(number(value))
    assert reader.number() == value and reader.left == 0


@pytest.fixture
def model(K):
    """With all that a file may hold: shared and other kernels, normalisation, a nested model, half precision."""
    K.utils.set_random_seed(0)
    layers = K.layers
    image = layers.Input((6, 6, 2))
    x = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(image))
    x = K.Sequential([layers.Input((6, 6, 8)), layers.Conv2D(8, 3), layers.ReLU()], name="nested")(x)
    x = layers.Flatten()(layers.Dropout(0.2)(x))
    half = layers.Dense(20, dtype="mixed_bfloat16", name="half")(x)
    model = K.Model(image, layers.Dense(4, dtype="float32", name="last")(half))
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) > 1:
            weight.assign(shared(weight.shape, 0.8, 6))
        else:
            weight.assign(generator.uniform(0.5, 1, weight.shape))
    return model


def test_models_come_back_bit_for_bit(model, tmp_path):
    path = tmp_path / "model.coded"
    report = write_coded(model, path)
    found = aimp_tf.load_coded(path)
    assert type(found) is type(model) and found.name == model.name
    for old, new in zip(model.get_weights(), found.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [computes_in_half_precision(layer) for layer in found.layers] == [
        computes_in_half_precision(layer) for layer in model.layers
    ]
    x = np.random.default_rng(1).normal(size=(3, 6, 6, 2)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(model(x)), np.asarray(found(x)))
    # All is accounted for.
    assert report.bytes == path.stat().st_size
    parts = sum(part.bytes for part in report.parts.values())
    assert 0 < report.bytes - parts - report.architecture_bytes < 60
    assert list(report.parts) == [name for name in report.parts if name in report.table() or "/" in name]
    assert f"{report.bytes:,} bytes" in report.table()


def test_files_that_are_changed_or_cut_short_are_refused(model, tmp_path):
    path = tmp_path / "model.coded"
    write_coded(model, path)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for case in range(10_000):
        changed = bytearray(content)
        if case % 4 == 0:
            del changed[generator.integers(len(content)) :]
        elif case % 4 == 1:
            changed += bytes(generator.integers(0, 256, generator.integers(1, 20), dtype=np.uint8))
        else:
            at, length = generator.integers(len(content)), 1 if case % 4 == 2 else generator.integers(1, 20)
            changed[at : at + length] = bytes(generator.integers(0, 256, length, dtype=np.uint8))
        if changed != content:
            with pytest.raises(DamagedFileError):
                container.unpack(bytes(changed))


def with_checksum(content):
    return content[:8] + struct.pack("<I", zlib.crc32(content[12:])) + content[12:]


def test_what_is_changed_with_its_checksum_is_read_as_it_is_or_refused(model, tmp_path):
    """Someone who means harm knows how to compute a checksum. No other error, and no memory for what is not there."""
    path = tmp_path / "model.coded"
    write_coded(model, path)
    content = path.read_bytes()
    payload = container._HEAD.size + struct.unpack_from("<I", content, 12)[0]
    generator = np.random.default_rng(0)
    refused = 0
    tracemalloc.start()
    for _ in range(1_000):
        changed = bytearray(content)
        at = generator.integers(payload, len(content))
        changed[at] = generator.integers(256)
        try:
            container.unpack(with_checksum(bytes(changed)))
        except DamagedFileError:
            refused += 1
    assert refused > 300
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("offset", "kind", "value", "message"),
    [
        (7, "<B", 9, "of version 9"),
        (16, "<I", 2**31, "which is absurd"),
        (28, "<Q", 2**60, "which is absurd"),
        (28, "<Q", 10, "more than its"),
        (28, "<Q", 100_000, "it lacks"),
    ],
)
def test_absurd_sizes_are_refused(model, tmp_path, offset, kind, value, message):
    path = tmp_path / "model.coded"
    write_coded(model, path)
    content = bytearray(path.read_bytes())
    struct.pack_into(kind, content, offset, value)
    path.write_bytes(with_checksum(bytes(content)))
    with pytest.raises(ValueError, match=f"model.coded is no coded file, or is damaged: .*{message}"):
        aimp_tf.load_coded(path)


def test_an_architecture_of_other_sizes_is_refused_before_it_takes_memory(K, tmp_path):
    path = tmp_path / "model.coded"
    model = K.Sequential([K.Input((4,)), K.layers.Dense(3)])
    content, *_ = container.pack({"keras": K.__name__, "model": {}}, model.get_weights())
    write_coded(model, path)
    description, arrays = container.unpack(path.read_bytes())
    text = json.dumps(description).replace('"units": 3', f'"units": {10**11}')
    path.write_bytes(container.pack(json.loads(text), arrays)[0])
    with pytest.raises(ValueError, match="cannot be made: its architecture has more weights than the 15"):
        aimp_tf.load_coded(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be made"):
        aimp_tf.load_coded(path)
    description["keras"] = "os"
    path.write_bytes(container.pack(description, arrays)[0])
    with pytest.raises(ValueError, match="unknown generation of Keras, 'os'"):
        aimp_tf.load_coded(path)


def test_code_in_an_architecture_is_not_run(K, tmp_path, monkeypatch):
    model = K.Sequential([K.Input((4,)), K.layers.Lambda(lambda x: 2 * x), K.layers.Dense(3)])
    with pytest.raises(ValueError, match="A function that was made by lambda"):
        write_coded(model, tmp_path / "model.coded")
    assert not (tmp_path / "model.coded").exists()
    description = {"keras": K.__name__, "model": K.saving.serialize_keras_object(model)}
    (tmp_path / "model.coded").write_bytes(container.pack(description, model.get_weights())[0])
    with pytest.raises(ValueError, match=r"(?s)cannot be made: .*[Ll]ambda"):
        aimp_tf.load_coded(tmp_path / "model.coded")
    (tmp_path / "harm.py").write_text("raise SystemExit")
    own = {"module": "harm", "class_name": "M", "config": {}, "registered_name": "M"}
    (tmp_path / "model.coded").write_bytes(container.pack({"keras": K.__name__, "model": own}, [])[0])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="it names the module 'harm', which is not imported"):
        aimp_tf.load_coded(tmp_path / "model.coded")


def test_a_refused_file_leaves_other_models_as_they_are(K, model, tmp_path):
    write_coded(model, tmp_path / "model.coded")
    description, arrays = container.unpack((tmp_path / "model.coded").read_bytes())
    arrays[0] = np.ones((4, 6), np.float32)
    (tmp_path / "model.coded").write_bytes(container.pack(description, arrays)[0])
    with pytest.raises(ValueError, match="its model has weights of the shapes"):
        aimp_tf.load_coded(tmp_path / "model.coded")
    assert np.isfinite(model.predict(np.zeros((2, 6, 6, 2)), verbose=0)).all()


def test_weights_go_where_they_came_from_whatever_is_frozen(K, tmp_path):
    layers = K.layers
    tokens = layers.Input((5,), dtype="int32")
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(layers.Embedding(10, 4)(tokens))
    model = K.Model(tokens, layers.Dense(2)(layers.GRU(3)(x)))
    model.layers[2].forward_layer.trainable = False
    write_coded(model, tmp_path / "model.coded")
    x = np.arange(10).reshape(2, 5)
    np.testing.assert_array_equal(model(x), aimp_tf.load_coded(tmp_path / "model.coded")(x))


def test_layers_that_adapt_take_up_what_they_were_given(K, tmp_path):
    data = np.random.default_rng(0).normal(5, 3, (50, 4)).astype(np.float32)
    normalization = K.layers.Normalization()
    normalization.adapt(data)
    inputs = K.layers.Input((4,))
    model = K.Model(inputs, K.layers.Dense(3)(normalization(inputs)))
    write_coded(model, tmp_path / "model.coded")
    np.testing.assert_array_equal(model(data), aimp_tf.load_coded(tmp_path / "model.coded")(data))
    lookup = K.layers.IntegerLookup(vocabulary=[3, 5, 7], output_mode="one_hot")
    inputs = K.layers.Input((1,), dtype="int64")
    with pytest.raises(ValueError, match="The vocabularies of .*lookup.* would not be in it"):
        write_coded(K.Model(inputs, K.layers.Dense(2)(lookup(inputs))), tmp_path / "lookup.coded")


@pytest.mark.parametrize("shape", [(0, 2**61), (2**61, 0)])
def test_shapes_that_no_array_has_are_refused(shape):
    content = bytes([0, 2]) + b"".join(map(number, shape)) + bytes([0, 0])
    with pytest.raises(DamagedFileError, match="holds a tensor of the shape"):
        tensors.read(Bytes(content), 100)
    with pytest.raises(DamagedFileError, match="entries by"):  # The columns of a number.
        PositionsReader(Bytes(bytes([1]) + number(1)), ())


def test_a_description_is_no_bomb():
    """Of which a little unpacks to very much."""
    text = b'{"a":"' + b" " * 10**7 + b'"}'
    packed = lzma.compress(text, format=lzma.FORMAT_RAW, filters=container._FILTERS)
    head = container._HEAD.pack(b"\x93AIMPTF", 1, 0, len(packed), 100, 1, 0)
    with pytest.raises(DamagedFileError, match="description cannot be read"):
        container.unpack(with_checksum(head + packed + b"\0"))


def test_what_is_hardly_there_is_not_written(monkeypatch):
    monkeypatch.setattr(container, "_ENTRIES_A_BYTE", 64)
    with pytest.raises(ValueError, match="Hardly any of 131,072 weights is not zero.* Compact the model first"):
        container.pack({}, [np.zeros((2**9, 2**8), np.float32)])


def test_a_layer_without_a_config_is_refused(K, tmp_path):
    class Own(K.layers.Layer):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def call(self, inputs):
            return self.function(inputs)

        def get_config(self):
            return {"function": object()}

    model = K.Sequential([K.Input((4,)), Own(abs), K.layers.Dense(3)])
    with pytest.raises(ValueError, match="cannot be written as a coded file. Give layers"):
        write_coded(model, tmp_path / "model.coded")
    assert not (tmp_path / "model.coded").exists()


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "constriction", None)
    with pytest.raises(ImportError, match=r'needs the package constriction; install it with pip install "\.\[coded\]"'):
        tensors.write(shared((30, 20), 0.5, 4))


def test_readers_refuse_positions_beyond_a_tensor():
    kept = np.zeros(100_000, bool)
    kept[::50] = True
    positions, encoder = Positions.of(kept), entropy.Encoder()
    positions.write(encoder)
    reader = PositionsReader(Bytes(positions.header()), (90_000,))
    with pytest.raises(DamagedFileError, match="beyond the tensor"):
        reader.read(entropy.Decoder(encoder.words()))
