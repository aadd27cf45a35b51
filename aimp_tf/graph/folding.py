"""Moving statistics of batch normalisation, folded into its scale and shift: two numbers a channel in place of four."""

from __future__ import annotations

from typing import Any

import numpy as np

from aimp_tf.compat.keras_own import is_keras_own
from aimp_tf.compat.models import layers_of


def fold_statistics(model: Any) -> None:
    """Lets each BatchNormalization of a built model give the same, in use, with means of 0 and variances of 1.

    Those without a scale or a shift stay as they are, and so do classes that are not Keras' own.
    """
    for layer in filter(_can_fold, layers_of(model)):
        gamma, beta, mean, variance = (
            np.asarray(weight, np.float64)
            for weight in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        )
        scale = gamma / np.sqrt(variance + layer.epsilon)
        layer.gamma.assign(scale * np.sqrt(1 + layer.epsilon))
        layer.beta.assign(beta - mean * scale)
        layer.moving_mean.assign(np.zeros_like(mean))
        layer.moving_variance.assign(np.ones_like(variance))


def _can_fold(layer: Any) -> bool:
    if "BatchNormalization" not in type(layer).__name__ or not is_keras_own(type(layer)):
        return False
    return layer.scale and layer.center and not getattr(layer, "renorm", False)
