"""How far what was exported is from the model that it was made of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.mixed_precision import computes_in_half_precision
from aimp_tf.compat.models import keras_generation, layers_of
from aimp_tf.exporting.fresh_process import use_in_fresh_process
from aimp_tf.exporting.inputs import arrange, input_specs, make_up
from aimp_tf.exporting.serving import infer, output_names
from aimp_tf.exporting.weights import weight_arrays

_BATCH_SIZE = 256
_TOLERANCE = 1e-4
_TOLERANCE_OF_HALF_PRECISION = 5e-2


def tolerance(model: Any) -> float:
    """How far outputs may be from those of a model, as a fraction of the largest, and count as the same.

    That is 1e-4, for float32 adds up in another order elsewhere, and 5e-2 where layers compute in half precision.
    """
    half = any(map(computes_in_half_precision, layers_of(model)))
    return _TOLERANCE_OF_HALF_PRECISION if half else _TOLERANCE


def differences(
    model: Any, artefacts: Sequence[tuple[str, str | os.PathLike[str]]], inputs: Any
) -> list[tuple[float, float]]:
    """Uses what a model was exported to in a fresh process, and compares what comes of it with the model's own outputs.

    Both compute on the CPU: a GPU may round to fewer digits.

    Args:
        model: A built model.
        artefacts: Kind, as in `use_in_fresh_process`, and path of each; "keras" stands for both generations.
        inputs: Arrays in the structure of the model's inputs. Not looked at if all the kinds are "weights".

    Returns:
        Of each artefact the maximum absolute difference, and the maximum as a fraction of an output's largest entry.

    Raises:
        RuntimeError: One cannot be used, or gives arrays of other names or shapes.
    """
    generation = keras_generation(model)
    artefacts = [(generation if kind == "keras" else kind, path) for kind, path in artefacts]
    if all(kind == "weights" for kind, _ in artefacts):
        expected: Mapping[str, np.ndarray] = {}
        found = use_in_fresh_process(artefacts)
    else:
        outputs = _outputs(model, inputs)
        expected = {str(position): output for position, output in enumerate(tf.nest.flatten(outputs))}
        input_names = [spec.name for spec in tf.nest.flatten(input_specs(model))]
        found = use_in_fresh_process(artefacts, inputs, input_names, output_names(outputs), _BATCH_SIZE)
    return [
        _compare(weight_arrays(model) if kind == "weights" else expected, arrays, path)
        for (kind, path), arrays in zip(artefacts, found, strict=True)
    ]


def largest_difference(model: Any, other: Any, inputs: Any = None) -> float:
    """The maximum absolute difference of the outputs of two models that take the same inputs, as `export` takes them.

    Without inputs it is that on made-up ones. Raises ValueError as `export`.
    """
    inputs = make_up(model) if inputs is None else arrange(inputs, model)
    outputs = [tf.nest.flatten(_outputs(one, inputs)) for one in (model, other)]
    return max(_difference(*pair) for pair in zip(*outputs, strict=True))


def _outputs(model: Any, inputs: Any) -> Any:
    count = len(tf.nest.flatten(inputs)[0])
    with tf.device("/CPU:0"):
        parts = [
            infer(model, tf.nest.map_structure(lambda array, at=start: array[at : at + _BATCH_SIZE], inputs))
            for start in range(0, count, _BATCH_SIZE)
        ]
    return tf.nest.map_structure(lambda *outputs: np.concatenate(outputs), *parts)


def _compare(
    expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], path: str | os.PathLike[str]
) -> tuple[float, float]:
    shapes = [{name: array.shape for name, array in arrays.items()} for arrays in (expected, found)]
    if shapes[0] != shapes[1]:
        raise RuntimeError(f"{path} gives {shapes[1]} in a fresh process; expected {shapes[0]}.")
    largest_difference = largest_fraction = 0.0
    for name, wanted in expected.items():
        difference = _difference(wanted, found[name])
        largest = float(np.max(np.abs(wanted), initial=0, where=np.isfinite(wanted)))
        largest_difference = max(largest_difference, difference)
        largest_fraction = max(largest_fraction, difference / (largest or 1.0))
    return largest_difference, largest_fraction


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """The largest; that of NaN or infinity to anything but the same is infinite."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(one - other)
    difference[(one == other) | (np.isnan(one) & np.isnan(other))] = 0
    return float(np.max(np.where(np.isnan(difference), np.inf, difference), initial=0))
