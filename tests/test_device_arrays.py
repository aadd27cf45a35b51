import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

import aimp_tf
from aimp_tf.training.device_arrays import DeviceArrays
from aimp_tf.training.input_pipeline import Order, array_positions, in_batches

SETTINGS = dict(target_sparsity=0.6, rate=0.4, epochs=2, round_epochs=1, seed=0, verbose=0)
FIT_OPTIONS = {"batch_size": 24}


@pytest.fixture
def arrays():
    """Ten examples of many kinds of numbers: made up, of bits that are drawn, so that there may be NaN."""
    generator = np.random.default_rng(0)

    def numbers(dtype, *shape):
        return generator.integers(0, 256, (10, *shape, np.dtype(dtype).itemsize), "uint8").view(dtype)[..., 0]

    kinds = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "complex64")
    return {kind: numbers(kind, 3, 1) for kind in kinds}, (numbers("int32"), np.arange(10) > 4)


def on_device(*arrays_and_positions):
    return DeviceArrays(*arrays_and_positions, "CPU:1")


def gather(held, element):
    """What a train_step gets of an element of `held.batches`."""

    class Model:
        train_step = staticmethod(lambda data: data)

    model = Model()
    with held.gathering(model):
        return model.train_step(element)


@pytest.mark.parametrize("steps", [None, 4])
@pytest.mark.parametrize("floatx", ["float16", "bfloat16", "float64"])
def test_its_batches_are_those_of_the_host_bit_for_bit(arrays, floatx, steps):
    orders = Order(3), Order(3)
    for order in orders:
        order.begin(1, 2)
    here, there = (
        array_positions(arrays, "data", batch_size=4, order=order, steps_per_epoch=steps, floatx=floatx)
        for order in orders
    )
    held, plain = on_device(*here), in_batches(*there)
    assert held.batches.cardinality() == plain.cardinality()
    batches = list(zip(held.batches.take(4), plain.take(4), strict=True))
    assert len(batches) == (steps or 3)
    for element, batch in batches:
        gathered = gather(held, element)
        tf.nest.assert_same_structure(gathered, batch)
        for one, other in zip(tf.nest.flatten(gathered), tf.nest.flatten(batch), strict=True):
            assert one.dtype == other.dtype and one.shape == other.shape and one.device.endswith("CPU:1")
            assert one.numpy().tobytes() == other.numpy().tobytes()


def test_a_gpu_can_do_all_that_a_step_does_in_its_own_memory(arrays):
    """TensorFlow tells without a GPU, too, for what it has a GPU's kernel and what of it lies on the host."""

    def kernels_of(operation):
        return [
            kernel
            for kernel in kernels.get_registered_kernels_for_op(operation.type).kernel
            if kernel.device_type in ("GPU", "DEFAULT")
            and not {"params", "input", "output"} & set(kernel.host_memory_arg)
            and all(
                operation.node_def.attr[part.name].type in part.allowed_values.list.type for part in kernel.constraint
            )
        ]

    if all(kernel.device_type == "CPU" for kernel in kernels.get_registered_kernels_for_op("Gather").kernel):
        pytest.skip("This TensorFlow is built without GPUs.")
    held = on_device(*array_positions(arrays, "data"))
    traced = tf.function(lambda element: gather(held, element)).get_concrete_function(held.batches.element_spec)
    ends = {id(tensor.op) for tensor in (*traced.graph.inputs, *traced.graph.outputs)}
    operations = [operation for operation in traced.graph.get_operations() if id(operation) not in ends]
    gathers = [operation for operation in operations if operation.type == "ResourceGather"]
    assert len(gathers) == len(tf.nest.flatten(arrays))
    assert all(operation.device.endswith("CPU:1") for operation in gathers)
    assert [operation for operation in operations if not kernels_of(operation)] == []


