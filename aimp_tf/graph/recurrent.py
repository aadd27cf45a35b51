"""Recurrent layers: a unit goes with its part of every gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call
from aimp_tf.graph.rules import Assumptions, Flows, Kept, Reading, Rule, pin_others
from aimp_tf.graph.trials import value_by_value

GATES = {"SimpleRNN": (1, 0), "GRU": (3, 2), "LSTM": (4, 2)}
"""Class of a layer -> how many gates it has, and which of them alone brings anything into the state."""


class Recurrent(Rule):
    """SimpleRNN, GRU and LSTM. A unit of which nothing brings anything into the state is zero."""

    in_place = False
    is_tied = True

    def __init__(self, layer: Any, assumptions: Assumptions) -> None:
        super().__init__(layer)
        self._gates, self._candidate = GATES[type(layer).__name__]
        kernel, recurrent, *bias = (assumptions.value(weight) for weight in layer.weights)
        self._kernel, self._recurrent = (each.reshape(len(each), self._gates, -1) for each in (kernel, recurrent))
        self._bias = bias[0].reshape(-1, self._gates, self._recurrent.shape[-1]) if bias else None
        activation = value_by_value(layer.activation)
        self._zero_at_zero = activation is not None and activation(np.zeros(1))[0] == 0

    def named(self, call: Call, flows: Flows) -> dict[str, Axis]:
        named = super().named(call, flows)
        return {**named, "gates": self.by_gate(named["outputs"])}

    def by_gate(self, units: Axis) -> Axis:
        """What the columns of its kernels count, where these are its units."""
        return units.arranged(lambda each: np.tile(each, self._gates))

    def constants(self, source: Flow) -> np.ndarray:
        """0 for each unit that is always zero where this goes in, NaN for others."""
        brought = (self._kernel[source.constants != 0, self._candidate] != 0).any(axis=0)
        brought |= (self._recurrent[:, self._candidate] != 0).any(axis=0)
        if self._bias is not None:
            brought |= (self._bias[:, self._candidate] != 0).any(axis=0)
        return np.where(brought | (not self._zero_at_zero), np.nan, 0.0)

    def readings(self) -> Sequence[Reading]:
        kernel, recurrent = ((each != 0).any(axis=1) for each in (self._kernel, self._recurrent))
        return Reading(kernel), Reading(recurrent, ("outputs",), ("outputs",))

    def attributes(self, kept: Kept) -> dict[str, Any]:
        return {"units": len(kept.outputs)}

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        source = source_of(call, inputs, classes)
        constants = self.constants(source)
        units = Axis(classes.new(len(constants)), constants)
        return [Flow.of_channels(len(tensor.shape), units) for tensor in call.outputs]

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        _, _, *bias = ranks
        return [("inputs", "gates"), ("outputs", "gates"), *((*(None,) * (rank - 1), "gates") for rank in bias)]


def source_of(call: Call, inputs: Sequence[Flow], classes: ChannelClasses) -> Flow:
    """What a call over time reads, beside a mask of padding. All of the mask stays, and the steps."""
    source, *masks = inputs
    pin_others(source, classes, call)
    for mask in masks:
        classes.pin_all(mask, f"{call.name} is masked by it")
    return source
