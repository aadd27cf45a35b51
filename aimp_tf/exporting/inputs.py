"""What a built Keras model of either generation takes, and arrays to give it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.functional import declared_inputs, plain
from aimp_tf.compat.models import check_built

_HALF_PRECISION = (tf.float16, tf.bfloat16)
_MADE_UP_EXAMPLES = 32


def input_specs(model: Any) -> Any:
    """The inputs of a built model, as tf.TensorSpecs in their structure, each with a name of its own.

    The first axis, the batch, is None.

    Raises:
        ValueError: The model is not built, was never called, or takes several arguments.
    """
    structure = _declared(model)
    specs: dict[str, tf.TensorSpec] = {}
    for path, tensor in with_paths(structure):
        name = base = re.sub(r"\W", "_", getattr(tensor, "name", None) or "_".join(map(str, path)) or "inputs")
        while name in specs:
            name = f"{base}_{len(specs)}"
        specs[name] = tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name)
    return tf.nest.pack_sequence_as(structure, list(specs.values()))


def arrange(inputs: Any, model: Any) -> Any:
    """Inputs as a person gives them, in the structure, order and dtypes that the model declares.

    Args:
        inputs: An array for a model with one input; for one with several, a list or tuple in the order in which the
            model takes them, the structure itself, or a dict by their names. Examples lie along the first axis.
        model: A built model.

    Raises:
        ValueError: They are not inputs of the model, or differ in length, or are empty.
    """
    specs = input_specs(model)
    flat = tf.nest.flatten(specs)
    expected = f"The model {model.name!r} takes {', '.join(map(_describe, flat))}"
    names = [getattr(tensor, "name", None) for _, tensor in with_paths(_declared(model))]
    leaves = _leaves(plain(inputs), specs, names)
    if leaves is None:
        raise ValueError(f"{expected}; got a dict of {', '.join(map(repr, inputs))}. Give it by these names.")
    if len(leaves) != len(flat):
        raise ValueError(f"{expected}; got {len(leaves)} arrays as inputs.")
    arrays: list[np.ndarray] = []
    for leaf, spec in zip(leaves, flat, strict=True):
        try:
            array = np.asarray(leaf)
            fits = spec.shape.is_compatible_with(array.shape)
            if spec.dtype == tf.string:  # As bytes, for npz knows no texts of any length.
                array = np.char.encode(array.astype(str), "utf-8")
            elif fits:
                array = array.astype(widened(spec.dtype).as_numpy_dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{expected}; got {type(leaf).__name__} as inputs.") from error
        if not fits or not len(array) or len(array) != len(arrays[0] if arrays else array):
            came = f"{array.dtype}{list(array.shape)}" + (f" after {len(arrays[0])} examples" if arrays else "")
            raise ValueError(f"{expected}, as many examples of each and at least one; got {came} for {spec.name}.")
        arrays.append(array)
    return tf.nest.pack_sequence_as(specs, arrays)


def _declared(model: Any) -> Any:
    """The inputs of a built model in their structure. Raises as `input_specs`."""
    check_built(model)
    structure = plain(declared_inputs(model))
    return structure[0] if isinstance(structure, list) and len(structure) == 1 else structure


def _leaves(given: Any, specs: Any, names: list[str | None]) -> list[Any] | None:
    """What is given for each of the specs, flat, if that fits; None for a dict of other keys than their names, be it as
    the model declares these or as they are in its signature."""
    if isinstance(given, dict):
        found = dict(with_paths(given))
        if found.keys() == dict(with_paths(specs)).keys():
            return list(found.values())
        for known in ([spec.name for spec in tf.nest.flatten(specs)], names):
            if given.keys() == set(known):
                return [given[name] for name in known]
        return None
    nested = isinstance(given, (list, tuple)) and isinstance(specs, (dict, list, tuple))
    return [leaf for _, leaf in with_paths(given)] if nested else [given]


def make_up(model: Any, length: int = 8) -> Any:
    """Inputs of the shapes that a built model declares: normal numbers, and zeros and ones where it takes integers.

    An axis of any length is given this one.

    Raises:
        ValueError: The model takes something other than numbers.
    """
    rng = np.random.default_rng(0)

    def draw(spec: tf.TensorSpec) -> np.ndarray:
        shape = [_MADE_UP_EXAMPLES, *(size or length for size in spec.shape[1:])]
        if spec.dtype.is_floating:
            return rng.normal(size=shape).astype(widened(spec.dtype).as_numpy_dtype)
        if spec.dtype.is_integer or spec.dtype.is_bool:
            return rng.integers(0, 2, shape).astype(spec.dtype.as_numpy_dtype)
        raise ValueError(
            f"The model {model.name!r} takes {_describe(spec)}, for which nothing can be made up: give inputs."
        )

    return tf.nest.map_structure(draw, input_specs(model))


def with_paths(structure: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """What is in a plain structure, and where, in the order of `tf.nest.flatten`."""
    if isinstance(structure, dict):
        for key in sorted(structure):
            yield from with_paths(structure[key], (*path, key))
    elif isinstance(structure, (list, tuple)):
        for position, item in enumerate(structure):
            yield from with_paths(item, (*path, position))
    else:
        yield path, structure


def widened(dtype: Any) -> tf.DType:
    """float32 for half precision; others as they are."""
    return tf.float32 if dtype in _HALF_PRECISION else tf.as_dtype(dtype)


def _describe(spec: tf.TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype.name}{spec.shape.as_list()}"
