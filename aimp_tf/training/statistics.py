"""What criteria may ask of the training data: gradients of weights, and what weights multiply."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import compiled_loss
from aimp_tf.graph.windows import takes_intercept
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.grams import Gram
from aimp_tf.training.listening import listening, reading_layers
from aimp_tf.training.observer import OF_GRADIENTS, OF_INPUTS, OF_LOSS, Observer


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
        self._observers: dict[frozenset[str], Observer] = {}
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
                for; or the model was compiled without a loss; or a kernel multiplies what is NaN or infinite.
        """
        names = frozenset(names)
        compiled = compiled_loss(self._masked.model)
        if compiled is not self._compiled:  # What was traced is of another.
            self._observers.clear()
            self._compiled = compiled
        if names not in self._observers:
            self._observers[names] = Observer(self._masked, names)
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


class _Collected:
    """What one pass gathers."""

    def __init__(self, masked: MaskedModel, names: frozenset[str], observe: Observer) -> None:
        self._masked, self._names, self._observe = masked, names, observe
        self._sums: dict[str, dict[str, Any]] = collections.defaultdict(dict)
        self._tables: dict[str, dict[str, list[Any]]] = collections.defaultdict(dict)
        self._count = 0

    def add(self, x: Any, y: Any, sample_weight: Any) -> None:
        """Takes the next batch."""
        examples = int(tf.nest.flatten(x)[0].shape[0])
        of_loss = self._names & set(OF_LOSS) and getattr(self._masked.model, "loss", None)
        if y is None and (of_loss or "labels" in self._names):
            raise ValueError("The criterion asks for targets, and the training data has none.")
        if "labels" in self._names:
            self._tables["labels"].setdefault("", []).append(_classes(y, examples))
        gradients, seen = self._observe(self._count, x, y, sample_weight)
        for path, gradient in zip(self._observe.variables, gradients, strict=True):
            self._add_gradient(path, gradient.astype(np.float64), examples * self._masked.cluster.size)
        for name, of_paths in seen.items():
            for path, calls in of_paths.items():
                if calls and name == "grams":
                    self._add_moments(path, calls)
                elif calls:
                    self._add_calls(name, path, calls, examples)
        self._count += 1

    def result(self) -> dict[str, Any]:
        """The attributes by their names."""
        of_weights = {
            name: {path: (total / self._count).astype(np.float32) for path, total in self._sums[name].items()}
            for name in self._names & OF_GRADIENTS.keys()
        }
        others: dict[str, Any] = {name: self._tables[name] for name in self._names & {"grams", "branches"}}
        for name in self._names & (set(OF_INPUTS) - {"grams"}):
            others[name] = {path: tables for path, tables in self._tables[name].items() if len(tables) == self._count}
        others |= {name: self._tables[name][""] for name in self._names & {"outputs", "labels"}}
        others = self._masked.cluster.from_chief(others)
        _check_finite(others)
        if "grams" in self._names:
            others["grams"] = {
                path: Gram(moments / count, total / count, int(count), takes_intercept(self._observe.layers[path]))
                for path, (moments, total, count) in others["grams"].items()
            }
        return of_weights | others

    def _add_gradient(self, path: str, gradient: np.ndarray, examples: int) -> None:
        for name in self._names & OF_GRADIENTS.keys():
            self._sums[name][path] = self._sums[name].get(path, 0.0) + OF_GRADIENTS[name](gradient, examples)

    def _add_moments(self, path: str, calls: Sequence[Any]) -> None:
        for call in calls:
            values = [np.array(each) for each in call]
            if path in self._tables["grams"]:
                for total, value in zip(self._tables["grams"][path], values, strict=True):
                    total += value
            else:
                self._tables["grams"][path] = values

    def _add_calls(self, name: str, path: str, calls: Sequence[Any], examples: int) -> None:
        summed = name == "contributions"
        of_calls = [call.numpy() for call in calls]
        if path in self._observe.stepped:
            by_steps = [call.reshape(examples, -1, call.shape[-1]) for call in of_calls]
            of_calls = [call.sum(axis=1) if summed else call.mean(axis=1) for call in by_steps]
        if name in OF_INPUTS and any(len(call) != examples for call in of_calls):
            return
        # The loss is the mean over the examples, and a replica's share of it.
        scale = examples * self._masked.cluster.replicas
        table = np.sum(of_calls, axis=0) * np.float32(scale) if summed else np.mean(of_calls, axis=0)
        self._tables[name].setdefault(path, []).append(table)


def _check_finite(seen: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the first kernel, where what kernels multiply is NaN or infinite."""
    for name in ("activations", "grams"):
        for path, parts in seen.get(name, {}).items():
            if not all(np.isfinite(part).all() for part in parts):
                raise ValueError(
                    f"What {path} multiplies is NaN or infinite for some of the examples that the criterion or repair "
                    "goes by. Look for such values in the first batches of the training data."
                )


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
        yield tf.nest.map_structure(_as_tensor, parts)
    if empty:
        raise ValueError("The training data has no batches.")


def _as_tensor(part: Any) -> Any:
    composite = (tf.SparseTensor, tf.RaggedTensor)
    return part if part is None or isinstance(part, composite) else tf.convert_to_tensor(part)


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
