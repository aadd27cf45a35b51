"""Which channels of a model anything depends on."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import layers_of
from aimp_tf.compat.variables import key_of
from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call, ModelGraph, Tensor
from aimp_tf.graph.multiplications import multiply_adds, products
from aimp_tf.graph.readers import Reader
from aimp_tf.graph.rule_table import rule_for
from aimp_tf.graph.rules import Assumptions, Kept, Rule, as_it_is

_log = logging.getLogger(__name__)


def value_of(variable: Any) -> np.ndarray:
    """The value of a variable."""
    return np.asarray(variable.numpy())


class Liveness:
    """The channels of a model that must stay. Of those that do not depend on its inputs, such as constant ones, some
    are needed only where no bias can hold them, and stand in for the others.

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
            value if masks is None else lambda variable: _untrained(variable, masks.get(key_of(variable))),
            training=masks is not None,
            masked=graph.masked,
        )
        classes = ChannelClasses()
        self.rules, self.flows = follow_channels(graph, assumptions, classes, as_one=assumptions.training)
        self._needed = classes.pinned()
        self._reachable = self._reach() if masks is None else set(self.flows)
        # Each with those of its calls that anything depends on.
        self._layers = [
            (self.rules[reached[0]], reached)
            for calls in graph.by_layer.values()
            if (reached := [call for call in calls if not self._reachable.isdisjoint(call.outputs)])
        ]
        sizes_known = all(None not in tensor.shape[1:] for tensor in tf.nest.flatten(graph.inputs))
        self._computed = masks is None and value is value_of and sizes_known
        values = functools.cache(
            self._values
        )  # Let go of afterwards, for they are as large as the model's activations.
        self._readers = [
            Reader(
                rule,
                reading,
                [rule.named(call, self.flows) for call in calls],
                functools.partial(map, functools.partial(self._example, values), [call.inputs[0] for call in calls]),
            )
            for rule, calls in self._layers
            for reading in rule.readings()
        ]
        self._settle()

    def kept(self, call: Call, needed: np.ndarray | None = None) -> Kept:
        """What stays of the layer of a call. It is as little as can be, unless it is said which classes of channels."""
        needed = self._needed if needed is None else needed
        named = self.rules[call].named(call, self.flows)
        indices = {name: np.flatnonzero(needed[along.classes]) for name, along in named.items()}
        reader = next((reader for reader in self._readers if reader.layer is call.layer and reader.folds), None)
        if reader is None:
            return Kept(indices, np.full(call.inputs[0].channels, np.nan))
        return Kept(indices, *reader.merged(needed[reader.sources[0]]))

    def staying(self, tensor: Tensor) -> dict[int, np.ndarray]:
        """The indices that stay of a tensor, rising, for each axis from which any go."""
        stays = {axis: self._needed[along.classes] for axis, along in self.flows[tensor].axes.items()}
        return {axis: np.flatnonzero(each) for axis, each in stays.items() if not each.all()}

    def multiply_adds(self, call: Call, needed: np.ndarray | None = None) -> int | None:
        """Multiplications with weights in a call, for one example, where these classes of channels stay, or all. None
        where they are not known, as `multiply_adds` says, which is then all that is known of any part."""
        rule = self.rules[call]
        if needed is None or not rule.is_tied or not (parts := products(call)):
            return multiply_adds(call)
        stay = {name: float(needed[along.classes].mean()) for name, along in rule.named(call, self.flows).items()}
        places = math.prod(float(needed[along.classes].mean()) for along in rule.places(call, self.flows))
        shares = {
            key_of(weight): places * math.prod(stay[name] for name in names if name)
            for weight, names in zip(call.layer.weights, rule.axes(), strict=True)
        }
        return sum(round(total * shares.get(key_of(kernel), 1.0)) for kernel, total in parts)

    def filled_up(self, multiple: int) -> np.ndarray:
        """Whether each class of channels stays, bool, if more stay than must. Which classes there are depends on the
        graph alone.

        So many stay in each layer that makes new ones as are a multiple of this number, or all. Those that need not may
        lack inputs that go, for nothing depends on them.
        """
        needed = self._needed.copy()
        for call in self._graph.calls:
            if self.rules[call].readings():
                classes = np.unique(self.flows[call.outputs[0]].classes)
                gone = classes[~needed[classes]]
                needed[gone[: -(len(classes) - len(gone)) % multiple]] = True
        return needed

    def _reach(self) -> set[Tensor]:
        """The tensors that the outputs depend on, as far as layers go."""

        def sources(call: Call) -> Iterator[Tensor]:
            yield from self.rules[call].within.values()
            yield from self.rules[call].sources(call, self.flows)

        return self._graph.needed(sources)

    def _example(self, values: Callable[[], Mapping[Tensor, Any]], tensor: Tensor) -> np.ndarray:
        """What goes into a layer, as `Reader` takes it, where it does not depend on the model's inputs."""
        constants = self.flows[tensor].constants
        if not self._computed or tensor not in values():
            return constants
        return np.where(np.isnan(constants), tf.cast(values()[tensor], tf.float64)[0], constants)

    def _values(self) -> Mapping[Tensor, Any]:
        """Of one example, which is made up; nothing where the model does not take that, such as texts."""
        generator = np.random.default_rng(0)
        try:
            inputs = [
                tf.cast(generator.uniform(0, 1, (1, *tensor.shape[1:])), tensor.dtype)
                for tensor in tf.nest.flatten(self._graph.inputs)
            ]
            return self._graph.computed(inputs)
        except Exception as error:  # Whatever a layer of the user's raises.
            _log.debug("%s could not be computed: %s", self._graph.model.name, error)
            return {}

    def _settle(self) -> None:
        """Marks classes as needed until nothing that stays depends on any that does not."""
        while True:
            if (
                self._need(self._wanted())
                or self._need(reader.standing_in(self._needed) for reader in self._readers)
                or self._need(self._completing())
            ):
                continue
            # A tensor without channels cannot be, so one stays: best one that takes nothing to compute.
            reached = (flow for tensor, flow in self.flows.items() if tensor in self._reachable)
            axes = (along for flow in reached for along in flow.axes.values())
            along = next((along for along in axes if not self._needed[along.classes].any()), None)
            if along is None:
                return
            self._needed[along.classes[np.argmin(np.isnan(along.constants))]] = True

    def _need(self, found: Iterable[np.ndarray]) -> bool:
        """Marks classes as needed, each before the next are found. Returns whether any were not."""
        before = np.count_nonzero(self._needed)
        for classes in found:
            self._needed[classes] = True
        return bool(np.count_nonzero(self._needed) > before)

    def _wanted(self) -> Iterator[np.ndarray]:
        """What leads to outputs of linear layers that stay."""
        for reader in reversed(self._readers):
            if reader.look(self._needed):
                yield from reader.wanted()

    def _completing(self) -> Iterator[np.ndarray]:
        """What layers cannot leave out beside what stays."""
        for rule, calls in self._layers:
            for call in calls:
                named = rule.named(call, self.flows)
                stays = rule.completed({name: self._needed[along.classes] for name, along in named.items()})
                yield from (named[name].classes[needed] for name, needed in stays.items())


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
    rule_of = {layer: rule_for(calls, assumptions) for layer, calls in graph.by_layer.items()}
    rules = {call: rule_of[id(call.layer)] for call in graph.calls}
    flows = {tensor: as_it_is(tensor, classes, "input of the model") for tensor in tf.nest.flatten(graph.inputs)}
    for call in graph.calls:
        found = rules[call].follow(call, flows, classes)
        if assumptions.training:
            found = {tensor: flow.each(_in_training) for tensor, flow in found.items()}
        whole = "weights" if not rules[call].in_place else _trains_as_one(call.layer)
        if as_one and whole:
            sources = [flows[tensor] for tensor in call.inputs] if whole == "weights" else []
            for flow in (*found.values(), *sources):
                classes.pin_all(flow, f"{call.name} trains as a whole")
        flows.update(found)
    for tensor in tf.nest.flatten(graph.outputs):
        classes.pin_all(flows[tensor], "output of the model")

    def settled(along: Axis) -> Axis:
        return Axis(classes.settled(along.classes), along.constants, along.fixed)

    return rules, {tensor: flow.each(settled) for tensor, flow in flows.items()}


def _in_training(along: Axis) -> Axis:
    """What is left of what is known where training may change all but zeros."""
    return Axis(along.classes, np.where(along.constants == 0, 0.0, np.nan))


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
    for name, value in ((name, value) for part in layers_of(layer) for name, value in vars(part).items()):
        if value is None or name.startswith("_"):
            continue
        by_weight = name == "activity_regularizer" or type(value).__name__ in _REGULARIZERS_BY_WEIGHT
        if name.endswith("_constraint") or name.endswith("_regularizer") and not by_weight:
            return "weights"
    for variable in getattr(layer, "weights", ()):
        constraint = getattr(variable, "constraint", None)
        # A mask's own is a constraint as well, which holds the user's.
        if getattr(constraint, "previous", None if hasattr(constraint, "mask") else constraint) is not None:
            return "weights"
    return "outputs" if getattr(layer, "activity_regularizer", None) is not None else None


_REGULARIZERS_BY_WEIGHT = ("L1", "L2", "L1L2")
"""Those that look at each weight by itself."""
