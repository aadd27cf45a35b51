"""What criteria may ask of the training data: gradients of weights, and what weights multiply."""

from __future__ import annotations

import collections
import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.keras_own import is_keras_own
from aimp_tf.compat.models import compiled_loss
from aimp_tf.compat.swap import Swap
from aimp_tf.compat.variables import bare, key_of
from aimp_tf.graph.prunable import readers
from aimp_tf.graph.windows import has_channels_last, has_rows, sampled_rows, takes_intercept
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.grams import Gram

_LOSS_SCALES = (2.0**10, 1.0, 2.0**-10)
"""The first with which no gradient is infinite: those that float16 would round to zero pass with the first one. They
are powers of two, so that others stay the same."""

_OF_WEIGHTS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "gradients": lambda gradient, examples: gradient,
    "absolute_gradients": lambda gradient, examples: np.abs(gradient),
    "squared_gradients": lambda gradient, examples: examples * gradient**2,
}
"""Name -> what is averaged over batches of a gradient, and of the examples in its batch."""

_OF_INPUTS = ("activations", "densities", "contributions", "grams")
_OF_LOSS = (*_OF_WEIGHTS, "contributions")


class ModelSample:
    """A few batches of the training data as a masked model sees them, in inference mode.

    Of several workers, all must ask for the same: gradients of weights are the mean over their batches, and all else is
    what the chief's batches give.

    Args:
        masked: The model.
        data: Batches of (x,), (x, y) or (x, y, sample_weight): a tf.data.Dataset, a PyDataset or a list.
        batches: How many of them, from the first on; all where there are fewer.
    """

    def __init__(self, masked: MaskedModel, data: Any, batches: int) -> None:
        self._masked = masked
        self._data = data
        self._count = batches
        self._observers: dict[frozenset[str], _Observer] = {}
        self._compiled: Any = None

    def is_of(self, masked: MaskedModel, data: Any) -> bool:
        """Whether it was made for this model and these data."""
        return self._masked is masked and self._data is data

    def collect(self, names: Iterable[str]) -> Mapping[str, Any]:
        """Name -> that attribute of `Statistics`, in one pass over the batches.

        Memory beside that of a step: of gradients, the weights twice over in float64; of activations, one number for
        each example and channel; of Gram matrices, the square of each kernel's rows in float64.

        Raises:
            ValueError: The data has no targets or no batches, or targets that are no classes where labels are asked
                for; or the model was compiled without a loss.
        """
        names = frozenset(names)
        compiled = compiled_loss(self._masked.model)
        if compiled is not self._compiled:  # What was traced is of another.
            self._observers.clear()
            self._compiled = compiled
        if names not in self._observers:
            self._observers[names] = _Observer(self._masked, names)
        collected = _Collected(self._masked, names, self._observers[names])
        for batch in batches_of(self._data, self._count):
            collected.add(*batch)
        return collected.result()

    def inputs(self) -> Iterator[Mapping[str, Sequence[np.ndarray]]]:
        """Of each batch, path -> what the prunable variable multiplies, one array for each call of its layer."""
        masked = self._masked
        layers = reading_layers(masked)
        for x, _, _ in batches_of(self._data, self._count):
            seen: dict[str, list[np.ndarray]] = {path: [] for path in layers}

            def note(path: str, value: tf.Tensor, seen: dict[str, list[np.ndarray]] = seen) -> tf.Tensor:
                seen[path].append(np.asarray(tf.cast(value, tf.float32)))
                return value

            with listening(layers, note), masked.model.distribute_strategy.scope():
                masked.model(x, training=False)
            yield masked.cluster.from_chief(seen)


