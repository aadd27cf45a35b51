"""Layers of Keras around others: what is within tells what they do with channels."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.compat.variables import key_of
from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call
from aimp_tf.graph.recurrent import Recurrent, source_of
from aimp_tf.graph.rules import Assumptions, Flows, Kept, Reading, Rule, evened


class Wrapped(Rule):
    """TimeDistributed and SpectralNormalization: in inference, what the layer within does."""

    in_place = False

    def __init__(self, layer: Any, within: Rule, keras: Any) -> None:
        """`within` is the rule of the layer within."""
        super().__init__(layer)
        self._inner, self._keras = within, keras
        self._order = [key_of(weight) for weight in within.layer.weights]

    def named(self, call: Call, flows: Flows) -> dict[str, Axis]:
        return self._inner.named(call, flows)

    def readings(self) -> Sequence[Reading]:
        return self._inner.readings()

    def makes(self) -> Mapping[str, str]:
        return self._inner.makes()

    def completed(self, needed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return self._inner.completed(needed)

    def axes(self) -> list[tuple[str | None, ...]]:
        inner = dict(zip(self._order, self._inner.axes(), strict=True))
        # What else there is, is the vector of SpectralNormalization, as long as the last axis of the kernel.
        return [inner.get(key_of(weight), (None, self._inner.axes()[0][-1])) for weight in self.layer.weights]

    def rewritten(self, kept: Kept) -> tuple[list[np.ndarray] | None, dict[str, Any]]:
        weights, changes = self._inner.rewritten(kept)
        if weights is None:
            return None, {}
        inner, more = dict(zip(self._order, weights, strict=False)), weights[len(self._order) :]  # A bias may come.
        places = zip(self.layer.weights, self.indices(kept), strict=True)
        found = [inner.get(key_of(weight), weight.numpy()[np.ix_(*at)]) for weight, at in places]
        return [*found, *more], {"layer": _serialized(self._inner.layer, changes, self._keras)}

    @property
    def is_tied(self) -> bool:
        return self._inner.is_tied

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        return self._inner._flow(call, inputs, classes)


class BothDirections(Rule):
    """Bidirectional: two recurrent layers, whose units come out side by side or, in other modes, tied together.

    Side by side there are equal numbers of both, which Keras takes for granted; a model that trains loses those of the
    same places.
    """

    in_place = False
    is_tied = True

    def __init__(self, layer: Any, assumptions: Assumptions) -> None:
        super().__init__(layer)
        self._keras = assumptions.keras
        self._parts = {
            "forward": Recurrent(layer.forward_layer, assumptions),
            "backward": Recurrent(layer.backward_layer, assumptions),
        }
        self._side_by_side = layer.merge_mode == "concat"
        self._training = assumptions.training

    def named(self, call: Call, flows: Flows) -> dict[str, Axis]:
        named, units = super().named(call, flows), self._parts["forward"].layer.units
        places = {"forward": slice(units), "backward": slice(units, None)} if self._side_by_side else {}
        for name, part in self._parts.items():
            own = named["outputs"].arranged(operator.itemgetter(places.get(name, slice(None))))
            named |= {name: own, f"{name} gates": part.by_gate(own)}
        return named

    def readings(self) -> Sequence[Reading]:
        found = []
        for name, part in self._parts.items():
            kernel, recurrent = part.readings()
            found += [Reading(kernel.connected, ("inputs",), (name,)), Reading(recurrent.connected, (name,), (name,))]
        return found

    def completed(self, needed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        both = evened(np.stack([needed[name] for name in self._parts]), np.ones(2, bool))
        return dict(zip(self._parts, both, strict=True))

    def rewritten(self, kept: Kept) -> tuple[list[np.ndarray] | None, dict[str, Any]]:
        weights, _ = super().rewritten(kept)
        return weights, {
            field: _serialized(part.layer, {"units": len(kept.indices[name])}, self._keras)
            for field, (name, part) in zip(("layer", "backward_layer"), self._parts.items(), strict=True)
        }

    def axes(self) -> list[tuple[str | None, ...]]:
        found = []
        for name, part in self._parts.items():
            renamed = {"inputs": "inputs", "outputs": name, "gates": f"{name} gates", None: None}
            found += [tuple(renamed[each] for each in axes) for axes in part.axes()]
        return found

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        source = source_of(call, inputs, classes)
        constants = [part.constants(source) for part in self._parts.values()]
        # Of units that are tied, one may be zero where the other, which later steps read, is not.
        both = np.concatenate(constants) if self._side_by_side else constants[0] + constants[1]
        units = classes.new(len(both))
        if self._side_by_side and self._training:
            classes.join(*np.split(units, 2))
        return [Flow.of_channels(len(call.outputs[0].shape), Axis(units, both))]


def _serialized(layer: Any, changes: Mapping[str, Any], keras: Any) -> dict[str, Any]:
    """What a layer is made from again with other fields of its config, whatever its input is like."""
    found = dict(keras.saving.serialize_keras_object(layer))
    found.pop("build_config", None)
    return {**found, "config": {**found["config"], **changes}}
