"""MaskedModel: a Keras model whose prunable weights are masked, with one face for both generations of Keras."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.fits import Fits
from aimp_tf.compat.importing import import_with_tfmot
from aimp_tf.compat.keras_distribution import repaired
from aimp_tf.compat.mixed_precision import resolve_policy
from aimp_tf.compat.model_optimizers import ModelOptimizers
from aimp_tf.compat.models import finalize, generator_states, layers_of
from aimp_tf.compat.optimizer import ResettableOptimizer
from aimp_tf.compat.step import forget_traced
from aimp_tf.compat.swap import Swap
from aimp_tf.compat.trained_part import Indices, TrainedPart
from aimp_tf.compat.variables import Values, key_of, local_value, local_view, set_constraint
from aimp_tf.files import checksum_of_arrays
from aimp_tf.graph.prunable import Selection, prunable_variables
from aimp_tf.masking.constraints import MaskConstraint, zeroed

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
        settings: The fields of a config that it was masked with, "mixed_precision" among them.
        units: What is kept or removed together in the variables.
        prunable: Path -> variable, of those whose weights count as prunable: all of `variables`, but for those that go
            along with whole channels.
        left_dense: Path -> why, of weight matrices that have no masks.
        masks_given: Whether masks were given when it was masked, which a `fit` without pruning then keeps.
        rounds_left: How many rounds of a run on it are not done yet; None where no run began.
        while_masked: What is to be undone before anything else of the model is, by `strip` at the latest.
        fits: What is to follow its `fit`.
        part: What of it `fit` trains.
    """

    def __init__(
        self, model: Any, selection: Selection, settings: Mapping[str, Any], undo: contextlib.ExitStack
    ) -> None:
        """Masks nothing yet: every mask starts all True.

        Args:
            model: A compiled, built Keras model of the subclass's generation, in the scope of its strategy.
            selection: What is to be pruned in it.
            settings: The fields of a config that say so.
            undo: Undoes what was done to the model before, and this as well if it fails; `strip` does that then.
        """
        self.model = model
        self.original = model
        self.variables = dict(selection.variables)
        self._masks: dict[str, Any] = {}
        self.cluster = Cluster(model.distribute_strategy)
        self.settings = settings
        self.units, self.prunable, self.left_dense = selection.units, selection.prunable, selection.left_dense
        self.masks_given = False
        self.rounds_left: int | None = None
        self.while_masked = contextlib.ExitStack()
        self.fits = Fits()
        self.optimizers = ModelOptimizers(model)
        undo.callback(lambda: self.optimizers.release())  # Those of then.
        self._steps_before = self.optimizers.steps
        self._attach(undo)
        self.part = TrainedPart(self.model, self.original)
        undo.enter_context(Swap(self.model, "fit", self.fits.around(self.model.fit)))
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
        finalize(layers_of(self.original))

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
        changed = not self.optimizers.are_those_of(self.model)
        _check_compiled(self, changed)
        if not changed:
            return False
        self.part.end()
        self.while_masked.close()
        with self.model.distribute_strategy.scope():
            self.optimizers.release()
            self.optimizers = ModelOptimizers(self.model)
        self._compiled_again()
        return True

    def train_part(self, weights: Sequence[tuple[Any, Indices]], attributes: Sequence[tuple[Any, str, Any]]) -> None:
        """Lets `fit` train a part of the model only, as `TrainedPart` says, with its slots and masks."""
        self.part.end()
        with_it = self.optimizers.slots()
        for path, variable in self.variables.items():
            with_it.setdefault(key_of(variable), []).append(self._masks[path])
        smaller = []
        for weight, indices in weights:
            smaller += [(each, indices) for each in (weight, *with_it.get(key_of(weight), ()))]
        for optimizer in self.optimizers.all:
            optimizer.forget_traced()
        self.part.begin(smaller, attributes)

    @property
    def was_trained(self) -> bool:
        """Whether it was trained since it was masked."""
        return self.fits.count > 0 or self.optimizers.steps != self._steps_before

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

    def strip(self) -> Any:
        """Takes the masks away and returns the user's own model, its pruned weights zero, its optimizer as it was."""
        with self._undo, self.while_masked:
            self.part.end()
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

    def _put_constraints(self, masks: Mapping[int, Any], undo: contextlib.ExitStack) -> None:
        """Makes every optimizer step honour masks: those of these, by the ids of their variables, or else new ones."""
        undo.callback(_take_constraints_off, self.variables.values())
        for path, variable in self.variables.items():
            # A new one lives outside the layers: built, they take no new variables, and nothing of it is exported.
            mask = masks.get(id(variable))
            if mask is None:
                mask = tf.Variable(tf.ones(variable.shape, tf.bool), trainable=False, name=f"{path}/mask")
            self._masks[path] = mask
            set_constraint(variable, MaskConstraint(mask, variable.constraint))

    @abc.abstractmethod
    def _attach(self, undo: contextlib.ExitStack) -> None:
        """Calls `_put_constraints`, and does what else it takes to train with them; `undo` gets what undoes it, also
        where it fails half-way. May replace `self.model`."""

    @abc.abstractmethod
    def _compiled_again(self) -> None:
        """Does again what `_attach` did for a model that was then compiled otherwise."""


