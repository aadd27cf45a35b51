"""Training data that many short `fit` calls can read without waiting for tf.data's teardown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

DEFAULT_BATCH_SIZE = 32


def prepare(
    data: Any,
    name: str,
    *,
    batch_size: int | None = None,
    shuffle: bool = False,
    repeat: bool = False,
    seed: int | None = None,
    floatx: str = "float32",
) -> Any:
    """What `fit` is to read in place of `data`.

    tf.data tunes a pipeline in a thread whose sleep doubles up to a minute, and the end of an iterator waits for it; a
    run of short fits pays for that every time. Datasets get that thread switched off. Arrays become such a dataset.
    What Keras reads otherwise, a PyDataset or Sequence, is passed on.

    Args:
        data: A tf.data.Dataset of batches, a tuple (x, y) or (x, y, sample_weight) of arrays or of nested dicts and
            tuples of arrays with the same first dimension, or anything with a length that `fit` reads.
        name: What to call it in errors.
        batch_size: For arrays; None is 32, as in `fit`. It must be None for anything else.
        shuffle: Whether arrays are shuffled, anew in each epoch.
        repeat: Whether arrays go on without end, as `steps_per_epoch` needs.
        seed: Seed of the shuffling.
        floatx: Keras' float type, to which arrays of other float types are cast, as `fit` does.

    Raises:
        TypeError: `data` is something that cannot be read again for each round, such as a generator.
        ValueError: Arrays are empty or differ in their first dimension, or `batch_size` is given for batched data.
    """
    if isinstance(data, tuple):
        return _from_arrays(_as_tensors(data, name, floatx), batch_size or DEFAULT_BATCH_SIZE, shuffle, repeat, seed)
    if isinstance(data, Iterator) or not hasattr(data, "__len__") and not isinstance(data, tf.data.Dataset):
        raise TypeError(
            f"{name} must be a tf.data.Dataset, a tuple (x, y) or (x, y, sample_weight) of arrays, or a PyDataset; got "
            f"{type(data).__name__}. Every round reads it from the start, which a generator does not allow."
        )
    if isinstance(data, (list, dict, str, np.ndarray, tf.Tensor)):
        raise TypeError(
            f"{name} must hold inputs and targets, as a tuple (x, y) or (x, y, sample_weight); got "
            f"{type(data).__name__}."
        )
    if batch_size is not None:
        raise ValueError(f"{name} is batched already ({type(data).__name__}); leave out batch_size={batch_size}.")
    return without_autotuning(data) if isinstance(data, tf.data.Dataset) else data


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same dataset, with tf.data's tuning thread switched off. Parallel calls marked AUTOTUNE stay parallel."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _as_tensors(arrays: tuple, name: str, floatx: str) -> tuple:
    """The same structure of tensors, checked."""
    if len(arrays) == 3 and arrays[2] is None:
        arrays = arrays[:2]
    if not 2 <= len(arrays) <= 3:
        raise TypeError(f"{name} must be a tuple (x, y) or (x, y, sample_weight); got a tuple of {len(arrays)}.")

    def as_tensor(array: Any) -> tf.Tensor:
        try:
            tensor = tf.convert_to_tensor(array)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{name} must be made of arrays; got {type(array).__name__}: {error}") from error
        return tf.cast(tensor, floatx) if tensor.dtype.is_floating else tensor

    tensors = tf.nest.map_structure(as_tensor, _lists_as_tuples(arrays))
    flat = tf.nest.flatten(tensors)
    if any(tensor.shape.rank == 0 for tensor in flat):
        raise TypeError(
            f"{name} must be made of arrays whose first dimension counts examples; got a number. A list is taken for "
            "several inputs or outputs: make an array of a list of numbers."
        )
    lengths = {int(tensor.shape[0]) for tensor in flat}
    if len(lengths) != 1 or 0 in lengths:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in flat)
        raise ValueError(f"{name} must hold arrays with the same, non-zero number of examples; got shapes {shapes}.")
    return tensors


def _from_arrays(tensors: tuple, batch_size: int, shuffle: bool, repeat: bool, seed: int | None) -> tf.data.Dataset:
    length = int(tf.nest.flatten(tensors)[0].shape[0])
    positions = tf.data.Dataset.range(length)
    if shuffle:
        positions = positions.shuffle(length, seed=seed, reshuffle_each_iteration=True)
    if repeat:
        positions = positions.repeat()
    batches = positions.batch(batch_size).map(
        lambda chosen: tf.nest.map_structure(lambda tensor: tf.gather(tensor, chosen), tensors)
    )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return without_autotuning(batches.prefetch(2).with_options(options))


def _lists_as_tuples(data: Any) -> Any:
    """tf.data would stack a list of arrays into one."""
    if isinstance(data, (list, tuple)) and not hasattr(data, "_fields"):
        return tuple(_lists_as_tuples(part) for part in data)
    if isinstance(data, dict):
        return {name: _lists_as_tuples(part) for name, part in data.items()}
    return data
