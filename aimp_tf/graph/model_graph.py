"""The graph of a functional model, nested models opened, and new models made from it."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from aimp_tf.compat.functional import calls_of, functional_within, input_names, structures_of
from aimp_tf.compat.models import check_built, flattened, is_keras_own, keras_generation, keras_mask, layers_of
from aimp_tf.compat.tracing import replaced
from aimp_tf.graph.opening import opened, opened_model
from aimp_tf.graph.prunable import unused

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
        calls: Its calls, those of nested models, and of layers made of others, in place of theirs.
        functional: The functional model that it is, or amounts to.
    """

    model: Any
    keras: Any
    inputs: Any
    outputs: Any
    calls: tuple[Call, ...]
    functional: Any

    @classmethod
    def of(cls, model: Any) -> ModelGraph:
        """The graph of a built model.

        Raises:
            TypeError: `model` is not a Keras model.
            ValueError: It is not built, or is a subclassed one, whose call cannot be traced.
        """
        keras = importlib.import_module(keras_generation(model))
        check_built(model)
        functional = functional_within(model, keras)
        if functional is None:  # A model of the user's may be false, with a length of its own.
            functional = opened_model(model, keras)
        if functional is None:
            raise ValueError(
                f"The model {model.name!r} is of the class {type(model).__name__}, whose own call cannot be seen "
                "through: it has weights of its own, or does what Keras tensors of open size do not allow. Put these "
                "in layers, or pass a functional or Sequential model."
            )
        tensors: dict[int, Tensor] = {}
        inputs, outputs = structures_of(functional)
        new_inputs = tf.nest.map_structure(lambda tensor: _register(tensor, tensors), inputs)
        walked = list(_walk(functional, keras, tensors, ()))
        new_outputs = replaced(outputs, tensors)
        output_names = dict(zip(flattened(new_outputs, keras), functional.output_names, strict=True))
        names = _named(walked, input_names(functional), output_names)
        calls = tuple(dataclasses.replace(call, name=names[id(call.layer)]) for call, _ in walked)
        return cls(model, keras, new_inputs, new_outputs, calls, functional)._with_sizes()

    @functools.cached_property
    def by_layer(self) -> Mapping[int, list[Call]]:
        """Id of each layer -> its calls."""
        found: dict[int, list[Call]] = {}
        for call in self.calls:
            found.setdefault(id(call.layer), []).append(call)
        return found

    @functools.cached_property
    def readers(self) -> Mapping[Tensor, list[Call | None]]:
        """Tensor -> the calls that take it, and None if the model gives it."""
        found: dict[Tensor, list[Call | None]] = {tensor: [] for call in self.calls for tensor in call.outputs}
        for call in self.calls:
            for tensor in call.inputs:
                found.setdefault(tensor, []).append(call)
        for tensor in tf.nest.flatten(self.outputs):
            found.setdefault(tensor, []).append(None)
        return found

    def needed(self, sources: Callable[[Call], Iterable[Tensor]]) -> set[Tensor]:
        """The tensors that the outputs of the model need, where `sources` gives those that the outputs of a call do."""
        needed: set[Tensor] = set(tf.nest.flatten(self.outputs))
        for call in reversed(self.calls):
            if not needed.isdisjoint(call.outputs):
                needed.update(sources(call))
        return needed

    @functools.cached_property
    def masked(self) -> frozenset[Tensor]:
        """The tensors that carry a mask of padding, which layers hand on unseen beside the values.

        The layers themselves are asked, on symbolic tensors; all tensors are taken to carry one if that fails. What
        goes into the model carries none.
        """
        if not any(_may_mask(call.layer) for call in self.calls):
            return frozenset()
        found = self._traced(keras_mask)
        if found is None:
            return frozenset(tensor for call in self.calls for tensor in (*call.inputs, *call.outputs))
        return frozenset(tensor for tensor, mask in found.items() if mask is not None)

    def _traced(self, told: Callable[[Any], Any]) -> dict[Tensor, Any] | None:
        """What is told of each tensor of TensorFlow's that flows for inputs of these shapes; None if that fails."""
        found: dict[Tensor, Any] = {}

        def run(*inputs: Any) -> None:
            found.update((tensor, told(value)) for tensor, value in self.computed(inputs).items())

        try:
            specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tf.nest.flatten(self.inputs)]
            tf.function(run, autograph=False).get_concrete_function(*specs)
        except Exception as error:  # Whatever a layer of the user's raises.
            _log.debug("%s could not be traced: %s", self.model.name, error)
            return None
        return found

    def _with_sizes(self) -> ModelGraph:
        """The same with sizes that layers leave open, such as EinsumDense, and that follow from those of the inputs."""
        made = [tensor for call in self.calls for tensor in call.outputs]
        known = all(None not in tensor.shape[1:] for tensor in tf.nest.flatten(self.inputs))
        if not known or not any(None in tensor.shape[1:] for tensor in made):
            return self
        sizes = self._traced(lambda value: tuple(getattr(value, "shape", ()))) or {}
        full = {
            id(tensor): Tensor(
                tuple(size or found for size, found in zip(tensor.shape, sizes[tensor], strict=True)), tensor.dtype
            )
            for tensor in made
            if None in tensor.shape[1:] and len(sizes.get(tensor, ())) == len(tensor.shape)
        }

        names = ("args", "kwargs", "inputs", "outputs")
        calls = tuple(
            dataclasses.replace(call, **replaced({name: getattr(call, name) for name in names}, full))
            for call in self.calls
        )
        return dataclasses.replace(self, outputs=replaced(self.outputs, full), calls=calls)

    def computed(self, inputs: Sequence[Any]) -> dict[Tensor, Any]:
        """What flows between the layers for some inputs, which are as they are nested in the model, but flat."""
        values = dict(zip(tf.nest.flatten(self.inputs), inputs, strict=True))
        for call in self.calls:
            args, kwargs = filled_in(call, values.__getitem__)
            values.update(zip(call.outputs, flattened(call.layer(*args, **kwargs), self.keras), strict=True))
        return values

    def build(
        self,
        layer_for: Callable[[Call], Any],
        rewritten: Mapping[Call, Callable[[Callable[[Tensor], Any]], Any]] | None = None,
        sources: Callable[[Call], Iterable[Tensor]] = lambda call: call.inputs,
    ) -> Any:
        """A model with the same inputs and outputs, and of the calls those that these outputs need.

        Args:
            layer_for: Gives the new layer for the first call of each layer. Its weights may be set once it is called.
            rewritten: Calls that become something else: a function that is given the means to get the new Keras tensor
                of any `Tensor`, and returns the new output.
            sources: Gives the tensors that the outputs of one of these need.
        """
        made: dict[Tensor, Any] = {}
        layers: dict[int, Any] = {}
        rewritten = rewritten or {}
        declared = zip(input_names(self.functional), self.functional.inputs, strict=True)
        for tensor, (name, original) in zip(flattened(self.inputs, self.keras), declared, strict=True):
            made[tensor] = self.keras.Input(tensor.shape[1:], tensor.shape[0], dtype=tensor.dtype, name=name)
            if self.keras.__name__ == "keras":
                # It may differ from that of the layer, and is the one that the signature of a SavedModel has.
                made[tensor].name = original.name

        needed = self.needed(lambda call: sources(call) if call in rewritten else call.inputs)
        for call in self.calls:
            if needed.isdisjoint(call.outputs):
                continue
            if call in rewritten:
                outputs = rewritten[call](made.__getitem__)
            else:
                args, kwargs = filled_in(call, made.__getitem__)
                if call.training is not None and _is_open("training", call.layer, args, kwargs):
                    kwargs["training"] = call.training
                if id(call.layer) not in layers:
                    layers[id(call.layer)] = layer_for(call)
                outputs = layers[id(call.layer)](*args, **kwargs)
            made.update(zip(call.outputs, flattened(outputs, self.keras), strict=True))
        inputs, outputs = (
            tf.nest.map_structure(made.__getitem__, structure) for structure in (self.inputs, self.outputs)
        )
        return self.keras.Model(inputs, outputs, name=self.model.name)


