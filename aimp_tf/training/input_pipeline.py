"""Training data that many short `fit` calls can read without waiting for tf.data's teardown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aimp_tf.config.texts import check_whole

DEFAULT_BATCH_SIZE = 32


class Order:
    """The order in which arrays are read: a function of a seed, the round and the epoch alone.

    So a run that was interrupted can go on in the middle, with the examples in the order that they would have had.

    Args:
        seed: The seed, a whole number; None draws one. Setting the attribute takes effect with the next `begin`.
        shuffle: Whether the order is drawn anew in each epoch; otherwise it is that of the arrays.
        goes_on: Whether each iterator begins the epoch after that of the one before it, with no need to call `begin`.
    """

    def __init__(self, seed: int | None, shuffle: bool = True, goes_on: bool = False) -> None:
        self.seed = (int(np.random.randint(2**31)) if seed is None else seed) % 2**63
        self.shuffle = shuffle
        self._goes_on = goes_on
        with tf.device("CPU:0"):  # Where tf.data reads it.
            self._position = tf.Variable([self.seed, 0, 0], dtype=tf.int64, trainable=False)

    def begin(self, round_index: int, epoch: int) -> None:
        """Says where an iterator that is made from now on begins."""
        self._position.assign([self.seed, round_index, epoch])

    def batches(self, length: int, batch_size: int, steps_per_epoch: int | None = None) -> tf.data.Dataset:
        """The positions 0 to `length` - 1 from the beginning of an epoch, as int64 vectors of `batch_size` or the rest.

        With `steps_per_epoch` vectors an epoch, the positions go on without end, each `length` of them in an order of
        their own. None ends them with the epoch.
        """

        def from_epoch(_: Any) -> tf.data.Dataset:
            seed, epoch = tf.split(self._next_position(), [2, 1])
            epoch = epoch[0]
            if steps_per_epoch is None:
                return _in_rows(self._permutation(length, seed, epoch), length, batch_size)
            begin = epoch * steps_per_epoch * batch_size
            first = begin // length
            return tf.data.Dataset.range(first, tf.int64.max).flat_map(
                lambda pass_: tf.data.Dataset.from_tensor_slices(
                    self._permutation(length, seed, pass_)[tf.where(pass_ == first, begin % length, 0) :]
                )
            )

        batches, count = tf.data.Dataset.from_tensors(0).flat_map(from_epoch), -(-length // batch_size)
        if steps_per_epoch is not None:
            batches, count = batches.batch(batch_size), tf.data.INFINITE_CARDINALITY
        return batches.apply(tf.data.experimental.assert_cardinality(count))

    def _next_position(self) -> tf.Tensor:
        if not self._goes_on:
            return self._position.read_value()
        return self._position.assign_add([0, 0, 1]) - [0, 0, 1]

    def _permutation(self, length: int, seed: tf.Tensor, pass_: tf.Tensor) -> tf.Tensor:
        positions = tf.range(length, dtype=tf.int64)
        if not self.shuffle:
            return positions
        seed = tf.random.experimental.stateless_fold_in(seed, pass_, alg="philox")
        return tf.random.experimental.stateless_shuffle(positions, seed, alg="philox")


def prepare(
    data: Any,
    name: str,
    *,
    batch_size: int | None = None,
    order: Order | None = None,
    floatx: str = "float32",
    least_batch: int = 1,
) -> Any:
    """What `fit` is to read in place of `data`.

    tf.data tunes a pipeline in a thread whose sleep doubles up to a minute, and the end of an iterator waits for it; a
    run of short fits pays for that every time. Datasets get that thread switched off. Arrays become such a dataset.
    What Keras reads otherwise, a PyDataset or Sequence, is passed on.

    Args:
        data: A tf.data.Dataset of batches, a tuple (x,), (x, y) or (x, y, sample_weight) of arrays or of nested dicts
            and tuples of arrays with the same first dimension, or anything with a length that `fit` reads.
        name: What to call it in errors.
        batch_size: For arrays; None is 32, as in `fit`. It must be None for anything else.
        order: The order in which arrays are read; None is their own.
        floatx: Keras' float type, to which arrays of other float types are cast, as `fit` does.
        least_batch: How many examples every batch made of arrays must have.

    Raises:
        TypeError: `data` is something that cannot be read again for each round, such as a generator.
        ValueError: Arrays are empty or differ in their first dimension, `batch_size` is given for batched data, or a
            batch would have fewer examples than `least_batch`.
    """
    if isinstance(data, tuple):
        return in_batches(
            *array_positions(data, name, batch_size=batch_size, order=order, floatx=floatx, least_batch=least_batch)
        )
    if hasattr(data, "__getitem__") and not hasattr(data, "__len__"):
        raise TypeError(
            f"{name} does not tell how many batches an epoch has: give {type(data).__name__} a method __len__."
        )
    if isinstance(data, Iterator) or not hasattr(data, "__len__") and not isinstance(data, tf.data.Dataset):
        raise TypeError(
            f"{name} must be a tf.data.Dataset, a tuple (x, y) or (x, y, sample_weight) of arrays, or a PyDataset; got "
            f"{type(data).__name__}. Every round reads it from the start, which a generator does not allow: write "
            "tf.data.Dataset.from_generator(function, output_signature=...)."
        )
    if isinstance(data, (list, dict, str, np.ndarray, tf.Tensor)):
        raise TypeError(
            f"{name} must hold inputs and targets, as a tuple (x, y) or (x, y, sample_weight); got "
            f"{type(data).__name__}."
        )
    if batch_size is not None:
        argument = "validation_batch_size" if name == "validation_data" else "batch_size"
        raise ValueError(f"{name} is batched already ({type(data).__name__}); leave out {argument}={batch_size}.")
    return without_autotuning(data) if isinstance(data, tf.data.Dataset) else data


def array_positions(
    data: tuple,
    name: str,
    *,
    batch_size: int | None = None,
    order: Order | None = None,
    steps_per_epoch: int | None = None,
    floatx: str = "float32",
    least_batch: int = 1,
) -> tuple[tuple, tf.data.Dataset]:
    """Arrays as tensors in the host's memory, and the positions of the examples in each batch, a dataset of int64.

    It takes and raises what `prepare` does; with `steps_per_epoch`, as in `fit`, the batches go on without end.
    """
    tensors, batch_size = _as_tensors(data, name, floatx), batch_size or DEFAULT_BATCH_SIZE
    length = int(tf.nest.flatten(tensors)[0].shape[0])
    smallest = batch_size if steps_per_epoch else length % batch_size or batch_size
    if smallest < least_batch:
        raise ValueError(
            f"{name} has {length} examples, which leaves {smallest} in the last batch of {batch_size}: too few for "
            f"{least_batch} replicas to have one each. Take another batch_size, or leave some examples out."
        )
    order = order or Order(0, shuffle=False)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    # Each iterator would copy the arrays to rewrite a graph in which there is nothing to better.
    options.experimental_optimization.apply_default_optimizations = False
    positions = order.batches(length, batch_size, steps_per_epoch).with_options(options)
    return tensors, without_autotuning(positions)


def in_batches(arrays: Any, positions: tf.data.Dataset) -> tf.data.Dataset:
    """The batches that `array_positions` gives the positions of, gathered in the host's memory while `fit` trains."""
    return positions.map(
        lambda chosen: tf.nest.map_structure(lambda tensor: tf.gather(tensor, chosen), arrays),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).prefetch(2)


