"""Which channels of a model anything depends on."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.variables import resource_of
from aimp_tf.graph.channels import ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call, ModelGraph, Tensor
from aimp_tf.graph.multiplications import multiply_adds
from aimp_tf.graph.rule_table import rule_for
from aimp_tf.graph.rules import Assumptions, Kept, Linear, Rule, as_it_is


def value_of(variable: Any) -> np.ndarray:
    """The value of a variable."""
    return np.asarray(variable.numpy())


class Liveness:
    """The channels of a model that must stay. Channels that are constant are needed only where no bias can hold them.

    In a model that goes on training, all that its masks keep may become anything, so that only zeros that no weight can
    change are constant, and no bias is to hold anything else.

    Attributes:
        rules: Of each call.
        flows: Of each tensor.
    """

    def __init__(
        self,
        graph: ModelGraph,
        masks: Mapping[int, np.ndarray] | None = None,
        value: Callable[[Any], np.ndarray] = value_of,
    ) -> None:
        """Finds out all there is to know of a graph.

        Args:
            graph: The graph.
            masks: Id of the `resource_of` a variable -> its mask, True where it may train; a variable without one may
                train everywhere. None for a model that does not train any more.
            value: Gives the value of a variable of a model that does not train.
        """
        self._graph = graph
        assumptions = Assumptions(
            graph.keras,
            value if masks is None else lambda variable: _untrained(variable, masks.get(id(resource_of(variable)))),
            training=masks is not None,
            masked=graph.masked,
        )
        classes = ChannelClasses()
        self.rules, self.flows = follow_channels(graph, assumptions, classes, as_one=assumptions.training)
        self._needed = classes.pinned()
        self._reachable = self._reach() if masks is None else set(self.flows)
        self._readers = [_Reader.of(calls[0], rule, calls, self.flows) for rule, calls in self._linear_layers()]
        self._merged: dict[int, int] = {}
        self._settle()

    def kept(self, call: Call, needed: np.ndarray | None = None) -> Kept:
        """What stays of the layer of a call. It is as little as can be, unless it is said which classes of channels."""
        needed = self._needed if needed is None else needed
        inputs, outputs = (
            np.flatnonzero(needed[self.flows[tensors[0]].classes]) for tensors in (call.inputs, call.outputs)
        )
        reader = next((reader for reader in self._readers if reader.layer is call.layer), None)
        if reader is None:
            return Kept(inputs, outputs, np.full(call.inputs[0].channels, np.nan))
        position = {class_: index for index, class_ in enumerate(reader.sources.tolist())}
        merged = [
            (channel, position[self._merged[class_]])
            for channel, class_ in enumerate(reader.sources.tolist())
            if reader.mergeable[channel] and class_ in self._merged and not needed[class_]
        ]
        return Kept(inputs, outputs, reader.constants, merged)

    def multiply_adds(self, call: Call, kept: Kept | None = None) -> int | None:
        """Multiplications with weights in a call, for one example, with what is kept of the layer, or all of it. None
        where they are not known, as `multiply_adds` says, which is then all that is known of any part."""
        whole, rule = multiply_adds(call), self.rules[call]
        if not whole or kept is None or not rule.is_tied:
            return whole
        return whole * math.prod(map(len, rule.indices(kept)[0])) // math.prod(call.layer.weights[0].shape)

    def filled_up(self, multiple: int) -> np.ndarray:
        """Whether each class of channels stays, bool, if more stay than must. Which classes there are depends on the
        graph alone.

        So many stay in each layer that makes new ones as are a multiple of this number, or all. Those that need not may
        lack inputs that go, for nothing depends on them.
        """
        needed = self._needed.copy()
        for call in self._graph.calls:
            if isinstance(self.rules[call], Linear):
                classes = np.unique(self.flows[call.outputs[0]].classes)
                gone = classes[~needed[classes]]
                needed[gone[: -(len(classes) - len(gone)) % multiple]] = True
        return needed

    def _reach(self) -> set[Tensor]:
        """The tensors that the outputs depend on, as far as layers go."""
        origin = {output: call for call in self._graph.calls for output in call.outputs}
        reached: set[Tensor] = set()
        pending = tf.nest.flatten(self._graph.outputs)
        while pending:
            tensor = pending.pop()
            if tensor not in reached:
                reached.add(tensor)
                if tensor in origin:
                    pending += self.rules[origin[tensor]].sources(origin[tensor], self.flows)
        return reached

    def _linear_layers(self) -> list[tuple[Linear, list[Call]]]:
        """The layers that read channels by weights, with those of their calls that anything depends on."""
        calls_of: dict[int, list[Call]] = defaultdict(list)
        for call in self._graph.calls:
            if isinstance(self.rules[call], Linear) and call.outputs[0] in self._reachable:
                calls_of[id(call.layer)].append(call)
        layers = []
        for calls in calls_of.values():
            rule = self.rules[calls[0]]
            assert isinstance(rule, Linear)
            layers.append((rule, calls))
        return layers

    def _settle(self) -> None:
        """Marks classes as needed until nothing that stays depends on any that does not."""
        while True:
            self._spread()
            if self._merge():
                continue
            # A tensor without channels cannot be, so one stays: best one that takes nothing to compute.
            empty = (
                flow
                for tensor, flow in self.flows.items()
                if tensor in self._reachable and tensor.channels and not self._needed[flow.classes].any()
            )
            flow = next(empty, None)
            if flow is None:
                return
            self._needed[flow.classes[np.argmin(np.isnan(flow.constants))]] = True

    def _spread(self) -> None:
        """From the outputs of linear layers to the inputs that lead there."""
        changed = True
        while changed:
            changed = False
            for reader in reversed(self._readers):
                if reader.look(self._needed):
                    wanted = reader.sources[reader.read & ~reader.foldable & ~reader.mergeable]
                    changed = changed or not bool(self._needed[wanted].all())
                    self._needed[wanted] = True

    def _merge(self) -> bool:
        """Lets one constant channel stand in for all others that the same bordered layers read.

        Returns:
            Whether there was anything to decide.
        """
        places: dict[int, dict[int, int]] = defaultdict(dict)  # Class -> reader -> channel.
        several: set[int] = set()
        for index, reader in enumerate(self._readers):
            if reader.mergeable.any():
                for channel, class_ in enumerate(reader.sources.tolist()):
                    if index in places[class_]:
                        several.add(class_)
                    places[class_][index] = channel
        open_ = {
            class_
            for reader in self._readers
            for class_ in reader.sources[reader.read & reader.mergeable].tolist()
            if not self._needed[class_] and class_ not in self._merged
        }
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for class_, readers in places.items():
            values = [self._readers[index].constants[channel] for index, channel in readers.items()]
            if class_ not in several and np.all(np.nan_to_num(values)):
                groups[tuple(readers)].append(class_)
        for class_ in sorted(open_):
            group = groups[tuple(places[class_])] if class_ not in several else []
            if class_ in group:
                # Preferred are channels that stay anyway, then large ones.
                self._merged[class_] = max(
                    (member for member in group if self._needed[member] or member in open_),
                    key=lambda member: (self._needed[member], self._size(member, places), -member),
                )
                self._needed[self._merged[class_]] = True
            else:
                self._needed[class_] = True
        return bool(open_)

    def _size(self, class_: int, places: dict[int, dict[int, int]]) -> float:
        return min(abs(self._readers[index].constants[channel]) for index, channel in places[class_].items())


def follow_channels(
    graph: ModelGraph, assumptions: Assumptions, classes: ChannelClasses, *, as_one: bool
) -> tuple[dict[Call, Rule], dict[Tensor, Flow]]:
    """Follows the channels through a graph, and what is known of their values.

    Args:
        graph: The graph.
        assumptions: What is taken for granted of the model.
        classes: Of no channels yet. It gets those of all tensors, and which must be kept.
        as_one: Whether what training changes as a whole is kept as a whole.

    Returns:
        The rule of each call, and the flow of each tensor.
    """
    calls_of = defaultdict(list)
    for call in graph.calls:
        calls_of[id(call.layer)].append(call)
    rule_of = {layer: rule_for(calls, assumptions) for layer, calls in calls_of.items()}
    rules = {call: rule_of[id(call.layer)] for call in graph.calls}
    flows = {tensor: as_it_is(tensor, classes, "input of the model") for tensor in tf.nest.flatten(graph.inputs)}
    for call in graph.calls:
        outputs = rules[call].follow(call, flows, classes)
        if assumptions.training:
            outputs = [Flow(flow.classes, np.where(flow.constants == 0, 0.0, np.nan)) for flow in outputs]
        if as_one and (trains_as_one := _trains_as_one(call.layer)):
            sources = [flows[tensor] for tensor in call.inputs] if trains_as_one == "weights" else []
            for flow in (*outputs, *sources):
                classes.pin(flow.classes, f"{call.name} trains as a whole")
        flows.update(zip(call.outputs, outputs, strict=True))
    for tensor in tf.nest.flatten(graph.outputs):
        classes.pin(flows[tensor].classes, "output of the model")
    return rules, {tensor: Flow(classes.settled(flow.classes), flow.constants) for tensor, flow in flows.items()}


def _untrained(variable: Any, mask: np.ndarray | None) -> np.ndarray:
    """Zero where a mask prunes; NaN elsewhere, for training may make anything of it."""
    values = np.full(variable.shape, np.nan, np.float32)
    if mask is not None:
        values[~mask] = 0.0
    return values


def _trains_as_one(layer: Any) -> str | None:
    """What training changes as a whole, so that no part can be left out: the "outputs", all "weights", or nothing.

    A constraint may look at all weights of a variable together, such as those of a column.
    """
    for name, value in vars(layer).items():
        if value is None or name.startswith("_"):
            continue
        if name.endswith("_constraint"):
            return "weights"
        if name.endswith("_regularizer") and name != "activity_regularizer":
            if type(value).__name__ not in _REGULARIZERS_BY_WEIGHT:
                return "weights"
    for variable in getattr(layer, "weights", ()):
        constraint = getattr(variable, "constraint", None)
        # A mask's own is a constraint as well, which holds the user's.
        if getattr(constraint, "previous", None if hasattr(constraint, "mask") else constraint) is not None:
            return "weights"
    return "outputs" if getattr(layer, "activity_regularizer", None) is not None else None


_REGULARIZERS_BY_WEIGHT = ("L1", "L2", "L1L2")
"""Those that look at each weight by itself."""


@dataclasses.dataclass
class _Reader:
    """A linear layer, and which input channels it reads.

    Attributes:
        layer: The layer.
        connected: As in `Linear`.
        sources: Classes of its input channels.
        outputs: Classes of its output channels.
        constants: Value of each input channel that has the same one in all calls; NaN for the others.
        foldable: Whether a bias can hold what the channel does.
        mergeable: Whether it is constant all the same.
        read: Whether any output that stays is connected with it.
    """

    layer: object
    connected: np.ndarray
    sources: np.ndarray
    outputs: np.ndarray
    constants: np.ndarray
    foldable: np.ndarray
    mergeable: np.ndarray
    read: np.ndarray
    _outputs_seen: int = 0

    @classmethod
    def of(cls, call: Call, rule: Linear, calls: list[Call], flows: dict[Tensor, Flow]) -> _Reader:
        first, *others = (flows[call.inputs[0]].constants for call in calls)
        constants = np.where(np.all([other == first for other in others], axis=0), first, np.nan)
        foldable = rule.foldable(constants)
        return cls(
            call.layer,
            rule.connected,
            flows[call.inputs[0]].classes,
            flows[call.outputs[0]].classes,
            constants,
            foldable,
            ~np.isnan(constants) & ~foldable,
            np.zeros(len(constants), bool),
        )

    def look(self, needed: np.ndarray) -> bool:
        """Brings `read` up to date. Returns whether there was anything to do."""
        outputs = needed[self.outputs]
        count = int(np.count_nonzero(outputs))
        if count == self._outputs_seen:
            return False
        self._outputs_seen = count
        self.read = np.asarray(self.connected[:, outputs].any(axis=1))
        return True
