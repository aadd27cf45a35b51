"""groups(): what of a model goes together, and what cannot go, before anything is pruned."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.compat.models import keras_generation
from aimp_tf.config import PruningConfig
from aimp_tf.config.structure import Structure
from aimp_tf.config.texts import aligned
from aimp_tf.graph.groups import channel_groups
from aimp_tf.masking import check_plain


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels that are made and read by the same variables, or residual blocks of the same shapes.

    Attributes:
        layers: Names of the layers that make them: several where Add or a shared layer ties them together; of blocks
            the Adds that they end in.
        channels: How many there are.
        variables: Paths of the variables that lose a slice with a channel.
        weights: Prunable weights that go with one of the channels, while all others stay.
        multiply_adds: Multiply-adds for an example that go with it.
        least: How many of them stay at least.
    """

    layers: tuple[str, ...]
    channels: int
    variables: tuple[str, ...]
    weights: int
    multiply_adds: int
    least: int


@dataclasses.dataclass(frozen=True)
class Groups:
    """What can be pruned of a model by whole channels. `print` shows it, and so does a notebook.

    Attributes:
        groups: The channels that can go, in groups.
        pinned: Name of a layer -> how many of its channels cannot go, and why.
        weights: The prunable weights of the model, and how many of them stay at least.
        multiply_adds: The same of the multiply-adds for an example.
        noun: What there is of each: "channel" or "block".
    """

    groups: Sequence[Group]
    pinned: Mapping[str, tuple[int, str]]
    weights: tuple[int, int]
    multiply_adds: tuple[int, int]
    noun: str = "channel"

    def summary(self) -> str:
        """All of it as a text of several lines."""
        rows = [[f"{self.noun}s of", f"{self.noun}s", "at least", "weights each", "multiply-adds each"]]
        for group in self.groups:
            numbers = (group.channels, group.least, group.weights, group.multiply_adds)
            rows.append([" + ".join(group.layers), *(f"{number:,}" for number in numbers)])
        lines = aligned(rows)
        if self.pinned:
            lines += ["", *(f"{name}: {self._stay(count)} ({why})" for name, (count, why) in self.pinned.items())]
        lines.append("")
        for noun, (dense, least) in (("weights", self.weights), ("multiply-adds", self.multiply_adds)):
            lines.append(f"{dense:,} {noun}, of which {least:,} stay at least")
        return "\n".join(lines)

    def _stay(self, count: int) -> str:
        return f"{count:,} {self.noun}s stay" if count != 1 else f"1 {self.noun} stays"

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"


def groups(
    model: Any,
    *,
    granularity: object = "channel",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_layer_survivors: int = 0,
) -> Groups:
    """What of a model goes together with `granularity="channel"`, what cannot go and why, and the least that is left.

    Nothing is changed, and the model need not be compiled.

    Args:
        model: A built model of either generation of Keras, whose `call` can be traced.
        granularity: "channel", "head" or "dimension", or several of these in a tuple; or "block".
        include: As in `PruningConfig`.
        exclude: As in `PruningConfig`.
        min_layer_survivors: As in `PruningConfig`: how many channels of each group stay at least; 0 is a tenth.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: It is masked or not built, or its `call` cannot be traced; nothing of it can go; a pattern matches
            nothing; or the granularity is another.

    Example:
        ```python
        print(aimp_tf.groups(model).summary())
        ```
    """
    keras_generation(model)
    if not Structure.of(granularity).channels:
        raise ValueError(f"groups are those of granularity='channel'; got {granularity!r}.")
    check_plain(model)
    found = channel_groups(model, include, exclude, kinds=Structure.of(granularity).kinds)
    config = PruningConfig(0.5, epochs=1, granularity=granularity, min_layer_survivors=min_layer_survivors)
    config.validate()
    by_weights = found.units
    by_products = dataclasses.replace(by_weights, budget="flops")
    all_stay = np.ones(by_weights.count, bool)
    fewest, least = np.zeros(by_weights.count, bool), by_weights.least(config)
    listed = []
    for each in by_weights.sets:
        fewest[each.units[: least[each.name]]] = True
        without = all_stay.copy()
        without[each.units[0]] = False
        listed.append(
            Group(
                layers=each.layers,
                channels=len(each.units),
                variables=by_weights.variables_of(int(each.units[0])),
                weights=by_weights.total() - by_weights.amount(without),
                multiply_adds=by_products.total() - by_products.amount(without),
                least=least[each.name],
            )
        )
    return Groups(
        groups=listed,
        pinned=found.pinned,
        weights=(by_weights.total(), by_weights.amount(fewest)),
        multiply_adds=(by_products.total(), by_products.amount(fewest)),
        noun=by_weights.noun,
    )
