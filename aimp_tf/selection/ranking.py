"""Ranking: the k best survivors of many tensors, together or in each, in bounded memory. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from aimp_tf.selection.statistics import Arrays

_CHUNK = 1 << 16  # What a core's own cache holds.
_SAMPLE = 1 << 17
_MOST_COLLECTED = 1 << 22
_BINS = 1 << 16
_SIGN = np.uint32(0x80000000)


def keep_largest(scores: Arrays, masks: Arrays, keep: int, *, signed: bool = False) -> dict[str, np.ndarray]:
    """Masks that keep the `keep` largest survivors of all tensors, ranked together.

    Ranked are the magnitudes in float32, or the values themselves where `signed`. Ties are broken by position: the
    order of `scores`, then the flat index; earlier positions are kept. Nothing is concatenated or sorted: a sample
    tells between which two values the smallest one to keep lies, and it is found exactly among the few between them.

    Args:
        scores: Path -> float array of any shape, such as the weights.
        masks: Path -> bool array of the same shape; True marks a survivor. Others are never kept.
        keep: How many to keep, between 0 and the number of survivors.
        signed: Whether -2 ranks below 1 rather than above it.

    Returns:
        Path -> new bool array with exactly `keep` True entries in all, each True in `masks` too.

    Raises:
        ValueError: `keep` is out of range, or the shapes of a tensor and its mask differ.
        RuntimeError: A survivor is NaN or infinite; the variables are named.

    Example:
        >>> weights = {"a": np.array([3.0, -1.0]), "b": np.array([-2.0, 2.0])}
        >>> masks = {path: np.ones(2, bool) for path in weights}
        >>> {path: mask.tolist() for path, mask in keep_largest(weights, masks, 2).items()}
        {'a': [True, False], 'b': [True, False]}
    """
    for path, score in scores.items():
        if score.shape != masks[path].shape:
            raise ValueError(f"{path} has shape {score.shape}, but its mask has shape {masks[path].shape}.")
    survivors = sum(int(np.count_nonzero(masks[path])) for path in scores)
    if not 0 <= keep <= survivors:
        raise ValueError(f"keep must lie between 0 and the {survivors} survivors; got {keep}.")
    check_finite(scores, masks)
    kept = {path: np.zeros(masks[path].shape, bool) for path in scores}
    if keep == 0:
        return kept

    threshold, ties_left = _threshold(scores, masks, signed, keep, survivors)
    for path, part, bits, survives in _chunks(scores, masks, signed):
        new_mask = kept[path].reshape(-1)[part]
        np.greater(bits, threshold, out=new_mask)
        if ties_left:
            ties = np.flatnonzero(survives & (bits == threshold))[:ties_left]
            new_mask[ties] = True
            ties_left -= ties.size
    return kept


def keep_shares(
    scores: Arrays, masks: Arrays, keep: int, least: Mapping[str, int], *, shares: Sequence[float], signed: bool = False
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """As `keep_at_least`, but every tensor keeps a fraction in proportion to its share, as nearly as whole numbers and
    what survives allow. Where all shares are the same, so is the sparsity.

    What is left over by rounding down goes to the tensors that lose the most by it (largest remainders).
    """
    high, low = _survivors_and_least(masks, least)
    # Divided by the largest, equal shares are exactly 1.
    parts = (share / max(shares) for share in shares)
    sizes = {path: score.size * part for (path, score), part in zip(scores.items(), parts, strict=True)}

    def counts(factor: float) -> dict[str, float]:
        return {path: min(max(factor * size, low[path]), high[path]) for path, size in sizes.items()}

    bounds = [0.0, max(shares) / min(shares)]
    for _ in range(64):
        middle = sum(bounds) / 2
        bounds[sum(counts(middle).values()) >= keep] = middle
    kept = _keep_in_each(scores, masks, _rounded(counts(bounds[1]), keep), signed)
    return kept, tuple(path for path, size in sizes.items() if bounds[1] * size < low[path])


def keep_at_least(
    scores: Arrays, masks: Arrays, keep: int, least: Mapping[str, int], *, signed: bool = False
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """As `keep_largest`, but no tensor keeps fewer than its `least` (or than survive in it).

    Each tensor keeps its best `least` whatever their rank; the rest of `keep` goes to the largest of all others. No
    other choice within these limits keeps larger scores.

    Args:
        keep: At least the sum of `least`.
        least: Path -> number of weights.

    Returns:
        The masks, and the paths of the tensors that ranking alone would have left with fewer.
    """
    free = keep_largest(scores, masks, keep, signed=signed)
    _, low = _survivors_and_least(masks, least)
    guarded = tuple(path for path, mask in free.items() if np.count_nonzero(mask) < low[path])
    if not guarded:
        return free, ()
    assured = _keep_in_each(scores, masks, low, signed)
    others = {path: masks[path] & ~assured[path] for path in scores}
    rest = keep_largest(scores, others, keep - sum(low.values()), signed=signed)
    return {path: assured[path] | rest[path] for path in scores}, guarded


def ordered_bits(values: np.ndarray, signed: bool) -> np.ndarray:
    """The values in float32 as uint32, which compare fast and have no NaN: in the order of the values, or of their
    magnitudes unless `signed`."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not signed:
        return values.view(np.uint32) & ~_SIGN
    bits = (values + np.float32(0)).view(np.uint32)  # -0.0 is 0.0 now.
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)  # The bits of a negative number grow with its magnitude.


