"""Named architectures, for either generation of Keras."""

from __future__ import annotations

from typing import Any


def build(name: str, keras: Any, input_shape: tuple[int, ...], classes: int) -> Any:
    """A built model that gives logits and is not compiled.

    Args:
        name: "lenet_300_100" (an MLP) or "lenet_5" (both LeCun et al., 1998; with ReLU and max pooling, as pruning
            papers use them), or "small_cnn" (two convolutions with batch normalisation).
        keras: The module `keras` or `tf_keras`.
        input_shape: Height, width and channels.
        classes: Number of logits.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in _LAYERS:
        raise ValueError(f"Unknown architecture {name!r}; the architectures are {', '.join(_LAYERS)}.")
    hidden = _LAYERS[name](keras.layers)
    return keras.Sequential([keras.Input(input_shape), *hidden, keras.layers.Dense(classes, name="logits")], name=name)


def _lenet_300_100(layers: Any) -> list[Any]:
    return [layers.Flatten(), layers.Dense(300, activation="relu"), layers.Dense(100, activation="relu")]


def _small_cnn(layers: Any) -> list[Any]:
    blocks = [
        [
            layers.Conv2D(filters, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
        ]
        for filters in (16, 32)
    ]
    return [*blocks[0], *blocks[1], layers.Flatten(), layers.Dense(64, activation="relu")]


def _lenet_5(layers: Any) -> list[Any]:
    return [
        layers.Conv2D(6, 5, padding="same", activation="relu"),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 5, activation="relu"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(120, activation="relu"),
        layers.Dense(84, activation="relu"),
    ]


_LAYERS = {"small_cnn": _small_cnn, "lenet_300_100": _lenet_300_100, "lenet_5": _lenet_5}