class _Observer:
    """What a batch tells, traced once for all batches and all rounds.

    Attributes:
        layers: Path -> layer, of the kernels whose inputs are looked at.
        variables: Path -> variable, of those whose gradients are.
    """

    def __init__(self, masked: MaskedModel, names: frozenset[str]) -> None:
        layers = reading_layers(masked) if names & set(_OF_INPUTS) else {}
        self.layers = {path: layer for path, layer in layers.items() if has_channels_last(layer)}
        self.variables = masked.variables if names & _OF_WEIGHTS.keys() else {}
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
            name: {path: [] for path in self.layers} for name in names & set(_OF_INPUTS)
        }
        inputs: dict[str, list[tf.Tensor]] = {path: [] for path in self.layers}
        watched = [bare(variable) for variable in self.variables.values()]
        with contextlib.ExitStack() as stack:
            tape = None
            if names & set(_OF_LOSS):
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
            outputs = model(x, training=False)
            if tape is None:
                return [], seen
            _check_loss(model)  # Now, for losses that layers add come with a call.
            loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=sample_weight)
            loss = scale * tf.cast(loss, tf.float32)
        gradients, slopes = tape.gradient(loss, (watched, inputs), unconnected_gradients="zero")
        for path in self.layers if "contributions" in names else ():
            for value, slope in zip(inputs[path], slopes[path], strict=True):
                product = tf.cast(value, tf.float32) * (tf.cast(slope, tf.float32) / scale)
                seen["contributions"][path].append(tf.reduce_sum(product, _positions(product)))
        # Some are gathered rows alone.
        return [tf.convert_to_tensor(each) / tf.cast(scale, each.dtype) for each in gradients], seen

    def _note(self, path: str, value: tf.Tensor, number: tf.Tensor, seen: Mapping[str, dict[str, list[Any]]]) -> None:
        """Takes what a layer is called with, as little of it as is needed."""
        if "activations" in seen:
            seen["activations"][path].append(tf.reduce_mean(tf.cast(value, tf.float32), _positions(value)))
        if "densities" in seen:
            nonzero = tf.cast(value != 0, tf.float32)
            seen["densities"][path].append(tf.reduce_mean(nonzero, _positions(value)))
        if "grams" in seen and has_rows(self.layers[path]):
            # By the number of the batch and the place of the layer alone, so that it is the same whenever it is drawn.
            rows = sampled_rows(self.layers[path], value, tf.stack([number, list(self.layers).index(path)]))
            rows = tf.cast(rows, tf.float64)  # Of products in float32, nothing is left where means are large.
            moments = tf.matmul(rows, rows, transpose_a=True)
            seen["grams"][path].append((moments, tf.reduce_sum(rows, 0), tf.cast(tf.shape(rows)[0], tf.float64)))


class _Collected:
    """What one pass gathers."""

    def __init__(self, masked: MaskedModel, names: frozenset[str], observe: _Observer) -> None:
        self._masked, self._names, self._observe = masked, names, observe
        self._sums: dict[str, dict[str, Any]] = collections.defaultdict(dict)
        self._tables: dict[str, dict[str, list[np.ndarray]]] = collections.defaultdict(dict)
        self._labels: list[np.ndarray] = []
        self._count = 0

    def add(self, x: Any, y: Any, sample_weight: Any) -> None:
        """Takes the next batch."""
        examples = int(tf.nest.flatten(x)[0].shape[0])
        of_loss = self._names & set(_OF_LOSS) and getattr(self._masked.model, "loss", None)
        if y is None and (of_loss or "labels" in self._names):
            raise ValueError("The criterion asks for targets, and the training data has none.")
        if "labels" in self._names:
            self._labels.append(_classes(y, examples))
        gradients, seen = self._observe(self._count, x, y, sample_weight)
        for path, gradient in zip(self._observe.variables, gradients, strict=True):
            self._add_gradient(path, gradient.astype(np.float64), examples * self._masked.cluster.size)
        for name, of_paths in seen.items():
            for path, calls in of_paths.items():
                if calls:
                    self._add_calls(name, path, calls, examples)
        self._count += 1

    def result(self) -> dict[str, Any]:
        """The attributes by their names."""
        sums, layers = self._sums, self._observe.layers
        of_weights = {
            name: {path: (total / self._count).astype(np.float32) for path, total in sums[name].items()}
            for name in self._names & _OF_WEIGHTS.keys()
        }
        others: dict[str, Any] = {name: self._tables[name] for name in self._names & set(_OF_INPUTS) if name != "grams"}
        if "labels" in self._names:
            others["labels"] = self._labels
        if "grams" in self._names:
            others["grams"] = sums["grams"]
        others = self._masked.cluster.from_chief(others)
        if "grams" in self._names:
            others["grams"] = {
                path: Gram(moments / count, total / count, int(count), takes_intercept(layers[path]))
                for path, (moments, total, count) in others["grams"].items()
            }
        return of_weights | others

    def _add_gradient(self, path: str, gradient: np.ndarray, examples: int) -> None:
        for name in self._names & _OF_WEIGHTS.keys():
            self._sums[name][path] = self._sums[name].get(path, 0.0) + _OF_WEIGHTS[name](gradient, examples)

    def _add_calls(self, name: str, path: str, calls: Sequence[Any], examples: int) -> None:
        if name == "grams":
            for call in calls:
                values = [each.numpy() for each in call]
                if path not in self._sums[name]:
                    self._sums[name][path] = [np.array(value) for value in values]
                    continue
                for total, value in zip(self._sums[name][path], values, strict=True):
                    total += value
            return
        of_calls = [call.numpy() for call in calls]
        if name == "contributions":
            # The loss is the mean over the examples, and a replica's share of it.
            scale = examples * self._masked.cluster.replicas
            table = np.sum(of_calls, axis=0) * np.float32(scale)
        else:
            table = np.mean(of_calls, axis=0)
        self._tables[name].setdefault(path, []).append(table)


