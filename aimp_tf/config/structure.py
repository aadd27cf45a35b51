"""What a granularity asks of the inputs of an output unit."""

import dataclasses
import re

from aimp_tf.config.texts import nearest

KINDS = ("channel", "head", "dimension", "block")
"""What whole structures there are. All but the last can be ranked together."""


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

    @property
    def need(self) -> str:
        """Why it leaves a variable dense."""
        return f"its inputs are no multiple of {self.m}, which {self} needs"
