"""Reading values out of JSON that somebody else wrote: the wrong type counts as absent, never as a crash."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import orjson

__all__ = [
    "as_bool",
    "as_count",
    "as_dict",
    "as_float",
    "as_int",
    "as_list",
    "as_str",
    "as_time",
    "as_total",
    "as_usd",
    "from_epoch",
    "seconds",
    "to_json",
]

_INT64 = 2**63
_MOST = 10**9  # no response has a billion tokens
_MOST_IN_ALL = 10**15


def as_dict(value: Any) -> dict[str, Any]:
    """`value` if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def as_str(value: Any) -> str | None:
    """`value` if it is text with something in it."""
    return value if isinstance(value, str) and value else None


def as_bool(value: Any) -> bool | None:
    """`value` if it is true or false."""
    return value if isinstance(value, bool) else None


def as_int(value: Any) -> int | None:
    """`value` as an integer of 64 bits, if it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value != value or not -_INT64 <= value < _INT64 or int(value) != value:
        return None
    return int(value)


def as_count(value: Any) -> int | None:
    """`value` as a number of tokens or requests, if it can be one."""
    number = as_int(value)
    return number if number is not None and 0 <= number <= _MOST else None


def as_total(value: Any) -> int | None:
    """`value` as a sum of counts over a whole process, if it can be one."""
    number = as_int(value)
    return number if number is not None and 0 <= number <= _MOST_IN_ALL else None


def as_float(value: Any) -> float | None:
    """`value` as a float, if it is a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def as_usd(value: Any) -> Decimal | None:
    """What something cost, as an exact decimal of at most 12 places: JSON's floats carry noise beyond them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    if not amount.is_finite() or not 0 <= amount < 1_000_000:
        return None
    return amount.quantize(Decimal("1e-12"))


def as_time(value: Any) -> datetime | None:
    """An ISO-8601 time in UTC; without a zone it is taken as UTC."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):  # in UTC it may lie before the first year, or after the last
        return None


def from_epoch(value: Any) -> datetime | None:
    """Seconds since the epoch as a time in UTC."""
    number = as_float(value)
    if number is None or not 0 <= number < 253_402_300_800:  # the year 10,000
        return None
    return datetime.fromtimestamp(number, UTC)


def seconds(later: datetime | None, earlier: datetime | None) -> float | None:
    """Seconds from `earlier` to `later`."""
    if later is None or earlier is None:
        return None
    return (later - earlier).total_seconds()


def to_json(value: Any) -> str:
    """`value` as compact JSON."""
    return orjson.dumps(value).decode()
