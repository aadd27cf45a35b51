"""Layers that join tensors, or lay out the channels of one anew."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call, Tensor
from aimp_tf.graph.rules import Flows, Function, Kept, Rule, pin_others


class Repeat(Rule):
    """Flatten, and Reshape to a last axis that is a multiple of what it was: the channels come again and again."""

    def attributes(self, kept: Kept) -> dict[str, Any]:
        return {"target_shape": (*self.layer.target_shape[:-1], len(kept.outputs))} if self.is_tied else {}

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (source,) = inputs
        pin_others(source, classes, call)
        times = call.outputs[0].channels // call.inputs[0].channels
        rank = len(call.outputs[0].shape)
        return [Flow(rank, {rank - 1: source.channels.arranged(lambda each: np.tile(each, times))})]

    @property
    def is_tied(self) -> bool:
        return hasattr(self.layer, "target_shape")


class Concatenation(Rule):
    """Concatenate along the channels."""

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        for source in inputs:
            pin_others(source, classes, call)
        parts = [(source.classes, source.constants, source.channels.fixed) for source in inputs]
        joined = Axis(*map(np.concatenate, zip(*parts, strict=True)))
        return [Flow.of_channels(len(call.outputs[0].shape), joined)]


class Elementwise(Rule):
    """Maximum and its like, which tie the channels of their inputs together.

    Inputs of one channel are spread over all. Where some inputs are padding, some of these layers heed the others
    alone, so that constants make no constant then.
    """

    def __init__(self, layer: Any, combine: Function, masked: Set[Tensor]) -> None:
        """`combine` gives the outputs of constant channels from an array (inputs, channels); `masked` as in
        `Assumptions`."""
        super().__init__(layer)
        self._combine = combine
        self._masked = masked

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        rank = len(call.outputs[0].shape)
        flows = dict(zip(call.inputs, inputs, strict=True))
        axes = {axis: self._along(call, flows, axis - rank, classes) for axis in range(1, rank)}
        found = {axis: tied for axis, tied in axes.items() if tied is not None}
        if rank - 1 in found and not self._is_masked(call):
            tied, size = found[rank - 1].classes, (call.outputs[0].channels,)
            given = np.stack([np.broadcast_to(flow.constants, size) for flow in inputs])
            fixed = np.all([np.broadcast_to(flow.channels.fixed, size) for flow in inputs], axis=0)
            found[rank - 1] = Axis(tied, self._combine(given), fixed)
        return [Flow(rank, found)]

    def _along(self, call: Call, flows: Flows, axis: int, classes: ChannelClasses) -> Axis | None:
        """The classes along an axis, counted from the last; None where nothing can go along it."""
        size = call.outputs[0].shape[axis]
        tied, all_known = [], True
        for tensor in self.sources(call, flows):
            along = flows[tensor].axes.get(flows[tensor].rank + axis)
            spreads = -axis >= len(tensor.shape) or tensor.shape[axis] != size
            if along is None:
                all_known = all_known and spreads
            elif spreads:
                classes.pin(along.classes, f"{call.name} spreads it")
            else:
                tied.append(along.classes)
        if not all_known:
            for each in tied:
                classes.pin(each, f"{call.name} joins it with what cannot go")
            return None
        for each in tied[1:]:
            classes.join(tied[0], each)
        return Axis.varied(tied[0]) if tied else None

    def _is_masked(self, call: Call) -> bool:
        return not self._masked.isdisjoint((*call.inputs, *call.outputs))


class Sum(Elementwise):
    """Add, from which inputs that are constant altogether can go: what is left of them is an offset.

    Not so where masks of padding come in, for the sum of fewer may have another mask.
    """

    def sources(self, call: Call, flows: Flows) -> Sequence[Tensor]:
        if self._is_masked(call):
            return call.inputs
        variable = [tensor for tensor in call.inputs if not flows[tensor].is_constant]
        return variable if any(tensor.shape == call.outputs[0].shape for tensor in variable) else call.inputs

    def offset(self, call: Call, flows: Flows) -> np.ndarray:
        """What the inputs that can go add to each channel, float64 (channels,)."""
        staying = self.sources(call, flows)
        gone = (flows[tensor].constants for tensor in call.inputs if tensor not in staying)
        return sum(gone, np.zeros(call.outputs[0].channels))
