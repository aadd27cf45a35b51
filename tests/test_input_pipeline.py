import numpy as np
import pytest
import tensorflow as tf

from aimp_tf.training.input_pipeline import (
    Order,
    array_dataset,
    array_positions,
    in_batches,
    prepare,
    without_autotuning,
)


def examples(dataset):
    return np.concatenate([batch[0].numpy() for batch in dataset])


def test_arrays_become_batches_with_the_remainder():
    dataset = prepare((np.arange(10), np.arange(10) * 2), "data", batch_size=4)
    assert [batch[0].numpy().tolist() for batch in dataset] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all((y == 2 * x).numpy().all() for x, y in dataset)
    assert len(list(prepare((np.arange(33), np.arange(33)), "data"))) == 2, "32 by default, as in fit"


def test_nested_arrays_and_sample_weights():
    data = ({"a": np.zeros((5, 2)), "b": (np.ones(5),)}, np.arange(5), np.full(5, 0.5))
    (x, y, weight), *_ = prepare(data, "data", batch_size=3)
    assert x["a"].shape == (3, 2) and x["b"][0].shape == (3,) and y.shape == weight.shape == (3,)


def test_floats_are_of_keras_float_type_as_in_fit():
    data = (np.zeros((4, 2), "float64"), np.zeros(4, "int64"), np.zeros(4, "float16"))
    assert [part.dtype for part in next(iter(prepare(data, "data")))] == [tf.float32, tf.int64, tf.float32]
    assert next(iter(prepare(data, "data", floatx="float64")))[0].dtype == tf.float64


def test_a_sample_weight_of_none_is_none():
    assert len(next(iter(prepare((np.zeros(4), np.zeros(4), None), "data")))) == 2


def test_the_order_is_a_function_of_seed_round_and_epoch():
    orders = {seed: Order(seed) for seed in (1, 1 + 2**63, 2, -1)}
    datasets = {seed: prepare((np.arange(50),) * 2, "data", order=order) for seed, order in orders.items()}

    def epoch(seed, *position):
        orders[seed].begin(*position)
        return tuple(examples(datasets[seed]))

    drawn = {position: epoch(1, *position) for position in ((0, 0), (0, 1), (1, 0), (1, 1))}
    assert len(set(drawn.values())) == 4 and all(sorted(order) == list(range(50)) for order in drawn.values())
    assert epoch(1, 0, 1) == epoch(1, 0, 1) == drawn[0, 1], "from any point, again"
    assert epoch(1 + 2**63, 0, 1) == drawn[0, 1], "seeds are taken modulo 2**63"
    assert len({epoch(seed, 0, 1) for seed in (1, 2, -1)}) == 3
    orders[2].seed = 1
    assert epoch(2, 0, 1) == drawn[0, 1]


def test_arrays_that_are_not_shuffled_keep_their_order():
    order = Order(1, shuffle=False)
    order.begin(1, 1)
    assert examples(prepare((np.arange(9),) * 2, "data", order=order)).tolist() == list(range(9))


def test_arrays_stay_on_the_host():
    """A GPU, on which TensorFlow puts what it is not told to put elsewhere, may have no room for them."""
    with tf.device("CPU:1"):
        arrays, _ = array_positions((np.zeros((4, 2)), np.zeros(4)), "data")
    assert all(array.device.endswith("CPU:0") for array in arrays)


@pytest.mark.parametrize("shuffle", [True, False])
def test_steps_per_epoch_read_arrays_without_end_from_any_epoch(shuffle):
    order = Order(1, shuffle=shuffle)
    dataset = in_batches(*array_positions((np.arange(10),) * 2, "data", batch_size=4, order=order, steps_per_epoch=3))
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    whole = examples(dataset.take(4 * 3))
    assert len(whole) == 4 * 12
    for first in range(0, 40, 10):
        assert sorted(whole[first : first + 10]) == list(range(10))
    for epoch in range(4):
        order.begin(0, epoch)
        np.testing.assert_array_equal(examples(dataset.take(3)), whole[12 * epoch : 12 * (epoch + 1)])


