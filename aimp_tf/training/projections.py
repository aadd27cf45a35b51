"""Balls that kernels are projected on while rounds train: `PruningConfig.projection` takes these, or the name of one.

A projection is the nearest point of the ball. It makes what is small zero, and all that is left smaller by as much.
What is zero when a round ends goes, the rest trains on or starts again from where it rewinds to.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.step import forget_traced
from aimp_tf.compat.variables import local_view
from aimp_tf.config.texts import is_number, nearest
from aimp_tf.masking import MaskConstraint, MaskedModel
from aimp_tf.training.kernels import arranged, input_axis, rearranged, trained_variables

__all__ = ["L1", "L11", "L21", "Projection"]

_WHEN = ("epoch", "step")


class Projection:
    """A ball that each prunable kernel is projected on; subclass it for one of your own.

    Args:
        radius: Of the ball, in its norm, the same for every kernel; above 0. None chooses, at the end of each epoch,
            the same share of every kernel's own norm: the largest that leaves no more than the next round is to keep.
            One of your own needs `knots` for it.
        every: "epoch" projects at the end of each, "step" after every step of the optimizer as well, from the first
            epoch on that knows a radius.

    Raises:
        TypeError, ValueError: An argument is out of its range.
    """

    def __init__(self, radius: float | None = None, every: str = "epoch") -> None:
        name = type(self).__name__
        if radius is not None and not is_number(radius, numbers.Real):
            raise TypeError(f"radius of {name} must be None or a number above 0; got {radius!r}.")
        if radius is not None and not 0 < radius < math.inf:
            raise ValueError(f"radius of {name} must be None or a number above 0; got {radius!r}.")
        if radius is None and type(self).knots is Projection.knots:
            raise ValueError(f"{name} cannot choose its radius, for it has no `knots`: define them, or give a radius.")
        if every not in _WHEN:
            raise ValueError(f"every of {name} must be 'epoch' or 'step'; got {every!r}.{nearest(every, _WHEN)}")
        self.radius, self.every = radius, every

    def norm(self, rows: tf.Tensor) -> tf.Tensor:
        """That of the ball, a scalar, of float32 (outputs, inputs): a row for each output, such as a filter."""
        raise NotImplementedError

    def project(self, rows: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
        """The nearest rows, float32 (outputs, inputs), whose norm is at most the radius, a scalar."""
        raise NotImplementedError

    def knots(self, rows: tf.Tensor) -> tf.Tensor:
        """The radius up to which each weight becomes zero, float64 (outputs * inputs,), in any order."""
        raise NotImplementedError


class L1(Projection):
    """The sum of all magnitudes of a kernel: magnitudes get smaller by the same threshold, or zero.

    References:
        Duchi, Shalev-Shwartz, Singer and Chandra, "Efficient projections onto the l1-ball for learning in high
        dimensions", ICML 2008, figure 1; O(n log n).

    Example: `projection="l1"`. With a radius of 2, the row (3, -1, 0.5) becomes (2, 0, 0).
    """

    def norm(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.abs(rows))

    def project(self, rows: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
        return _soft(rows, _threshold(tf.reshape(tf.abs(rows), [-1]), radius))

    def knots(self, rows: tf.Tensor) -> tf.Tensor:
        return _knots(tf.reshape(tf.abs(rows), [-1]))


class L21(Projection):
    """The sum over outputs of their rows' L2 norms: rows get shorter by the same length, or zero as a whole.

    References:
        Yuan and Lin, "Model selection and estimation in regression with grouped variables", 2006, of the norm; with the
        thresholds of Duchi et al., ICML 2008.

    Example: `projection="l21"`. With a radius of 4, the rows (3, 4) and (0, 1) become (2.4, 3.2) and (0, 0).
    """

    def norm(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.norm(rows, axis=1))

    def project(self, rows: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
        lengths = tf.norm(rows, axis=1, keepdims=True)
        shorter = tf.maximum(lengths - _threshold(lengths[:, 0], radius), 0.0)
        return rows * tf.math.divide_no_nan(shorter, lengths)

    def knots(self, rows: tf.Tensor) -> tf.Tensor:
        lengths = tf.norm(rows, axis=1)
        knots = _knots(lengths)
        longest_first = tf.gather(rows, tf.argsort(lengths, direction="DESCENDING"))
        # What is zero is so at any radius.
        whole = tf.reduce_sum(tf.cast(lengths, tf.float64))
        return tf.reshape(tf.where(longest_first != 0, knots[:, tf.newaxis], whole), [-1])


class L11(Projection):
    """The sum over outputs of their rows' L1 norms, first as one vector, and then each row on the ball of its own.

    Rows of a small norm go as a whole, and others lose their small weights. It is not the nearest point of all, which
    is that of `L1`: what is nearest is the vector of the rows' norms, and then each row.

    References:
        Barlaud and Guyard, "Learning sparse deep neural networks using efficient structured projections on convex
        constraints for green AI", ICPR 2020, whose algorithm this follows as far as its abstract tells it.

    Example: `projection="l11"`. With a radius of 3, the rows (3, 1) and (0.5, 0.5) become (2.5, 0.5) and (0, 0).
    """

    def norm(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.abs(rows))

    def project(self, rows: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
        norms = tf.reduce_sum(tf.abs(rows), axis=1)
        loss = _threshold(norms, radius)
        radii = tf.where(loss > 0, tf.maximum(norms - loss, 0.0), math.inf)
        return _soft(rows, _threshold(tf.abs(rows), radii)[:, tf.newaxis])

    def knots(self, rows: tf.Tensor) -> tf.Tensor:
        norms = tf.cast(tf.reduce_sum(tf.abs(rows), axis=1), tf.float64)
        # A weight becomes zero once each norm has lost as much as this; the radius is then what the norms have left.
        losses = tf.reshape(norms[:, tf.newaxis] - _knots(tf.abs(rows)), [-1])
        norms = tf.sort(norms)
        larger = tf.searchsorted(norms, losses, side="right")
        sums = tf.concat([tf.cumsum(norms, reverse=True), [0.0]], axis=0)
        return tf.gather(sums, larger) - tf.cast(tf.size(norms) - larger, tf.float64) * losses


def _soft(rows: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    return tf.sign(rows) * tf.maximum(tf.abs(rows) - threshold, 0.0)


def _threshold(values: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
    """What is taken from each of some values, 0 or more, along the last axis, so that the sum is at most the radius."""
    _, sums, counts = _descending(values)
    excess = sums - tf.cast(radius, tf.float64)[..., tf.newaxis]
    return tf.cast(tf.maximum(tf.reduce_max(excess / counts, axis=-1), 0.0), values.dtype)


def _knots(values: tf.Tensor) -> tf.Tensor:
    """The radius up to which each of some values, 0 or more, becomes zero, along the last axis, the largest first."""
    descending, sums, counts = _descending(values)
    return sums - counts * descending


def _descending(values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Values sorted along the last axis, the sums of them up to each, and how many these are, all in float64: sums of
    many float32 are off by more than what is left of them."""
    descending = tf.cast(tf.sort(values, axis=-1, direction="DESCENDING"), tf.float64)
    counts = tf.range(1, tf.shape(values)[-1] + 1)
    return descending, tf.cumsum(descending, axis=-1), tf.cast(counts, tf.float64)


