"""GlobalMagnitudePruning: turns the events of `fit` into the steps of a run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

from aimp_tf.arguments import config_of
from aimp_tf.compat.callbacks import EpochCallback
from aimp_tf.config import PruningConfig
from aimp_tf.masking import MaskedModel, check_agreement
from aimp_tf.selection.planning import Round, epoch_at_target
from aimp_tf.training.methods import METHODS
from aimp_tf.training.other_callbacks import OtherCallbacks, as_callbacks, check_for_rounds, check_saving, watch_from
from aimp_tf.training.rounds import RoundResult
from aimp_tf.training.run import Run


class GlobalMagnitudePruning(EpochCallback):
    """Runs Accelerated Iterative Magnitude Pruning over consecutive `fit` calls, in Keras 3 and in tf_keras.

    Each `fit` is one round. The first one starts with a snapshot of the weights. Each later one starts by ranking the
    survivors, masking the smallest, rewinding, and resetting the optimizer; when all callbacks have heard of its end,
    the pruned weights are checked to be zero, and its result is that of the weights that are there then. It is best the
    first callback, as `among` has it: those before it see, with `compact_rounds`, the smaller model at the end of an
    epoch, and weights that they set there are not those that the epoch's metrics are of. With `method="gradual"`, one
    `fit` is all, and the ranking goes on while it trains; with `method="soft"` there are two; with `method="dense"`,
    nothing is pruned.

    Args:
        config: What to do. `include`, `exclude`, `granularity`, `budget`, `channel_multiple` and `mixed_precision` are
            for `aimp_tf.wrap`, which has chosen the variables already: they must be what it was given, or () and None.
        **fields: Fields of the config, which count rather than its own; enough without one.

    Attributes:
        config: What it does.
        run: What it does it with.
        others: Keras' own callbacks beside it, as `among` has made them ready.
        rounds: The results of the rounds so far.
        epoch_logs: The logs of each epoch of the round that trains or was trained last.
        batches: How many batches an epoch has, where the data does not tell `fit`; None if that is not known either.
            `prune` sets it, and so may you.
        sample: Some batches of the training data, such as `dataset.take(8)`, for criteria that ask for gradients or
            activations; None where none are at hand. `prune` sets it, and so may you.
        teacher: A built Keras model of the same generation and outputs, that the trainings learn from as
            `config.distillation` says; None is none. Set it before the first `fit`, as `prune` does.
        measure: Gives the metrics of the weights that the model has now, for those that no epoch ended with, from the
            logs of the last epoch; None where nothing can. `prune` sets it, and so may you.

    Raises:
        TypeError, ValueError: The config is not valid.

    Example:
        ```python
        masked = aimp_tf.wrap(model)
        pruning = aimp_tf.GlobalMagnitudePruning(target_sparsity=0.9, epochs=30, round_epochs=6)
        while not pruning.finished:
            masked.fit(dataset, epochs=pruning.next_epochs, callbacks=[pruning])
        model = aimp_tf.strip(masked)
        ```

    References:
        Zullich, Medvet, Pellegrino and Ansuini, "Speeding-up pruning for Artificial Neural Networks: Introducing
        Accelerated Iterative Magnitude Pruning", ICPR 2020. Rewinding: Renda, Frankle and Carbin, "Comparing Rewinding
        and Fine-tuning in Neural Network Pruning", ICLR 2020, section 2.
    """

    def __init__(self, config: PruningConfig | None = None, **fields: Any) -> None:
        super().__init__()
        self.config = config = config_of(config, fields)
        if config.total_epochs is not None:
            raise ValueError(
                "total_epochs is for aimp_tf.prune, which knows the model that the lengths follow from. "
                "print(aimp_tf.plan(model, config)) shows the epochs and round_epochs to write."
            )
        self.batches: int | None = None
        self.measure: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
        # What gives the batches is a bound method, with which the callback can be copied.
        self.run = Run(config, self._batches_of_epoch, METHODS[config.method])
        self.others = OtherCallbacks(self.run)
        self._watching = contextlib.ExitStack()
        if self.run.method.hears_batches:
            # Not a method of the class: a callback with this hook slows every batch down.
            self.on_train_batch_end = self._end_batch

    @property
    def rounds(self) -> list[RoundResult]:
        return self.run.rounds

    @property
    def sample(self) -> Any:
        return self.run.ranking.sample

    @sample.setter
    def sample(self, batches: Any) -> None:
        self.run.ranking.sample = batches

    @property
    def teacher(self) -> Any:
        return self.run.terms.teacher

    @teacher.setter
    def teacher(self, model: Any) -> None:
        self.run.terms.teacher = model

    @property
    def epoch_logs(self) -> list[dict[str, Any]]:
        return self.run.epoch_logs

    @property
    def finished(self) -> bool:
        """Whether the final training is done."""
        return self.run.finished

    @property
    def round_count(self) -> int:
        """Rounds of the run, the final training included; 0 before the first `fit`."""
        return self.run.round_count

    @property
    def next_epochs(self) -> int:
        """Epochs that the next `fit` must train, at most.

        Raises:
            RuntimeError: The run is finished.
        """
        if self.finished:
            raise RuntimeError("The run is finished; make a new GlobalMagnitudePruning for another one.")
        if self.run.plan:
            return self.round.epochs
        return self.config.resolved_round_epochs if self.config.has_rounds else self.config.resolved_epochs

    @property
    def round(self) -> Round:
        """The round that trains, or the next one. Known from the first `fit` on."""
        return self.run.round

    def among(self, callbacks: Any) -> list[Any]:
        """This callback and your own, made ready for the next `fit`: call it for each.

        Keras' callbacks and subclasses of them, such as EarlyStopping, ReduceLROnPlateau and ModelCheckpoint, start
        each round with copies of the attributes that they had when they first came here; after the run they hold those
        of the final training. A LearningRateScheduler follows `round_schedule`: its function, made for
        `config.epochs`, is called for each of these epochs as the round passes through them. With `method="gradual"`,
        EarlyStopping looks at no epoch before the one that reaches the target. TensorBoard, CSVLogger and
        RemoteMonitor are told the epochs of the run, in which those of earlier rounds count as far as they were
        trained, and add to what they wrote. Callbacks of your own are handed on as they are.

        Raises:
            TypeError: `callbacks` is neither a callback nor a list of them.
            ValueError: One of them does not go with rounds; or, with `compact_rounds`, saves the model between batches.
        """
        callbacks = as_callbacks(callbacks)
        check_for_rounds(callbacks)
        if self.run.compacts:
            try:
                check_saving(callbacks)
            except ValueError as why:
                self.run.stay_whole(why)
        ready = self.others.for_round(callbacks)
        self._watching.close()
        if self.config.method == "gradual":
            self._watching = watch_from(ready, epoch_at_target(self.config))
        elif self.rounds or self.config.start == "trained":
            self._watching = watch_from(ready, math.ceil(self.config.fade_epochs) - 1)
        return [self, *ready]

    def begin(self, masked: MaskedModel, stretch: float = 1.0) -> None:
        """Plans the run for the masked model, if that is not done. The first `fit` calls it otherwise.

        Args:
            masked: The model.
            stretch: How many times as fast the learning-rate schedule passes as the config says.

        Raises:
            ValueError: The target or the limits cannot be met with the model's sizes, the criterion cannot rank,
                a field that `wrap` heeds is not what the model was wrapped with, or `compact_rounds` is asked
                for a model that is not functional, or with an optimizer that does not allow it; or the run has begun
                with a model of other weights.
            TypeError: The criterion gives something other than scores.
        """
        if not self.run.plan:
            self.run.begin(masked, stretch)
        elif not self.finished and (paths := list(self.run.shrinking.factors)) != list(masked.prunable):
            raise ValueError(
                f"This run has begun with {', '.join(paths[:3])}, ...; the model {masked.original.name!r} has "
                f"{', '.join(list(masked.prunable)[:3])}, .... Make a GlobalMagnitudePruning for each model."
            )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        masked = self._masked()
        masked.part.put_back()  # A fit that was interrupted may not have.
        if masked.adopt_optimizers():
            self.run.optimizers_changed()
        if self.params["epochs"] != self.next_epochs:
            raise ValueError(
                f"fit was called with epochs={self.params['epochs']}, but the next round trains {self.next_epochs}. "
                "Call fit(..., epochs=pruning.next_epochs, callbacks=[pruning])."
            )
        self.begin(masked)
        self.run.begin_round(masked)
        check_agreement(masked)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        masked = self._masked()
        masked.part.put_back()
        if self.run.end_epoch(masked, epoch, logs):
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        masked = self._masked()
        masked.fits.when_over(lambda: self._end_round(masked))

    def _end_round(self, masked: MaskedModel) -> None:
        self.run.end_round(masked, self.measure)
        if self.finished:
            self._watching.close()

    def _end_batch(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """on_train_batch_end of a method that hears of batches."""
        self.run.method.end_batch(self._masked(), batch)

    def _batches_of_epoch(self) -> int | None:
        return (self.params or {}).get("steps") or self.batches

    def _masked(self) -> MaskedModel:
        masked = MaskedModel.of(self.model)
        if masked is None:
            raise RuntimeError(
                "GlobalMagnitudePruning needs a masked model: call fit on what aimp_tf.wrap(model) returns."
            )
        return masked

    def _implements_train_batch_hooks(self) -> bool:
        return self.run.method.hears_batches
