"""What of a model is pruned already when it is masked."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import numpy as np

from aimp_tf.compat.variables import Values, key_of
from aimp_tf.graph.prunable import other_weights, prunable_variables
from aimp_tf.masking.masked_model import MaskedModel
from aimp_tf.selection.channel_layout import HARDLY_PRUNED
from aimp_tf.selection.channels import ChannelUnits
from aimp_tf.selection.units import Units

logger = logging.getLogger(__name__)

Masks = str | Mapping[str, np.ndarray] | None
"""None for nothing, "zeros" for what is zero, or path -> bool array, True for what is kept."""


def set_first_masks(masked: MaskedModel, masks: Masks) -> None:
    """Gives a model that has just been masked its first masks, and warns of zeros that are about to be given up.

    Raises as `first_masks`, and ValueError where they leave nothing.
    """
    # What tfmot has wrapped goes by other paths there.
    taken = set(map(key_of, masked.variables.values()))
    left_out = {
        path: variable
        for path, variable in prunable_variables(masked.original).items()
        if key_of(variable) not in taken and path not in masked.left_dense
    }
    _warn_of_zeros(Values(left_out), ", for no mask is asked for there")
    if masks is None:
        _warn_of_zeros(masked.weights(), ". To keep them zero, pass masks='zeros'")
        return
    others = [*masked.left_dense, *other_weights(masked.original)]
    first = first_masks(masks, masked.weights(), others, masked.units)
    if masks == "zeros" and all(mask.all() for mask in first.values()):
        logger.warning("masks='zeros' has no zeros to keep: nothing is pruned yet.")
    if not any(mask.any() for mask in first.values()):
        raise ValueError("masks leave nothing: every prunable weight would be pruned.")
    if emptied := [path for path, mask in first.items() if not mask.any()]:
        logger.warning("Nothing is left of %s, which the masks keep at zero.", ", ".join(emptied))
    masked.set_masks(first)
    masked.masks_given = True


def first_masks(
    masks: str | Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray],
    others: Collection[str],
    units: Units | ChannelUnits,
) -> dict[str, np.ndarray]:
    """The mask of each prunable variable, of those that `wrap` was given; all True where none is given.

    Args:
        masks: As in `aimp_tf.wrap`, but not None.
        weights: Path -> value, of the prunable variables.
        others: Paths of variables that have no mask, and may be named nevertheless, such as biases.
        units: What is kept or removed together.

    Raises:
        TypeError, ValueError: They are no masks, not those of the variables, or have another structure than the units.
    """
    zeros = isinstance(masks, str) and masks == "zeros"
    try:
        first = units.of_zeros(weights) if zeros else _given(masks, weights, others, units)
        units.check(first)
    except RuntimeError as error:
        raise ValueError(
            f"{'What is zero does' if zeros else 'The masks do'} not have the structure of {units}, which "
            f"granularity='unstructured' does not ask for. {error}"
        ) from error
    return first


def _given(
    masks: object, weights: Mapping[str, np.ndarray], others: Collection[str], units: Units | ChannelUnits
) -> dict[str, np.ndarray]:
    """As `first_masks`, of a dict."""
    if not isinstance(masks, Mapping):
        raise TypeError(
            f"masks must be None, 'zeros', or a dict from the path of each prunable variable to a bool array; got "
            f"{masks!r:.80}."
        )
    known = [path for path in masks if path in weights]
    if not known or any(path not in weights and path not in others for path in masks):
        raise ValueError(
            f"masks must be of the prunable variables {', '.join(weights)}; got those of {', '.join(masks) or 'none'}."
        )
    arrays = {path: np.asarray(masks[path]) for path in weights if path in masks}
    for path, mask in arrays.items():
        if mask.dtype != bool or mask.shape != weights[path].shape:
            raise ValueError(
                f"The mask of {path} must be a bool array of shape {weights[path].shape}; got {mask.dtype} of shape "
                f"{mask.shape}."
            )
    whole = {path: np.ones(weight.shape, bool) for path, weight in weights.items()}
    return {**whole, **units.completed(arrays), **arrays}


def _warn_of_zeros(weights: Mapping[str, np.ndarray], why: str) -> None:
    """Warns of variables that look as if they were pruned, and whose zeros nothing keeps."""
    pruned: dict[str, int] = {}
    for path, value in weights.items():
        zeros = value.size - int(np.count_nonzero(value))
        # Nothing but zeros may be an initializer's, and so may those of an LSTM's bias, which begins with some ones.
        if value.ndim > 1 and HARDLY_PRUNED * value.size <= zeros < value.size:
            pruned[path] = zeros
    if pruned:
        logger.warning(
            "%d weights of %s are zero, as in a pruned model, and may become other numbers in training%s.",
            sum(pruned.values()),
            ", ".join(pruned),
            why,
        )
