"""Named architectures, for either generation of Keras."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def build(name: str, keras: Any, input_shape: tuple[int, ...], classes: int) -> Any:
    """A built model that gives logits and is not compiled. Its prunable weights have the same paths every time.

    Args:
        name: "lenet_300_100" (an MLP) or "lenet_5" (both LeCun et al., 1998; with ReLU and max pooling, as pruning
            papers use them), "wide_mlp" (two hidden layers of 2048 units), "small_cnn" (two convolutions with batch
            normalisation), "tiny_mobilenet" (four depthwise separable blocks as in Howard et al., 2017, table 1, with
            ReLU6), "row_attention" (an encoder block of Vaswani et al., 2017, section 3.1, over an image as the
            sequence of its rows), "tiny_bert" (two encoder blocks, normalised before each part, over an image as a text
            of its pixels, of which there are 17 kinds), "small_vit" (the same over patches of 4 x 4 pixels, as
            Dosovitskiy et al., 2021), "row_lstm" (an LSTM of 128 units, Hochreiter and Schmidhuber, 1997, over the same
            sequence), or "resnet_8" or "resnet_20" (the CIFAR family of He et al., 2016, section 4.2, with
            n = 1 and 3; where the shape changes, the shortcut is a 1 x 1 convolution with batch normalisation) or
            "wide_resnet_20", which has four times the channels.
        keras: The module `keras` or `tf_keras`.
        input_shape: Height, width and channels.
        classes: Number of logits.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"Unknown architecture {name!r}; the architectures are {', '.join(ARCHITECTURES)}.")
    inputs = keras.Input(input_shape)
    features = ARCHITECTURES[name](keras.layers, inputs)
    return keras.Model(inputs, keras.layers.Dense(classes, name="logits")(features), name=name)


