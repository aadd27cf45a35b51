"""From a config to the rounds of a run: how many weights survive, how long each trains, how the schedule stretches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from aimp_tf.config import ROUNDS_IN_LAST_TRAINING, PruningConfig

MAX_ROUNDS = 10_000


@dataclasses.dataclass(frozen=True)
class Round:
    """One training of a run.

    Attributes:
        index: Position in the run, from 0; the final training is the last.
        epochs: Epochs to train, at most.
        kept: Number of prunable weights that are not masked while it trains, or at the end of a gradual one.
        rewind: What starts again before it, as in `PruningConfig`; None before the first.
        schedule_start: Where in the learning-rate schedule, which is made for `config.epochs`, it starts, in epochs.
        schedule_scale: Epochs of that schedule that pass in one epoch.
    """

    index: int
    epochs: int
    kept: int
    rewind: str | None
    schedule_start: float
    schedule_scale: float


def fraction_to_go(config: PruningConfig, total: int) -> float:
    """The fraction of what the budget counts that is to go, of so much that the model has; as that of `Latency`."""
    if config.latency is not None:
        return config.latency.fraction_to_go(total)
    assert config.target_sparsity is not None
    return config.target_sparsity


def survivor_counts(config: PruningConfig, weight_count: int, first: int | None = None) -> list[int]:
    """Number of weights kept while each round of an iterative method trains, the final training last.

    `kept[0] = n` and `kept[i] = max(round(n * (1 - rate)**i), n - round(target_sparsity * n))`, up to the first i that
    reaches the second term. A model that is pruned already begins at fewer, with `kept[i] = max(round(kept[0] *
    (1 - rate)**i), ...)`. Where weights are kept or removed in blocks, n is the number of blocks, and all this is
    multiplied by the block's size.

    Args:
        config: A valid config.
        weight_count: Number of prunable weights, at least 1; a multiple of `config.structure.block`. Or that of what
            `config.counted` names, here as elsewhere.
        first: Number of weights that are left at the beginning; None is all.

    Returns:
        `[kept[0], ..., kept[N]]` for N rounds; with `start="trained"` without the first of several.

    Raises:
        ValueError: Nothing would be removed, nothing would be left, or it would take more than `MAX_ROUNDS` rounds.

    Example:
        >>> survivor_counts(PruningConfig(0.5, rate=0.2, epochs=1), 1000)
        [1000, 800, 640, 512, 500]
        >>> survivor_counts(PruningConfig(0.9, rate=0.6, epochs=1, granularity="1x4"), 1000)
        [1000, 400, 160, 100]
    """
    target, block = fraction_to_go(config, weight_count), config.structure.block
    count = weight_count // block
    goal = count - round(target * count)
    one = "prunable weight" if config.counted == "weight" else config.counted
    unit = f"{one}s" if block == 1 else f"prunable blocks of {block} weights"
    asked = f"target_sparsity={target}" if config.latency is None else "The Latency"
    if goal == count:
        raise ValueError(f"{asked} removes none of the {count} {unit}; raise it.")
    if goal == 0:
        raise ValueError(f"{asked} leaves none of the {count} {unit}; lower it.")
    begin = count if first is None else first // block
    if begin < goal:
        raise ValueError(
            f"{asked} keeps {goal} of the {count} {unit}, but the masks that the model begins with keep {begin} only: "
            "it is sparser already. Ask for less, or train the model on by aimp_tf.fine_tune."
        )
    kept = [begin]
    while kept[-1] != goal:
        if len(kept) > MAX_ROUNDS:
            raise ValueError(
                f"rate={config.rate} needs more than {MAX_ROUNDS} rounds to reach target_sparsity={target}; raise it."
            )
        kept.append(max(round(begin * (1 - config.rate) ** len(kept)), goal))
    if config.start == "trained" and len(kept) > 1:
        del kept[0]
    return [block * blocks for blocks in kept]


def settled(config: PruningConfig, weight_count: int, first: int | None = None) -> PruningConfig:
    """The config with `total_epochs` made into `epochs` and `round_epochs`; the same where it has none.

    Of N short rounds, N - 1 with `start="trained"`, each gets `total_epochs // (N + 5)`, 1 at least, unless the config
    says how much; the final training gets the rest. The arguments are those of `survivor_counts`.

    Raises:
        ValueError: `total_epochs` are too few, or as `survivor_counts` and `PruningConfig.validate`.

    Example:
        >>> config = settled(PruningConfig(0.9, total_epochs=20), 50_200)
        >>> config.round_epochs, config.epochs
        (1, 9)
    """
    total = config.total_epochs
    if total is None:
        return config
    rounds = len(_counts(config, weight_count, first)) - 1
    iterative = config.method == "iterative"
    round_epochs = config.round_epochs or max(1, total // (rounds + (ROUNDS_IN_LAST_TRAINING if iterative else 1)))
    epochs = total - rounds * round_epochs
    # A round is no longer than the final training, where there are several.
    least = rounds * round_epochs + (round_epochs if iterative and rounds else 1)
    if total < least:
        what, fewer = f"a round of {round_epochs} and a final training", ""
        if iterative:
            what = f"{rounds} rounds of {round_epochs} and a final training that is as long"
            fewer = f", or raise rate={config.rate} for fewer rounds"
        raise ValueError(
            f"total_epochs={total} is too little for {what}: it takes {least}. Write total_epochs={least} or "
            f"more{fewer}."
        )
    lengths = {"epochs": epochs, "round_epochs": round_epochs if rounds else None, "total_epochs": None}
    config = config.replace(**lengths)
    config.validate()
    return config


def make_plan(config: PruningConfig, weight_count: int, first: int | None = None) -> tuple[Round, ...]:
    """The rounds of a run: N short ones and the final training, or one `fit` alone where the method has no rounds.

    With `start="trained"` the first of them, in which nothing is removed yet, is left out. The arguments are those of
    `survivor_counts`, the config as `settled` returns it.

    Returns:
        The rounds, whose epochs sum to `N * round_epochs + epochs`, with an N of 0 where the method has none.

    Raises:
        ValueError: As `survivor_counts`.
    """
    counts, last = _counts(config, weight_count, first), config.resolved_epochs
    rounds = []
    for index, kept in enumerate(counts):
        final = index == len(counts) - 1
        epochs = last if final else config.resolved_round_epochs
        rewind = None if index == 0 else (final and config.final_rewind) or config.rewind
        end = min(epochs, last) if config.round_schedule == "head" else last
        start = end * (config.rewind_epoch if index else 0) / epochs
        rounds.append(Round(index, epochs, kept, rewind, start, schedule_scale=(end - start) / epochs))
    return tuple(rounds)


def least_survivors(config: PruningConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    """How many weights each variable keeps at least, whatever their rank.

    `min_layer_share` gets what the other limits leave: where that is too little for the shares, each of them rounded
    up, they are scaled down and rounded down. `sizes` is path -> number of weights.

    Returns:
        Path -> number of weights, a multiple of `config.structure.block`.

    Raises:
        ValueError: Without `min_layer_share`, these are more than `target_sparsity` keeps in all, or than "n:m" keeps
            of a variable.
    """
    least = {path: max(min(config.min_layer_survivors, size), least_of(config, size)) for path, size in sizes.items()}
    structure, block = config.structure, config.structure.block
    least = {path: math.ceil(count / block) * block for path, count in least.items()}
    for path, size in sizes.items():
        if structure.n and least[path] > size // structure.m * structure.n:
            raise ValueError(
                f"min_layer_survivors={config.min_layer_survivors} keeps at least {least[path]} weights of {path}, but "
                f"{structure} keeps {size // structure.m * structure.n} of its {size}. Lower it."
            )
    total = sum(sizes.values())
    kept = survivor_counts(config, total)[-1]
    if sum(least.values()) > kept:
        raise ValueError(
            f"max_layer_sparsity={config.max_layer_sparsity} and min_layer_survivors={config.min_layer_survivors} keep "
            f"at least {sum(least.values())} weights, but target_sparsity={config.target_sparsity} keeps {kept} of "
            f"{total}. Relax them or lower target_sparsity."
        )
    return _with_shares(config, sizes, least, kept)


def least_of(config: PruningConfig, size: int) -> int:
    """How many of so many weights or channels of a layer stay at least by `max_layer_sparsity`."""
    if config.max_layer_sparsity is None:
        return 0
    # Rounded first, for 0.29 * 100 is less than 29 in floating point.
    return size - math.floor(round(config.max_layer_sparsity * size, 6))


def _with_shares(
    config: PruningConfig, sizes: Mapping[str, int], least: Mapping[str, int], kept: int
) -> dict[str, int]:
    """`least`, raised to the shares of `min_layer_share` as far as `kept` allows for all of them together."""
    share = config.min_layer_share * (1 - fraction_to_go(config, sum(sizes.values())))
    block = config.structure.block
    # In blocks. Rounded first, as above.
    wanted = {path: math.ceil(round(share * size / block, 6)) for path, size in sizes.items()}
    missing = {path: max(0, wanted[path] - least[path] // block) for path in sizes}
    left, needed = (kept - sum(least.values())) // block, sum(missing.values())
    if needed > left:
        missing = {path: count * left // needed for path, count in missing.items()}
    return {path: least[path] + missing[path] * block for path in sizes}


def ramp_survivors(config: PruningConfig, weight_count: int, progress: float, first: int | None = None) -> int:
    """Number of weights kept after the fraction `progress`, in [0, 1], of a gradual rise of the sparsity.

    The sparsity is `s + (target_sparsity - s) * (1 - (1 - progress)**3)` (Zhu and Gupta, 2017, equation 1), of whole
    blocks, with s = 0 or that of the `first` weights that are left at the beginning.

    Example:
        >>> [ramp_survivors(PruningConfig(0.9, epochs=1), 1000, progress) for progress in (0.0, 0.5, 1.0)]
        [1000, 212, 100]
    """
    target, block = fraction_to_go(config, weight_count), config.structure.block
    blocks = weight_count // block
    if progress == 1:
        return block * (blocks - round(target * blocks))
    begin = blocks if first is None else first // block
    to_go = target * blocks - (blocks - begin)
    return block * (begin - round(to_go * (1 - (1 - progress) ** 3)))


def epoch_at_target(config: PruningConfig) -> int:
    """The first epoch, from 0, at whose end a gradual rise of the sparsity has reached the target."""
    return math.ceil(round(config.ramp * config.resolved_epochs, 6)) - 1


def imp_epochs(config: PruningConfig, weight_count: int, first: int | None = None) -> int:
    """Epochs of plain iterative magnitude pruning to the same sparsity at the same rate, from the `first` weights that
    are left at the beginning and with the same `start`: every round in full. The config is as `settled` returns it."""
    return len(survivor_counts(config, weight_count, first)) * config.resolved_epochs


def _counts(config: PruningConfig, weight_count: int, first: int | None) -> list[int]:
    """Number of weights kept in each training of a run."""
    counts = survivor_counts(config, weight_count, first)
    if config.method == "iterative":
        return counts
    if config.has_rounds:
        return [counts[0], counts[-1]]
    return counts[:1] if config.method == "dense" else counts[-1:]