def surviving(weight: np.ndarray, mask: np.ndarray) -> Iterator[np.ndarray]:
    """The values of the survivors of a tensor piece by piece, in their order, so that they are never copied at once."""
    flat_weight, flat_mask = weight.reshape(-1), mask.reshape(-1)
    for start in range(0, flat_weight.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        yield flat_weight[part][flat_mask[part]]


def smallest_magnitude(weight: np.ndarray, mask: np.ndarray) -> float | None:
    """The smallest magnitude among the survivors of a tensor, as in `surviving`; None where there are none."""
    return min((float(np.abs(values).min()) for values in surviving(weight, mask) if values.size), default=None)


def check_finite(weights: Arrays, masks: Arrays) -> None:
    """Raises RuntimeError, naming the variables, if a surviving weight is NaN or infinite."""
    infinity = np.uint32(0x7F800000)
    chunks = _chunks(weights, masks, signed=False)
    if bad := dict.fromkeys(path for path, _, bits, _ in chunks if bits.max() >= infinity):
        raise RuntimeError(
            f"These variables hold NaN or infinite weights: {', '.join(bad)}. The masks are unchanged. The training "
            "has diverged: lower the learning rate or clip the gradients (clipnorm)."
        )


def _chunks(scores: Arrays, masks: Arrays, signed: bool) -> Iterator[tuple[str, slice, np.ndarray, np.ndarray]]:
    """(path, slice of the flat tensor, ordered bits, mask) piece by piece, so that extra memory does not grow with n.

    The bits of what does not survive are 0.
    """
    for path, score in scores.items():
        flat_score, flat_mask = score.reshape(-1), masks[path].reshape(-1)
        for start in range(0, flat_score.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            bits, survives = ordered_bits(flat_score[part], signed), flat_mask[part]
            if not survives.all():
                bits *= survives
            yield path, part, bits, survives


def _threshold(scores: Arrays, masks: Arrays, signed: bool, keep: int, survivors: int) -> tuple[np.uint32, int]:
    """The ordered bits of the `keep`-th largest survivor, and how many of those equal to it are among the `keep`."""
    low, high = _bracket(scores, masks, signed, keep / survivors)
    above, count, parts = 0, 0, []
    for _, _, bits, _ in _chunks(scores, masks, signed):
        above += int(np.count_nonzero(bits > high))
        bits -= low  # What is smaller wraps round to more than the difference.
        parts.append(bits[bits <= high - low])
        count += parts[-1].size
        if count > _MOST_COLLECTED:
            break
    wanted = keep - above
    if not 0 < wanted <= count or count > _MOST_COLLECTED:  # The sample misled, or many are equal.
        return _threshold_by_histograms(scores, masks, signed, keep)
    between = np.concatenate(parts)
    threshold = np.partition(between, count - wanted)[count - wanted]
    return threshold + low, wanted - int(np.count_nonzero(between > threshold))


def _bracket(scores: Arrays, masks: Arrays, signed: bool, fraction: float) -> tuple[np.uint32, np.uint32]:
    """Two ordered bits between which that of the smallest of the largest `fraction` of the survivors is likely to lie.

    They are four standard deviations of its rank in the sample away from it. The lower one is not 0, which is for what
    does not survive.
    """
    stride = max(1, sum(score.size for score in scores.values()) // _SAMPLE)
    sample = np.concatenate(
        [
            ordered_bits(score.reshape(-1)[::stride], signed)[masks[path].reshape(-1)[::stride]]
            for path, score in scores.items()
        ]
    )
    if not sample.size:
        return np.uint32(1), np.uint32(1)
    sample.sort()
    middle = (1 - fraction) * sample.size
    margin = 4 * math.sqrt(fraction * middle) + 4
    first, last = (int(np.clip(middle + way * margin, 0, sample.size - 1)) for way in (-1, 1))
    return max(sample[first], np.uint32(1)), max(sample[last], np.uint32(1))


def _threshold_by_histograms(scores: Arrays, masks: Arrays, signed: bool, keep: int) -> tuple[np.uint32, int]:
    """As `_threshold`, whatever the values are like: by the number of survivors with the same high or low 16 bits."""

    def histogram(key: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        counts = np.zeros(_BINS, np.int64)
        for _, _, bits, survives in _chunks(scores, masks, signed):
            counts += np.bincount(key(bits[survives]), minlength=_BINS)
        return counts

    bucket, above = _bin_holding(histogram(lambda bits: bits >> 16), keep)
    low = histogram(lambda bits: bits[bits >> 16 == bucket] & 0xFFFF)
    low_bits, above_in_bucket = _bin_holding(low, keep - above)
    return np.uint32(bucket << 16 | low_bits), keep - above - above_in_bucket


def _bin_holding(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that holds the `rank`-th largest entry (from 1), and how many entries lie in the bins above it."""
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, rank))
    bin_index = counts.size - 1 - position
    return bin_index, int(from_top[position] - counts[bin_index])


def _survivors_and_least(masks: Arrays, least: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """How many survive in each tensor, and how many of these it keeps at least."""
    survivors = {path: int(np.count_nonzero(mask)) for path, mask in masks.items()}
    return survivors, {path: min(least[path], count) for path, count in survivors.items()}


def _keep_in_each(scores: Arrays, masks: Arrays, counts: Mapping[str, int], signed: bool) -> dict[str, np.ndarray]:
    """Each tensor ranked by itself."""
    return {
        path: keep_largest({path: score}, {path: masks[path]}, counts[path], signed=signed)[path]
        for path, score in scores.items()
    }


def _rounded(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Whole numbers with the sum `total`: shares rounded down, and one more for the largest remainders."""
    counts = {path: int(share) for path, share in shares.items()}
    by_remainder = sorted(shares, key=lambda path: counts[path] - shares[path])
    for path in by_remainder[: total - sum(counts.values())]:
        counts[path] += 1
    return counts
