"""Layers that multiply by kernels: every output channel is a weighted sum of input channels, of all or of some."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.swap import Swap
from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.model_graph import Call
from aimp_tf.graph.rules import Flows, Function, Kept, Merge, Reading, Rule, evened, pin_others, where_known


class Linear(Rule):
    """Dense layers and convolutions: every output channel is a weighted sum of input channels, and an activation."""

    is_tied = True

    def __init__(
        self, layer: Any, weights: Sequence[np.ndarray], activation: Function | None, *, bordered: bool
    ) -> None:
        """Looks at the weights.

        Args:
            layer: The layer.
            weights: Their values.
            activation: Its activation, if that is one value by value.
            bordered: Whether an input that is the same everywhere, but not zero, is seen otherwise at the borders.
        """
        super().__init__(layer)
        self._activation = activation
        self._bordered = bordered
        self._transposed = "Transpose" in type(layer).__name__
        kernel, *bias = weights
        self._kernel = np.swapaxes(kernel, -1, -2) if self._transposed else kernel
        self._bias = bias[0] if bias else None
        self._connected = (self._kernel != 0).reshape(-1, *self._kernel.shape[-2:]).any(axis=0)

    def foldable(self, constants: np.ndarray) -> np.ndarray:
        """Whether input channels of these values do no more than a bias could, bool (inputs,)."""
        return (constants == 0) | (~np.isnan(constants) & (not self._bordered))

    def readings(self) -> Sequence[Reading]:
        return (Reading(self._connected, foldable=self.foldable, pattern=np.asarray, offset=not self._bordered),)

    def attributes(self, kept: Kept) -> dict[str, Any]:
        return {"filters" if hasattr(self.layer, "filters") else "units": len(kept.outputs)}

    def while_trained(self) -> dict[str, Any]:
        sizes, strides = (np.ravel(getattr(self.layer, name, 1)) for name in ("kernel_size", "strides"))
        own = getattr(self.layer, "convolution_op", None)
        if own is None or sizes.max() > 1 or strides.max() == 1:
            return {}
        places = (slice(None), *(slice(None, None, stride) for stride in strides))

        def convolution_op(inputs: Any, kernel: Any) -> Any:
            """Of the places that are not skipped.

            In the gradient of a kernel that skips them, oneDNN, by which TensorFlow computes on many processors, writes
            past its memory where there are fewer channels than its vectors hold, 8 with AVX2 and 16 with AVX-512
            (https://github.com/uxlfoundation/oneDNN/issues/6035).
            """
            with Swap(self.layer, "strides", (1,) * len(strides)):
                return own(tf.convert_to_tensor(inputs)[places], kernel)

        return {"convolution_op": convolution_op}

    def rewritten(self, kept: Kept) -> tuple[list[np.ndarray] | None, dict[str, Any]]:
        kernel = _merged(self._kernel, kept.merged)[..., kept.inputs, :][..., kept.outputs]
        weights = [np.swapaxes(kernel, -1, -2) if self._transposed else kernel]
        return self._with_bias(weights, kept)

    def _with_bias(self, weights: list[np.ndarray], kept: Kept) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Kernels with the bias that holds what constants add that go, and the fields that change."""
        gone = self.foldable(kept.constants)
        gone[kept.inputs] = False
        bias = self._biases(np.where(gone, kept.constants, 0.0), kept.outputs)
        changes = self.attributes(kept)
        if self._bias is not None or bias.any():
            changes["use_bias"] = True
            weights = [*weights, bias]
        return [weight.astype(self._kernel.dtype) for weight in weights], changes

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (source,) = inputs
        foldable = self.foldable(source.constants)
        constants = self._biases(np.where(foldable, source.constants, 0.0), np.arange(self._connected.shape[-1]))
        constants[self._connected[~foldable].any(axis=0)] = np.nan
        return [self._made(call, source, constants, classes)]

    def _made(self, call: Call, source: Flow, constants: np.ndarray, classes: ChannelClasses) -> Flow:
        """What comes out, if it would have these constants but for the activation."""
        others = {axis: Axis.varied(along.classes) for axis, along in source.others.items()}
        if hasattr(self.layer, "kernel_size"):
            pin_others(source, classes, call)
            others = {}
        outputs, rank = classes.new(len(constants)), len(call.outputs[0].shape)
        if self._activation is None:
            made = Flow(rank, {**others, rank - 1: Axis.varied(outputs)})
            classes.pin_all(made, f"the activation of {call.name} is not known")
            return made
        varied = self._connected[~source.channels.fixed].any(axis=0)
        return Flow(rank, {**others, rank - 1: Axis(outputs, where_known(self._activation, constants), ~varied)})

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        channels = ("outputs", "inputs") if self._transposed else ("inputs", "outputs")
        kernel, *bias = ranks
        return [(*(None,) * (kernel - 2), *channels), *(("outputs",) for _ in bias)]

    def _biases(self, constants: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """The bias of these outputs with what input channels of these values add to it, float64."""
        sums = np.zeros(len(outputs)) if self._bias is None else self._bias[outputs].astype(np.float64)
        rows = np.flatnonzero(constants)
        if rows.size:
            kernel = self._kernel[..., rows, :][..., outputs].reshape(-1, len(rows), len(outputs))
            sums += constants[rows] @ kernel.sum(axis=0, dtype=np.float64)
        return sums


class Separable(Linear):
    """A depthwise convolution, and a pointwise one over what it gives: a convolution of kernels of low rank."""

    def __init__(
        self, layer: Any, weights: Sequence[np.ndarray], activation: Function | None, *, bordered: bool
    ) -> None:
        depthwise, pointwise, *bias = weights
        *_, channels, times = depthwise.shape
        rows = pointwise.reshape(channels, times, -1)
        # NumPy has no sums of products of bfloat16.
        wide = (each.astype(np.result_type(each.dtype, np.float32)) for each in (depthwise, rows))
        super().__init__(layer, [np.einsum("...cm,cmo->...co", *wide), *bias], activation, bordered=bordered)
        nonzero = (depthwise != 0).reshape(-1, channels, times).any(axis=0)
        self._connected = (nonzero[:, :, np.newaxis] & (rows != 0)).any(axis=1)
        self._times = times

    def readings(self) -> Sequence[Reading]:
        pattern = self._products if self._times == 1 else None
        return (Reading(self._connected, foldable=self.foldable, pattern=pattern),)

    def named(self, call: Call, flows: Flows) -> dict[str, Axis]:
        named = super().named(call, flows)
        return {**named, "products": named["inputs"].arranged(lambda each: np.repeat(each, self._times))}

    def rewritten(self, kept: Kept) -> tuple[list[np.ndarray] | None, dict[str, Any]]:
        depthwise, pointwise, *_ = self.layer.get_weights()
        weights = [depthwise, _merged(pointwise, kept.merged)]
        return self._with_bias([weight[np.ix_(*at)] for weight, at in zip(weights, self.indices(kept))], kept)

    def _products(self, values: np.ndarray) -> np.ndarray:
        """What the pointwise kernel reads of one example; all NaN if it is not known by its positions."""
        kernel, *_ = self.layer.get_weights()
        padding = self.layer.padding.upper()
        if values.ndim != kernel.ndim - 1 or padding not in ("SAME", "VALID"):
            return np.full((1, values.shape[-1]), np.nan)
        strides, rates = ((*each, *each)[:2] for each in (self.layer.strides, self.layer.dilation_rate))
        if kernel.ndim == 3:
            values, kernel = values[np.newaxis], kernel[np.newaxis]
        known = np.nan_to_num(values)[np.newaxis]
        products = tf.nn.depthwise_conv2d(known, kernel.astype(known.dtype), (1, *strides, 1), padding, dilations=rates)
        return np.where(np.isnan(values).any(axis=(0, 1)), np.nan, products)

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        depthwise, pointwise, *bias = ranks
        spatial = (None,) * (depthwise - 2)
        return [(*spatial, "inputs", None), (*spatial, "products", "outputs"), *(("outputs",) for _ in bias)]


class Grouped(Linear):
    """Convolutions in groups: every output channel is a weighted sum of the input channels of its group.

    Groups that are dead go as a whole; of the others, equal numbers of channels stay. A model that trains loses either
    whole groups or the same places of all, whichever there are more of.
    """

    def __init__(
        self, layer: Any, weights: Sequence[np.ndarray], activation: Function | None, *, bordered: bool, training: bool
    ) -> None:
        """As `Linear`, and whether the model goes on training."""
        super().__init__(layer, weights, activation, bordered=bordered)
        self._groups = layer.groups
        self._places, self._made_by_each = self._kernel.shape[-2], self._kernel.shape[-1] // layer.groups
        self._training = training
        self._by_group = layer.groups >= self._places
        of_same_group = np.kron(np.eye(self._groups, dtype=bool), np.ones((self._places, self._made_by_each), bool))
        self._connected = np.tile(self._connected, (self._groups, 1)) & of_same_group

    def readings(self) -> Sequence[Reading]:
        groups = np.arange(len(self._connected)) // self._places
        (reading,) = super().readings()
        return (dataclasses.replace(reading, blocks=groups),)

    def named(self, call: Call, flows: Flows) -> dict[str, Axis]:
        named = super().named(call, flows)
        return {**named, "places": named["inputs"].arranged(lambda each: each[: self._places])}

    def completed(self, needed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        by_group = {name: needed[name].reshape(self._groups, -1) for name in ("inputs", "outputs")}
        alive = np.asarray(np.concatenate([by_group["inputs"], by_group["outputs"]], axis=1).any(axis=1))
        return {name: evened(each, alive).reshape(-1) for name, each in by_group.items()}

    def attributes(self, kept: Kept) -> dict[str, Any]:
        alive = np.unique(kept.outputs // self._made_by_each)
        return {**super().attributes(kept), "groups": len(alive)}

    def rewritten(self, kept: Kept) -> tuple[list[np.ndarray] | None, dict[str, Any]]:
        columns = []
        for output in kept.outputs.tolist():
            group = output // self._made_by_each
            within = [merge.within(group * self._places, self._places) for merge in kept.merged]
            column = _merged(self._kernel[..., output : output + 1], [merge for merge in within if merge])
            columns.append(column[..., kept.inputs[kept.inputs // self._places == group] % self._places, :])
        return self._with_bias([np.concatenate(columns, axis=-1)], kept)

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (made,) = super()._flow(call, inputs, classes)
        if self._training:
            for channels in (inputs[0].classes, made.classes):
                by_group = channels.reshape(self._groups, -1)
                for same in by_group if self._by_group else by_group.T:
                    classes.join(same[:-1], same[1:])
            if self._by_group:
                groups = (each.classes.reshape(self._groups, -1)[:, 0] for each in (inputs[0], made))
                classes.join(*groups)
        return [made]

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        kernel, *bias = ranks
        places = None if self._by_group else "places"
        return [(*(None,) * (kernel - 2), places, "outputs"), *(("outputs",) for _ in bias)]

    def _biases(self, constants: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        sums = np.zeros(len(outputs)) if self._bias is None else self._bias[outputs].astype(np.float64)
        if constants.any():
            by_group = constants.reshape(self._groups, self._places)[outputs // self._made_by_each]
            kernel = self._kernel[..., outputs].reshape(-1, self._places, len(outputs)).sum(axis=0, dtype=np.float64)
            sums += np.einsum("op,po->o", by_group, kernel)
        return sums


class Depthwise(Rule):
    """Depthwise convolutions: every output channel depends on one input channel."""

    is_tied = True

    def __init__(self, layer: Any, weights: Sequence[np.ndarray], activation: Function, *, bordered: bool) -> None:
        """As `Linear`. A convolution with as many groups as channels is one as well."""
        super().__init__(layer)
        self._activation = activation
        self._bordered = bordered
        self._kernel, *bias = weights
        self._bias = bias[0] if bias else None
        self._in_groups = getattr(layer, "depth_multiplier", None) is None

    def attributes(self, kept: Kept) -> dict[str, Any]:
        return {"filters": len(kept.outputs), "groups": len(kept.inputs)} if self._in_groups else {}

    def _flow(self, call: Call, inputs: list[Flow], classes: ChannelClasses) -> list[Flow]:
        (source,) = inputs
        pin_others(source, classes, call)
        times = call.outputs[0].channels // call.inputs[0].channels
        values = np.repeat(source.constants, times)
        kernel = self._kernel.reshape(-1, len(values)).astype(np.float64)
        if self._bordered:
            values[values != 0] = np.nan
        values[~kernel.any(axis=0)] = 0.0
        constants = values * kernel.sum(axis=0) + (0.0 if self._bias is None else self._bias)
        fixed = np.repeat(source.channels.fixed, times) | ~kernel.any(axis=0)
        made = Axis(np.repeat(source.classes, times), where_known(self._activation, constants), fixed)
        return [Flow.of_channels(len(call.outputs[0].shape), made)]

    def _axes(self, ranks: Sequence[int]) -> list[tuple[str | None, ...]]:
        kernel, *bias = ranks
        channels = (None, "outputs") if self._in_groups else ("inputs", None)
        return [(*(None,) * (kernel - 2), *channels), *(("outputs",) for _ in bias)]


def _merged(kernel: np.ndarray, merges: Sequence[Merge]) -> np.ndarray:
    """A kernel whose last axes are inputs and outputs, with what is removed added to what stands in for it, float64."""
    found = kernel.astype(np.float64)
    for merge in merges:
        found[..., merge.standing_in, :] += np.einsum(
            "sr,...ro->...so", merge.ratios, kernel[..., merge.removed, :].astype(np.float64)
        )
    return found
