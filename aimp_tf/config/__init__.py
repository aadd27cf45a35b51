"""What a pruning run is told to do. Plain data: nothing here needs TensorFlow.

Annotations are not postponed here, for ml_collections reads the types of the fields.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from aimp_tf.config.checks import COUNTED, NOT_USED_BY, check, name_of_budget
from aimp_tf.config.distillation import Distillation
from aimp_tf.config.latency import Latency
from aimp_tf.config.structure import Structure
from aimp_tf.config.texts import nearest
from aimp_tf.config.versions import VERSION, upgraded_to

ROUNDS_IN_LAST_TRAINING = 5
"""By default, the final training is as long as this many rounds (docs/results.md)."""


@dataclasses.dataclass
class PruningConfig:
    """Settings of Accelerated Iterative Magnitude Pruning (Zullich et al., ICPR 2020).

    A run has N rounds of `round_epochs` and a final training of `epochs`. After each round a fraction `rate` of the
    surviving weights, those of the smallest magnitude in the whole network, is removed. N follows from
    `target_sparsity` and `rate`: about `log(1 - target_sparsity) / log(1 - rate)`.

    Attributes:
        target_sparsity: Fraction of the prunable weights that ends zero, in (0, 1). None with a `Latency` as budget,
            which says how much is to go.
        rate: Fraction of the surviving weights removed after a round, in (0, 1).
        epochs: Epochs of the final training, at least 1: what the model takes to train when it is not pruned. None
            needs `total_epochs`.
        round_epochs: Epochs of every earlier round, in [1, epochs], but that "soft" and "dynamic" may have more, and
            have `epochs` by default. None takes a fifth of `epochs` otherwise, rounded up.
            `round_epochs == epochs` is plain iterative magnitude pruning.
        total_epochs: Epochs of all trainings together, in place of `epochs`: at least one for each. Unless
            `round_epochs` is given, the final training gets five times the epochs of a round, and what is left over.
        method: "iterative" is AIMP. "gradual" is one `fit` of `epochs`, which raises the sparsity while it trains, by
            the same ranking, along the cubic curve of Zhu and Gupta (2017, section 3). "soft" has one round, of
            `round_epochs`, by default as many as `epochs`: after each of its epochs the least units are multiplied by a
            factor instead of being removed, and train on, so that they may come back; what is least at its end goes
            (He et al., IJCAI 2018, section 3; Cai et al., ICPR 2020). "dynamic" has one as well, of whole channels:
            each of its steps runs those alone that have been of most use so far, by a moving mean of what they
            contribute to the loss, and the others go at its end (Shen et al., ICPR 2020). "dense" prunes nothing. A
            field that the method does not use must be left out.
        start: "untrained" begins with a round of the whole model, before anything is removed. "trained" prunes the
            model as it comes, and its weights are those that rewinding returns to: one round less.
        ramp: Fraction of `epochs` over which "gradual" raises the sparsity from 0, in (0, 1]; or of `round_epochs`,
            over which "soft" and "dynamic" raise the share of what they make smaller, or leave out.
        softness: What "soft" multiplies the least units by after the first epoch, in [0, 1). The factor falls linearly,
            to 0 after the last epoch of its round; 0 makes them zero from the first epoch on.
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
        fade_epochs: Over how many epochs at the beginning of a round, in [0, round_epochs), what is to go gets smaller,
            in 20 steps, rather than going at once: so long it still helps the rest to learn to do without it (Wang et
            al., "Neural pruning via growing regularization", ICLR 2021, for which this shrinks weights by itself).
        regrow: Fraction, in [0, 1), of the weights that a round keeps which are not the best that survive, but those
            that are removed already and have the largest gradients, from 0 on (Evci et al., "Rigging the lottery", ICML
            2020, section 3). For single weights and blocks. It takes gradients on `criterion_batches`.
        stop_mask_distance: Ends a round but the last early, when the masks that ranking would give at the ends of two
            consecutive epochs differ in at most this fraction of the weights that are ranked, in [0, 1): early-bird
            tickets (You et al., ICLR 2020, section 3). `round_epochs` is then a maximum. None trains each in full.
        scope: Which weights are ranked together: "global" is all of them; "layer" takes the same fraction of each. With
            `granularity="channel"`, "activation_density" keeps fractions in proportion to the share of activations of a
            layer that are not zero (Foldy-Porto et al., ICPR 2020). A function gives other shares: it gets the
            `Statistics`, of channels the `Channels`, and returns path -> share, or name of a set of channels -> share.
        criterion: What ranks the weights. "magnitude" is the absolute value in float32. "lamp" is the square, over the
            sum of the squares of the survivors of its variable that are not smaller (Lee et al., ICLR 2021, equation
            2). "random" draws lots. By the training data go "taylor", "fisher", "gradient" and "reconstruction", and
            with `granularity="channel"` also "utility", "votes", "activation_density", "discriminant" and
            "mutual_information"; "output_information" is of blocks, "scale" goes by that of normalisation.
            `aimp_tf.criteria` has a class for each, such as `aimp_tf.criteria.Taylor(batches=16)`. A function
            `(weights, masks) -> scores` of dicts from path to array gives scores of the weights' shapes; the largest
            are kept. An `aimp_tf.Criterion` of your own may ask for what those ask for.
        criterion_batches: On how many batches of the training data, from the first on, that is computed which
            `criterion` or `repair` goes by. None takes 8, or what the criterion says itself.
        repair: Whether, after a round, the weights of Dense and convolution layers that are left make up for those that
            went, as well as they can on these batches: least squares on what the layers gave (Optimal Brain Surgeon).
            Where weights rewind, there is nothing to repair.
        regularizer: A penalty that training adds to the loss while something is left to be ranked, so that the least
            units get smaller before they go: "group_lasso", "hierarchical", "scale_l1", "norm_loss" or "nuclear".
            `aimp_tf.regularizers` has a class for each, with a strength, such as
            `aimp_tf.regularizers.GroupLasso(strength=1e-4)`, and a base class for one of your own. The logs tell it as
            "penalty"; losses are without it. None adds none.
        projection: A ball that kernels are projected on at the end of each epoch, while something is left to be ranked:
            "l1", "l21" or "l11". What is small gets zero, and goes when the round ends. `aimp_tf.projections` has a
            class for each, with a radius, which by default is what the next round needs, and a base class for one of
            your own. None projects nothing.
        distillation: How much trainings learn from the `teacher` that `prune` was given: an `aimp_tf.Distillation`,
            with a weight and a temperature. None is `aimp_tf.Distillation()` where there is one.
        granularity: What is kept or removed together. "unstructured" is single weights. "1x4" is blocks of four
            consecutive inputs of one output unit, such as kernel[0:4, 7] of a Dense layer, ranked by the mean of their
            scores. "2:4" ends with exactly two of each such four, the best two; on the way, these are kept in any case,
            and the others are ranked together. Its target_sparsity is 0.5. Blocks of any size m, "1xm", and any "n:m",
            whose target_sparsity is 1 - n / m, work alike. A variable whose inputs are no multiple of m is left dense,
            as if it were excluded, and named in a warning and in the result. "channel" is whole channels of a
            model whose `call` can be traced: a filter or unit with its bias and normalisation and all that reads it, so
            that `compact` makes a smaller model of the same outputs. They are ranked by the L2 norm of all that is tied
            to them, over the mean of those of the same layers. `aimp_tf.groups` shows them. "head" is attention heads,
            "dimension" those of keys or values in all heads of a layer, ("channel", "head") and the like several of
            these in one ranking; what is said of channels holds of them. "block" is whole residual branches.
        budget: What `target_sparsity` and `rate` count with `granularity="channel"`: "weights" is the prunable ones,
            "channels" those that can go, "flops" the multiply-adds for one example. Of weights and multiply-adds, as
            many are left as the largest number of channels along the ranking has without going beyond the target. An
            `aimp_tf.Latency` is the time of a call: before the masks of a round are set, models compacted with masks
            that might be are exported and timed, until one takes at most as long as it may. Otherwise it is "weights".
        channel_multiple: With `granularity="channel"`, so many channels of a layer stay as are a multiple of this, one
            at least: 8 suits hardware with wide vectors.
        max_layer_sparsity: No variable gets sparser than this, in [target_sparsity, 1); others then give more. None
            sets no limit.
        min_layer_survivors: No variable keeps fewer weights than this, or than it has. With `granularity="channel"`, no
            layer keeps fewer channels than this; 0 is a tenth of them, and none of blocks.
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
            docs/performance.md lists, such as weight decay. It takes a functional or Sequential model, which is traced
            anew whenever a tenth of the multiplications has become needless. Each epoch begins and ends with the whole
            model; only between batches it is smaller. None does so with `granularity="channel"`, where model, optimizer
            and callbacks allow it, as soon as it saves more than tracing takes, and not otherwise.
        seed: Seeds the shuffling of array data and what is drawn at random. None takes it from the global seed.

    Example:
        >>> config = PruningConfig(target_sparsity=0.9, epochs=30)
        >>> config.resolved_round_epochs
        6
        >>> PruningConfig.from_json(config.to_json()) == config
        True
    """

    target_sparsity: float | None = None
    rate: float = 0.2
    _: dataclasses.KW_ONLY
    epochs: int | None = None
    round_epochs: int | None = None
    total_epochs: int | None = None
    method: str = "iterative"
    start: str = "untrained"
    ramp: float = 0.5
    softness: float = 0.5
    rewind: str = "learning_rate"
    final_rewind: str | None = None
    rewind_epoch: int = 0
    shrink: float = 0.7
    round_schedule: str = "head"
    fade_epochs: float = 0.0
    regrow: float = 0.0
    stop_mask_distance: float | None = None
    scope: object = "global"
    criterion: object = "magnitude"
    criterion_batches: int | None = None
    repair: bool = False
    regularizer: object = None
    projection: object = None
    distillation: object = None
    granularity: object = "unstructured"
    budget: object = "weights"
    channel_multiple: int = 1
    max_layer_sparsity: float | None = None
    min_layer_survivors: int = 0
    min_layer_share: float = 0.05
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    mixed_precision: str | None = None
    compact_rounds: bool | None = None
    seed: int | None = None

    @property
    def resolved_epochs(self) -> int:
        """`epochs`, where they are given. They follow from `total_epochs` with the model alone."""
        if self.epochs is None:
            raise ValueError(f"epochs follow from total_epochs={self.total_epochs} and the number of weights.")
        return self.epochs

    @property
    def resolved_round_epochs(self) -> int:
        """Epochs of a round, with the default filled in, where `epochs` are given."""
        if self.round_epochs is None and self.method in ("soft", "dynamic"):
            return self.epochs or 0
        if self.round_epochs is None:
            return max(1, math.ceil((self.epochs or 0) / ROUNDS_IN_LAST_TRAINING))
        return self.round_epochs

    @property
    def has_rounds(self) -> bool:
        """Whether trainings of `round_epochs` come before the last one."""
        return self.method in ("iterative", "soft", "dynamic")

    @property
    def structure(self) -> Structure:
        """What `granularity` stands for."""
        return Structure.of(self.granularity)

    @property
    def counted(self) -> str:
        """What the budget counts: "weight", "channel", "multiply-add" or "microsecond"."""
        return COUNTED[name_of_budget(self.budget)]

    @property
    def latency(self) -> Latency | None:
        """The budget, if it is one of time."""
        return self.budget if isinstance(self.budget, Latency) else None

    def validate(self) -> None:
        """Checks every field.

        Raises:
            TypeError: A field has the wrong type.
            ValueError: A field is out of its range, or a name is not among the known ones.
        """
        check(self)

    def replace(self, **overrides: Any) -> "PruningConfig":
        """A copy with some fields replaced; with another method, what that does not use gets its default.

        Raises TypeError, naming the nearest field, for an unknown name.
        """
        _check_names(overrides)
        method = overrides.get("method", self.method)
        unused = NOT_USED_BY.get(method, ()) if method != self.method else ()
        defaults = {name: getattr(type(self), name) for name in unused}
        return dataclasses.replace(self, **{**defaults, **overrides})

    def to_json(self) -> str:
        """The version and the fields as a JSON object, one a line; a function by its name, which `validate` refuses."""
        return json.dumps({"version": VERSION, **vars(self)}, indent=2, default=_as_json)

    @classmethod
    def from_json(cls, text: str) -> "PruningConfig":
        """Reads what `to_json` wrote, in this version of the fields or, by `upgrade`, in an earlier one.

        Raises:
            ValueError: The text is not JSON, or of a version that is not known.
            TypeError: It is not an object with the fields of this class, or a required one is missing.
        """
        return cls.from_fields(_fields_in(text))

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "PruningConfig":
        """A config from a dict of its fields. Raises TypeError that names unknown or missing ones."""
        _check_names(fields)
        fields = {name: _from_json(name, value) for name, value in fields.items()}
        _check_given(fields)
        return cls(**fields)


def upgrade(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that any version of `PruningConfig.to_json` wrote as today's has them. Raises as `upgraded_to`."""
    return upgraded_to(default_fields(), fields)


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
    """The fields of a `PruningConfig` with their defaults, as they come from JSON."""
    return json.loads(json.dumps({field.name: field.default for field in dataclasses.fields(PruningConfig)}))


