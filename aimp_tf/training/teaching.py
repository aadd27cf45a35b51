"""Learning from a teacher: what it gives for a batch, and how far the model is from it."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import check_built, keras_generation, keras_mask, layers_of, own_loss
from aimp_tf.compat.step import changed_batches
from aimp_tf.config.distillation import Distillation
from aimp_tf.config.texts import nearest
from aimp_tf.graph.model_graph import ModelGraph
from aimp_tf.training.listening import listening

logger = logging.getLogger(__name__)

_BATCH, _TAUGHT = "aimp_tf_batch", "aimp_tf_taught"
_LEAST_PROBABILITY = 1e-7
"""As Keras clips them."""

Loss = Callable[[Any, Any], tf.Tensor]
"""Of what a teacher and a model give, a tensor (examples, ...)."""


class Teacher:
    """A built model that another one, its student, learns from, and that does not change.

    Raises:
        TypeError: It is not a Keras model, or one of another generation than the student.
        ValueError: It has no weights yet, shares some that the student trains, or gives something of another shape.
    """

    def __init__(self, model: Any, student: Any) -> None:
        generation, expected = keras_generation(model), keras_generation(student)
        if generation != expected:
            raise TypeError(
                f"The teacher must be a model of {expected}, as the one that learns; got one of {generation}."
            )
        check_built(model)
        trained = set(map(id, student.trainable_weights))
        if any(id(weight) in trained for weight in model.weights):
            raise ValueError(
                f"The teacher {model.name!r} has weights that are about to be trained and pruned. Give a copy: "
                f"teacher = {generation}.models.clone_model(model); teacher.set_weights(model.get_weights())."
            )
        here, there = _shapes(student), _shapes(model)
        if None not in (here, there) and here != there:
            raise ValueError(f"The teacher gives outputs of shape {there}, and the model that learns {here}.")
        self.model = model
        self._given = threading.local()
        self._structure: Any = None

    def outputs(self, x: Any) -> Any:
        """What the teacher gives in inference mode, within a step: from the batch, where it was known before."""
        given = vars(self._given).pop("outputs", None)  # Not kept, with all that was traced with it.
        outputs = self.model(x, training=False) if given is None else tf.nest.pack_sequence_as(self._structure, given)
        return tf.nest.map_structure(tf.stop_gradient, outputs)

    def outputs_of(self, x: Any, batch_size: int) -> tuple[tf.Tensor, ...]:
        """What the teacher gives for arrays of examples, one output after another, in the host's memory."""
        try:
            given = self.model.predict(_as_lists(x), batch_size=batch_size, verbose=0)
        except Exception as error:
            raise ValueError(
                f"The teacher {self.model.name!r} cannot be called on the training data. The error was: {error}"
            ) from error
        self._structure = tf.nest.map_structure(lambda _: None, given)
        with tf.device("CPU:0"):
            return tuple(map(tf.convert_to_tensor, tf.nest.flatten(given)))

    @contextlib.contextmanager
    def reading(self, model: Any) -> Iterator[None]:
        """Within it, `fit` of a model takes what the teacher gives from the elements that `with_outputs` made."""

        def take(element: Any) -> Any:
            if not isinstance(element, Mapping) or _TAUGHT not in element:
                self._given.outputs = None
                return element
            self._given.outputs = element[_TAUGHT]
            return element[_BATCH]

        with changed_batches(model, take):
            yield


def with_outputs(batch: Any, outputs: tuple[tf.Tensor, ...]) -> dict[str, Any]:
    """A batch, or arrays of all of them, with what `outputs_of` gave for it."""
    return {_BATCH: batch, _TAUGHT: outputs}