class ConstrainedModel(MaskedModel):
    """A Keras 3 model whose prunable variables carry a `MaskConstraint`. The model is changed in place."""

    def _attach(self, undo: contextlib.ExitStack) -> None:
        self._repairs = undo.enter_context(contextlib.ExitStack())
        # A train function traced earlier does not know the constraints and would never call them.
        undo.callback(forget_traced, self.model)
        self._put_constraints({}, undo)
        forget_traced(self.model)
        self._compiled_again()

    def _compiled_again(self) -> None:
        self._repairs.close()
        self._repairs.enter_context(repaired(self.model))

    def synchronize(self) -> None:
        """Keras 3 averages nothing, and saves the first replica's moving statistics."""
        if self.cluster.replicas > 1:
            variables = self.original.non_trainable_weights
            values = self.cluster.from_chief([local_value(variable) for variable in variables])
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)


class WrappedModel(MaskedModel):
    """A tf_keras model rebuilt with a pruning layer of tfmot round each layer that has prunable weights.

    The rebuilt model shares every layer and variable with the user's model, which `strip` hands back. A layer that only
    a train_step of the user's calls is in no graph, so not wrapped.
    """

    def _attach(self, undo: contextlib.ExitStack) -> None:
        layers = import_with_tfmot("aimp_tf.compat.tfmot_layers").WrappedLayers(
            self.variables.values(), lambda layer: prunable_variables(layer).values(), undo
        )
        self.model = layers.rebuild(self.original)
        self._put_constraints(layers.masks(), undo)

    def _compiled_again(self) -> None:
        import_with_tfmot("aimp_tf.compat.tfmot_layers").compile_like(self.model, self.original)

    def synchronize(self) -> None:
        """tf_keras gives the mean of all replicas whenever a moving statistic is read."""
        if self.cluster.replicas > 1:
            for variable in self.original.non_trainable_weights:
                if getattr(variable, "synchronization", None) == tf.VariableSynchronization.ON_READ:
                    variable.assign(variable.numpy())


def _take_constraints_off(variables: Iterable[Any]) -> None:
    for variable in variables:
        if isinstance(variable.constraint, MaskConstraint):
            set_constraint(variable, variable.constraint.previous)


def _check_compiled(masked: MaskedModel, changed: bool) -> None:
    """Raises ValueError where a model that has, or has not, other optimizers now was compiled as it cannot be."""
    name = masked.original.name
    if masked.original.optimizer not in (masked.model.optimizer, masked.optimizer.optimizer):
        raise ValueError(
            f"The model {name!r} was compiled after aimp_tf.wrap, which returned another one to train. Compile that "
            "one, or compile before aimp_tf.wrap."
        )
    if changed and resolve_policy(masked.settings["mixed_precision"]) == "mixed_float16":
        raise ValueError(
            f"The model {name!r} was compiled after aimp_tf.wrap, which had put loss scaling round its optimizer for "
            "mixed_float16. Compile it before aimp_tf.wrap(model, mixed_precision='mixed_float16')."
        )


def check_agreement(masked: MaskedModel) -> None:
    """Raises RuntimeError, on every worker, where weights or masks are not the same on all of them."""
    if masked.cluster.size == 1:
        return
    if others := masked.cluster.differing(f"{masked.checksum()} {checksum_of_arrays(masked.masks().values())}"):
        raise RuntimeError(
            f"Worker {others} has other weights or masks than worker 0, the chief. Load weights on all workers alike; "
            "and let no callback, and no criterion of your own, do other things on one of them."
        )
