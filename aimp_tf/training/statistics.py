"""What criteria may ask of the training data: gradients of weights, and what weights multiply."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.keras_own import is_keras_own
from aimp_tf.compat.swap import Swap
from aimp_tf.compat.variables import bare, resource_of
from aimp_tf.graph.prunable import readers
from aimp_tf.masking import MaskedModel

_LOSS_SCALE = 1024.0
"""Gradients that float16 would round to zero pass with it. It is a power of two, so that others stay the same."""


class ModelSample:
    """A few batches of the training data as a masked model sees them, in inference mode.

    Of several workers, all must ask for the same: gradients are the mean over their batches, inputs those of the chief.

    Args:
        masked: The model.
        data: Batches of (x,), (x, y) or (x, y, sample_weight): a tf.data.Dataset, a PyDataset or a list.
        batches: How many of them, from the first on; all where there are fewer.
    """

    def __init__(self, masked: MaskedModel, data: Any, batches: int) -> None:
        self._masked = masked
        self._data = data
        self._count = batches

    def gradients(self) -> Mapping[str, np.ndarray]:
        """Path -> float32 array of the prunable variable's shape: the gradient of the model's loss, the mean over the
        batches, summed in float64.

        Raises:
            ValueError: The data has no targets or no batches, or the model was compiled without a loss.
        """
        model, variables = self._masked.model, self._masked.variables
        watched = [bare(variable) for variable in variables.values()]
        totals = [np.zeros(variable.shape) for variable in watched]
        if is_keras_own(type(model).compute_loss) and not getattr(model, "loss", None) and not model.losses:
            raise ValueError(
                f"The criterion asks for gradients of the loss, and the model {model.name!r} was compiled without one."
            )
        strategy, count = model.distribute_strategy, 0

        def gradients_of(x: Any, y: Any, sample_weight: Any) -> list[tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                outputs = model(x, training=False)
                loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight)
                loss = _LOSS_SCALE * tf.cast(loss, tf.float32)
            gradients: list[tf.Tensor] = tape.gradient(loss, watched, unconnected_gradients="zero")
            return gradients

        with strategy.scope(), _metrics_kept(model):
            for batch in self._batches():
                # Each of several replicas has its share of the loss, as in a step.
                gradients = strategy.run(gradients_of, batch)
                for total, gradient in zip(totals, gradients, strict=True):
                    total += strategy.reduce("SUM", gradient, axis=None).numpy()
                count += 1
        means = [(total / (_LOSS_SCALE * count)).astype(np.float32) for total in totals]
        return dict(zip(variables, means, strict=True))

    def inputs(self) -> Iterator[Mapping[str, Sequence[np.ndarray]]]:
        """Of each batch, path -> what the prunable variable multiplies, one array for each call of its layer."""
        masked = self._masked
        keys = {id(resource_of(variable)): path for path, variable in masked.variables.items()}
        layers = {
            path: layer
            for variable, layer in readers(masked.original)
            if (path := keys.get(id(resource_of(variable)))) is not None
        }
        for x, _, _ in self._batches():
            seen: dict[str, list[np.ndarray]] = {path: [] for path in layers}
            with contextlib.ExitStack() as listening, masked.model.distribute_strategy.scope():
                for path, layer in layers.items():
                    listening.enter_context(Swap(layer, "call", _noting(layer.call, seen[path])))
                masked.model(x, training=False)
            yield masked.cluster.from_chief(seen)

    def _batches(self) -> Iterator[tuple[Any, Any, Any]]:
        """x, y and the weights of examples, of each batch."""
        data, empty = self._data, True
        indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        all_of_it = (data[index] for index in range(len(data))) if indexed else iter(data)
        for batch in itertools.islice(all_of_it, self._count):
            empty = False
            parts = (*(batch if isinstance(batch, tuple) else (batch,)), None, None)[:3]
            x, y, sample_weight = tf.nest.map_structure(
                lambda part: None if part is None else tf.convert_to_tensor(part), parts
            )
            yield x, y, sample_weight
        if empty:
            raise ValueError("The criterion asks for training data, and what it was given has no batches.")


def _noting(call: Any, inputs: list[np.ndarray]) -> Any:
    """A layer's `call` that notes what it is called with."""

    def call_and_note(x: Any, *arguments: Any, **settings: Any) -> Any:
        inputs.append(np.asarray(tf.cast(x, tf.float32)))
        return call(x, *arguments, **settings)

    return call_and_note


@contextlib.contextmanager
def _metrics_kept(model: Any) -> Iterator[None]:
    """Computing a loss may count towards the metrics of the epoch that goes on."""
    variables = [variable for metric in model.metrics for variable in metric.variables]
    values = [tf.identity(variable) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
