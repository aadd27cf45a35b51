"""Gradients on their way to the optimizer of a model of either generation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from aimp_tf.compat.step import forget_traced
from aimp_tf.compat.swap import Swap


@contextlib.contextmanager
def changed_gradients(model: Any, change: Callable[[list[tuple[Any, Any]]], list[tuple[Any, Any]]]) -> Iterator[None]:
    """Within it, the optimizer gets what `change` makes of pairs of a gradient, or None, and its variable.

    Args:
        model: A compiled model.
        change: Is traced with the step.
    """
    apply = model.optimizer.apply_gradients

    def apply_changed(grads_and_vars: Any, *arguments: Any, **settings: Any) -> Any:
        return apply(change(list(grads_and_vars)), *arguments, **settings)

    forget_traced(model)
    try:
        with Swap(model.optimizer, "apply_gradients", apply_changed):
            yield
    finally:
        forget_traced(model)
