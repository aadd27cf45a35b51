"""How many units, in the order of their rank, stay within a budget. NumPy is not even needed."""

from __future__ import annotations

from collections.abc import Callable

CLOSE, SAFE = 0.91, 0.99
"""A time that is between these fractions of what it may be is close enough to it, and safely below: timed again, on a
machine that does other things, it is seldom the same within a hundredth or two."""

FAR = 0.8
"""A time that is less than this fraction of what it may be is worth a warning."""

_AIM = 0.95
_MOST = 10


def largest(cost: Callable[[int], int], limit: float, count: int) -> int:
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

    A cost between two that are known is taken to rise as a guide does (regula falsi), and halved where that has moved
    the same end twice. As times neither rise steadily nor are ever quite the same, one that is to count as within the
    limit must be so by `SAFE` of it, and the search ends with the first that is at least `CLOSE` of it as well, or
    after ten looks.

    Args:
        cost: Of the first units in order, so many; rising by and large.
        guide: What is known at once, and rises with it, such as multiply-adds.
        limit: What the cost may be, at most.
        count: How many units there are.

    Returns:
        How many; their cost was seen to be safely within the limit. 0 where nothing else was, and all of them where
        theirs is the limit at most.

    Example:
        >>> looks = []
        >>> nearly_largest(lambda count: looks.append(count) or 300 + count**2, lambda count: count**2, 5000, 100)
        66
        >>> looks
        [100, 0, 66]
    """
    low, high = 0, count  # So many fit; so many do not.
    above = cost(high)
    if above <= limit:
        return high
    below, fitted = cost(low), list[bool]()
    for _ in range(_MOST - 2):
        if high - low <= 1 or below >= CLOSE * limit:
            break
        share = min(max((_AIM * limit - below) / max(above - below, 1), 0.0), 1.0)
        wanted = guide(low) + share * (guide(high) - guide(low))
        middle = min(max(largest(guide, wanted, count), low + 1), high - 1)
        if len(fitted) > 1 and fitted[-1] == fitted[-2]:
            middle = (low + high) // 2
        fitted.append((seen := cost(middle)) <= SAFE * limit)
        if fitted[-1]:
            low, below = middle, seen
        else:
            high, above = middle, seen
    return low
