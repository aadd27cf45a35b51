"""What the trainings of a run add to the loss: a penalty on the weights, and the distance from a teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from aimp_tf.compat.added_loss import Term, added_to_loss
from aimp_tf.compat.models import compiled_loss
from aimp_tf.config import PruningConfig
from aimp_tf.config.distillation import Distillation
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.planning import Round
from aimp_tf.training.regularizers import Regularizer, TrainedWeights, regularizer_of
from aimp_tf.training.teaching import Distilled, Teacher


class Terms:
    """Adds the terms that a config asks for to the loss of a masked model.

    Attributes:
        teacher: A Keras model to learn from, or a `Teacher`; None is none.
    """

    def __init__(self, config: PruningConfig) -> None:
        self.teacher: Any = None
        self._config = config
        self._regularizer = regularizer_of(config.regularizer)
        self._strength: Any = None
        self._added = contextlib.ExitStack()
        self._installed = False
        self._compiled: Any = None

    @property
    def names(self) -> list[str]:
        """What the terms are called in the logs."""
        asked = {"distillation": self.teacher is not None, "penalty": self._regularizer is not None}
        return [name for name, is_asked in asked.items() if is_asked]

    def check_heard(self, plan: Sequence[Round]) -> None:
        """Raises ValueError for what goes on before the last training, where nothing comes before it, and for what
        follows from an earlier ranking, where there is but one."""
        config, regularizer = self._config, self._regularizer
        alone, once = len(plan) == 1, len(plan) - (config.start == "untrained") < 2
        unheard = {
            "regularizer": alone and regularizer is not None and not regularizer.in_last_training,
            "projection": alone and config.projection is not None,
            "stop_mask_distance": alone and config.stop_mask_distance is not None,
            "regrow": once and config.regrow > 0,
        }
        if config.has_rounds and (given := [name for name, is_given in unheard.items() if is_given]):
            alone_after = ", and the last training alone comes after it" if alone else ""
            or_start = "" if config.regrow else ", or leave out start"
            raise ValueError(
                f"{' and '.join(given)} would do nothing: start={config.start!r} and rate={config.rate} prune in one "
                f"step{alone_after}. Lower rate{or_start}."
            )

    def begin(self, masked: MaskedModel) -> None:
        """Has the trainings from now on add the terms, unless they do.

        Raises:
            TypeError, ValueError: The model cannot learn from the teacher, or has nothing that the penalty is of.
        """
        if self._installed and self._compiled is compiled_loss(masked.model):
            return
        self.remove()  # Where it was compiled anew, with the same optimizer.
        self._compiled = compiled_loss(masked.model)
        if self.teacher is None and self._config.distillation is not None:
            raise ValueError(
                "distillation says how a model learns from a teacher, and there is none. Give teacher=model."
            )
        if self._regularizer is not None:
            _penalty(self._regularizer, masked)
        masked.while_masked.enter_context(self._added)
        if self.teacher is not None:
            if not isinstance(self.teacher, Teacher):
                self.teacher = Teacher(self.teacher, masked.original)
            distilled = Distilled(self.teacher, Distillation.of(self._config.distillation), masked.model)
            self._added.enter_context(distilled.seeing())
            self._added.enter_context(added_to_loss(masked.model, "distillation", distilled))
        if self._regularizer is not None:
            penalized = self._penalized(self._regularizer, masked)
            self._added.enter_context(added_to_loss(masked.model, "penalty", penalized))
        self._installed = True
        self._added.callback(setattr, self, "_installed", False)

    def weigh(self, settled: bool) -> None:
        """Says, for the next steps, whether all that is to go is gone: most penalties then count no more."""
        if self._regularizer is not None:
            self._strength.assign(float(self._regularizer.in_last_training or not settled))

    def remove(self) -> None:
        """Lets trainings add nothing, until the next `begin`."""
        self._added.close()

    def _penalized(self, regularizer: Regularizer, masked: MaskedModel) -> Term:
        if self._strength is None:
            with masked.model.distribute_strategy.scope():
                self._strength = tf.Variable(1.0, trainable=False)
        strength = self._strength

        def penalize(*_: Any) -> tuple[tf.Tensor, tf.Tensor]:
            penalty = strength * _penalty(regularizer, masked)
            return penalty, penalty

        return penalize


def _penalty(regularizer: Regularizer, masked: MaskedModel) -> tf.Tensor:
    penalty = tf.convert_to_tensor(regularizer.penalty(TrainedWeights(masked)))
    if penalty.shape.rank != 0:
        raise ValueError(
            f"penalty of {type(regularizer).__name__} must return a scalar; got a tensor of shape {penalty.shape}."
        )
    return regularizer.strength * tf.cast(penalty, tf.float32)
