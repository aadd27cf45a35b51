"""The projections within the attention layers of Keras, which it keeps to itself."""

from __future__ import annotations

from typing import Any

ATTENTION = ("MultiHeadAttention", "GroupedQueryAttention")
"""The names of their classes."""

PROJECTIONS = ("query", "key", "value", "gate", "output")


def projections(layer: Any) -> dict[str, Any]:
    """Which of `PROJECTIONS` a built MultiHeadAttention or GroupQueryAttention has -> the EinsumDense layer."""
    found = {name: getattr(layer, f"_{name}_dense", None) for name in PROJECTIONS}
    return {name: dense for name, dense in found.items() if dense is not None}


def given_to(call_args: tuple[Any, ...], call_kwargs: dict[str, Any]) -> dict[str, Any]:
    """What each projection of such a layer reads in a call, by what the call was given."""
    given = {**dict(zip(("query", "value", "key"), call_args, strict=False)), **call_kwargs}
    query, value = given["query"], given["value"]
    key = value if given.get("key") is None else given["key"]
    return {"query": query, "key": key, "value": value, "gate": query, "output": query}


def signature(layer: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """The fields of its config that hold the shapes of what goes in, which tf_keras builds it by, with other channels,
    so many for "query", "key" and "value"."""
    fields = {f"{name}_shape": (getattr(layer, f"_{name}_shape", None), size) for name, size in sizes.items()}
    return {
        field: type(shape)([*list(shape)[:-1], size])
        for field, (shape, size) in fields.items()
        if shape is not None and field in layer.get_config()
    }
