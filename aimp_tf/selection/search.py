"""How many units, in the order of their rank, stay within a budget. NumPy is not even needed."""

from __future__ import annotations

from collections.abc import Callable

CLOSE = 0.93
"""A time that is at least this fraction of what it may be is close enough to it."""

_AIM = 0.965
_MOST = 10


def largest(cost: Callable[[int], int], limit: int, count: int) -> int:
    """The largest number of units, of so many, whose cost is within a limit; none of them costs no more than that.

    Args:
        cost: Of the first units in order, so many; never falling.
        limit: What it may be, at most.
        count: How many units there are.

    Example:
        >>> largest(lambda count: 10 + count**2, 50, 20)
        6
    """
    low, high = 0, count + 1  # So many fit; so many do not.
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return low


def nearly_largest(cost: Callable[[int], int], guide: Callable[[int], int], limit: int, count: int) -> int:
    """A number of units whose cost is within a limit and nearly as much, where each look at a cost takes long.

    A cost between two that are known is taken to rise as a guide does (regula falsi). As times neither rise steadily
    nor are ever quite the same, the search ends with the first that is at least `CLOSE` of the limit, or after ten
    looks.

    Args:
        cost: Of the first units in order, so many; rising by and large.
        guide: What is known at once, and rises with it, such as multiply-adds.
        limit: What the cost may be, at most.
        count: How many units there are.

    Returns:
        How many; their cost was seen to be within the limit. 0 where nothing else was.

    Example:
        >>> looks = []
        >>> nearly_largest(lambda count: looks.append(count) or 300 + count**2, lambda count: count**2, 5000, 100)
        67
        >>> looks
        [100, 0, 67]
    """
    low, high = 0, count  # So many fit; so many do not.
    above = cost(high)
    if above <= limit:
        return high
    below = cost(low)
    for _ in range(_MOST - 2):
        if high - low <= 1 or below >= CLOSE * limit:
            break
        share = min(max((_AIM * limit - below) / max(above - below, 1), 0.0), 1.0)
        wanted = guide(low) + share * (guide(high) - guide(low))
        middle = min(max(_nearest(guide, wanted, low, high), low + 1), high - 1)
        if (seen := cost(middle)) <= limit:
            low, below = middle, seen
        else:
            high, above = middle, seen
    return low


def _nearest(guide: Callable[[int], int], wanted: float, low: int, high: int) -> int:
    """The largest number between two whose guide is no more than is wanted."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if guide(middle) <= wanted else (low, middle)
    return low
