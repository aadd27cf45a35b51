"""Which channels of a model stand or fall together, and which of them can go: the units of granularity="channel"."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.compat.variables import key_of
from aimp_tf.config.checks import check_choice, name_of_budget
from aimp_tf.config.structure import Structure
from aimp_tf.graph.blocks import block_units
from aimp_tf.graph.channels import Axis, ChannelClasses
from aimp_tf.graph.liveness import follow_channels
from aimp_tf.graph.model_graph import Call, ModelGraph
from aimp_tf.graph.multiplications import by_path
from aimp_tf.graph.prunable import Selection, matches, named_weights, prunable_variables, readers, select_for
from aimp_tf.graph.rules import Assumptions, Rule
from aimp_tf.selection.channel_layout import ChannelSet
from aimp_tf.selection.channels import ChannelUnits

_STATISTICS = ("moving_mean", "moving_variance", "vector_u")
"""Weights of normalisation, of kernels too, that no gradient changes: they get no masks."""


@dataclasses.dataclass(frozen=True)
class ChannelGroups:
    """The channels of a model that can go, and those that cannot.

    Attributes:
        units: The channels that can.
        variables: Path -> variable, of those that get masks.
        pinned: Name of a layer -> number of its channels that cannot go, and why.
    """

    units: ChannelUnits
    variables: Mapping[str, Any]
    pinned: Mapping[str, tuple[int, str]]


def select_units(
    granularity: object,
    model: Any,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    budget: object = "weights",
    channel_multiple: int = 1,
) -> Selection:
    """As `select_for`, and raises as that; of whole channels, all that is tied to them, as `channel_groups` has it."""
    check_choice("budget", budget)
    selection = select_for(granularity, model, include, exclude)
    kinds = Structure.of(granularity).kinds
    if not kinds:
        return selection
    groups = channel_groups(model, include, exclude, kinds=kinds)
    units = dataclasses.replace(groups.units, budget=name_of_budget(budget), multiple=channel_multiple)
    return dataclasses.replace(selection, variables=groups.variables, units=units)


def channel_groups(
    model: Any,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    *,
    kinds: Sequence[str] = ("channel",),
) -> ChannelGroups:
    """The channels of a built model with everything that is tied to them.

    A channel is made by the filter of a layer, with its bias and its normalisation, and read by rows of others; Add,
    and layers that are called more than once, tie several into one. What cannot go is pinned: outputs of the model,
    what goes into layers or comes out of layers that are not known here, what an excluded or frozen layer makes. Rows
    that read a channel go with it, also in layers that are excluded.

    Args:
        model: A model of either generation of Keras.
        include: fnmatch patterns on paths of kernels, as in `PruningConfig`.
        exclude: The same.
        kinds: Which units to find: of `KINDS`.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: It is not built, its `call` cannot be traced, it has nothing that can go, or a pattern matches
            nothing.
    """
    graph = ModelGraph.of(model)
    selected = select_for("unstructured", model, include, exclude).variables
    if "block" in kinds:
        units, pinned = block_units(graph, selected, include)
    else:
        found = _Found(graph, selected, kinds)
        reasons = found.reasons(include)
        units, pinned = found.units(reasons), found.pinned(reasons)
    if not units.sets:
        raise ValueError(
            f"No {' or '.join(kinds)} of the model {model.name!r} can go: {_text_of(pinned, units.noun)}. "
            "granularity='unstructured' prunes single weights."
        )
    variables = named_weights(model)
    return ChannelGroups(units, {path: variables[path] for path in units.shapes}, pinned)


def _text_of(pinned: Mapping[str, tuple[int, str]], noun: str, most: int = 8) -> str:
    """What cannot go, and why, as "5 channels of logits (output of the model); ..."."""
    parts = [f"{count:,} {noun}{'s' * (count != 1)} of {name} ({why})" for name, (count, why) in pinned.items()]
    parts = parts or ["it has none"]
    return "; ".join(parts[:most]) + (f"; and {len(parts) - most} more layers" if len(parts) > most else "")


class _Found:
    """What is found in a graph."""

    def __init__(self, graph: ModelGraph, selected: Mapping[str, Any], kinds: Sequence[str]) -> None:
        self._graph, self._kinds = graph, kinds
        self._classes = ChannelClasses()
        # Whatever the weights are, so that the same model has the same groups at any time.
        assumptions = Assumptions(graph.keras, _unknown, training=True, masked=graph.masked)
        self._rules, self._flows = follow_channels(graph, assumptions, self._classes, as_one=False)
        self._selected = frozenset(selected)
        self._excluded = prunable_variables(graph.model).keys() - self._selected
        self._trained = set(map(key_of, graph.model.trainable_weights))
        self.variables = named_weights(graph.model)
        self._paths = {key_of(weight): path for path, weight in self.variables.items()}
        # The first of each layer.
        self._calls = list({id(call.layer): call for call in reversed(graph.calls)}.values())[::-1]

    def reasons(self, include: Sequence[str]) -> dict[int, str]:
        """Class -> why it cannot go. What is frozen can where patterns name it."""
        reasons = self._classes.reasons()
        owners: dict[int, Call] = {}

        def pin(call: Call, names: Iterable[str | None], why: str) -> None:
            named = self._named(call)
            for name in filter(None, set(names)):
                for class_ in named[name].classes.tolist():
                    reasons.setdefault(class_, why)

        for call in self._calls:
            for weight in getattr(call.layer, "weights", ()):
                owner = owners.setdefault(key_of(weight), call)
                if owner is not call:
                    for each in (owner, call):
                        pin(each, ("inputs", "outputs"), f"{owner.name} and {call.name} share a variable")
        for call, rule in self._layers():
            for weight, names in zip(call.layer.weights, rule.axes(), strict=True):
                key = key_of(weight)
                trains = key in self._trained or self._is_statistic(call.layer, weight)
                if not trains and not matches(self._paths[key], include):
                    pin(call, names, f"{call.name} is frozen (trainable=False)")
                elif self._paths.get(key) in self._excluded:
                    pin(call, self._made(call, names), f"{call.name} is excluded")
        return reasons

    def units(self, reasons: Mapping[int, str]) -> ChannelUnits:
        """All that can go, in the order in which the graph makes it."""
        makers: dict[int, list[str]] = collections.defaultdict(list)
        for call, rule in self._layers():
            named = self._named(call)
            for name, kind in rule.makes().items():
                for class_ in dict.fromkeys(named[name].classes.tolist()) if kind in self._kinds else ():
                    makers[class_].append(call.name)
        free = sorted(class_ for class_ in makers if class_ not in reasons)
        unit_of = np.full(max([*makers, *self._all_classes()], default=0) + 1, -1)
        unit_of[free] = np.arange(len(free))
        axes, reads = self._axes(unit_of)
        sets = _in_sets(_members(axes), [makers[class_] for class_ in free])
        tied = {path for path, each in axes.items() if any((units >= 0).any() for units in each if units is not None)}
        shapes = {
            path: tuple(each.shape) for path, each in self.variables.items() if path in self._selected or path in tied
        }
        axes = {path: axes.get(path) or (None,) * len(shape) for path, shape in shapes.items()}

        def places_of(call: Call) -> list[np.ndarray]:
            return [unit_of[along.classes] for along in self._rules[call].places(call, self._flows)]

        products, others = by_path(self._graph.calls, shapes, self._path_of, places_of)
        return ChannelUnits(
            axes=axes,
            shapes=shapes,
            sets=sets,
            counted=self._selected,
            scored=frozenset(filter(self._is_scored, tied)),
            reads={path: axis for path, axis in reads.items() if path in axes},
            others=tuple(self._others(unit_of, reads)),
            products=products,
            other_products=others,
            kinds=tuple(self._kinds),
        )

    def _made(self, call: Call, names: Iterable[str | None]) -> list[str]:
        """Which of these names count what a layer makes."""
        named = self._named(call)
        made = [class_ for name in self._rules[call].makes() for class_ in named[name].classes.tolist()]
        return [name for name in names if name is not None and np.isin(named[name].classes, made).all()]

    def _axes(self, unit_of: np.ndarray) -> tuple[dict[str, tuple[np.ndarray | None, ...]], dict[str, int]]:
        """`axes` and `reads` of `ChannelLayout`, of all variables that count channels or not, in their order."""
        axes: dict[str, tuple[np.ndarray | None, ...]] = {}
        reads: dict[str, int] = {}
        for call, rule in self._layers():
            named, multiplies = self._named(call), bool(rule.readings())
            for weight, names in zip(call.layer.weights, rule.axes(), strict=True):
                path = self._paths.get(key_of(weight))
                if path is None or path in axes or self._is_statistic(call.layer, weight):
                    continue
                axes[path] = tuple(None if name is None else unit_of[named[name].classes] for name in names)
                if multiplies and set(names[-2:]) == {"inputs", "outputs"}:
                    reads[path] = names.index("inputs")
        return axes, reads

    def _others(self, unit_of: np.ndarray, reads: Mapping[str, int]) -> Iterator[str]:
        """Names of the layers that make or read units otherwise than by a kernel of `reads` that is all they have."""
        plain = reads.keys() & {self._paths.get(key_of(kernel)) for kernel, _ in readers(self._graph.model)}
        for call, rule in self._layers():
            if any(self._paths.get(key_of(weight)) in plain for weight in call.layer.weights):
                continue
            counted = self._named(call)
            names = {name for reading in rule.readings() for name in (*reading.sources, *reading.outputs)}
            if any((unit_of[counted[name].classes] >= 0).any() for name in names):
                yield call.name

    def _is_scored(self, path: str) -> bool:
        """Whether a variable says how much a channel is worth: what is excluded, biases and beta do not."""
        return path not in self._excluded and path.split("/")[-1] not in ("bias", "beta")

    def pinned(self, reasons: Mapping[int, str]) -> dict[str, tuple[int, str]]:
        """Layer -> how many of its channels cannot go, and why, of the layers that make channels by matrices."""
        pinned: dict[str, tuple[int, str]] = {}
        for call in self._calls:
            matrices = any(len(weight.shape) > 1 for weight in getattr(call.layer, "weights", ()))
            rule = self._rules[call]
            if matrices and (rule.readings() or rule.is_opaque):
                classes = self._named(call)["outputs"].classes.tolist()
                stays = [reasons[class_] for class_ in classes if class_ in reasons]
                if stays:
                    pinned[call.name] = len(stays), stays[0]
        return pinned

    def _layers(self) -> list[tuple[Call, Rule]]:
        """The first call of each layer whose weights count channels."""
        return [(call, self._rules[call]) for call in self._calls if self._rules[call].is_tied and call.layer.weights]

    def _path_of(self, call: Call, kernel: Any) -> str | None:
        """The path of a kernel, if units are known of the layer that is called."""
        return self._paths.get(key_of(kernel)) if self._rules[call].is_tied else None

    def _named(self, call: Call) -> Mapping[str, Axis]:
        return self._rules[call].named(call, self._flows)

    def _all_classes(self) -> list[int]:
        return [int(along.classes.max()) for flow in self._flows.values() for along in flow.axes.values()]

    def _is_statistic(self, layer: Any, weight: Any) -> bool:
        statistics = (getattr(layer, name, None) for name in _STATISTICS)
        return any(key_of(variable) == key_of(weight) for variable in statistics if variable is not None)


def _members(axes: Mapping[str, tuple[np.ndarray | None, ...]]) -> dict[int, list[tuple[str, int, int]]]:
    """Unit -> the variables and axes that it is of, and how many indices of each."""
    members: dict[int, list[tuple[str, int, int]]] = collections.defaultdict(list)
    for path, along in axes.items():
        for axis, units in enumerate(along):
            if units is not None:
                for unit, times in zip(*np.unique(units[units >= 0], return_counts=True), strict=True):
                    members[int(unit)].append((path, axis, int(times)))
    return members


def _in_sets(
    members: Mapping[int, Sequence[tuple[str, int, int]]], makers: Sequence[Sequence[str]]
) -> tuple[ChannelSet, ...]:
    """The units in sets of those with the same members: variable, axis, and how many indices of it."""
    alike: dict[tuple[tuple[str, int, int], ...], list[int]] = collections.defaultdict(list)
    for unit in sorted(members):
        alike[tuple(members[unit])].append(unit)
    sets: dict[str, ChannelSet] = {}
    for units in alike.values():
        first, *others = layers = makers[units[0]]
        name = f"{first} and {len(others)} more" if len(others) > 1 else " and ".join(layers)
        if name in sets:  # Some of their channels are read otherwise than the rest.
            name += f", channels from {units[0]} on"
        sets[name] = ChannelSet(name, tuple(layers), np.array(units))
    return tuple(sets.values())


def _unknown(variable: Any) -> np.ndarray:
    return np.full(variable.shape, np.nan, np.float32)
