"""The baseline `method="tfmot"`: pruning by tfmot itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.files import checksum_of_arrays
from aimp_tf.masking import fit_with_tfmot, left_dense, select_prunable
from aimp_tf.pruning.loop import check_validation_data, display_of
from aimp_tf.reports.display import RunDisplay
from aimp_tf.reports.result import PruningResult
from aimp_tf.runs.outcome import Outcome
from aimp_tf.runs.run_directory import RunDirectory
from aimp_tf.selection.planning import epoch_at_target, imp_epochs, settled
from aimp_tf.selection.ranking import check_finite
from aimp_tf.training.fitting import Fitting
from aimp_tf.training.other_callbacks import watch_from
from aimp_tf.training.rounds import RoundResult, last_epoch_with, plain_logs


def prune_with_tfmot(
    model: Any,
    config: PruningConfig,
    fitting: Fitting,
    directory: RunDirectory | None,
    outcome: Outcome,
    verbose: str | int,
) -> PruningResult:
    """The baseline `method="tfmot"`: one fit, in which tfmot's own wrappers and callback prune. It does not go on."""
    if model.distribute_strategy.num_replicas_in_sync > 1:
        raise ValueError(
            "method='tfmot' trains on one device; this model was made for "
            f"{model.distribute_strategy.num_replicas_in_sync}. method='gradual' does much the same on all of them."
        )
    if fitting.validation is not None:
        check_validation_data(model, fitting, config)
    weight_count = sum(weight.size for weight in _prunable(model, config).values())
    config = settled(config, weight_count)
    rounds = []
    if directory is not None:
        directory.begin(round_count=1)
        rounds = directory.finished_rounds()
        directory.go_on(rounds, ())
    with display_of(verbose, config, fitting, weight_count) as display:
        display.begin([round_.result for round_ in rounds])
        if rounds:
            model.set_weights(rounds[0].state["weights"])
            result, masks = rounds[0].result, _zero_masks(_prunable(model, config))
        else:
            result, masks = _train_with_tfmot(model, config, fitting, directory, display)
            display.round_done(result)
    return PruningResult(model, masks, [result], result.sparsity, imp_epochs(config, weight_count), config, outcome)


def _train_with_tfmot(
    model: Any, config: PruningConfig, fitting: Fitting, directory: RunDirectory | None, display: RunDisplay
) -> tuple[RoundResult, dict[str, np.ndarray]]:
    reasons = left_dense(model, config.include, config.exclude)
    started_at = time.monotonic()
    epoch_logs: list[dict[str, Any]] = []
    checksums: list[int] = []
    last: int | None = None

    def fit(wrapped: Any, own: list[Any]) -> None:
        nonlocal last
        fitting.fit(wrapped, [*own, *fitting.callbacks, display], epochs=config.resolved_epochs)
        last = checksum_of_arrays(wrapped.get_weights())

    def on_epoch_end(wrapped: Any, epoch: int, logs: dict[str, Any]) -> None:
        epoch_logs.append(plain_logs(logs))
        checksums.append(checksum_of_arrays(wrapped.get_weights()))
        if directory is not None:
            directory.add_metrics(0, epoch, epoch_logs[-1])
        if fitting.order is not None:
            fitting.order.begin(0, epoch + 1)

    with watch_from(fitting.callbacks, epoch_at_target(config)):
        fit_with_tfmot(
            model,
            fit,
            on_epoch_end,
            target_sparsity=config.target_sparsity,
            ramp_steps=max(1, round(config.ramp * config.resolved_epochs * fitting.batches())),
            include=tuple(config.include),
            exclude=tuple(config.exclude),
        )
    weights = _prunable(model, config)
    masks = _zero_masks(weights)
    check_finite(weights, masks)
    epoch = last_epoch_with(last, checksums)
    metrics = fitting.measure(model, epoch_logs[-1]) if epoch is None else epoch_logs[epoch]
    result = RoundResult.of(
        0,
        epoch_logs,
        weights,
        masks,
        time.monotonic() - started_at,
        left_dense=reasons,
        metrics=metrics,
    )
    if directory is not None:
        directory.save_round(result, epoch_logs, masks, model.save_weights, {"weights": model.get_weights()})
    return result, masks


def _zero_masks(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The masks of weights whose pruned entries are zero."""
    return {path: weight != 0 for path, weight in weights.items()}


def _prunable(model: Any, config: PruningConfig) -> dict[str, np.ndarray]:
    return select_prunable(model, config.include, config.exclude)
