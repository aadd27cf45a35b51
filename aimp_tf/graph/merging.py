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
        return [self._joined(call, dict(zip(call.inputs, inputs, strict=True)), call.inputs, classes)]

    def _joined(self, call: Call, flows: Flows, tying: Sequence[Tensor], classes: ChannelClasses) -> Flow:
        """What comes out, where these inputs tie their channels together."""
        rank = len(call.outputs[0].shape)
        axes = {axis: self._along(call, flows, tying, axis - rank, classes) for axis in range(1, rank)}
        found = {axis: tied for axis, tied in axes.items() if tied is not None}
        if rank - 1 in found and not self._is_masked(call):
            tied, size = found[rank - 1].classes, (call.outputs[0].channels,)
            given = np.stack([np.broadcast_to(flows[tensor].constants, size) for tensor in call.inputs])
            fixed = np.all([np.broadcast_to(flows[tensor].channels.fixed, size) for tensor in call.inputs], axis=0)
            found[rank - 1] = Axis(tied, self._combine(given), fixed)
        return Flow(rank, found)

    def _along(
        self, call: Call, flows: Flows, tying: Sequence[Tensor], axis: int, classes: ChannelClasses
    ) -> Axis | None:
        """The classes along an axis, counted from the last; None where nothing can go along it."""
        size = call.outputs[0].shape[axis]
        known = {tensor: flows[tensor].axes.get(flows[tensor].rank + axis) for tensor in tying}
        whole = [tensor for tensor in tying if -axis < len(tensor.shape) and tensor.shape[axis] == size]
        for tensor, along in known.items():
            if along is not None and tensor not in whole:
                classes.pin(along.classes, f"{call.name} spreads it")
        tied = [along for tensor in whole if (along := known[tensor]) is not None]
        if len(tied) < len(whole):
            for along in tied:
                classes.pin(along.classes, f"{call.name} joins it with what cannot go")
            return None
        for along in tied[1:]:
            classes.join(tied[0].classes, along.classes)
        return Axis.varied(tied[0].classes) if tied else None

    def _is_masked(self, call: Call) -> bool:
        return not self._masked.isdisjoint((*call.inputs, *call.outputs))


class Sum(Elementwise):
    """Add, from which inputs that are constant altogether can go: what is left of them is an offset.

    Not so where masks of padding come in, for the sum of fewer may have another mask.
    """

    def __init__(self, layer: Any, masked: Set[Tensor]) -> None:
        super().__init__(layer, added, masked)

    def sources(self, call: Call, flows: Flows) -> Sequence[Tensor]:
        if self._is_masked(call):
            return call.inputs
        variable = [tensor for tensor in call.inputs if not flows[tensor].is_constant]
        return variable if any(tensor.shape == call.outputs[0].shape for tensor in variable) else call.inputs

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        flows = dict(zip(call.inputs, inputs, strict=True))
        return [self._joined(call, flows, self.sources(call, flows), classes)]

    def offset(self, call: Call, flows: Flows) -> np.ndarray:
        """What the inputs that can go add to each channel, float64 (channels,)."""
        staying = self.sources(call, flows)
        total = np.zeros(call.outputs[0].channels)
        for tensor in call.inputs:
            if tensor not in staying:
                total = total + flows[tensor].constants
        return total


def added(values: np.ndarray) -> np.ndarray:
    return np.sum(values, axis=0)
