"""The networks of both generations' `applications`, and tiny ones of KerasHub, with inputs for them."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.networks import global_policy

_CLASSES = 10
"""No multiple of eight, so that no unit of the classifier is made constant."""
_SIZES = (64, 71, 75, 96, 128, 224)
_LENGTH = 16
_HUB: dict[str, dict[str, Any]] = {
    "BertBackbone": {"max_sequence_length": _LENGTH},
    "DistilBertBackbone": {"max_sequence_length": _LENGTH},
    "GPT2Backbone": {"max_sequence_length": _LENGTH},
    "LlamaBackbone": {"num_heads": None, "num_query_heads": 4, "num_key_value_heads": 2},
    "T5Backbone": {},
    "ViTBackbone": {
        "vocabulary_size": None,
        "intermediate_dim": None,
        "mlp_dim": 128,
        "image_shape": (32, 32, 3),
        "patch_size": (8, 8),
    },
    "WhisperBackbone": {
        "num_mels": 16,
        "max_encoder_sequence_length": _LENGTH,
        "max_decoder_sequence_length": _LENGTH,
    },
}
"""Class of KerasHub -> what differs from `_HUB_SIZES`; None for what it does not take."""
_HUB_SIZES = {"vocabulary_size": 64, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "intermediate_dim": 128}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network that can be made.

    Attributes:
        name: Such as "keras/ResNet50".
        build: Makes it, a functional model, with any weights.
        is_first: Whether it is the first, and so the smallest, of its family.
    """

    name: str
    build: Callable[[], Any]
    is_first: bool = True

    def build_double(self) -> Any:
        """Makes it in float64, in which rounding cannot hide what differs."""
        keras = importlib.import_module("tf_keras" if self.name.startswith("tf_keras/") else "keras")
        with global_policy(keras, "float64"):
            return self.build()


def networks(patterns: Sequence[str] = ("*",)) -> tuple[list[Network], list[str]]:
    """The networks whose names match any of the patterns, and lines on what is not there.

    Raises:
        ValueError: None matches.
    """
    missing: list[str] = []
    found = [*_applications("keras"), *_applications("tf_keras")]
    if importlib.util.find_spec("keras_hub"):
        found += [Network(f"keras_hub/{name}", functools.partial(_hub, name)) for name in _HUB]
    else:
        missing.append("KerasHub is not installed (the extra benchmark); its networks are left out.")
    chosen = [network for network in found if any(fnmatch.fnmatch(network.name, pattern) for pattern in patterns)]
    if not chosen and not (missing and any(pattern.startswith("keras_hub/") for pattern in patterns)):
        raise ValueError(f"No network matches {', '.join(patterns)}. There is keras/ResNet50, for instance.")
    return chosen, missing


def _applications(generation: str) -> list[Network]:
    applications = importlib.import_module(f"{generation}.applications")
    functions = {
        name: value
        for name, value in inspect.getmembers(applications, callable)
        if not inspect.isclass(value) and "weights" in inspect.signature(value).parameters
    }
    codes = {name: inspect.unwrap(function).__code__ for name, function in functions.items()}
    places = {name: (code.co_filename, code.co_firstlineno) for name, code in codes.items()}
    firsts = dict(sorted(places.values(), reverse=True)).items()  # Of each file, the first one comes last, and stays.
    return [
        Network(f"{generation}/{name}", functools.partial(_smallest, function), places[name] in firsts)
        for name, function in functions.items()
    ]


def _smallest(function: Callable[..., Any]) -> Any:
    """The network with the smallest images that it takes."""
    settings: dict[str, Any] = {"weights": None, "classes": _CLASSES, "classifier_activation": None}
    parameters = inspect.signature(function).parameters
    settings = {name: value for name, value in settings.items() if name in parameters}
    *smaller, largest = _SIZES
    for size in smaller:
        with contextlib.suppress(ValueError):
            return function(input_shape=(size, size, 3), **settings)
    return function(input_shape=(largest, largest, 3), **settings)


def _hub(name: str) -> Any:
    """A backbone that is called on sequences of a length that is known, for a causal mask asks for it."""
    keras, settings = importlib.import_module("keras"), {**_HUB_SIZES, **_HUB[name]}
    make = getattr(importlib.import_module("keras_hub").models, name)
    backbone = make(**{key: value for key, value in settings.items() if value is not None})
    inputs = tf.nest.map_structure(
        lambda tensor: keras.Input(
            [size or _LENGTH for size in tensor.shape[1:]], dtype=tensor.dtype, name=tensor.name
        ),
        backbone.input,
    )
    return keras.Model(inputs, backbone(inputs))


def specs_of(model: Any) -> Any:
    """What a model takes, as specs of one example; axes of open size count as 1."""
    return tf.nest.map_structure(
        lambda tensor: tf.TensorSpec((1, *(size or 1 for size in tensor.shape[1:])), tensor.dtype), model.input
    )


def inputs_of(model: Any, examples: int, generator: np.random.Generator) -> Any:
    """Random examples as a model takes them: images, tokens, or masks without padding."""
    layers = model._flatten_layers(include_self=False)
    pixels = any(type(layer).__name__ == "Rescaling" for layer in layers)

    def draw(tensor: Any) -> tf.Tensor:
        shape = (examples, *(size or _LENGTH for size in tensor.shape[1:]))
        name, dtype = tensor.name, tf.as_dtype(tensor.dtype)
        if "mask" in name:
            return tf.ones(shape, dtype)
        if not dtype.is_floating:
            return tf.constant(generator.integers(0, 2 if "segment" in name else 64, shape), dtype)
        values = _images(shape, generator)
        return tf.constant(np.clip(127.5 + 40 * values, 0, 255) if pixels else values, dtype)

    return tf.nest.map_structure(draw, model.input)


def _images(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Noise of several grains, so that examples differ on the whole as well."""
    total = np.zeros(shape)
    for grain in (1, 4, 16, max(shape)):
        sizes = [-(-size // grain) for size in shape[1:-1]]
        values = generator.normal(size=(shape[0], *sizes, shape[-1]))
        for axis in range(1, len(shape) - 1):
            values = values.repeat(grain, axis=axis)
        total += values[tuple(slice(size) for size in shape)]
    return total
