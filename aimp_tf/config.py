"""What a pruning run is told to do. Plain data: nothing here needs TensorFlow.

Annotations are not postponed here, for ml_collections reads the types of the fields.
"""

import dataclasses
import difflib
import json
import math
import numbers
from collections.abc import Iterable
from typing import Any

CHOICES: dict[str, tuple[str, ...]] = {
    "rewind": ("weights", "learning_rate"),
    "round_schedule": ("compress",),
    "scope": ("global",),
    "criterion": ("magnitude",),
}


@dataclasses.dataclass
class PruningConfig:
    """Settings of Accelerated Iterative Magnitude Pruning (Zullich et al., ICPR 2020).

    A run has N rounds of `round_epochs` and a final training of `epochs`. After each round a fraction `rate` of the
    surviving weights, those of the smallest magnitude in the whole network, is removed. N follows from
    `target_sparsity` and `rate`: about `log(1 - target_sparsity) / log(1 - rate)`.

    Attributes:
        target_sparsity: Fraction of the prunable weights that ends zero, in (0, 1).
        rate: Fraction of the surviving weights removed after a round, in (0, 1).
        epochs: Epochs of the final training, at least 1: what the model takes to train when it is not pruned.
        round_epochs: Epochs of every earlier round, in [1, epochs]. None takes a fifth of `epochs`, rounded up.
            `round_epochs == epochs` is plain iterative magnitude pruning.
        rewind: What starts again after a round. "learning_rate": the schedule alone, the weights stay (Renda et al.,
            ICLR 2020). "weights": every variable of the model as well (Frankle and Carbin, ICLR 2019).
        rewind_epoch: Epoch of the first round to which the weights return. 0, the start, is what is supported.
        round_schedule: How a short round follows a learning-rate schedule made for `epochs`. "compress" squeezes the
            whole schedule into the round. Constant rates are left alone.
        scope: Which weights are ranked together. "global" is all of them.
        criterion: What ranks the weights. "magnitude" is the absolute value in float32.
        include: fnmatch patterns on variable paths such as "head/dense/kernel"; only prunable variables that match one
            are pruned. Empty means all of them.
        exclude: fnmatch patterns on variable paths; variables that match one are not pruned.
        mixed_precision: None trains in the dtype policy that the model was made with.
        seed: Seeds the shuffling of array data. None takes it from the global seed.

    Example:
        >>> config = PruningConfig(target_sparsity=0.9, epochs=30)
        >>> config.resolved_round_epochs
        6
        >>> PruningConfig.from_json(config.to_json()) == config
        True
    """

    target_sparsity: float
    rate: float = 0.2
    epochs: int = dataclasses.field(kw_only=True)
    round_epochs: int | None = dataclasses.field(default=None, kw_only=True)
    rewind: str = dataclasses.field(default="learning_rate", kw_only=True)
    rewind_epoch: int = dataclasses.field(default=0, kw_only=True)
    round_schedule: str = dataclasses.field(default="compress", kw_only=True)
    scope: str = dataclasses.field(default="global", kw_only=True)
    criterion: str = dataclasses.field(default="magnitude", kw_only=True)
    include: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    exclude: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    mixed_precision: str | None = dataclasses.field(default=None, kw_only=True)
    seed: int | None = dataclasses.field(default=None, kw_only=True)

    @property
    def resolved_round_epochs(self) -> int:
        """Epochs of a round, with the default filled in."""
        if self.round_epochs is None:
            return max(1, math.ceil(self.epochs / 5))
        return self.round_epochs

    def validate(self) -> None:
        """Checks every field.

        Raises:
            TypeError: A field has the wrong type.
            ValueError: A field is out of its range, or a name is not among the known ones.
        """
        for name in ("target_sparsity", "rate"):
            value = getattr(self, name)
            if not _is_number(value, numbers.Real):
                raise TypeError(f"{name} must be a number in (0, 1); got {value!r}.")
            if not 0.0 < value < 1.0:
                hint = " It is a fraction, not percent." if value > 1 else ""
                raise ValueError(f"{name} must lie in (0, 1), both ends excluded; got {value!r}.{hint}")
        for name in ("epochs", "round_epochs", "rewind_epoch", "seed"):
            value = getattr(self, name)
            if value is None and name in ("round_epochs", "seed"):
                continue
            if not _is_number(value, numbers.Integral):
                raise TypeError(f"{name} must be a whole number; got {value!r}.")
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1; got {self.epochs}.")
        if not 1 <= self.resolved_round_epochs <= self.epochs:
            raise ValueError(
                f"round_epochs must lie between 1 and epochs={self.epochs}, the length of the final training; "
                f"got {self.round_epochs}."
            )
        if not 0 <= self.rewind_epoch <= self.resolved_round_epochs:
            raise ValueError(
                f"rewind_epoch must lie between 0 and round_epochs={self.resolved_round_epochs}: the weights return to "
                f"an epoch of the first round; got {self.rewind_epoch}."
            )
        if self.rewind_epoch != 0:
            raise ValueError(f"rewind_epoch must be 0, the only epoch supported so far; got {self.rewind_epoch}.")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.{nearest(value, choices)}"
                )
        for name in ("include", "exclude"):
            value = getattr(self, name)
            if isinstance(value, str) or not all(isinstance(pattern, str) for pattern in value):
                raise TypeError(f"{name} must be a tuple of patterns such as ('head/*',); got {value!r}.")
        if self.mixed_precision is not None:
            raise ValueError(
                f"mixed_precision must be None, the only value supported so far; got {self.mixed_precision!r}. "
                "Make the model under a mixed dtype policy instead: its policy is kept."
            )

    def replace(self, **overrides: Any) -> "PruningConfig":
        """A copy with some fields replaced. Raises TypeError, naming the nearest field, for an unknown name."""
        _check_names(overrides)
        return dataclasses.replace(self, **overrides)

    def to_json(self) -> str:
        """The fields as a JSON object, one field a line."""
        # NumPy's numbers are numbers to validate(), but not to json.
        return json.dumps(dataclasses.asdict(self), indent=2, default=lambda number: number.item())

    @classmethod
    def from_json(cls, text: str) -> "PruningConfig":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: The text is not JSON.
            TypeError: It is not an object with the fields of this class, or a required one is missing.
        """
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"A PruningConfig must be a JSON object; this is not JSON: {error}.") from error
        if not isinstance(fields, dict):
            raise TypeError(f"A PruningConfig must be a JSON object; got {type(fields).__name__}.")
        for name in ("include", "exclude"):
            if isinstance(fields.get(name), list):
                fields[name] = tuple(fields[name])
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "PruningConfig":
        """A config from a dict of its fields. Raises TypeError that names unknown or missing ones."""
        _check_names(fields)
        missing = [name for name in ("target_sparsity", "epochs") if name not in fields]
        if missing:
            raise TypeError(
                f"{' and '.join(missing)} must be given, such as target_sparsity=0.9, epochs=30: the fraction of "
                "weights to remove and the length of the final training."
            )
        return cls(**fields)


def nearest(name: object, names: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the nearest of `names`, or nothing where none is near."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_names(fields: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(PruningConfig)]
    for name in fields:
        if name not in known:
            raise TypeError(
                f"PruningConfig has no field {name!r}.{nearest(name, known)} Its fields are {', '.join(known)}."
            )