def reading_layers(masked: MaskedModel) -> dict[str, Any]:
    """Path of a kernel -> the layer that multiplies what it is called with by it, of a masked model's variables."""
    keys = {key_of(variable): path for path, variable in masked.variables.items()}
    return {
        path: layer for variable, layer in readers(masked.original) if (path := keys.get(key_of(variable))) is not None
    }


def batches_of(data: Any, count: int) -> Iterator[tuple[Any, Any, Any]]:
    """x, y and the weights of examples, as tensors, of so many batches of the training data. Raises ValueError if it
    has none."""
    empty = True
    if isinstance(data, tuple):
        raise TypeError(
            "A sample is batches of the training data, such as dataset.take(8) or aimp_tf.array_dataset((x, y), "
            "batch_size=32); got a tuple."
        )
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    all_of_it = (data[index] for index in range(len(data))) if indexed else iter(data)
    for batch in itertools.islice(all_of_it, count):
        empty = False
        parts = (*(batch if isinstance(batch, (tuple, list)) else (batch,)), None, None)[:3]
        x, y, sample_weight = tf.nest.map_structure(_as_tensor, parts)
        yield x, y, sample_weight
    if empty:
        raise ValueError("The criterion asks for training data, and what it was given has no batches.")


def _as_tensor(part: Any) -> Any:
    composite = (tf.SparseTensor, tf.RaggedTensor)
    return part if part is None or isinstance(part, composite) else tf.convert_to_tensor(part)


@contextlib.contextmanager
def listening(
    layers: Mapping[str, Any], note: Callable[[str, tf.Tensor], tf.Tensor], *, outputs: bool = False
) -> Iterator[None]:
    """Within it, `note` hears of what each layer is called with, and gives what it is to be called with; or of what it
    gives."""

    def noting(path: str, layer: Any) -> Any:
        call = layer.call

        def call_and_note(*arguments: Any, **settings: Any) -> Any:
            if outputs:
                return note(path, call(*arguments, **settings))
            given = inspect.signature(call).bind(*arguments, **settings)
            first = next(iter(given.arguments))
            given.arguments[first] = note(path, given.arguments[first])
            return call(*given.args, **given.kwargs)

        # A layer of the user's own may be written for AutoGraph, by which tf_keras calls it.
        of_keras = is_keras_own(type(layer).call)
        return tf.autograph.experimental.do_not_convert(call_and_note) if of_keras else call_and_note

    with contextlib.ExitStack() as swaps:
        for path, layer in layers.items():
            swaps.enter_context(Swap(layer, "call", noting(path, layer)))
        yield


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


def _classes(y: Any, examples: int) -> np.ndarray:
    """The class of each example, of targets that are numbers of classes or one-hot."""
    flat = tf.nest.flatten(y)
    targets = np.asarray(flat[0])
    if targets.ndim == 2 and targets.shape[1] > 1 and (targets >= 0).all() and np.allclose(targets.sum(axis=1), 1):
        targets = targets.argmax(axis=1)
    if len(flat) > 1 or targets.size != examples or (targets != np.round(targets)).any():
        shapes = ", ".join(str(tuple(each.shape)) for each in flat)
        raise ValueError(
            f"The criterion asks for the class of each example, a whole number or a row of 0 and 1; got targets of "
            f"shape {shapes} for {examples} examples. Take a criterion that goes by the loss, such as 'taylor'."
        )
    return targets.reshape(-1).astype(np.int64)


def _positions(value: tf.Tensor) -> list[int]:
    """The axes between examples and channels."""
    return list(range(1, len(value.shape) - 1))
