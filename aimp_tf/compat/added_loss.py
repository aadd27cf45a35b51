"""Terms that training adds to the loss that a model of either generation was compiled with."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.models import keras_generation
from aimp_tf.compat.step import changed_step, forget_traced
from aimp_tf.compat.swap import Swap

Term = Callable[[Any, Any, Any, Callable[[], tf.Tensor]], tuple[tf.Tensor, tf.Tensor]]
"""Of what the model was called with, what it gave, the weights of the examples (None where there are none), and what
gives the loss of the targets alone: what is added to the loss, and what is told of it; scalars."""


class _Step(threading.local):
    """The step that this thread traces: each replica has one."""

    batch: Any = None  # None where it does not train.
    added: tf.Tensor | None = None


@contextlib.contextmanager
def added_to_loss(model: Any, name: str, term: Term) -> Iterator[None]:
    """Within it, `fit` of a compiled model trains on the loss and a term, which is traced with the step.

    The mean of what is told of the term is in the logs of an epoch, by that name. The loss that the logs tell is still
    that without it, so that it can be compared with the loss of the validation data, which has none. Of several
    replicas, each adds its share, as of what it is compiled with.

    Raises:
        RuntimeError: In the first step, where the model's `train_step` does not get its loss from `compute_loss`.
    """
    step = _Step()
    # As `keras_distribution.repaired` has the logs of several workers.
    in_vectors = keras_generation(model) == "keras" and Cluster(model.distribute_strategy).size > 1
    replicas = model.distribute_strategy.num_replicas_in_sync
    with model.distribute_strategy.scope():
        told = importlib.import_module(keras_generation(model)).metrics.Mean(name=name)
    compute_loss, reset_metrics = model.compute_loss, model.reset_metrics
    signature = inspect.signature(compute_loss)

    def compute_with_term(*arguments: Any, **settings: Any) -> Any:
        loss = compute_loss(*arguments, **settings)
        if step.batch is None:
            return loss
        given = signature.bind(*arguments, **settings).arguments
        # What a step of one's own does not hand on is that of the batch.
        of_batch = dict(zip(("x", "y", "sample_weight"), step.batch, strict=False))
        x, y_pred, sample_weight = (
            of_batch.get(each) if given.get(each) is None else given[each] for each in ("x", "y_pred", "sample_weight")
        )

        def of_targets() -> tf.Tensor:
            """Without regularisers and the like, of which the model keeps a list."""
            return replicas * loss - sum(map(tf.reduce_sum, model.losses))

        added, value = term(x, y_pred, sample_weight, of_targets)
        told.update_state(value)
        step.added = tf.cast(added, loss.dtype) / replicas
        return loss + step.added

    def change(train: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def train_with_term(batch: Any) -> Any:
            step.batch, step.added = batch if isinstance(batch, (tuple, list)) else (), None
            try:
                logs = train(batch)
            finally:
                step.batch = None
            if step.added is None:
                raise RuntimeError(
                    f"The train_step of {type(model).__name__} does not call self.compute_loss(x, y, y_pred, "
                    f"sample_weight), to which the {name} is added. Have it take its loss from there."
                )
            # As it is, for in tf_keras another tensor of each replica would be summed up.
            value = told.result()
            return {**logs, name: value[tf.newaxis] if in_vectors else value}

        return train_with_term

    def result_or_logs(logs: Any) -> Any:
        """What is told of an epoch: the metrics of all replicas, for which Keras takes no logs that have others."""
        if name not in (logs or ()):
            return of_metrics(logs)
        others = {other: value for other, value in logs.items() if other != name}
        return {**of_metrics(others), name: float(told.result())}

    def reset_all() -> None:
        reset_metrics()
        told.reset_state()

    with contextlib.ExitStack() as changes:
        changes.callback(forget_traced, model)
        changes.enter_context(changed_step(model, change))
        changes.enter_context(Swap(model, "compute_loss", compute_with_term))
        changes.enter_context(Swap(model, "reset_metrics", reset_all))
        if hasattr(model, "_loss_tracker"):  # Of Keras 3, which tells all that it trains on.
            tracker, of_metrics = model._loss_tracker, model._get_metrics_result_or_logs
            changes.enter_context(Swap(model, "_get_metrics_result_or_logs", result_or_logs))
            changes.enter_context(Swap(tracker, "update_state", _without_term(tracker.update_state, step, replicas)))
        forget_traced(model)
        yield


def _without_term(update_state: Callable[..., Any], step: _Step, replicas: int) -> Callable[..., Any]:
    def update(values: Any, sample_weight: Any = None) -> Any:
        if step.batch is not None and step.added is not None:
            values -= replicas * step.added
        return update_state(values, sample_weight=sample_weight)

    return update
