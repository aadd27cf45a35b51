"""The step that a model trains with, and what its optimizer gets.

Nothing else sets `train_function`, `train_step` or what `fit` traces beside them.

Changes nest: one that comes later sees the batch first and the logs last, and each is undone before those that were
there when it came.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from aimp_tf.compat.swap import Swap

_Step = Callable[[Any], Any]


def forget_traced(model: Any, *, evaluations: bool = False) -> None:
    """Has `fit` trace its step anew, for what was traced earlier does not know what has changed since.

    With `evaluations`, so have `evaluate` and `predict`.
    """
    model.train_function = None
    if evaluations:
        model.test_function = model.predict_function = None


def trace_in_fit(model: Any) -> None:
    """Lets a `fit` that has begun go on with a step that is to be traced anew."""
    if model.train_function is None:
        model.make_train_function()


@contextlib.contextmanager
def changed_step(model: Any, change: Callable[[_Step], _Step], *, evaluations: bool = False) -> Iterator[None]:
    """Within it, `fit` traces what `change` makes of the model's `train_step`, be it Keras' or the user's own.

    A step takes a batch and gives its logs. With `evaluations`, the same is made of the `test_step`.
    """
    with contextlib.ExitStack() as replaced:
        for name in ("train_step", "test_step") if evaluations else ("train_step",):
            replaced.enter_context(Swap(model, name, change(getattr(model, name))))
        yield


@contextlib.contextmanager
def changed_batches(model: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    """Within it, `fit` trains on what `change` makes of each batch."""
    with contextlib.ExitStack() as replaced:
        replaced.enter_context(changed_step(model, lambda train: lambda batch: train(change(batch))))
        # Keras 3 looks at a batch before it trains under a strategy.
        if build := getattr(model, "_symbolic_build", None):

            def build_on_changed(iterator: Any = None, data_batch: Any = None) -> None:
                build(iterator, change(data_batch))

            replaced.enter_context(Swap(model, "_symbolic_build", build_on_changed))
        yield


def begin_steps_with(model: Any, begin: Callable[[], object]) -> None:
    """Traces the step anew and has each call of what was traced begin with `begin`, until `forget_traced`."""
    forget_traced(model)
    model.make_train_function()
    traced = model.train_function

    def train(iterator: Any) -> Any:
        begin()
        return traced(iterator)

    model.train_function = train


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