PROJECTIONS: dict[str, type[Projection]] = {"l1": L1, "l21": L21, "l11": L11}
"""By their names in `PruningConfig.projection`."""


def projection_of(value: Any) -> Projection | None:
    """The projection that `PruningConfig.projection` stands for: a name, a `Projection`, or None."""
    return PROJECTIONS[value]() if isinstance(value, str) else value


class Projecting:
    """Projects the kernels of a masked model, as a run asks for it; on None, not at all."""

    def __init__(self, projection: Projection | None) -> None:
        self._projection = projection
        self._radii: dict[str, Any] = {}
        self._installed = contextlib.ExitStack()

    def begin(self, masked: MaskedModel) -> None:
        """Has every step of the optimizer project, if that is asked for and not done."""
        projection = self._projection
        if projection is None or projection.every != "step" or self._radii:
            return
        masked.while_masked.enter_context(self._installed)
        self._installed.callback(forget_traced, masked.model)
        self._installed.callback(self._radii.clear)
        for path, variable in _kernels(masked).items():
            with masked.model.distribute_strategy.scope():
                self._radii[path] = radius = tf.Variable(math.inf, trainable=False)
            constraint = variable.constraint
            assert isinstance(constraint, MaskConstraint)
            previous = constraint.previous
            self._installed.callback(setattr, constraint, "previous", previous)
            constraint.previous = _projected(projection, input_axis(masked, path), radius, previous)
        forget_traced(masked.model)

    def begin_round(self, settled: bool, found: Sequence[float] | None) -> None:
        """Says what steps project on: nothing once all is settled, else what the last epoch of the round gave, if it
        goes on after one."""
        for index, radius in enumerate(self._radii.values()):
            assert self._projection is not None
            given = self._projection.radius if found is None else found[index]
            radius.assign(math.inf if settled or given is None else given)

    def end_epoch(self, masked: MaskedModel, share: float) -> list[float] | None:
        """Projects all kernels, and gives the radii; None where nothing is projected.

        `share` is which part of the weights the next round is to keep, for a radius that is not given.
        """
        projection = self._projection
        if projection is None:
            return None
        kernels = _kernels(masked)
        values = {path: tf.constant(local_view(variable)) for path, variable in kernels.items()}
        axes = {path: input_axis(masked, path) for path in kernels}
        rows = {path: _as_rows(value, axes[path]) for path, value in values.items()}
        radii = _radii(projection, rows, share)
        for path, variable in kernels.items():
            projected = projection.project(rows[path], tf.constant(radii[path]))
            variable.assign(_from_rows(projected, axes[path], values[path]))
            if path in self._radii:
                self._radii[path].assign(radii[path])
        return list(map(float, radii.values()))

    def remove(self) -> None:
        """Has steps project no more."""
        self._installed.close()


