"""From what a person types to what a run needs: data as `fit` takes it, fields of the config, arguments of `fit`."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np
import tensorflow as tf

from aimp_tf.compat.models import is_keras_own, keras_bases
from aimp_tf.config import PruningConfig
from aimp_tf.config.texts import by_name, check_within, nearest

_FIELDS = tuple(field.name for field in dataclasses.fields(PruningConfig))

# Arguments of `fit` that a call names itself, or that have no place in a run.
_NOT_HANDED_ON = (
    "self",
    "x",
    "y",
    "sample_weight",
    "validation_data",
    "validation_split",
    "callbacks",
    "verbose",
    "epochs",
    "initial_epoch",
)

_COMPILE = "model.compile(optimizer=..., loss=..., metrics=[...]) before the call: what it was given is used throughout"
_SPARSITY = "target_sparsity=0.9, the fraction of the weights that ends zero"
_DATA = "the data by its place, as in model.fit: a dataset, or x, y"
_RAMP = "method='gradual', ramp=0.5, the fraction of epochs over which the sparsity rises"
_PATTERNS = "include=('conv*',) or exclude=('head/*',), patterns on the paths of variables"
_VALIDATION = "validation_data=dataset, or validation_data=(x, y)"
_EPOCHS = "epochs=30 for the last training and round_epochs=6 for each round before it"
_ROUNDS = "rate=0.2, the fraction of the weights that goes in a round, from which the number of rounds follows"
_FOLDER = "workdir='runs/first', a folder for all that the run leaves; a second call goes on with it"

_WRITE_INSTEAD = by_name(
    {
        "pruning_schedule": "target_sparsity=0.9, epochs=30; with method='gradual' this is tfmot's PolynomialDecay",
        "sparsity final_sparsity target amount ratio pruning_ratio prune_ratio percent": _SPARSITY,
        "initial_sparsity": "masks='zeros', which goes on from the zeros that the model has",
        "begin_step end_step frequency begin_epoch end_epoch": _RAMP,
        "block_size block_pooling_type": "granularity='1x4', blocks of four weights",
        "sparsity_m_by_n": "granularity='2:4', target_sparsity=0.5",
        "pruning_policy layers layers_to_prune ignore ignored_layers skip": _PATTERNS,
        "importance": "criterion='magnitude'",
        "fit_options": "its entries as arguments of their own, such as batch_size=64",
        "train_data data dataset train_dataset train_ds training_data generator": _DATA,
        "val_data validation validation_dataset val_ds val_dataset test_data": _VALIDATION,
        "optimizer loss metrics learning_rate lr": _COMPILE,
        "initial_epoch": "nothing in its place: each round starts at its first epoch",
        "num_epochs n_epochs nb_epoch": "epochs=30, the length of the last training",
        "fine_tune_epochs finetune_epochs retrain_epochs": _EPOCHS,
        "rounds num_rounds n_rounds iterations steps iterative_steps": _ROUNDS,
        "log_dir save_dir output_dir checkpoint_dir folder path resume": _FOLDER,
    }
)
"""What other tools, `fit` and `compile` call something -> what it is here."""


_Parameters = ParamSpec("_Parameters")
_Returned = TypeVar("_Returned")


def placed(example: str) -> Callable[[Callable[_Parameters, _Returned]], Callable[_Parameters, _Returned]]:
    """Decorates a call: more arguments by their places than it has get an error that says to write this example."""

    def decorate(call: Callable[_Parameters, _Returned]) -> Callable[_Parameters, _Returned]:
        parameters = inspect.signature(call).parameters
        places = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

        @functools.wraps(call)
        def checked(*arguments: _Parameters.args, **named: _Parameters.kwargs) -> _Returned:
            if len(arguments) > len(places):
                more = ", ".join(map(_shown, arguments[len(places) :]))
                raise TypeError(
                    f"{call.__name__} takes {', '.join(places)} by their places, and the rest by name; got {more} as "
                    f"well. Write {call.__name__}({', '.join(places)}, {example})."
                )
            return call(*arguments, **named)

        return checked

    return decorate


def config_of(config: Any, fields: Mapping[str, Any]) -> PruningConfig:
    """The config of a call that takes one, fields of one, or both, of which the fields count.

    Raises:
        TypeError: `config` is something else, a field has no such name, or one that is needed is missing.
        ValueError, TypeError: A field is out of its range.
    """
    check_config(config)
    check_names("PruningConfig", fields, _FIELDS)
    made = PruningConfig.from_fields(dict(fields)) if config is None else config.replace(**fields)
    made.validate()
    return made


def check_config(config: Any) -> None:
    """Raises TypeError for what is neither a config nor None."""
    if config is not None and not isinstance(config, PruningConfig):
        write = "config=aimp_tf.PruningConfig(**config)" if isinstance(config, Mapping) else "its fields as keywords"
        raise TypeError(f"config must be an aimp_tf.PruningConfig; got {_shown(config)}. Write {write}.")


def check_no_data(call: str, model: Any, config: Any, arguments: Mapping[str, Any]) -> None:
    """Raises TypeError, with what to write, where data or arguments of `fit` came to a call that trains nothing."""
    for_fit = [name for name in arguments if name not in _FIELDS and name in (*_NOT_HANDED_ON, *fit_arguments(model))]
    if hasattr(config, "shape") or isinstance(config, (tuple, list, tf.data.Dataset)):
        for_fit.insert(0, "the data")
    if for_fit:
        raise TypeError(
            f"{call} looks at no data and trains nothing, so leave out {', '.join(for_fit)}. Write {call}(model, "
            "target_sparsity=0.9, epochs=30)."
        )


def sort_arguments(
    call: Callable[..., Any], arguments: Mapping[str, Any], model: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keywords of a call as fields of the config and as arguments of the model's `fit`.

    Raises:
        TypeError: One is neither; it says what to write.
    """
    options = fit_arguments(model)
    check_names(call.__name__, arguments, (*_FIELDS, *options), _named(inspect.signature(call).parameters))
    fields = {name: value for name, value in arguments.items() if name in _FIELDS}
    return fields, {name: value for name, value in arguments.items() if name not in _FIELDS}


