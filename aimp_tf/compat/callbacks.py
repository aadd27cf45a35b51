"""Callbacks that both generations of Keras take."""

from __future__ import annotations

import keras


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
