"""What of a model is pruned already when it is masked."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from aimp_tf.masked_model.interface import MaskedModel
from aimp_tf.ranking import check_fours

logger = logging.getLogger(__name__)

Masks = str | Mapping[str, np.ndarray] | None
"""None for nothing, "zeros" for what is zero, or path -> bool array, True for what is kept."""

_NOTICED = 0.01
"""A variable with fewer zeros than this fraction was hardly pruned."""


def set_first_masks(masked: MaskedModel, masks: Masks) -> None:
    """Gives a model that has just been masked its first masks, and warns of zeros that are about to be given up.

    Args:
        masked: The model.
        masks: As in `aimp_tf.wrap`.

    Raises:
        TypeError, ValueError: They are not masks for the variables of the model, leave nothing, or do not have the
            structure of its granularity.
    """
    if masks is None:
        _warn_of_zeros(masked)
        return
    if isinstance(masks, str) and masks == "zeros":
        first = {path: weight != 0 for path, weight in masked.weights().items()}
    elif isinstance(masks, Mapping):
        first = _checked(masks, masked.masks())
    else:
        raise TypeError(
            f"masks must be None, 'zeros', or a dict from the path of each prunable variable to a bool array; got "
            f"{masks!r:.80}."
        )
    try:
        axes = {path: axis for path, axis in masked.input_axes.items() if axis is not None}
        check_fours(first, masked.granularity, axes)
    except RuntimeError as error:
        raise ValueError(
            f"What is zero does not have the structure of granularity={masked.granularity!r}, which "
            "granularity='unstructured' does not ask for."
        ) from error
    if not any(mask.any() for mask in first.values()):
        raise ValueError("masks leave nothing: every prunable weight would be pruned.")
    if emptied := [path for path, mask in first.items() if not mask.any()]:
        logger.warning("Nothing is left of %s, which the masks keep at zero.", ", ".join(emptied))
    masked.set_masks(first)
    masked.masks_given = True


def _checked(masks: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    if masks.keys() != expected.keys():
        raise ValueError(
            f"masks must be of the prunable variables {', '.join(expected)}; got those of {', '.join(masks) or 'none'}."
        )
    arrays = {path: np.asarray(masks[path]) for path in expected}
    for path, mask in arrays.items():
        if mask.dtype != bool or mask.shape != expected[path].shape:
            raise ValueError(
                f"The mask of {path} must be a bool array of shape {expected[path].shape}; got {mask.dtype} of shape "
                f"{mask.shape}."
            )
    return arrays


def _warn_of_zeros(masked: MaskedModel) -> None:
    zeros = {path: weight.size - int(np.count_nonzero(weight)) for path, weight in masked.weights().items()}
    # Nothing but zeros may be an initializer's.
    pruned = [path for path, mask in masked.masks().items() if _NOTICED * mask.size <= zeros[path] < mask.size]
    if pruned:
        logger.warning(
            "%d weights of %s are zero, as in a pruned model, and may become other numbers in training. To keep them "
            "zero, pass masks='zeros'.",
            sum(zeros.values()),
            ", ".join(pruned),
        )
