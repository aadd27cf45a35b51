"""What a call of `prune` asks for: checked, and made ready."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.arguments import split_off
from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.mixed_precision import resolve_policy
from aimp_tf.compat.models import check_model, is_keras_own
from aimp_tf.config import PruningConfig
from aimp_tf.config.distillation import Distillation
from aimp_tf.config.texts import is_number
from aimp_tf.exporting import Target, export
from aimp_tf.files import checksum_of_arrays
from aimp_tf.graph.copies import rebuilt
from aimp_tf.graph.model_graph import ModelGraph
from aimp_tf.masking import Masks, select_prunable
from aimp_tf.reports.display import fit_verbose
from aimp_tf.runs.run_directory import RunDirectory
from aimp_tf.runs.run_files import check_workdir
from aimp_tf.runs.sameness import data_signature, model_signature
from aimp_tf.training.fitting import Fitting
from aimp_tf.training.other_callbacks import as_callbacks, check_for_rounds, check_monitors
from aimp_tf.training.teaching import Distilled, Teacher

DENSE = "dense"


@dataclasses.dataclass(eq=False, repr=False)
class Request:
    """A call of `prune`, whose settings are checked as far as that can be before its model is built. Writes nothing.

    Attributes:
        data: The training data, as `training_data` gives it.
        options: The arguments of `fit`.
        cluster: The workers of the model.
        validation_split, ...: As in `prune`.
        fitting: The data, and what else `fit` is called with.
        replaces: Whether what `export_to` names may be there already.
        taught_by: Its teacher, once it is known.

    Raises:
        TypeError, ValueError: As `prune`.
    """

    model: Any
    data: Any
    config: PruningConfig
    options: Mapping[str, Any]
    cluster: Cluster
    _: dataclasses.KW_ONLY
    validation_split: float
    validation_data: Any
    callbacks: Any
    masks: Masks
    teacher: Any
    workdir: str | os.PathLike[str] | None
    dense_baseline: bool | int
    export_to: str | os.PathLike[str] | None
    data_on_device: bool
    verbose: str | int
    overwrite: bool
    taught_by: Teacher | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        generation, cluster = check_model(self.model), self.cluster
        if self.validation_data is None:
            self.data, self.validation_data = split_off(self.data, self.validation_split)
        folder = check_workdir(self.workdir) if self.workdir is not None and cluster.chief else None
        callbacks, verbose = as_callbacks(self.callbacks, generation), fit_verbose(self.verbose)
        self.fitting = Fitting(
            self.data,
            self.validation_data,
            callbacks,
            self.options,
            verbose,
            self.config.seed,
            generation,
            cluster,
            steps_per_execution=self.model.steps_per_execution if generation == "keras" else 1,
        )
        # Where the run that is there goes on, or is done, it may be what this call wrote before.
        self.replaces = self.overwrite or folder is not None and os.path.lexists(folder / "signature.json")
        self.workdir = folder
        self._check()

    def _check(self) -> None:
        """Refuses what does not go together."""
        validated = self.validation_data is not None
        check_for_rounds(self.fitting.callbacks)
        if not validated:
            check_monitors(self.fitting.callbacks, self.model, None)
        if not isinstance(self.data_on_device, bool):
            raise TypeError(f"data_on_device must be True or False; got {self.data_on_device!r}.")
        if self.data_on_device:
            self.fitting.check_on_device(self.model)
        if isinstance(self.teacher, str) and self.teacher != DENSE:
            raise ValueError(
                f"teacher must be a Keras model or 'dense', the model of dense_baseline; got {self.teacher!r}."
            )
        if self.teacher == DENSE and self.dense_baseline is False:
            raise ValueError(
                "teacher='dense' is the model of dense_baseline, which is not trained. Write dense_baseline=True, or "
                "the number of its epochs, beside it."
            )
        _check_dense_baseline(self.dense_baseline, self.config, self.masks, validated)
        if self.cluster.size > 1 and (self.dense_baseline is not False or self.export_to is not None):
            raise ValueError(
                "dense_baseline and export_to are for one worker. Train the baseline by method='dense', and export "
                "what the chief has in workdir."
            )
        if self.export_to is not None:
            target, folder = Target.of(self.export_to), self.workdir
            if folder is not None and target.folder.resolve().is_relative_to(pathlib.Path(folder).resolve()):
                raise ValueError(
                    f"export_to {os.fspath(self.export_to)} lies in workdir, which the run writes itself. Name another."
                )
            target.check(self.replaces)

    def build(self) -> None:
        """Builds the model, and looks whether it takes the data."""
        # Here, so that what "auto" chose is what a run directory holds, and the same on all workers.
        policy = self.cluster.from_chief(resolve_policy(self.config.mixed_precision))
        self.config = self.config.replace(mixed_precision=policy)
        self.fitting.make_ready(self.model)

    def take_teacher(self, weights: Sequence[np.ndarray] | None) -> None:
        """Gets the teacher ready, be it a model or one with the weights of the dense baseline."""
        model = self.model
        self.taught_by = teacher_of(self.teacher, model) if weights is None else teacher_with(weights, model)
        if self.taught_by is not None:
            Distilled(self.taught_by, Distillation.of(self.config.distillation), model)  # Raises what it would later.
            # A step of one's own may give the model something else than the arrays have.
            if is_keras_own(type(model).train_step) and not Distillation.of(self.config.distillation).features:
                self.fitting.learn_from(self.taught_by)

    def try_export(self) -> None:
        """Exports the model as it is, to nowhere. Raises as `export`."""
        if self.export_to is not None:
            with tempfile.TemporaryDirectory() as folder:
                export(self.model, folder, list(Target.of(self.export_to).formats), verify=False)

    def take_directory(self, stack: contextlib.ExitStack) -> RunDirectory | None:
        """Locks the folder of the run until `stack` is left, and takes over the defaults that a run in it began with.

        All workers make sure that they were called with the same. None where there is no folder.
        """
        directory, kept, signature = None, {}, {}
        with self.cluster.as_one():
            if self.workdir is not None or self.cluster.size > 1:
                signature = self._signature()
            if self.workdir is not None:
                directory = stack.enter_context(
                    RunDirectory(self.workdir, self.config, signature, overwrite=self.overwrite)
                )
                kept = directory.keep_defaults()
        self.config = self.config.replace(**self.cluster.from_chief(kept))
        self.config.validate()
        # Shards that workers read on their own may differ in length.
        parts = {
            name: {**part, "batches": None} if isinstance(part, dict) else part for name, part in signature.items()
        }
        self.cluster.check_same(config=self.config.to_json(), **parts)
        return directory

    def _signature(self) -> dict[str, Any]:
        """What the run assumes of the model and the data: nested dicts as they come from JSON."""
        model, config, fitting = self.model, self.config, self.fitting
        signature: dict[str, Any] = {
            "model": model_signature(model, config.include, config.exclude),
            "data": data_signature(self.data, fitting.train, self.options),
        }
        if self.validation_data is not None:
            signature["validation_data"] = data_signature(self.validation_data, fitting.validation, {})
        if self.teacher is not None:
            signature["teacher"] = self.teacher
            if not isinstance(self.teacher, str):
                signature["teacher"] = checksum_of_arrays(map(np.asarray, self.teacher.get_weights()))
        if config.start == "trained" or self.masks is not None:
            weights = select_prunable(model, config.include, config.exclude)
            if config.start == "trained":
                signature["trained_weights"] = checksum_of_arrays(weights.values())
            if self.masks is not None:
                # The rounds follow from how much is pruned already.
                first = (weight != 0 for weight in weights.values())
                signature["masks"] = checksum_of_arrays(first if isinstance(self.masks, str) else self.masks.values())
        return signature


def _check_dense_baseline(dense_baseline: Any, config: PruningConfig, masks: Any, validated: bool) -> None:
    """Raises TypeError or ValueError where `dense_baseline` of `prune` is none, or there is nothing to compare with."""
    if not isinstance(dense_baseline, bool) and not is_number(dense_baseline, numbers.Integral):
        raise TypeError(f"dense_baseline must be True, False or a number of epochs; got {dense_baseline!r}.")
    if dense_baseline < 0:
        raise ValueError(f"dense_baseline must not be negative; got {dense_baseline}.")
    if dense_baseline is False:
        return
    if masks is not None or config.method == "dense":
        what = "the model is pruned already, by masks" if masks is not None else "method='dense' is that training"
        raise ValueError(f"There is no dense baseline to train: {what}. Leave out dense_baseline.")
    if not validated and (dense_baseline == 0 or dense_baseline is True and config.start == "trained"):
        # Epochs tell averages over the steps in which weights change, which an evaluation is not.
        raise ValueError(
            "A dense model that is evaluated as it comes can be compared with the pruned one on validation data alone. "
            "Give validation_data=(x_val, y_val) or validation_split=0.1, or leave out dense_baseline."
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
