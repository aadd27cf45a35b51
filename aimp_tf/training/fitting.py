"""Fitting: what every `fit` of a run is called with."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.models import is_built, is_keras_own
from aimp_tf.compat.variables import resource_of
from aimp_tf.config.texts import check_whole
from aimp_tf.training.device_arrays import DeviceArrays, bytes_of
from aimp_tf.training.input_pipeline import (
    DEFAULT_BATCH_SIZE,
    Order,
    array_positions,
    batch_count,
    in_batches,
    prepare,
    spec_of,
)
from aimp_tf.training.rounds import plain_logs
from aimp_tf.training.statistics import batches_of
from aimp_tf.training.targets import check_class_weight, check_targets
from aimp_tf.training.teaching import Teacher, with_outputs

logger = logging.getLogger(__name__)

_TRAINING = "The training data"
_BATCH_SIZES = ("batch_size", "validation_batch_size")
_KEPT_BYTES = 2**28
"""What a teacher gives is kept if it takes no more, however small the data is."""


class Fitting:
    """What every `fit` of a run is called with.

    Args:
        train_data: As `input_pipeline.prepare` takes it.
        validation_data: The same, or None.
        callbacks: A list of Keras callbacks.
        options: The other arguments of `fit`.
        verbose: As in `fit`.
        seed: Of the order of arrays; None draws one.
        generation: "keras" or "tf_keras".
        cluster: The workers of the model.
        order_goes_on: Whether each epoch reads arrays in the next order by itself, as `Order` says.
        steps_per_execution: How many a Keras 3 model takes, as it was compiled; 1 for one of tf_keras.
        trains: Whether epochs are read, and not a sample alone, of data that need not end then.

    Attributes:
        train: The training data, made ready.
        validation: The validation data, made ready, or None.
        examples: How many examples that has, where it is arrays; None for other data.
        order: The order in which arrays are read; None for other data, which has its own.
        callbacks: As above.
        options: What `fit` is called with beside data, epochs and callbacks.

    Raises:
        TypeError, ValueError: The data cannot be read again for each `fit`, or does not fit the options.
    """

    def __init__(
        self,
        train_data: Any,
        validation_data: Any,
        callbacks: Sequence[Any],
        options: Mapping[str, Any],
        verbose: str | int,
        seed: int | None,
        generation: str,
        cluster: Cluster,
        *,
        order_goes_on: bool = False,
        steps_per_execution: int = 1,
        trains: bool = True,
    ) -> None:
        _check_options(options)
        floatx = importlib.import_module(generation).backend.floatx()
        # Keras 3 makes NaN of a replica's share of a batch where there is nothing in it.
        least_batch = cluster.replicas if generation == "keras" else 1
        self.callbacks = callbacks
        self._given, self._cluster = (train_data, validation_data), cluster
        self.options = {name: value for name, value in options.items() if name not in _BATCH_SIZES}
        self.options["verbose"] = verbose
        batch_size, validation_batch_size = map(options.get, _BATCH_SIZES)
        self.order = None
        self._batch_size = batch_size or DEFAULT_BATCH_SIZE
        self._arrays: tuple[tuple, tf.data.Dataset] | None = None
        self._on_device: DeviceArrays | None = None
        self._teacher: Teacher | None = None
        self._to_read = None
        arrays = {"floatx": floatx, "least_batch": least_batch}
        if isinstance(train_data, tuple):
            self.order = Order(seed, shuffle=bool(options.get("shuffle", True)), goes_on=order_goes_on)
            steps = options.get("steps_per_epoch")
            if steps:  # Keras 3 reads whole executions.
                steps = -(-steps // steps_per_execution) * steps_per_execution
            self._arrays = array_positions(
                train_data, _TRAINING, batch_size=batch_size, order=self.order, steps_per_epoch=steps, **arrays
            )
            self.train = in_batches(*self._arrays)
        else:
            self.train = prepare(train_data, _TRAINING, batch_size=batch_size)
        _check_shared(train_data, self.train, cluster)
        if isinstance(self.train, tf.data.Dataset):
            self.options["shuffle"] = False  # Keras 3 warns of its own default, which does not apply to a Dataset.
        if trains:
            _check_end(self.train, _TRAINING, options.get("steps_per_epoch"), "steps_per_epoch")
        self.validation = None
        self.examples: int | None = None
        if validation_data is not None:
            if validation_batch_size is None and isinstance(validation_data, tuple):
                validation_batch_size = batch_size
            self.validation = prepare(validation_data, "validation_data", batch_size=validation_batch_size, **arrays)
            if isinstance(validation_data, tuple):
                self.examples = len(tf.nest.flatten(validation_data)[0])
                if steps := options.get("validation_steps"):
                    self.examples = min(self.examples, steps * (validation_batch_size or DEFAULT_BATCH_SIZE))
            _check_end(self.validation, "validation_data", options.get("validation_steps"), "validation_steps")

    def batches(self) -> int:
        """How many batches an epoch has. Data that does not tell is read once, to count them."""
        steps = self.options.get("steps_per_epoch") or batch_count(self.train)
        if steps > 0:
            return steps
        logger.info("The training data does not tell how many batches it has; reading it once to count them.")
        return int(self.train.reduce(np.int64(0), lambda count, _: count + 1))

    def sample(self) -> Any:
        """The training data to take a few batches of, from the first on: of arrays, in an order of the run's own that
        is the same whenever they are read."""
        if self._arrays is None or self.order is None:
            return self.train
        tensors = self._arrays[0]
        positions = Order(self.order.seed).batches(len(tf.nest.flatten(tensors)[0]), self._batch_size)
        return in_batches(tensors, positions)

    def learn_from(self, teacher: Teacher) -> None:
        """Looks up once what a teacher gives for each example of arrays, for every `fit` from now on; for other data,
        and where it would take more memory than the arrays themselves, the teacher is asked in each step."""
        # Keras looks at the classes of the elements itself.
        if self._arrays is None or self.options.get("class_weight") is not None:
            return
        arrays, positions = self._arrays
        examples, first = len(tf.nest.flatten(arrays)[0]), self._batch_size
        of_first = teacher.outputs_of(tf.nest.map_structure(lambda array: array[:first], arrays[0]), first)
        if bytes_of(of_first) / min(first, examples) * examples > max(bytes_of(arrays), _KEPT_BYTES):
            return
        taught = teacher.outputs_of(arrays[0], self._batch_size)
        self._teacher, with_taught = teacher, with_outputs(arrays, taught)
        self._to_read = in_batches(with_taught, positions)
        if self._on_device is not None:
            self._on_device = self._on_device.in_place_of(with_taught, positions)

    def measure(self, model: Any, logs: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The metrics that evaluating a model on the data gives; of those in the logs of a `fit`, if there are any."""
        steps = self.options.get("steps_per_epoch")
        measured = model.evaluate(self.train, steps=steps, verbose=0, return_dict=True)
        measured |= self.validated(model)
        return plain_logs({name: measured[name] for name in logs or measured if name in measured})

    def validated(self, model: Any) -> dict[str, Any]:
        """The metrics on the validation data alone, by the names that the logs of a `fit` have for them."""
        if self.validation is None:
            return {}
        steps = self.options.get("validation_steps")
        measured = model.evaluate(self.validation, steps=steps, verbose=0, return_dict=True)
        return {f"val_{name}": value for name, value in measured.items()}

    def make_ready(self, model: Any) -> None:
        """Settles the order of the examples, builds a compiled model, and looks whether it takes the data.

        Raises:
            TypeError, ValueError: The model cannot be built from the data, or does not take it.
        """
        # All workers read arrays in the order of the chief, whose seed may be drawn.
        seed = self._cluster.from_chief(None if self.order is None else self.order.seed)
        if self.order is not None:
            self.order.seed = seed
            self.order.begin(0, 0)
        _build(model, self.train)
        for name, given, batches in zip(
            ("the training data", "validation_data"), self._given, (self.train, self.validation), strict=True
        ):
            _check_batches(model, batches, name)
            check_targets(model, given, name)
        check_class_weight(self._given[0], self.options.get("class_weight"))

    def check_on_device(self, model: Any) -> None:
        """Raises TypeError or ValueError if `data_on_device` cannot be done."""
        if self._arrays is None:
            raise TypeError(
                f"data_on_device takes arrays x, y; got {type(self.train).__name__}. Give arrays, or set "
                "data_on_device=False."
            )
        for array in tf.nest.flatten(self._arrays[0]):
            if not (array.dtype.is_integer or array.dtype.is_floating or array.dtype.is_complex or array.dtype.is_bool):
                raise TypeError(
                    f"data_on_device takes arrays of numbers; got one of dtype {array.dtype.name}. Make "
                    "numbers of it, or set data_on_device=False."
                )
        self._cluster.check_one_device("data_on_device", " Set data_on_device=False.")
        if self.options.get("class_weight") is not None:
            raise ValueError(
                "With data_on_device, fit does not see the classes that class_weight is for. Give each example its "
                "weight by sample_weight, or set data_on_device=False."
            )
        for name in ("fit", "make_train_function"):
            if not is_keras_own(getattr(type(model), name)):
                raise ValueError(
                    f"With data_on_device, fit reads positions of examples, which the {name} of "
                    f"{type(model).__name__} may not expect. Leave it to Keras, or set data_on_device=False."
                )

    @contextlib.contextmanager
    def on_device_of(self, model: Any) -> Iterator[None]:
        """Within it, every `fit` gathers its batches in the memory of the device that a built model is on.

        Raises:
            ValueError: There is no room for them.
        """
        assert self._arrays is not None
        # Not those of tf_keras' lookup layers. A model without any is refused later, for it has nothing to prune.
        devices = (resource_of(weight).device for weight in model.weights if hasattr(weight, "assign"))
        self._on_device = DeviceArrays(*self._arrays, next(devices, "CPU:0"))
        try:
            yield
        finally:
            self._on_device.release()

    def fit(self, model: Any, callbacks: Sequence[Any], *, epochs: int, initial_epoch: int = 0) -> None:
        """Calls `fit` of a model, with these callbacks and no others."""
        data = self.train if self._teacher is None else self._to_read
        with contextlib.ExitStack() as reading:
            if self._teacher is not None:
                reading.enter_context(self._teacher.reading(model))
            if self._on_device is not None:
                data = self._on_device.batches
                reading.enter_context(self._on_device.gathering(model))
            model.fit(
                data,
                epochs=epochs,
                initial_epoch=initial_epoch,
                validation_data=self.validation,
                callbacks=callbacks,
                **self.options,
            )


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError for numbers of `fit` that are none, of which some would train without end."""
    for name in ("batch_size", "steps_per_epoch", "validation_batch_size", "validation_steps"):
        if options.get(name) is not None:
            check_whole(name, options[name], 1)
    class_weight = options.get("class_weight")
    if class_weight is not None and not isinstance(class_weight, Mapping):
        raise TypeError(
            f"class_weight must be a dict from a class to its weight; got {class_weight!r:.60}. Write "
            "class_weight=dict(enumerate(weights))."
        )


def _build(model: Any, train: Any) -> None:
    """Gives a model that has no weights yet its weights, by calling it on one batch."""
    if is_built(model):
        return
    try:
        with model.distribute_strategy.scope():
            model(next(batches_of(train, 1))[0])
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} cannot be built from the training data, which gives {spec_of(train)}. The error "
            f"was: {error}"
        ) from error


def _check_batches(model: Any, data: Any, name: str) -> None:
    """Raises ValueError for a dataset of single examples of the one input of a model, which is to be batched."""
    spec: Any = data.element_spec if isinstance(data, tf.data.Dataset) else None
    spec = spec[0] if isinstance(spec, tuple) else spec
    inputs: Any = getattr(model, "inputs", None) or ()
    if not isinstance(spec, tf.TensorSpec) or len(inputs) != 1 or spec.shape.rank is None:
        return
    example = tuple(inputs[0].shape)[1:]
    if tuple(spec.shape) == example and None not in example and example:
        raise ValueError(
            f"Single examples came in {name}, of shape {example}, and the model {model.name!r} takes batches of them. "
            "Write dataset.batch(32)."
        )


def _check_shared(given: Any, data: Any, cluster: Cluster) -> None:
    """Raises ValueError where workers would read the training data in different orders."""
    if cluster.size > 1 and not isinstance(data, tf.data.Dataset):
        raise ValueError(
            f"The training data is a {type(given).__name__}, which every worker would read in an order of its "
            "own. With several workers, it must be a tf.data.Dataset or arrays x, y."
        )


def _check_end(data: Any, name: str, steps: int | None, option: str) -> None:
    """Raises ValueError for data without end, of which `fit` is not told how much to read."""
    if steps is None and isinstance(data, tf.data.Dataset) and batch_count(data) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{name} never ends. Give {option}, or the part of it to read, as dataset.take(batches).")
