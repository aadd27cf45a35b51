"""What people would take instead: accuracy for the same epochs, and seconds an epoch beside a plain `fit`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from aimp_tf.compat.importing import import_with_tfmot
from aimp_tf.graph.prunable import named_weights
from aimp_tf.pruning import prune
from aimp_tf.reports.result import PruningResult
from benchmarks.networks import recipe_of
from benchmarks.side_by_side import spread_text, tell
from experiments import models
from experiments.datasets import ImageData
from experiments.experiment import Experiment
from experiments.run import accuracy_of, compiled_model, load_data, train_dense, weight_count
from experiments.study import planned_epochs
from experiments.study_report import percent_text

_EXPERIMENT = recipe_of("study_epochs", "resnet_8")

_Side = Callable[[Experiment, ImageData, int], Any]
"""Gives the model of an experiment after so many epochs, pruned or not."""


def run(
    repetitions: int,
    data_dir: str | os.PathLike[str] | None = None,
    experiment: Experiment = _EXPERIMENT,
) -> dict[str, Any]:
    """Prunes a network in several ways, from the same first weights and for as many epochs, beside plain fits.

    PQuantML prunes by PDP (Cho et al., NeurIPS 2023) and by continuous sparsification in rounds with rewinding
    (Savarese et al., NeurIPS 2020), by the settings that it comes with and without quantisation: its phases take the
    epochs in the proportions that they have there. It is left out where it is not installed.

    Returns:
        Side -> "accuracy" (of the test images), "sparsity", "seconds" (of wall time, an epoch, with tracing) and
        "ratio" (of these to those of a plain `fit` in the same generation of Keras), a list by seed each; and "epochs".
    """
    data = load_data(experiment, data_dir)
    epochs = planned_epochs(experiment, weight_count)
    sides: dict[tuple[str, str], _Side] = {
        ("keras", "plain fit"): _plain,
        ("keras", "AIMP"): _prune,
        ("keras", "gradual"): _prune_gradually,
        ("tf_keras", "plain fit"): _plain,
        ("tf_keras", "AIMP"): _prune,
        ("tf_keras", "tfmot"): _prune_with_tfmot,
    }
    installed = importlib.util.find_spec("pquant") is not None
    if installed:
        sides["keras", "PQuantML, PDP"] = _prune_by_pdp
        sides["keras", "PQuantML, rounds"] = _prune_by_continuous_sparsification
    figures: dict[str, dict[str, list[float]]] = {}
    for seed in range(repetitions):
        plain_seconds: dict[str, float] = {}
        for (keras, name), side in sides.items():
            seeded = dataclasses.replace(experiment, keras=keras, seed=seed)
            begun_at = time.perf_counter()
            model = side(seeded, data, epochs)
            seconds = (time.perf_counter() - begun_at) / epochs
            measured = {
                "accuracy": accuracy_of(model, data),
                "sparsity": _sparsity(model),
                "seconds": seconds,
                "ratio": seconds / plain_seconds.setdefault(keras, seconds),
            }
            tell(f"seed {seed}, {name} ({keras}): {', '.join(f'{key} {value:.4g}' for key, value in measured.items())}")
            of_side = figures.setdefault(f"{name} ({keras})", {key: [] for key in measured})
            for key, value in measured.items():
                of_side[key].append(value)
    lines = [f"{epochs} epochs of {experiment.architecture} on {experiment.dataset}, seeds 0 to {repetitions - 1}"]
    lines += [_line(name, of_side) for name, of_side in figures.items()]
    if not installed:
        lines.append("PQuantML is not installed, so it is not compared; the extra benchmark has it.")
    return {**figures, "epochs": epochs, "table": "\n".join(lines)}


def _line(name: str, figures: dict[str, list[float]]) -> str:
    return (
        f"{name:28}accuracy {percent_text(figures['accuracy']):16}sparsity {percent_text(figures['sparsity']):16}"
        f"{spread_text(figures['seconds'], ' s an epoch'):36}x {spread_text(figures['ratio'])} of plain fit"
    )


def _plain(experiment: Experiment, data: ImageData, epochs: int) -> Any:
    return train_dense(experiment, data, verbose=0, epochs=epochs)[0]


def pruned(experiment: Experiment, data: ImageData) -> PruningResult:
    """What `prune` makes of the model of an experiment, looking at no test images."""
    return prune(
        compiled_model(experiment, data),
        data.train_images,
        data.train_labels,
        config=experiment.pruning,
        batch_size=experiment.batch_size,
        seed=experiment.seed,
        verbose=0,
    )


def _prune(experiment: Experiment, data: ImageData, epochs: int) -> Any:
    return pruned(experiment, data).model


def _prune_gradually(experiment: Experiment, data: ImageData, epochs: int) -> Any:
    pruning = experiment.pruning.replace(method="gradual", epochs=epochs)
    return _prune(dataclasses.replace(experiment, pruning=pruning), data, epochs)


def _prune_with_tfmot(experiment: Experiment, data: ImageData, epochs: int) -> Any:
    model = compiled_model(experiment, data, epochs=epochs)
    stock_tfmot = import_with_tfmot("benchmarks.stock_tfmot")
    stock_tfmot.train_pruned(model, data, experiment.pruning.target_sparsity, experiment.batch_size, epochs)
    return model


def _prune_by_pdp(experiment: Experiment, data: ImageData, epochs: int) -> Any:
    from pquant import pdp_config

    config = pdp_config()
    phases, pruning = config.training_parameters, config.pruning_parameters
    share = epochs / (phases.pretraining_epochs + phases.epochs + phases.fine_tuning_epochs)
    # The sparsity rises by epsilon an epoch, which reaches the target after two thirds of them.
    pruning.epsilon *= phases.epochs
    phases.pretraining_epochs = max(1, round(share * phases.pretraining_epochs))
    phases.fine_tuning_epochs = max(1, round(share * phases.fine_tuning_epochs))
    phases.epochs = epochs - phases.pretraining_epochs - phases.fine_tuning_epochs
    pruning.epsilon /= phases.epochs
    pruning.sparsity = experiment.pruning.target_sparsity
    return _fit_pquant(config, experiment, data, epochs)


def _prune_by_continuous_sparsification(experiment: Experiment, data: ImageData, epochs: int) -> Any:
    from pquant import cs_config

    config = cs_config()
    phases = config.training_parameters
    phases.epochs = epochs // (phases.rounds + 1)
    phases.fine_tuning_epochs = epochs - phases.rounds * phases.epochs
    phases.save_weights_epoch = min(phases.save_weights_epoch, phases.epochs - 1)
    config.pruning_parameters.threshold_init = 0.0  # The sparsity follows from it, and cannot be asked for.
    return _fit_pquant(config, experiment, data, epochs)


def _fit_pquant(config: Any, experiment: Experiment, data: ImageData, epochs: int) -> Any:
    import keras
    from pquant.core.keras.layers import PQConv2d, PQDense
    from pquant.core.keras.train import PQuantCallback

    config.quantization_parameters.enable_quantization = False

    def dense(units: int, activation: str | None = None, **options: Any) -> Callable[[Any], Any]:
        layer = PQDense(config, units, quantize_input=False, **options)
        return lambda x: keras.layers.Activation(activation)(layer(x))

    def convolution(filters: int, kernel_size: int, strides: int = 1, **options: Any) -> Any:
        return PQConv2d(config, filters, kernel_size, quantize_input=False, strides=strides, **options)

    # Its add_compression_layers takes chains of layers alone, so its layers are put in place of Keras' from the first.
    layers = types.SimpleNamespace(**vars(keras.layers))
    layers.Conv2D = convolution
    layers.Dense = dense
    stand_in = types.SimpleNamespace(Input=keras.Input, Model=keras.Model, layers=layers)
    plain = compiled_model(experiment, data, epochs=epochs)
    model = models.build(experiment.architecture, stand_in, data.train_images.shape[1:], data.classes)
    for path, kernel in _kernels(plain).items():
        _kernels(model)[path].assign(kernel)
    model.compile(plain.optimizer, plain.loss, metrics=["accuracy"], steps_per_execution=experiment.steps_per_execution)
    model.fit(
        data.train_images,
        data.train_labels,
        batch_size=experiment.batch_size,
        epochs=epochs,
        callbacks=[PQuantCallback(config, log_ebops=False)],
        verbose=0,
    )
    return model


def _kernels(model: Any) -> dict[str, Any]:
    """Path -> variable of each kernel of an experiment's model, in either generation and in PQuantML's layers."""
    return {path: variable for path, variable in named_weights(model).items() if path.endswith("/kernel")}


def _sparsity(model: Any) -> float:
    kernels = [np.asarray(kernel) for kernel in _kernels(model).values()]
    return 1 - sum(map(np.count_nonzero, kernels)) / sum(kernel.size for kernel in kernels)
