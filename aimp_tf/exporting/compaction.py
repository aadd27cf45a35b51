"""Smaller models that compute the same: without the units and channels that pruning left dead."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from aimp_tf.compat.models import model_of
from aimp_tf.compat.variables import key_of
from aimp_tf.graph.copies import Copies, compile_alike
from aimp_tf.graph.liveness import Liveness, value_of
from aimp_tf.graph.merging import Sum
from aimp_tf.graph.model_graph import Call, ModelGraph, Tensor
from aimp_tf.graph.multiplications import channels_of
from aimp_tf.masking import check_plain

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CompactionReport:
    """What a compaction came to.

    Attributes:
        parameters: Number of weights, moving statistics included, before and after.
        multiply_adds: Multiplications with weights for one example, before and after: in matrix products, convolutions
            and projections of all layers of Keras, those not seen through among them. Axes of open size, time steps
            too, count as 1. Scales of normalisations, and products of activations, as in attention, are not counted.
        channels: Layer -> units or filters before and after, for each layer that multiplies so; 0 where it is gone.
        left_alone: Layers that are not seen through -> their class. All that goes into or comes out of them stays.
        not_counted: Layers with matrices of weights that `multiply_adds` and `channels` leave out -> their class, for
            what they do with them is not known.
        shared: Layers that are left alone and cannot be made from their configs -> their class. Their weights are those
            of the model itself.
    """

    parameters: tuple[int, int]
    multiply_adds: tuple[int, int]
    channels: dict[str, tuple[int, int]]
    left_alone: dict[str, str]
    not_counted: dict[str, str]
    shared: dict[str, str]

    def summary(self) -> str:
        """All of it as a text of several lines."""
        lines = [
            f"parameters     {self.parameters[0]:,} -> {self.parameters[1]:,}",
            f"multiply-adds  {self.multiply_adds[0]:,} -> {self.multiply_adds[1]:,}",
            *(f"{name}: {before} -> {after}" for name, (before, after) in self.channels.items() if before != after),
        ]
        for title, layers in (
            ("Left alone, for what they do is not known here", self.left_alone),
            ("Not among the multiply-adds and channels, for what they multiply is not known here", self.not_counted),
            ("Used with the weights of the model itself, for their configs do not make them", self.shared),
        ):
            if layers:
                lines.append(f"{title}: {', '.join(f'{name} ({kind})' for name, kind in layers.items())}.")
        return "\n".join(lines)


def compact(model: Any) -> Any:
    """A smaller model that computes the same as a pruned one.

    Removed are units and channels that nothing depends on, for all their outgoing weights are zero, and those that are
    constant, for all their incoming weights are zero: what they add, through activations and normalisation, goes into
    the biases of the layers that read them. Where zero padding makes that impossible, for a constant looks otherwise at
    the borders, the few stay of which all others are sums: one before a convolution, at most as many as a depthwise
    or separable kernel has places, if the sizes of the inputs are known. Branches of an Add that are constant
    altogether go as well. The inputs of the model stay as they are.

    It sees through all layers with kernels, recurrent layers, attention, whose heads and dimensions go as well, and
    most others of Keras, all channels-last; through functions, Lambda and layers without weights, which are tried on
    numbers that are made up; and through nested models and layers that are made of others, which are opened. What goes
    into any other layer, such as LayerNormalization, or comes out of it, stays as it is, unless `register_rule` says
    what it does. So do Adds that masks of padding reach, as of `Embedding(mask_zero=True)`: they might mask otherwise.

    The new model is for inference. A layer that cannot be made from its config, such as one of your own whose
    `get_config` lacks an argument, is used with the weights of `model` itself, if it need not change: train either
    model further, or assign to its weights, and such layers change in both. They are logged at level INFO.

    Args:
        model: A built model of either generation of Keras, without masks, or a `PruningResult`. It is not changed. The
            `call` of a subclassed one must be one that Keras tensors can be passed through.

    Returns:
        A functional model for inference with the inputs and outputs of `model`. Nested models are opened: it has their
        layers in their place. It is compiled with the same loss and metrics if `model` is compiled and these can be
        made from their configs.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: It carries masks, is not built, its `call` cannot be traced, or it holds a layer that has to change,
            but cannot be made from its config.

    Example:
        small = aimp_tf.compact(result)
    """
    return compact_and_report(model)[0]


def compact_as_masked(model: Any, variables: Mapping[str, Any], masks: Mapping[str, np.ndarray]) -> Any:
    """What `compact` would make of a model if masks had made some of its weights zero; it is not changed.

    Args:
        model: A functional or Sequential model, which may be masked otherwise, and be training.
        variables: Path -> variable.
        masks: Path -> bool array, of the same variables.
    """
    by_resource = {key_of(variable): masks[path] for path, variable in variables.items()}

    def value(variable: Any) -> np.ndarray:
        mask = by_resource.get(key_of(variable))
        return value_of(variable) if mask is None else np.where(mask, value_of(variable), 0)

    return _settled(_Compaction(model, value))[0]


def compact_and_report(model: Any) -> tuple[Any, CompactionReport]:
    """As `compact`, and what it came to."""
    model = model_of(model)
    check_plain(model)
    first = _Compaction(model)
    smaller, last, following = _settled(first)
    compile_alike(smaller, model)
    before, after = first.channels(), following.channels()
    report = CompactionReport(
        parameters=(first.parameters, following.parameters),
        multiply_adds=(sum(filter(None, first.counts.values())), sum(filter(None, following.counts.values()))),
        channels={name: (count, after.get(name, 0)) for name, count in before.items()},
        left_alone=_classes(call for call, rule in first.liveness.rules.items() if rule.is_opaque),
        not_counted=_classes(call for call, count in first.counts.items() if count is None),
        shared=last.shared,
    )
    logger.info(
        "Compacted %s from %d to %d parameters.%s",
        model.name,
        *report.parameters,
        f" Not seen through: {', '.join(report.left_alone)}." if report.left_alone else "",
    )
    return smaller, report


def _classes(calls: Iterable[Call]) -> dict[str, str]:
    return {call.name: type(call.layer).__name__ for call in calls}


def _settled(first: _Compaction) -> tuple[Any, _Compaction, _Compaction]:
    """The model of a pass, and of those that follow until nothing changes; the last pass, and one over what it made."""
    last, smaller = first, first.model()
    # A branch that is gone may leave others with nothing to do.
    while (following := _Compaction(smaller)).parameters < last.parameters:
        last, smaller = following, following.model()
    return smaller, last, following


class _Compaction:
    """One pass over a model."""

    def __init__(self, model: Any, value: Callable[[Any], np.ndarray] = value_of) -> None:
        self._graph = ModelGraph.of(model)
        self.liveness = Liveness(self._graph, value=value)
        self.parameters = sum(int(np.prod(weight.shape)) for weight in model.weights)
        self.shared: dict[str, str] = {}
        self._names = {call.name for call in self._graph.calls}

    @functools.cached_property
    def counts(self) -> dict[Call, int | None]:
        """Call -> multiplications for one example; None where they are not known."""
        return {call: self.liveness.multiply_adds(call) for call in self._graph.calls}

    def channels(self) -> dict[str, int]:
        """Layer -> units or filters, of the layers that multiply."""
        multiplying = [call for call, count in self.counts.items() if count]
        return {call.name: channels_of(call.layer, call.outputs[0].shape) for call in multiplying}

    def model(self) -> Any:
        """The model with what stays."""
        copies, rules, flows = Copies(self._graph), self.liveness.rules, self.liveness.flows

        def layer_for(call: Call) -> Any:
            weights, changes = rules[call].rewritten(self.liveness.kept(call))
            return copies.of(call, weights, **changes)

        rewritten: dict[Call, Any] = {}
        for call, rule in rules.items():
            if isinstance(rule, Sum) and len(rule.sources(call, flows)) < len(call.inputs):
                rewritten[call] = functools.partial(self._rest_of_sum, call, rule)
            elif make := rule.remade(call, self.liveness.staying, self._graph.keras):
                rewritten[call] = functools.partial(make, functools.partial(copies.of, call))
        smaller = self._graph.build(layer_for, rewritten, lambda call: rules[call].sources(call, flows))
        copies.set_weights()
        self.shared = copies.shared
        return smaller

    def _rest_of_sum(self, call: Call, rule: Sum, get: Callable[[Tensor], Any]) -> Any:
        """What takes the place of an Add that loses branches: the sum of the others, and what those gone add to it."""
        layers, settings = self._graph.keras.layers, {"dtype": getattr(call.layer, "dtype_policy", None)}
        total, *others = [get(tensor) for tensor in rule.sources(call, self.liveness.flows)]
        if others:
            total = layers.Add(name=self._unused(f"{call.name}_rest"), **settings)([total, *others])
        offset = rule.offset(call, self.liveness.flows)[self.liveness.kept(call).outputs]
        if offset.any():
            name = self._unused(f"{call.name}_offset")
            total = layers.Rescaling(1.0, offset.tolist(), name=name, **settings)(total)
        is_output = None in self._graph.readers[call.outputs[0]]
        if is_output and len(self._graph.by_layer[id(call.layer)]) == 1:  # What `compile` is given may go by its name.
            total = layers.Identity(name=call.name, **settings)(total)
        return total

    def _unused(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name
