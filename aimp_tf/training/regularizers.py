"""Penalties on the weights that rounds train with: `PruningConfig.regularizer` takes these, or the name of one.

Each is added to the loss while something is still to be ranked, so that training itself makes the least units small.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.config.texts import check_within
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.channel_layout import others_than
from aimp_tf.selection.channels import ChannelUnits
from aimp_tf.training.kernels import arranged, input_axis, trained_variables

__all__ = ["GroupLasso", "Hierarchical", "NormLoss", "Nuclear", "Regularizer", "ScaleL1", "TrainedWeights"]


class TrainedWeights:
    """The weights that a penalty looks at, as a step has them: those that are ranked and trained.

    Attributes:
        kernels: Path -> tensor (windows, inputs, outputs), float32, of the prunable variables: windows are the places
            of a convolution's window, and one elsewhere.
        scales: Path -> tensor (channels,), of what normalisation multiplies channels by that can go; there are some
            with `granularity="channel"` alone.
    """

    def __init__(self, masked: MaskedModel) -> None:
        self._units = masked.units
        self._all = {
            path: tf.cast(tf.convert_to_tensor(variable), tf.float32)
            for path, variable in trained_variables(masked).items()
        }
        self.kernels: Mapping[str, tf.Tensor] = {
            path: arranged(tensor, input_axis(masked, path))
            for path, tensor in self._all.items()
            if path in masked.prunable
        }
        self.scales: Mapping[str, tf.Tensor] = {
            path: tensor
            for path, tensor in self._all.items()
            if path not in masked.prunable and path.split("/")[-1] == "gamma"
        }

    @functools.cached_property
    def units(self) -> Sequence[tuple[tf.Tensor, np.ndarray | float]]:
        """The L2 norms of all units, float32, and how many weights each has. The gradient of a norm of 0 is 0."""
        units = self._units
        if isinstance(units, ChannelUnits):
            return [self._channels(units)]
        block = units.cost
        if block == 1:
            return [(tf.abs(kernel), 1.0) for kernel in self.kernels.values()]
        norms = []
        for path, kernel in self._all.items():
            axis = units.axes[path]
            assert axis is not None
            shape = kernel.shape.as_list()
            parted = tf.reshape(kernel, [*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :]])
            norms.append((root(tf.reduce_sum(parted**2, axis=axis + 1)), float(block)))
        return norms

    def _channels(self, units: ChannelUnits) -> tuple[tf.Tensor, np.ndarray]:
        squares: Any = tf.zeros([units.count])
        sizes = np.zeros(units.count)
        for path, axis, ids in units.axes_of(units.scored & self._all.keys()):
            tensor = self._all[path]
            others = others_than(axis, len(tensor.shape))
            # What has no unit has the id -1, which is left out.
            squares += tf.math.unsorted_segment_sum(tf.reduce_sum(tensor**2, others), ids, units.count)
            np.add.at(sizes, ids[ids >= 0], int(np.prod(tensor.shape)) // len(ids))
        return root(squares), sizes


def root(squares: tf.Tensor) -> tf.Tensor:
    """The square root, with a gradient of 0 at 0, where what is pruned lies."""
    positive = squares > 0
    return tf.where(positive, tf.sqrt(tf.where(positive, squares, 1.0)), 0.0)


class Regularizer:
    """A penalty on weights; subclass it for one of your own.

    Args:
        strength: What the penalty is multiplied by, above 0.

    Attributes:
        in_last_training: Whether it goes on when nothing is left to be ranked.

    Raises:
        TypeError, ValueError: The strength is no number above 0.
    """

    in_last_training: bool = False

    def __init__(self, strength: float) -> None:
        check_within(f"strength of {type(self).__name__}", strength, 0)
        self.strength = float(strength)

    def penalty(self, weights: TrainedWeights) -> tf.Tensor:
        """The penalty for a strength of 1, a float32 scalar that gradients pass through.

        Raises:
            ValueError: The model has no weights that it is of.
        """
        raise NotImplementedError


class GroupLasso(Regularizer):
    """The sum over units of sqrt(weights of the unit) * their L2 norm; of single weights, their L1 norm.

    With `granularity="channel"` a unit is all that is tied to a channel, so that its filter and what reads it go down
    together.

    References:
        Yuan and Lin, "Model selection and estimation in regression with grouped variables", 2006; Wen, Wu, Wang, Chen
        and Li, "Learning structured sparsity in deep neural networks", NeurIPS 2016, section 3.1.

    Example: `regularizer="group_lasso"`. Units (3, 4) and (0, 1) give sqrt(2) * (5 + 1).
    """

    def __init__(self, strength: float = 1e-5) -> None:
        super().__init__(strength)

    def penalty(self, weights: TrainedWeights) -> tf.Tensor:
        return tf.add_n([tf.reduce_sum(np.float32(np.sqrt(sizes)) * norms) for norms, sizes in weights.units])


class Hierarchical(Regularizer):
    """Of each kernel, half the sum over inputs of (sum over outputs of sqrt(|W_oi|))**2, and half its L1 norm.

    W_oi is what an output multiplies an input by, a window of a convolution, and |W_oi| its L1 norm. The square over
    the inputs lets inputs compete, the root within it lets outputs of one input do so.

    References:
        Mitsuno, Miyao and Kurita, "Hierarchical group sparse regularization for deep convolutional neural networks",
        2020.

    Example: `regularizer="hierarchical"`. The kernel [[1, 4]] of a Dense layer gives (1 + 2)**2 / 2 + 5 / 2.
    """

    def __init__(self, strength: float = 1e-6) -> None:
        super().__init__(strength)

    def penalty(self, weights: TrainedWeights) -> tf.Tensor:
        return tf.add_n([self._of(kernel) for kernel in weights.kernels.values()])

    def _of(self, kernel: tf.Tensor) -> tf.Tensor:
        pairs = tf.reduce_sum(tf.abs(kernel), axis=0)  # (inputs, outputs)
        return tf.reduce_sum(tf.reduce_sum(root(pairs), axis=-1) ** 2) / 2 + tf.reduce_sum(pairs) / 2


class ScaleL1(Regularizer):
    """The L1 norm of what normalisation multiplies channels by: goes with `criterion="scale"`.

    References:
        Liu, Li, Shen, Huang, Yan and Zhang, "Learning efficient convolutional networks through network slimming", ICCV
        2017, section 3.

    Example: `regularizer="scale_l1"`. Scales of 1 and -0.5 give 1.5.
    """

    def __init__(self, strength: float = 1e-4) -> None:
        super().__init__(strength)

    def penalty(self, weights: TrainedWeights) -> tf.Tensor:
        if not weights.scales:
            raise ValueError(
                "regularizer='scale_l1' is of the scale of normalisation, and no channels that can go have one that is "
                "trained. Write granularity='channel' for a model with BatchNormalization, or take 'group_lasso'."
            )
        return tf.add_n([tf.reduce_sum(tf.abs(scale)) for scale in weights.scales.values()])


class NormLoss(Regularizer):
    """The sum over outputs of (1 - L2 norm of what makes the output)**2, also in the last training.

    It draws all filters to the same norm, so that magnitudes tell little: rank by what the data says, such as
    `criterion="taylor"`. Filters of which nothing is left do not count.

    References:
        Georgiou, Schmitt, Baeck, Chen and Lew, "Norm loss: an efficient yet effective regularization method for deep
        neural networks", ICPR 2020.

    Example: `regularizer="norm_loss"`. Filters with norms of 1 and 3 give 4.
    """

    in_last_training = True

    def __init__(self, strength: float = 0.01) -> None:
        super().__init__(strength)

    def penalty(self, weights: TrainedWeights) -> tf.Tensor:
        total: Any = 0.0
        for kernel in weights.kernels.values():
            norms = root(tf.reduce_sum(kernel**2, axis=[0, 1]))
            total += tf.reduce_sum(tf.where(norms > 0, (1 - norms) ** 2, 0.0))
        return total


class Nuclear(Regularizer):
    """Half the sum of the squares of all kernels: of a model that `aimp_tf.factorize` made, the least that this can be
    is the nuclear norms of the products, and small ranks go.

    References:
        Srebro, Rennie and Jaakkola, "Maximum-margin matrix factorization", NeurIPS 2004, section 3.

    Example: `regularizer="nuclear"`. Factors [[2]] and [[2]], whose product has the nuclear norm 4, give 4.
    """

    def __init__(self, strength: float = 1e-4) -> None:
        super().__init__(strength)

    def penalty(self, weights: TrainedWeights) -> tf.Tensor:
        return tf.add_n([tf.reduce_sum(kernel**2) for kernel in weights.kernels.values()]) / 2


REGULARIZERS: dict[str, type[Any]] = {
    "group_lasso": GroupLasso,
    "hierarchical": Hierarchical,
    "scale_l1": ScaleL1,
    "norm_loss": NormLoss,
    "nuclear": Nuclear,
}
"""By their names in `PruningConfig.regularizer`."""


def regularizer_of(value: Any) -> Regularizer | None:
    """The regularizer that `PruningConfig.regularizer` stands for: a name, a `Regularizer`, or None."""
    return REGULARIZERS[value]() if isinstance(value, str) else value
