"""tf_keras: masks held by tfmot's pruning layers, in a model that is rebuilt with them."""

from __future__ import annotations

import contextlib

import tensorflow as tf

from aimp_tf.compat.importing import import_with_tfmot
from aimp_tf.compat.variables import set_constraint
from aimp_tf.graph.prunable import prunable_variables
from aimp_tf.masking.constraints import MaskConstraint
from aimp_tf.masking.masked_model import MaskedModel


class WrappedModel(MaskedModel):
    """A tf_keras model rebuilt with a pruning layer round each layer that has prunable weights.

    The rebuilt model shares every layer and variable with the user's model, which `strip` hands back.
    """

    def _attach(self) -> None:
        self._undoing = contextlib.ExitStack()
        self._layers = import_with_tfmot("aimp_tf.compat.tfmot_layers").WrappedLayers(
            self.original, self.variables.values(), lambda layer: prunable_variables(layer).values()
        )
        self._undoing.callback(self._layers.undo)
        self.model = self._layers.rebuild()
        masks = self._layers.masks()
        for path, variable in self.variables.items():
            mask = masks.get(id(variable))
            if mask is None:  # A layer that only a train_step of the user's calls is in no graph, so not wrapped.
                mask = tf.Variable(tf.ones(variable.shape, tf.bool), trainable=False)
            self._masks[path] = mask
            set_constraint(variable, MaskConstraint(mask, variable.constraint))

    def _compiled_again(self) -> None:
        self._layers.compiled_again(self.model)

    def _detach(self) -> None:
        for variable in self.variables.values():
            if isinstance(variable.constraint, MaskConstraint):
                set_constraint(variable, variable.constraint.previous)
        self._undoing.close()

    def synchronize(self) -> None:
        """tf_keras gives the mean of all replicas whenever a moving statistic is read."""
        if self.cluster.replicas > 1:
            for variable in self.original.non_trainable_weights:
                if getattr(variable, "synchronization", None) == tf.VariableSynchronization.ON_READ:
                    variable.assign(variable.numpy())
