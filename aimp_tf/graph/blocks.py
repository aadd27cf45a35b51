"""Which residual branches of a model can go as a whole: the units of granularity="block"."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.compat.variables import key_of
from aimp_tf.graph.channels import ChannelClasses
from aimp_tf.graph.liveness import follow_channels, value_of
from aimp_tf.graph.merging import Sum
from aimp_tf.graph.model_graph import Call, ModelGraph, Tensor
from aimp_tf.graph.multiplications import by_path
from aimp_tf.graph.prunable import matches, named_weights, prunable_variables
from aimp_tf.graph.rule_table import is_sum
from aimp_tf.graph.rules import Assumptions
from aimp_tf.selection.channel_layout import ChannelSet
from aimp_tf.selection.channels import ChannelUnits


@dataclasses.dataclass(frozen=True)
class Block:
    """A branch of an Add beside which what it is added to goes on as it is.

    Attributes:
        joint: The Add.
        end: What is added.
        calls: Those that nothing but the Add needs.
    """

    joint: Call
    end: Tensor
    calls: Sequence[Call]

    @property
    def weights(self) -> list[Any]:
        """Of all its layers, each once."""
        found = {key_of(weight): weight for call in self.calls for weight in getattr(call.layer, "weights", ())}
        return list(found.values())


def ends_of(model: Any) -> dict[str, tuple[Any, int]]:
    """Name of the Add -> the layer or operation that gives what the residual branch adds, and which of its outputs that
    is, of a Keras model."""
    return {
        block.joint.name: (call.layer, call.outputs.index(block.end))
        for block in blocks_of(ModelGraph.of(model))[0]
        for call in block.calls
        if block.end in call.outputs
    }


def blocks_of(graph: ModelGraph) -> tuple[list[Block], list[Call]]:
    """The residual branches of a graph, of those within one another the inner ones; and the Adds of two branches, of
    which neither is what goes on as it is."""
    found: list[Block] = []
    others: list[Call] = []
    for call in graph.calls:
        if is_sum(call.layer) and len(set(call.inputs)) == len(call.inputs) == 2:
            parts = [Block(call, end, _needed_for(graph, call, end)) for end in call.inputs]
            if all(part.weights for part in parts):
                others.append(call)
                continue
            for branch, other in (parts, parts[::-1]):
                if branch.weights and other.end.shape == call.outputs[0].shape:
                    found.append(branch)
    joints = {block.joint for block in found}
    return [block for block in found if joints.isdisjoint(block.calls)], others


def block_units(
    graph: ModelGraph, selected: Mapping[str, Any], include: Sequence[str]
) -> tuple[ChannelUnits, dict[str, tuple[int, str]]]:
    """The residual branches of a model that can go, each with all weights of its own.

    Args:
        graph: Of the model.
        selected: Path -> variable of what is prunable, and neither excluded nor frozen.
        include: fnmatch patterns on paths of kernels, as in `PruningConfig`.

    Returns:
        The units, and those that cannot go: name of the Add -> 1, and why.
    """
    found, (blocks, others) = _Found(graph, selected), blocks_of(graph)
    reasons = {call: "what it is added to has weights of its own" for call in others}
    reasons |= {block.joint: why for block in blocks if (why := found.reason(block, include))}
    blocks = [block for block in blocks if block.joint not in reasons]
    left = found.left_without(blocks)
    why = "a mask of padding reaches it, or without its weights it is not known to be zero"
    reasons |= dict.fromkeys(left, why)
    units = found.units([block for block in blocks if block.joint not in left])
    return units, {call.name: (1, reasons[call]) for call in graph.calls if call in reasons}


class _Found:
    """What is found in a graph."""

    def __init__(self, graph: ModelGraph, selected: Mapping[str, Any]) -> None:
        self._graph, self._selected = graph, selected
        self._variables = named_weights(graph.model)
        self._paths = {key_of(weight): path for path, weight in self._variables.items()}
        self._prunable = set(map(key_of, prunable_variables(graph.model).values()))
        self._trained = set(map(key_of, graph.model.trainable_weights))
        self._calls: dict[int, set[Call]] = collections.defaultdict(set)
        for call in graph.calls:
            for weight in getattr(call.layer, "weights", ()):
                self._calls[key_of(weight)].add(call)

    def reason(self, block: Block, include: Sequence[str]) -> str | None:
        """Why a block cannot go; None if it can."""
        own = self._own(block)
        kernels = {path: weight for path, weight in own.items() if key_of(weight) in self._prunable}
        if not kernels:
            return "nothing of it is prunable"
        for path, weight in kernels.items():
            if key_of(weight) not in self._trained and not matches(path, include):
                return f"{path} is frozen (trainable=False)"
            if path not in self._selected:
                return f"{path} is excluded"
        if any(not self._calls[key_of(weight)] <= set(block.calls) for weight in block.weights):
            return "its weights are used elsewhere as well"
        return None

    def units(self, blocks: Sequence[Block]) -> ChannelUnits:
        """Units of these blocks, in sets of those that have weights of the same shapes."""
        of_block = {path: unit for unit, block in enumerate(blocks) for path in self._own(block)}
        shapes = {
            path: tuple(variable.shape)
            for path, variable in self._variables.items()
            if path in of_block or path in self._selected
        }
        axes = {
            path: (*(None,) * (len(shape) - 1), np.full(shape[-1], of_block[path]) if path in of_block else None)
            for path, shape in shapes.items()
        }
        alike: dict[tuple[tuple[int, ...], ...], list[int]] = collections.defaultdict(list)
        for unit, block in enumerate(blocks):
            alike[tuple(shapes[path] for path in self._own(block))].append(unit)
        products, others = by_path(self._graph.calls, shapes, lambda _, kernel: self._paths.get(key_of(kernel)))
        return ChannelUnits(
            axes=axes,
            shapes=shapes,
            sets=tuple(_set_of(units, blocks) for units in alike.values()),
            counted=frozenset(self._selected),
            scored=frozenset(path for path in of_block if path in self._selected),
            reads={},
            others=tuple(block.joint.name for block in blocks),
            products=products,
            other_products=others,
            kinds=("block",),
        )

    def _own(self, block: Block) -> dict[str, Any]:
        """Path -> weight of a block, of those that are masked: statistics are not."""
        return {
            self._paths[key]: weight
            for weight in block.weights
            if (key := key_of(weight)) in self._trained or key in self._prunable
        }

    def left_without(self, blocks: Sequence[Block]) -> set[Call]:
        """The Adds of those blocks that still add something if all their weights are zero, whatever others are."""
        zeros = {key_of(weight) for block in blocks for weight in self._own(block).values()}

        def value(variable: Any) -> np.ndarray:
            if (key := key_of(variable)) in zeros:
                return np.zeros(variable.shape, np.float32)
            return np.full(variable.shape, np.nan, np.float32) if key in self._trained else value_of(variable)

        assumptions = Assumptions(self._graph.keras, value, training=False, masked=self._graph.masked)
        rules, flows = follow_channels(self._graph, assumptions, ChannelClasses(), as_one=False)
        return {
            block.joint
            for block in blocks
            if not isinstance(rules[block.joint], Sum) or block.end in rules[block.joint].sources(block.joint, flows)
        }


def _set_of(units: Sequence[int], blocks: Sequence[Block]) -> ChannelSet:
    names = tuple(blocks[unit].joint.name for unit in units)
    return ChannelSet(names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}", names, np.array(units))


def _needed_for(graph: ModelGraph, joint: Call, end: Tensor) -> list[Call]:
    """The calls that nothing needs but one input of a call, in their order."""
    inside: set[Call | None] = set()
    for call in reversed(graph.calls):
        read_by = [(tensor, reader) for tensor in call.outputs for reader in graph.readers[tensor]]
        if read_by and all(reader in inside or (reader is joint and tensor is end) for tensor, reader in read_by):
            inside.add(call)
    return [call for call in graph.calls if call in inside]
