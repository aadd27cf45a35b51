"""Global magnitude ranking: the k largest survivors of many tensors together, in bounded memory. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

_CHUNK = 1 << 20
_BINS = 1 << 16


def keep_largest(
    weights: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray], keep: int
) -> dict[str, np.ndarray]:
    """Masks that keep the `keep` largest survivors of all tensors, ranked together by magnitude.

    The magnitude is |w| in float32. Ties are broken by position: the order of `weights`, then the flat index; earlier
    positions are kept. The bit pattern of a non-negative float32 grows with its value, so the threshold is found
    exactly with two histograms, over the high and the low 16 bits, and nothing is concatenated or sorted.

    Args:
        weights: Path -> float array of any shape.
        masks: Path -> bool array of the same shape; True marks a survivor. Others are never kept.
        keep: How many to keep, between 0 and the number of survivors.

    Returns:
        Path -> new bool array with exactly `keep` True entries in all, each True in `masks` too.

    Raises:
        ValueError: `keep` is out of range, or the shapes of a weight and its mask differ.
        RuntimeError: A surviving weight is NaN or infinite; the variables are named.

    Example:
        >>> weights = {"a": np.array([3.0, -1.0]), "b": np.array([-2.0, 2.0])}
        >>> masks = {path: np.ones(2, bool) for path in weights}
        >>> {path: mask.tolist() for path, mask in keep_largest(weights, masks, 2).items()}
        {'a': [True, False], 'b': [True, False]}
    """
    for path, weight in weights.items():
        if weight.shape != masks[path].shape:
            raise ValueError(f"{path} has shape {weight.shape}, but its mask has shape {masks[path].shape}.")
    survivors = sum(int(np.count_nonzero(masks[path])) for path in weights)
    if not 0 <= keep <= survivors:
        raise ValueError(f"keep must lie between 0 and the {survivors} survivors; got {keep}.")
    check_finite(weights, masks)
    if keep == 0:
        return {path: np.zeros(weight.shape, bool) for path, weight in weights.items()}

    high = _histogram(weights, masks, lambda bits: bits >> 16)
    bucket, above = _bin_holding(high, keep)
    low = _histogram(weights, masks, lambda bits: bits[bits >> 16 == bucket] & 0xFFFF)
    low_bits, above_in_bucket = _bin_holding(low, keep - above)
    threshold = np.uint32(bucket << 16 | low_bits)
    ties_left = keep - above - above_in_bucket

    kept: dict[str, np.ndarray] = {}
    for path, weight in weights.items():
        new_mask = np.empty(weight.size, bool)
        for part, bits, survives in _chunks(weight, masks[path]):
            new_mask[part] = survives & (bits > threshold)
            ties = np.flatnonzero(survives & (bits == threshold))[:ties_left]
            new_mask[part][ties] = True
            ties_left -= ties.size
        kept[path] = new_mask.reshape(weight.shape)
    return kept


def check_finite(weights: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]) -> None:
    """Raises RuntimeError, naming the variables, if a surviving weight is NaN or infinite."""
    infinity = np.uint32(0x7F800000)
    bad = [
        path
        for path, weight in weights.items()
        if any(np.any(survives & (bits >= infinity)) for _, bits, survives in _chunks(weight, masks[path]))
    ]
    if bad:
        raise RuntimeError(
            f"These variables hold NaN or infinite weights: {', '.join(bad)}. The masks are unchanged. The training "
            "has diverged: lower the learning rate or clip the gradients (clipnorm)."
        )


def _magnitude_bits(weights: np.ndarray) -> np.ndarray:
    """|w| in float32 as uint32, whose order is that of the magnitudes."""
    return np.ascontiguousarray(weights, dtype=np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)


def _chunks(weight: np.ndarray, mask: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """(slice of the flat tensor, magnitude bits, mask) piece by piece, so that extra memory does not grow with n."""
    flat_weight, flat_mask = weight.reshape(-1), mask.reshape(-1)
    for start in range(0, flat_weight.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        yield part, _magnitude_bits(flat_weight[part]), flat_mask[part]


def _histogram(weights, masks, key) -> np.ndarray:
    counts = np.zeros(_BINS, np.int64)
    for path, weight in weights.items():
        for _, bits, survives in _chunks(weight, masks[path]):
            counts += np.bincount(key(bits[survives]), minlength=_BINS)
    return counts


def _bin_holding(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that holds the `rank`-th largest entry (from 1), and how many entries lie in the bins above it."""
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, rank))
    bin_index = counts.size - 1 - position
    return bin_index, int(from_top[position] - counts[bin_index])
