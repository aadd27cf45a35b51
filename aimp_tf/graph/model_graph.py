"""The graph of a functional model, nested models opened, and new models made from it. Both generations of Keras.

Keras has no public way to walk the calls of a model, so this is the one place that reads its nodes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.keras_own import is_keras_own
from aimp_tf.compat.models import check_built, keras_generation

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """What flows between the layers.

    Attributes:
        shape: Its shape with the batch axis; None where it is open.
        dtype: Its dtype's name.
    """

    shape: tuple[int | None, ...]
    dtype: str

    @property
    def channels(self) -> int:
        """Size of the last axis; 0 where it has none or that is open."""
        return (self.shape[-1] or 0) if len(self.shape) > 1 else 0


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One use of a layer; a shared layer has several.

    Attributes:
        layer: A layer, or in Keras 3 an operation such as `keras.ops.add`.
        name: Its name in a model without nested ones.
        args: What it is called with, a `Tensor` in each tensor's place.
        kwargs: The same for named arguments.
        inputs: The tensors among these.
        outputs: What it gives.
        training: What the call of a nested model around it says of `training`; None where it says nothing.
    """

    layer: Any
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    training: Any = None


@dataclasses.dataclass(frozen=True)
class ModelGraph:
    """The calls of a model, each after those whose outputs it takes.

    Attributes:
        model: The model.
        keras: The module of its generation of Keras.
        inputs: Its inputs as they are nested in it, a `Tensor` in each one's place.
        outputs: Its outputs likewise.
        calls: Its calls, those of nested models in place of theirs.
    """

    model: Any
    keras: Any
    inputs: Any
    outputs: Any
    calls: tuple[Call, ...]

    @classmethod
    def of(cls, model: Any) -> ModelGraph:
        """The graph of a built functional or Sequential model.

        Raises:
            TypeError: `model` is not a Keras model.
            ValueError: It is not built, or is a subclassed one, whose graph cannot be seen.
        """
        keras = importlib.import_module(keras_generation(model))
        check_built(model)
        functional = _functional(model, keras)
        if functional is None:
            raise ValueError(
                f"The model {model.name!r} is of the class {type(model).__name__}, whose own call cannot be seen "
                "through. Pass a functional or Sequential model, such as one that holds its layers."
            )
        tensors: dict[int, Tensor] = {}
        inputs, outputs = _structures(functional)
        new_inputs = tf.nest.map_structure(lambda tensor: _register(tensor, tensors), inputs)
        steps = list(_walk(functional, keras, tensors, ()))
        new_outputs = _replaced(outputs, tensors)
        output_names = dict(zip(tf.nest.flatten(new_outputs), functional.output_names, strict=True))
        names = _named(steps, _input_names(functional), output_names)
        calls = tuple(
            Call(step.layer, names[id(step.layer)], step.args, step.kwargs, step.inputs, step.outputs, step.training)
            for step in steps
        )
        return cls(model, keras, new_inputs, new_outputs, calls)

    @functools.cached_property
    def masked(self) -> frozenset[Tensor]:
        """The tensors that carry a mask of padding, which layers hand on unseen beside the values.

        The layers themselves are asked, on symbolic tensors; all tensors are taken to carry one if that fails. What
        goes into the model carries none.
        """
        if not any(_may_mask(call.layer) for call in self.calls):
            return frozenset()
        found: set[Tensor] = set()

        def run(*inputs: Any) -> None:
            values = dict(zip(tf.nest.flatten(self.inputs), inputs, strict=True))
            for call in self.calls:
                args, kwargs = _filled_in(call, values.__getitem__)
                outputs = tf.nest.flatten(call.layer(*args, **kwargs))
                values.update(zip(call.outputs, outputs, strict=True))
                masks = (getattr(output, "_keras_mask", None) for output in outputs)
                found.update(tensor for tensor, mask in zip(call.outputs, masks, strict=True) if mask is not None)

        try:
            specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tf.nest.flatten(self.inputs)]
            tf.function(run, autograph=False).get_concrete_function(*specs)
        except Exception as error:  # Whatever a layer of the user's raises.
            _log.debug("Masks of %s could not be traced: %s", self.model.name, error)
            return frozenset(tensor for call in self.calls for tensor in (*call.inputs, *call.outputs))
        return frozenset(found)

    def build(
        self,
        layer_for: Callable[[Call], Any],
        rewritten: Mapping[Call, Callable[[Callable[[Tensor], Any]], Any]] | None = None,
    ) -> Any:
        """A model with the same inputs and outputs, and of the calls those that these outputs need.

        Args:
            layer_for: Gives the new layer for the first call of each layer. Its weights may be set once it is called.
            rewritten: Calls that become something else: a function that is given the means to get the new Keras tensor
                of any `Tensor`, and returns the new output.
        """
        made: dict[Tensor, Any] = {}
        layers: dict[int, Any] = {}
        rewritten = rewritten or {}
        origin = {output: call for call in self.calls for output in call.outputs}
        functional = _functional(self.model, self.keras)
        assert functional is not None  # Or there would be no graph.
        names = _input_names(functional)
        for tensor, name, original in zip(tf.nest.flatten(self.inputs), names, functional.inputs, strict=True):
            made[tensor] = self.keras.Input(tensor.shape[1:], tensor.shape[0], dtype=tensor.dtype, name=name)
            if self.keras.__name__ == "keras":
                # It may differ from that of the layer, and is the one that the signature of a SavedModel has.
                made[tensor].name = original.name

        def make(tensor: Tensor) -> Any:
            pending = [tensor]
            while pending:  # No recursion, for models may be deep.
                call = origin.get(pending[-1])
                if pending[-1] in made or call is None:
                    pending.pop()
                    continue
                try:
                    self._make_call(call, made, layers, layer_for, rewritten)
                except _Missing as missing:
                    pending.append(missing.tensor)
            return made[tensor]

        outputs = tf.nest.map_structure(make, self.outputs)
        inputs = tf.nest.map_structure(lambda tensor: made[tensor], self.inputs)
        return self.keras.Model(inputs, outputs, name=self.model.name)

    def _make_call(self, call, made, layers, layer_for, rewritten) -> None:
        def get(tensor: Tensor) -> Any:
            if tensor not in made:
                raise _Missing(tensor)
            return made[tensor]

        if call in rewritten:
            outputs = rewritten[call](get)
        else:
            args, kwargs = _filled_in(call, get)
            if id(call.layer) not in layers:
                layers[id(call.layer)] = layer_for(call)
            outputs = layers[id(call.layer)](*args, **kwargs)
        made.update(zip(call.outputs, tf.nest.flatten(outputs), strict=True))


