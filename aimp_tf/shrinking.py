"""What `PruningConfig.shrink` asks for: weights that go on smaller after a round."""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.keras_own import is_keras_own
from aimp_tf.masked_model import MaskedModel
from aimp_tf.model_graph import Call, ModelGraph, Tensor

_STEPS = 500
"""Of a round that can grow again what `shrink` takes away. After fewer, less is taken away."""

_SAMPLE_SIZE = 2**16


class Shrinking:
    """Shrinks the prunable weights of a model between the rounds of a run.

    Args:
        factor: What is left of a weight, in (0, 1].
        masked: The model.

    Attributes:
        factors: Path -> what was left of each weight of the variable as the round began.
    """

    def __init__(self, factor: float, masked: MaskedModel) -> None:
        self.factors = dict.fromkeys(masked.variables, 1.0)
        self._factor = factor
        self._normalized = _normalized(masked) if factor < 1 else frozenset()
        self._sample: list[np.ndarray] = []
        self._moved = 1.0

    def begin_round(self, masked: MaskedModel) -> None:
        """Looks where the weights are, once they are what the round begins with."""
        self._sample = sample_of(masked.weights()) if self._factor < 1 else []

    def end_round(self, weights: Mapping[str, np.ndarray]) -> None:
        """Looks how far the round has moved them."""
        if self._sample:
            self._moved, self._sample = fraction_moved(self._sample, weights), []

    def shrink(self, masked: MaskedModel, steps: float) -> None:
        """Shrinks the weights after a round of so many steps; not at all where they do not stay, with steps of 0."""
        # Steps at random that lead a fraction d away make weights grow by d * d / 2, gradients that agree by more.
        least = 1 - 3 * self._moved**2 if steps else 1.0
        scaled = max(least, self._factor ** min(1.0, steps / _STEPS))
        free = max(least, self._factor)
        self.factors = {path: free if path in self._normalized else scaled for path in self.factors}
        if min(self.factors.values()) < 1:
            masked.shrink(self.factors)

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


def _normalized(masked: MaskedModel) -> frozenset[str]:
    """Paths of the kernels whose scale nothing sees, for batch normalisation alone takes what they give.

    Only in a model whose calls can be seen; elsewhere none are known.
    """
    try:
        graph = ModelGraph.of(masked.original, masked=True)
    except ValueError:
        return frozenset()
    readers: dict[Tensor, list[Call | None]] = collections.defaultdict(list)
    for call in graph.calls:
        for tensor in call.inputs:
            readers[tensor].append(call)
    for tensor in tf.nest.flatten(graph.outputs):
        readers[tensor].append(None)
    unseen: set[int] = set()
    seen: set[int] = set()
    for call in graph.calls:
        kernel = getattr(call.layer, "kernel", None)
        if kernel is not None:
            free = _is_linear(call.layer) and all(map(_normalizes, readers[call.outputs[0]]))
            (unseen if free else seen).add(id(kernel))
    return frozenset(path for path, variable in masked.variables.items() if id(variable) in unseen - seen)


def _is_linear(layer: Any) -> bool:
    return is_keras_own(type(layer)) and getattr(getattr(layer, "activation", None), "__name__", "") == "linear"


def _normalizes(call: Call | None) -> bool:
    """Whether this is batch normalisation by the moments of the batch."""
    if call is None or not is_keras_own(type(call.layer)) or "BatchNormalization" not in type(call.layer).__name__:
        return False
    return call.layer.trainable and call.kwargs.get("training") is not False
