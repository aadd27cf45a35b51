"""What a config may hold, and what goes together."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

from aimp_tf.config.texts import as_fraction, as_whole, is_number, nearest

CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("iterative", "gradual", "dense", "tfmot"),
    "start": ("untrained", "trained"),
    "rewind": ("weights", "learning_rate", "reinitialize"),
    "round_schedule": ("head", "compress"),
    "scope": ("global", "layer"),
    "criterion": ("magnitude", "lamp", "random"),
    "mixed_precision": ("auto", "mixed_float16", "mixed_bfloat16"),
}


def check(config: Any) -> None:
    """Checks every field of a `PruningConfig`.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field is out of its range, or a name is not among the known ones.
    """
    for name, low, high, ends in _FRACTIONS:
        value = getattr(config, name)
        if value is None and name in _OPTIONAL:
            continue
        interval = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
        if not is_number(value, numbers.Real):
            raise TypeError(f"{name} must be a number in {interval}; got {value!r}.{as_fraction(name, value)}")
        above = value >= low if ends[0] == "[" else value > low
        below = value <= high if ends[1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{name} must lie in {interval}; got {value!r}.{as_fraction(name, value)}")
    for name in ("epochs", "round_epochs", "total_epochs", "rewind_epoch", "min_layer_survivors", "seed"):
        value = getattr(config, name)
        if value is None and name in _OPTIONAL:
            continue
        if not is_number(value, numbers.Integral):
            raise TypeError(f"{name} must be a whole number; got {value!r}.{as_whole(name, value)}")
    if not isinstance(config.compact_rounds, bool):
        raise TypeError(f"compact_rounds must be True or False; got {config.compact_rounds!r}.")
    _check_epochs(config)
    if config.min_layer_survivors < 0:
        raise ValueError(f"min_layer_survivors must be at least 0; got {config.min_layer_survivors}.")
    for name in CHOICES:
        check_choice(name, getattr(config, name))
    if config.final_rewind is not None and config.final_rewind not in CHOICES["rewind"]:
        raise ValueError(
            f"final_rewind must be None or one of {', '.join(map(repr, CHOICES['rewind']))}; got "
            f"{config.final_rewind!r}.{nearest(config.final_rewind, CHOICES['rewind'])}"
        )
    if config.max_layer_sparsity is not None and config.max_layer_sparsity < config.target_sparsity:
        raise ValueError(
            f"max_layer_sparsity={config.max_layer_sparsity} is below target_sparsity={config.target_sparsity}, which "
            "the variables together could not reach then; raise it."
        )
    n, m = config.structure.n, config.structure.m
    if n and not math.isclose(config.target_sparsity, 1 - n / m):
        raise ValueError(
            f"{config.structure} keeps exactly {n} of each {m} weights, so target_sparsity must be {1 - n / m}; got "
            f"{config.target_sparsity}. granularity='1x{m}' takes any."
        )
    _check_method(config)
    for name in ("include", "exclude"):
        check_patterns(name, getattr(config, name))


def check_for_callback(config: Any) -> None:
    """Raises ValueError for what `aimp_tf.prune` alone can do, and not a callback."""
    if config.total_epochs is not None:
        raise ValueError(
            "total_epochs is for aimp_tf.prune, which knows the model that the lengths follow from. "
            "print(aimp_tf.plan(model, config)) shows the epochs and round_epochs to write."
        )
    if config.method == "tfmot":
        raise ValueError(
            "method='tfmot' is tfmot's own callback, which GlobalMagnitudePruning is not; aimp_tf.prune runs it."
        )


def check_choice(name: str, value: object) -> None:
    """Raises ValueError, naming the nearest, unless `value` is one of `CHOICES[name]` or else right for that field."""
    choices = CHOICES[name]
    if value in choices or value is None and name in _OPTIONAL or callable(value) and name == "criterion":
        return
    write = _METHODS_BY_SETTINGS.get(str(value).lower().replace("-", "_").replace(" ", "_"))
    if name == "method" and write is not None:
        raise ValueError(f"method={value!r} goes by other settings here. Write {write}.")
    none = "None or " if name in _OPTIONAL else ""
    function = ", or a function (weights, masks) -> scores" if name == "criterion" else ""
    write = f" Write {name}='auto'." if name == "mixed_precision" and value is True else nearest(value, choices)
    raise ValueError(f"{name} must be {none}one of {', '.join(map(repr, choices))}{function}; got {value!r}.{write}")


def check_patterns(name: str, patterns: object) -> None:
    """Raises TypeError unless these are texts in a tuple or the like."""
    if isinstance(patterns, str):
        # Paths of variables have a layer's name before a slash.
        pattern = patterns if set("/*?[") & set(patterns) else f"{patterns}/*"
        raise TypeError(f"{name} must be a tuple of patterns; got {patterns!r}. Write {name}=({pattern!r},).")
    if not isinstance(patterns, Iterable) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"{name} must be a tuple of patterns such as ('head/*',); got {patterns!r}.")


def _check_epochs(config: Any) -> None:
    """Refuses lengths that do not fit each other."""
    if config.start == "trained" and config.rewind_epoch:
        raise ValueError(
            "With start='trained', the weights return to those that the model comes with, so rewind_epoch must be "
            f"0; got {config.rewind_epoch}."
        )
    if config.start == "trained" and "reinitialize" in (config.rewind, config.final_rewind):
        raise ValueError(
            "rewind='reinitialize' draws the first values of the weights anew, which a trained model does not come "
            "with. Leave out start='trained'."
        )
    if config.shrink not in (1, type(config).shrink) and "learning_rate" not in (config.rewind, config.final_rewind):
        raise ValueError(
            f"shrink={config.shrink} is for weights that stay after a round, and with rewind={config.rewind!r} none "
            "do. Leave out one of the two."
        )
    if (config.epochs is None) == (config.total_epochs is None):
        raise ValueError(
            "Either epochs, the length of the final training, or total_epochs, that of all trainings together, "
            f"must be given; got epochs={config.epochs}, total_epochs={config.total_epochs}."
        )
    for name in ("epochs", "round_epochs", "total_epochs"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}.")
    if config.epochs is None:
        return  # What remains to be looked at follows from the model.
    if config.resolved_round_epochs > config.epochs:
        raise ValueError(
            f"round_epochs must lie between 1 and epochs={config.epochs}, the length of the final training; "
            f"got {config.round_epochs}."
        )
    if not 0 <= config.rewind_epoch < config.resolved_round_epochs:
        raise ValueError(
            f"rewind_epoch must lie between 0 and {config.resolved_round_epochs - 1}, for the weights return to an "
            f"epoch of the first round before its end, round_epochs={config.resolved_round_epochs}; "
            f"got {config.rewind_epoch}."
        )


def _check_method(config: Any) -> None:
    """Refuses what the method cannot do."""
    if config.start == "trained" and config.method != "iterative":
        raise ValueError(
            f"start='trained' leaves out the first of the rounds, which method={config.method!r} does not have: it "
            "takes the model as it comes in any case. Leave out start."
        )
    if (
        config.epochs is not None
        and config.stop_mask_distance is not None
        and config.method == "iterative"
        and config.resolved_round_epochs < 2
    ):
        raise ValueError(
            "stop_mask_distance compares the ends of two epochs, so round_epochs must be at least 2; got "
            f"{config.resolved_round_epochs}."
        )
    if config.method != "tfmot":
        return
    if config.mixed_precision is not None:
        raise ValueError(
            "method='tfmot' trains in the dtype policies that the model has, so mixed_precision must be None; got "
            f"{config.mixed_precision!r}. method='gradual' does much the same and takes it."
        )
    for name, *without_effect in (
        ("criterion", "magnitude"),
        ("granularity", "unstructured"),
        ("max_layer_sparsity", None),
        ("min_layer_survivors", 0),
        ("min_layer_share", 0, type(config).min_layer_share),
    ):
        if getattr(config, name) not in without_effect:
            raise ValueError(
                f"method='tfmot' ranks single weights by magnitude in each layer, so {name} must be "
                f"{' or '.join(map(repr, without_effect))}; got {getattr(config, name)!r}."
            )


_ONE_SHOT = "rate=0.9, target_sparsity=0.9, epochs=30, round_epochs=30: a rate as high as the target is one round"
_IMP = "epochs=30, round_epochs=30: rounds as long as the last training are plain iterative magnitude pruning"

_METHODS_BY_SETTINGS: dict[str, str] = {
    **dict.fromkeys(("imp", "iterative_magnitude_pruning"), _IMP),
    **dict.fromkeys(("one_shot", "oneshot", "single_shot"), _ONE_SHOT),
    **dict.fromkeys(("aimp", "accelerated"), "method='iterative', the default"),
    **dict.fromkeys(("lottery_ticket", "lth", "lottery"), f"rewind='weights', {_IMP}"),
    **dict.fromkeys(("magnitude", "l1", "l1_unstructured"), "criterion='magnitude', the default, and leave out method"),
    "lamp": "criterion='lamp', and leave out method",
    "random": "criterion='random', and leave out method",
    **dict.fromkeys(("global", "layer", "layerwise", "local"), "scope='global' or scope='layer', and leave out method"),
    **dict.fromkeys(
        ("structured", "channel", "channels", "filter", "block", "n:m", "2:4", "1x4"),
        "granularity='1x4' or granularity='2:4', and leave out method",
    ),
    **dict.fromkeys(("polynomial", "polynomial_decay", "cubic", "agp"), "method='gradual'"),
    **dict.fromkeys(("none", "baseline"), "method='dense'"),
}
"""What is called a method elsewhere -> the settings that it is here."""

# Field, limits, and whether these belong to it.
_FRACTIONS = (
    ("target_sparsity", 0, 1, "()"),
    ("rate", 0, 1, "()"),
    ("ramp", 0, 1, "(]"),
    ("shrink", 0, 1, "(]"),
    ("stop_mask_distance", 0, 1, "[)"),
    ("max_layer_sparsity", 0, 1, "()"),
    ("min_layer_share", 0, 1, "[)"),
)
_OPTIONAL = (
    "epochs",
    "round_epochs",
    "total_epochs",
    "seed",
    "stop_mask_distance",
    "max_layer_sparsity",
    "mixed_precision",
)
