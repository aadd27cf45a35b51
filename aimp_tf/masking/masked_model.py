"""MaskedModel: a Keras model whose prunable weights are masked, with one face for both generations of Keras."""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.model_optimizers import ModelOptimizers
from aimp_tf.compat.models import generator_states, layers_of
from aimp_tf.compat.optimizer import ResettableOptimizer
from aimp_tf.compat.precision import resolve_policy
from aimp_tf.compat.smaller import Indices, SmallerVariables
from aimp_tf.compat.step import begin_steps_with, forget_traced
from aimp_tf.compat.swap import Swap
from aimp_tf.compat.variables import Values, key_of, local_value, local_view
from aimp_tf.files import checksum_of_arrays
from aimp_tf.selection.channels import ChannelUnits
from aimp_tf.selection.units import Units

_ATTRIBUTE = "_aimp_tf_masked_model"


class MaskedModel(abc.ABC):
    """Holds the masks of a compiled, built Keras model and everything that a rewind touches.

    From then until `strip`, masked entries are exactly 0.0 after every optimizer step. Weights and masks are dicts from
    variable path to array, in the model's order.

    Attributes:
        model: The model to call `fit` on.
        original: The user's model, which `strip` hands back; in Keras 3 the same object.
        variables: Path -> variable, those to prune.
        optimizers: The resets and schedules of its optimizers.
        cluster: The workers that train it, all of which must call the same methods in the same order.
        mixed_precision: The setting that the model is trained with.
        granularity: The setting that the variables were chosen for, like `include` and `exclude`.
        budget: The setting that the model was masked with, like `channel_multiple`.
        units: What is kept or removed together in the variables.
        prunable: Path -> variable, of those whose weights count as prunable: all of `variables`, but for those that go
            along with whole channels.
        left_dense: Path -> why, of weight matrices that have no masks.
        masks_given: Whether masks were given when it was masked, which a `fit` without pruning then keeps.
        rounds_left: How many rounds of a run on it are not done yet; None where no run began.
        while_masked: What is to be undone before anything else of the model is, by `strip` at the latest.
    """

    def __init__(self, model: Any, variables: Mapping[str, Any]) -> None:
        """Masks nothing yet: every mask starts all True.

        Args:
            model: A compiled, built Keras model of the subclass's generation.
            variables: Path -> variable, those to prune.
        """
        self.model = model
        self.original = model
        self.variables = dict(variables)
        self._masks: dict[str, Any] = {}
        self.cluster = Cluster(model.distribute_strategy)
        self.mixed_precision: str | None = None
        self.granularity: object = "unstructured"
        self.include: tuple[str, ...] = ()
        self.exclude: tuple[str, ...] = ()
        self.budget: object = "weights"
        self.channel_multiple = 1
        self.units: Units | ChannelUnits = Units()
        self.prunable: Mapping[str, Any] = self.variables
        self.left_dense: dict[str, str] = {}
        self.masks_given = False
        self.rounds_left: int | None = None
        self.on_strip: Callable[[], object] = lambda: None
        self.while_masked = contextlib.ExitStack()
        self._part: SmallerVariables | None = None
        self._evaluations = contextlib.ExitStack()
        self._fits = 0
        self._after_fit: list[Callable[[], object]] | None = None  # None where no `fit` runs.
        with contextlib.ExitStack() as undo, model.distribute_strategy.scope():
            self.optimizers = ModelOptimizers(model)
            undo.callback(lambda: self.optimizers.release())  # Those of then.
            self._steps_before = self.optimizers.steps
            undo.callback(self._detach)
            self._attach()
            undo.enter_context(Swap(self.model, "fit", self._settled_after(self.model.fit)))
            for either in (self.model, self.original):
                undo.enter_context(Swap(either, _ATTRIBUTE, self))
            self.synchronize()
            self._undo = undo.pop_all()

    @staticmethod
    def of(model: Any) -> MaskedModel | None:
        """The MaskedModel that `model` belongs to, if it is masked."""
        return getattr(model, _ATTRIBUTE, None)

    @property
    def optimizer(self) -> ResettableOptimizer:
        """The resets and schedule of the optimizer that the model was compiled with."""
        return self.optimizers.main

    @property
    def total(self) -> int:
        """How much the model has of what the budget counts: prunable weights, unless it says otherwise."""
        return self.units.total(self.sizes)

    @property
    def kept(self) -> int:
        """How much of that is not masked."""
        return self.units.spent(Values(self._masks))

    @property
    def sizes(self) -> dict[str, int]:
        """Path -> number of weights, of the variables that have masks."""
        return {path: int(np.prod(variable.shape)) for path, variable in self.variables.items()}

    def weights(self) -> Mapping[str, np.ndarray]:
        """The prunable variables, each read when it is asked for, so that they are never all on the host at once.

        The arrays are read-only, and those of a CPU are no copies. One that is held keeps the value that it has.
        """
        return Values(self.variables)

    def masks(self) -> dict[str, np.ndarray]:
        """Copies of the masks, bool; True is kept."""
        return {path: local_value(mask) for path, mask in self._masks.items()}

    def set_masks(self, masks: Mapping[str, np.ndarray]) -> None:
        """Sets every mask and zeroes the weights that it prunes."""
        for path, mask in self._masks.items():
            mask.assign(masks[path])
        self._zero_pruned()

    def constrain(self) -> None:
        """Lets the weights that are left meet the user's own constraints, as they do after every step."""
        for variable in self.variables.values():
            if variable.constraint.previous is not None:
                variable.assign(variable.constraint(variable))

    def shrink(self, factors: Mapping[str, float]) -> None:
        """Multiplies the prunable variables by the factors of their paths."""
        for path, variable in self.prunable.items():
            variable.assign(factors[path] * tf.convert_to_tensor(variable))

    def snapshot(self) -> list[np.ndarray]:
        """Copies of all weights of the model, moving statistics included, in the order of `model.weights`.

        It is the same on every replica after `synchronize`, and asks no other worker.
        """
        return [local_value(variable) for variable in self._all_variables()]

    def restore(self, snapshot: Iterable[np.ndarray]) -> None:
        """Returns every weight to `snapshot`, the pruned ones to zero."""
        for variable, value in zip(self._all_variables(), snapshot, strict=True):
            variable.assign(value)
        self._zero_pruned()
        for layer in layers_of(self.original):
            # Normalization computes with numbers that it derives from its weights.
            if layer.weights and hasattr(layer, "finalize_state"):
                layer.finalize_state()

    def is_trained(self) -> list[bool]:
        """Whether training changes each weight by gradients, in the order of `snapshot`: not statistics, nor what is
        frozen."""
        trained = set(map(id, self.original.trainable_weights))
        return [id(variable) in trained for variable in self._all_variables()]

    def checksum(self) -> int:
        """Of all weights, as `snapshot` gives them."""
        return checksum_of_arrays(map(local_view, self._all_variables()))

    def adopt_optimizers(self) -> bool:
        """Takes the optimizers that the model trains with now, for it may have been compiled since it was masked.

        Returns:
            Whether they are others than before.

        Raises:
            ValueError: As `ModelOptimizers`, of the new ones; or the model computes in float16, for which the loss of
                the new one would have to be scaled; or the user's own was compiled, which `fit` is not called on.
        """
        if self.original.optimizer not in (self.model.optimizer, self.optimizers.main.optimizer):
            raise ValueError(
                f"The model {self.original.name!r} was compiled after aimp_tf.wrap, which returned another one to "
                "train. Compile that one, or compile before aimp_tf.wrap."
            )
        if self.optimizers.are_those_of(self.model):
            return False
        if resolve_policy(self.mixed_precision) == "mixed_float16":
            raise ValueError(
                f"The model {self.original.name!r} was compiled after aimp_tf.wrap, which had put loss scaling round "
                "its optimizer for mixed_float16. Compile it before aimp_tf.wrap(model, mixed_precision="
                "'mixed_float16')."
            )
        self.train_whole()
        self.while_masked.close()
        with self.model.distribute_strategy.scope():
            self.optimizers.release()
            self.optimizers = ModelOptimizers(self.model)
        self._compiled_again()
        return True

    def when_fit_is_over(self, act: Callable[[], object]) -> None:
        """Calls `act` once the `fit` that runs has called the `on_train_end` of all callbacks; now if none runs."""
        if self._after_fit is None:
            act()
        else:
            self._after_fit.append(act)

    def _settled_after(self, fit: Callable[..., Any]) -> Callable[..., Any]:
        """The model's `fit`, and then what `when_fit_is_over` was given: no callback writes weights after that."""

        @functools.wraps(fit)
        def fit_and_settle(*arguments: Any, **settings: Any) -> Any:
            acts: list[Callable[[], object]] = []
            outer, self._after_fit = self._after_fit, acts  # A callback may call `fit`, too.
            try:
                history = fit(*arguments, **settings)
            finally:
                self._after_fit = outer
            self._fits += 1
            for act in acts:
                act()
            return history

        return fit_and_settle

    def train_part(
        self, weights: Sequence[tuple[Any, Indices]], attributes: Sequence[tuple[Any, Mapping[str, Any]]]
    ) -> None:
        """Lets `fit` train a part of the model only, and so in less time. It is traced anew for that.

        From the first batch of each epoch on, until `make_whole`, everything that belongs to the model is as small as
        the part. What the rest computes must not matter to it.

        Args:
            weights: (variable, the indices that stay along each of its axes), of the variables that become smaller.
            attributes: (layer, its attributes that change with that -> what they become).
        """
        self.train_whole()
        slots = self.optimizer.slots()
        masks = {key_of(variable): self._masks[path] for path, variable in self.variables.items()}
        smaller = []
        for weight, indices in weights:
            key = key_of(weight)
            with_it = [weight, *slots.get(key, ()), *([masks[key]] if key in masks else [])]
            smaller += [(variable, indices) for variable in with_it]
        layers = [layer for layer in layers_of(self.model) if layer is not self.model]
        part = self._part = SmallerVariables(smaller, attributes, layers)
        self.optimizer.forget_traced()
        begin_steps_with(self.model, part.put_in)
        for name in ("make_test_function", "make_predict_function"):
            self._evaluations.enter_context(Swap(self.model, name, self._on_the_whole(getattr(self.model, name))))

    def train_whole(self) -> None:
        """Lets `fit` train the whole model again."""
        self.make_whole()
        if self._part is not None:
            self._part = None
            self._evaluations.close()
            forget_traced(self.model)

    def _on_the_whole(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """`make_test_function` and the like of the model, which are called before anything is evaluated."""

        def make_for_whole(*arguments: Any, **settings: Any) -> Any:
            self.make_whole()
            return make(*arguments, **settings)

        return make_for_whole

    def make_whole(self) -> None:
        """Brings the model back to its own size, with what training has made of its part."""
        if self._part is not None:
            self._part.put_back()

    def check_agreement(self) -> None:
        """Raises RuntimeError, on every worker, where weights or masks are not the same on all of them."""
        if self.cluster.size == 1:
            return
        own = checksum_of_arrays(map(local_view, (*self._all_variables(), *self._masks.values())))
        sums = self.cluster.gather(str(own))
        if others := [str(index) for index, sum_ in enumerate(sums) if sum_ != sums[0]]:
            raise RuntimeError(
                f"Worker {', '.join(others)} has other weights or masks than worker 0, the chief. Load weights on all "
                "workers alike; and let no callback, and no criterion of your own, do other things on one of them."
            )

    def state(self, *, slots: bool = True) -> dict[str, Any]:
        """Name -> variable, of what training changes beside `model.weights` and the masks.

        These are the optimizer's variables and the states of random-number generators that the model holds. A tf_keras
        layer has one only after `tf_keras.backend.experimental.enable_tf_random_generator()`.

        Args:
            slots: Whether those of the optimizer that a reset clears are wanted, too.
        """
        weights = {id(variable) for variable in self._all_variables()}
        generators = [variable for variable in self.original.variables if id(variable) not in weights]
        generators += generator_states(self.original)
        generators = [variable for variable in {id(v): v for v in generators}.values() if hasattr(variable, "assign")]
        return {
            **{f"optimizer/{i:04d}": variable for i, variable in enumerate(self.optimizers.state(slots=slots))},
            **{f"generator/{i:04d}": variable for i, variable in enumerate(generators)},
        }

    def check_sparse(self) -> None:
        """Raises RuntimeError, naming the variables, if a pruned weight is not exactly zero."""
        pruned = (
            (path, tf.not_equal(zeroed(variable, self._masks[path]), variable))
            for path, variable in self.variables.items()
        )
        wrong = [path for path, differs in pruned if tf.reduce_any(differs)]
        if wrong:
            raise RuntimeError(
                f"Pruned weights are not zero in {', '.join(wrong)}. Something assigns to these variables without "
                "their constraint: a custom train_step that does not use the optimizer, or what sets weights, such as "
                "load_weights, or a callback with those of an epoch that was less sparse."
            )

    def check_finished(self) -> None:
        """Raises RuntimeError if the model was trained and not pruned as far as it was to be, or is not sparse now."""
        trained = self._fits > 0 or self.optimizers.steps != self._steps_before
        if trained and self.rounds_left:
            raise RuntimeError(
                f"Pruning is not finished: trainings of the run that are not done: {self.rounds_left}, and "
                f"{1 - self.kept / self.total:.2%} of what is to be pruned is pruned. Go on with "
                "fit(..., epochs=pruning.next_epochs, callbacks=[pruning]) until pruning.finished, or take the model "
                "as it is by aimp_tf.strip(model, unfinished=True)."
            )
        prunes_nothing = all(bool(tf.reduce_all(mask)) for mask in self._masks.values())
        if trained and self.rounds_left is None and not self.masks_given and prunes_nothing:
            raise RuntimeError(
                "The model was trained, but nothing was pruned, for no GlobalMagnitudePruning was among the callbacks. "
                "Call fit(..., epochs=pruning.next_epochs, callbacks=[pruning]), or take the dense model as it is "
                "by aimp_tf.strip(model, unfinished=True)."
            )
        try:
            self.check_sparse()
        except RuntimeError as error:
            raise RuntimeError(f"{error} aimp_tf.strip(model, unfinished=True) makes them zero.") from error

    def strip(self) -> Any:
        """Takes the masks away and returns the user's own model, its pruned weights zero, its optimizer as it was.

        `on_strip` is called then, which undoes what was done to the model before it was masked.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(self.on_strip)
            undo.enter_context(self._undo)
            undo.enter_context(self.while_masked)
            self.train_whole()
            self._zero_pruned()
        return self.original

    def _zero_pruned(self) -> None:
        for path, variable in self.variables.items():
            variable.assign(zeroed(variable, self._masks[path]))

    def _all_variables(self) -> list[Any]:
        """`weights` also lists lookup tables in tf_keras, which training does not change."""
        return [variable for variable in self.original.weights if hasattr(variable, "assign")]

    @abc.abstractmethod
    def synchronize(self) -> None:
        """Makes what replicas keep each for itself, moving statistics, the same on all: what saving the model gives.

        Training goes on as if nothing had happened.
        """

    @abc.abstractmethod
    def _attach(self) -> None:
        """Fills `_masks` with variables and makes every optimizer step honour them. May replace `self.model`."""

    @abc.abstractmethod
    def _compiled_again(self) -> None:
        """Does again what `_attach` did for a model that was then compiled otherwise."""

    @abc.abstractmethod
    def _detach(self) -> None:
        """Undoes `_attach`, also one that failed half-way."""


def zeroed(weight: Any, mask: Any) -> tf.Tensor:
    """`weight` with 0.0 where the bool `mask` is False, computed where they lie.

    Not a product: zero times NaN is NaN, and zero times -1 is -0. Nor SelectV2, which can broadcast and so takes twice
    the time on a CPU.
    """
    weight = tf.convert_to_tensor(weight)
    # Not zeros_like, which becomes a constant of a traced step: as much memory as the weights, for good. After the
    # weight, or those of all variables would be there from the beginning of the step.
    with tf.control_dependencies([weight]):
        zeros = tf.raw_ops.Empty(shape=weight.shape, dtype=weight.dtype, init=True)
    return tf.raw_ops.Select(condition=mask, x=weight, y=zeros)