def _projected(
    projection: Projection, axis: int | None, radius: Any, previous: Callable[[Any], Any] | None
) -> Callable[[Any], tf.Tensor]:
    """A constraint that projects on a ball, whose radius is a variable, before another constraint or None.

    While the radius is infinite, as in the last training, nothing is computed for it.
    """

    def constrain(weight: Any) -> tf.Tensor:
        weight, ball = tf.convert_to_tensor(weight), radius.read_value()
        weight = tf.cond(
            tf.math.is_inf(ball),
            lambda: weight,
            lambda: _from_rows(projection.project(_as_rows(weight, axis), ball), axis, weight),
        )
        return weight if previous is None else previous(weight)

    return constrain


def _kernels(masked: MaskedModel) -> dict[str, Any]:
    return {path: variable for path, variable in trained_variables(masked).items() if path in masked.prunable}


def _as_rows(kernel: tf.Tensor, axis: int | None) -> tf.Tensor:
    """(outputs, inputs), of a kernel of which this axis counts inputs."""
    kernel = arranged(tf.cast(kernel, tf.float32), axis)
    return tf.transpose(tf.reshape(kernel, [-1, kernel.shape[-1]]))


def _from_rows(rows: tf.Tensor, axis: int | None, kernel: tf.Tensor) -> tf.Tensor:
    """As `kernel` lies."""
    return tf.cast(rearranged(tf.transpose(rows), axis, kernel.shape), kernel.dtype)


def _radii(projection: Projection, rows: Mapping[str, tf.Tensor], share: float) -> dict[str, np.float32]:
    """That which is given, or the same part of every norm that leaves no more than a share of all."""
    if projection.radius is not None:
        return dict.fromkeys(rows, np.float32(projection.radius))
    norms = {path: float(projection.norm(each)) for path, each in rows.items()}
    knots = [projection.knots(each).numpy() / norms[path] for path, each in rows.items() if norms[path] > 0]
    total = sum(int(tf.size(each)) for each in rows.values())
    shares = np.concatenate([*knots, [1.0]])
    kept = min(int(share * total), len(shares) - 1)
    # By so much less that what sums and thresholds are rounded by leaves nothing more.
    part = min(float(np.partition(shares, kept)[kept]), 1.0) * (1 - 1e-6)
    return {path: np.float32(part * norm) for path, norm in norms.items()}
