"""What a pruning run is told to do. Plain data: nothing here needs TensorFlow.

Annotations are not postponed here, for ml_collections reads the types of the fields.
"""

import dataclasses
import difflib
import json
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any

VERSION = 3
"""Of the fields that `to_json` writes. Whoever changes a default raises it, and has `upgrade` write the former one."""

ROUNDS_IN_LAST_TRAINING = 5
"""By default, the final training is as long as this many rounds (docs/results.md)."""

CHOICES: dict[str, tuple[str, ...]] = {
    "method": ("iterative", "gradual", "dense", "tfmot"),
    "start": ("untrained", "trained"),
    "rewind": ("weights", "learning_rate", "reinitialize"),
    "round_schedule": ("head", "compress"),
    "scope": ("global", "layer"),
    "criterion": ("magnitude", "lamp", "random"),
    "mixed_precision": ("auto", "mixed_float16", "mixed_bfloat16"),
}


@dataclasses.dataclass(frozen=True)
class Structure:
    """What a granularity asks of consecutive inputs of one output unit, such as kernel[0:4, 7] of a Dense layer.

    Attributes:
        m: Inputs that it looks at together. A variable must have a multiple of them.
        block: Of these, how many are kept or removed as one: 1 or m.
        n: How many of each m stay; 0 leaves that to the ranking.
    """

    m: int = 1
    block: int = 1
    n: int = 0

    @classmethod
    def of(cls, granularity: object) -> "Structure":
        """The structure of "unstructured", "1x4" or the like, and "2:4" or the like. Raises ValueError for another.

        Example:
            >>> Structure.of("2:4")
            Structure(m=4, block=1, n=2)
        """
        if granularity == "unstructured":
            return cls()
        blocks, of_each = (re.fullmatch(pattern, str(granularity)) for pattern in (r"1x(\d+)", r"(\d+):(\d+)"))
        if blocks and int(blocks[1]) > 1:
            return cls(m=int(blocks[1]), block=int(blocks[1]))
        if of_each and 0 < int(of_each[1]) < int(of_each[2]):
            return cls(m=int(of_each[2]), n=int(of_each[1]))
        raise ValueError(
            "granularity must be 'unstructured', blocks such as '1x4', or so many of each few such as '2:4'; got "
            f"{granularity!r}.{nearest(granularity, ('unstructured', '1x4', '2:4'))}"
        )

    def __str__(self) -> str:
        text = "unstructured" if self.m == 1 else f"{self.n}:{self.m}" if self.n else f"1x{self.m}"
        return f"granularity={text!r}"

    @property
    def need(self) -> str:
        """Why it leaves a variable dense."""
        return f"its inputs are no multiple of {self.m}, which {self} needs"