@dataclasses.dataclass(frozen=True)
class _Step:
    """A `Call` that has no name yet, and the names of the nested models around it."""

    layer: Any
    folders: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]
    training: Any

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        flat = tf.nest.flatten((self.args, dict(self.kwargs)))
        return tuple(value for value in flat if isinstance(value, Tensor))


def _filled_in(call: Call, get: Callable[[Tensor], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a layer is called with, and what `get` gives in each tensor's place."""
    filled_in: tuple[tuple[Any, ...], dict[str, Any]] = tf.nest.map_structure(
        lambda value: get(value) if isinstance(value, Tensor) else value, (call.args, dict(call.kwargs))
    )
    return filled_in


def _may_mask(layer: Any) -> bool:
    """Whether a layer, or one within it, may give a mask to what had none. All layers of the user's may."""
    return any(
        not is_keras_own(type(part))
        or getattr(part, "mask_zero", False)
        or type(part).__name__ in ("Masking", "Lambda")
        for part in _parts_of(layer)
    )


def _parts_of(layer: Any) -> list[Any]:
    """A layer, or an operation in its place, and the layers within it."""
    return list(layer._flatten_layers()) if hasattr(layer, "_flatten_layers") else [layer]


class _Missing(Exception):
    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.tensor = tensor


def copy_with(model: Any, replacement: Callable[[Any], Any | None]) -> Any:
    """A copy of a model in which some layers are other ones.

    Args:
        model: A built functional or Sequential model of either generation. Nested models are opened: the copy has
            their layers in their place.
        replacement: Gives the layer to stand in for a layer, or None to copy it with its weights.

    Returns:
        A functional model with the inputs and outputs of `model`, compiled with the same loss and metrics where it is
        compiled and these can be made from their configs. Layers that cannot be made from theirs share their weights
        with `model`; they are logged at level INFO.

    Raises:
        TypeError, ValueError: As `ModelGraph.of`.
    """
    graph = ModelGraph.of(model)
    copies = Copies(graph)
    copy = graph.build(lambda call: replacement(call.layer) or copies.of(call))
    copies.set_weights()
    compile_alike(copy, model)
    return copy


class Copies:
    """Copies of layers, whose weights are set when all of them are built.

    A layer that cannot be made again from its config, and need not change, is shared: what takes its place has the same
    variables and all else that it holds, but a name and a place in models of its own, so that nothing of it changes.

    Attributes:
        shared: Name of each layer that is shared -> its class.
    """

    def __init__(self, graph: ModelGraph) -> None:
        self.shared: dict[str, str] = {}
        self._keras = graph.keras
        self._pending: list[tuple[Any, list[Any]]] = []

    def of(self, call: Call, weights: list[Any] | None = None, **changes: Any) -> Any:
        """A copy of a call's layer, with other weights or fields of its config if these are given.

        Raises ValueError where a layer that is to change cannot be made from its config.
        """
        layer = call.layer
        # Operations have no state, and lookups one that is no weight.
        if not isinstance(layer, self._keras.layers.Layer) or hasattr(layer, "get_vocabulary"):
            return layer
        if type(layer) is self._keras.layers.Lambda:  # Keras does not make its function from a config unasked.
            return type(layer)(
                layer.function, layer._output_shape, layer.mask, layer.arguments, name=call.name, dtype=layer.dtype
            )
        try:
            copy = _remade(call, changes)
        except Exception as error:  # Whatever a constructor of the user's raises.
            if _is_change(layer, weights, changes):
                raise ValueError(
                    f"The layer {layer.name!r} of the class {type(layer).__name__} has to change, but cannot be made "
                    "from its config. A layer of your own must give all arguments of its constructor in get_config. "
                    f"The error was: {error}"
                ) from error
            self.shared[call.name] = type(layer).__name__
            return _sharing(layer, call.name)
        copy.supports_masking = layer.supports_masking
        self._pending.append((copy, layer.get_weights() if weights is None else weights))
        return copy

    def set_weights(self) -> None:
        """Gives the copies their weights. All of them must have been called."""
        for copy, weights in self._pending:
            copy.set_weights(weights)
            if hasattr(copy, "finalize_state"):
                copy.finalize_state()
        if self.shared:
            _log.info(
                "Layers that cannot be made from their configs, and share their weights with the model: %s.",
                ", ".join(f"{name} ({kind})" for name, kind in self.shared.items()),
            )


def _remade(call: Call, changes: Mapping[str, Any]) -> Any:
    """A layer made from the config of a call's, without its weights. Raises what a constructor does, and ValueError."""
    layer = call.layer
    config = {**layer.get_config(), "name": call.name}
    functions = _functions(layer, config)
    if is_keras_own(type(layer)):
        within = (_functions(part, part.get_config()) for part in _parts_of(layer) if part is not layer)
        hidden = {id(value) for part in within for value in part.values() if not is_keras_own(value)}
        if hidden - set(map(id, functions.values())):
            raise ValueError("A layer within it has a function of your own, for which a config holds a name alone.")
    try:
        # Themselves, for their names may stand for nothing, or for other functions.
        copy = type(layer).from_config({**config, **functions, **changes})
    except Exception:
        if is_keras_own(type(layer)):
            raise
        copy = type(layer).from_config({**config, **changes})  # That may expect just what get_config gave.
    if not is_keras_own(type(layer)) and not changes:
        _check_alike(copy, call)
    return copy


def _functions(layer: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """The functions that a layer was given, by the names of their fields in its config."""
    values = {name: getattr(layer, name, None) for name in config}
    return {
        name: value
        for name, value in values.items()
        if callable(value) and not hasattr(value, "get_config") and getattr(value, "__self__", None) is not layer
    }


def _check_alike(copy: Any, call: Call) -> None:
    """Builds a copy by calling it on zeros, and raises what it does, or ValueError if it has other weights."""
    args, kwargs = _filled_in(call, lambda tensor: tf.zeros([size or 1 for size in tensor.shape], tensor.dtype))
    copy(*args, **kwargs)
    shapes, expected = ([weight.shape for weight in layer.get_weights()] for layer in (copy, call.layer))
    if shapes != expected:
        raise ValueError(f"What its config gives has weights of the shapes {shapes} instead of {expected}.")


def _is_change(layer: Any, weights: list[Any] | None, changes: Mapping[str, Any]) -> bool:
    """Whether any of these weights and attributes are not those of the layer."""
    if any(getattr(layer, name, None) != value for name, value in changes.items()):
        return True
    before = layer.get_weights()
    return weights is not None and not all(map(np.array_equal, weights, before))


def _sharing(layer: Any, name: str) -> Any:
    """A layer that has all that another holds, its variables above all, and is in no model yet."""
    twin = object.__new__(type(layer))  # Not copy.copy, which Keras makes from configs.
    vars(twin).update(vars(layer))
    if "_name" in vars(layer):  # Of tf_keras.
        vars(twin).update(_name=name, _inbound_nodes_value=[], _outbound_nodes_value=[])
    else:
        vars(twin).update(name=name, _inbound_nodes=[], _outbound_nodes=[])
    return twin


def compile_alike(model: Any, other: Any) -> None:
    """Compiles `model` with the loss, metrics and a new optimizer like those of `other`, where configs allow it."""
    config = other.get_compile_config() if getattr(other, "optimizer", None) is not None else None
    if not config:
        return
    try:
        model.compile_from_config(config)
    except (TypeError, ValueError):  # A loss or metric of one's own that is not registered.
        return


def _functional(model: Any, keras: Any) -> Any | None:
    """The functional model that does what `model` does, itself or within it; None for one with a `call` of its own."""
    home = "keras.src.models.functional" if keras.__name__ == "keras" else "tf_keras.src.engine.functional"
    functional = importlib.import_module(home).Functional
    if type(model).call is keras.Sequential.call:
        if keras.__name__ == "keras":
            return model._functional
        return model if model._graph_initialized else None
    return model if isinstance(model, functional) and type(model).call is functional.call else None


def _structures(functional: Any) -> tuple[Any, Any]:
    """The Keras tensors that go in and come out, as they are nested."""
    if hasattr(functional, "_inputs_struct"):
        return functional._inputs_struct, functional._outputs_struct
    return functional._nested_inputs, functional._nested_outputs


def _input_names(functional: Any) -> list[str]:
    """The names of the layers of the inputs."""
    return [tensor._keras_history[0].name for tensor in functional.inputs]


def _parts(node: Any) -> tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]:
    """(layer, args, kwargs, outputs) of a node of either generation."""
    if hasattr(node, "operation"):
        return node.operation, tuple(node.arguments.args), dict(node.arguments.kwargs), list(node.outputs)
    return node.layer, tuple(node.call_args), dict(node.call_kwargs), tf.nest.flatten(node.outputs)


def _register(tensor: Any, tensors: dict[int, Tensor]) -> Tensor:
    """The `Tensor` in place of a Keras tensor."""
    dtype = getattr(tensor.dtype, "name", tensor.dtype)
    return tensors.setdefault(id(tensor), Tensor(tuple(tensor.shape), dtype))


def _replaced(structure: Any, tensors: Mapping[int, Tensor]) -> Any:
    return tf.nest.map_structure(
        lambda value: tensors[id(value)] if hasattr(value, "_keras_history") else value, structure
    )


def _walk(
    functional: Any, keras: Any, tensors: dict[int, Tensor], folders: tuple[str, ...], training: Any = None
) -> Iterator[_Step]:
    """The calls of a model whose inputs are among `tensors`, to which their outputs are added."""
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            layer, args, kwargs, outputs = _parts(node)
            args, kwargs = _replaced((args, kwargs), tensors)
            nested = _opened(layer, keras, args, kwargs)
            if nested is None:
                given = tuple(_register(output, tensors) for output in outputs)
                yield _Step(layer, folders, args, kwargs, given, training)
                continue
            within = dict(zip(map(id, nested.inputs), tf.nest.flatten(args), strict=True))
            inner = kwargs.get("training")
            yield from _walk(nested, keras, within, (*folders, layer.name), training if inner is None else inner)
            tensors |= {
                id(outside): within[id(inside)] for outside, inside in zip(outputs, nested.outputs, strict=True)
            }


def _opened(layer: Any, keras: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any | None:
    """The functional model within the call of a nested one; None for another layer, or where the call says more."""
    if not isinstance(layer, keras.Model) or any(value for value in kwargs.values()) or len(args) != 1:
        return None
    nested = _functional(layer, keras)
    if nested is None:
        return None
    inputs, _ = _structures(nested)
    flat = tf.nest.flatten(args[0])
    alike = isinstance(args[0], dict) == isinstance(inputs, dict) and len(flat) == len(nested.inputs)
    return nested if alike and all(isinstance(value, Tensor) for value in flat) else None


def _named(steps: Sequence[_Step], taken: Iterable[str], outputs: Mapping[Tensor, str]) -> dict[int, str]:
    """A name for each layer, by its id: its own if no other has it, with the outer ones first."""
    names: dict[int, str] = {}
    used = set(taken)

    def give(layer: Any, name: str) -> None:
        if id(layer) not in names:
            names[id(layer)] = next(
                free for number in itertools.count() if (free := f"{name}_{number}" if number else name) not in used
            )
            used.add(names[id(layer)])

    # The name of an output is that of the layer it comes from, and what `compile` is given may go by it.
    for step in steps:
        for tensor in step.outputs:
            if tensor in outputs and outputs[tensor] not in used:
                give(step.layer, outputs[tensor])
    for step in steps:
        if not step.folders:
            give(step.layer, step.layer.name)
    for step in steps:
        own = step.layer.name
        give(step.layer, own if own not in used else "_".join((*step.folders, own)))
    return names
