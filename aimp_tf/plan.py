"""From a config to the rounds of a run: how many weights survive, how long each trains, how the schedule stretches."""

from __future__ import annotations

import dataclasses

from aimp_tf.config import PruningConfig

MAX_ROUNDS = 10_000


@dataclasses.dataclass(frozen=True)
class Round:
    """One training of a run.

    Attributes:
        index: Position in the run, from 0; the final training is the last.
        epochs: Epochs to train.
        kept: Number of prunable weights that are not masked while it trains.
        schedule_scale: Steps of the full learning-rate schedule that one step of this round stands for, at least 1.
    """

    index: int
    epochs: int
    kept: int
    schedule_scale: float


def survivor_counts(weight_count: int, target_sparsity: float, rate: float) -> list[int]:
    """Number of weights kept while each round trains, the final training last.

    `kept[0] = n` and `kept[i] = max(round(n * (1 - rate)**i), n - round(target_sparsity * n))`, up to the first i that
    reaches the second term.

    Args:
        weight_count: n, the number of prunable weights, at least 1.
        target_sparsity: Fraction of n to remove, in (0, 1).
        rate: Fraction of the survivors to remove a round, in (0, 1).

    Returns:
        `[kept[0], ..., kept[N]]` for N rounds.

    Raises:
        ValueError: Nothing would be removed, nothing would be left, or it would take more than `MAX_ROUNDS` rounds.

    Example:
        >>> survivor_counts(1000, target_sparsity=0.5, rate=0.2)
        [1000, 800, 640, 512, 500]
    """
    goal = weight_count - round(target_sparsity * weight_count)
    if goal == weight_count:
        raise ValueError(
            f"target_sparsity={target_sparsity} removes none of the {weight_count} prunable weights; raise it."
        )
    if goal == 0:
        raise ValueError(
            f"target_sparsity={target_sparsity} leaves none of the {weight_count} prunable weights; lower it."
        )
    kept = [weight_count]
    while kept[-1] != goal:
        if len(kept) > MAX_ROUNDS:
            raise ValueError(
                f"rate={rate} needs more than {MAX_ROUNDS} rounds to reach target_sparsity={target_sparsity}; raise it."
            )
        kept.append(max(round(weight_count * (1 - rate) ** len(kept)), goal))
    return kept


def make_plan(config: PruningConfig, weight_count: int) -> tuple[Round, ...]:
    """The rounds of a run: N short ones and the final training.

    Args:
        config: A valid config.
        weight_count: Number of prunable weights, at least 1.

    Returns:
        N + 1 rounds, whose epochs sum to `N * round_epochs + epochs`.

    Raises:
        ValueError: As `survivor_counts`.
    """
    counts = survivor_counts(weight_count, config.target_sparsity, config.rate)
    lengths = [config.resolved_round_epochs] * (len(counts) - 1) + [config.epochs]
    return tuple(
        Round(index, epochs, kept, schedule_scale=config.epochs / epochs)
        for index, (epochs, kept) in enumerate(zip(lengths, counts, strict=True))
    )


def imp_epochs(rounds: tuple[Round, ...]) -> int:
    """Epochs that plain iterative magnitude pruning, every round in full, spends on the same rounds."""
    return len(rounds) * rounds[-1].epochs
