"""What is known of each kind of layer: how channels pass through it, and how it is made anew with fewer of them."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call, Tensor

Flows = Mapping[Tensor, Flow]
Function = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What is taken for granted of a model.

    Attributes:
        keras: Its generation of Keras.
        value: Gives the value of a variable, NaN for a number that is not known.
        training: Whether the model goes on training.
        masked: The tensors that carry a mask of padding.
    """

    keras: Any
    value: Callable[[Any], np.ndarray]
    training: bool
    masked: Set[Tensor]


@dataclasses.dataclass(frozen=True)
class Merge:
    """Channels that do not depend on the model's inputs, and are sums of others that stay.

    Attributes:
        removed: Indices of the channels that go.
        standing_in: Indices of those that stay.
        ratios: How much of each that stays is in each that goes, float (standing_in, removed).
    """

    removed: np.ndarray
    standing_in: np.ndarray
    ratios: np.ndarray

    def within(self, first: int, count: int) -> Merge | None:
        """The same, counted from one of the channels, if they are among so many from there on."""
        if not (first <= self.removed[0] < first + count):
            return None
        return Merge(self.removed - first, self.standing_in - first, self.ratios)


@dataclasses.dataclass(frozen=True)
class Kept:
    """Which channels of a layer stay, and what stands in for others.

    Attributes:
        indices: Name of what the rule counts, such as "inputs" and "outputs" -> indices of those that stay, rising.
        constants: Value of each channel of "inputs" that a bias may hold; NaN where it has no single one.
        merged: What kept channels of "inputs" do for removed ones.
    """

    indices: Mapping[str, np.ndarray]
    constants: np.ndarray
    merged: Sequence[Merge] = ()

    @property
    def inputs(self) -> np.ndarray:
        """Indices of the channels of the first input that stay, rising."""
        return self.indices["inputs"]

    @property
    def outputs(self) -> np.ndarray:
        """Indices of the channels of the first output that stay, rising."""
        return self.indices["outputs"]


@dataclasses.dataclass(frozen=True)
class Reading:
    """Weights that lead from some channels of a layer to others.

    Attributes:
        connected: Whether any weight does, bool: an axis for each of `sources`, then one for each of `outputs`.
        sources: Names of what is read.
        outputs: Names of what is made of it.
        foldable: Tells of constant channels, float (channels,), whether a bias can hold what they do, bool (channels,):
            by default, whether they are zero, and so add nothing.
        pattern: Gives what the weights multiply, float (values..., channels), of an input (positions..., channels), NaN
            for what is not known, if a channel that is a sum of others there can be left to them; otherwise None.
        offset: Whether a bias can hold what is the same everywhere in the pattern.
        blocks: Number of each channel, int (channels,): those of the same one can be left to one another. None for all.
    """

    connected: np.ndarray
    sources: tuple[str, ...] = ("inputs",)
    outputs: tuple[str, ...] = ("outputs",)
    foldable: Function = np.logical_not
    pattern: Function | None = None
    offset: bool = False
    blocks: np.ndarray | None = None


class Rule(abc.ABC):
    """What is known of one layer, in all its calls.

    Attributes:
        layer: The layer.
        within: Name -> a tensor within the layer whose channels the weights count as well, as `follow` has found it.
        in_place: Whether leaving out parts of the weights, and changing `attributes`, is all that it takes to let a
            part of the layer be computed.
    """

    in_place = True

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.within: dict[str, Tensor] = {}
        self._first: Call | None = None

    def follow(self, call: Call, flows: Flows, classes: ChannelClasses) -> dict[Tensor, Flow]:
        """What is known of what comes out of a call, and of what is `within`, by what is known of what goes in."""
        outputs = self._flow(call, [flows[tensor] for tensor in call.inputs], classes)
        found = dict(zip(call.outputs, outputs, strict=True))
        if self._first is None:
            self._first = call
            return {**found, **self._inside(classes)}
        if self.is_tied:
            both = {**flows, **found}
            before, now = self.named(self._first, both), self.named(call, both)
            for name in before.keys() & now.keys():
                classes.join(now[name].classes, before[name].classes)
            for name in before.keys() ^ now.keys():
                classes.pin({**before, **now}[name].classes, f"calls of {call.name} differ")
        return found

    def named(self, call: Call, flows: Flows) -> dict[str, Axis]:
        """What the weights count in a call, by name; the channels of the first input and output among them."""
        inside = {name: flows[tensor].channels for name, tensor in self.within.items()}
        return {"inputs": flows[call.inputs[0]].channels, "outputs": flows[call.outputs[0]].channels, **inside}

    def sources(self, call: Call, flows: Flows) -> Sequence[Tensor]:
        """The inputs of a call that are needed for its outputs."""
        return call.inputs

    def readings(self) -> Sequence[Reading]:
        """The weights that lead from some channels to others. Without any, all that goes in is needed."""
        return ()

    def places(self, call: Call, flows: Flows) -> Sequence[Axis]:
        """Where kernels are used anew in a call: the axes that they do not count, but along which anything could go."""
        return tuple(flows[call.inputs[0]].others.values()) if self.is_tied else ()

    def makes(self) -> Mapping[str, str]:
        """What the weights make, by name -> what kind of unit it is: "channel", "head" or "dimension"."""
        return {"outputs": "channel"} if self.readings() else {}

    def completed(self, needed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """What must stay if at least this does: name -> bool (channels,), of those that change."""
        return {}

    def axes(self) -> list[tuple[str | None, ...]]:
        """Of each weight of the layer, what its axes count, by name, or None."""
        return self._axes([len(weight.shape) for weight in getattr(self.layer, "weights", ())])

    def indices(self, kept: Kept) -> list[tuple[np.ndarray, ...]]:
        """Of each weight of the layer, the indices that stay along each axis. No weights, no indices."""
        weights = getattr(self.layer, "weights", ())
        return [
            tuple(
                kept.indices[name] if name else np.arange(size) for name, size in zip(names, weight.shape, strict=True)
            )
            for weight, names in zip(weights, self.axes(), strict=True)
        ]

    def remade(self, call: Call, kept: Callable[[Tensor], Mapping[int, np.ndarray]], keras: Any) -> Any:
        """What takes the place of a call from which entries are left out: a function of what gives a copy of the layer,
        and of what gives the new tensors. None where the same call does.

        Args:
            call: The call.
            kept: Gives the indices that stay of a tensor, for each axis from which any go.
            keras: The generation of Keras.
        """
        return None

    def attributes(self, kept: Kept) -> dict[str, Any]:
        """What changes of the layer's attributes, which are fields of its config as well."""
        return {}

    def while_trained(self) -> dict[str, Any]:
        """What else of the layer is replaced while a part of it trains."""
        return {}

    def rewritten(self, kept: Kept) -> tuple[list[np.ndarray] | None, dict[str, Any]]:
        """The weights of the layer with fewer channels, None for the same ones, and the fields of its config that
        change."""
        weights = None
        if self.is_tied and self.layer.weights:
            places = self.indices(kept)
            weights = [weight[np.ix_(*at)] for weight, at in zip(self.layer.get_weights(), places, strict=True)]
        return weights, self.attributes(kept)

    @property
    def is_tied(self) -> bool:
        """Whether all its calls must keep the same channels."""
        return False

    @property
    def is_opaque(self) -> bool:
        """Whether anything stays only because it is not known what the layer does."""
        return False

    @abc.abstractmethod
    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]: ...

    def _inside(self, classes: ChannelClasses) -> dict[Tensor, Flow]:
        """What is known of what is `within`, which it fills."""
        return {}

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        """What each axis of each weight counts, by the ranks of the weights."""
        return [(None,) * rank for rank in ranks]


