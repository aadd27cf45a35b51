"""Functions in a layer's place, and layers without weights that no rule is known for: they are tried."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call, Tensor, filled_in
from aimp_tf.graph.movement import Movement
from aimp_tf.graph.rules import Flows, Opaque, Rule, as_it_is
from aimp_tf.graph.trials import Cut, Trial


class Tried(Rule):
    """A function, or a layer without weights, that is tried: with some entries left out of what goes in, does it give
    the same but for some entries? Or does it only move values?"""

    is_opaque = False

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        # What can be left out of its inputs, and is then left out of its outputs; or how it moves values, of calls that
        # do no more than that, of which cuts do not say it all.
        self._cuts: dict[Call, Sequence[Cut]] = {}
        self._movements: dict[Call, Movement] = {}

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """Whether the same call does with less of its inputs."""
        cuts = any(_cut_arrays(call, cuts) for call, cuts in self._cuts.items())
        return not cuts and all(movement.as_it_is for movement in self._movements.values())

    def remade(self, call: Call, kept: Callable[[Tensor], Mapping[int, np.ndarray]], keras: Any) -> Any:
        movement = self._movements.get(call)
        if movement is not None and not movement.as_it_is:
            return movement.remade(kept, keras)
        smaller = {}
        for place, (axis, source, along) in _cut_arrays(call, self._cuts.get(call, ())).items():
            if along in (stays := kept(source)):
                smaller[place] = (axis, stays[along])
        return None if not smaller else lambda layer, get: _with_arrays(call, layer(), get, smaller)

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        flows = dict(zip(call.inputs, inputs, strict=True))
        tracked = {
            tensor: [axis for axis, along in flow.axes.items() if len(along.classes) > 1]
            for tensor, flow in flows.items()
        }
        trial = Trial(call, tracked)
        cuts, left = _cuts(trial, tracked) if trial.worked else ([], True)
        movement = Movement.of(call) if left else None
        if movement is not None:
            self._movements[call] = movement
            return movement.follow(flows, classes)
        if left and trial.worked:
            cuts, left = _cuts(trial, tracked, cuts, of_zeros=True)
        self.is_opaque |= left
        self._cuts[call] = cuts
        if not cuts:
            return Opaque(self.layer)._flow(call, inputs, classes)
        return self._cut(call, flows, classes, trial)

    def _cut(self, call: Call, flows: Flows, classes: ChannelClasses, trial: Trial) -> list[Flow]:
        """What comes out, of which entries can be left out as the cuts say."""
        why = f"{call.name} ({type(self.layer).__name__}) needs all of it"
        tied: list[dict[int, np.ndarray]] = [{} for _ in call.outputs]
        seen: set[tuple[Tensor, int]] = set()
        for cut in self._cuts[call]:
            together = {(trial.tensors[place], axis) for place, axis in cut.inputs.items() if place in trial.tensors}
            seen |= together
            there = [flows[tensor].axes[axis] for tensor, axis in together if axis in flows[tensor].axes]
            first = there[0]
            for each in there[1:]:
                classes.join(first.classes, each.classes)
            if len(there) < len(together):
                classes.pin(first.classes, why)
            if cut.of_zeros:
                zero = np.all([each.constants == 0 for each in there], axis=0)
                classes.pin(first.classes[~zero], why)
                self.is_opaque |= not zero.all()
            for axes, out in zip(tied, cut.outputs, strict=True):
                if out is not None:
                    axes[out] = first.classes
        for tensor, flow in flows.items():
            for axis, entries in flow.axes.items():
                if (tensor, axis) not in seen:
                    classes.pin(entries.classes, why)
        known = {
            place: {axis: entries.constants for axis, entries in flows[tensor].axes.items()}
            for place, tensor in trial.tensors.items()
        }
        outputs = []
        for index, (tensor, axes) in enumerate(zip(call.outputs, tied, strict=True)):
            found = {
                axis: Axis(each, trial.constants(known, index, axis), self._fixed(call, flows, trial, index, axis))
                for axis, each in axes.items()
            }
            if len(tensor.shape) - 1 not in found:
                found |= as_it_is(tensor, classes, why).axes
            outputs.append(Flow(len(tensor.shape), found))
        return outputs

    def _fixed(self, call: Call, flows: Flows, trial: Trial, output: int, axis: int) -> np.ndarray:
        """Whether each entry along an axis of an output is the same for all inputs, bool (size,), as those that it is
        cut with are, and all of what is not cut with it; where zeros alone can go, as all of them are."""
        cut = next(cut for cut in self._cuts[call] if cut.outputs[output] == axis)
        parts = []
        for place, tensor in trial.tensors.items():
            along = flows[tensor].axes.get(cut.inputs[place]) if place in cut.inputs else None
            parts.append(flows[tensor].is_fixed if along is None else along.fixed)
        found = np.all(np.broadcast_arrays(*parts), axis=0)
        return np.logical_and(found, found.all()) if cut.of_zeros else found


def _cuts(
    trial: Trial, tracked: Mapping[Tensor, Sequence[int]], known: Sequence[Cut] = (), *, of_zeros: bool = False
) -> tuple[list[Cut], bool]:
    """The cuts through all axes along which anything could go, and whether there are others without one."""
    cuts = list(known)
    left = False
    for place, tensor in trial.tensors.items():
        for axis in tracked[tensor]:
            if any(cut.inputs.get(place) == axis for cut in cuts):
                continue
            cut = trial.cut(place, axis, of_zeros=of_zeros)
            if cut is None:
                left = True
            else:
                cuts.append(cut)
    return cuts, left


def _cut_arrays(call: Call, cuts: Sequence[Cut]) -> dict[int, tuple[int, Tensor, int]]:
    """Place of each array that loses entries -> its axis, and a tensor and its axis that lose the same."""
    leaves = tf.nest.flatten((call.args, dict(call.kwargs)))
    found = {}
    for cut in cuts:
        inputs = ((leaves[place], axis) for place, axis in cut.inputs.items())
        source, along = next((leaf, axis) for leaf, axis in inputs if isinstance(leaf, Tensor))
        for place, axis in cut.inputs.items():
            if not isinstance(leaves[place], Tensor):
                found[place] = axis, source, along
    return found


def _with_arrays(
    call: Call, layer: Any, get: Callable[[Tensor], Any], smaller: Mapping[int, tuple[int, np.ndarray]]
) -> Any:
    """A call with entries left out of the arrays that it is given."""
    structure = filled_in(call, get)
    leaves = tf.nest.flatten(structure)
    for place, (axis, stays) in smaller.items():
        leaves[place] = np.take(np.asarray(leaves[place]), stays, axis)
    args, kwargs = tf.nest.pack_sequence_as(structure, leaves)
    return layer(*args, **kwargs)
