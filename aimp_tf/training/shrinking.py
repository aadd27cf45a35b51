"""What `PruningConfig.shrink` asks for: weights that go on smaller after a round."""

from __future__ import annotations

import collections
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import is_keras_own
from aimp_tf.graph.model_graph import Call, ModelGraph
from aimp_tf.masking import MaskedModel
from aimp_tf.training.kernels import trained_variables

_log = logging.getLogger(__name__)

_STEPS = 500
"""Of a round that can grow again what `shrink` takes away. After fewer, less is taken away."""

_SAMPLE_SIZE = 2**16


class Shrinking:
    """Shrinks the weights of a model that training changes to a part of them, in (0, 1], between the rounds of a run.

    Attributes:
        factors: Path of each prunable variable -> what was left of its weights as the round began.
    """

    def __init__(self, factor: float, masked: MaskedModel) -> None:
        self.factors = dict.fromkeys(masked.prunable, 1.0)
        self._factor = factor
        self._trained = {path for path in trained_variables(masked) if _may_be_small(masked.prunable.get(path))}
        self._normalized = _normalized(masked) if factor < 1 else {}
        self._sample: list[np.ndarray] = []
        self._moved = 0.0

    def begin_round(self, masked: MaskedModel) -> None:
        """Looks where the weights are, once they are what the round begins with."""
        if self._factor < 1 and not self._sample:  # A round that begins anew has it.
            self._sample = sample_of(masked.weights())

    def end_round(self, weights: Mapping[str, np.ndarray]) -> None:
        """Looks how far the round has moved them, and forgets what they were shrunk to as it began."""
        if self._sample:
            self._moved, self._sample = fraction_moved(self._sample, weights), []
        self.factors = dict.fromkeys(self.factors, 1.0)

    def shrink(self, masked: MaskedModel, steps: float) -> None:
        """Shrinks the weights after a round of so many steps."""
        if self._factor == 1:
            return
        # A fraction d of steps at random makes weights grow by d * d / 2, and steps that agree by more: rounds that
        # moved LeNet-300-100 by 0.32 grew it again from 0.7.
        least = 1 - 3 * self._moved**2
        scaled = max(least, self._factor ** min(1.0, steps / _STEPS))
        free = max(least, self._factor)
        for path in self._trained:
            self.factors[path] = free if path in self._normalized else scaled
        masked.shrink(self.factors)
        for path, norms in self._normalized.items():
            for layer, norm in norms:
                # As they would be, had the weights been as small all along.
                bias = tf.convert_to_tensor(layer.bias) if layer.use_bias else 0.0
                factor, mean = self.factors[path], tf.convert_to_tensor(norm.moving_mean)
                norm.moving_mean.assign(factor * (mean - bias) + bias)
                norm.moving_variance.assign(factor**2 * tf.convert_to_tensor(norm.moving_variance))

    def state(self) -> dict[str, Any]:
        """What `resume` needs, as numbers, arrays, and lists of these."""
        # Without the paths, for another model of the same class may number its layers otherwise.
        return {"factors": list(self.factors.values()), "sample": self._sample, "moved": self._moved}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self.factors = dict(zip(self.factors, state["factors"], strict=True))
        self._sample = list(state["sample"])
        self._moved = state["moved"]


def sample_of(weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Copies of evenly spaced values of each array, some 65,000 at most, in the order of `weights`."""
    return [_spaced(weight).copy() for weight in weights.values()]


def fraction_moved(sample: Sequence[np.ndarray], weights: Mapping[str, np.ndarray]) -> float:
    """The norm of the change of all weights since `sample_of` took `sample`, over the norm of what they are now.

    0 is no change, and so is what ends with zeros alone. Each array counts by its size, not by that of its sample.

    Example:
        >>> sample = sample_of({"kernel": np.array([3.0, 0.0])})
        >>> fraction_moved(sample, {"kernel": np.array([3.0, 4.0])})
        0.8
    """
    change = norm = 0.0
    for before, weight in zip(sample, weights.values(), strict=True):
        after = _spaced(weight).astype(np.float64)
        change += weight.size * float(np.mean(np.square(after - before)))
        norm += weight.size * float(np.mean(np.square(after)))
    return math.sqrt(change / norm) if norm else 0.0


def _spaced(weight: np.ndarray) -> np.ndarray:
    # An odd step passes through all columns of a kernel whose width is a power of two.
    return weight.reshape(-1)[:: -(-weight.size // _SAMPLE_SIZE) | 1]


def _may_be_small(variable: Any | None) -> bool:
    """Whether it is prunable, and no constraint of the user's may grow it again at once, as UnitNorm does."""
    if variable is None:
        return False
    previous = variable.constraint.previous
    return previous is None or (is_keras_own(type(previous)) and type(previous).__name__ in ("MaxNorm", "NonNeg"))


def _normalized(masked: MaskedModel) -> dict[str, list[tuple[Any, Any]]]:
    """The trained kernels whose scale nothing sees, for batch normalisation alone takes what they give.

    Only in a model whose calls can be seen; elsewhere none are known.

    Returns:
        Path of the kernel -> its layer and the layer that normalises, for each time that it is called.
    """
    try:
        return _normalized_in(ModelGraph.of(masked.original), masked.prunable)
    except Exception as error:  # Whatever a layer of the user's raises.
        _log.debug("Which kernels of %s are normalised cannot be seen: %s", masked.original.name, error)
        return {}


def _normalized_in(graph: ModelGraph, variables: Mapping[str, Any]) -> dict[str, list[tuple[Any, Any]]]:
    norms: dict[int, list[tuple[Any, Any]]] = collections.defaultdict(list)
    seen: set[int] = set()
    for call in graph.calls:
        weights = {id(weight) for weight in getattr(call.layer, "weights", ())}
        if _is_linear(call.layer):
            found = [_normalizing(reader) for reader in graph.readers[call.outputs[0]]]
            if all(norm is not None and len(graph.by_layer[id(norm)]) == 1 for norm in found):
                norms[id(call.layer.kernel)] += [(call.layer, norm) for norm in found]
                weights.discard(id(call.layer.kernel))
        seen |= weights
    paths = {id(variable): path for path, variable in variables.items()}
    return {paths[kernel]: pairs for kernel, pairs in norms.items() if kernel in paths and kernel not in seen}


def _is_linear(layer: Any) -> bool:
    """Whether it is a layer of Keras' own that multiplies by its trained kernel, and does no more but add a bias."""
    return (
        type(layer).__name__ in ("Dense", "Conv1D", "Conv2D", "Conv3D")
        and is_keras_own(type(layer))
        and layer.trainable
        and getattr(layer.activation, "__name__", "") == "linear"
        and layer.activity_regularizer is None
    )


def _normalizing(call: Call | None) -> Any | None:
    """The layer of a call that is batch normalisation by the moments of the batch; None for any other."""
    if call is None or not is_keras_own(type(call.layer)) or "BatchNormalization" not in type(call.layer).__name__:
        return None
    training = call.kwargs.get("training", call.training)
    by_batch = call.layer.trainable and training is not False and not getattr(call.layer, "renorm", False)
    return call.layer if by_batch else None
