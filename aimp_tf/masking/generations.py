"""Masked models of each generation of Keras."""

from __future__ import annotations

import contextlib

import tensorflow as tf

from aimp_tf.compat.importing import import_with_tfmot
from aimp_tf.compat.keras_distribution import repaired
from aimp_tf.compat.step import forget_traced
from aimp_tf.compat.variables import local_value
from aimp_tf.graph.prunable import prunable_variables
from aimp_tf.masking.masked_model import MaskedModel


class ConstrainedModel(MaskedModel):
    """A Keras 3 model whose prunable variables carry a `MaskConstraint`. The model is changed in place."""

    def _attach(self, undo: contextlib.ExitStack) -> None:
        self._repairs = undo.enter_context(contextlib.ExitStack())
        # A train function traced earlier does not know the constraints and would never call them.
        undo.callback(forget_traced, self.model)
        self._put_constraints({}, undo)
        forget_traced(self.model)
        self._compiled_again()

    def _compiled_again(self) -> None:
        self._repairs.close()
        self._repairs.enter_context(repaired(self.model))

    def synchronize(self) -> None:
        """Keras 3 averages nothing, and saves the first replica's moving statistics."""
        if self.cluster.replicas > 1:
            variables = self.original.non_trainable_weights
            values = self.cluster.from_chief([local_value(variable) for variable in variables])
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)


class WrappedModel(MaskedModel):
    """A tf_keras model rebuilt with a pruning layer of tfmot round each layer that has prunable weights.

    The rebuilt model shares every layer and variable with the user's model, which `strip` hands back. A layer that only
    a train_step of the user's calls is in no graph, so not wrapped.
    """

    def _attach(self, undo: contextlib.ExitStack) -> None:
        self._layers = import_with_tfmot("aimp_tf.compat.tfmot_layers").WrappedLayers(
            self.original, self.variables.values(), lambda layer: prunable_variables(layer).values()
        )
        undo.callback(self._layers.undo)
        self.model = self._layers.rebuild()
        self._put_constraints(self._layers.masks(), undo)

    def _compiled_again(self) -> None:
        self._layers.compiled_again(self.model)

    def synchronize(self) -> None:
        """tf_keras gives the mean of all replicas whenever a moving statistic is read."""
        if self.cluster.replicas > 1:
            for variable in self.original.non_trainable_weights:
                if getattr(variable, "synchronization", None) == tf.VariableSynchronization.ON_READ:
                    variable.assign(variable.numpy())
