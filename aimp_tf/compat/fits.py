"""What is to follow a `fit`, once all of its callbacks are through."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Fits:
    """Counts the calls of a model's `fit`, and acts once one is over. `around` is to be in the place of `fit`.

    Attributes:
        count: How many are over.
    """

    def __init__(self) -> None:
        self.count = 0
        self._after: list[Callable[[], object]] | None = None  # None where none runs.

    def when_over(self, act: Callable[[], object]) -> None:
        """Calls `act` once the `fit` that runs has called the `on_train_end` of all callbacks; now if none runs.

        So no callback writes weights after that.
        """
        if self._after is None:
            act()
        else:
            self._after.append(act)

    def around(self, fit: Callable[..., Any]) -> Callable[..., Any]:
        """A model's `fit`, and then what `when_over` was given."""

        @functools.wraps(fit)
        def fit_and_act(*arguments: Any, **settings: Any) -> Any:
            acts: list[Callable[[], object]] = []
            outer, self._after = self._after, acts  # A callback may call `fit`, too.
            try:
                history = fit(*arguments, **settings)
            finally:
                self._after = outer
            self.count += 1
            for act in acts:
                act()
            return history

        return fit_and_act
