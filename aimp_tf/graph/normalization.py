"""Layers that scale and shift channels, by what they have learnt, were given, or see in a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call
from aimp_tf.graph.rules import Assumptions, Function, Kept, PassThrough, Rule


class GroupNormalized(PassThrough):
    """GroupNormalization, whose channels stand or fall with all of their group."""

    is_tied = True  # By the number of groups, if there are no weights.

    def attributes(self, kept: Kept) -> dict[str, Any]:
        return {"groups": len(kept.inputs) * self.layer.groups // len(kept.constants)}

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (source,) = inputs
        by_group = source.classes.reshape(self.layer.groups, -1)
        classes.join(by_group[:, :-1].reshape(-1), by_group[:, 1:].reshape(-1))
        (found,) = super()._flow(call, inputs, classes)
        fixed = np.repeat(source.channels.fixed.reshape(by_group.shape).all(axis=1), by_group.shape[1])
        channels = Axis(source.classes, found.constants, fixed | self._deaf)
        return [Flow.of_channels(found.rank, channels)]


class Given(PassThrough):
    """Normalization or Rescaling by numbers that it was given, one for each channel or for all."""

    in_place = False

    def __init__(self, layer: Any, value: Function, given: Mapping[str, Any]) -> None:
        """`given` are the numbers by the names that they have in the layer's config."""
        super().__init__(layer, value)
        self._given = {name: np.ravel(values) for name, values in given.items() if np.size(values) > 1}

    def attributes(self, kept: Kept) -> dict[str, Any]:
        return {name: values[kept.inputs].tolist() for name, values in self._given.items()}

    @property
    def is_tied(self) -> bool:
        return bool(self._given)


class LayerScale(PassThrough):
    """A factor for each channel, of whose number the config of the layer tells."""

    def attributes(self, kept: Kept) -> dict[str, Any]:
        return {"projection_dim": len(kept.inputs)}


def normalization(call: Call, assumptions: Assumptions) -> Rule | None:
    """Of Normalization."""
    layer = call.layer
    if not _over_channels(call):
        return None
    if layer.weights:
        return PassThrough(layer, unknown)
    return Given(layer, unknown, {"mean": layer.input_mean, "variance": layer.input_variance})


def batch_normalization(call: Call, assumptions: Assumptions) -> Rule | None:
    """Of BatchNormalization, by its moving statistics."""
    layer = call.layer
    if not _over_channels(call) or getattr(layer, "renorm", False):
        return None
    value = assumptions.value
    mean, variance = (np.float64(value(weight)) for weight in (layer.moving_mean, layer.moving_variance))
    scale = (value(layer.gamma) if layer.scale else 1.0) / np.sqrt(variance + layer.epsilon)
    shift = value(layer.beta) if layer.center else 0.0
    return PassThrough(layer, lambda values: (values - mean) * scale + shift, deaf=scale == 0)


def group_normalization(call: Call, assumptions: Assumptions) -> Rule | None:
    """Of GroupNormalization. What is known of a channel is its shift where it has no scale: others depend on their
    whole group."""
    layer, channels = call.layer, call.inputs[0].channels
    if not _over_channels(call):
        return None
    gamma = assumptions.value(layer.gamma) if layer.scale else np.ones(channels)
    beta = assumptions.value(layer.beta) if layer.center else np.zeros(channels)
    return GroupNormalized(layer, lambda values: np.where(gamma == 0, beta, np.nan), deaf=gamma == 0, moves=True)


def layer_scale(call: Call, assumptions: Assumptions) -> Rule | None:
    """Of LayerScale."""
    gamma = assumptions.value(call.layer.gamma)
    return LayerScale(call.layer, lambda values: values * gamma, deaf=gamma == 0)


def _over_channels(call: Call) -> bool:
    """Whether the layer's axis is the last of its inputs, and no other."""
    return tf.nest.flatten(call.layer.axis) in ([-1], [len(call.inputs[0].shape) - 1])


def unknown(values: np.ndarray) -> np.ndarray:
    """No constant, whatever goes in."""
    return np.full_like(values, np.nan)
