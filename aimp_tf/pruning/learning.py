"""The teacher of a run: the model that `prune` was given, or the dense baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aimp_tf.graph.copies import rebuilt
from aimp_tf.graph.model_graph import ModelGraph
from aimp_tf.training.teaching import Teacher

DENSE = "dense"


def check_teacher(teacher: Any, dense_baseline: bool | int) -> None:
    """Raises TypeError or ValueError where `teacher` of `prune` is neither a model, nor "dense" with a baseline."""
    if isinstance(teacher, str) and teacher != DENSE:
        raise ValueError(f"teacher must be a Keras model or 'dense', the model of dense_baseline; got {teacher!r}.")
    if teacher == DENSE and dense_baseline is False:
        raise ValueError(
            "teacher='dense' is the model of dense_baseline, which is not trained. Write dense_baseline=True, or the "
            "number of its epochs, beside it."
        )


def teacher_of(teacher: Any, model: Any) -> Teacher | None:
    """The teacher of a model: one that was given, or the model itself as it is, copied.

    Raises:
        TypeError, ValueError: As `Teacher`, or the model cannot be copied.
    """
    if teacher is None:
        return None
    if teacher != DENSE:
        return Teacher(teacher, model)
    try:
        return Teacher(rebuilt(ModelGraph.of(model))[0], model)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "teacher='dense' takes a functional or Sequential model whose layers can be copied. Train a model of your "
            f"own, and give teacher=model. The error was: {error}"
        ) from error


def teacher_with(weights: Sequence[np.ndarray], model: Any) -> Teacher | None:
    """`teacher_of` "dense", of a model that has these weights, in the order of `MaskedModel.snapshot`."""
    variables = [variable for variable in model.weights if hasattr(variable, "assign")]
    before = [np.array(variable) for variable in variables]
    try:
        for variable, value in zip(variables, weights, strict=True):
            variable.assign(value)
        return teacher_of(DENSE, model)
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
