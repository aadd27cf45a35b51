"""What a config may hold, and what goes together."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

from aimp_tf.config.distillation import Distillation
from aimp_tf.config.latency import Latency
from aimp_tf.config.structure import OF_BLOCKS, OF_CHANNELS, check_granularity
from aimp_tf.config.texts import by_name, check_whole, check_within, given_of, is_number, nearest

COUNTED = {"weights": "weight", "channels": "channel", "flops": "multiply-add", "latency": "microsecond"}
"""`name_of_budget` -> one of what it counts."""

CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("iterative", "gradual", "soft", "dynamic", "dense"),
    "start": ("untrained", "trained"),
    **dict.fromkeys(("rewind", "final_rewind"), ("weights", "learning_rate", "reinitialize")),
    "round_schedule": ("head", "compress"),
    "scope": ("global", "layer", "activation_density"),
    "criterion": (
        "magnitude",
        "lamp",
        "random",
        "scale",
        "taylor",
        "fisher",
        "gradient",
        "utility",
        "votes",
        "activation_density",
        "discriminant",
        "mutual_information",
        "reconstruction",
        "output_information",
    ),
    "regularizer": ("group_lasso", "hierarchical", "scale_l1", "norm_loss", "nuclear"),
    "projection": ("l1", "l21", "l11"),
    "budget": ("weights", "channels", "flops"),
    "mixed_precision": ("auto", "mixed_float16", "mixed_bfloat16"),
}
_OR_NONE = ("final_rewind", "mixed_precision", "projection", "regularizer")

CRITERIA_OF_CHANNELS = tuple(name for name in CHOICES["criterion"] if name not in OF_BLOCKS)
"""Those that rank whole channels."""

_OF_MANY_ROUNDS = ("rate", "start", "fade_epochs", "regrow", "stop_mask_distance")
_OF_ROUNDS = (
    *_OF_MANY_ROUNDS,
    "round_epochs",
    "rewind",
    "final_rewind",
    "rewind_epoch",
    "shrink",
    "round_schedule",
    "compact_rounds",
    "repair",
    "projection",
)
OF_EVERY_TRAINING = ("regularizer", "distillation")
_OF_RANKING = (
    "scope",
    "criterion",
    "criterion_batches",
    "granularity",
    *OF_CHANNELS,
    "max_layer_sparsity",
    "min_layer_survivors",
    "min_layer_share",
)

NOT_USED_BY: dict[str, tuple[str, ...]] = {
    "iterative": ("ramp", "softness"),
    "gradual": (*_OF_ROUNDS, "softness"),
    "soft": _OF_MANY_ROUNDS,
    "dynamic": (*_OF_MANY_ROUNDS, "softness", "criterion", "scope"),
    "dense": (*_OF_ROUNDS, "ramp", "softness", "regularizer", *_OF_RANKING),
}
"""Method -> the fields of a config that it has no use for."""


def name_of_budget(budget: object) -> str:
    """That of a value of `PruningConfig.budget`: itself, or "latency"."""
    return "latency" if isinstance(budget, Latency) else str(budget)


_WHOLE = {
    **dict.fromkeys(("epochs", "round_epochs", "total_epochs", "criterion_batches", "channel_multiple"), 1),
    "min_layer_survivors": 0,
    **dict.fromkeys(("rewind_epoch", "seed"), -math.inf),
}
"""Fields that are whole numbers -> the least that each may be."""

_FRACTIONS = {
    **dict.fromkeys(("target_sparsity", "rate", "max_layer_sparsity"), "()"),
    **dict.fromkeys(("ramp", "shrink"), "(]"),
    **dict.fromkeys(("softness", "regrow", "stop_mask_distance", "min_layer_share"), "[)"),
}
"""Fields that are fractions -> whether 0 and 1 belong to them."""


def check(config: Any) -> None:
    """Checks every field of a `PruningConfig`. Raises as its `validate`."""
    check_choice("budget", config.budget)  # Which says whether target_sparsity need be there.
    _check_fractions(config)
    _check_kinds(config)
    for name in CHOICES:
        check_choice(name, getattr(config, name))
    _check_distillation(config.distillation)
    _check_method(config)
    check_granularity(config)
    _check_rewinding(config)
    _check_epochs(config)
    _check_limits(config)
    for name in ("include", "exclude"):
        check_patterns(name, getattr(config, name))


def _check_kinds(config: Any) -> None:
    for name, least in _WHOLE.items():
        value = getattr(config, name)
        if value is not None or not _may_be_none(config, name):
            check_whole(name, value, least)
    if config.compact_rounds not in (None, True, False) or is_number(config.compact_rounds, numbers.Real):
        raise TypeError(f"compact_rounds must be None, True or False; got {config.compact_rounds!r}.")
    if not isinstance(config.repair, bool):
        raise TypeError(f"repair must be True or False; got {config.repair!r}.")


def _may_be_none(config: Any, name: str) -> bool:
    """Whether None is the default of a field."""
    return getattr(type(config), name) is None


def _check_distillation(distillation: Any) -> None:
    if distillation is not None and not isinstance(distillation, Distillation):
        raise TypeError(
            f"distillation must be None or an aimp_tf.Distillation; got {distillation!r:.80}. Write "
            "distillation=aimp_tf.Distillation(weight=0.5, temperature=2)."
        )
    if distillation is not None and isinstance(distillation.loss, str):
        raise ValueError(
            "loss of a Distillation must be a function (teacher_outputs, outputs) -> loss; got the name "
            f"{distillation.loss!r}, which is all that a file keeps of one."
        )


def _check_limits(config: Any) -> None:
    if config.max_layer_sparsity is not None and config.max_layer_sparsity < (config.target_sparsity or 0):
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


def _check_fractions(config: Any) -> None:
    timed = isinstance(config.budget, Latency)
    if timed and config.target_sparsity is not None:
        raise ValueError(
            f"{config.budget!r} says by itself how much is to go, so target_sparsity must be left out; got "
            f"{config.target_sparsity!r}."
        )
    for name, ends in _FRACTIONS.items():
        value = getattr(config, name)
        needed = not timed if name == "target_sparsity" else not _may_be_none(config, name)
        if value is not None or needed:
            check_within(name, value, 0, 1, ends)


def check_choice(name: str, value: object) -> None:
    """Raises ValueError, naming the nearest, unless `value` is one of `CHOICES[name]` or else right for that field."""
    choices = CHOICES[name]
    if value in choices or value is None and name in _OR_NONE:
        return
    if name == "budget" and isinstance(value, Latency):
        return
    if name == "scope" and callable(value):
        return
    if name == "criterion" and not isinstance(value, type) and (callable(value) or hasattr(value, "channel_scores")):
        return
    method = {"regularizer": "penalty", "projection": "project"}.get(name, "")
    if method and not isinstance(value, type) and hasattr(value, method):
        needed = {"regularizer": ("strength", "in_last_training"), "projection": ("radius", "every")}[name]
        if missing := [each for each in needed if not hasattr(value, each)]:
            raise ValueError(
                f"{name} must be one of the classes of aimp_tf.{name}s or a subclass; got a {type(value).__name__} "
                f"without {' and '.join(missing)}."
            )
        return
    write = _METHODS_BY_SETTINGS.get(str(value).lower().replace("-", "_").replace(" ", "_"))
    if name == "method" and write is not None:
        raise ValueError(f"method={value!r} goes by other settings here. Write {write}.")
    none = "None or " if name in _OR_NONE else ""
    others = {
        "budget": ", or an aimp_tf.Latency",
        "criterion": ", a criterion, or a function (weights, masks) -> scores",
        "scope": ", or a function that gives shares of layers",
        "regularizer": ", or an aimp_tf.regularizers.Regularizer",
        "projection": ", or an aimp_tf.projections.Projection",
    }.get(name, "")
    write = f" Write {name}='auto'." if name == "mixed_precision" and value is True else nearest(value, choices)
    if name in ("criterion", "regularizer", "projection") and isinstance(value, type):
        write = f" Write {value.__name__}(...): an object of the class."
    if name == "budget" and str(value).lower() in ("latency", "time", "ms", "milliseconds", "speedup"):
        write = " Write budget=aimp_tf.Latency(milliseconds=5), or aimp_tf.Latency(speedup=2)."
    raise ValueError(f"{name} must be {none}one of {', '.join(map(repr, choices))}{others}; got {value!r}.{write}")


def check_patterns(name: str, patterns: object) -> None:
    """Raises TypeError unless these are texts in a tuple or the like."""
    if isinstance(patterns, str):
        # Paths of variables have a layer's name before a slash.
        pattern = patterns if set("/*?[") & set(patterns) else f"{patterns}/*"
        raise TypeError(f"{name} must be a tuple of patterns; got {patterns!r}. Write {name}=({pattern!r},).")
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"{name} must be a tuple of patterns such as ('head/*',); got {patterns!r}.")


def _check_epochs(config: Any) -> None:
    """Refuses lengths that do not fit each other."""
    if (config.epochs is None) == (config.total_epochs is None):
        raise ValueError(
            "Either epochs, the length of the final training, or total_epochs, that of all trainings together, "
            f"must be given; got epochs={config.epochs}, total_epochs={config.total_epochs}."
        )
    if config.epochs is None:
        return  # What remains to be looked at follows from the model.
    if config.resolved_round_epochs > config.epochs and config.method == "iterative":
        raise ValueError(
            f"round_epochs must lie between 1 and epochs={config.epochs}, the length of the final training; "
            f"got {config.round_epochs}."
        )
    if config.stop_mask_distance is not None and config.resolved_round_epochs < 2:
        raise ValueError(
            "stop_mask_distance compares the ends of two epochs, so round_epochs must be at least 2; got "
            f"{config.resolved_round_epochs}."
        )
    if not 0 <= config.rewind_epoch < config.resolved_round_epochs:
        raise ValueError(
            f"rewind_epoch must lie between 0 and {config.resolved_round_epochs - 1}, for the weights return to an "
            f"epoch of the first round before its end, round_epochs={config.resolved_round_epochs}; "
            f"got {config.rewind_epoch}."
        )
    if not is_number(config.fade_epochs, numbers.Real):
        raise TypeError(f"fade_epochs must be a number of epochs; got {config.fade_epochs!r}.")
    if not 0 <= config.fade_epochs < config.resolved_round_epochs:
        raise ValueError(
            "fade_epochs must lie between 0 and the end of a round, for what goes is gone by then: less than "
            f"round_epochs={config.resolved_round_epochs}; got {config.fade_epochs}."
        )


def _check_rewinding(config: Any) -> None:
    """Refuses to return to weights that there are not, or to change what is not there."""
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
    shrinks = config.shrink not in (1, type(config).shrink)
    if (shrinks or config.repair) and "learning_rate" not in (config.rewind, config.final_rewind):
        what = f"shrink={config.shrink}" if shrinks else "repair"
        raise ValueError(
            f"{what} is for weights that stay after a round, and with rewind={config.rewind!r} none do. Leave out one "
            "of the two."
        )


def _check_method(config: Any) -> None:
    """Refuses what the method does not use."""
    given = given_of(config, NOT_USED_BY[config.method])
    if given:
        timed = isinstance(config.budget, Latency)
        does = "and give target_sparsity" if timed else f"config.replace(method={config.method!r}) does that"
        raise ValueError(
            f"method={config.method!r} has no use for {', '.join(given)}. Leave out what it does not use; {does}."
        )


_ONE_SHOT = "rate=0.9, target_sparsity=0.9, epochs=30, round_epochs=30: a rate as high as the target is one round"
_IN_BLOCKS = "granularity='1x4' or granularity='2:4', and leave out method"
_IMP = "epochs=30, round_epochs=30: rounds as long as the last training are plain iterative magnitude pruning"

_METHODS_BY_SETTINGS = by_name(
    {
        "imp iterative_magnitude_pruning": _IMP,
        "one_shot oneshot single_shot": _ONE_SHOT,
        "aimp accelerated": "method='iterative', the default",
        "lottery_ticket lth lottery": f"rewind='weights', {_IMP}",
        "magnitude l1 l1_unstructured": "criterion='magnitude', the default, and leave out method",
        "lamp": "criterion='lamp', and leave out method",
        "random": "criterion='random', and leave out method",
        "global layer layerwise local": "scope='global' or scope='layer', and leave out method",
        "structured channel channels filter block n:m 2:4 1x4": _IN_BLOCKS,
        "tfmot prune_low_magnitude": "method='gradual', which has tfmot's schedule and ranks all layers together; "
        "tools/benchmark.py peers has tfmot itself",
        "polynomial polynomial_decay cubic agp": "method='gradual'",
        "none baseline": "method='dense'",
    }
)
"""What is called a method elsewhere -> the settings that it is here."""
