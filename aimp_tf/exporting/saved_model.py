"""TensorFlow SavedModels, Keras' own file format, and the weights alone."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.functional import declared_inputs, plain
from aimp_tf.compat.models import layers_of
from aimp_tf.compat.variables import bare
from aimp_tf.exporting.inputs import input_specs, widened, with_paths
from aimp_tf.graph.prunable import named_weights

GIVE_CONFIGS = "Give layers and models of your own a get_config(), or export a SavedModel, which needs none."
_LONGEST = 600


class ServingModule(tf.Module):
    """The inference of a built model, for `tf.saved_model.save`, which stores each of its variables once.

    Half precision goes in and comes out as float32.

    Args:
        model: A built Keras 3 or tf_keras model.
        batch_size: The one batch that it takes. None is any.

    Attributes:
        serve: A tf.function of the model's inputs that gives its outputs, both in their structures.
        serving_default: The same, giving the outputs by the names of `output_names`.

    Raises:
        ValueError: As `input_specs`.
    """

    # In tf.Module they are properties, which find nothing behind a function. Here they are what `serve` reads.
    variables: Any = ()
    trainable_variables: Any = ()
    non_trainable_variables: Any = ()

    def __init__(self, model: Any, batch_size: int | None = None) -> None:
        super().__init__()
        specs = tf.nest.map_structure(
            lambda spec: tf.TensorSpec([batch_size, *spec.shape[1:]], widened(spec.dtype), spec.name),
            input_specs(model),
        )

        def serve(inputs: Any) -> Any:
            return infer(model, inputs)

        def serving_default(inputs: Any) -> dict[str, tf.Tensor]:
            outputs = infer(model, inputs)
            return dict(zip(output_names(outputs), tf.nest.flatten(outputs), strict=True))

        self.serve = tf.function(serve, input_signature=[specs], autograph=False)
        self.serving_default = tf.function(serving_default, input_signature=[specs], autograph=False)
        places = {id(bare(variable)): place for place, variable in enumerate(model.weights)}
        trainable = {id(bare(variable)) for variable in model.trainable_variables}
        read = self.serve.get_concrete_function().variables
        self.variables = sorted(read, key=lambda variable: places.get(id(variable), len(places)))
        self.trainable_variables = [variable for variable in self.variables if id(variable) in trainable]
        self.non_trainable_variables = [variable for variable in self.variables if id(variable) not in trainable]
        kind, held = tf.saved_model.experimental.TrackableResource, [vars(layer) for layer in layers_of(model)]
        self.tables = [value for attributes in held for value in attributes.values() if isinstance(value, kind)]


def infer(model: Any, inputs: Any) -> Any:
    """The outputs of a model, in their structure, for inputs in theirs; half precision comes out as float32."""
    dtypes = tf.nest.map_structure(lambda spec: spec.dtype, input_specs(model))
    given = tf.nest.map_structure(tf.cast, inputs, dtypes)
    if isinstance(declared := declared_inputs(model), OrderedDict):  # Whose order Keras 3 goes by.
        given = tf.nest.pack_sequence_as(declared, tf.nest.flatten(given))
    outputs = model(given, training=False)
    return tf.nest.map_structure(lambda output: tf.cast(output, widened(output.dtype)), plain(outputs))


def output_names(outputs: Any) -> list[str]:
    """The names of a model's outputs in its signature, as Keras gives them, in the order of `tf.nest.flatten`."""
    prefix = [] if isinstance(outputs, dict) else ["output"]
    return ["_".join(map(str, (*prefix, *(path or (0,))))) for path, _ in with_paths(outputs)]


def write_saved_model(model: Any, path: str | os.PathLike[str], batch_size: int | None = None) -> None:
    """Writes a SavedModel with the endpoint `serve` and the signature `serving_default`, into a folder that it makes.

    It is for any batch, or for the one of `batch_size`.

    Raises:
        ValueError: As `ServingModule`, or TensorFlow cannot trace or save what the model does.
        OSError: Writing failed.
    """
    with explaining(f"The model {model.name!r} cannot be written as a SavedModel", "Its `call` must be a graph's."):
        module = ServingModule(model, batch_size)
        tf.saved_model.save(module, os.fspath(path), signatures={"serving_default": module.serving_default})


def write_keras(model: Any, path: str | os.PathLike[str]) -> None:
    """Writes a `.keras` file of the model's own generation, with what it is compiled with, but not the optimizer's
    slots, which may take twice the room of the weights.

    Raises:
        ValueError: A layer cannot be serialised.
        OSError: Writing failed.
    """
    # Past the __setattr__ of Keras, which would track it.
    attributes = vars(model)
    held = {name: attributes.pop(name) for name in ("optimizer",) if name in attributes}
    try:
        with explaining(f"The model {model.name!r} cannot be written as a Keras file", GIVE_CONFIGS):
            model.save(os.fspath(path))
    finally:
        attributes.update(held)


def weight_arrays(model: Any) -> dict[str, np.ndarray]:
    """Path -> value of all weights, moving statistics included; bfloat16, which npz does not know, as float32."""
    arrays = {path: np.asarray(variable.numpy()) for path, variable in named_weights(model).items()}
    return {path: array.astype(np.float32) if array.dtype.kind == "V" else array for path, array in arrays.items()}


@contextlib.contextmanager
def explaining(what: str, advice: str) -> Iterator[None]:
    """Around what Keras or TensorFlow may refuse to do, with errors of all kinds. Raises ValueError then."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        text = str(error)
        raise ValueError(
            f"{what}. {advice} The error was: {text[:_LONGEST]}{'...' * (len(text) > _LONGEST)}"
        ) from error
