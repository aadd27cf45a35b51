"""All optimizers that train a model: that of `compile`, and those that a `train_step` of the user's takes elsewhere."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import Any

from aimp_tf.compat.models import is_keras_own, keras_bases, layers_of
from aimp_tf.compat.optimizer import ResettableOptimizer, with_inner

_TRAINING = ("fit", "make_train_function", "train_step")
_OPTIMIZERS = ("BaseOptimizer", "_BaseOptimizer", "OptimizerV2")


class ModelOptimizers:
    """The optimizers of a compiled, built model of either generation of Keras, to be reset and stretched together.

    Args:
        model: The model. Optimizers that were not built yet are built for all its trainable variables.

    Attributes:
        main: That of `compile`.
        all: That, and those that are held elsewhere.

    Raises:
        ValueError: As `ResettableOptimizer`, of any of them.
    """

    def __init__(self, model: Any) -> None:
        variables = model.trainable_variables
        self.main = ResettableOptimizer(model.optimizer, variables)
        self.all = [self.main]
        try:
            for name, optimizer in held_optimizers(model).items():
                own = _built_for(optimizer, variables) or variables
                self.all.append(ResettableOptimizer(optimizer, own, f"The optimizer in {name},"))
        except BaseException:
            self.release()
            raise

    @property
    def steps(self) -> list[int]:
        """The step counter of each."""
        return [optimizer.steps for optimizer in self.all]

    def are_those_of(self, model: Any) -> bool:
        """Whether these are still the optimizers of a model, which may have been compiled again."""
        now = [model.optimizer, *held_optimizers(model).values()]
        return set(map(id, now)) == {id(optimizer.optimizer) for optimizer in self.all}

    def slots(self) -> dict[int, list[Any]]:
        """As `ResettableOptimizer.slots`, of all."""
        slots: dict[int, list[Any]] = collections.defaultdict(list)
        for optimizer in self.all:
            for key, of_variable in optimizer.slots().items():
                slots[key] += of_variable
        return slots

    def state(self, *, slots: bool = True) -> list[Any]:
        """As `ResettableOptimizer.state`, of all."""
        return [variable for optimizer in self.all for variable in optimizer.state(slots=slots)]

    def reset(self, steps: Sequence[int] = ()) -> None:
        """As `ResettableOptimizer.reset`, with the step counter of each; 0 where there is none."""
        for index, optimizer in enumerate(self.all):
            optimizer.reset(steps[index] if index < len(steps) else 0)

    def release(self) -> None:
        """As `ResettableOptimizer.release`."""
        for optimizer in self.all:
            optimizer.release()


def _built_for(optimizer: Any, variables: Sequence[Any]) -> Sequence[Any]:
    """The variables that it was built for, which may be some of the model's; none where that is not known."""
    places = getattr(optimizer, "_index_dict", None)  # Of tf_keras.
    if places is None:
        return getattr(optimizer, "_trainable_variables", ())
    of_key = {optimizer._var_key(variable): variable for variable in variables}
    return [of_key[key] for key in sorted(places, key=places.__getitem__) if key in of_key]


def held_optimizers(model: Any) -> dict[str, Any]:
    """Where it is held -> optimizer, of those that a model and its layers hold beside that of `compile`.

    They count only where something of the user's trains with them, for what Keras does takes the model's own.
    """
    if not any(_is_of_the_user(model, name) for name in _TRAINING):
        return {}
    seen = set(map(id, with_inner(model.optimizer)))
    found: dict[str, Any] = {}
    for layer in layers_of(model):
        prefix = "" if layer is model else f"{layer.name}."
        for attribute, value in vars(layer).items():
            for name, optimizer in _optimizers_in(f"{prefix}{attribute}", value):
                if id(optimizer) not in seen:
                    seen.update(map(id, with_inner(optimizer)))
                    found[name] = optimizer
    return found


def _is_of_the_user(model: Any, method: str) -> bool:
    own = vars(model).get(method)
    replaced = own is not None and own.__module__.split(".")[0] != "aimp_tf" and not is_keras_own(own)
    return replaced or not is_keras_own(getattr(type(model), method))


def _optimizers_in(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _optimizers_in(f"{name}[{key!r}]", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _optimizers_in(f"{name}[{index}]", item)
    elif any(base.__name__ in _OPTIMIZERS for base in keras_bases(type(value))):
        yield name, value
