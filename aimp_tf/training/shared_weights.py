"""Weights that share a value, and go on sharing one while they train."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.coding.tensors import MOST_LEVELS, common_levels, levels_of
from aimp_tf.compat.step import changed_gradients
from aimp_tf.compat.variables import key_of, local_value
from aimp_tf.masking import MaskedModel


class SharedWeights:
    """The weights of kernels that have few values, each of which is trained as one.

    Args:
        masked: A model with kernels that share values. Zeros are left alone. If all of these kernels share the same
            values, as after `share_weights(..., per="model")`, these are trained as those of the model.

    Raises:
        ValueError: None of them shares values.
    """

    def __init__(self, masked: MaskedModel) -> None:
        variables = masked.variables
        values = {path: local_value(variable) for path, variable in variables.items()}
        shared = {path: array for path, array in values.items() if _has_few(array)}
        if not shared:
            raise ValueError(
                f"weights='shared' needs kernels whose weights share values, at most {MOST_LEVELS} each, and none "
                "does. Train what aimp_tf.share_weights(model) returns."
            )
        common = common_levels(list(shared.values()))
        groups = [shared] if common is not None else [{path: array} for path, array in shared.items()]
        self._model = masked.model
        self._variables = {path: variables[path] for path in shared}
        self._groups: list[tuple[int, dict[str, np.ndarray]]] = []
        for group in groups:
            levels = levels_of(np.concatenate([array.reshape(-1) for array in group.values()]))
            # What is zero has a place of its own.
            places = {
                path: np.where(array == 0, len(levels), np.searchsorted(levels, array)) for path, array in group.items()
            }
            self._groups.append((len(levels), {path: each.astype(np.int32) for path, each in places.items()}))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within it, the gradient of each weight in the compiled model is the sum of those that share its value.

        What an optimizer that looks at more than one weight makes of them is averaged at the end.

        Source: Han, Mao and Dally, "Deep Compression", ICLR 2016, section 3.3.
        """
        with changed_gradients(self._model, self._summed):
            yield
        self._settle()

    def _summed(self, pairs: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        given = {key_of(variable): gradient for gradient, variable in pairs if gradient is not None}
        changed = {}
        for count, places in self._groups:
            trained = {path: given[key] for path in places if (key := key_of(self._variables[path])) in given}
            sums = [
                tf.math.unsorted_segment_sum(tf.convert_to_tensor(gradient), places[path], count + 1)
                for path, gradient in trained.items()
            ]
            if sums:
                total = tf.concat([tf.add_n(sums)[:count], tf.zeros([1], sums[0].dtype)], 0)
                for path in trained:
                    changed[key_of(self._variables[path])] = tf.gather(total, places[path])
        return [(changed.get(key_of(variable), gradient), variable) for gradient, variable in pairs]

    def _settle(self) -> None:
        for count, places in self._groups:
            sums, sizes = np.zeros(count + 1), np.zeros(count + 1)
            for path, each in places.items():
                sums += np.bincount(each.reshape(-1), local_value(self._variables[path]).reshape(-1), count + 1)
                sizes += np.bincount(each.reshape(-1), minlength=count + 1)
            means = (sums / np.maximum(sizes, 1)).astype(np.float32)
            means[count] = 0.0
            for path, each in places.items():
                self._variables[path].assign(means[each])


def _has_few(array: np.ndarray) -> bool:
    """Whether any entries that are not zero have the same value, and there are few of these."""
    return len(levels_of(array)) <= min(MOST_LEVELS, int(np.count_nonzero(array)) - 1)
