"""What a Keras model is: its generation, whether it can be trained, what it is made of."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from aimp_tf.compat.keras_distribution import repaired


def is_keras_own(defined: Any) -> bool:
    """Whether a class or a method was defined by Keras itself. Needs neither generation to be imported."""
    return defined.__module__.split(".")[0] in ("keras", "tf_keras")


def keras_bases(kind: type) -> list[type]:
    """The classes of Keras itself that a class is or comes from, the nearest first."""
    return [base for base in kind.__mro__ if is_keras_own(base)]


def keras_generation(model: Any) -> str:
    """The generation of any Keras model: "keras" for Keras 3, else "tf_keras". Raises as `check_model`."""
    for name in ("keras", "tf_keras"):
        module = sys.modules.get(name)
        if module is not None and isinstance(model, module.Model):
            if name == "keras" and module.backend.backend() != "tensorflow":
                raise RuntimeError(
                    f"Keras runs on the backend {module.backend.backend()!r}; aimp_tf needs TensorFlow. Set "
                    "KERAS_BACKEND=tensorflow before Keras is imported."
                )
            return name
    kind = type(model)
    hint = " The model comes first, then the data: write prune(model, x, y, ...)." if hasattr(model, "shape") else ""
    if isinstance(model, (str, os.PathLike)):
        hint = f" Load it first: keras.models.load_model({os.fspath(model)!r})."
    if hasattr(model, "model"):
        hint = " Write result.model for the model of a result."
    if kind.__module__.startswith("torch"):
        hint = " aimp_tf prunes a keras.Model; for PyTorch there is torch.nn.utils.prune."
    raise TypeError(
        f"Expected a Keras model (keras.Model or tf_keras.Model); got {model!r:.40} of type "
        f"{kind.__module__}.{kind.__qualname__}.{hint}"
    )


def check_model(model: Any) -> str:
    """The generation, "keras" or "tf_keras", of a compiled Keras model.

    Raises:
        TypeError: It is not a Keras model.
        ValueError: It is not compiled.
        RuntimeError: Keras 3 runs on a backend other than TensorFlow.
    """
    generation = keras_generation(model)
    compiled = model.compiled if generation == "keras" else model._is_compiled
    if not compiled or model.optimizer is None:
        raise ValueError(
            f"The model {model.name!r} is not compiled. Call model.compile(optimizer=..., loss=...) first: its "
            "optimizer, loss and metrics are used for every round."
        )
    return generation


def model_of(model: Any) -> Any:
    """A Keras model, or that of a `PruningResult` or anything else with a `model`. Raises as `keras_generation`."""
    try:
        keras_generation(model)
    except TypeError:
        model = getattr(model, "model", None)
        if model is None:
            raise
        keras_generation(model)
    return model


def check_built(model: Any) -> None:
    """Raises ValueError if a model has no weights yet."""
    if not is_built(model):
        raise ValueError(
            f"The model {model.name!r} has no weights yet. Call model.build(input_shape), or call it on a batch of "
            "data, first."
        )


def is_built(model: Any) -> bool:
    """Whether a model has its weights, be it itself that says so or each of its layers."""
    layers = [layer for layer in layers_of(model) if layer is not model]
    return model.built or bool(layers) and all(layer.built for layer in layers)


def fit_ready(model: Any) -> contextlib.AbstractContextManager[None]:
    """Within it, `fit` of a model that is not masked runs under the strategy that the model was made under."""
    return repaired(model) if keras_generation(model) == "keras" else contextlib.nullcontext()


def layers_of(model: Any) -> list[Any]:
    """A layer or model, and all layers within it; an operation in a layer's place is alone."""
    return list(model._flatten_layers()) if hasattr(model, "_flatten_layers") else [model]


def finalize(layers: Iterable[Any]) -> None:
    """Lets layers take up the weights that they were given: Normalization computes with what it derives from them."""
    for layer in layers:
        if layer.weights and hasattr(layer, "finalize_state"):
            layer.finalize_state()


def keras_of(layer: Any) -> Any:
    """The module of the generation that a layer, or an operation in its place, is of."""
    return importlib.import_module("keras" if hasattr(layer, "compute_output_spec") else "tf_keras")


def flattened(structure: Any, keras: Any) -> list[Any]:
    """The leaves of a structure in the order of a generation of Keras: Keras 3 has those of an OrderedDict in its own,
    tf_keras and TensorFlow in that of its keys."""
    leaves: list[Any] = (keras.tree if keras.__name__ == "keras" else tf.nest).flatten(structure)
    return leaves


def children(layer: Any) -> list[Any]:
    """The layers that `layer` is directly made of, in the order in which Keras lists them."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def generator_states(model: Any) -> list[Any]:
    """The states of the generators of random numbers that the layers of a tf_keras model hold: none is a variable of
    the model."""
    generators = (getattr(getattr(layer, "_random_generator", None), "_generator", None) for layer in layers_of(model))
    return [generator.state for generator in generators if isinstance(generator, tf.random.Generator)]


def train_counter(model: Any) -> Any | None:
    """The variable that counts the steps of a tf_keras model, by which it writes what is written within a step; None in
    Keras 3."""
    return getattr(model, "_train_counter", None)


def keras_mask(outputs: Any) -> Any | None:
    """Which positions of what was given count, as layers have noted it on the tensor; None where all do."""
    return getattr(outputs, "_keras_mask", None)


def own_loss(model: Any) -> Any | None:
    """The one loss that a model was compiled with, if it is a name, or a function or an object of Keras' own; None for
    any other, several and none."""
    loss: Any = getattr(model, "loss", None)
    while isinstance(loss, (dict, list, tuple)) and len(loss) == 1:
        loss = next(iter(loss.values() if isinstance(loss, dict) else loss))
    if isinstance(loss, str):
        return loss
    kind: Any = loss if hasattr(loss, "__name__") else type(loss)
    # functools.wraps gives what is the user's the names of Keras' own.
    own = is_keras_own(kind) and getattr(sys.modules.get(kind.__module__), kind.__name__, None) is kind
    return loss if own else None


def compiled_loss(model: Any) -> Any | None:
    """What `compile` made of the losses of a model, another object each time; None where it was given none."""
    return getattr(model, "_compile_loss", None) or getattr(model, "compiled_loss", None)
