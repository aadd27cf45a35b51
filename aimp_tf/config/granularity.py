"""Which settings go with which granularity."""

from typing import Any

from aimp_tf.config.latency import Latency
from aimp_tf.config.texts import given_of

OF_CHANNELS = ("budget", "channel_multiple")
"""Fields that only whole structures use."""

OF_ALL = ("magnitude", "taylor", "fisher")
"""Criteria that score heads and blocks as well."""

OF_BLOCKS = ("output_information",)
"""Criteria that score blocks alone."""


def check_granularity(config: Any) -> None:
    """Refuses what the granularity does not use."""
    channels = config.structure.channels
    given = given_of(config, ("min_layer_share",) if channels else OF_CHANNELS)
    if given:
        instead = "min_layer_survivors counts channels" if channels else "granularity='channel' has"
        raise ValueError(f"{config.structure} has no use for {', '.join(given)}; {instead}.")
    many_times = config.method in ("gradual", "soft", "dynamic")
    if isinstance(config.budget, Latency) and (many_times or config.stop_mask_distance is not None):
        what = f"method={config.method!r}" if many_times else "stop_mask_distance"
        raise ValueError(
            f"{what} ranks many times within a training, and each time a Latency would have to time models. Leave it "
            "out, or write budget='flops'."
        )
    if config.regrow and (channels or config.structure.n):
        raise ValueError(
            f"regrow is for single weights and '1x4' and the like, and not for {config.structure}: channels that are "
            "removed have no gradients, and n:m leaves no choice. Leave out one of the two."
        )
    if config.regrow and config.compact_rounds:
        raise ValueError("regrow brings weights back, also of channels that compact_rounds leaves out. Leave out one.")
    if config.fade_epochs and config.repair:
        raise ValueError(
            "repair makes up for what goes at once, and with fade_epochs it fades. Leave out one of the two."
        )
    _check_kinds(config)
    if config.method == "dynamic" and not channels:
        raise ValueError(f"method='dynamic' is of channels; got {config.structure}. Write granularity='channel'.")
    if config.channel_multiple < 1:
        raise ValueError(f"channel_multiple must be at least 1; got {config.channel_multiple}.")


def _check_kinds(config: Any) -> None:
    """Refuses what knows channels alone, where heads or blocks are ranked."""
    kinds = [kind for kind in config.structure.kinds if kind != "channel"]
    if config.criterion in OF_BLOCKS and "block" not in kinds:
        raise ValueError(f"criterion={config.criterion!r} ranks whole blocks. Write granularity='block'.")
    if not kinds:
        return
    others = f"{kinds[0]}s, which {config.structure} ranks"
    known = (*OF_ALL, *(OF_BLOCKS if "block" in kinds else ()))
    if isinstance(config.criterion, str) and config.criterion not in known:
        raise ValueError(
            f"criterion={config.criterion!r} does not know {others}. Write "
            f"{' or '.join(f'criterion={name!r}' for name in known)}."
        )
    if config.repair or config.method == "dynamic":
        what, write = ("repair", "repair=False") if config.repair else ("method='dynamic'", "another method")
        raise ValueError(f"{what} does not know {others}. Write {write}.")
    if "block" in kinds and config.channel_multiple > 1:
        raise ValueError(f"channel_multiple does not know {others}. Leave it out.")