def filled_in(call: Call, get: Callable[[Tensor], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a layer is called with, and what `get` gives in each tensor's place."""
    filled: tuple[tuple[Any, ...], dict[str, Any]] = tf.nest.map_structure(
        lambda value: get(value) if isinstance(value, Tensor) else value, (call.args, dict(call.kwargs))
    )
    return filled


def _is_open(name: str, layer: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a layer takes an argument of a name, and these are others."""
    signature = inspect.signature(layer.call)
    return name in signature.parameters and name not in signature.bind_partial(*args, **kwargs).arguments


def _may_mask(layer: Any) -> bool:
    """Whether a layer, or one within it, may give a mask to what had none. All layers of the user's may."""
    return any(
        not is_keras_own(type(part))
        or getattr(part, "mask_zero", False)
        or type(part).__name__ in ("Masking", "Lambda")
        for part in layers_of(layer)
    )


def _register(tensor: Any, tensors: dict[int, Tensor]) -> Tensor:
    """The `Tensor` in place of a Keras tensor."""
    return tensors.setdefault(id(tensor), Tensor(tuple(tensor.shape), tf.as_dtype(tensor.dtype).name))


def _walk(
    functional: Any, keras: Any, tensors: dict[int, Tensor], folders: tuple[str, ...], training: Any = None
) -> Iterator[tuple[Call, tuple[str, ...]]]:
    """The calls of a model whose inputs are among `tensors`, to which their outputs are added, without a name; and the
    names of the nested models around each."""
    for layer, called_with, named, outputs in calls_of(functional):
        args, kwargs = replaced((called_with, named), tensors)
        within = opened(layer, keras, args, kwargs, Tensor)
        if within is None:
            flat = tf.nest.flatten((args, dict(kwargs)))
            inputs = tuple(value for value in flat if isinstance(value, Tensor))
            given = tuple(_register(output, tensors) for output in outputs)
            yield Call(layer, "", args, kwargs, inputs, given, training), folders
            continue
        nested, given_to_it = within
        known = dict(zip(map(id, nested.inputs), given_to_it, strict=True))
        inner = kwargs.get("training")
        yield from _walk(nested, keras, known, (*folders, layer.name), training if inner is None else inner)
        tensors |= {id(outside): known[id(inside)] for outside, inside in zip(outputs, nested.outputs, strict=True)}


def _named(
    walked: Sequence[tuple[Call, tuple[str, ...]]], taken: Iterable[str], outputs: Mapping[Tensor, str]
) -> dict[int, str]:
    """A name for each layer of what `_walk` gives, by its id: its own if no other has it, with the outer ones first."""
    names: dict[int, str] = {}
    used = set(taken)

    def give(layer: Any, name: str) -> None:
        if id(layer) not in names:
            names[id(layer)] = unused(name, used)
            used.add(names[id(layer)])

    # The name of an output is that of the layer it comes from, and what `compile` is given may go by it.
    for call, _ in walked:
        for tensor in call.outputs:
            if tensor in outputs and outputs[tensor] not in used:
                give(call.layer, outputs[tensor])
    for call, folders in sorted(walked, key=lambda each: bool(each[1])):  # Those of nested models come last.
        own = call.layer.name
        give(call.layer, own if own not in used else "_".join((*folders, own)))
    return names