class PassThrough(Rule):
    """Each output channel depends on the input channel in its place alone. Weights have the channels as last axis."""

    def __init__(
        self, layer: Any, value: Function = np.asarray, deaf: np.ndarray | bool = False, *, moves: bool = False
    ) -> None:
        """Says how values change.

        Args:
            layer: The layer.
            value: Gives the outputs of constant channels, for all channels at once.
            deaf: Whether the output of a channel does not depend on its input, bool (channels,).
            moves: Whether values come out elsewhere along other axes, as where they are pooled.
        """
        super().__init__(layer)
        self._value = value
        self._deaf = deaf
        self._moves = moves

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        return [(*(None,) * (rank - 1), "inputs") if rank else () for rank in ranks]

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (source,) = inputs
        others = {} if self._moves else {axis: Axis.varied(each.classes) for axis, each in source.others.items()}
        if self._moves:
            pin_others(source, classes, call)
        values = where_known(self._value, np.where(self._deaf, 0.0, source.constants))
        rank = len(call.outputs[0].shape)
        return [Flow(rank, {**others, rank - 1: Axis(source.classes, values, source.channels.fixed | self._deaf)})]

    @property
    def is_tied(self) -> bool:
        return bool(getattr(self.layer, "weights", ()))


class Lookup(Rule):
    """Embedding: each channel is a column of a table."""

    is_tied = True

    def __init__(self, layer: Any, table: np.ndarray) -> None:
        super().__init__(layer)
        self._table = table

    def attributes(self, kept: Kept) -> dict[str, Any]:
        return {"output_dim": len(kept.outputs)}

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (output,) = call.outputs
        for source in inputs:
            classes.pin_all(source, f"{call.name} looks it up")
        constants = np.where((self._table == self._table[:1]).all(axis=0), self._table[0], np.nan)
        return [Flow.of_channels(len(output.shape), Axis(classes.new(output.channels), constants))]

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        return [(None, "outputs")]


class Opaque(Rule):
    """A layer that mixes channels in a way that is not known here: all that goes in and comes out stays."""

    is_opaque = True

    def __init__(self, layer: Any, why: str = "mixes channels in a way that is not known") -> None:
        super().__init__(layer)
        self._why = why

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        why = f"{call.name} ({type(self.layer).__name__}) {self._why}"
        for source in inputs:
            classes.pin_all(source, why)
        return [as_it_is(tensor, classes, why) for tensor in call.outputs]


def as_it_is(tensor: Tensor, classes: ChannelClasses, why: str) -> Flow:
    """The flow of a tensor all of whose channels stay, for a reason, and whose values are not known."""
    new = classes.new(tensor.channels)
    classes.pin(new, why)
    return Flow.of_channels(len(tensor.shape), Axis.varied(new))


def pin_others(flow: Flow, classes: ChannelClasses, call: Call) -> None:
    """Lets all stay of a tensor that goes into a call, but its channels."""
    for along in flow.others.values():
        classes.pin(along.classes, f"{call.name} looks at it along other axes")


def evened(needed: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """As many of each group that is alive, bool (groups, channels): those that are needed, and the first of others."""
    count = max(1, int(needed.sum(axis=1).max(initial=0)))
    order = np.argsort(~needed, axis=1, kind="stable")
    filled = needed.copy()
    np.put_along_axis(filled, order[:, :count], True, axis=1)
    filled[~alive] = False
    return filled


def where_known(function: Function, constants: np.ndarray) -> np.ndarray:
    """The values of a function where there are constants; NaN elsewhere, or where it is not finite."""
    known = ~np.isnan(constants)
    if not known.any():
        return constants
    results = np.asarray(function(np.where(known, constants, 0.0)), np.float64)
    return np.where(known & np.isfinite(results), results, np.nan)
