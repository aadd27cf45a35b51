"""What targets must be like, told before a step fails on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from aimp_tf.compat.models import is_keras_own, own_loss


def check_class_weight(data: Any, class_weight: Mapping[Any, Any] | None) -> None:
    """Raises ValueError for arrays of targets with a class beyond all that have a weight, which fails in a step."""
    if not class_weight or not isinstance(data, tuple) or len(data) < 2 or not hasattr(data[1], "shape"):
        return
    targets = np.asarray(data[1])
    if targets.dtype.kind not in "iufb" or not targets.size:
        return
    classes = targets.argmax(-1) if targets.ndim > 1 and targets.shape[-1] > 1 else targets
    if classes.max() > max(class_weight):
        raise ValueError(
            f"class_weight has weights for the classes up to {max(class_weight)}, and there are some up to "
            f"{classes.max():g}. Write one for each, such as class_weight={{**class_weight, {classes.max():g}: 1.0}}."
        )


def check_targets(model: Any, data: Any, name: str) -> None:
    """Raises for arrays of targets that the cross-entropy of a model with one output cannot take.

    Frameworks tell of them late and at length, and on a GPU a class out of range is a loss of NaN and nothing else.

    What is no tuple of arrays, as `prune` takes it, is let through.

    Raises:
        TypeError: The targets are texts.
        ValueError: They are one-hot where numbers of classes are expected or the other way round, of another shape than
            the outputs, or such a number is broken, negative or too large.
    """
    outputs: Any = getattr(model, "outputs", None) or ()
    crossentropy = _crossentropy(model)
    changed = not all(is_keras_own(getattr(type(model), name)) for name in ("train_step", "compute_loss"))
    if crossentropy is None or len(outputs) != 1 or changed:
        return
    if not isinstance(data, tuple) or len(data) < 2:
        return
    targets, shape = data[1], tuple(outputs[0].shape)
    if isinstance(targets, (dict, list, tuple)) or not hasattr(targets, "shape") or None in shape[-1:]:
        return
    targets = np.asarray(targets)
    if targets.dtype.kind in "US" or targets.dtype == object and isinstance(targets.flat[0], (str, bytes)):
        raise TypeError(
            f"The targets of {name} are texts, such as {targets.flat[0]}, and the loss takes numbers. Write "
            "classes, y = np.unique(y, return_inverse=True)."
        )
    classes = shape[-1]
    if classes == 1:
        raise ValueError(
            f"The loss {crossentropy} needs an output for each class, and the model {model.name!r} has one. Compile it "
            "with binary_crossentropy if there are two classes."
        )
    one_hot = targets.ndim == len(shape) and targets.shape[-1] == classes > 1
    if not crossentropy.startswith("sparse"):
        if not one_hot and targets.ndim < len(shape):
            raise ValueError(
                f"The loss {crossentropy} takes targets of shape (examples, {classes}), a row of 0 and 1 each; got "
                f"{targets.shape} in {name}. Write y = keras.utils.to_categorical(y, {classes}), or compile the model "
                "with sparse_categorical_crossentropy."
            )
        return
    _check_classes(model, crossentropy, targets, one_hot, name)


def _check_classes(model: Any, crossentropy: str, targets: np.ndarray, one_hot: bool, name: str) -> None:
    """As `check_targets`, of numbers of classes."""
    loss: Any = own_loss(model)
    shape = tuple(model.outputs[0].shape)
    classes = shape[-1]
    if one_hot:
        raise ValueError(
            f"The loss {crossentropy} takes the number of a class for each example; got targets of shape "
            f"{targets.shape} in {name}. Write y = y.argmax(-1), or compile the model with categorical_crossentropy."
        )
    places = targets.shape[1:-1] if targets.ndim == len(shape) else targets.shape[1:]
    if len(places) != len(shape) - 2 or any(here not in (there, None) for here, there in zip(shape[1:-1], places)):
        raise ValueError(
            f"The model {model.name!r} has outputs of shape {shape}, and {crossentropy} takes a number for each row of "
            f"{classes}; got targets of shape {targets.shape} in {name}."
        )
    if targets.dtype.kind == "f" and (targets != np.round(targets)).any():  # NaN is not equal to itself.
        raise ValueError(
            f"The loss {crossentropy} takes the number of a class for each example; {name} has targets that are no "
            f"whole numbers, such as {targets[targets != np.round(targets)][0]}."
        )
    ignored = loss.get_config().get("ignore_class") if hasattr(loss, "get_config") else None
    if ignored is None and not 0 <= targets.min() <= targets.max() < classes:
        raise ValueError(
            f"The classes must be numbers from 0 to {classes - 1}, for the model {model.name!r} has {classes} outputs; "
            f"got {targets.min()} to {targets.max()} in {name}. Write classes, y = np.unique(y, return_inverse=True), "
            "or give the model as many outputs as there are classes. One that is none takes "
            "SparseCategoricalCrossentropy(ignore_class=255)."
        )


def _crossentropy(model: Any) -> str | None:
    """The name of the loss for classes that a model was compiled with, if it is Keras' own."""
    loss = own_loss(model)
    name = loss if isinstance(loss, str) else str(getattr(loss, "__name__", None) or getattr(loss, "name", ""))
    return name if "categorical" in name and name.endswith("crossentropy") else None
