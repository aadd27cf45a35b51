"""Criteria that go by what channels and blocks are on a sample of the training data. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from aimp_tf.selection.channel_layout import Channels
from aimp_tf.selection.criterion import OfChannels, OfData, relative
from aimp_tf.selection.grams import MOST_ROWS, Elimination, elimination_costs, removal_costs_of_weights, without
from aimp_tf.selection.statistics import Arrays, Statistics

_SHUFFLE = 0
"""Seed of the order in which examples are paired with the outputs of others."""

_RIDGE = 1e-2
"""What is added to the diagonal of covariances, where variances are 1."""


class Utility(OfChannels, OfData):
    """A moving mean of what channels contribute: u <- momentum * u + c over the largest c of the layer, batch by batch.

    c is the mean over the examples of a batch of |sum over positions of a * dl/da|, as `Taylor` has it.

    Args:
        batches: As `Criterion.batches`.
        momentum: What is left of it after a batch, in [0, 1].

    References:
        Shen, Li, Zhao, Zhang and Zhou, "Learning to prune in training via dynamic channel propagation", ICPR 2020,
        whose utility this is; `method="dynamic"` has the masks that go with it, anew for each batch.

    Example: `criterion="utility"`. If channels of a layer contribute 2 and 1 in a first batch, and 1 and 1 in a second,
    they score 0.6 * 1 + 1 = 1.6 and 0.6 * 0.5 + 1 = 1.3.
    """

    channel_needs = ("contributions",)

    def __init__(self, batches: int = 8, momentum: float = 0.6) -> None:
        super().__init__(batches)
        self.momentum = momentum

    def channel_scores(self, channels: Channels) -> np.ndarray:
        scores = np.zeros(channels.units.count)
        for contributions in channels.contributions:
            in_batch = np.abs(contributions).mean(axis=0)
            for each in channels.sets:
                largest = in_batch[each.units].max(initial=0.0)
                in_batch[each.units] /= largest or 1.0
            scores = self.momentum * scores + in_batch
        return scores


class Votes(OfChannels, OfData):
    """The share of the examples that vote for a channel: on which it is above the mean of the channels of its layers.

    What counts is the mean over positions, of what the layers get that read the channel.

    References:
        "Filter pruning using majority voting", ICPR 2020.

    Example: `criterion="votes"`. With channels [3, 0, 0] on one example and [2, 4, 0] on another, whose means are 1 and
    2, the votes are 0.5, 0.5 and 0: 2 is not above 2.
    """

    channel_needs = ("activations",)

    def channel_scores(self, channels: Channels) -> np.ndarray:
        activations = np.concatenate(channels.activations)
        scores = np.zeros(channels.units.count)
        for each in channels.sets:
            ours = activations[:, each.units]
            if ours.size:
                scores[each.units] = (ours > ours.mean(axis=1, keepdims=True)).mean(axis=0)
        return scores


class ActivationDensity(OfChannels, OfData):
    """The share of the positions and examples at which a channel is not zero, of what the layers get that read it.

    It tells channels behind ReLU apart; others are hardly ever zero. `scope="activation_density"` is the paper's own
    use of it: how many channels of a layer stay.

    References:
        Foldy-Porto, Venkatesha and Panda, "Activation density driven efficient pruning in training", ICPR 2020.

    Example: `criterion="activation_density"`. A channel that is [0, 1, 2, 0] at the four positions of an example scores
    0.5.
    """

    channel_needs = ("densities",)

    def channel_scores(self, channels: Channels) -> np.ndarray:
        return np.concatenate(channels.densities).mean(axis=0)


class Discriminant(OfChannels, OfData):
    """How much discriminant information a layer loses without a channel: of tr((S + rho I)^-1 S_B).

    S is the covariance of the layer's channels, means over positions, and S_B that of the means of the classes. Without
    channel j it is less by (A S_B A)_jj / A_jj, with A = (S + rho I)^-1. The channels of a layer are taken out one by
    one, those that cost least first, and each scores what it costs then, over the mean of that. Targets must be
    classes.

    References:
        Hou and Kung, "A discriminant information approach to deep neural network pruning", ICPR 2020.

    Example: `criterion="discriminant"`. If one channel tells the classes apart and the others are noise, it is the last
    to go.
    """

    channel_needs = ("activations", "labels")

    def channel_scores(self, channels: Channels) -> np.ndarray:
        labels = np.concatenate(channels.statistics.labels)
        activations = np.concatenate(channels.activations)
        scores = np.zeros(channels.units.count)
        classes = len(np.unique(labels))
        if classes < 2:
            raise ValueError(
                f"The criterion {self.name} tells classes apart, and {len(labels)} examples are all of one. Shuffle "
                "the training data, or raise criterion_batches."
            )
        if 2 * classes > len(labels):
            raise ValueError(
                f"The criterion {self.name} tells classes apart, and {len(labels)} examples have {classes} different "
                "targets. Raise criterion_batches, or take another criterion where these are no classes."
            )
        for each in channels.sets:
            found = _Discriminance(activations[:, each.units], labels)
            scores[each.units] = elimination_costs([found], len(each.units))
        return relative(scores, channels)


class _Discriminance:
    """The discriminant information of channels (examples, channels), of examples with these labels."""

    def __init__(self, activations: np.ndarray, labels: np.ndarray) -> None:
        centred = standardized(activations)
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        self._means = np.zeros((len(counts), activations.shape[1]))
        np.add.at(self._means, classes.reshape(-1), centred)
        self._means /= np.sqrt(counts * len(labels))[:, np.newaxis]
        self._inverse = np.linalg.inv(covariance(centred))

    def costs(self, units: np.ndarray) -> np.ndarray:
        costs: np.ndarray = ((self._means @ self._inverse[:, units]) ** 2).sum(axis=0)
        return costs / np.diagonal(self._inverse)[units]

    def remove(self, unit: int) -> None:
        without(self._inverse, unit)


class MutualInformation(OfChannels, OfData):
    """What a channel tells of the channels that are made of it, given the others of its layers: a Gaussian estimate.

    The conditional mutual information I(x_j; z | other x) of normal variables, in nats, where x are the channels of a
    layer, means over positions, and z those of all layers that read x_j, as the layers after get them: by the inverses
    of the covariances of x alone and of both, (1/2) log((C_xz^-1)_jj / (C_x^-1)_jj). The channels of a layer are taken
    out one by one, those that tell least first, and each scores what it tells then.

    References:
        Ganesh, Corso and Sekeh, "MINT: Deep network compression via mutual information-based neuron trimming", ICPR
        2020, which estimates it from graphs of nearest neighbours.

    Example: `criterion="mutual_information"`. With x and z of variance 1 and covariance 0.6, it is -log(1 - 0.36) / 2 =
    0.22.
    """

    channel_needs = ("activations",)

    def channel_scores(self, channels: Channels) -> np.ndarray:
        scores = np.zeros(channels.units.count)
        centred = standardized(np.concatenate(channels.activations))
        for each in channels.sets:
            found = _Information(centred[:, each.units], list(self._made_of(each.units, channels, centred)))
            scores[each.units] = elimination_costs([found], len(each.units))
        return scores

    @staticmethod
    def _made_of(these: np.ndarray, channels: Channels, centred: np.ndarray) -> Iterator[np.ndarray]:
        """Values (examples, channels) of all that is made of these: other channels, of which `centred` has the values
        of all, and what cannot go, which nothing may read, as the kernel gives it."""
        units, statistics = channels.units, channels.statistics
        made = set()
        for path, read in units.read_by().items():
            if np.isin(these, read).any():
                outputs = units.made_by(path)
                made.update(outputs.tolist())
                if (outputs < 0).any():
                    kernel = np.moveaxis(statistics.weights[path], units.reads[path], -1)
                    kernel = kernel.sum(axis=tuple(range(kernel.ndim - 2)))[outputs < 0]
                    yield standardized(np.concatenate(statistics.activations[path]) @ kernel.T)
        others = sorted(made - {-1, *these.tolist()})
        yield centred[:, others]


class _Information:
    """What channels (examples, channels) tell of all that is made of them, both centred."""

    def __init__(self, these: np.ndarray, made: Sequence[np.ndarray]) -> None:
        self._with_made = inverse_beside(these, np.concatenate(made, axis=1))
        self._alone = np.linalg.inv(covariance(these))

    def costs(self, units: np.ndarray) -> np.ndarray:
        together, alone = np.diagonal(self._with_made)[units], np.diagonal(self._alone)[units]
        costs: np.ndarray = 0.5 * np.log(np.maximum(together / alone, 1.0))
        return costs

    def remove(self, unit: int) -> None:
        without(self._with_made, unit)
        without(self._alone, unit)


class Reconstruction(OfData):
    """What the layers that read a weight or a channel lose without it, at the best repair of what is left (`repair`).

    Of a channel whose rows are J in a kernel W, tr(W_J' ((G^-1)_JJ)^-1 W_J), where G is the Gram matrix of what W
    multiplies; of several kernels, the sum. It is a fraction of the mean square of all that W gives, so that it does
    not depend on the scale of any layer. The channels of a layer are taken out one by one, the cheapest first, and each
    scores what it costs then: one that others can stand in for scores next to nothing, but not all of these. Of a
    weight of row j it is w**2 / u_jj**2 with U' U = G^-1, which is what it costs if the rows after it make up for it.

    References:
        Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992, of each
        layer by itself, as Dong, Chen and Pan, "Learning to prune deep neural networks via layer-wise Optimal Brain
        Surgeon", NIPS 2017; Frantar and Alistarh, "SparseGPT", ICML 2023, section 3, for the order of single weights.

    Example: `criterion="reconstruction"`. Of two inputs with second moments [[2, 0], [0, 1]] and weights 1 and 1, what
    goes with each is 2 and 1 of 3: they score 2/3 and 1/3.
    """

    needs = channel_needs = ("grams",)

    def scores(self, statistics: Statistics) -> Arrays:
        grams = statistics.grams
        if unknown := [path for path in statistics.weights if path not in grams]:
            raise ValueError(
                f"The criterion {self.name} ranks kernels of Dense and convolution layers with no more than "
                f"{MOST_ROWS} inputs of an output unit, and cannot rank {', '.join(unknown)}. "
                "Name them in exclude, or take another criterion."
            )
        return {
            path: removal_costs_of_weights(
                grams[path], weight.reshape(-1, weight.shape[-1]), statistics.masks[path].reshape(-1, weight.shape[-1])
            ).reshape(weight.shape)
            for path, weight in statistics.weights.items()
        }

    def channel_scores(self, channels: Channels) -> np.ndarray:
        units, scores = channels.units, np.zeros(channels.units.count)
        units.check_read()
        for each in channels.sets:
            readers = [
                self._elimination(path, read, each.units, channels.statistics)
                for path, read in units.read_by().items()
                if np.isin(each.units, read).any() and channels.statistics.masks[path].any()
            ]
            scores[each.units] = elimination_costs(readers, len(each.units))
        return scores

    def _elimination(self, path: str, read: np.ndarray, these: np.ndarray, statistics: Statistics) -> Elimination:
        if path not in statistics.grams:
            raise ValueError(
                f"The criterion {self.name} ranks what Dense and convolution layers read that have no more than "
                f"{MOST_ROWS} inputs of an output unit, and {path} is of another kind. Take another criterion."
            )
        kernel, mask = (
            arrays[path].reshape(-1, arrays[path].shape[-1]) for arrays in (statistics.weights, statistics.masks)
        )
        rows = np.broadcast_to(read, (len(kernel) // len(read), len(read))).reshape(-1)
        parts = [np.flatnonzero(rows == unit) for unit in these.tolist()]
        return Elimination(statistics.grams[path], kernel, np.any(mask, axis=1), parts)


class OutputInformation(OfChannels, OfData):
    """What a block tells of the outputs of the model: a Gaussian estimate of their mutual information, in nats.

    I(b; y) = (1/2) log(det C_b det C_y / det C_by) of normal variables, where b is what the block adds and y what the
    model gives, both means over positions, and C are their covariances. Of few examples that is too much, and the more
    so the wider a block is: what the same gives where the outputs are those of other examples is taken off.

    References:
        Soltani, Wu, Ding, Ravier and Tarokh, "On the information of feature maps and pruning of deep neural networks",
        ICPR 2020, which removes the layers that tell least of the output.

    Example: `granularity="block", criterion="output_information"`. With b and y of variance 1 and covariance 0.6, it is
    -log(1 - 0.36) / 2 = 0.22.
    """

    channel_needs = ("branches", "outputs")
    _kind = "block"

    def channel_scores(self, channels: Channels) -> np.ndarray:
        if "block" not in channels.units.kinds:
            raise self._refusal()
        outputs = standardized(np.concatenate(channels.statistics.outputs))
        if len(outputs) < 2:
            raise ValueError(f"The criterion {self.name} goes by several examples; got {len(outputs)}.")
        order = np.random.default_rng(_SHUFFLE).permutation(len(outputs))
        others = np.empty_like(outputs)
        others[order] = outputs[np.roll(order, 1)]
        scores = np.zeros(channels.units.count)
        for unit, name in enumerate(channels.units.others):
            branch = standardized(np.concatenate(channels.statistics.branches[name]))
            # What each of the two has alone is the same.
            apart, together = (log_determinant(np.concatenate([branch, those], axis=1)) for those in (others, outputs))
            scores[unit] = (apart - together) / 2
        return scores


def standardized(values: np.ndarray) -> np.ndarray:
    """Values (examples, variables) less their mean over examples, with a mean square of 1 in each column that is not
    constant."""
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    deviations = np.sqrt((centred**2).mean(axis=0))
    return centred / np.where(deviations > 1e-12 * np.abs(values).max(axis=0, initial=1e-30), deviations, 1.0)


def log_determinant(centred: np.ndarray) -> float:
    """Of the `covariance` of standardized values, beside what it is where all of them are constant; by the examples
    where these are fewer."""
    examples, count = centred.shape
    moments = (centred.T @ centred if count < examples else centred @ centred.T) / (examples * _RIDGE)
    return float(np.linalg.slogdet(np.eye(len(moments)) + moments)[1])


def covariance(centred: np.ndarray) -> np.ndarray:
    """The covariance (variables, variables) of standardized values, with a little added so that it has an inverse."""
    matrix = centred.T @ centred / len(centred)
    return matrix + _RIDGE * np.eye(len(matrix))


def inverse_beside(these: np.ndarray, others: np.ndarray) -> np.ndarray:
    """What the inverse of the `covariance` of standardized values and others has for these alone; by the examples where
    these are fewer than the others."""
    examples, count = these.shape
    if others.shape[1] < examples:
        both = covariance(np.concatenate([these, others], axis=1))
        return np.linalg.inv(both)[:count, :count].copy()
    products = others @ others.T + examples * _RIDGE * np.eye(examples)
    return np.linalg.inv(np.eye(count) + these.T @ np.linalg.solve(products, these)) / _RIDGE
