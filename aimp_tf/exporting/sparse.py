"""Sparse matrix products in place of dense layers, where they are faster on this machine."""

from __future__ import annotations

import dataclasses
import functools
import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import model_of
from aimp_tf.config.texts import aligned, check_whole
from aimp_tf.graph.copies import Copies, compile_alike
from aimp_tf.graph.model_graph import Call, ModelGraph
from aimp_tf.masking import check_plain

_log = logging.getLogger(__name__)

METHODS = ("coordinates", "rows")
# Here both products take several times as long as the dense one (docs/inference.md).
_LOWEST_SPARSITY = 0.5
# A smaller gain may be noise.
_MARGIN = 0.1


@dataclasses.dataclass(frozen=True)
class LayerChoice:
    """What was timed for a layer, and chosen.

    Attributes:
        name: Name of the layer in the new model.
        shape: Inputs and outputs of its kernel.
        sparsity: Fraction of the kernel that is zero.
        seconds: Lower quartile of the times of a call, by method, "dense" among them; empty where nothing was timed.
        chosen: "dense", "coordinates" or "rows".
        note: Why nothing was timed, or "".
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    seconds: Mapping[str, float]
    chosen: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class SparseReport:
    """What `sparse_inference` timed and chose, for each Dense layer and 1x1 convolution.

    Attributes:
        batch_size: Examples a call, for which it was chosen.
        layers: The choices, in the model's order.
    """

    batch_size: int
    layers: tuple[LayerChoice, ...]

    def table(self) -> str:
        """A line for each layer, with the times in microseconds."""
        rows = [["layer", "kernel", "sparsity", *(f"{method}, us" for method in ("dense", *METHODS)), "chosen"]]
        for layer in self.layers:
            times = (f"{layer.seconds[name] * 1e6:.0f}" if layer.seconds else "-" for name in ("dense", *METHODS))
            chosen = f"{layer.chosen}: {layer.note}" if layer.note else layer.chosen
            rows.append([layer.name, "x".join(map(str, layer.shape)), f"{layer.sparsity:.2%}", *times, chosen])
        return "\n".join((f"batch size {self.batch_size}", *aligned(rows)))


def sparse_inference(model: Any, batch_size: int = 1) -> Any:
    """A model for inference whose Dense layers and 1x1 convolutions are sparse matrix products where that is faster.

    Each such layer is timed on this machine, on inputs of the shape that it has in the model, as it is and as either of
    two sparse products of stock TensorFlow: "coordinates" (SparseTensorDenseMatMul), for single examples, and "rows"
    (compressed sparse rows, SparseMatrixMatMul), for batches and convolutions. A layer is only changed where one of
    them takes at least 10% less time, the call itself included. Only layers that are at least half zeros are timed.
    What was timed and chosen is logged at level INFO, and returned by `sparse_inference_and_report`.

    A changed layer stores the surviving weights alone, 12 bytes each, and no kernel. Models of it are for
    `aimp_tf.export(model, directory, "saved_model")`, which any TensorFlow can load: a `.keras` file would need aimp_tf
    to be read, so Keras refuses to write one.

    Args:
        model: A built model of either generation without masks, whose `call` can be traced, or a `PruningResult`. It is
            not changed.
        batch_size: Examples a call, to choose for. The new model takes batches of any size, and is right for all.

    Returns:
        A functional model of the same generation, not trainable, that computes the same but for float32 rounding.
        Layers that cannot be made from their configs share their weights with `model`, and stay trainable as they are;
        they are logged at level INFO.

    Raises:
        TypeError, ValueError: `batch_size` is not a whole number above 0; or as `ModelGraph.of`.
    """
    return sparse_inference_and_report(model, batch_size)[0]


def sparse_inference_and_report(model: Any, batch_size: int = 1) -> tuple[Any, SparseReport]:
    """As `sparse_inference`, with what was timed and chosen."""
    check_whole("batch_size", batch_size, 1)
    model = model_of(model)
    check_plain(model)
    graph = ModelGraph.of(model)
    replacements: dict[int, Any] = {}
    choices = []
    for key, of_layer in graph.by_layer.items():
        layer = of_layer[0].layer
        if _is_candidate(layer, graph.keras):
            choice, replacements[key] = _choose(of_layer, graph.keras, batch_size)
            choices.append(choice)
    report = SparseReport(batch_size, tuple(choices))
    _log.info("Sparse inference: %s", report.table())
    copies = Copies(graph)
    sparse = graph.build(lambda call: replacements.get(id(call.layer)) or copies.of(call))
    copies.set_weights()
    for layer in sparse.layers:
        if layer.name not in copies.shared:  # Those would not train in the model itself any more, either.
            layer.trainable = False
    compile_alike(sparse, model)  # Now, lest the optimizer make slots for what does not train.
    return sparse, report


def _is_candidate(layer: Any, keras: Any) -> bool:
    """Whether it is a Dense layer or a 1x1 convolution. Subclasses may compute something else."""
    kind, kinds = type(layer), keras.layers
    return kind is kinds.Dense or kind in (kinds.Conv1D, kinds.Conv2D, kinds.Conv3D) and set(layer.kernel_size) == {1}


def _choose(calls: Sequence[Call], keras: Any, batch_size: int) -> tuple[LayerChoice, Any | None]:
    """The choice for a layer, of which these are all calls, and what is to stand in its place, if anything."""
    layer, name = calls[0].layer, calls[0].name
    kernel = np.asarray(layer.kernel).reshape(layer.kernel.shape[-2:])
    shapes = [(call.inputs[0].shape[0] or batch_size, *call.inputs[0].shape[1:]) for call in calls]
    size = (kernel.shape[0], kernel.shape[1])
    choice = LayerChoice(name, size, float(np.mean(kernel == 0)), {}, "dense", _why_not(layer, kernel, shapes))
    if choice.note:
        return choice, None
    bias = np.asarray(layer.bias) if layer.use_bias else None
    strides = tuple(getattr(layer, "strides", ()))
    candidates = {
        method: sparse_layer(keras)(kernel, bias, layer.activation, strides, method, name=name) for method in METHODS
    }
    for candidate in candidates.values():
        candidate.supports_masking = layer.supports_masking
    seconds = _time({"dense": layer, **candidates}, shapes)
    best = min(METHODS, key=lambda method: seconds[method])
    chosen = "dense" if seconds[best] > (1 - _MARGIN) * seconds["dense"] else best
    return dataclasses.replace(choice, seconds=seconds, chosen=chosen), candidates.get(chosen)


def _why_not(layer: Any, kernel: np.ndarray, shapes: Sequence[tuple[int | None, ...]]) -> str:
    if kernel.dtype != np.float32 or layer.compute_dtype != "float32":
        return f"computes in {layer.compute_dtype}"
    if getattr(layer, "lora_enabled", False):
        return "has LoRA weights"
    if getattr(layer, "groups", 1) != 1:
        return "has groups of channels"
    if getattr(layer, "data_format", None) == "channels_first":
        return "its channels come first"
    if np.mean(kernel == 0) < _LOWEST_SPARSITY:
        return "too few zeros"
    if any(None in shape for shape in shapes):
        return "its input has an open axis beside that of the batch"
    return ""


def _time(layers: Mapping[str, Any], shapes: Sequence[Any]) -> dict[str, float]:
    """Seconds that each layer takes for inputs of all these shapes, in turn, with about 50 ms for each.

    The lower quartile, for what else the machine does only adds to it.
    """
    generator = np.random.default_rng(0)
    inputs = [tf.constant(generator.normal(size=shape), tf.float32) for shape in shapes]

    def traced(layer: Any) -> list[Any]:
        function = tf.function(lambda x: layer(x))
        return [function.get_concrete_function(x) for x in inputs]

    def call(functions: Sequence[Any]) -> None:
        for function, x in zip(functions, inputs, strict=True):
            function(x).numpy()  # On a GPU, this waits for it.

    by_name = {name: traced(layer) for name, layer in layers.items()}
    for functions in by_name.values():
        call(functions)
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    spent = 0.0
    while len(seconds["dense"]) < 20 or (spent < 0.05 * len(layers) and len(seconds["dense"]) < 400):
        for name, functions in by_name.items():
            begun_at = time.perf_counter()
            call(functions)
            seconds[name].append(time.perf_counter() - begun_at)
            spent += seconds[name][-1]
    return {name: statistics.quantiles(values)[0] for name, values in seconds.items()}


@functools.cache
def sparse_layer(keras: Any) -> Any:
    """The class of sparse layers of a generation of Keras."""

    # Within the function, as long as it is, for its base comes with the generation.
    class SparseMatmul(keras.layers.Layer):
        """Product of the last axis with a sparse matrix, plus bias, through an activation.

        Args:
            kernel: (inputs, outputs).
            bias: (outputs,) or None.
            activation: A function of a tensor.
            strides: Of the axes between the first and the last, as a 1x1 convolution has them; () for none.
            method: One of METHODS.
        """

        def __init__(self, kernel, bias, activation, strides, method, *, name):
            super().__init__(name=name, trainable=False, dtype="float32")
            self.supports_jit = False  # XLA knows no sparse products.
            self._method, self._activation, self._strides = method, activation, strides
            self._shape = tuple(map(int, kernel.shape))
            # Both products are fastest with the indices in the order in which they read them: by input for single
            # examples, by output otherwise.
            matrix = kernel if method == "coordinates" else kernel.T
            self._indices = self._add("indices", np.argwhere(matrix).astype(np.int32))
            self._values = self._add("values", matrix[matrix != 0])
            self._bias = None if bias is None else self._add("bias", bias)

        def _add(self, name, value):
            # As int32, for int64 indices would take 8 more bytes for each weight.
            return self.add_weight(
                name=name,
                shape=value.shape,
                dtype=value.dtype.name,
                initializer=lambda *_, **__: tf.constant(value),
                trainable=False,
            )

        def call(self, inputs):
            x = tf.cast(inputs, tf.float32)
            if any(stride != 1 for stride in self._strides):
                x = x[(slice(None), *(slice(None, None, stride) for stride in self._strides))]
            y = self._multiply(x if x.shape.rank == 2 else tf.reshape(x, (-1, self._shape[0])))
            if x.shape.rank != 2:
                y = tf.reshape(y, tf.concat([tf.shape(x)[:-1], self._shape[1:]], 0))
            y = tf.ensure_shape(y, (*x.shape[:-1], self._shape[1]))
            return self._activation(y if self._bias is None else y + self._bias)

        def _multiply(self, x):
            indices, values = tf.convert_to_tensor(self._indices), tf.convert_to_tensor(self._values)
            if self._method == "coordinates":
                product = tf.raw_ops.SparseTensorDenseMatMul(
                    a_indices=indices,
                    a_values=values,
                    a_shape=tf.constant(self._shape, tf.int64),
                    b=x,
                    adjoint_a=True,
                    adjoint_b=True,
                )
                return tf.transpose(product)
            matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(
                indices=tf.cast(indices, tf.int64),
                values=values,
                dense_shape=tf.constant(self._shape[::-1], tf.int64),
            )
            return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=x, transpose_b=True, transpose_output=True)

        def get_config(self):
            raise NotImplementedError(
                f"The layer {self.name!r} of sparse_inference is for SavedModels only. Keep the model that it was made "
                "from to save it as a .keras file or to make another one of it."
            )

    return SparseMatmul
