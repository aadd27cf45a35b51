"""Where the channels of a network lie, and what of a budget they take. NumPy only."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

import numpy as np

from aimp_tf.config.structure import Structure
from aimp_tf.selection.statistics import Arrays, Batches, Statistics

HARDLY_PRUNED = 0.01
"""A variable with fewer zeros than this fraction was hardly pruned."""


@dataclasses.dataclass(frozen=True)
class ChannelSet:
    """Channels that are made and read by the same variables, such as those of a layer.

    Attributes:
        name: What to call them, unlike all other sets.
        layers: Names of the layers that make them.
        units: The channels, rising.
    """

    name: str
    layers: tuple[str, ...]
    units: np.ndarray


@dataclasses.dataclass(frozen=True)
class Product:
    """What a layer multiplies in one call: each entry of its kernel so many times.

    Attributes:
        path: Of the kernel; None for one of which all stays.
        times: How often each entry of it is used for one example at one of its places, or all entries of that one.
        places: The unit of each of its places, int (size,), along each axis along which any could go; -1 as in
            `ChannelLayout.axes`.
    """

    path: str | None
    times: int
    places: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class ChannelLayout:
    """The channels of a network that can go.

    What is kept of a variable is an outer product: along each axis, the channels that stay.

    Attributes:
        axes: Path of each masked variable -> for each of its axes, the unit of each index, int (size,); -1 where none
            can go. None for an axis that counts no channels.
        shapes: Path -> shape, of the same variables.
        sets: The units, in sets.
        counted: Paths of the variables whose weights count as prunable.
        scored: Paths of the variables whose entries make up the score of a channel.
        reads: Path -> the axis that counts inputs, of the kernels that read channels; of the last two, the other counts
            outputs.
        products: What depends on the units, of all that is multiplied.
        other_products: How much else is multiplied for one example.
        budget: What is counted: one of `BUDGETS`.
        multiple: So many channels of each set stay as are a multiple of this.
        clock: Gives the microseconds that a call takes where some of the units stay, bool (units,), for the budget
            "latency"; None until there is one.
        others: Names of layers that make or read channels otherwise than by `reads`.
        kinds: What the units are, as in `Structure`.
    """

    axes: Mapping[str, tuple[np.ndarray | None, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    sets: Sequence[ChannelSet]
    counted: frozenset[str]
    scored: frozenset[str]
    reads: Mapping[str, int]
    products: Sequence[Product]
    other_products: int
    budget: str = "weights"
    multiple: int = 1
    clock: Callable[[ChannelLayout, np.ndarray], int] | None = None
    others: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("channel",)

    def __str__(self) -> str:
        return str(Structure(kinds=self.kinds))

    @property
    def noun(self) -> str:
        """What to call a unit."""
        return "block" if "block" in self.kinds else "channel"

    @property
    def exact(self) -> bool:
        """As `Units.exact`: of weights and multiply-adds, a channel takes several with it."""
        return self.budget == "channels" and self.multiple == 1

    @functools.cached_property
    def count(self) -> int:
        """Number of units."""
        return sum(len(each.units) for each in self.sets)

    def expand(self, kept: np.ndarray) -> dict[str, np.ndarray]:
        """The masks of all variables in which these units stay, bool (units,)."""
        stays = np.append(kept, True)  # Where -1 points.
        masks = {}
        for path, shape in self.shapes.items():
            mask = np.ones(shape, bool)
            for axis, units in enumerate(self.axes[path]):
                if units is not None:
                    mask &= np.expand_dims(stays[units], others_than(axis, len(shape)))
            masks[path] = mask
        return masks

    def variables_of(self, unit: int) -> tuple[str, ...]:
        """Paths of the variables that lose a slice with a unit."""
        return tuple(dict.fromkeys(path for path, _, units in self.axes_of(self.shapes) if (units == unit).any()))

    def kept(self, masks: Arrays) -> np.ndarray:
        """Which units stay under these masks, be they of all variables or of some, bool (units,)."""
        kept = np.zeros(self.count, bool)
        for path, axis, units in self.axes_of(set(masks)):
            along = np.logical_or.reduce(masks[path], axis=others_than(axis, len(self.shapes[path])))
            np.logical_or.at(kept, units[units >= 0], along[units >= 0])
        return kept

    def of_zeros(self, weights: Arrays) -> dict[str, np.ndarray]:
        """The masks of the channels all of whose kernels are zero; biases and the like need not be.

        Raises RuntimeError where more than a hundredth of a kernel is zero otherwise.
        """
        kernels = {path: weights[path] != 0 for path, shape in self.shapes.items() if len(shape) > 1}
        masks = self.completed(kernels)
        if wrong := [
            path
            for path, nonzero in kernels.items()
            if np.count_nonzero(masks[path] & ~nonzero) > HARDLY_PRUNED * nonzero.size
        ]:
            raise RuntimeError(f"Single weights are zero in {', '.join(wrong)}.")
        return masks

    def completed(self, masks: Arrays) -> dict[str, np.ndarray]:
        """The masks of all variables, by those of some of which the channels are known."""
        return self.expand(self.kept(masks))

    def check(self, masks: Arrays) -> None:
        """Raises RuntimeError, naming the variables, if masks are not those of whole channels."""
        expected = self.expand(self.kept(masks))
        if wrong := [path for path, mask in expected.items() if not np.array_equal(mask, masks[path])]:
            raise RuntimeError(
                f"The masks of {', '.join(wrong)} are not those of whole channels: something other than the ranking "
                "has set them."
            )

    def amount(self, kept: np.ndarray) -> int:
        """How much is left, in what the budget counts, where these units stay, bool (units,)."""
        return BUDGETS[self.budget](self, kept)

    def multiply_adds(self, kept: np.ndarray) -> int:
        """How many are left for one example where these units stay, bool (units,)."""
        entries, stays = self.entries(kept), np.append(kept, True)
        return self.other_products + sum(
            product.times
            * (1 if product.path is None else entries[product.path])
            * math.prod(int(np.count_nonzero(stays[places])) for places in product.places)
            for product in self.products
        )

    def entries(self, kept: np.ndarray) -> dict[str, int]:
        """Path -> how many entries of the variable stay."""
        stays = np.append(kept, True)
        return {
            path: math.prod(
                size if units is None else int(np.count_nonzero(stays[units]))
                for size, units in zip(shape, self.axes[path], strict=True)
            )
            for path, shape in self.shapes.items()
        }

    def spent(self, masks: Arrays) -> int:
        """`amount` of what stays under these masks."""
        return self.amount(self.kept(masks))

    def total(self, sizes: Mapping[str, int] | None = None) -> int:
        """`amount` of the whole network."""
        return self.amount(np.ones(self.count, bool))

    def surviving(self, masks: Arrays) -> list[ChannelSet]:
        """The sets, with those of their units that stay under these masks."""
        kept = self.kept(masks)
        return [dataclasses.replace(each, units=each.units[kept[each.units]]) for each in self.sets]

    def read_by(self) -> dict[str, np.ndarray]:
        """Path of a kernel that reads units -> the unit of each channel that it reads, int (inputs,); -1 where none can
        go."""
        read = {path: self.axes[path][axis] for path, axis in self.reads.items()}
        return {path: units for path, units in read.items() if units is not None and (units >= 0).any()}

    def made_by(self, path: str) -> np.ndarray:
        """The unit of each channel that a kernel makes, int (outputs,); -1 where it cannot go."""
        units = self.axes[path][self.axis_of_outputs(path)]
        assert units is not None  # Or it would not be in `reads`.
        return units

    def axis_of_outputs(self, path: str) -> int:
        return 2 * len(self.shapes[path]) - 3 - self.reads[path]

    def axes_of(self, paths: Container[str]) -> list[tuple[str, int, np.ndarray]]:
        """(path, axis, the unit of each index) of the axes that count channels, in the order of `shapes`."""
        return [
            (path, axis, units)
            for path in self.shapes
            if path in paths
            for axis, units in enumerate(self.axes[path])
            if units is not None and (units >= 0).any()
        ]

    def check_read(self) -> None:
        """Raises ValueError where there are `others`, for what knows Dense layers and convolutions alone."""
        if self.others:
            raise ValueError(
                "This criterion or method goes by what Dense layers and plain convolutions read and make, and "
                f"{', '.join(self.others[:4])} read or make channels otherwise. Take one that goes by weights and "
                "their gradients, such as 'magnitude' or 'taylor', or name in exclude what makes these channels."
            )

    def pool_made(self, scores: Arrays, masks: Arrays) -> np.ndarray:
        """The sum over the weights of the kernels that make a unit, those that survive, float64 (units,)."""
        self.check_read()
        made = [(path, self.axis_of_outputs(path), self.made_by(path)) for path in self.reads]
        return self._pool(scores, masks, made)

    def pool(self, scores: Arrays, masks: Arrays, signed: bool) -> np.ndarray:
        """The score of each unit, float64 (units,): the sum of those of its members that survive, or their L2 norm
        unless `signed`. An entry in which two units meet belongs to both."""
        axes = self.axes_of(self.scored)
        return self._pool(scores, masks, axes) if signed else np.sqrt(self._pool(scores, masks, axes, power=2))

    def _pool(
        self, scores: Arrays, masks: Arrays, axes: Iterable[tuple[str, int, np.ndarray]], power: int = 1
    ) -> np.ndarray:
        """The sum of the powers of what survives along some axes, as `axes_of` gives them, float64 (units,)."""
        pooled = np.zeros(self.count)
        for path, axis, units in axes:
            score = np.where(masks[path], scores[path], 0).astype(np.float64)
            sums = (score**power).sum(axis=others_than(axis, score.ndim))
            np.add.at(pooled, units[units >= 0], sums[units >= 0])
        return pooled


class Channels:
    """`Statistics` as whole channels see them: scores are arrays (units,), of all channels that can go.

    Attributes:
        units: The channels.
        statistics: Of the weights, and of the data.
        sets: The channels that survive, in sets of those that the same variables make and read.
    """

    def __init__(self, units: ChannelLayout, statistics: Statistics) -> None:
        self.units = units
        self.statistics = statistics
        self.sets = units.surviving(statistics.masks)

    def pool(self, scores: Arrays, signed: bool) -> np.ndarray:
        """The score of each channel by those of its weights, as `ChannelLayout.pool`."""
        return self.units.pool(scores, self.statistics.masks, signed)

    @functools.cached_property
    def contributions(self) -> list[np.ndarray]:
        """Of each batch, float64 (examples, units): `Statistics.contributions`, the sum of all that read a channel."""
        return self._tabulated(self.statistics.contributions, mean=False)

    @functools.cached_property
    def activations(self) -> list[np.ndarray]:
        """Of each batch, float64 (examples, units): `Statistics.activations`, the mean of all that read a channel."""
        return self._tabulated(self.statistics.activations, mean=True)

    @functools.cached_property
    def densities(self) -> list[np.ndarray]:
        """Of each batch, float64 (examples, units): `Statistics.densities`, the mean of all that read a channel."""
        return self._tabulated(self.statistics.densities, mean=True)

    def _tabulated(self, batches: Batches, *, mean: bool) -> list[np.ndarray]:
        """Per unit, what the statistics have per channel of a kernel's input."""
        self.units.check_read()
        count, places = self.units.count, self.units.read_by()
        if unseen := [path for path in places if path not in batches]:
            raise ValueError(
                f"The criterion goes by what kernels read of each example, and the inputs of {', '.join(unseen[:4])} "
                "do not come example by example, or are not seen. Take one that goes by weights and their gradients, "
                "such as 'magnitude' or 'gradient', or name in exclude what makes these channels."
            )
        times = np.zeros(count)
        for units in places.values():
            times += np.bincount(units[units >= 0], minlength=count)
        tables = []
        for number, batch in enumerate(next(iter(batches.values()), ())):
            table = np.zeros((count, len(batch)))
            for path, units in places.items():
                np.add.at(table, units[units >= 0], batches[path][number].T[units >= 0])
            tables.append((table / np.maximum(times, 1)[:, np.newaxis] if mean else table).T)
        return tables


def _weights(units: ChannelLayout, kept: np.ndarray) -> int:
    entries = units.entries(kept)
    return sum(entries[path] for path in units.counted)


def _microseconds(units: ChannelLayout, kept: np.ndarray) -> int:
    if units.clock is None:
        raise RuntimeError("What a Latency counts is known by a clock alone, and there is none yet.")
    return units.clock(units, kept)


BUDGETS: dict[str, Callable[[ChannelLayout, np.ndarray], int]] = {
    "weights": _weights,
    "channels": lambda units, kept: int(np.count_nonzero(kept)),
    "flops": ChannelLayout.multiply_adds,
    "latency": _microseconds,
}
"""`name_of_budget` of `PruningConfig.budget` -> how much of it is left of the units, where some of them stay, bool
(units,). With fewer units it is never more, but for a time, which is so by and large."""


def others_than(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(other for other in range(rank) if other != axis)
