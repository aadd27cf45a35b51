"""Gradients on their way to the optimizer of a model of either generation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from aimp_tf.compat.step import forget_traced
from aimp_tf.compat.swap import Swap

Pairs = list[tuple[Any, Any]]
"""Of a gradient, or None, and its variable."""


@contextlib.contextmanager
def changed_gradients(model: Any, change: Callable[[Pairs], Pairs]) -> Iterator[None]:
    """Within it, the optimizer of a compiled model gets what `change`, traced with the step, makes of gradients.

    Raises:
        RuntimeError: At the end, if the model has trained past its optimizer.
    """
    optimizer, seen = model.optimizer, []

    def changed(pairs: Pairs) -> Pairs:
        seen.append(True)
        return change(pairs)

    if hasattr(optimizer, "apply"):  # Of Keras 3, by which all its other ways go.
        name, apply = "apply", optimizer.apply

        def of_lists(grads: Any, trainable_variables: Any = None, **settings: Any) -> Any:
            variables = optimizer._trainable_variables if trainable_variables is None else trainable_variables
            pairs = changed(list(zip(grads, variables, strict=True)))
            return apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs], **settings)

        replacement: Any = of_lists
    else:
        name, apply = "apply_gradients", optimizer.apply_gradients

        def of_pairs(grads_and_vars: Any, *arguments: Any, **settings: Any) -> Any:
            return apply(changed(list(grads_and_vars)), *arguments, **settings)

        replacement = of_pairs
    forget_traced(model)
    try:
        with Swap(optimizer, name, replacement):
            yield
    finally:
        forget_traced(model)
    if not seen:
        raise RuntimeError(
            f"The train_step of {type(model).__name__} changes weights past self.optimizer, so that nothing could be "
            "held. Have it call self.optimizer.apply_gradients."
        )
