"""What errors and tables say: limits of numbers, the nearest name, what two settings do not share, rows as lines."""

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def is_number(value: object, kind: type) -> bool:
    """Whether this is a number of the kind, such as `numbers.Real`; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: float = 1) -> None:
    """Raises TypeError unless this is a whole number, and ValueError where it is less than the least."""
    if not is_number(value, numbers.Integral):
        text = str(value).strip().removesuffix(".0")
        write = f" Write {name.split()[0]}={text}." if text.isdecimal() else ""
        raise TypeError(f"{name} must be a whole number; got {value!r}.{write}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}; got {value}.")


def check_within(name: str, value: Any, low: float, high: float = math.inf, ends: str = "()") -> None:
    """Raises TypeError unless this is a number, and ValueError unless it lies between the limits, which belong to them
    where `ends` has square brackets."""
    verb, limits = "lie", f"in {ends[0]}{low:g}, {high:g}{ends[1]}"
    if high == math.inf:
        verb, limits = "be", f"above {low:g}"
    write = _as_fraction(name, value) if high == 1 else ""
    if not is_number(value, numbers.Real):
        raise TypeError(f"{name} must be a number {limits}; got {value!r}.{write}")
    above = value >= low if ends[0] == "[" else value > low
    below = value <= high if ends[1] == "]" else value < high
    if not (above and below):
        raise ValueError(f"{name} must {verb} {limits}; got {value!r}.{write}")


def nearest(name: object, names: Iterable[str]) -> str:
    """ " Did you mean 'x'?" for the nearest of `names`, or nothing where none is near."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of texts as lines, the first column to the left and the others to the right."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    line = "  ".join([f"{{:<{first}}}", *(f"{{:>{width}}}" for width in others)])
    return [line.format(*row) for row in rows]


def by_name(texts: Mapping[str, str]) -> dict[str, str]:
    """Text by each of the names that a key holds, with spaces between them."""
    return {name: text for names, text in texts.items() for name in names.split()}


def given_of(config: Any, names: Iterable[str]) -> list[str]:
    """Those of some fields that do not have their defaults, as "rate=0.5"."""
    values = {name: getattr(config, name) for name in names}
    return [f"{name}={value!r}" for name, value in values.items() if value != getattr(type(config), name)]


def list_differences(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """What two nested dicts do not have in common, as "pruning.rate: 0.2 there, 0.3 here"."""
    flat_there, flat_here = _flat(there), _flat(here)
    return [
        f"{name}: {flat_there.get(name, 'nothing')!r} there, {flat_here.get(name, 'nothing')!r} here"
        for name in {**flat_here, **flat_there}
        if name not in flat_there or name not in flat_here or flat_there[name] != flat_here[name]
    ]


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """{"pruning": {"rate": 0.2}} as {"pruning.rate": 0.2}, and the dicts of a list under their positions."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(position): item for position, item in enumerate(value)}
        inner = _flat(value) if isinstance(value, dict) and value else {"": value}
        flat |= {f"{name}.{key}" if key else name: item for key, item in inner.items()}
    return flat


def _as_fraction(name: str, value: object) -> str:
    """What to write in place of percent or of a number in a text; nothing where it is not clear what was meant."""
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return ""
    if text.endswith("%") or number >= 5:
        number /= 100
    return f" Write {name.split()[0]}={number:g}: it is a fraction, not percent." if 0 < number < 1 else ""
