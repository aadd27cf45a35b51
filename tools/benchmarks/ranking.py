"""Ranking of all weights of a large network, beside a plain partition and PyTorch's global pruning."""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib.util
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from aimp_tf.selection.ranking import keep_largest
from benchmarks.side_by_side import compare, resident_bytes, time_in_turn

_Weights = Mapping[str, np.ndarray]
_OURS = "aimp_tf"
_FRACTION_KEPT = 0.8


def run(
    repetitions: int,
    count: int = 25_500_000,
    tensors: int = 54,
    counts: Sequence[int] = (1_000_000, 10_000_000, 100_000_000, 250_000_000),
) -> dict[str, Any]:
    """Ranks normally distributed weights, of which 80% are kept.

    Args:
        count: Number of weights where sides are compared: those of a ResNet-50 by default.
        tensors: Number of tensors that they lie in.
        counts: Numbers of weights where aimp_tf is timed alone, to see how its time grows.

    Returns:
        Medians of seconds and ratios, and peaks of extra memory in bytes. PyTorch's part is missing where it is not
        installed.
    """
    figures, memory, lines = _compare(repetitions, count, tensors)
    growth = {str(size): _median_seconds(repetitions, size, tensors) for size in counts}
    lines += [
        f"{f'{int(size):,} in {tensors}':28}{_OURS:18}{1000 * seconds:.4g} ms" for size, seconds in growth.items()
    ]
    of_a_billion = growth[str(max(counts))] / max(counts) * 1e9
    lines.append(f"{'1,000,000,000':28}{_OURS:18}{1000 * of_a_billion:.4g} ms, extrapolated from {max(counts):,}")
    return {"sides": figures, "extra_memory_bytes": memory, "seconds_by_count": growth, "table": "\n".join(lines)}


def _compare(repetitions: int, count: int, tensors: int) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """The figures of the sides, their extra memory in bytes, and lines that tell both."""
    weights = _normal(count, tensors)
    masks, keep = _all_true(weights), _without_ties(weights)
    sides = {
        _OURS: functools.partial(_ours, weights, masks, keep),
        "NumPy partition": functools.partial(_partition, weights, keep),
    }
    if importlib.util.find_spec("torch") is not None:
        sides["PyTorch"] = functools.partial(_torch, weights, keep)
    for side in sides.values():
        side()
    result = sum(mask.nbytes for mask in masks.values())
    memory = {name: _extra_memory(side) - result for name, side in sides.items()}
    figures, lines = compare(f"{count:,} in {tensors}", time_in_turn(sides, repetitions), _OURS)
    lines += [
        f"{'extra memory':28}{name:18}{extra / 1e6:.1f} MB beside the new masks of {result / 1e6:.1f} MB"
        for name, extra in memory.items()
    ]
    if "PyTorch" not in sides:
        lines.append("PyTorch is not installed, so it is not compared; the extra benchmark has it.")
    return figures, memory, lines


def _median_seconds(repetitions: int, count: int, tensors: int) -> float:
    weights = _normal(count, tensors)
    side = functools.partial(_ours, weights, _all_true(weights), round(_FRACTION_KEPT * count))
    return statistics.median(time_in_turn({_OURS: side}, repetitions)[_OURS])


def _normal(count: int, tensors: int) -> dict[str, np.ndarray]:
    """Float32 arrays, each of its own scale, as the layers of a network have."""
    generator = np.random.default_rng(0)
    sizes = [count // tensors + (i < count % tensors) for i in range(tensors)]
    return {
        f"layer_{i:02d}": generator.standard_normal(size, np.float32) * np.float32(0.02 + 0.002 * i)
        for i, size in enumerate(sizes)
    }


def _all_true(weights: _Weights) -> dict[str, np.ndarray]:
    return {path: np.ones(weight.shape, bool) for path, weight in weights.items()}


def _without_ties(weights: _Weights) -> int:
    """How many to keep: about four fifths, where the last one kept and the first one removed differ in magnitude.

    Otherwise the sides may rightly keep different ones of the same magnitude.
    """
    magnitudes = np.abs(np.concatenate(list(weights.values())))
    middle = round((1 - _FRACTION_KEPT) * magnitudes.size)
    return int(np.count_nonzero(magnitudes >= np.partition(magnitudes, middle)[middle]))


def _ours(weights: _Weights, masks: _Weights, keep: int) -> Sequence[np.ndarray]:
    return list(keep_largest(weights, masks, keep).values())


def _partition(weights: _Weights, keep: int) -> Sequence[np.ndarray]:
    magnitudes = np.abs(np.concatenate(list(weights.values())))
    removed = magnitudes.size - keep
    threshold = np.partition(magnitudes, removed)[removed]
    return [np.abs(weight) >= threshold for weight in weights.values()]


def _torch(weights: _Weights, keep: int) -> Sequence[np.ndarray]:
    import torch
    from torch.nn.utils import prune

    modules = []
    for weight in weights.values():
        modules.append(torch.nn.Module())
        modules[-1].register_parameter("weight", torch.nn.Parameter(torch.from_numpy(weight)))
    removed = sum(weight.size for weight in weights.values()) - keep
    prune.global_unstructured(
        [(module, "weight") for module in modules], pruning_method=prune.L1Unstructured, amount=removed
    )
    return [module.get_buffer("weight_mask").numpy() != 0 for module in modules]


def _extra_memory(work: Callable[[], object]) -> int:
    """How much the peak of the resident memory, in bytes, lies above what is resident before. Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # Or it would be served from what was used and freed before.
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    before = resident_bytes("VmRSS")
    work()
    return max(0, resident_bytes("VmHWM") - before)
