"""one_shot(): prunes a trained model without training it."""

from __future__ import annotations

import dataclasses
import logging
import numbers
import time
from typing import Any

from aimp_tf.arguments import check_names, placed, split_off, training_data
from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.models import check_model
from aimp_tf.config import PruningConfig
from aimp_tf.config.checks import NOT_USED_BY, OF_EVERY_TRAINING
from aimp_tf.config.texts import is_number
from aimp_tf.masking import MaskedModel, Masks, mask_model, sparsity
from aimp_tf.reports.result import PruningResult
from aimp_tf.runs.outcome import Outcome
from aimp_tf.training.fitting import Fitting
from aimp_tf.training.methods import METHODS
from aimp_tf.training.repair import recalibrate
from aimp_tf.training.rounds import RoundResult
from aimp_tf.training.run import Run

logger = logging.getLogger(__name__)

_UNUSED = {*NOT_USED_BY["gradual"], *NOT_USED_BY["iterative"], *OF_EVERY_TRAINING}
_OF_TRAINING = {"epochs", "total_epochs", "method", *_UNUSED} - {"repair"}
_FIELDS = tuple(field.name for field in dataclasses.fields(PruningConfig) if field.name not in _OF_TRAINING)


@placed("target_sparsity=0.5, granularity='channel', budget='flops', criterion='reconstruction'")
def one_shot(
    model: Any,
    x: Any = None,
    y: Any = None,
    *,
    sample_weight: Any = None,
    batch_size: int | None = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    masks: Masks = None,
    recalibrate_batches: int = 32,
    **fields: Any,
) -> PruningResult:
    """Prunes a trained model at once, without training: by a criterion, with what is left repaired and recalibrated.

    The weights that a criterion ranks last go, all in one step. What is left of each Dense and convolution layer then
    makes up for them as well as it can (`repair`), and the moving statistics of batch normalisation become those of the
    smaller network. That takes some passes over a few batches. Training on, by `fine_tune`, recovers more.

    Args:
        model: A compiled, trained Keras 3 or tf_keras model. It is pruned in place.
        x: Some of the training data, as in `prune`. Targets need not be there, unless the criterion asks for them.
        y: The targets, where x is arrays.
        sample_weight: The weights of the examples, where x is arrays.
        batch_size: Of arrays; 32 by default.
        validation_split: Which fraction of arrays, their last part, is for validation, in [0, 1).
        validation_data: What the model is evaluated on before and after, as in `prune`; None evaluates nothing.
        masks: What is pruned already, as in `prune`.
        recalibrate_batches: From how many batches normalisation gets its statistics; 0 leaves them as they are.
        **fields: Fields of `PruningConfig` that say what goes: target_sparsity, criterion, criterion_batches, scope,
            granularity, budget, channel_multiple, the limits on layers, include, exclude, seed, mixed_precision; and
            repair, which is True here unless it is given, or the granularity is of heads or blocks.

    Returns:
        The pruned model with its masks and a single round of no epochs, whose metrics are those of the validation data,
        and the dense model's beside them.

    Raises:
        TypeError, ValueError: As `prune`; or a field is of trainings, of which there are none.
        RuntimeError: As `prune`.

    Example:
        ```python
        result = aimp_tf.one_shot(
            model, x, y, target_sparsity=0.5, granularity="channel", budget="flops", criterion="reconstruction"
        )
        small = result.compact()
        ```

    References:
        Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, of post-training pruning by layers.
    """
    generation, config = check_model(model), _config_of(fields)
    if not is_number(recalibrate_batches, numbers.Integral) or recalibrate_batches < 0:
        raise ValueError(f"recalibrate_batches must be a whole number, 0 or more; got {recalibrate_batches!r}.")
    data = training_data("one_shot", model, x, y, sample_weight, targets=False)
    if validation_data is None:
        data, validation_data = split_off(data, validation_split)
    cluster = Cluster(model.distribute_strategy)
    if cluster.size > 1:
        raise ValueError(
            "one_shot trains nothing, and is for one worker. Make the model without a strategy of several."
        )
    options = {} if batch_size is None else {"batch_size": batch_size}
    fitting = Fitting(data, validation_data, (), options, 0, config.seed, generation, cluster, trains=False)
    fitting.make_ready(model)
    run = Run(config, lambda: None, METHODS[config.method])
    run.started_at = time.monotonic()
    masked = mask_model(model, config, masks)
    before, kept = masked.snapshot(), masked.masks()
    try:
        dense = fitting.validated(masked.model) or None
        rounds = [_pruned_at_once(run, masked, fitting, recalibrate_batches)]
        last = masked.masks()
    except BaseException:
        masked.set_masks(kept)
        masked.restore(before)
        raise
    finally:
        pruned = masked.strip()
    return PruningResult(
        model=pruned,
        masks=last,
        rounds=rounds,
        sparsity=sparsity(pruned, config.include, config.exclude, config.granularity),
        imp_epochs=0,
        config=config,
        outcome=Outcome(dense_metrics=dense, dense_epochs=None if dense is None else 0, examples=fitting.examples),
    )


def _config_of(fields: dict[str, Any]) -> PruningConfig:
    """That of one round down to the target, before a training that is left out. Raises as `one_shot`."""
    check_names("one_shot", fields, _FIELDS)
    config = PruningConfig.from_fields(
        {**fields, "epochs": 1, "rate": 1 - 1e-12, "start": "trained", "compact_rounds": False}
    )
    if "repair" not in fields:
        config = config.replace(repair={*config.structure.kinds} <= {"channel"})
    config.validate()
    return config


def _pruned_at_once(run: Run, masked: MaskedModel, fitting: Fitting, recalibrate_batches: int) -> RoundResult:
    """Ranks, prunes, repairs and recalibrates, and gives what came of it."""
    run.ranking.sample = fitting.sample()
    run.begin(masked, trial=False)  # It ranks at once.
    run.prune(masked, run.round.kept)
    if recalibrate_batches:
        count = recalibrate(masked, run.ranking.sample, recalibrate_batches)
        logger.info("Recalibrated %d layers of normalisation.", count)
    run.end_round(masked, None)
    return dataclasses.replace(run.rounds[0], metrics=fitting.validated(masked.model))
