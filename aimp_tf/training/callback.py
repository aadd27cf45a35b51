"""GlobalMagnitudePruning: what happens between one `fit` and the next."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from aimp_tf.arguments import config_of
from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.keras_own import is_keras_own
from aimp_tf.config import PruningConfig
from aimp_tf.graph.model_graph import ModelGraph
from aimp_tf.masking import WRAPPED_FIELDS, MaskedModel
from aimp_tf.masking.live_part import LiveNetwork
from aimp_tf.selection.criteria import scores_of
from aimp_tf.selection.planning import Round, epoch_at_target, least_survivors, make_plan, ramp_survivors
from aimp_tf.selection.ranking import check_finite, keep_best, smallest_magnitude
from aimp_tf.selection.units import Units
from aimp_tf.training.other_callbacks import (
    OtherCallbacks,
    Trained,
    as_callbacks,
    check_for_rounds,
    check_saving,
    watch_from,
)
from aimp_tf.training.rounds import RoundResult, duration_text, last_epoch_with, plain_logs, shrink_text
from aimp_tf.training.shrinking import Shrinking

logger = logging.getLogger(__name__)

_RAMP_STEPS = 100
_WORTH_TRACING = 0.9
"""With `compact_rounds`, what is alive is traced when it takes this fraction of the multiplications of what was."""


class EpochCallback(keras.callbacks.Callback):
    """A callback for both generations of Keras that hears of no batches, unless a subclass says so."""

    # tf_keras asks a callback which batches it wants to hear of; Keras 3 finds out by itself.
    _supports_tf_logs = True
    _chief_worker_only = False

    def _implements_train_batch_hooks(self) -> bool:
        return False

    def _implements_test_batch_hooks(self) -> bool:
        return False

    def _implements_predict_batch_hooks(self) -> bool:
        return False


class GlobalMagnitudePruning(EpochCallback):
    """Runs Accelerated Iterative Magnitude Pruning over consecutive `fit` calls, in Keras 3 and in tf_keras.

    Each `fit` is one round. The first one starts with a snapshot of the weights. Each later one starts by ranking the
    survivors, masking the smallest, rewinding, and resetting the optimizer; when all callbacks have heard of its end,
    the pruned weights are checked to be zero, and its result is that of the weights that are there then. It is best the
    first callback, as `among` has it: those before it see, with `compact_rounds`, the smaller model at the end of an
    epoch, and weights that they set there are not those that the epoch's metrics are of. With `method="gradual"`, one
    `fit` is all, and the ranking goes on while it trains; with `method="dense"`, nothing is pruned.

    Args:
        config: What to do. `include`, `exclude`, `granularity` and `mixed_precision` are for `aimp_tf.wrap`, which has
            chosen the variables already: they must be what it was given, or () and None.
        **fields: Fields of the config, which count rather than its own; enough without one.

    Attributes:
        rounds: The results of the rounds so far.
        epoch_logs: The logs of each epoch of the round that trains or was trained last.
        batches: How many batches an epoch has, where the data does not tell `fit`; None if that is not known either.
            `prune` sets it, and so may you.
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
        config = config_of(config, fields)
        if config.total_epochs is not None:
            raise ValueError(
                "total_epochs is for aimp_tf.prune, which knows the model that the lengths follow from. "
                "print(aimp_tf.plan(model, config)) shows the epochs and round_epochs to write."
            )
        if config.method == "tfmot":
            raise ValueError(
                "method='tfmot' is tfmot's own callback, which GlobalMagnitudePruning is not; aimp_tf.prune runs it."
            )
        self.config = config
        self.rounds: list[RoundResult] = []
        self.epoch_logs: list[dict[str, Any]] = []
        self.batches: int | None = None
        self.measure: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
        self._plan: tuple[Round, ...] | None = None
        self._cluster: Cluster | None = None
        self._others = OtherCallbacks(self._trained)
        self._watching = contextlib.ExitStack()
        self._least: dict[str, int] = {}
        self._first: list[np.ndarray] | None = None
        self._snapshot: list[np.ndarray] | None = None
        # Of each optimizer.
        self._rewind_steps: list[int] = []
        self._steps_per_epoch: list[float] = []
        # Of the weights at the end of each epoch of the round.
        self._checksums: list[int | None] = []
        self._guarded: tuple[str, ...] = ()
        self._shrinking: Shrinking | None = None
        self._thresholds: list[float | None] = []
        self._would_be_masks: list[np.ndarray] | None = None
        self._compacts = config.compact_rounds and config.method == "iterative"
        self._graph: ModelGraph | None = None
        # Which classes of channels rounds train, and which `fit` has been traced for in this process. None is all.
        self._channels: np.ndarray | None = None
        self._traced_channels: np.ndarray | None = None
        self._kept_first = 0
        self._ramp_step = 0
        self._started_at = 0.0
        self._resumed = False
        if config.method == "gradual":
            # Not a method of the class: a callback with this hook slows every batch down.
            self.on_train_batch_end = self._raise_sparsity

    @property
    def finished(self) -> bool:
        """Whether the final training is done."""
        return self._plan is not None and len(self.rounds) == len(self._plan)

    @property
    def round_count(self) -> int:
        """Rounds of the run, the final training included. Known from the first `fit` on."""
        assert self._plan is not None
        return len(self._plan)

    @property
    def next_epochs(self) -> int:
        """Epochs that the next `fit` must train, at most.

        Raises:
            RuntimeError: The run is finished.
        """
        if self.finished:
            raise RuntimeError("The run is finished; make a new GlobalMagnitudePruning for another one.")
        if self._plan is None:
            config = self.config
            return config.resolved_round_epochs if config.method == "iterative" else config.resolved_epochs
        return self._plan[len(self.rounds)].epochs

    @property
    def round(self) -> Round:
        """The round that trains, or the next one. Known from the first `fit` on."""
        assert self._plan is not None
        return self._plan[len(self.rounds)]

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
        if self._compacts:
            check_saving(callbacks)
        ready = self._others.for_round(callbacks, lambda: self.round)
        if self.config.method == "gradual":
            self._watching.close()
            self._watching = watch_from(ready, epoch_at_target(self.config))
        return [self, *ready]

    def state_of_others(self) -> list[list[Any]]:
        """What Keras' own callbacks among those of the round hold, in the way of `state`."""
        return self._others.state()

    def restore_others(self, state: Sequence[Sequence[Any]]) -> None:
        """Gives the callbacks of the round what `state_of_others` gave, once `fit` has begun."""
        self._others.restore(state)

    def begin(self, masked: MaskedModel, stretch: float = 1.0) -> None:
        """Plans the run for the masked model, if that is not done. The first `fit` calls it otherwise.

        Args:
            masked: The model.
            stretch: How many times as fast the learning-rate schedule passes as the config says.

        Raises:
            ValueError: The target or the limits cannot be met with the model's sizes, the criterion cannot rank,
                a field that `wrap` heeds is not what the model was wrapped with, or `compact_rounds` is asked
                for a model that is not functional, on several devices, or with an optimizer that does not allow it.
            TypeError: The criterion gives something other than scores.
        """
        if self._plan is not None:
            return
        self._cluster = masked.cluster
        for name in WRAPPED_FIELDS:
            asked, given = getattr(self.config, name), getattr(masked, name)
            asked = tuple(asked) if isinstance(given, tuple) else asked
            if asked not in (given, (), None):
                raise ValueError(
                    f"The config asks for {name}={asked!r}, but the model was wrapped with {name}={given!r}, which "
                    f"decides. Call aimp_tf.wrap(model, config), or aimp_tf.wrap(model, {name}={asked!r})."
                )
        if self._compacts:
            self._graph = _graph_for_parts(masked)
        plan = make_plan(self.config, masked.weight_count, masked.kept)
        plan = tuple(dataclasses.replace(each, schedule_scale=stretch * each.schedule_scale) for each in plan)
        if self.config.method != "dense":
            self._least = least_survivors(self.config, {path: mask.size for path, mask in masked.masks().items()})
            self._rank(masked.units, masked.weights(), masked.masks(), plan[-1].kept)
        if {"weights", "reinitialize"} & {round_.rewind for round_ in plan}:
            self._first = self._snapshot = masked.snapshot()
        masked.optimizers.note_rates()
        masked.rounds_left = len(plan)
        self._kept_first = masked.kept
        stay = any(round_.rewind == "learning_rate" for round_ in plan)
        self._shrinking = Shrinking(self.config.shrink if stay else 1.0, masked)
        self._plan = plan

    def state(self) -> dict[str, Any]:
        """What `resume` needs to go on at this point, as numbers, texts, arrays, and lists and dicts of these.

        The rounds that are done are no part of it, nor are `snapshots` and what the model holds.
        """
        return {
            "epoch_logs": self.epoch_logs,
            "seconds": time.monotonic() - self._started_at,
            "rewind_steps": self._rewind_steps,
            "steps_per_epoch": self._steps_per_epoch,
            "guarded": list(self._guarded),
            "shrinking": self._shrinking.state() if self._shrinking else None,
            "thresholds": self._thresholds,
            "ramp_step": self._ramp_step,
            "checksums": self._checksums,
            "would_be_masks": self._would_be_masks,
            "channels": self._channels,
        }

    def snapshots(self) -> dict[str, list[np.ndarray] | None]:
        """The weights that later rounds rewind to, in the order of `MaskedModel.snapshot`. Round 0 settles them."""
        return {"first": self._first, "snapshot": None if self._snapshot is self._first else self._snapshot}

    def resume(
        self,
        rounds: Sequence[RoundResult],
        state: Mapping[str, Any],
        snapshots: Mapping[str, list[np.ndarray] | None],
        *,
        in_round: bool,
    ) -> None:
        """Goes on where `state` was taken. The model must be as it was then, and the run must have begun.

        Args:
            rounds: The results of the rounds that were done.
            state: What `state` returned.
            snapshots: What `snapshots` returned.
            in_round: Whether that was within a round, which the next `fit` then goes on with, rather than after one.
        """
        self.rounds = list(rounds)
        self._rewind_steps = _as_list(state["rewind_steps"])
        self._steps_per_epoch = _as_list(state["steps_per_epoch"])
        self._first = snapshots["first"]
        self._snapshot = snapshots["snapshot"] or self._first
        self._channels = state.get("channels")
        if self._shrinking and state.get("shrinking"):
            self._shrinking.resume(state["shrinking"])
        if in_round:
            self._resumed = True
            self.epoch_logs = list(state["epoch_logs"])
            self._started_at = time.monotonic() - state["seconds"]
            self._guarded = tuple(state["guarded"])
            self._thresholds = list(state["thresholds"])
            self._ramp_step = state["ramp_step"]
            self._checksums = list(state.get("checksums", [None] * len(self.epoch_logs)))
            self._would_be_masks = state["would_be_masks"]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        masked = self._masked()
        masked.make_whole()  # A fit that was interrupted may not have.
        if masked.adopt_optimizers():
            self._traced_channels = None
        self._begin_round(masked)
        if self._graph is not None:
            self._train_live_part(masked, self._graph)
        masked.check_agreement()

    def _begin_round(self, masked: MaskedModel) -> None:
        resumed, self._resumed = self._resumed, False
        if not resumed:
            self._started_at = time.monotonic()
        if self.params["epochs"] != self.next_epochs:
            raise ValueError(
                f"fit was called with epochs={self.params['epochs']}, but the next round trains {self.next_epochs}. "
                "Call fit(..., epochs=pruning.next_epochs, callbacks=[pruning])."
            )
        self.begin(masked)
        assert self._plan is not None and self._shrinking is not None
        round_ = self.round
        if resumed:
            logger.info(
                "Round %d of %d goes on after %d of %d epochs%s.",
                round_.index + 1,
                len(self._plan),
                len(self.epoch_logs),
                round_.epochs,
                self._time_left(),
            )
            return
        # A fit that was interrupted and is called again finds its masks set, and begins its round anew.
        if self.config.method == "iterative" and round_.kept < masked.kept:
            self._prune(masked, round_.kept)
        elif self.config.method == "gradual" and masked.kept < self._kept_first:
            raise RuntimeError("A gradual fit that was interrupted cannot begin anew: wrap a new model.")
        if self.config.method == "gradual":
            self._batches()
        self._rewind(masked, round_)
        self._shrinking.begin_round(masked)
        self.epoch_logs = []
        self._checksums = []
        self._would_be_masks = None
        shrunk = shrink_text(self._shrinking.factors.values())
        logger.info(
            "Round %d of %d: %d epochs at sparsity %.2f%% (%d of %d weights kept%s)%s.",
            round_.index + 1,
            len(self._plan),
            round_.epochs,
            100 * (1 - round_.kept / masked.weight_count),
            round_.kept,
            masked.weight_count,
            shrunk and f", each shrunk to {shrunk}",
            self._time_left(),
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        masked = self._masked()
        masked.make_whole()
        self.epoch_logs.append(plain_logs(logs))
        loss = self.epoch_logs[-1].get("loss", 0.0)
        if not np.all(np.isfinite(loss)):
            in_float16 = masked.mixed_precision == "mixed_float16"
            hint = ", or train in mixed_bfloat16, which has the range of float32" if in_float16 else ""
            raise RuntimeError(
                f"The loss became {loss} in epoch {epoch + 1} of round {len(self.rounds) + 1}. Pruning stops here, for "
                "diverged weights cannot be ranked. Lower the learning rate, clip the gradients (clipnorm=1.0 in the "
                f"optimizer), or look for NaN in the data{hint}."
            )
        masked.synchronize()
        self._checksums.append(masked.checksum())
        if self.config.method == "gradual":
            self._raise_sparsity_to(masked, (epoch + 1) / self.round.epochs)
        if self.round.index == 0 and epoch + 1 == self.config.rewind_epoch:
            self._snapshot, self._rewind_steps = masked.snapshot(), masked.optimizers.steps
        if self.config.stop_mask_distance is not None and self.round.index + 1 < len(self._plan or ()):
            self._stop_if_settled(masked, self.config.stop_mask_distance)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        masked = self._masked()
        masked.when_fit_is_over(lambda: self._end_round(masked))

    def _end_round(self, masked: MaskedModel) -> None:
        """Checks what the round ended with, and takes its result. No callback sets weights after that."""
        weights = masked.weights()
        check_finite(weights, masked.masks())
        masked.check_sparse()
        masked.units.check(masked.masks())
        kept, round_ = masked.kept, self.round
        if kept != round_.kept:
            early = f": fit ended after {len(self.epoch_logs)} of {round_.epochs} epochs" if kept > round_.kept else ""
            raise RuntimeError(f"The masks keep {kept} weights, but this round is to keep {round_.kept}{early}.")
        if round_.index == 0 and len(self.epoch_logs) < self.config.rewind_epoch:
            raise RuntimeError(
                f"The first round ended after {len(self.epoch_logs)} epochs, before rewind_epoch="
                f"{self.config.rewind_epoch}. Lower that, or let no callback stop the round so early."
            )
        if not self._steps_per_epoch and self.epoch_logs:
            self._steps_per_epoch = [steps / len(self.epoch_logs) for steps in masked.optimizers.steps]
        assert self._shrinking is not None
        self.rounds.append(
            RoundResult.of(
                round_.index,
                self.epoch_logs,
                weights,
                masked.masks(),
                time.monotonic() - self._started_at,
                thresholds=self._thresholds,
                guarded=self._guarded,
                shrink=self._shrinking.factors,
                left_dense=masked.left_dense,
                metrics=self._metrics(masked),
            )
        )
        self._shrinking.end_round(weights)
        masked.rounds_left = self.round_count - len(self.rounds)
        if self.finished:
            masked.train_whole()
            self._watching.close()

    def _metrics(self, masked: MaskedModel) -> Mapping[str, Any]:
        """The metrics of the weights that the model has now, which may be those of an earlier epoch, or of none."""
        if not self.epoch_logs:
            return {}
        epoch = masked.cluster.from_chief(last_epoch_with(masked.checksum(), self._checksums))
        if epoch is not None:
            return self.epoch_logs[epoch]
        if self.measure is None:
            logger.warning(
                "The weights at the end of round %d are those of none of its epochs, for a callback set others: its "
                "result has no metrics. Evaluate the model.",
                self.round.index + 1,
            )
            return {}
        return self.measure(self.epoch_logs[-1])

    def _train_live_part(self, masked: MaskedModel, graph: ModelGraph) -> None:
        """Lets the round train what its masks leave alive, where that is enough less than what was traced last."""
        network = LiveNetwork(graph, masked)
        part = network.part()
        before = None if self._channels is None else network.part(self._channels)
        if part.share > _WORTH_TRACING * (1.0 if before is None else before.share):
            if before is None:
                return
            part = before
        self._channels = part.needed
        if self._traced_channels is not None and np.array_equal(self._channels, self._traced_channels):
            return
        self._traced_channels = self._channels
        masked.train_part(part.weights, part.attributes)
        logger.info(
            "Round %d trains without %d of %d channels, which nothing reads any more: %.1f%% of the multiplications.",
            self.round.index + 1,
            np.count_nonzero(~part.needed),
            part.needed.size,
            100 * part.share,
        )

    def _rewind(self, masked: MaskedModel, round_: Round) -> None:
        if round_.rewind == "weights":
            assert self._snapshot is not None
            masked.restore(self._snapshot)
        elif round_.rewind == "reinitialize":
            assert self._first is not None
            generator = self._generator(round_.index)
            masked.restore(self._drawn_anew(generator, masked.is_trained()))
        elif round_.index == 0 and self._first is not None:
            masked.restore(self._first)
        if round_.index and all(later.rewind != "reinitialize" for later in self._plan or ()):
            self._first = None  # Rounds after the first rewind to the other snapshot, if there is one.
        optimizers = masked.optimizers
        optimizers.reset(self._rewind_steps if round_.index else ())
        steps = self._steps_per_epoch
        if len(steps) != len(optimizers.steps):
            steps = [0] * len(optimizers.steps)
        optimizers.stretch(round_.schedule_scale, round_.schedule_start, steps)

    def _shrink(self, masked: MaskedModel) -> None:
        """Shrinks the weights after a round, if they stay."""
        assert self._shrinking is not None
        if self.round.rewind == "learning_rate":
            self._shrinking.shrink(masked, self.rounds[-1].epochs * max(self._steps_per_epoch, default=0))

    def _drawn_anew(self, generator: np.random.Generator, trained: Sequence[bool]) -> Iterator[np.ndarray]:
        """The first values of the weights that are trained in a new order, and those of the others as they were."""
        for value, trains in zip(self._first or (), trained, strict=True):
            # Drawn for all, so that what the others are does not change what these get.
            drawn = generator.permutation(value.reshape(-1)).reshape(value.shape)
            yield drawn if trains else value

    def _batches(self) -> int:
        """How many batches an epoch has. Raises ValueError where that is not known."""
        batches = self.params.get("steps") or self.batches
        if not batches:
            raise ValueError(
                "method='gradual' must know how many batches an epoch has, and the training data does not tell its "
                "length. Use dataset.apply(tf.data.experimental.assert_cardinality(batches)), or steps_per_epoch."
            )
        return batches

    def _trained(self) -> Trained:
        """How far the run has come, from the beginning of a `fit` on."""
        before = sum(round_.epochs for round_ in self.rounds)
        return Trained(
            in_earlier_rounds=before,
            epochs=before + len(self.epoch_logs),
            steps_per_epoch=self.params.get("steps") or self.batches or max(self._steps_per_epoch, default=0),
            last_round=self.round.index + 1 == self.round_count,
        )

    def _time_left(self) -> str:
        """ ", about 12 min left", or nothing where no epoch tells yet how long one takes."""
        assert self._plan is not None
        done = sum(round_.epochs for round_ in self.rounds) + len(self.epoch_logs)
        seconds = sum(round_.seconds for round_ in self.rounds)
        if self.epoch_logs:
            seconds += time.monotonic() - self._started_at
        left = sum(round_.epochs for round_ in self._plan[len(self.rounds) :]) - len(self.epoch_logs)
        return f", about {duration_text(seconds / done * left)} left" if done else ""

    def _raise_sparsity(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """on_train_batch_end of a gradual fit."""
        progress = len(self.epoch_logs) + min(1.0, (batch + 1) / self._batches())
        self._raise_sparsity_to(self._masked(), progress / self.round.epochs)

    def _raise_sparsity_to(self, masked: MaskedModel, progress: float) -> None:
        """Prunes as the ramp asks for after the fraction `progress` of the training, in a hundred steps at most."""
        ramp_step = int(min(1.0, progress / self.config.ramp) * _RAMP_STEPS)
        if ramp_step > self._ramp_step:
            self._ramp_step = ramp_step
            progress, target = ramp_step / _RAMP_STEPS, self.config.target_sparsity
            keep = ramp_survivors(masked.weight_count, target, progress, self.config.block_size, self._kept_first)
            if keep < masked.kept:
                self._prune(masked, keep)

    def _stop_if_settled(self, masked: MaskedModel, distance: float) -> None:
        assert self._plan is not None
        keep = self._plan[len(self.rounds) + 1].kept
        would_be, _ = self._rank(masked.units, masked.weights(), masked.masks(), keep)
        before, self._would_be_masks = self._would_be_masks, list(would_be.values())
        if before is None:
            return
        changed = sum(
            int(np.count_nonzero(here ^ there)) for here, there in zip(self._would_be_masks, before, strict=True)
        )
        self.epoch_logs[-1]["mask_distance"] = changed / self.round.kept
        beyond_rewind_epoch = self.round.index > 0 or len(self.epoch_logs) >= self.config.rewind_epoch
        if changed <= distance * self.round.kept and beyond_rewind_epoch:
            self.model.stop_training = True

    def _prune(self, masked: MaskedModel, keep: int) -> None:
        weights, before = masked.weights(), masked.masks()
        after, self._guarded = self._rank(masked.units, weights, before, keep)
        emptied = [path for path, mask in after.items() if before[path].any() and not mask.any()]
        if emptied:
            logger.warning(
                "Ranking leaves nothing of %s: nothing passes through there any more. Lower target_sparsity, name it "
                "in exclude, or set min_layer_share, max_layer_sparsity or min_layer_survivors.",
                ", ".join(emptied),
            )
        self._thresholds = [smallest_magnitude(weights[path], mask) for path, mask in after.items()]
        masked.set_masks(after)
        self._shrink(masked)
        masked.constrain()

    def _rank(
        self, units: Units, weights: Mapping[str, np.ndarray], masks: dict[str, np.ndarray], keep: int
    ) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
        """The masks that keep the best `keep` survivors, and where the limits on single variables changed them."""
        check_finite(weights, masks)
        scores, signed = scores_of(self.config.criterion, weights, masks, self._generator(len(self.rounds)))
        return keep_best(scores, masks, keep, self._least, units=units, scope=self.config.scope, signed=signed)

    def _generator(self, index: int) -> np.random.Generator:
        """Of a round of its own, so that what is drawn does not depend on what was drawn before."""
        seed = self.config.seed
        if seed is None:
            assert self._cluster is not None
            seed = self._cluster.from_chief(int(np.random.randint(2**31)))
        return np.random.default_rng([seed % 2**63, index])

    def _masked(self) -> MaskedModel:
        masked = MaskedModel.of(self.model)
        if masked is None:
            raise RuntimeError(
                "GlobalMagnitudePruning needs a masked model: call fit on what aimp_tf.wrap(model) returns."
            )
        return masked

    def _implements_train_batch_hooks(self) -> bool:
        return self.config.method == "gradual"


def _as_list(value: Any) -> list[Any]:
    """A run that was saved before models with several optimizers has one number, or None."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _graph_for_parts(masked: MaskedModel) -> ModelGraph:
    """The graph of a model that `compact_rounds` is asked for. Raises ValueError where it cannot be done."""
    if not masked.cluster.on_one_device:
        raise ValueError(
            f"compact_rounds trains without a strategy or under OneDeviceStrategy; the model was made under "
            f"{type(masked.model.distribute_strategy).__name__}. Set compact_rounds=False."
        )
    for name in ("train_step", "compute_loss"):
        if not is_keras_own(getattr(type(masked.original), name)):
            raise ValueError(
                f"compact_rounds cannot know what the {name} of {type(masked.original).__name__} looks at beside the "
                "model's outputs. Leave it to Keras, or set compact_rounds=False."
            )
    masked.optimizer.check_by_weight()
    try:
        graph = ModelGraph.of(masked.original)
        LiveNetwork(graph, masked)
        return graph
    except ValueError as error:
        raise ValueError(f"compact_rounds must know how the layers are connected. {error}") from error
