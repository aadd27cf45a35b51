"""How fast coded files are written and read, and how far they are from their entropy."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from aimp_tf.coding import tensors
from aimp_tf.coding.reading import Bytes
from benchmarks.side_by_side import spread_text

_SHAPE = (2048, 4096)
_CASES = tuple((sparsity, levels) for sparsity in (0.5, 0.9, 0.98, 0.99) for levels in (16, 256))


def run(repetitions: int) -> dict[str, Any]:
    """Writes and reads a kernel of 8.4 million weights, zero anywhere and of values from a normal distribution.

    Returns:
        "cases", each with its sparsity, levels, bytes, bits for each survivor, the payload as a fraction of its entropy
        and millions of weights a second that are written and read, zeros among them, in each repetition.
    """
    cases = [_case(sparsity, levels, repetitions) for sparsity, levels in _CASES]
    head = f"{'zeros':>7}{'values':>8}{'bits a survivor':>17}{'over entropy':>14}  {'written, M/s':26}read, M/s"
    lines = [f"a kernel of {_SHAPE[0]} x {_SHAPE[1]}, {repetitions} times: median (lowest to highest)", "", head]
    for case in cases:
        lines.append(
            f"{case['sparsity']:7.0%}{case['levels']:8}{case['bits_a_survivor']:17.3f}{case['over_entropy']:14.5f}  "
            f"{spread_text(case['written']):26}{spread_text(case['read'])}"
        )
    return {"cases": cases, "table": "\n".join(lines)}


def _case(sparsity: float, levels: int, repetitions: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    values = np.sort(generator.normal(size=levels)).astype(np.float32)
    weights = generator.normal(size=_SHAPE).astype(np.float32)
    places = np.searchsorted((values[1:] + values[:-1]) / 2, weights)
    kernel = np.where(generator.random(_SHAPE) < sparsity, np.float32(0), values[places])
    written, read = [], []
    for _ in range(repetitions):
        begun_at = time.perf_counter()
        content, part = tensors.write(kernel)
        written.append(kernel.size / 1e6 / (time.perf_counter() - begun_at))
        begun_at = time.perf_counter()
        found = tensors.read(Bytes(content), kernel.size)
        read.append(kernel.size / 1e6 / (time.perf_counter() - begun_at))
        if not np.array_equal(found, kernel):
            raise RuntimeError("What was read is not what was written, so that its speed says nothing.")
    return {
        "sparsity": sparsity,
        "levels": levels,
        "bytes": len(content),
        "bits_a_survivor": 8 * len(content) / part.survivors,
        "over_entropy": 8 * part.stream_bytes / part.entropy_bits,
        "written": written,
        "read": read,
        "written_median": statistics.median(written),
        "read_median": statistics.median(read),
    }
