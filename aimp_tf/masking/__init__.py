"""Models with masked weights, in both generations of Keras."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.arguments import check_config, check_names
from aimp_tf.compat.mixed_precision import compute_in_half_precision, resolve_policy
from aimp_tf.compat.model_optimizers import held_optimizers
from aimp_tf.compat.models import check_built, check_model, keras_generation, layers_of
from aimp_tf.config import PruningConfig
from aimp_tf.graph.groups import select_units
from aimp_tf.graph.prunable import reasons_text, select_for
from aimp_tf.masking.constraints import MaskConstraint
from aimp_tf.masking.first_masks import Masks, first_masks, set_first_masks
from aimp_tf.masking.masked_model import ConstrainedModel, MaskedModel, WrappedModel, check_agreement

__all__ = [
    "MaskConstraint",
    "MaskedModel",
    "check_agreement",
    "check_plain",
    "first_masks",
    "Masks",
    "mask_model",
    "select_prunable",
    "sparsity",
    "strip",
    "wrap",
]

logger = logging.getLogger(__name__)

WRAPPED_FIELDS = ("include", "exclude", "granularity", "budget", "channel_multiple", "mixed_precision")
"""The fields of the config that `wrap` heeds."""


def mask_model(model: Any, config: PruningConfig | None = None, masks: Masks = None, **fields: Any) -> MaskedModel:
    """What `wrap` does once its arguments are checked; the `strip()` of the masked model undoes it."""
    settings = {name: getattr(config or PruningConfig, name) for name in WRAPPED_FIELDS} | fields
    generation, asked = check_model(model), settings.copy()
    policy = resolve_policy(asked.pop("mixed_precision"))
    _check_maskable(model, policy)
    with contextlib.ExitStack() as undo, model.distribute_strategy.scope():
        if policy is not None:
            compute_in_half_precision(model, generation, policy, undo)
        selection = select_units(model=model, **asked)
        for path, variable in selection.variables.items():
            if isinstance(variable.constraint, MaskConstraint):
                raise ValueError(f"{path} is masked already, in another model that shares it; strip that model first.")
        settings |= {name: tuple(settings[name]) for name in ("include", "exclude")}
        kind = ConstrainedModel if generation == "keras" else WrappedModel
        try:
            masked = kind(model, selection, settings, undo)
        except (TypeError, tf.errors.InvalidArgumentError) as error:
            if policy is None:
                raise
            raise ValueError(
                f"The model {model.name!r} cannot compute in {policy}. A layer of your own must not mix dtypes: have "
                f"it cast to self.compute_dtype, or leave mixed_precision at None. The error was: {error}"
            ) from error
    try:
        set_first_masks(masked, masks)
        if masked.left_dense:
            reasons = reasons_text(masked.left_dense)
            logger.warning("Left dense: %s. target_sparsity is that of the other variables.", reasons)
    except BaseException:
        masked.strip()
        raise
    return masked


def _check_maskable(model: Any, policy: str | None) -> None:
    if policy == "mixed_float16" and (held := held_optimizers(model)):
        raise ValueError(
            f"mixed_precision='mixed_float16' scales the loss for the model's own optimizer; the model holds others in "
            f"{', '.join(held)}. Use 'mixed_bfloat16', which needs no scaling."
        )
    if MaskedModel.of(model) is not None:
        raise ValueError("The model is masked already; call aimp_tf.strip(model) before masking it again.")
    if any(type(layer).__module__.startswith("tensorflow_model_optimization") for layer in layers_of(model)):
        raise ValueError(
            "tfmot has wrapped layers of the model already. Leave out prune_low_magnitude, or write "
            "tfmot.sparsity.keras.strip_pruning(model) first: aimp_tf wraps by itself."
        )
    check_built(model)


def wrap(model: Any, config: PruningConfig | None = None, *, masks: Masks = None, **fields: Any) -> Any:
    """Prepares a model for pruning in your own training loop, as tfmot's `prune_low_magnitude` does.

    Train what it returns with `fit` and a `GlobalMagnitudePruning` callback, then take the masks off with `strip`.
    `prune` does all of this.

    Args:
        model: A compiled, built Keras 3 or tf_keras model.
        config: What the callback gets, of which this heeds `include`, `exclude`, `granularity`, `budget`,
            `channel_multiple` and `mixed_precision`. Until `strip`, the layers of `model` compute in the precision of
            the last one.
        masks: What is pruned already. None is nothing: the zeros of a model that was pruned before may then become
            other numbers, of which a warning tells. "zeros" keeps all weights at zero that are zero now, be it to
            train a pruned model on (see `fine_tune`) or to prune it further; those of variables that are excluded are
            not kept. Or path -> bool array, True for what is kept, such as `PruningResult.masks`.
        **fields: Those fields of the config, which count rather than its own.

    Returns:
        The compiled model to call `fit` on. In Keras 3 it is `model` itself; in tf_keras it is a copy that shares all
        layers and weights with `model`.

    Raises:
        TypeError: `model` is not a Keras model, `config` is no config, or a name is unknown.
        ValueError: A field is out of its range; the model is not compiled or not built, is masked already, has nothing
            to prune, has an optimizer that averages weights, is a subclassed tf_keras model, has no float32 layers to
            train in mixed precision, or a pattern matches nothing, or nothing that can hold the structure of
            `granularity`; or `masks` are not those of its variables, or have another structure.
    """
    check_config(config)
    check_names("wrap", fields, WRAPPED_FIELDS)
    return mask_model(model, config, masks, **fields).model


def strip(model: Any, *, unfinished: bool = False) -> Any:
    """Takes the masks off a model that `wrap` returned, as tfmot's `strip_pruning` does.

    Args:
        model: What `wrap` returned.
        unfinished: Whether to take the model as it is where pruning is not finished. What the masks of now prune is
            made zero.

    Returns:
        The model that `wrap` was given: pruned weights exactly 0.0, compiled as before, or as it was since, and free of
        aimp_tf and tfmot.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: It carries no masks.
        RuntimeError: Unless `unfinished`: it was trained, but without the callback that prunes; the run on it has
            rounds left; or something gave pruned weights other values. The model stays masked.
    """
    keras_generation(model)
    masked = MaskedModel.of(model)
    if masked is None:
        raise ValueError(f"The model {model.name!r} carries no masks: pass what aimp_tf.wrap(model) returned.")
    if not unfinished:
        _check_finished(masked)
    return masked.strip()


def _check_finished(masked: MaskedModel) -> None:
    """Raises RuntimeError if a model was trained and not pruned as far as it was to be, or is not sparse now."""
    if masked.was_trained and masked.rounds_left:
        raise RuntimeError(
            f"Pruning is not finished: trainings of the run that are not done: {masked.rounds_left}, and "
            f"{1 - masked.kept / masked.total:.2%} of what is to be pruned is pruned. Go on with "
            "fit(..., epochs=pruning.next_epochs, callbacks=[pruning]) until pruning.finished, or take the model "
            "as it is by aimp_tf.strip(model, unfinished=True)."
        )
    unasked = masked.was_trained and masked.rounds_left is None and not masked.masks_given
    if unasked and all(mask.all() for mask in masked.masks().values()):
        raise RuntimeError(
            "The model was trained, but nothing was pruned, for no GlobalMagnitudePruning was among the callbacks. "
            "Call fit(..., epochs=pruning.next_epochs, callbacks=[pruning]), or take the dense model as it is "
            "by aimp_tf.strip(model, unfinished=True)."
        )
    try:
        masked.check_sparse()
    except RuntimeError as error:
        raise RuntimeError(f"{error} aimp_tf.strip(model, unfinished=True) makes them zero.") from error


def sparsity(
    model: Any, include: Sequence[str] = (), exclude: Sequence[str] = (), granularity: object = "unstructured"
) -> float:
    """Fraction of the prunable weights of a built Keras model that are exactly zero, in [0, 1].

    What is frozen does not count unless `include` names it, or everything is frozen.

    Args:
        model: A Keras 3 or tf_keras model, pruned by whatever means or not at all.
        include: fnmatch patterns on variable paths; empty means every prunable variable.
        exclude: fnmatch patterns on variable paths.
        granularity: As in `PruningConfig`: variables that it leaves dense do not count.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: It has no prunable weights, is not built, or a pattern matches nothing.
    """
    keras_generation(model)
    masked = MaskedModel.of(model)
    plain = masked.original if masked else model
    frozen = not plain.trainable_weights
    values = select_prunable(plain, include, exclude, granularity, frozen=frozen).values()
    zeros = sum(value.size - int(np.count_nonzero(value)) for value in values)
    return zeros / sum(value.size for value in values)


def select_prunable(
    model: Any,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    granularity: object = "unstructured",
    *,
    frozen: bool = False,
) -> dict[str, np.ndarray]:
    """Path -> value of the prunable variables of a built, unmasked model, frozen ones as in `select_for`. Raises as
    `sparsity`."""
    variables = select_for(granularity, model, include, exclude, frozen=frozen).variables
    return {path: np.asarray(variable.numpy()) for path, variable in variables.items()}


def check_plain(model: Any) -> None:
    """Raises ValueError if a model carries masks, or as `check_built`."""
    if MaskedModel.of(model) is not None:
        raise ValueError("The model carries masks; pass what aimp_tf.strip(model) returns.")
    check_built(model)
