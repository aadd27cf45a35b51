"""Whole channels as units: each with all the slices of variables that stand or fall with it. NumPy only."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.config.checks import COUNTED
from aimp_tf.config.structure import Structure
from aimp_tf.selection.criterion import Criterion, channel_scores_of
from aimp_tf.selection.scope import shares_of
from aimp_tf.selection.search import largest, nearly_largest
from aimp_tf.selection.statistics import Arrays, Channels, Statistics, check_read

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
            `ChannelUnits.axes`.
    """

    path: str | None
    times: int
    places: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class ChannelUnits:
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
    clock: Callable[[ChannelUnits, np.ndarray], int] | None = None
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
                    mask &= stays[units].reshape(_lying(axis, len(shape)))
            masks[path] = mask
        return masks

    def variables_of(self, unit: int) -> tuple[str, ...]:
        """Paths of the variables that lose a slice with a unit."""
        return tuple(dict.fromkeys(path for path, _, units in self._axes_of(self.shapes) if (units == unit).any()))

    def kept(self, masks: Arrays) -> np.ndarray:
        """Which units stay under these masks, bool (units,)."""
        return self._touched(masks, self.shapes)

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
        return self.expand(self._touched(masks, masks))

    def _touched(self, masks: Arrays, paths: Mapping[str, object]) -> np.ndarray:
        """Which units have anything that is True in the variables of these paths, bool (units,)."""
        kept = np.zeros(self.count, bool)
        for path, axis, units in self._axes_of(paths):
            along = np.logical_or.reduce(masks[path], axis=_others(axis, len(self.shapes[path])))
            np.logical_or.at(kept, units[units >= 0], along[units >= 0])
        return kept

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

    def least(self, config: PruningConfig, sizes: Mapping[str, int] | None = None) -> dict[str, int]:
        """How many units of each set stay at least, by its name: `min_layer_survivors`, of which 0 is a tenth, and no
        fewer than `max_layer_sparsity` allows. A layer must have one channel; of blocks all may go."""
        counts = {}
        fewest = 0 if "block" in self.kinds else 1
        for each in self.sets:
            size = len(each.units)
            count = config.min_layer_survivors or fewest * math.ceil(size / 10)
            if config.max_layer_sparsity is not None:
                # Rounded first, for 0.29 * 100 is less than 29 in floating point.
                count = max(count, size - math.floor(round(config.max_layer_sparsity * size, 6)))
            counts[each.name] = min(size, max(fewest, count))
        return counts

    def check_reachable(self, masks: Arrays | None, keep: int, least: Mapping[str, int]) -> None:
        """Raises ValueError if so little cannot be left of what these masks keep, or of all."""
        before = np.ones(self.count, bool) if masks is None else self.kept(masks)
        self._along(np.zeros(self.count), before, keep, [least[each.name] for each in self.sets])

    def rank(
        self, criterion: Criterion, statistics: Statistics, keep: int, least: Mapping[str, int], scope: object
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """As `Units.rank`, with as much left as `choose` says."""
        channels = Channels(self, statistics)
        scores, before = channel_scores_of(criterion, channels), self.kept(statistics.masks)
        fewest, shares = [least[each.name] for each in self.sets], shares_of(scope, channels)
        kept, guarded = self.choose(scores, before, keep, fewest, shares)
        return self.expand(kept), guarded

    def needs(self, criterion: Criterion) -> tuple[str, ...]:
        """As `Units.needs`."""
        return criterion.channel_needs

    def surviving(self, masks: Arrays) -> list[ChannelSet]:
        """The sets, with those of their units that stay under these masks."""
        kept = self.kept(masks)
        return [dataclasses.replace(each, units=each.units[kept[each.units]]) for each in self.sets]

    def read_by(self) -> dict[str, np.ndarray]:
        """Path of a kernel -> the unit of each channel that it reads, int (inputs,); -1 where none can go."""
        read = {path: self.axes[path][axis] for path, axis in self.reads.items()}
        return {path: units for path, units in read.items() if units is not None}

    def made_by(self, path: str) -> np.ndarray:
        """The unit of each channel that a kernel makes, int (outputs,); -1 where it cannot go."""
        units = self.axes[path][self._axis_of_outputs(path)]
        assert units is not None  # Or it would not be in `reads`.
        return units

    def _axis_of_outputs(self, path: str) -> int:
        return 2 * len(self.shapes[path]) - 3 - self.reads[path]

    def pool_made(self, scores: Arrays, masks: Arrays) -> np.ndarray:
        """The sum over the weights of the kernels that make a unit, those that survive, float64 (units,)."""
        check_read(self.others)
        made = [(path, self._axis_of_outputs(path), self.made_by(path)) for path in self.reads]
        return self._pool(scores, masks, made)

    def pool(self, scores: Arrays, masks: Arrays, signed: bool) -> np.ndarray:
        """The score of each unit, float64 (units,): the sum of those of its members that survive, or their L2 norm
        unless `signed`. An entry in which two units meet belongs to both."""
        axes = self._axes_of(self.scored)
        return self._pool(scores, masks, axes) if signed else np.sqrt(self._pool(scores, masks, axes, power=2))

    def _pool(
        self, scores: Arrays, masks: Arrays, axes: Iterable[tuple[str, int, np.ndarray]], power: int = 1
    ) -> np.ndarray:
        """The sum of the powers of what survives along some axes, as `_axes_of` gives them, float64 (units,)."""
        pooled = np.zeros(self.count)
        for path, axis, units in axes:
            score = np.where(masks[path], scores[path], 0).astype(np.float64)
            sums = (score**power).sum(axis=_others(axis, score.ndim))
            np.add.at(pooled, units[units >= 0], sums[units >= 0])
        return pooled

    def choose(
        self,
        scores: np.ndarray,
        before: np.ndarray,
        amount: int,
        least: Sequence[int],
        shares: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """The largest number of units along their ranking that stays within an amount, or nearly so of a time.

        Args:
            scores: Of the units, float (units,).
            before: Which of them survive, bool (units,). Others stay away.
            amount: How much may be left, in what the budget counts.
            least: How many of each set stay whatever their rank is, the best of it.
            shares: Of each set, which part of it stays, beside those of others, as nearly as can be. None ranks all
                together.

        Returns:
            Which units stay, bool (units,), ties by position; and the names of the sets that kept more than their rank
            gave them.

        Raises:
            ValueError: Even the fewest units that may be left are more than that.
        """
        order, assured, first = self._along(scores, before, amount, least, shares)
        if self.budget == "latency":
            count = nearly_largest(
                lambda count: self.amount(first(count)),
                lambda count: _multiply_adds(self, first(count)),
                amount,
                len(order),
            )
        else:
            count = largest(lambda count: self.amount(first(count)), amount, len(order))
        guarded: tuple[str, ...] = ()
        if count < len(order):
            worst = scores[order[count]]
            guarded = tuple(
                each.name for each in self.sets if bool((scores[each.units][assured[each.units]] < worst).any())
            )
        return first(count), guarded

    def _along(
        self,
        scores: np.ndarray,
        before: np.ndarray,
        amount: int,
        least: Sequence[int],
        shares: Sequence[float] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, Callable[[int], np.ndarray]]:
        """The units in order and those that stay anyway, as `_in_order`, and what stays with so many of the first.

        Raises ValueError as `choose`.
        """
        order, assured = self._in_order(scores, before, least, shares)

        def first(count: int) -> np.ndarray:
            kept = assured.copy()
            kept[order[:count]] = True
            return self._in_multiples(kept, before, scores, least)

        if (fewest := self.amount(first(0))) > amount:
            ask = "Ask for more milliseconds or less speedup" if self.budget == "latency" else "Lower target_sparsity"
            if "block" in self.kinds:
                limits = ", or leave out min_layer_survivors and max_layer_sparsity: without them all blocks can go"
            else:
                limits = ", or lower min_layer_survivors, of which the default keeps a tenth of each set of channels"
            multiple = f", or channel_multiple={self.multiple}" if self.multiple > 1 else ""
            raise ValueError(
                f"The fewest {COUNTED[self.budget]}s that can be left are {fewest:,} of {self.total():,}, and "
                f"{amount:,} are asked for. {ask}{limits}{multiple}."
            )
        return order, assured, first

    def _in_order(
        self, scores: np.ndarray, before: np.ndarray, least: Sequence[int], shares: Sequence[float] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The surviving units that may go, the best first, and which of the others stay in any case."""
        assured, places = np.zeros(self.count, bool), np.array(scores, np.float64)
        for index, (each, fewest) in enumerate(zip(self.sets, least, strict=True)):
            alive = each.units[before[each.units]]
            best = alive[np.argsort(-scores[alive], kind="stable")]
            assured[best[:fewest]] = True
            if shares is not None:
                places[best] = -np.arange(1, len(best) + 1) / (len(each.units) * shares[index])
        free = np.flatnonzero(before & ~assured)
        return free[np.argsort(-places[free], kind="stable")], assured

    def _in_multiples(
        self, kept: np.ndarray, before: np.ndarray, scores: np.ndarray, least: Sequence[int]
    ) -> np.ndarray:
        """Fewer units, so that those of each set are a multiple of `multiple`, and no fewer than `least`; or all that
        survive."""
        if self.multiple == 1:
            return kept
        rounded = np.zeros_like(kept)
        for each, fewest in zip(self.sets, least, strict=True):
            alive = each.units[before[each.units]]
            count = int(np.count_nonzero(kept[each.units]))
            if count < len(alive):
                count = min(len(alive), max(count // self.multiple, -(-fewest // self.multiple)) * self.multiple)
            rounded[alive[np.argsort(-scores[alive], kind="stable")][:count]] = True
        return rounded

    def _axes_of(self, paths: Mapping[str, object] | frozenset[str]) -> list[tuple[str, int, np.ndarray]]:
        """(path, axis, the unit of each index) of the axes that count channels, in the order of `shapes`."""
        return [
            (path, axis, units)
            for path in self.shapes
            if path in paths
            for axis, units in enumerate(self.axes[path])
            if units is not None and (units >= 0).any()
        ]


def _weights(units: ChannelUnits, kept: np.ndarray) -> int:
    entries = units.entries(kept)
    return sum(entries[path] for path in units.counted)


def _multiply_adds(units: ChannelUnits, kept: np.ndarray) -> int:
    entries, stays = units.entries(kept), np.append(kept, True)
    return units.other_products + sum(
        product.times
        * (1 if product.path is None else entries[product.path])
        * math.prod(int(np.count_nonzero(stays[places])) for places in product.places)
        for product in units.products
    )


def _channels(units: ChannelUnits, kept: np.ndarray) -> int:
    return int(np.count_nonzero(kept))


def _microseconds(units: ChannelUnits, kept: np.ndarray) -> int:
    if units.clock is None:
        raise RuntimeError("What a Latency counts is known by a clock alone, and there is none yet.")
    return units.clock(units, kept)


BUDGETS: dict[str, Callable[[ChannelUnits, np.ndarray], int]] = {
    "weights": _weights,
    "channels": _channels,
    "flops": _multiply_adds,
    "latency": _microseconds,
}
"""`name_of_budget` of `PruningConfig.budget` -> how much of it is left of the units, where some of them stay, bool
(units,). With fewer units it is never more, but for a time, which is so by and large."""


def _lying(axis: int, rank: int) -> tuple[int, ...]:
    """The shape with which a vector lies along an axis."""
    return (*(1,) * axis, -1, *(1,) * (rank - axis - 1))


def _others(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(other for other in range(rank) if other != axis)