def fit_arguments(model: Any) -> tuple[str, ...]:
    """The arguments of the model's `fit` that are handed on to it."""
    parameters = dict(inspect.signature(model.fit).parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        # A `fit` of the user's that hands them on.
        own: Any = keras_bases(type(model))[0]
        parameters |= inspect.signature(own.fit).parameters
    return tuple(name for name in _named(parameters) if name not in _NOT_HANDED_ON)


def _named(parameters: Mapping[str, inspect.Parameter]) -> tuple[str, ...]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(name for name, parameter in parameters.items() if parameter.kind not in variable)


def check_names(call: str, arguments: Mapping[str, Any], known: tuple[str, ...], others: tuple[str, ...] = ()) -> None:
    """Raises TypeError, with what to write in its place, for an argument whose name is not known; what it suggests may
    be one of the others as well."""
    for name in arguments:
        if name in known:
            continue
        if name in _WRITE_INSTEAD:
            raise TypeError(f"{call} has no argument {name!r}. Write {_WRITE_INSTEAD[name]}.")
        if name in _FIELDS:
            raise TypeError(
                f"{call} does not heed {name}. Write aimp_tf.prune(model, x, y, {name}={arguments[name]!r}, ...) or, "
                f"in a loop of your own, aimp_tf.GlobalMagnitudePruning({name}={arguments[name]!r}, ...)."
            )
        names = (*others, *known)
        raise TypeError(f"{call} has no argument {name!r}.{nearest(name, names)} It takes {', '.join(names)}.")


def training_data(call: str, model: Any, x: Any, y: Any, sample_weight: Any, *, targets: bool = True) -> Any:
    """What a call was given as `fit` is, in one: a tuple (x, y, sample_weight), (x, y) or (x,), or other data as it is.

    Unless `targets`, arrays x may come without y though the model has a loss.

    Raises:
        TypeError: What came cannot be trained on, or stands in the wrong place; it says what to write.
    """
    if x is None:
        raise TypeError(f"No training data came. Write {call}(model, x, y, ...) or {call}(model, dataset, ...).")
    if isinstance(x, PruningConfig) or isinstance(y, PruningConfig):
        data = "x, y" if isinstance(x, PruningConfig) or hasattr(x, "shape") else "x"
        raise TypeError(f"A PruningConfig came in the place of data. Write {call}(model, {data}, config=config).")
    if isinstance(y, Mapping) and y and set(y) <= set(_FIELDS):
        settings = ", ".join(f"{name}={value!r}" for name, value in y.items())
        raise TypeError(
            f"A dict of settings came as y. Write {call}(model, x, y, {settings}), or "
            "config=aimp_tf.PruningConfig(**settings)."
        )
    if y is None:
        # What trains by Keras' own step, with a loss that was given to `compile`.
        by_loss = bool(getattr(model, "loss", None)) and is_keras_own(type(model).train_step)
        return _data_without_y(call, targets and by_loss, x, sample_weight)
    if not _holds_arrays(x):
        where = "Validation data goes in validation_data=. " if not hasattr(y, "shape") else ""
        raise TypeError(
            f"y must be left out where x gives batches of inputs and targets, as {_shown(x)} does. {where}"
            f"{_data_line(call)}"
        )
    if isinstance(x, tuple) and isinstance(y, tuple) and len(getattr(model, "inputs", None) or ()) == 1:
        raise TypeError(
            f"x and y are two tuples, and the model has one input. If y is for validation, write {call}(model, *x, "
            "validation_data=y, ...)."
        )
    return (x, y) if sample_weight is None else (x, y, sample_weight)


def _data_without_y(call: str, needs_targets: bool, x: Any, sample_weight: Any) -> Any:
    """As `training_data`."""
    if isinstance(x, tuple):
        if sample_weight is None:
            return x
        if len(x) != 2:
            raise TypeError(
                f"A tuple of {len(x)} and sample_weight do not go together: they are weights twice, or weights "
                f"without targets. {_data_line(call)}"
            )
        return (*x, sample_weight)
    if not _holds_arrays(x):
        if sample_weight is not None:
            raise TypeError(
                f"sample_weight is for arrays; got {_shown(x)}, whose batches must hold the weights themselves, as "
                "(x, y, sample_weight)."
            )
        return x
    if sample_weight is not None or needs_targets:
        raise TypeError(
            f"x came without y, and the loss of the model needs targets. {_data_line(call)} An autoencoder takes "
            f"{call}(model, x, x, ...)."
        )
    return (x,)


def _holds_arrays(x: Any) -> bool:
    return isinstance(x, (tuple, list, Mapping)) or hasattr(x, "shape")


def split_off(data: Any, validation_split: float) -> tuple[Any, Any]:
    """Arrays without their last part, and that part, for validation: the fraction `validation_split`, as `fit` has it.

    Raises:
        TypeError: The data is not of arrays, or the fraction no number.
        ValueError: The fraction is out of its range, or leaves nothing of either part.
    """
    check_within("validation_split", validation_split, 0, 1, "[)")
    if not validation_split:
        return data, None
    if not isinstance(data, tuple):
        raise TypeError(
            f"validation_split is for arrays; got {_shown(data)}. Split it, as dataset.skip(batches) and "
            "dataset.take(batches) do, and write validation_data=."
        )
    lengths = {tuple(np.shape(array))[:1] for array in tf.nest.flatten(data) if array is not None}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        return data, None  # What reads the data says what is wrong with it.
    ((length,),) = lengths
    end = math.floor(length * (1 - validation_split))
    if not 0 < end < length:
        raise ValueError(
            f"validation_split={validation_split} leaves {end} of {length} examples for training, and {length - end} "
            "for validation; each needs one at least."
        )

    def part(where: slice) -> Any:
        return tf.nest.map_structure(lambda array: None if array is None else array[where], data)

    return part(slice(end)), part(slice(end, None))


def _data_line(call: str) -> str:
    return f"Write {call}(model, x, y, ...) with arrays, or {call}(model, dataset, ...)."


def _shown(value: Any) -> str:
    kind = type(value)
    return f"{value!r:.60} of type {kind.__module__}.{kind.__qualname__}"
