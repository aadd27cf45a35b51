"""What a granularity asks of the inputs of an output unit, and which settings go with it."""

import dataclasses
import re
from typing import Any

from aimp_tf.config.latency import Latency
from aimp_tf.config.texts import given_of, nearest

KINDS = ("channel", "head", "dimension", "block")
"""What whole structures there are. All but the last can be ranked together."""

OF_CHANNELS = ("budget", "channel_multiple")
"""Fields that only whole structures use."""

OF_ALL = ("magnitude", "taylor", "fisher")
"""Criteria that score heads and blocks as well."""

OF_BLOCKS = ("output_information",)
"""Criteria that score blocks alone."""


@dataclasses.dataclass(frozen=True)
class Structure:
    """What a granularity asks of consecutive inputs of one output unit, such as kernel[0:4, 7] of a Dense layer.

    Attributes:
        m: Inputs that it looks at together. A variable must have a multiple of them.
        block: Of these, how many are kept or removed as one: 1 or m.
        n: How many of each m stay; 0 leaves that to the ranking.
        kinds: Which whole structures are kept or removed, with everything that is tied to them: some of `KINDS`, or
            none.
    """

    m: int = 1
    block: int = 1
    n: int = 0
    kinds: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    @property
    def channels(self) -> bool:
        """Whether whole structures are kept or removed."""
        return bool(self.kinds)

    @classmethod
    def of(cls, granularity: object) -> "Structure":
        """The structure of "unstructured", "1x4" or the like, "2:4" or the like, one of `KINDS`, or several of those
        that can be ranked together. Raises ValueError for another.

        Example:
            >>> Structure.of("2:4")
            Structure(m=4, block=1, n=2)
        """
        if granularity == "unstructured":
            return cls()
        kinds = granularity if isinstance(granularity, (tuple, list)) and granularity else (granularity,)
        if all(kind in KINDS for kind in kinds) and ("block" not in kinds or len(set(kinds)) == 1):
            return cls(kinds=tuple(kind for kind in KINDS if kind in kinds))
        blocks, of_each = (re.fullmatch(pattern, str(granularity)) for pattern in (r"1x(\d+)", r"(\d+):(\d+)"))
        if blocks and int(blocks[1]) > 1:
            return cls(m=int(blocks[1]), block=int(blocks[1]))
        if of_each and 0 < int(of_each[1]) < int(of_each[2]):
            return cls(m=int(of_each[2]), n=int(of_each[1]))
        raise ValueError(
            "granularity must be 'unstructured', 'channel', 'head', 'dimension', several of these three such as "
            "('channel', 'head'), 'block', blocks of weights such as '1x4', or so many of each few such as '2:4'; got "
            f"{granularity!r}."
            f"{nearest(granularity, ('unstructured', *KINDS, '1x4', '2:4'))}"
        )

    def __str__(self) -> str:
        if len(self.kinds) > 1:
            return f"granularity={self.kinds!r}"
        single = self.kinds[0] if self.kinds else "unstructured"
        text = single if self.m == 1 else f"{self.n}:{self.m}" if self.n else f"1x{self.m}"
        return f"granularity={text!r}"


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
