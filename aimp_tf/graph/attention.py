"""Attention: its heads, and the dimensions within them, are channels of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.compat.attention import given_to, projections, signature
from aimp_tf.compat.variables import key_of
from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call, Tensor
from aimp_tf.graph.rules import Assumptions, Flows, Kept, Reading, Rule

_MADE = {
    "query": ("queries", "dimensions"),
    "key": ("heads", "dimensions"),
    "value": ("heads", "values"),
    "gate": ("queries", "values"),
}
"""Projection -> what it makes of what it reads: of queries there may be several a head."""


class Attention(Rule):
    """MultiHeadAttention and GroupQueryAttention.

    A head goes with the queries that it answers, their keys and values, and the rows that read them. A dimension of
    keys goes with that of queries, and a dimension of values with the rows that read it, in all heads at once. Since
    attention divides by the root of how many dimensions there are, the queries make up for it. In GroupQueryAttention
    the dimensions stay, and as many channels come out as go in. Values that are always the same come out as they are,
    for rows of attention add up to one: the bias of the output holds what is left out of them.
    """

    in_place = False
    is_tied = True

    def __init__(self, layer: Any, assumptions: Assumptions) -> None:
        super().__init__(layer)
        self._dense = projections(layer)
        self._values = {
            name: [assumptions.value(weight) for weight in (dense.kernel, dense.bias) if weight is not None]
            for name, dense in self._dense.items()
        }
        self._tensors_with_masks = assumptions.masked
        self._adds_up_to_one = True
        self._grouped = hasattr(layer, "num_repeats")
        self._times = layer.num_repeats if self._grouped else 1

    def named(self, call: Call, flows: Flows) -> dict[str, Axis]:
        given = given_to(call.args, dict(call.kwargs))
        read = {f"read by {name}": flows[given[name]].channels for name in _MADE if name in self._dense}
        named = super().named(call, flows)
        return {**named, **read, "queries": named["heads"].arranged(lambda each: np.repeat(each, self._times))}

    def makes(self) -> Mapping[str, str]:
        within = {} if self._grouped else {"dimensions": "dimension", "values": "dimension"}
        return {"outputs": "channel", "heads": "head", **within}

    def readings(self) -> Sequence[Reading]:
        found = []
        for name, (kernel, *_) in self._values.items():
            sources, outputs = self._counted(name)
            connected = kernel != 0
            if name == "output":
                connected = connected & ~self._always_the_same()[..., np.newaxis]
            if self._grouped:  # Dimensions are not counted.
                connected = connected.any(axis=1 if name == "output" else 2)
            found.append(Reading(connected, sources, outputs))
        if not self._grouped:
            both = self._nonzero("query") & self._nonzero("key")
            found.append(Reading(both.T, ("dimensions",), ("heads",)))
        return found

    def axes(self) -> list[tuple[str | None, ...]]:
        counted: dict[int, tuple[str | None, ...]] = {}
        for name, dense in self._dense.items():
            sources, outputs = self._counted(name)
            names: tuple[str | None, ...] = (*sources, *outputs)
            if self._grouped:
                names = (*names[:1], None, *names[1:]) if name == "output" else (*names, None)
            counted[key_of(dense.kernel)] = names
            if dense.bias is not None:
                counted[key_of(dense.bias)] = names[-1:] if name == "output" else names[1:]
        return [counted[key_of(weight)] for weight in self.layer.weights]

    def rewritten(self, kept: Kept) -> tuple[list[np.ndarray] | None, dict[str, Any]]:
        weights, _ = super().rewritten(kept)
        assert weights is not None  # It has some.
        if all(now.shape == tuple(weight.shape) for now, weight in zip(weights, self.layer.weights, strict=True)):
            return None, {}
        weights = self._with_bias(weights, kept)
        heads = len(kept.indices["heads"])
        sizes = {name: len(kept.indices[f"read by {name}"]) for name in ("query", "key", "value")}
        if self._grouped:
            return weights, {"num_key_value_heads": heads, "num_query_heads": heads * self._times}
        dimensions = len(kept.indices["dimensions"])
        ratio = math.sqrt(dimensions / self._dense["query"].kernel.shape[-1])
        scaled = {key_of(weight) for weight in self._dense["query"].weights}
        weights = [
            (ratio * value).astype(value.dtype) if key_of(weight) in scaled and ratio != 1 else value
            for weight, value in zip(self.layer.weights, weights, strict=True)
        ]
        return weights, {
            "num_heads": heads,
            "key_dim": dimensions,
            "value_dim": len(kept.indices["values"]),
            "output_shape": (len(kept.outputs),),
            **signature(self.layer, sizes),
        }

    def _always_the_same(self) -> np.ndarray:
        """Which values depend on biases alone, and can be left to that of the output, bool (queries, values)."""
        kernel, *bias = self._values["value"]
        found = ~(kernel != 0).any(axis=0)
        if not bias or "gate" in self._dense or not self._adds_up_to_one:
            return np.zeros_like(np.repeat(found, self._times, axis=0))
        return np.repeat(found & ~np.isnan(bias[0]), self._times, axis=0)

    def _with_bias(self, weights: list[np.ndarray], kept: Kept) -> list[np.ndarray]:
        """The weights that stay, with what constant values that go gave in the bias of the output."""
        gone = self._always_the_same()
        within = kept.indices.get("values", np.arange(gone.shape[1]))
        gone[np.ix_(kept.indices["queries"], within)] = False
        if not gone.any():
            return weights
        (_, value), (kernel, _) = self._values["value"], self._values["output"]
        given = np.where(gone, np.repeat(value, self._times, axis=0), 0.0).astype(np.float64)
        sums = np.einsum("qv,qvo->o", given, kernel.astype(np.float64))[kept.outputs]
        place = [key_of(weight) for weight in self.layer.weights].index(key_of(self._dense["output"].bias))
        return [(each + sums).astype(each.dtype) if at == place else each for at, each in enumerate(weights)]

    def _counted(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What the kernel of a projection reads, and what it makes, of what is counted."""
        first, second = ("queries", "values") if name == "output" else _MADE[name]
        within = (first,) if self._grouped else (first, second)
        return (within, ("outputs",)) if name == "output" else ((f"read by {name}",), within)

    def _nonzero(self, name: str) -> np.ndarray:
        """Whether a projection gives anything but zeros, bool (heads, dimensions)."""
        kernel, *bias = self._values[name]
        found = (kernel != 0).any(axis=0)
        return found | (bias[0] != 0) if bias else found

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        # With dropout, or more axes than one to attend along, a row of which all is masked may not add up to one.
        masked = len(call.args) > 3 or call.kwargs.get("attention_mask") is not None
        masked = masked or any(tensor in self._tensors_with_masks for tensor in call.inputs)
        drops = any(getattr(self.layer, name, 0) for name in ("dropout", "_dropout"))
        several_axes = len(call.inputs[0].shape) > 3
        self._adds_up_to_one = self._adds_up_to_one and not (masked and (drops or several_axes))
        given = given_to(call.args, dict(call.kwargs))
        read = {id(tensor) for tensor in given.values()}
        for tensor, flow in zip(call.inputs, inputs, strict=True):
            others = flow.others if id(tensor) in read else flow.axes
            for along in others.values():
                classes.pin(along.classes, f"{call.name} looks at it along other axes")
        kernel, *bias = self._values["output"]
        made = classes.new(kernel.shape[-1])
        if self._grouped:
            why = f"{call.name} gives as many channels as it gets"
            classes.pin(made, why)
            for flow in inputs:
                classes.pin_all(flow, why)
        constants = np.where((kernel != 0).any(axis=(0, 1)), np.nan, bias[0] if bias else 0.0)
        return [Flow.of_channels(len(call.outputs[0].shape), Axis(made, constants))]

    def _inside(self, classes: ChannelClasses) -> dict[Tensor, Flow]:
        values = self._nonzero("value")
        sizes = {"heads": np.where(values.any(axis=1), np.nan, 0.0)}
        if not self._grouped:
            both = self._nonzero("query") & self._nonzero("key")
            sizes["dimensions"] = np.where(both.any(axis=0), np.nan, 0.0)
            sizes["values"] = np.where(values.any(axis=0), np.nan, 0.0)
        self.within = {name: Tensor((None, len(known)), "float32") for name, known in sizes.items()}
        return {
            tensor: Flow.of_channels(2, Axis(classes.new(len(sizes[name])), sizes[name]))
            for name, tensor in self.within.items()
        }
