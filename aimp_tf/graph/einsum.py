"""EinsumDense: a kernel of several axes, of which some are summed over and others are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call
from aimp_tf.graph.prunable import einsum_operands
from aimp_tf.graph.rules import Assumptions, Flows, Function, Kept, Reading, Rule, as_it_is, where_known


class Einsum(Rule):
    """EinsumDense, whose letters name what it counts: what it reads, what it makes, and what is in both."""

    is_tied = True

    def __init__(self, layer: Any, assumptions: Assumptions, activation: Function | None, rank: int) -> None:
        """As `Linear`, of an input of this rank."""
        super().__init__(layer)
        self._activation = activation
        self._source, self._letters, self._output = letters_of(layer.equation, rank)
        self._kernel = assumptions.value(layer.kernel)
        self._bias = None if layer.bias is None else assumptions.value(layer.bias)
        in_bias = layer.bias_axes or ""
        first = min((self._output.index(letter) for letter in in_bias), default=0)
        # Of axes in between, it has a single entry.
        self._bias_letters = [letter if letter in in_bias else "" for letter in self._output[first:]]
        self._made = [letter for letter in self._letters if letter not in self._source]
        self._summed: list[str] = []
        self._passed: list[str] = []

    def named(self, call: Call, flows: Flows) -> dict[str, Axis]:
        found = super().named(call, flows)
        for letters, tensor in ((self._source, call.inputs[0]), (self._output, call.outputs[0])):
            found |= {self._name(letters[axis]): along for axis, along in flows[tensor].axes.items()}
        return found

    def places(self, call: Call, flows: Flows) -> Sequence[Axis]:
        axes = flows[call.inputs[0]].axes.items()
        return [along for axis, along in axes if self._source[axis] not in self._letters]

    def makes(self) -> Mapping[str, str]:
        """Of two axes that it makes, the one before the last counts heads."""
        return {self._name(letter): "channel" if letter == self._output[-1] else "head" for letter in self._made}

    def readings(self) -> Sequence[Reading]:
        counted = "".join((*self._summed, *self._made))
        connected = np.einsum(f"{self._letters}->{counted}", self._kernel != 0)
        sources, outputs = ([self._name(letter) for letter in letters] for letters in (self._summed, self._made))
        return (Reading(connected, tuple(sources), tuple(outputs)),) if sources else ()

    def rewritten(self, kept: Kept) -> tuple[list[np.ndarray] | None, dict[str, Any]]:
        weights, _ = super().rewritten(kept)
        shape = self.layer.partial_output_shape
        # What "..." stands for is not told, and is the last of an output that begins with what is.
        first = 1 if self.layer.equation.endswith("...") else len(self._output) - len(shape)
        sizes = tuple(
            len(kept.indices[name]) if size and (name := self._name(letter)) in kept.indices else size
            for letter, size in zip(self._output[first : first + len(shape)], shape, strict=True)
        )
        return weights, {} if sizes == tuple(shape) else {"output_shape": sizes}

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        counted = {*self._summed, *self._made, *self._passed}
        return [
            tuple(self._name(letter) if letter in counted else None for letter in letters)
            for letters in (self._letters, self._bias_letters)[: len(ranks)]
        ]

    def _name(self, letter: str) -> str:
        """What to call what a letter counts."""
        return {self._source[-1]: "inputs", self._output[-1]: "outputs"}.get(letter, letter)

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (source,) = inputs
        by_letter = {self._source[axis]: along for axis, along in source.axes.items()}
        self._summed = [letter for letter in self._letters if letter in by_letter and letter not in self._output]
        self._passed = [letter for letter in by_letter if letter in self._output]
        for letter, along in by_letter.items():
            if letter not in self._output and letter not in self._letters:
                classes.pin(along.classes, f"{call.name} sums over it")
        axes = {}
        for axis, letter in enumerate(self._output):
            if letter in self._made:
                constants = self._constants(letter, by_letter)
                axes[axis] = Axis(classes.new(len(constants)), constants)
            elif letter in by_letter:
                axes[axis] = Axis.varied(by_letter[letter].classes)
        if len(self._output) - 1 not in axes:
            axes |= as_it_is(call.outputs[0], classes, f"{call.name} hands it on").axes
        made = Flow(len(self._output), axes)
        if self._activation is None:
            classes.pin_all(made, f"the activation of {call.name} is not known")
        return [made]

    def _constants(self, letter: str, by_letter: dict[str, Axis]) -> np.ndarray:
        """The value of each entry that it makes along an axis of which nothing depends on the input; NaN elsewhere."""
        given = [by_letter[other].constants != 0 for other in self._summed]
        depends = np.einsum(f"{','.join((self._letters, *self._summed))}->{letter}", self._kernel != 0, *given)
        if self._activation is None or (self._bias is not None and letter not in self._bias_letters):
            return np.full(len(depends), np.nan)
        values = np.zeros(len(depends))
        if self._bias is not None:
            by_entry = np.moveaxis(self._bias, self._bias_letters.index(letter), 0).reshape(len(depends), -1)
            values = np.where((by_entry == by_entry[:, :1]).all(axis=1), by_entry[:, 0], np.nan)
        return where_known(self._activation, np.where(depends, np.nan, values))


def letters_of(equation: str, rank: int) -> tuple[str, str, str]:
    """The letters of the input, the kernel and the output, of an input of this rank: axes that "..." stands for are
    capitals that it does not have."""
    source, kernel, output = einsum_operands(equation)
    missing = rank - len(source.replace("...", ""))
    spare = "".join(letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation)[:missing]
    return source.replace("...", spare), kernel, output.replace("...", spare)
