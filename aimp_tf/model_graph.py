"""The graph of a functional model, nested models opened, and new models made from it. Both generations of Keras.

Keras has no public way to walk the calls of a model, so this is the one place that reads its nodes.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from aimp_tf.masked_model import check_built, check_plain, keras_generation


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
    """

    layer: Any
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


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
    def of(cls, model: Any, *, masked: bool = False) -> ModelGraph:
        """The graph of a built functional or Sequential model, which may carry masks only if that is said.

        Raises:
            TypeError: `model` is not a Keras model.
            ValueError: It is not built, carries masks, or is a subclassed one, whose graph cannot be seen.
        """
        keras = importlib.import_module(keras_generation(model))
        (check_built if masked else check_plain)(model)
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
            Call(step.layer, names[id(step.layer)], step.args, step.kwargs, step.inputs, step.outputs) for step in steps
        )
        return cls(model, keras, new_inputs, new_outputs, calls)

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
            args, kwargs = tf.nest.map_structure(
                lambda value: get(value) if isinstance(value, Tensor) else value, (call.args, dict(call.kwargs))
            )
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

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        flat = tf.nest.flatten((self.args, dict(self.kwargs)))
        return tuple(value for value in flat if isinstance(value, Tensor))


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
        compiled and these can be made from their configs.

    Raises:
        TypeError, ValueError: As `ModelGraph.of`, or a layer cannot be copied.
    """
    graph = ModelGraph.of(model)
    copies = Copies(graph)
    copy = graph.build(lambda call: replacement(call.layer) or copies.of(call))
    copies.set_weights()
    compile_alike(copy, model)
    return copy


class Copies:
    """Copies of layers, whose weights are set when all of them are built."""

    def __init__(self, graph: ModelGraph) -> None:
        self._keras = graph.keras
        self._pending: list[tuple[Any, list[Any]]] = []

    def of(self, call: Call, weights: list[Any] | None = None, **changes: Any) -> Any:
        """A copy of a call's layer, with other weights or fields of its config if these are given.

        Raises ValueError where a layer cannot be made from its config.
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
            copy = type(layer).from_config({**layer.get_config(), "name": call.name, **changes})
        except Exception as error:
            raise ValueError(
                f"The layer {layer.name!r} of the class {type(layer).__name__} cannot be copied. A layer of your own "
                f"must give all arguments of its constructor in get_config. The error was: {error}"
            ) from error
        self._pending.append((copy, layer.get_weights() if weights is None else weights))
        return copy

    def set_weights(self) -> None:
        """Gives the copies their weights. All of them must have been called."""
        for copy, weights in self._pending:
            copy.set_weights(weights)
            if hasattr(copy, "finalize_state"):
                copy.finalize_state()


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


def _walk(functional: Any, keras: Any, tensors: dict[int, Tensor], folders: tuple[str, ...]) -> Iterator[_Step]:
    """The calls of a model whose inputs are among `tensors`, to which their outputs are added."""
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if node.is_input:
                continue
            layer, args, kwargs, outputs = _parts(node)
            args, kwargs = _replaced((args, kwargs), tensors)
            nested = _opened(layer, keras, args, kwargs)
            if nested is None:
                yield _Step(layer, folders, args, kwargs, tuple(_register(output, tensors) for output in outputs))
                continue
            within = dict(zip(map(id, nested.inputs), tf.nest.flatten(args), strict=True))
            yield from _walk(nested, keras, within, (*folders, layer.name))
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