class Distilled:
    """The term that a teacher adds to the loss of a compiled student, as `added_loss.Term`.

    Raises:
        ValueError: What the model was compiled with does not say how far its outputs are from those of a teacher, or
            there are no layers of those names in both.
    """

    def __init__(self, teacher: Teacher, settings: Distillation, student: Any) -> None:
        self._teacher, self._settings = teacher, settings
        own = settings.loss if callable(settings.loss) else None
        self._loss = own or _loss_for(student, teacher.model, settings.temperature)
        self._layers = [
            {name: _layer_of(model, name) for name in settings.features} for model in (student, teacher.model)
        ]
        self._seen = threading.local()

    def seeing(self) -> contextlib.AbstractContextManager[None]:
        """Within it, the student is traced so that its features are seen."""
        return listening(self._layers[0], self._note, outputs=True)

    def _note(self, name: str, outputs: tf.Tensor) -> tf.Tensor:
        vars(self._seen).setdefault("features", {})[name] = outputs
        return outputs

    def __call__(
        self, x: Any, y_pred: Any, sample_weight: Any, of_targets: Callable[[], tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        ours = dict(vars(self._seen).pop("features", {}))  # Before the teacher is called, which may share a layer.
        with listening(self._layers[1], self._note, outputs=True):
            distances = tf.cast(self._loss(self._teacher.outputs(x), y_pred), tf.float32)
        theirs = vars(self._seen).pop("features", {})
        distance = _mean(distances, sample_weight, keras_mask(y_pred))
        if theirs:
            distance += tf.add_n([_between_features(theirs[name], ours[name]) for name in ours]) / len(ours)
        return self._settings.weight * (distance - of_targets()), distance


def _mean(distances: tf.Tensor, sample_weight: Any, mask: Any) -> tf.Tensor:
    """The mean over examples and positions, of those alone that a mask does not leave out, each by its weight."""
    weights, rank = tf.ones_like(distances), len(distances.shape)
    if mask is not None and len(mask.shape) == rank:
        mask = tf.cast(mask, tf.float32)
        weights *= mask * tf.cast(tf.size(mask), tf.float32) / tf.maximum(tf.reduce_sum(mask), 1.0)
    if tf.is_tensor(sample_weight) and rank > 0:
        given = tf.cast(sample_weight, tf.float32)
        if len(given.shape) == rank + 1 and given.shape[-1] == 1:
            given = given[..., 0]
        weights *= tf.reshape(given, [*tf.unstack(tf.shape(given)), *[1] * (rank - len(given.shape))])
    return tf.reduce_mean(distances * weights)


def _loss_for(student: Any, teacher: Any, temperature: float) -> Loss:
    """How far outputs are from those of a teacher, by the loss that the student was compiled with."""
    name = _name_of(own_loss(student)) if len(getattr(student, "outputs", None) or [None]) == 1 else ""
    between = _between_classes if _is_of(name, _OF_CLASSES) else _between_yes_and_no
    if _is_of(name, _OF_CLASSES + _OF_YES_AND_NO):
        ours, theirs = bool(_gives_logits(student)), _gives_logits(teacher)
        theirs = ours if theirs is None else theirs
        return lambda taught, given: between(taught, given, theirs, ours, temperature)
    if name in _OF_NUMBERS:
        of_numbers = _OF_NUMBERS[name]
        return lambda taught, given: of_numbers(_as_float32(taught), _as_float32(given))
    loss = getattr(student, "loss", None)
    given = getattr(loss, "__name__", repr(loss))
    raise ValueError(
        f"The model {student.name!r} was compiled with the loss {given:.80}, which does not say how its "
        "outputs are to follow a teacher's. Write distillation=aimp_tf.Distillation(loss=function), of "
        "(teacher_outputs, outputs)."
    )


def _between_classes(taught: Any, given: Any, theirs: bool, ours: bool, temperature: float) -> tf.Tensor:
    log_taught, log_given = (
        tf.nn.log_softmax((values if are_logits else _log(values)) / temperature)
        for values, are_logits in ((_as_float32(taught), theirs), (_as_float32(given), ours))
    )
    return temperature**2 * tf.reduce_sum(tf.exp(log_taught) * (log_taught - log_given), axis=-1)


def _between_yes_and_no(taught: Any, given: Any, theirs: bool, ours: bool, temperature: float) -> tf.Tensor:
    logits = [
        (values if are_logits else _log(values) - _log(1 - values)) / temperature
        for values, are_logits in ((_as_float32(taught), theirs), (_as_float32(given), ours))
    ]
    share = tf.sigmoid(logits[0])
    distances = [tf.nn.sigmoid_cross_entropy_with_logits(labels=share, logits=each) for each in logits]
    return temperature**2 * tf.reduce_mean(distances[1] - distances[0], axis=-1)


def _between_features(taught: tf.Tensor, given: tf.Tensor) -> tf.Tensor:
    taught, given = (tf.cast(values, tf.float32) for values in (tf.stop_gradient(taught), given))
    if taught.shape[1:] != given.shape[1:]:
        raise ValueError(
            f"features of a Distillation must have the same shape in model and teacher; got {given.shape[1:]} and "
            f"{taught.shape[1:]}."
        )
    return tf.math.divide_no_nan(tf.reduce_mean((given - taught) ** 2), tf.reduce_mean(taught**2))


def _layer_of(model: Any, name: str) -> Any:
    layers = {layer.name: layer for layer in layers_of(model) if layer is not model}
    if name not in layers:
        raise ValueError(
            f"features of a Distillation must be names of layers in model and teacher; {model.name!r} has no {name!r}."
            f"{nearest(name, layers)}"
        )
    return layers[name]


def _log(probabilities: tf.Tensor) -> tf.Tensor:
    return tf.math.log(tf.maximum(probabilities, _LEAST_PROBABILITY))


def _as_float32(outputs: Any) -> tf.Tensor:
    """Those of the one output that a model has."""
    return tf.cast(tf.nest.flatten(outputs)[0], tf.float32)


_OF_NUMBERS: dict[str, Loss] = {
    **dict.fromkeys(("meansquarederror", "mse"), lambda taught, given: tf.reduce_mean((taught - given) ** 2, axis=-1)),
    **dict.fromkeys(
        ("meanabsoluteerror", "mae"), lambda taught, given: tf.reduce_mean(tf.abs(taught - given), axis=-1)
    ),
}
"""Name of a loss -> the same between a teacher's outputs and a model's."""


_OF_CLASSES = ("categoricalcrossentropy", "categoricalfocal", "kldivergence")
_OF_YES_AND_NO = ("binarycrossentropy", "binaryfocal")


def _is_of(name: str, parts: tuple[str, ...]) -> bool:
    return any(part in name for part in parts)


def _name_of(loss: Any) -> str:
    """That of a loss of Keras, be it given by name, as a function or an object; "" for None."""
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return "" if loss is None else name.lower().replace("_", "")


def _gives_logits(model: Any) -> bool | None:
    """Whether a model gives logits rather than probabilities: as the loss says that it was compiled with, or its last
    layer; None where neither does."""
    loss: Any = own_loss(model)
    if _is_of(_name_of(loss), _OF_CLASSES + _OF_YES_AND_NO):
        return bool(loss.get_config().get("from_logits", False)) if hasattr(loss, "get_config") else False
    try:
        graph = ModelGraph.of(model)
    except Exception as error:  # Whatever a layer of the user's raises.
        logger.debug("What %s ends in cannot be seen: %s", model.name, error)
        return None
    ends = tf.nest.flatten(graph.outputs)
    for call in graph.calls:
        if ends[0] in call.outputs:
            activation = getattr(call.layer, "activation", None)
            activation = getattr(activation, "__name__", type(activation).__name__).lower()
            if {activation, type(call.layer).__name__.lower()} & {"softmax", "sigmoid"}:
                return False
            return True if activation == "linear" and call.layer.weights else None
    return None


def _shapes(model: Any) -> Any:
    """The shapes of a model's outputs without the examples; None where they are not known."""
    outputs = getattr(model, "outputs", None)
    return [tuple(output.shape[1:]) for output in outputs] if outputs else None


def _as_lists(x: Any) -> Any:
    """Several inputs as `predict` takes them."""
    if isinstance(x, tuple):
        return list(map(_as_lists, x))
    return {name: _as_lists(part) for name, part in x.items()} if isinstance(x, dict) else np.asarray(x)