def array_dataset(
    data: tuple, batch_size: int = DEFAULT_BATCH_SIZE, *, shuffle: bool = True, seed: int | None = None
) -> tf.data.Dataset:
    """A dataset of arrays for `fit`, made for many short fits.

    `prune` makes the same kind by itself; this is for a loop of your own. The arrays are held once, in memory; the next
    batches are gathered while the model trains, and no fit waits for the tuning thread of tf.data to wake up.

    Args:
        data: (x,), (x, y) or (x, y, sample_weight), of arrays or of nested dicts and tuples of arrays with the same
            first dimension.
        batch_size: Examples a batch; the last one has the rest.
        shuffle: Whether each iteration, and so each epoch, reads all examples in an order of its own.
        seed: Of the orders: with the same seed, the first iteration reads in the same order, and so does each after it.
            None draws one.

    Returns:
        A dataset of batches that ends with the epoch. Floating-point arrays have Keras' float type, as in `fit`.

    Raises:
        TypeError: `data` is no such tuple, or `batch_size` no whole number.
        ValueError: Arrays are empty or differ in their first dimension, or `batch_size` is below 1.

    Example:
        ```python
        dataset = aimp_tf.array_dataset((x, y), batch_size=128)
        while not pruning.finished:
            masked.fit(dataset, epochs=pruning.next_epochs, callbacks=[pruning])
        ```
    """
    if not isinstance(data, tuple):
        raise TypeError(f"data must be a tuple (x, y) or (x, y, sample_weight) of arrays; got {type(data).__name__}.")
    check_whole("batch_size", batch_size)
    order = Order(seed, shuffle, goes_on=True)
    return prepare(data, "data", batch_size=batch_size, order=order, floatx=keras.backend.floatx())


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same dataset, with tf.data's tuning thread switched off. Parallel calls marked AUTOTUNE stay parallel."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def batch_count(data: Any) -> int:
    """Batches of what `prepare` gave; negative where a Dataset does not tell or has no end."""
    return int(data.cardinality()) if isinstance(data, tf.data.Dataset) else len(data)


