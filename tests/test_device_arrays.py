import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

import aimp_tf
from aimp_tf.device_arrays import DeviceArrays
from aimp_tf.input_pipeline import Order, array_positions, prepare

SETTINGS = dict(target_sparsity=0.6, rate=0.4, epochs=2, round_epochs=1, seed=0, verbose=0)
FIT_OPTIONS = {"batch_size": 24}


@pytest.fixture
def arrays():
    """Ten examples of every kind of numbers, some of them in rows that fill no whole word: made up."""
    generator = np.random.default_rng(0)

    def numbers(dtype, *shape):
        return generator.integers(0, 256, (10, *shape, np.dtype(dtype).itemsize), "uint8").view(dtype)[..., 0]

    integers = {dtype: numbers(dtype, 3, 1) for dtype in ("uint8", "int8", "uint16", "int32", "uint64", "int64")}
    floats = {dtype: generator.normal(size=(10, 5)).astype(dtype) for dtype in ("float16", "float32", "float64")}
    return (integers, {**floats, "nan": numbers("float32", 3)}), numbers("uint8"), np.arange(10) > 4


def on_device(data, device="CPU:1", order=None, **settings):
    settings = {"batch_size": 4, "steps_per_epoch": None, "floatx": "float32", **settings}
    return DeviceArrays(data, "train_data", device, order=order or Order(0), **settings)


def gather(arrays, positions):
    """What a train_step gets of an element of `arrays.batches`."""

    class Model:
        train_step = staticmethod(lambda data: data)

    model = Model()
    with arrays.gathering(model):
        return model.train_step(positions)


@pytest.mark.parametrize("steps", [None, 4])
def test_its_batches_are_those_of_the_host_bit_for_bit(arrays, steps):
    orders = Order(3), Order(3)
    for order in orders:
        order.begin(1, 2)
    held = on_device(arrays, order=orders[0], steps_per_epoch=steps)
    plain = prepare(arrays, "data", batch_size=4, order=orders[1], steps_per_epoch=steps)
    assert held.batches.cardinality() == plain.cardinality()
    batches = list(zip(held.batches.take(4), plain.take(4), strict=True))
    assert len(batches) == (steps or 3)
    for positions, batch in batches:
        gathered = gather(held, positions)
        tf.nest.assert_same_structure(gathered, batch)
        for here, there in zip(tf.nest.flatten(gathered), tf.nest.flatten(batch), strict=True):
            assert here.dtype == there.dtype and here.shape == there.shape and here.device.endswith("CPU:1")
            assert here.numpy().tobytes() == there.numpy().tobytes()


def test_a_gpu_can_do_all_that_a_step_does(arrays):
    """Whether TensorFlow has a GPU's kernel for each operation, which is known without a GPU as well."""

    def has_kernel(operation):
        return any(
            kernel.device_type in ("GPU", "DEFAULT")
            and all(
                operation.node_def.attr[part.name].type in part.allowed_values.list.type for part in kernel.constraint
            )
            for kernel in kernels.get_registered_kernels_for_op(operation.type).kernel
        )

    held = on_device(arrays)

    def operations_of(function):
        return tf.function(function).get_concrete_function(held.batches.element_spec).graph.get_operations()

    operations = operations_of(lambda positions: gather(held, positions))
    assert {"GatherV2", "Bitcast"} < {operation.type for operation in operations}
    assert [operation for operation in operations if not has_kernel(operation)] == []
    assert all(operation.device.endswith("CPU:1") for operation in operations if operation.type == "GatherV2")
    bytes_ = operations_of(lambda element: tf.gather(arrays[1], *element.values()))
    assert "GatherV2" in [operation.type for operation in bytes_ if not has_kernel(operation)], "not as they are"


@pytest.mark.parametrize("compact_rounds", [False, True])
def test_a_run_on_it_is_the_same_bit_for_bit(K, make_mlp, blobs, compact_rounds):
    x, y = blobs
    results = []
    for data_on_device in (False, True):
        model = make_mlp(jit_compile=K.__name__ == "keras" and not compact_rounds)  # As Keras 3 does on a GPU.
        results.append(
            aimp_tf.prune(
                model,
                (x, y.astype("uint8"), np.linspace(0, 1, len(x))),
                data_on_device=data_on_device,
                compact_rounds=compact_rounds,
                validation_data=(x, y),
                fit_options=FIT_OPTIONS,
                **SETTINGS,
            )
        )
    here, there = results
    assert [round_.metrics for round_ in here.rounds] == [round_.metrics for round_ in there.rounds]
    for one, other in zip(here.model.get_weights(), there.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not {"train_step", "_symbolic_build"} & vars(there.model).keys(), "nothing holds the arrays any more"
    before = there.model.get_weights()[0]
    there.model.fit(x, y, verbose=0)
    assert (there.model.get_weights()[0] != before).any(), "it takes other data again"


def test_it_lies_where_the_model_does_and_lets_other_data_be(K, make_mlp, blobs, monkeypatch):
    gathered_on, others = [], []
    gather_if_its_own = DeviceArrays._gathered

    def noting(self, data):
        batch = gather_if_its_own(self, data)
        if batch is not data:
            gathered_on.append(batch[0].device)
        return batch

    class OtherData(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            others.append(self.model.train_on_batch(*(part[:4] for part in blobs)))

    monkeypatch.setattr(DeviceArrays, "_gathered", noting)
    with tf.distribute.OneDeviceStrategy("CPU:1").scope():
        model = make_mlp()
    options = dict(fit_options=FIT_OPTIONS, callbacks=[OtherData()], **SETTINGS)
    result = aimp_tf.prune(model, blobs, data_on_device=True, **options)
    assert result.sparsity == pytest.approx(0.6, abs=0.01)
    assert len(others) == sum(round_.epochs for round_ in result.rounds)
    assert gathered_on and all(device.endswith("CPU:1") for device in gathered_on)


def test_what_it_cannot_hold_is_refused_before_training(make_mlp, blobs, tmp_path, monkeypatch):
    x, y = blobs
    dataset = tf.data.Dataset.from_tensors((x, y))

    def refused(error, message, data=blobs, model=None, **options):
        model = make_mlp() if model is None else model
        with pytest.raises(error, match=message):
            aimp_tf.prune(model, data, data_on_device=True, fit_options=options, workdir=tmp_path / "run", **SETTINGS)
        assert model.optimizer.iterations.numpy() == 0 and not list(tmp_path.rglob("*.*"))

    refused(ValueError, r"as a tuple \(x, y\).*got .*Dataset", dataset)
    refused(ValueError, "Give each example its weight", class_weight={0: 1.0, 1: 2.0})
    refused(TypeError, "must be made of numbers for data_on_device; got dtype string", (x, y, np.array(["a"] * 64)))
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = make_mlp()
    refused(ValueError, "made under MirroredStrategy", model=model)

    def exhausted(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM")

    monkeypatch.setattr(tf, "identity", exhausted)
    refused(ValueError, "train_data takes 2.56e-06 GB, which do not fit into the memory of .*CPU:0. Set")


def test_arrays_to_be_read_by_tf_data_stay_on_the_host():
    with tf.device("CPU:1"):
        data = np.zeros((4, 2)), np.zeros(4)
        settings = dict(batch_size=None, order=None, steps_per_epoch=None, floatx="float32")
        tensors, _ = array_positions(data, "data", **settings)
    assert all(tensor.device.endswith("CPU:0") for tensor in tensors)