@dataclasses.dataclass
class PruningConfig:
    """Settings of Accelerated Iterative Magnitude Pruning (Zullich et al., ICPR 2020).

    A run has N rounds of `round_epochs` and a final training of `epochs`. After each round a fraction `rate` of the
    surviving weights, those of the smallest magnitude in the whole network, is removed. N follows from
    `target_sparsity` and `rate`: about `log(1 - target_sparsity) / log(1 - rate)`.

    Attributes:
        target_sparsity: Fraction of the prunable weights that ends zero, in (0, 1).
        rate: Fraction of the surviving weights removed after a round, in (0, 1).
        epochs: Epochs of the final training, at least 1: what the model takes to train when it is not pruned. None
            needs `total_epochs`.
        round_epochs: Epochs of every earlier round, in [1, epochs]. None takes a fifth of `epochs`, rounded up.
            `round_epochs == epochs` is plain iterative magnitude pruning.
        total_epochs: Epochs of all trainings together, in place of `epochs`: at least one for each. Unless
            `round_epochs` is given, the final training gets five times the epochs of a round, and what is left over.
        method: "iterative" is AIMP. The others are one `fit` of `epochs`, to compare with. "gradual" raises the
            sparsity while it trains, by the same ranking, along the cubic curve of Zhu and Gupta (2017, section 3).
            "tfmot" is the same curve by tfmot's `prune_low_magnitude` itself, for tf_keras models, with the target
            sparsity in each layer. "dense" prunes nothing. What is said of rounds and rewinding below is for
            "iterative" alone.
        start: "untrained" begins with a round of the whole model, before anything is removed. "trained" prunes the
            model as it comes, and its weights are those that rewinding returns to: one round less.
        ramp: Fraction of `epochs` over which "gradual" and "tfmot" raise the sparsity from 0, in (0, 1].
        rewind: What starts again after a round. "learning_rate": the schedule alone, the weights stay (Renda et al.,
            ICLR 2020). "weights": every variable of the model as well (Frankle and Carbin, ICLR 2019).
            "reinitialize", a control: every variable gets its first values in a new random order, which is a new draw
            of the usual initializers.
        final_rewind: The same for the final training alone. None is `rewind`.
        rewind_epoch: Epoch k of the first round to which the weights return, and at which the schedule goes on, in
            [0, round_epochs). Every training is as long whatever k is: what is left of its schedule is stretched.
        shrink: Factor, in (0, 1], on each prunable weight that is left after a round of 500 steps or more, where
            `rewind` lets the weights stay; 1 leaves them as they are. Trained on from as large as they are, they fit
            the training data ever more closely and generalise worse (Ash and Adams, NeurIPS 2020, section 4, whose
            noise is left out). Fewer steps cannot grow them again as far: after n, the factor is `shrink**(n / 500)`,
            but for kernels of Dense and convolution layers whose outputs batch normalisation alone takes, which give
            the same at any scale: they shrink in full, and its moving statistics with them. Nor is the factor
            less than `1 - 3 * d**2`, where d is the fraction by which the round has moved the weights: those of a
            trained model that is tuned at a small rate stay as they are.
        round_schedule: How a short round follows a learning-rate schedule made for `epochs`. "head" takes its first
            part, so that the rate drops in the final training alone, "compress" squeezes the whole schedule into the
            round. Constant rates are left alone.
        stop_mask_distance: Ends a round but the last early, when the masks that ranking would give at the ends of two
            consecutive epochs differ in at most this fraction of the weights that are ranked, in [0, 1): early-bird
            tickets (You et al., ICLR 2020, section 3). `round_epochs` is then a maximum. None trains each in full.
        scope: Which weights are ranked together: "global" is all of them; "layer" takes the same fraction of each.
        criterion: What ranks the weights. "magnitude" is the absolute value in float32. "lamp" is the square, over the
            sum of the squares of the survivors of its variable that are not smaller (Lee et al., ICLR 2021, equation
            2). "random" draws lots. A function `(weights, masks) -> scores` of dicts from path to array gives scores of
            the weights' shapes; the largest are kept.
        granularity: What is kept or removed together. "unstructured" is single weights. "1x4" is blocks of four
            consecutive inputs of one output unit, such as kernel[0:4, 7] of a Dense layer, ranked by the mean of their
            scores. "2:4" ends with exactly two of each such four, the best two; on the way, these are kept in any case,
            and the others are ranked together. Its target_sparsity is 0.5. Blocks of any size m, "1xm", and any "n:m",
            whose target_sparsity is 1 - n / m, work alike. A variable whose inputs are no multiple of m is left dense,
            as if it were excluded, and named in a warning and in the result.
        max_layer_sparsity: No variable gets sparser than this, in [target_sparsity, 1); others then give more. None
            sets no limit.
        min_layer_survivors: No variable keeps fewer weights than this, or than it has.
        min_layer_share: No variable keeps less than this fraction, in [0, 1), of what it would keep if all ended with
            the same sparsity, rounded up: one ranking of raw magnitudes follows the initialisers, and could empty the
            layers whose weights start small. Where whole weights are too few for all of that beside the two limits
            above, these go first. 0 sets no limit.
        include: fnmatch patterns on variable paths such as "head/dense/kernel"; only prunable variables that match one
            are pruned. Empty means all of them.
        exclude: fnmatch patterns on variable paths; variables that match one are not pruned.
        mixed_precision: None trains in the dtype policies that the model was made with. "mixed_float16" and
            "mixed_bfloat16" train a float32 model in half precision: its variables, outputs and loss stay float32, and
            so does what `prune` returns. "auto" is "mixed_float16" on NVIDIA GPUs of compute capability 7.0 to 7.x,
            "mixed_bfloat16" from 8.0 on and on CPUs that have it in hardware, else None.
        compact_rounds: Whether rounds train without the units and channels that nothing reads any more, for all weights
            that lead on from them are pruned: less to compute, and the same results but for rounding and what
            docs/performance.md lists, such as weight decay. It takes a functional or Sequential model on one device,
            which is traced anew whenever a tenth of the multiplications has become needless. Each epoch begins and ends
            with the whole model; only between batches it is smaller. Other methods than "iterative" do not heed this.
        seed: Seeds the shuffling of array data and what is drawn at random. None takes it from the global seed.

    Example:
        >>> config = PruningConfig(target_sparsity=0.9, epochs=30)
        >>> config.resolved_round_epochs
        6
        >>> PruningConfig.from_json(config.to_json()) == config
        True
    """

    target_sparsity: float
    rate: float = 0.2
    epochs: int | None = dataclasses.field(default=None, kw_only=True)
    round_epochs: int | None = dataclasses.field(default=None, kw_only=True)
    total_epochs: int | None = dataclasses.field(default=None, kw_only=True)
    method: str = dataclasses.field(default="iterative", kw_only=True)
    start: str = dataclasses.field(default="untrained", kw_only=True)
    ramp: float = dataclasses.field(default=0.5, kw_only=True)
    rewind: str = dataclasses.field(default="learning_rate", kw_only=True)
    final_rewind: str | None = dataclasses.field(default=None, kw_only=True)
    rewind_epoch: int = dataclasses.field(default=0, kw_only=True)
    shrink: float = dataclasses.field(default=0.7, kw_only=True)
    round_schedule: str = dataclasses.field(default="head", kw_only=True)
    stop_mask_distance: float | None = dataclasses.field(default=None, kw_only=True)
    scope: str = dataclasses.field(default="global", kw_only=True)
    criterion: object = dataclasses.field(default="magnitude", kw_only=True)
    granularity: str = dataclasses.field(default="unstructured", kw_only=True)
    max_layer_sparsity: float | None = dataclasses.field(default=None, kw_only=True)
    min_layer_survivors: int = dataclasses.field(default=0, kw_only=True)
    min_layer_share: float = dataclasses.field(default=0.05, kw_only=True)
    include: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    exclude: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    mixed_precision: str | None = dataclasses.field(default=None, kw_only=True)
    compact_rounds: bool = dataclasses.field(default=False, kw_only=True)
    seed: int | None = dataclasses.field(default=None, kw_only=True)

    @property
    def resolved_epochs(self) -> int:
        """`epochs`, where they are given. They follow from `total_epochs` with the model alone."""
        if self.epochs is None:
            raise ValueError(f"epochs follow from total_epochs={self.total_epochs} and the number of weights.")
        return self.epochs

    @property
    def resolved_round_epochs(self) -> int:
        """Epochs of a round, with the default filled in, where `epochs` are given."""
        if self.round_epochs is None:
            return max(1, math.ceil((self.epochs or 0) / ROUNDS_IN_LAST_TRAINING))
        return self.round_epochs

    @property
    def structure(self) -> Structure:
        """What `granularity` stands for."""
        return Structure.of(self.granularity)

    @property
    def block_size(self) -> int:
        """Number of weights that are kept or removed together."""
        return self.structure.block

    def validate(self) -> None:
        """Checks every field.

        Raises:
            TypeError: A field has the wrong type.
            ValueError: A field is out of its range, or a name is not among the known ones.
        """
        for name, low, high, ends in _FRACTIONS:
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            interval = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
            if not is_number(value, numbers.Real):
                raise TypeError(f"{name} must be a number in {interval}; got {value!r}.{_as_fraction(name, value)}")
            above = value >= low if ends[0] == "[" else value > low
            below = value <= high if ends[1] == "]" else value < high
            if not (above and below):
                raise ValueError(f"{name} must lie in {interval}; got {value!r}.{_as_fraction(name, value)}")
        for name in ("epochs", "round_epochs", "total_epochs", "rewind_epoch", "min_layer_survivors", "seed"):
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if not is_number(value, numbers.Integral):
                raise TypeError(f"{name} must be a whole number; got {value!r}.{_as_whole(name, value)}")
        if not isinstance(self.compact_rounds, bool):
            raise TypeError(f"compact_rounds must be True or False; got {self.compact_rounds!r}.")
        self._check_epochs()
        if self.min_layer_survivors < 0:
            raise ValueError(f"min_layer_survivors must be at least 0; got {self.min_layer_survivors}.")
        for name in CHOICES:
            check_choice(name, getattr(self, name))
        if self.final_rewind is not None and self.final_rewind not in CHOICES["rewind"]:
            raise ValueError(
                f"final_rewind must be None or one of {', '.join(map(repr, CHOICES['rewind']))}; got "
                f"{self.final_rewind!r}.{nearest(self.final_rewind, CHOICES['rewind'])}"
            )
        if self.max_layer_sparsity is not None and self.max_layer_sparsity < self.target_sparsity:
            raise ValueError(
                f"max_layer_sparsity={self.max_layer_sparsity} is below target_sparsity={self.target_sparsity}, which "
                "the variables together could not reach then; raise it."
            )
        n, m = self.structure.n, self.structure.m
        if n and not math.isclose(self.target_sparsity, 1 - n / m):
            raise ValueError(
                f"{self.structure} keeps exactly {n} of each {m} weights, so target_sparsity must be {1 - n / m}; got "
                f"{self.target_sparsity}. granularity='1x{m}' takes any."
            )
        self._check_method()
        for name in ("include", "exclude"):
            check_patterns(name, getattr(self, name))

    def _check_epochs(self) -> None:
        """Refuses lengths that do not fit each other."""
        if self.start == "trained" and self.rewind_epoch:
            raise ValueError(
                "With start='trained', the weights return to those that the model comes with, so rewind_epoch must be "
                f"0; got {self.rewind_epoch}."
            )
        if self.start == "trained" and "reinitialize" in (self.rewind, self.final_rewind):
            raise ValueError(
                "rewind='reinitialize' draws the first values of the weights anew, which a trained model does not come "
                "with. Leave out start='trained'."
            )
        if self.shrink not in (1, PruningConfig.shrink) and "learning_rate" not in (self.rewind, self.final_rewind):
            raise ValueError(
                f"shrink={self.shrink} is for weights that stay after a round, and with rewind={self.rewind!r} none "
                "do. Leave out one of the two."
            )
        if (self.epochs is None) == (self.total_epochs is None):
            raise ValueError(
                "Either epochs, the length of the final training, or total_epochs, that of all trainings together, "
                f"must be given; got epochs={self.epochs}, total_epochs={self.total_epochs}."
            )
        for name in ("epochs", "round_epochs", "total_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
        if self.epochs is None:
            return  # What remains to be looked at follows from the model.
        if self.resolved_round_epochs > self.epochs:
            raise ValueError(
                f"round_epochs must lie between 1 and epochs={self.epochs}, the length of the final training; "
                f"got {self.round_epochs}."
            )
        if not 0 <= self.rewind_epoch < self.resolved_round_epochs:
            raise ValueError(
                f"rewind_epoch must lie between 0 and {self.resolved_round_epochs - 1}, for the weights return to an "
                f"epoch of the first round before its end, round_epochs={self.resolved_round_epochs}; "
                f"got {self.rewind_epoch}."
            )

    def _check_method(self) -> None:
        """Refuses what the method cannot do."""
        if self.start == "trained" and self.method != "iterative":
            raise ValueError(
                f"start='trained' leaves out the first of the rounds, which method={self.method!r} does not have: it "
                "takes the model as it comes in any case. Leave out start."
            )
        if (
            self.epochs is not None
            and self.stop_mask_distance is not None
            and self.method == "iterative"
            and self.resolved_round_epochs < 2
        ):
            raise ValueError(
                "stop_mask_distance compares the ends of two epochs, so round_epochs must be at least 2; got "
                f"{self.resolved_round_epochs}."
            )
        if self.method != "tfmot":
            return
        if self.mixed_precision is not None:
            raise ValueError(
                "method='tfmot' trains in the dtype policies that the model has, so mixed_precision must be None; got "
                f"{self.mixed_precision!r}. method='gradual' does much the same and takes it."
            )
        for name, *without_effect in (
            ("criterion", "magnitude"),
            ("granularity", "unstructured"),
            ("max_layer_sparsity", None),
            ("min_layer_survivors", 0),
            ("min_layer_share", 0, PruningConfig.min_layer_share),
        ):
            if getattr(self, name) not in without_effect:
                raise ValueError(
                    f"method='tfmot' ranks single weights by magnitude in each layer, so {name} must be "
                    f"{' or '.join(map(repr, without_effect))}; got {getattr(self, name)!r}."
                )

    def replace(self, **overrides: Any) -> "PruningConfig":
        """A copy with some fields replaced. Raises TypeError, naming the nearest field, for an unknown name."""
        _check_names(overrides)
        return dataclasses.replace(self, **overrides)

    def to_json(self) -> str:
        """The version and the fields as a JSON object, one a line; a function by its name, which `validate` refuses."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2, default=_as_json)

    @classmethod
    def from_json(cls, text: str) -> "PruningConfig":
        """Reads what `to_json` wrote, in this version of the fields or, by `upgrade`, in an earlier one.

        Raises:
            ValueError: The text is not JSON, or of a version that is not known.
            TypeError: It is not an object with the fields of this class, or a required one is missing.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"A PruningConfig must be a JSON object; this is not JSON: {error}.") from error
        if not isinstance(fields, dict):
            raise TypeError(f"A PruningConfig must be a JSON object; got {type(fields).__name__}.")
        fields = upgrade(fields)
        del fields["version"]
        for name in ("include", "exclude"):
            if isinstance(fields.get(name), list):
                fields[name] = tuple(fields[name])
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "PruningConfig":
        """A config from a dict of its fields. Raises TypeError that names unknown or missing ones."""
        _check_names(fields)
        given = {name for name, value in fields.items() if value is not None}
        missing = [name for name in ("target_sparsity", "epochs") if name not in given]
        if "total_epochs" in given:
            missing = [name for name in missing if name != "epochs"]
        if missing:
            raise TypeError(
                f"{' and '.join(missing)} must be given, such as target_sparsity=0.9, epochs=30: the fraction of "
                "weights to remove and the length of the final training."
            )
        return cls(**fields)


