"""Keras 3 under tf.distribute: what its `fit` does wrong there, put right on a model for as long as it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from aimp_tf.compat.cluster import Cluster
from aimp_tf.compat.step import changed_step, forget_traced
from aimp_tf.compat.swap import Swap


@contextlib.contextmanager
def repaired(model: Any) -> Iterator[None]:
    """Lets `fit` and `evaluate` of a Keras 3 model run right under the strategy that it was made under.

    Keras 3.15 looks at a first batch of MultiWorkerMirroredStrategy, and averages the logs of the workers, in ways that
    raise. And under every strategy each worker looks for NaN and infinity in its own gradients alone, before they are
    summed, so that one which finds them skips a step of loss scaling for which the others wait forever.

    Raises:
        ValueError: The model was compiled to take several steps an execution, which fails there.
    """
    strategy = model.distribute_strategy
    cluster = Cluster(strategy)
    if cluster.replicas > 1 and model.steps_per_execution > 1:
        raise ValueError(
            f"Keras 3 cannot take several steps an execution on {cluster.replicas} replicas; the model was compiled "
            f"with steps_per_execution={model.steps_per_execution}. Compile it with 1, or make it with tf_keras."
        )

    with contextlib.ExitStack() as replaced:
        if cluster.replicas > 1:
            forget_traced(model, evaluations=True)
            replaced.callback(forget_traced, model, evaluations=True)
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            replaced.enter_context(Swap(model, "_maybe_symbolic_build", _building(model, strategy)))
        if cluster.size > 1:
            replaced.enter_context(changed_step(model, _with_logs_in_vectors, evaluations=True))
        if cluster.replicas > 1 and hasattr(model.optimizer, "check_finite"):
            optimizer = model.optimizer
            replaced.enter_context(
                Swap(optimizer, "check_finite", _finite_everywhere(optimizer.check_finite, cluster.size))
            )
        yield


def _building(model: Any, strategy: tf.distribute.Strategy) -> Callable[..., None]:
    def build(iterator: Any = None, data_batch: Any = None) -> None:
        if iterator is not None:
            *_, batches = next(iter(iterator))
            data_batch = tf.nest.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], next(batches)
            )
        with strategy.scope():
            model._symbolic_build(data_batch=data_batch)

    return build


def _with_logs_in_vectors(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Keras averages the workers' logs along their first axis, which numbers do not have."""
    return lambda data: tf.nest.map_structure(lambda value: tf.convert_to_tensor(value)[tf.newaxis], step(data))


def _finite_everywhere(check_finite: Callable[[Any], Any], workers: int) -> Callable[[Any], Any]:
    def check(gradients: Any) -> Any:
        infinite = tf.cast(tf.logical_not(check_finite(gradients)), tf.float32)
        context = tf.distribute.get_replica_context()
        if tf.__internal__.distribute.strategy_supports_no_merge_call():  # Compiled by XLA.
            infinite = context.all_reduce(tf.distribute.ReduceOp.SUM, infinite)
        else:
            # Not all_reduce, which replicas of one process may begin in another order than that of the gradients.
            infinite = context.merge_call(sum_of_replicas, args=(infinite,))
        return tf.equal(infinite, 0.0)

    def sum_of_replicas(strategy: tf.distribute.Strategy, infinite: Any) -> Any:
        total = tf.add_n(strategy.experimental_local_results(infinite))
        return strategy.reduce("SUM", total, axis=None) if workers > 1 else total

    return check
