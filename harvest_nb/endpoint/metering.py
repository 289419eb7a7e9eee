"""Counting what a model's answers say that they used, as they pass the proxy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from harvest_nb.bounds import bounds, json_within

__all__ = ["COUNTS", "Meter"]

COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
)
"""Names of the counts."""
_LONGEST = 1 << 20  # bytes of a line; those that hold a usage are short
_NAME = 200  # characters of a model's name
_MOST = 10**12  # tokens; what says more is no count


class Meter:
    """Reads one answer's usage.

    Args:
        count: called once with the model that answered and its counts, by the names of `COUNTS`.
        asked: the model that was asked, for an answer that names none.
        streamed: whether the answer is a stream of events; else it is one JSON object.
    """

    def __init__(
        self, count: Callable[[str, Mapping[str, int]], None], asked: str, *, streamed: bool
    ) -> None:
        self._count, self._model, self._streamed = count, asked, streamed
        self._most = bounds().json_values
        self._rest = bytearray()
        self._skips = False
        self._usage: dict[str, int] = {}

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the answer."""
        self._rest += data
        if not self._streamed:
            return  # whole at its end; the proxy bounds it
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        for line in lines:
            if not self._skips and line.startswith(b"data:") and b'"usage"' in line:
                self._event(bytes(line[5:]))
            self._skips = False
        if len(self._rest) > _LONGEST:
            self._rest.clear()
            self._skips = True

    def close(self) -> None:
        """Hand on the counts, whatever came of the answer."""
        if not self._streamed:
            self._event(bytes(self._rest))
        self._count(self._model, self._usage)

    def _event(self, text: bytes) -> None:
        try:
            said: Any = json_within(text, self._most)
        except ValueError:
            return  # the CLI, which reads the same bytes, says what is wrong with it
        if not isinstance(said, dict):
            return
        message = said.get("message", said)
        if isinstance(message, dict) and isinstance(message.get("model"), str):
            self._model = message["model"][:_NAME]
        for place in (message, said):
            usage = place.get("usage") if isinstance(place, dict) else None
            if isinstance(usage, dict):
                # The counts of a stream's last event are those of the whole answer, not of a step.
                self._usage |= _counts(usage)


def _counts(usage: dict[str, Any]) -> dict[str, int]:
    """Return the counts that a `usage` of the Messages API names (its reference, "Usage")."""
    found: dict[str, int] = {
        name: usage[key]
        for name, key in (
            ("input_tokens", "input_tokens"),
            ("output_tokens", "output_tokens"),
            ("cache_read_tokens", "cache_read_input_tokens"),
        )
        if _is_count(usage.get(key))
    }
    written: Any = usage.get("cache_creation_input_tokens")
    if _is_count(written):
        kinds = usage.get("cache_creation")
        said: Any = kinds.get("ephemeral_1h_input_tokens") if isinstance(kinds, dict) else 0
        hour = min(said, written) if _is_count(said) else 0
        found |= {"cache_write_5m_tokens": written - hour, "cache_write_1h_tokens": hour}
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST
