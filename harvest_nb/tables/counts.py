"""The counts in one `usage` object: what each column of `usage` gets, and what is odd about them.

What is missing stays missing. The Messages API's reference says which counts may be left out, and what that means:

- `input_tokens` and `output_tokens` are required. Without them a record does not say what was used: missing.
- `cache_creation_input_tokens`, `cache_read_input_tokens`, `cache_creation` and `server_tool_use` may be null or
  left out, for requests that used no cache and no such tool: 0, in a `usage` that has both required counts. A
  fragment that lacks one of those (an event of a stream) says nothing about the rest: missing.
- Before `cache_creation` there was, cache writes were for 5 minutes.
- A value that is no count (negative, no number, over a billion) is missing. Of the two kinds of cache write one
  may be worked out from the other and their sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harvest_nb.tables.values import as_count, as_dict

__all__ = ["TOKENS", "UNITS_OF_USAGE", "counts", "is_whole", "oddities"]

TOKENS = (
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
)
"""Columns of `usage` that count what is charged by the token."""
UNITS_OF_USAGE = (*TOKENS, "web_search_requests")
"""Columns of `usage` that a cost depends on."""

_COUNTS = (
    ("input_tokens",),
    ("output_tokens",),
    ("cache_creation_input_tokens",),
    ("cache_read_input_tokens",),
    ("cache_creation", "ephemeral_5m_input_tokens"),
    ("cache_creation", "ephemeral_1h_input_tokens"),
    ("server_tool_use", "web_search_requests"),
    ("server_tool_use", "web_fetch_requests"),
)


def is_whole(usage: dict[str, Any]) -> bool:
    """Whether `usage` has the counts that every whole one has, so that what it leaves out is 0."""
    return usage.get("input_tokens") is not None and usage.get("output_tokens") is not None


def counts(usage: dict[str, Any]) -> dict[str, int | None]:
    """The counts of a `usage` object, by column of `usage`; `None` where it does not say."""
    five, hour = _written(usage)
    tools = ("server_tool_use",)
    return {
        "input_tokens": as_count(usage.get("input_tokens")),
        "output_tokens": as_count(usage.get("output_tokens")),
        "cache_write_5m_tokens": five,
        "cache_write_1h_tokens": hour,
        "cache_read_tokens": _optional(usage, "cache_read_input_tokens"),
        "thinking_tokens": as_count(as_dict(usage.get("output_tokens_details")).get("thinking_tokens")),
        "web_search_requests": _optional(usage, *tools, "web_search_requests"),
        "web_fetch_requests": _optional(usage, *tools, "web_fetch_requests"),
    }


def oddities(usage: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Reason and detail of everything in a `usage` object that is missing, is no count, or does not add up."""
    bad = [path for path in _COUNTS if _is_bad(usage, *path)]
    for path in bad:
        value = str(_at(usage, *path))[:40]
        yield "bad_count", f"{'.'.join(path)} is {value}: no count, so it is taken as missing"
    found = counts(usage)
    missing = [name for name in UNITS_OF_USAGE if found[name] is None]
    if missing and not bad:
        yield "missing_count", f"does not say its {', '.join(missing)}: missing, as is its cost, and not 0"
    parts = [as_count(_at(usage, *path)) or 0 for path in _COUNTS if path[0] == "cache_creation"]
    written = as_count(usage.get("cache_creation_input_tokens"))
    if written is not None and any(parts) and sum(parts) != written and not bad:
        yield (
            "bad_count",
            (
                f"cache_creation adds up to {sum(parts)}, cache_creation_input_tokens is {written}: "
                "what the split leaves out is taken as 5-minute writes"
            ),
        )


def _written(usage: dict[str, Any]) -> tuple[int | None, int | None]:
    """Cache writes for 5 minutes and for 1 hour."""
    whole = as_count(usage.get("cache_creation_input_tokens"))
    paths = [("cache_creation", f"ephemeral_{kind}_input_tokens") for kind in ("5m", "1h")]
    five, hour = (as_count(_at(usage, *path)) for path in paths)
    bad_five, bad_hour = (_is_bad(usage, *path) for path in paths)
    if bad_five and bad_hour:
        return None, None
    if bad_five:
        return _rest(whole, hour), hour or 0
    if bad_hour:
        return five or 0, _rest(whole, five)
    if five is None and hour is None and whole is None:
        silent = is_whole(usage) and not _is_bad(usage, "cache_creation_input_tokens")
        return (0, 0) if silent else (None, None)
    five, hour = five or 0, hour or 0
    return five + max((whole or 0) - five - hour, 0), hour


def _rest(whole: int | None, part: int | None) -> int | None:
    return whole - (part or 0) if whole is not None and whole >= (part or 0) else None


def _optional(usage: dict[str, Any], *path: str) -> int | None:
    count = as_count(_at(usage, *path))
    if count is None and is_whole(usage) and not _is_bad(usage, *path):
        return 0
    return count


def _is_bad(usage: dict[str, Any], *path: str) -> bool:
    """Whether there is something at `path`, or in place of what should hold it, that is no count."""
    if len(path) > 1 and usage.get(path[0]) is not None and not isinstance(usage[path[0]], dict):
        return True
    value = _at(usage, *path)
    return value is not None and as_count(value) is None


def _at(usage: dict[str, Any], *path: str) -> Any:
    value: Any = usage
    for key in path[:-1]:
        value = as_dict(value.get(key))
    return value.get(path[-1])
