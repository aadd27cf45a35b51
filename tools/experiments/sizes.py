"""How large the models of experiments are."""

from __future__ import annotations

import functools
import importlib
import math

from aimp_tf.graph.prunable import select_for
from aimp_tf.masking import what_is_masked
from experiments import datasets, models
from experiments.experiment import Experiment


def weight_count(experiment: Experiment) -> int:
    """Number of prunable weights of an experiment, or of what else its budget counts. The data is not loaded."""
    return _weight_count(
        experiment.architecture,
        experiment.dataset,
        tuple(experiment.pruning.include),
        tuple(experiment.pruning.exclude),
        experiment.pruning.granularity,
        experiment.pruning.budget,
    )


@functools.cache
def _weight_count(
    architecture: str, dataset: str, include: tuple[str, ...], exclude: tuple[str, ...], granularity: str, budget: str
) -> int:
    known = datasets.IMAGE_SETS[dataset]
    # Both generations of Keras have the same prunable weights.
    model = models.build(architecture, importlib.import_module("keras"), known.image_shape, known.classes)
    selection = select_for(granularity, model, include, exclude)
    variables, units = what_is_masked(model, selection, include, exclude, granularity, budget, 1)
    return units.total({path: math.prod(variable.shape) for path, variable in variables.items()})