def upgrade(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that any version of `to_json` wrote as `VERSION` has them, and with the meaning that they had then.

    A field that is missing gets the default that it had when they were written, and so does one of which None stood for
    what followed from other fields. Those of version 1 do not say their version.

    Args:
        fields: As they come from JSON, with "version".

    Raises:
        ValueError: The version is not known.
    """
    upgraded = {"version": 1, **fields}
    version = upgraded["version"]
    if not is_number(version, numbers.Integral) or not 1 <= version <= VERSION:
        raise ValueError(
            f"The config is of version {version!r}, and this aimp_tf reads versions 1 to {VERSION}. If a newer one "
            "wrote it, install that one."
        )
    for former in range(version, VERSION):
        for name, default in _FORMER_DEFAULTS[former].items():
            if callable(default) and upgraded.get(name) is None:
                upgraded[name] = default(upgraded)
            upgraded.setdefault(name, default)
    if version == 1:
        upgraded.pop("data_on_device", None)  # An argument of `prune` since, which changes no result.
    for name, default in default_fields().items():
        upgraded.setdefault(name, default)
    return {**upgraded, "version": VERSION}


def kept_defaults(config: PruningConfig, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in which a run goes on with the defaults of the version that began it, not with those of today.

    Args:
        config: What the run is to go on with. A field that has today's default counts as one that was not set.
        stored: The fields that it was begun with, as `upgrade` takes them.

    Returns:
        Of each field that was not set, then or now, and whose default has changed: its name and the former default.

    Raises:
        ValueError: As `upgrade`.
    """
    here, there = json.loads(config.to_json()), upgrade(stored)
    today = default_fields()
    former = upgrade({"version": stored.get("version", 1), "epochs": there.get("epochs")})
    return {
        name: former[name]
        for name, default in today.items()
        if name != "epochs" and here[name] == default and there[name] == former[name] != default
    }


def default_fields() -> dict[str, Any]:
    """The fields of a `PruningConfig` that have a default, with it, as they come from JSON."""
    fields = dataclasses.fields(PruningConfig)
    known = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return json.loads(json.dumps(known))


def _fifth_of_epochs(fields: Mapping[str, Any]) -> int | None:
    epochs: Any = fields.get("epochs")
    return max(1, math.ceil(epochs / 5)) if is_number(epochs, numbers.Integral) else None


# Version -> the fields that it may lack or whose defaults the next one has changed -> their defaults, or a function of
# the other fields that gives what None stood for.
_FORMER_DEFAULTS: dict[int, dict[str, Any]] = {
    1: {
        "round_epochs": _fifth_of_epochs,
        "method": "iterative",
        "ramp": 0.5,
        "final_rewind": None,
        "stop_mask_distance": None,
        "granularity": "unstructured",
        "max_layer_sparsity": None,
        "min_layer_survivors": 0,
        "min_layer_share": 0.0,
        "compact_rounds": False,
    },
    2: {"shrink": 1.0, "round_schedule": "compress"},
}


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


def nearest(name: object, names: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the nearest of `names`, or nothing where none is near."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def list_differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What two nested dicts do not have in common, as "pruning.rate: 0.2 there, 0.3 here"."""
    flat_there, flat_here = _flat(there), _flat(here)
    return [
        f"{name}: {flat_there.get(name, 'nothing')!r} there, {flat_here.get(name, 'nothing')!r} here"
        for name in {**flat_here, **flat_there}
        if name not in flat_there or name not in flat_here or flat_there[name] != flat_here[name]
    ]


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """{"pruning": {"rate": 0.2}} as {"pruning.rate": 0.2}, and the dicts of a list under their positions."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(position): item for position, item in enumerate(value)}
        inner = _flat(value) if isinstance(value, dict) and value else {"": value}
        flat |= {f"{name}.{key}" if key else name: item for key, item in inner.items()}
    return flat


def _as_whole(name: str, value: object) -> str:
    """What to write in place of a text or a fraction that stands for a whole number; nothing for any other."""
    text = str(value).strip().removesuffix(".0")
    return f" Write {name}={text}." if text.isdecimal() else ""


def _as_fraction(name: str, value: object) -> str:
    """What to write in place of percent or of a number in a text; nothing where it is not clear what was meant."""
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return ""
    if text.endswith("%") or number > 1:
        number /= 100
    return f" Write {name}={number:g}: it is a fraction, not percent." if 0 < number < 1 else ""


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


def _as_json(value: Any) -> Any:
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    return value.item()  # NumPy's numbers are numbers to validate(), but not to json.


def is_number(value: object, kind: type) -> bool:
    """Whether this is a number of the kind, such as `numbers.Real`; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_names(fields: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(PruningConfig)]
    for name in fields:
        if name not in known:
            raise TypeError(
                f"PruningConfig has no field {name!r}.{nearest(name, known)} Its fields are {', '.join(known)}."
            )