@pytest.mark.slow
@pytest.mark.parametrize("compact_rounds", [False, True])
def test_a_run_on_it_is_the_same_bit_for_bit(K, make_mlp, blobs, compact_rounds):
    x, y = blobs
    results = []
    for data_on_device in (False, True):
        model = make_mlp(jit_compile=K.__name__ == "keras" and not compact_rounds)  # As Keras 3 does on a GPU.
        results.append(
            aimp_tf.prune(
                model,
                (x, y.astype("int32"), np.linspace(0, 1, len(x))),
                data_on_device=data_on_device,
                compact_rounds=compact_rounds,
                validation_data=(x, y),
                **FIT_OPTIONS,
                **SETTINGS,
            )
        )
    here, there = results
    assert [round_.metrics for round_ in here.rounds] == [round_.metrics for round_ in there.rounds]
    for one, other in zip(here.model.get_weights(), there.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not {"train_step", "_symbolic_build"} & vars(there.model).keys()
    before = there.model.get_weights()[0]
    there.model.fit(x, y, verbose=0)
    assert (there.model.get_weights()[0] != before).any(), "it takes other data again"


@pytest.mark.slow
def test_it_lies_where_the_model_does_lets_other_data_be_and_ends_with_the_run(K, make_mlp, blobs, monkeypatch):
    held, gathered_on, others = [], [], []
    gather_if_its_own = DeviceArrays._gathered

    def noting(self, data):
        batch = gather_if_its_own(self, data)
        if batch is not data:
            held.append(self)
            gathered_on.append(batch[0].device)
        return batch

    class OtherData(K.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            others.append(self.model.train_on_batch(*(part[:4] for part in blobs)))

    monkeypatch.setattr(DeviceArrays, "_gathered", noting)
    with tf.distribute.OneDeviceStrategy("CPU:1").scope():
        model = make_mlp()
    options = dict(**FIT_OPTIONS, callbacks=[OtherData()], **SETTINGS)
    result = aimp_tf.prune(model, blobs, data_on_device=True, **options)
    assert result.sparsity == pytest.approx(0.6, abs=0.01)
    assert len(others) == sum(round_.epochs for round_ in result.rounds)
    assert gathered_on and all(device.endswith("CPU:1") for device in gathered_on)
    assert [array.read_value().shape[0] for array in tf.nest.flatten(held[0]._held)] == [0, 0], (
        "or it would stay for good"
    )


def test_what_it_cannot_hold_is_refused_before_training(K, make_mlp, blobs, tmp_path, monkeypatch):
    x, y = blobs

    def refused(error, message, data=blobs, model=None, asked=True, **options):
        model = make_mlp() if model is None else model
        with pytest.raises(error, match=message):
            aimp_tf.prune(model, data, data_on_device=asked, **options, workdir=tmp_path / "run", **SETTINGS)
        assert model.optimizer.iterations.numpy() == 0 and not list(tmp_path.rglob("*.*"))

    refused(TypeError, "takes arrays x, y; got .*Dataset", tf.data.Dataset.from_tensors((x, y)))
    refused(ValueError, "Give each example its weight", class_weight={0: 1.0, 1: 2.0})
    refused(TypeError, "takes arrays of numbers; got one of dtype string", (x, y, np.array(["a"] * 64)))
    refused(TypeError, "must be True or False; got 'GPU:0'", asked="GPU:0")
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = make_mlp()
    refused(ValueError, "made under MirroredStrategy", model=model)
    plain = make_mlp()
    own = type("Own", (K.Model,), {"fit": lambda self, x, **options: K.Model.fit(self, x, **options)})
    own = own(plain.inputs, plain.outputs)
    own.compile("sgd", plain.loss)
    refused(ValueError, "which the fit of Own may not expect", model=own)
    empty = K.Sequential([K.Input((8,)), K.layers.Flatten()])
    empty.compile("sgd", "mse")
    refused(ValueError, "no prunable weights", model=empty)

    def failing(*arguments, **settings):
        # What TensorFlow says of an array that does not fit into a GPU's memory.
        raise tf.errors.InternalError(None, None, "Failed copying input tensor: Dst tensor is not initialized.")

    arrays_and_positions = array_positions(blobs, "data")
    monkeypatch.setattr(tf, "Variable", failing)
    with pytest.raises(ValueError, match="takes 2.56e-06 GB, which could not be copied into the memory of CPU:1"):
        on_device(*arrays_and_positions)