def spec_of(data: Any) -> str:
    """The dtypes and shapes of a dataset's batches, or the type of another kind of data."""
    if not isinstance(data, tf.data.Dataset):
        return f"batches of a {type(data).__name__}"
    parts = tf.nest.map_structure(lambda spec: f"{spec.dtype.name}{list(spec.shape)}", data.element_spec)
    return str(parts).replace("'", "")


def _as_tensors(arrays: tuple, name: str, floatx: str) -> tuple:
    """The same structure of tensors, checked."""
    if len(arrays) == 3 and arrays[2] is None:
        arrays = arrays[:2]
    if not 1 <= len(arrays) <= 3:
        raise TypeError(f"{name} must be a tuple (x, y) or (x, y, sample_weight); got a tuple of {len(arrays)}.")

    def as_tensor(array: Any) -> tf.Tensor:
        try:
            tensor = tf.convert_to_tensor(array)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be made of arrays; got {type(array).__name__}: {error}") from error
        return tf.cast(tensor, floatx) if tensor.dtype.is_floating else tensor

    with tf.device("CPU:0"):  # Where tf.data reads them; a GPU may have no room.
        tensors = tf.nest.map_structure(as_tensor, _lists_as_tuples(arrays))
    flat = tf.nest.flatten(tensors)
    if any(tensor.shape.rank == 0 for tensor in flat):
        raise TypeError(
            f"{name} must be made of arrays whose first dimension counts examples; got a number. A list is taken for "
            "several inputs or outputs: write np.asarray(x) for a list of numbers."
        )
    lengths = {int(tensor.shape[0]) for tensor in flat}
    if len(lengths) != 1 or 0 in lengths:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in flat)
        raise ValueError(f"{name} must hold arrays with the same, non-zero number of examples; got shapes {shapes}.")
    return tensors


def _in_rows(positions: tf.Tensor, length: int, batch_size: int) -> tf.data.Dataset:
    """A vector in parts of `batch_size`, and the rest: a fraction of the time that batching its elements takes."""
    whole = length - length % batch_size
    rows = tf.data.Dataset.from_tensor_slices(tf.reshape(positions[:whole], [-1, batch_size]))
    return rows.concatenate(tf.data.Dataset.from_tensors(positions[whole:])) if whole < length else rows


def _lists_as_tuples(data: Any) -> Any:
    """tf.data would stack a list of arrays into one."""
    if isinstance(data, (list, tuple)) and not hasattr(data, "_fields"):
        return tuple(_lists_as_tuples(part) for part in data)
    if isinstance(data, dict):
        return {name: _lists_as_tuples(part) for name, part in data.items()}
    return data
