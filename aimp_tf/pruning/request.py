"""What a call of `prune` asks for: checked, and made ready."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.arguments import config_of, sort_arguments, split_off, training_data
from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.models import check_model
from aimp_tf.compat.precision import resolve_policy
from aimp_tf.config import PruningConfig
from aimp_tf.config.distillation import Distillation
from aimp_tf.exporting import Target, export
from aimp_tf.files import checksum_of_arrays
from aimp_tf.masking import Masks, select_prunable
from aimp_tf.pruning.dense_baseline import check_dense_baseline
from aimp_tf.pruning.learning import check_teacher, teacher_of, teacher_with
from aimp_tf.reports.display import fit_verbose
from aimp_tf.runs.run_directory import RunDirectory
from aimp_tf.runs.run_files import check_workdir
from aimp_tf.runs.sameness import data_signature, model_signature
from aimp_tf.training.fitting import Fitting
from aimp_tf.training.other_callbacks import as_callbacks, check_for_rounds, check_monitors
from aimp_tf.training.teaching import Distilled, Teacher


class Request:
    """A call of `prune`, whose settings are checked as far as that can be before its model is built. Writes nothing.

    Args:
        call: What was called.
        model: Its model.
        data: Its x, y and sample_weight.
        config: Its config.
        settings: Fields of a config and arguments of `fit`.
        cluster: The workers of the model.
        validation_split, ...: As in `prune`.

    Attributes:
        config: What to do.
        data: The training data, as `training_data` gives it.
        fitting: The data, and what else `fit` is called with.
        options: The arguments of `fit`.
        replaces: Whether what `export_to` names may be there already.
        taught_by: Its teacher, once it is known.

    Raises:
        TypeError, ValueError: As `prune`.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        model: Any,
        data: tuple[Any, Any, Any],
        config: PruningConfig | None,
        settings: Mapping[str, Any],
        cluster: Cluster,
        *,
        validation_split: float,
        validation_data: Any,
        callbacks: Any,
        masks: Masks,
        teacher: Any,
        workdir: str | os.PathLike[str] | None,
        dense_baseline: bool | int,
        export_to: str | os.PathLike[str] | None,
        data_on_device: bool,
        verbose: str | int,
        overwrite: bool,
    ) -> None:
        self.model, self.masks, self.teacher, self.cluster = model, masks, teacher, cluster
        self.dense_baseline, self.export_to, self.data_on_device = dense_baseline, export_to, data_on_device
        self.verbose, self.overwrite = verbose, overwrite
        self.taught_by: Teacher | None = None
        fields, self.options = sort_arguments(call, settings, model)
        self.data = training_data(call.__name__, model, *data)
        self.config = config_of(config, fields)
        generation = check_model(model)
        if validation_data is None:
            self.data, validation_data = split_off(self.data, validation_split)
        self.validation_data = validation_data
        folder = self.workdir = check_workdir(workdir) if workdir is not None and cluster.chief else None
        callbacks, seed = as_callbacks(callbacks, generation), self.config.seed
        self.fitting = Fitting(
            self.data, validation_data, callbacks, self.options, fit_verbose(verbose), seed, generation, cluster
        )
        # Where the run that is there goes on, or is done, it may be what this call wrote before.
        self.replaces = overwrite or folder is not None and os.path.lexists(folder / "signature.json")
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
        check_teacher(self.teacher, self.dense_baseline)
        check_dense_baseline(self.dense_baseline, self.config, self.masks, validated)
        if self.cluster.size > 1 and (self.dense_baseline is not False or self.export_to is not None):
            raise ValueError(
                "dense_baseline and export_to are for one worker. Train the baseline by method='dense', and export "
                "what the chief has in workdir."
            )
        if self.export_to is not None:
            _check_target(self.export_to, self.workdir, self.replaces)

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
            if not Distillation.of(self.config.distillation).features:
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
        if self.cluster.size > 1:
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


def _check_target(export_to: str | os.PathLike[str], workdir: str | os.PathLike[str] | None, replaces: bool) -> None:
    """Raises ValueError where `export` could not write there, or would write into the folder of the run."""
    target = Target.of(export_to)
    if workdir is not None and target.folder.resolve().is_relative_to(pathlib.Path(workdir).resolve()):
        raise ValueError(
            f"export_to {os.fspath(export_to)} lies in workdir, which the run writes itself. Name another."
        )
    target.check(replaces)