def _as_json(value: Any) -> Any:
    if isinstance(value, (Latency, Distillation)):
        return dataclasses.asdict(value)
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else _shown(value)
    if any(hasattr(value, method) for method in ("scores", "penalty", "project")):  # A criterion, or the like.
        shown = {name: _as_json(each) if callable(each) else _shown(each) for name, each in vars(value).items()}
        settings = ", ".join(f"{name}={setting}" for name, setting in shown.items())
        return f"{type(value).__module__}.{type(value).__qualname__}({settings})"
    return value.item()  # NumPy's numbers are numbers to validate(), but not to json.


def _from_json(name: str, value: Any) -> Any:
    """The Latency or Distillation of which a dict holds the fields; every other value as it is."""
    kind = {"budget": Latency, "distillation": Distillation}.get(name)
    if kind is None or not isinstance(value, Mapping):
        return value
    _check_names(value, kind)
    return kind(**value)


def _shown(value: Any) -> str:
    """Its `repr` without addresses, which are others in another process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _fields_in(text: str) -> dict[str, Any]:
    """The fields that any version of `PruningConfig.to_json` wrote, as its constructor takes them."""
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"A PruningConfig must be a JSON object; this is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise TypeError(f"A PruningConfig must be a JSON object; got {type(fields).__name__}.")
    fields = upgrade(fields)
    del fields["version"]
    for name in ("include", "exclude", "granularity"):
        if isinstance(fields.get(name), list):
            fields[name] = tuple(fields[name])
    return fields


def _check_given(fields: dict[str, Any]) -> None:
    """Raises TypeError where nothing says how much is to go, or how long the final training is."""
    target = isinstance(fields.get("budget"), Latency) or fields.get("target_sparsity") is not None
    epochs = any(fields.get(name) is not None for name in ("epochs", "total_epochs"))
    if missing := [name for name, given in (("target_sparsity", target), ("epochs", epochs)) if not given]:
        raise TypeError(
            f"{' and '.join(missing)} must be given, such as target_sparsity=0.9, epochs=30: the fraction of "
            "weights to remove and the length of the final training."
        )


def _check_names(fields: Mapping[str, Any], kind: type = PruningConfig) -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in fields:
        if name not in known:
            raise TypeError(
                f"A {kind.__name__} has no field {name!r}.{nearest(name, known)} Its fields are {', '.join(known)}."
            )
