"""What a built Keras model of either generation takes, and arrays to give it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import check_built, keras_generation

_HALF_PRECISION = (tf.float16, tf.bfloat16)
_MADE_UP_EXAMPLES = 32
_MADE_UP_LENGTH = 8


def input_specs(model: Any) -> Any:
    """The inputs of a built model, as tf.TensorSpecs in their structure, each with a name of its own.

    The first axis, the batch, is None.

    Raises:
        ValueError: The model is not built, was never called, or takes several arguments.
    """
    check_built(model)
    structure = plain(_declared_inputs(model))
    if isinstance(structure, list) and len(structure) == 1:
        [structure] = structure
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
            model takes them, a dict by their names, or the structure itself. Examples lie along the first axis.
        model: A built model.

    Raises:
        ValueError: They are not inputs of the model, or differ in length, or are empty.
    """
    specs = input_specs(model)
    flat = tf.nest.flatten(specs)
    expected = f"The model {model.name!r} takes {', '.join(map(_describe, flat))}"
    given = plain(inputs)
    if isinstance(given, dict) and set(given) == {spec.name for spec in flat}:
        leaves = [given[spec.name] for spec in flat]
    elif isinstance(given, (dict, list, tuple)) and isinstance(specs, (dict, list, tuple)):
        leaves = [leaf for _, leaf in with_paths(given)]
    else:
        leaves = [given]
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


def make_up(model: Any) -> Any:
    """Inputs of the shapes that a built model declares: normal numbers, and zeros and ones where it takes integers.

    An axis of any length is given a length of 8.

    Raises:
        ValueError: The model takes something other than numbers.
    """
    rng = np.random.default_rng(0)

    def draw(spec: tf.TensorSpec) -> np.ndarray:
        shape = [_MADE_UP_EXAMPLES, *(size or _MADE_UP_LENGTH for size in spec.shape[1:])]
        if spec.dtype.is_floating:
            return rng.normal(size=shape).astype(widened(spec.dtype).as_numpy_dtype)
        if spec.dtype.is_integer or spec.dtype.is_bool:
            return rng.integers(0, 2, shape).astype(spec.dtype.as_numpy_dtype)
        raise ValueError(
            f"The model {model.name!r} takes {_describe(spec)}, for which nothing can be made up: give inputs."
        )

    return tf.nest.map_structure(draw, input_specs(model))


def plain(structure: Any) -> Any:
    """The structure in Python's own dicts, lists and tuples, where Keras may have put others."""
    if isinstance(structure, Mapping):
        return {key: plain(item) for key, item in structure.items()}
    if isinstance(structure, (list, tuple)):
        return (list if isinstance(structure, list) else tuple)(map(plain, structure))
    return structure


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


def _declared_inputs(model: Any) -> Any:
    """The inputs in their structure, each with a shape and a dtype and, where it has one, a name."""
    if keras_generation(model) == "tf_keras":
        if (nested := getattr(model, "_nested_inputs", None)) is not None:
            return nested
        if model.save_spec() is None:
            raise ValueError(
                f"The model {model.name!r} was never called, and so does not know its inputs. Call it on a batch of "
                "data before it is exported."
            )
        arguments = [*model.save_spec()[0], *model.save_spec()[1].values()]
    else:
        if (structure := getattr(model, "_inputs_struct", None)) is not None:
            return structure
        if getattr(model, "inputs", None):
            return model.inputs
        shapes = plain(getattr(model, "_build_shapes_dict", None)) or {}
        arguments = [_of_shapes(shape, model.input_dtype) for shape in shapes.values()]
    if len(arguments) != 1:
        raise ValueError(
            f"The model {model.name!r} takes {len(arguments)} arguments; expected one. Have it take its tensors as a "
            "list or dict."
        )
    return arguments[0]


def _of_shapes(shapes: Any, dtype: str) -> Any:
    """A structure of shapes as one of tensor specs."""
    if isinstance(shapes, dict):
        return {key: _of_shapes(shape, dtype) for key, shape in shapes.items()}
    if all(size is None or isinstance(size, int) for size in shapes):
        return tf.TensorSpec(shapes, dtype)
    return type(shapes)(_of_shapes(shape, dtype) for shape in shapes)


def _describe(spec: tf.TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype.name}{spec.shape.as_list()}"
