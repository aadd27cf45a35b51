"""What a criterion may ask for: weights, and what the training data tells of them. NumPy only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from aimp_tf.selection.grams import Gram

Arrays = Mapping[str, np.ndarray]
"""Path of a variable -> an array of its shape."""

Batches = Mapping[str, Sequence[np.ndarray]]
"""Path of a kernel -> of each batch, a float32 array (examples, channels), of the channels that the kernel reads."""


class Sample(Protocol):
    """A few batches of the training data, with the model that they are for."""

    def collect(self, names: Iterable[str]) -> Mapping[str, Any]: ...

    def inputs(self) -> Iterator[Mapping[str, Sequence[np.ndarray]]]: ...


class Statistics:
    """What a criterion may ask for. Nothing is computed, and no data is read, before it is.

    What is said of the training data is of a sample of it, its first batches (of arrays the same in every round), in
    inference mode: no dropout, moving statistics as they are. What a criterion names in `needs` is computed in one pass
    over them, and anything else in another.

    Attributes:
        weights: Path -> float array, each read when it is asked for. They are not to be written into.
        masks: Path -> bool array of the same shape; True marks a survivor.
        generator: Draws what is random, in each round anew.
        gradients: Path -> float32 array: the gradient of the loss that the model was compiled with, the mean over the
            batches; of pruned weights as well.
        absolute_gradients: As `gradients`, the mean of the magnitudes that the gradient has in each batch.
        squared_gradients: As `gradients`, the mean of the squares that it has in each batch, times the examples in the
            batch: where the mean gradient is zero, that estimates the mean square of the gradients of single examples.
        activations: What the channels that a kernel reads are on each example, the mean over positions; of kernels of
            Dense, EinsumDense and convolution layers whose inputs come example by example.
        densities: As `activations`, the share of the positions at which a channel is not zero.
        contributions: As `activations`, the sum over positions of a * dl/da, where a is the channel and l the loss of
            the example: the change of that loss without the channel, to first order, with the other sign. The loss of a
            batch is taken to be the mean of those of its examples.
        labels: Of each batch, the class of each example, int (examples,).
        grams: Path -> the Gram matrix of what the kernel multiplies, of kernels of Dense and convolution layers. Of
            each example, a few positions are taken, which depend on nothing but the batch.
        branches: What residual blocks add, the mean over positions: name of the Add -> of each batch, float32
            (examples, channels).
        outputs: Of each batch, what the model gives, means over positions of all its outputs: float32 (examples,
            values).

    Raises:
        ValueError: What is said of the training data is asked for and there is none to take a sample of, nothing to
            compute a loss from for gradients and contributions, or targets that are not classes for labels; or for
            branches, a block ends with what is no layer, or one that is called more than once.
    """

    gradients: Arrays
    absolute_gradients: Arrays
    squared_gradients: Arrays
    activations: Batches
    densities: Batches
    contributions: Batches
    labels: Sequence[np.ndarray]
    grams: Mapping[str, Gram]
    branches: Batches
    outputs: Sequence[np.ndarray]

    def __init__(
        self,
        weights: Arrays,
        masks: Arrays,
        generator: np.random.Generator,
        sample: Sample | None = None,
        needs: Iterable[str] = (),
    ) -> None:
        """Of weights and masks, of a sample of the training data where there is one, and of what is needed of it."""
        self.weights = weights
        self.masks = masks
        self.generator = generator
        self._given = sample
        self._needs = set(needs)
        self._known: dict[str, Any] = {}

    def inputs(self) -> Iterator[Mapping[str, Sequence[np.ndarray]]]:
        """What the weights multiply, batch by batch: path -> float array (examples, ..., channels), one for each call
        of the layer. Of kernels of Dense, EinsumDense and convolution layers.

        Raises:
            ValueError: There is no training data to take a sample of.
        """
        return self._sample.inputs()

    def __getattr__(self, name: str) -> Any:
        if name not in Statistics.__annotations__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        if name not in self._known:
            collected = self._sample.collect({name, *self._needs} - self._known.keys())
            self._known |= {
                each: _OfKernels(each, value) if isinstance(value, Mapping) else value
                for each, value in collected.items()
            }
        return self._known[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *Statistics.__annotations__]

    @property
    def _sample(self) -> Sample:
        if self._given is None:
            raise ValueError(
                "The criterion, or regrow, asks for training data, and the callback knows of none. Call "
                "aimp_tf.prune(model, x, y, ...), or set pruning.sample to a few batches, such as dataset.take(8)."
            )
        return self._given


class _OfKernels(dict[str, Any]):
    """What there is of a statistic, by the paths of variables."""

    def __init__(self, name: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self._name = name

    def __missing__(self, path: str) -> Any:
        raise KeyError(
            f"There are no {self._name} of {path}: aimp_tf.criteria.Statistics tells what there are some of."
        )
