"""A built Keras model of either generation as TensorFlow functions, with nothing of Keras around them."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from aimp_tf.compat.functional import plain
from aimp_tf.compat.models import layers_of
from aimp_tf.compat.variables import bare
from aimp_tf.exporting.inputs import input_specs, widened, with_paths


class ServingModule(tf.Module):
    """The inference of a built model, for `tf.saved_model.save`, which stores each of its variables once.

    Half precision goes in and comes out as float32.

    Args:
        model: A built Keras 3 or tf_keras model.
        batch_size: The one batch that it takes. None is any.

    Attributes:
        serve: A tf.function of the model's inputs that gives its outputs, both in their structures.
        serving_default: The same, giving the outputs by the names of `output_names`.
        variables: Those that these read.
        trainable_variables: Of these, the trainable ones.
        non_trainable_variables: The others.
        tables: The lookup tables of the model.

    Raises:
        ValueError: As `input_specs`.
    """

    # In tf.Module they are properties, which find nothing behind a function.
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
        self.tables = _tables(model)


def infer(model: Any, inputs: Any) -> Any:
    """The outputs of a model, in their structure, for inputs in theirs; half precision comes out as float32."""
    dtypes = tf.nest.map_structure(lambda spec: spec.dtype, input_specs(model))
    outputs = model(tf.nest.map_structure(tf.cast, inputs, dtypes), training=False)
    return tf.nest.map_structure(lambda output: tf.cast(output, widened(output.dtype)), plain(outputs))


def output_names(outputs: Any) -> list[str]:
    """The names of a model's outputs in its signature, as Keras gives them, in the order of `tf.nest.flatten`."""
    prefix = [] if isinstance(outputs, dict) else ["output"]
    return ["_".join(map(str, (*prefix, *(path or (0,))))) for path, _ in with_paths(outputs)]


def _tables(model: Any) -> list[Any]:
    kind = tf.saved_model.experimental.TrackableResource
    return [value for layer in layers_of(model) for value in vars(layer).values() if isinstance(value, kind)]
