"""How large the models of experiments are."""

from __future__ import annotations

import functools
import importlib
import math

from aimp_tf.graph.groups import select_units
from experiments import datasets, models
from experiments.experiment import Experiment


def weight_count(experiment: Experiment) -> int:
    """Number of prunable weights of an experiment, or of what else its budget counts. The data is not loaded."""
    return _weight_count(*experiment.counted_by)


@functools.cache
def _weight_count(
    architecture: str, dataset: str, include: tuple[str, ...], exclude: tuple[str, ...], granularity: str, budget: str
) -> int:
    known = datasets.IMAGE_SETS[dataset]
    # Both generations of Keras have the same prunable weights.
    model = models.build(architecture, importlib.import_module("keras"), known.image_shape, known.classes)
    selection = select_units(granularity, model, include, exclude, budget=budget)
    return selection.units.total({path: math.prod(variable.shape) for path, variable in selection.variables.items()})
