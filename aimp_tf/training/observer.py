"""What one batch of the training data tells of a masked model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import is_keras_own, layers_of
from aimp_tf.compat.variables import bare
from aimp_tf.graph.blocks import ends_of
from aimp_tf.graph.windows import has_channels_last, has_rows, sampled_rows
from aimp_tf.masking import MaskedModel
from aimp_tf.training.listening import listening, reading_layers

OF_GRADIENTS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "gradients": lambda gradient, examples: gradient,
    "absolute_gradients": lambda gradient, examples: np.abs(gradient),
    "squared_gradients": lambda gradient, examples: examples * gradient**2,
}
"""Attributes of `Statistics` that gradients of weights tell -> what is averaged over batches of a gradient, and of the
examples in its batch."""

OF_INPUTS = ("activations", "densities", "contributions", "grams")
"""Those that what layers are called with tells."""

OF_LOSS = (*OF_GRADIENTS, "contributions")
"""Those that the loss tells."""

_LOSS_SCALES = (2.0**10, 1.0, 2.0**-10)
"""The first with which no gradient is infinite: those that float16 would round to zero pass with the first one. They
are powers of two, so that others stay the same."""


class Observer:
    """What a batch tells, traced once for all batches and all rounds.

    Attributes:
        layers: Path -> layer, of the kernels whose inputs are looked at.
        stepped: Those of these paths whose layers see the steps of an example one after the other, as if they were
            examples, those of the first example first.
        ends: Name of a block -> layer, of those whose outputs are, and which of them.
        variables: Path -> variable, of those whose gradients are.
    """

    def __init__(self, masked: MaskedModel, names: frozenset[str]) -> None:
        layers = reading_layers(masked) if names & set(OF_INPUTS) else {}
        self.layers = {path: layer for path, layer in layers.items() if has_channels_last(layer)}
        within = [layer.layer for layer in layers_of(masked.original) if type(layer).__name__ == "TimeDistributed"]
        self.stepped = {path for path, layer in self.layers.items() if any(layer is each for each in within)}
        self.ends = ends_of(masked.original) if "branches" in names else {}
        self.variables = masked.variables if names & OF_GRADIENTS.keys() else {}
        self._masked, self._names = masked, names
        # Windows are of sizes that are known when it is traced.
        self._traced = tf.function(self._on_replicas, autograph=False, reduce_retracing="grams" not in names)

    def __call__(
        self, number: int, x: Any, y: Any, sample_weight: Any
    ) -> tuple[list[np.ndarray], Mapping[str, Mapping[str, Sequence[Any]]]]:
        """The gradients of the variables, and name -> path -> what each call of the layer gives."""
        model = self._masked.model
        local = model.distribute_strategy.experimental_local_results
        for scale in _LOSS_SCALES:
            with model.distribute_strategy.scope(), _metrics_kept(model):
                of_weights, of_inputs = self._traced(tf.constant(number), tf.constant(scale), x, y, sample_weight)
            gradients = [gradient.numpy() for gradient in of_weights]
            seen = tf.nest.map_structure(lambda each: local(each)[0], of_inputs)
            of_loss = [*gradients, *tf.nest.flatten(seen.get("contributions", ()))]
            if all(np.isfinite(values).all() for values in of_loss):
                break
        return gradients, seen

    def _on_replicas(self, *batch: Any) -> tuple[list[tf.Tensor], dict[str, Any]]:
        strategy = self._masked.model.distribute_strategy
        # Each of several replicas has the whole batch, and its share of the loss, as in a step.
        gradients, seen = strategy.run(self._observe, batch)
        return [strategy.reduce("SUM", gradient, axis=None) for gradient in gradients], seen

    def _observe(
        self, number: tf.Tensor, scale: tf.Tensor, x: Any, y: Any, sample_weight: Any
    ) -> tuple[list[tf.Tensor], dict[str, Any]]:
        """As `__call__`, of a batch of this number, on one replica."""
        model, names = self._masked.model, self._names
        seen: dict[str, dict[str, list[Any]]] = {
            name: {path: [] for path in self.layers} for name in names & set(OF_INPUTS)
        }
        inputs: dict[str, list[tf.Tensor]] = {path: [] for path in self.layers}
        watched = [bare(variable) for variable in self.variables.values()]
        with contextlib.ExitStack() as stack:
            tape = None
            if names & set(OF_LOSS):
                tape = stack.enter_context(tf.GradientTape(watch_accessed_variables=False))
                tape.watch(watched)
            graph = tf.compat.v1.get_default_graph()

            def note(path: str, value: tf.Tensor) -> tf.Tensor:
                if value.graph is not graph:  # A step of a recurrent layer, which is not seen from without.
                    return value
                if tape is not None and "contributions" in names:
                    value = tf.identity(value)  # Of which this layer alone makes something.
                    tape.watch(value)
                    inputs[path].append(value)
                self._note(path, tf.stop_gradient(value), number, seen)
                return value

            stack.enter_context(listening(self.layers, note))
            added = stack.enter_context(_hearing(self.ends))
            outputs = model(x, training=False)
            if "branches" in names:
                seen["branches"] = {name: [_pooled(given)] for name, given in _checked(added).items()}
            if "outputs" in names:
                seen["outputs"] = {"": [_beside(tf.nest.flatten(outputs))]}
            if tape is None:
                return [], seen
            _check_loss(model)  # Now, for losses that layers add come with a call.
            loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight)
            loss = scale * tf.cast(loss, tf.float32)
        gradients, slopes = tape.gradient(loss, (watched, inputs), unconnected_gradients="zero")
        if "contributions" in names:
            seen["contributions"] = tf.nest.map_structure(functools.partial(_contribution, scale), inputs, slopes)
        return [_unscaled(gradient, scale) for gradient in gradients], seen

    def _note(self, path: str, value: tf.Tensor, number: tf.Tensor, seen: Mapping[str, dict[str, list[Any]]]) -> None:
        """Takes what a layer is called with, as little of it as is needed."""
        if "activations" in seen:
            seen["activations"][path].append(_pooled(value))
        if "densities" in seen:
            nonzero = tf.cast(value != 0, tf.float32)
            seen["densities"][path].append(tf.reduce_mean(nonzero, _positions(value)))
        if "grams" in seen and has_rows(self.layers[path]):
            # By the number of the batch and the place of the layer alone, so that it is the same whenever it is drawn.
            rows = sampled_rows(self.layers[path], value, tf.stack([number, list(self.layers).index(path)]))
            rows = tf.cast(rows, tf.float64)  # Of products in float32, nothing is left where means are large.
            moments = tf.matmul(rows, rows, transpose_a=True)
            seen["grams"][path].append((moments, tf.reduce_sum(rows, 0), tf.cast(tf.shape(rows)[0], tf.float64)))


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


def _check_loss(model: Any) -> None:
    if is_keras_own(type(model).compute_loss) and not getattr(model, "loss", None) and not model.losses:
        raise ValueError(
            f"The criterion asks for gradients of the loss, and the model {model.name!r} was compiled without one."
        )


@contextlib.contextmanager
def _hearing(ends: Mapping[str, tuple[Any, int]]) -> Iterator[dict[str, list[tf.Tensor]]]:
    """Name -> that output of each call of the layer within it."""
    heard: dict[str, list[tf.Tensor]] = {name: [] for name in ends}

    def note(name: str, value: Any) -> Any:
        heard[name].append(tf.nest.flatten(value)[ends[name][1]])
        return value

    with listening({name: layer for name, (layer, _) in ends.items()}, note, outputs=True):
        yield heard


def _checked(added: Mapping[str, Sequence[tf.Tensor]]) -> dict[str, tf.Tensor]:
    """What blocks add, each by one call."""
    if wrong := [name for name, heard in added.items() if len(heard) != 1]:
        raise ValueError(
            f"The criterion asks what blocks add, and what {', '.join(wrong)} adds is given by no layer, or by one "
            "that is called more than once. Take another criterion, such as 'taylor'."
        )
    return {name: heard[0] for name, heard in added.items()}


def _unscaled(gradient: Any, scale: tf.Tensor) -> tf.Tensor:
    """A gradient, of which there may be gathered rows alone, over the scale of the loss, in float32 at least."""
    dtype = max(gradient.dtype, tf.float32, key=lambda each: each.size)
    return tf.cast(tf.convert_to_tensor(gradient), dtype) / tf.cast(scale, dtype)


def _contribution(scale: tf.Tensor, value: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """The sum over positions of a * dl/da."""
    product = tf.cast(value, tf.float32) * (tf.cast(slope, tf.float32) / scale)
    return tf.reduce_sum(product, _positions(product))


def _beside(outputs: Sequence[tf.Tensor]) -> tf.Tensor:
    """All values of each example, the means over positions, float32 (examples, values)."""
    of_examples = [each for each in outputs if each.shape.rank]
    if not of_examples:
        raise ValueError("The criterion asks what the model gives for each example, and it gives one number for all.")
    return tf.concat([tf.reshape(_pooled(each), (tf.shape(each)[0], -1)) for each in of_examples], axis=1)


def _pooled(value: tf.Tensor) -> tf.Tensor:
    """The mean over positions, float32."""
    return tf.reduce_mean(tf.cast(value, tf.float32), _positions(value))


def _positions(value: tf.Tensor) -> list[int]:
    """The axes between examples and channels."""
    return list(range(1, len(value.shape) - 1))
