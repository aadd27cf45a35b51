"""Which dtype policy a setting of `mixed_precision` means on the devices at hand."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import tensorflow as tf

from aimp_tf.config.checks import check_choice

logger = logging.getLogger(__name__)

_CPU_FLAGS = ("amx_bf16", "avx512_bf16")


def resolve_policy(mixed_precision: str | None) -> str | None:
    """The policy that a setting of `PruningConfig.mixed_precision` means here; None is float32.

    What "auto" chose is logged.

    Raises:
        ValueError: It is none of the known settings.
    """
    check_choice("mixed_precision", mixed_precision)
    if mixed_precision != "auto":
        return mixed_precision
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
    policy, reason = choose_policy(gpus, _cpu_flags())
    logger.info("mixed_precision='auto' chose %s: %s.", policy or "float32", reason)
    return policy


def choose_policy(gpus: Sequence[Mapping[str, Any]], cpu_flags: Collection[str]) -> tuple[str | None, str]:
    """What "auto" chooses: the half precision that the hardware multiplies fast, or else float32.

    Args:
        gpus: Of each GPU what `tf.config.experimental.get_device_details` says. The weakest decides.
        cpu_flags: The CPU's flags as in /proc/cpuinfo. They count where there is no GPU.

    Returns:
        "mixed_bfloat16", "mixed_float16" or None for float32, and why.

    Example:
        >>> choose_policy([{"device_name": "Tesla T4", "compute_capability": (7, 5)}], ())
        ('mixed_float16', 'the GPU Tesla T4 has compute capability 7.5')
    """
    if gpus:
        weakest = min(gpus, key=_capability)
        name, capability = weakest.get("device_name", "of unknown name"), _capability(weakest)
        if not capability:
            return None, f"the GPU {name} tells no compute capability"
        policy = "mixed_bfloat16" if capability >= (8, 0) else "mixed_float16" if capability >= (7, 0) else None
        return policy, f"the GPU {name} has compute capability {'.'.join(map(str, capability))}"
    for flag in _CPU_FLAGS:
        if flag in cpu_flags:
            return "mixed_bfloat16", f"there is no GPU, and the CPU has {flag}"
    return None, f"there is no GPU, and the CPU has none of {', '.join(_CPU_FLAGS)}"


def _capability(gpu: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(gpu.get("compute_capability") or ())


def _cpu_flags() -> set[str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())
