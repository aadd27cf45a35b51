"""tf_keras: masks held by a subclass of tfmot's PruneLowMagnitude round each layer with prunable weights.

Import this module by `import_with_tfmot` only: importing tfmot has side effects, which are undone there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper
from tf_keras.src.engine import functional

from aimp_tf.compat.swap import Swap
from aimp_tf.compat.tracing import nodes_kept


class MaskedLayer(pruning_wrapper.PruneLowMagnitude):
    """A tfmot pruning layer whose masks are assigned from outside and enforced within each optimizer step.

    tfmot multiplies weight and mask at each forward pass, so that weights are not sparse between a step and the next
    pass; here a constraint on the variable does it. The layer is called in full, so that masks of sequences, initial
    states, regularisers and every call argument work as without the wrapper. tfmot's schedule is never asked.

    Args:
        layer: A built tf_keras layer with `get_prunable_weights()`.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__(layer, trainable=layer.trainable, dtype=layer._dtype_policy, autocast=layer._autocast)
        # Outputs, losses and metrics are called after layers, so the wrapper answers to the layer's own name.
        self._name = layer.name
        self._call_spec = layer._call_spec
        self.supports_masking = layer.supports_masking
        self.stateful = layer.stateful

    def __getattr__(self, name: str) -> Any:
        """What the layer has and the wrapper has not: `kernel`, `units`, `reset_states` and the like."""
        if name.startswith("_") or "layer" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.layer, name)

    def add_weight(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """tfmot's masks are float, which takes four times the memory and has to be compared with zero in each step."""
        if name == "mask":  # All replicas have the same, of which there is no mean.
            kwargs |= {"dtype": tf.bool, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        return super().add_weight(name, *args, **kwargs)

    @classmethod
    def from_config(cls, config: Any) -> Any:
        """A wrapper cannot be made anew, for the model that it belongs to would not be masked."""
        raise ValueError(
            f"The layer {config.get('name')!r} belongs to a model that aimp_tf.wrap has wrapped, which cannot be "
            "cloned or made from its config. Clone what aimp_tf.strip(model) returns, or the model that wrap was given."
        )

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return self.layer(inputs, *args, **kwargs)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, mask)


class WrappedLayers:
    """Rebuilds a tf_keras model with a `MaskedLayer` round each layer that has prunable weights.

    The rebuilt model shares every layer and variable with the original.

    Args:
        variables: Those that get a mask.
        prunable_in: Gives the prunable variables of a layer.
        undo: Leaves nothing of this on the layers of the original, also after an error.
    """

    def __init__(
        self, variables: Iterable[Any], prunable_in: Callable[[Any], Iterable[Any]], undo: contextlib.ExitStack
    ) -> None:
        self._unclaimed = set(map(id, variables))
        self._prunable_in = prunable_in
        self._undo = undo
        self._wrappers: dict[int, MaskedLayer] = {}

    def rebuild(self, original: Any) -> Any:
        """A compiled, built model, rebuilt and compiled as it is.

        Raises:
            ValueError: The model is a subclassed one.
        """
        # Calling the shared layers anew adds nodes to them, which would keep the rebuilt model alive after `undo`.
        self._undo.enter_context(nodes_kept(original))
        if not _can_rebuild(original):
            raise ValueError(
                f"{type(original).__name__} is a subclassed tf_keras model, whose layers cannot be wrapped one by one. "
                "Ways out: make it with keras.Model (Keras 3), whose subclassed models can be pruned; make it with the "
                "functional API, tf_keras.Model(inputs, outputs); or use it as one layer of a functional model, "
                "x -> tf_keras.Model(inputs, subclassed(inputs))."
            )
        model = self._rebuild(original)
        # What a subclass keeps on itself, in its own compile() for example.
        for name in vars(original).keys() - vars(model).keys():
            setattr(model, name, getattr(original, name))
        compile_like(original, model)
        # What a callback takes from the model or gives it, and the files that it writes or reads, are the plain one's.
        for method in ("save", "save_weights", "load_weights", "get_weights", "set_weights"):
            setattr(model, method, getattr(original, method))
        return model

    def masks(self) -> dict[int, Any]:
        """id of a variable -> its mask, a variable of tf.bool."""
        return {id(weight): mask for layer in self._wrappers.values() for weight, mask, _ in layer.pruning_vars}

    def _rebuild(self, model: Any) -> Any:
        rebuilt = tf_keras.models.clone_model(model, clone_function=self._wrap)
        if not rebuilt.built:  # A Sequential that learnt its input shape from data.
            rebuilt.build(model._build_input_shape)
        rebuilt._trainable = model._trainable  # The property would set the layers, too.
        return rebuilt

    def _wrap(self, layer: Any) -> Any:
        if id(layer) in self._wrappers:
            return self._wrappers[id(layer)]
        own = [variable for variable in self._prunable_in(layer) if id(variable) in self._unclaimed]
        if not own:
            return layer
        if _can_rebuild(layer):
            return self._rebuild(layer)
        self._unclaimed -= set(map(id, own))
        self._undo.enter_context(Swap(layer, "get_prunable_weights", lambda: own))
        self._wrappers[id(layer)] = MaskedLayer(layer)
        return self._wrappers[id(layer)]


def _can_rebuild(layer: Any) -> bool:
    """Whether this is a model whose layers can be replaced without losing what its class adds."""
    if isinstance(layer, tf_keras.Sequential):
        return type(layer) is tf_keras.Sequential
    # A constructor of the user's would run again, and make other layers and values than the model has now.
    return isinstance(layer, functional.Functional) and not any(
        "__init__" in vars(base)
        for base in type(layer).__mro__
        if base.__module__.split(".")[0] not in ("tf_keras", "tensorflow", "builtins")
    )


def compile_like(original: Any, model: Any) -> None:
    """Compiles a model as the original is compiled."""
    settings = {**original._compile_config.config, "optimizer": original.optimizer}
    tf_keras.Model.compile(model, **settings)
    # Shared, since losses and metrics that are objects already belong to these and must not be built twice.
    model.compiled_loss = original.compiled_loss
    model.compiled_metrics = original.compiled_metrics
