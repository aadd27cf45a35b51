"""GlobalMagnitudePruning: what happens between one `fit` and the next."""

from __future__ import annotations

import logging
import time
from typing import Any

import keras
import numpy as np

from aimp_tf.config import PruningConfig
from aimp_tf.masked_model import MaskedModel
from aimp_tf.plan import Round, make_plan
from aimp_tf.ranking import check_finite, keep_largest
from aimp_tf.result import RoundResult

logger = logging.getLogger(__name__)


class GlobalMagnitudePruning(keras.callbacks.Callback):
    """Runs Accelerated Iterative Magnitude Pruning over consecutive `fit` calls, in Keras 3 and in tf_keras.

    Each `fit` is one round. The first one starts with a snapshot of the weights. Each later one starts by ranking the
    survivors, masking the smallest, rewinding, and resetting the optimizer; when it ends, the pruned weights are
    checked to be zero. The order among other callbacks does not matter.

    Args:
        config: What to do. `include` and `exclude` are for `aimp_tf.wrap`, which has chosen the variables already.

    Attributes:
        rounds: The results of the rounds so far.
        epoch_logs: The logs of each epoch of the round that trains or was trained last.

    Raises:
        TypeError, ValueError: The config is not valid.

    Example:
        ```python
        config = aimp_tf.PruningConfig(target_sparsity=0.9, epochs=30, round_epochs=6)
        masked = aimp_tf.wrap(model)
        pruning = aimp_tf.GlobalMagnitudePruning(config)
        while not pruning.finished:
            masked.fit(dataset, epochs=pruning.next_epochs, callbacks=[pruning])
        model = aimp_tf.strip(masked)
        ```

    References:
        Zullich, Medvet, Pellegrino and Ansuini, "Speeding-up pruning for Artificial Neural Networks: Introducing
        Accelerated Iterative Magnitude Pruning", ICPR 2020. Rewinding: Renda, Frankle and Carbin, "Comparing Rewinding
        and Fine-tuning in Neural Network Pruning", ICLR 2020, section 2.
    """

    def __init__(self, config: PruningConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.rounds: list[RoundResult] = []
        self.epoch_logs: list[dict[str, Any]] = []
        self._plan: tuple[Round, ...] | None = None
        self._snapshot: list[np.ndarray] | None = None
        self._started_at = 0.0

    @property
    def finished(self) -> bool:
        """Whether the final training is done."""
        return self._plan is not None and len(self.rounds) == len(self._plan)

    @property
    def next_epochs(self) -> int:
        """Epochs that the next `fit` must train.

        Raises:
            RuntimeError: The run is finished.
        """
        if self.finished:
            raise RuntimeError("The run is finished; make a new GlobalMagnitudePruning for another one.")
        if self._plan is None:
            return self.config.resolved_round_epochs
        return self._plan[len(self.rounds)].epochs

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        masked = self._masked()
        self._started_at = time.monotonic()
        if self.params["epochs"] != self.next_epochs:
            raise ValueError(
                f"fit was called with epochs={self.params['epochs']}, but the next round trains {self.next_epochs}. "
                "Call fit(..., epochs=pruning.next_epochs, callbacks=[pruning])."
            )
        if self._plan is None:
            self._plan = make_plan(self.config, masked.weight_count)
            if self.config.rewind == "weights":
                self._snapshot = masked.snapshot()
        round_ = self._plan[len(self.rounds)]
        # A fit that was interrupted and is called again finds its masks set, and begins its round anew.
        if round_.kept < masked.kept:
            self._prune(masked, round_.kept)
        if self._snapshot is not None:
            masked.restore(self._snapshot)
        masked.optimizer.reset()
        masked.optimizer.stretch(round_.schedule_scale)
        self.epoch_logs = []
        logger.info(
            "Round %d of %d: %d epochs, %d of %d weights kept (sparsity %.4f).",
            round_.index + 1,
            len(self._plan),
            round_.epochs,
            round_.kept,
            masked.weight_count,
            1 - round_.kept / masked.weight_count,
        )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.epoch_logs.append({name: np.asarray(value).tolist() for name, value in (logs or {}).items()})
        loss = self.epoch_logs[-1].get("loss", 0.0)
        if not np.all(np.isfinite(loss)):
            raise RuntimeError(
                f"The loss became {loss} in epoch {epoch + 1} of round {len(self.rounds) + 1}. Pruning stops here, for "
                "diverged weights cannot be ranked. Lower the learning rate, clip the gradients (clipnorm=1.0 in the "
                "optimizer), or look for NaN in the data."
            )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        masked = self._masked()
        check_finite(masked.weights(), masked.masks())
        masked.check_sparse()
        assert self._plan is not None
        kept, expected = masked.kept, self._plan[len(self.rounds)].kept
        if kept != expected:
            raise RuntimeError(f"The masks keep {kept} weights, but this round is to keep {expected}.")
        self.rounds.append(
            RoundResult(
                index=len(self.rounds),
                epochs=len(self.epoch_logs),
                kept=kept,
                sparsity=1 - kept / masked.weight_count,
                seconds=time.monotonic() - self._started_at,
                metrics=self.epoch_logs[-1] if self.epoch_logs else {},
                emptied=tuple(path for path, mask in masked.masks().items() if not mask.any()),
            )
        )

    def _prune(self, masked: MaskedModel, keep: int) -> None:
        before = masked.masks()
        after = keep_largest(masked.weights(), before, keep)
        emptied = [path for path, mask in after.items() if before[path].any() and not mask.any()]
        if emptied:
            logger.warning(
                "Global ranking leaves nothing of %s: nothing passes through there any more. Lower target_sparsity or "
                "name it in exclude.",
                ", ".join(emptied),
            )
        masked.set_masks(after)

    def _masked(self) -> MaskedModel:
        masked = MaskedModel.of(self.model)
        if masked is None:
            raise RuntimeError(
                "GlobalMagnitudePruning needs a masked model: call fit on what aimp_tf.wrap(model) returns."
            )
        return masked

    # tf_keras asks a callback which batches it wants to hear of; Keras 3 finds out by itself.
    _supports_tf_logs = True
    _chief_worker_only = False

    def _implements_train_batch_hooks(self) -> bool:
        return False

    _implements_test_batch_hooks = _implements_train_batch_hooks
    _implements_predict_batch_hooks = _implements_train_batch_hooks