def test_an_array_dataset_draws_an_order_for_each_iteration():
    data = (np.arange(10), np.arange(10) * 2)
    datasets = [array_dataset(data, 4, seed=seed) for seed in (1, 1, 2)]
    assert all(dataset.cardinality() == 3 for dataset in datasets)
    first, same, other = ([tuple(examples(dataset)) for _ in range(3)] for dataset in datasets)
    assert first == same and len({*first, *other}) == 6
    assert all(sorted(order) == list(range(10)) for order in first)
    assert examples(array_dataset(data, 5, shuffle=False)).tolist() == list(range(10))
    assert len({tuple(examples(array_dataset(data))) for _ in range(4)}) > 1, "without a seed, one is drawn"
    for wrong, error in (((data, 0), ValueError), ((np.arange(10),), TypeError)):
        with pytest.raises(error, match="must be"):
            array_dataset(*wrong)


def test_a_fit_on_an_array_dataset_is_a_fit_on_arrays_in_its_order(K):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(10, 3)).astype(np.float32), generator.normal(size=(10, 1)).astype(np.float32)
    trained = []
    for in_order in (False, True):
        model = K.Sequential([K.Input((3,)), K.layers.Dense(1, kernel_initializer="ones")])
        model.compile("sgd", "mse")
        dataset = array_dataset((x, y), 4, seed=0)
        if in_order:
            for _ in range(2):
                batches = [[part.numpy() for part in batch] for batch in dataset]
                model.fit(*map(np.concatenate, zip(*batches, strict=True)), batch_size=4, shuffle=False, verbose=0)
        else:
            model.fit(dataset, epochs=2, verbose=0)
        trained.append(model.get_weights())
    for here, there in zip(*trained, strict=True):
        np.testing.assert_array_equal(here, there)


def test_autotuning_is_off_and_other_options_stay():
    """The thread that tunes a pipeline delays the end of every fit."""
    options = tf.data.Options()
    options.deterministic = True
    own = tf.data.Dataset.range(4).batch(2).with_options(options)
    for dataset in (without_autotuning(own), prepare(own, "data"), prepare((np.arange(4), np.arange(4)), "data")):
        assert dataset.options().autotune.enabled is False
    assert prepare(own, "data").options().deterministic is True


def test_datasets_of_keras_are_passed_on(K):
    base = getattr(K.utils, "PyDataset", None) or K.utils.Sequence

    class Batches(base):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return np.zeros((2, 3)), np.zeros(2)

    data = Batches()
    assert prepare(data, "data") is data


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (None, TypeError, "data must be a tf.data.Dataset.*got NoneType"),
        ((batch for batch in []), TypeError, "got generator. Every round reads it from the start"),
        (type("Endless", (), {"__getitem__": len})(), TypeError, "how many batches.*give Endless a method __len__"),
        (np.zeros((4, 2)), TypeError, "must hold inputs and targets.*got ndarray"),
        ([np.zeros(4), np.zeros(4)], TypeError, "must hold inputs and targets.*got list"),
        ((np.zeros(4),) * 4, TypeError, "got a tuple of 4"),
        ((np.zeros(4), object()), TypeError, "must be made of arrays; got object"),
        ((np.zeros(4), 3), TypeError, "got a number. A list is taken for several inputs"),
        ((np.zeros((4, 2)), np.zeros(5)), ValueError, r"got shapes \(4, 2\), \(5,\)"),
        ((np.zeros((0, 2)), np.zeros(0)), ValueError, "non-zero number of examples"),
    ],
)
def test_bad_data_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        prepare(data, "data")


def test_batch_size_of_batched_data_is_refused():
    with pytest.raises(ValueError, match="batched already.*leave out batch_size=8"):
        prepare(tf.data.Dataset.range(4).batch(2), "data", batch_size=8)