def _chain(x: Any, *layers: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def _mlp(layers: Any, x: Any, units: tuple[int, ...]) -> Any:
    hidden = (layers.Dense(size, activation="relu", name=f"hidden_{i}") for i, size in enumerate(units, start=1))
    return _chain(x, layers.Flatten(), *hidden)


def _lenet_5(layers: Any, x: Any) -> Any:
    return _chain(
        x,
        layers.Conv2D(6, 5, padding="same", activation="relu", name="conv_1"),
        layers.MaxPooling2D(),
        layers.Conv2D(16, 5, activation="relu", name="conv_2"),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(120, activation="relu", name="hidden_1"),
        layers.Dense(84, activation="relu", name="hidden_2"),
    )


def _small_cnn(layers: Any, x: Any) -> Any:
    for block, filters in enumerate((16, 32), start=1):
        x = _chain(
            x,
            layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"conv_{block}"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.MaxPooling2D(),
        )
    return _chain(x, layers.Flatten(), layers.Dense(64, activation="relu", name="hidden"))


def _tiny_mobilenet(layers: Any, x: Any) -> Any:
    def normalised(x: Any, convolution: Any) -> Any:
        return _chain(
            x,
            convolution,
            layers.BatchNormalization(name=convolution.name.replace("conv", "norm")),
            layers.ReLU(6.0, name=convolution.name.replace("conv", "relu")),
        )

    x = normalised(x, layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem_conv"))
    for block, (filters, strides) in enumerate(((32, 2), (64, 1), (64, 2), (128, 1)), start=1):
        depthwise = layers.DepthwiseConv2D(
            3, strides, padding="same", use_bias=False, name=f"block_{block}_depthwise_conv"
        )
        pointwise = layers.Conv2D(filters, 1, use_bias=False, name=f"block_{block}_pointwise_conv")
        x = normalised(normalised(x, depthwise), pointwise)
    return layers.GlobalAveragePooling2D()(x)


def _row_attention(layers: Any, x: Any) -> Any:
    rows = layers.Dense(32, name="embedding")(layers.Reshape(x.shape[1:3])(x))
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=16, name="attention")(rows, rows)
    x = layers.LayerNormalization()(layers.Add()([rows, attended]))
    transformed = _chain(x, layers.Dense(64, activation="relu", name="hidden"), layers.Dense(32, name="projection"))
    return layers.Flatten()(layers.LayerNormalization()(layers.Add()([x, transformed])))


def _tiny_bert(layers: Any, x: Any) -> Any:
    pixels = _chain(x, layers.Flatten(), layers.Rescaling(16.0, 0.5))  # Embedding rounds down.
    return _encoded(layers, layers.Embedding(17, 64, name="tokens")(pixels))


def _small_vit(layers: Any, x: Any) -> Any:
    patches = layers.Conv2D(64, 4, 4, name="patches")(x)
    return _encoded(layers, layers.Reshape((-1, 64))(patches))


def _encoded(layers: Any, x: Any) -> Any:
    """The mean of what two blocks of Vaswani et al., 2017, section 3.1, give for tokens of 64 channels."""
    x = layers.EinsumDense("btc,cd->btd", x.shape[1:], bias_axes="td", name="positions")(x)
    for block in (1, 2):
        y = layers.LayerNormalization(name=f"block_{block}_norm")(x)
        y = layers.MultiHeadAttention(num_heads=4, key_dim=16, name=f"block_{block}_attention")(y, y)
        x = layers.Add()([x, y])
        y = _chain(
            x,
            layers.LayerNormalization(name=f"block_{block}_second_norm"),
            layers.Dense(128, activation="gelu", name=f"block_{block}_hidden"),
            layers.Dense(64, name=f"block_{block}_projection"),
        )
        x = layers.Add()([x, y])
    return layers.GlobalAveragePooling1D()(layers.LayerNormalization(name="norm")(x))


def _row_lstm(layers: Any, x: Any) -> Any:
    return layers.LSTM(128, name="lstm")(layers.Reshape(x.shape[1:3])(x))


def _resnet(layers: Any, x: Any, blocks: int, width: int = 16) -> Any:
    """Three stages of so many blocks, two convolutions each, the first one of a width."""

    def convolve(x: Any, filters: int, size: int, strides: int, name: str) -> Any:
        return _chain(
            x,
            layers.Conv2D(
                filters,
                size,
                strides,
                padding="same",
                use_bias=False,
                kernel_initializer="he_normal",
                name=f"{name}_conv",
            ),
            layers.BatchNormalization(name=f"{name}_norm"),
        )

    x = layers.ReLU()(convolve(x, width, 3, 1, "stem"))
    for stage, filters in enumerate((width, 2 * width, 4 * width), start=1):
        for block in range(1, blocks + 1):
            name = f"stage_{stage}_block_{block}"
            strides = 2 if stage > 1 and block == 1 else 1
            shortcut = x if strides == 1 else convolve(x, filters, 1, strides, f"{name}_shortcut")
            x = layers.ReLU()(convolve(x, filters, 3, strides, f"{name}_first"))
            x = layers.ReLU()(layers.Add()([convolve(x, filters, 3, 1, f"{name}_second"), shortcut]))
    return layers.GlobalAveragePooling2D()(x)


ARCHITECTURES: dict[str, Callable[[Any, Any], Any]] = {
    "lenet_300_100": functools.partial(_mlp, units=(300, 100)),
    "lenet_5": _lenet_5,
    "wide_mlp": functools.partial(_mlp, units=(2048, 2048)),
    "small_cnn": _small_cnn,
    "tiny_mobilenet": _tiny_mobilenet,
    "row_attention": _row_attention,
    "tiny_bert": _tiny_bert,
    "small_vit": _small_vit,
    "row_lstm": _row_lstm,
    "resnet_8": functools.partial(_resnet, blocks=1),
    "resnet_20": functools.partial(_resnet, blocks=3),
    "wide_resnet_20": functools.partial(_resnet, blocks=3, width=64),
}
