"""A part of a model that `fit` trains in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aimp_tf.compat.models import layers_of
from aimp_tf.compat.smaller import Indices, SmallerVariables
from aimp_tf.compat.step import begin_steps_with, forget_traced
from aimp_tf.compat.swap import Swap


class TrainedPart:
    """Lets `fit` train a part of a model only, and so in less time. It is traced anew for that.

    From the first batch of each epoch on, until `put_back`, everything that belongs to the model is as small as the
    part. What the rest computes must not matter to it.

    Args:
        model: A compiled model of either generation.
        original: What holds the same layers and may be evaluated in its place.
    """

    def __init__(self, model: Any, original: Any) -> None:
        self._model = model
        self._original = original
        self._smaller: SmallerVariables | None = None
        self._evaluations = contextlib.ExitStack()

    def begin(
        self, variables: Iterable[tuple[Any, Indices]], attributes: Iterable[tuple[Any, Mapping[str, Any]]]
    ) -> None:
        """Trains a part from the next epoch on. None may be trained now.

        Args:
            variables: (variable, the indices that stay along each of its axes), of all that become smaller.
            attributes: (layer, its attributes that change with that -> what they become).
        """
        layers = [layer for layer in layers_of(self._model) if layer is not self._model]
        self._smaller = SmallerVariables(variables, attributes, layers)
        begin_steps_with(self._model, self._smaller.put_in)
        for model in (self._model, self._original):
            for name in ("make_test_function", "make_predict_function"):
                self._evaluations.enter_context(Swap(model, name, self._on_the_whole(getattr(model, name))))

    def put_back(self) -> None:
        """Brings the model back to its own size, with what training has made of its part."""
        if self._smaller is not None:
            self._smaller.put_back()

    def end(self) -> None:
        """Lets `fit` train the whole model again."""
        self.put_back()
        if self._smaller is not None:
            self._smaller = None
            self._evaluations.close()
            forget_traced(self._model)

    def _on_the_whole(self, make: Callable[..., Any]) -> Callable[..., Any]:
        """`make_test_function` and the like of the model, which are called before anything is evaluated."""

        def make_for_whole(*arguments: Any, **settings: Any) -> Any:
            self.put_back()
            return make(*arguments, **settings)

        return make_for_whole
