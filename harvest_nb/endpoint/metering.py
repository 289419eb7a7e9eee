"""Counting what a model's answers say that they used, as they pass the proxy."""

from __future__ import annotations

from typing import Any

from harvest_nb.bounds import bounds, json_within
from harvest_nb.endpoint.endpoint import Usage

__all__ = ["COUNTS", "WORDS", "Meter"]

COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "cache_read_tokens",
    "web_search_requests",
)
"""Names of the counts."""
WORDS = {"speed": "speed", "geo": "inference_geo", "tier": "service_tier"}
"""Names of the other things that a price depends on, each with its field in a `usage` of the Messages API."""
_LONGEST = 4 << 20  # bytes of a line, or of an answer in one piece; those that hold a usage are shorter
_BYTES_A_TOKEN = 4  # in English text
_FRAME = 100  # bytes of an event around its text
_NAME = 200  # characters of a model's name
_MOST = 10**12  # tokens; what says more is no count


class Meter:
    """Reads one answer's usage.

    Args:
        count: called once, when the answer has ended or was cut short.
        asked: the model that was asked, for an answer that names none.
        prompt: bytes of the request, from which the input is estimated where the answer does not tell it.
        streamed: whether the answer is a stream of events; else it is one JSON object.
    """

    def __init__(self, count: Usage, asked: str, prompt: int, *, streamed: bool) -> None:
        self._count, self._model, self._streamed = count, asked[:_NAME], streamed
        self._most = bounds().json_values
        self._rest = bytearray()
        self._skips = False
        self._final = False
        self._heard = 0  # tokens of the answer, estimated
        self._usage: dict[str, Any] = {"input_tokens": prompt // _BYTES_A_TOKEN}

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the answer."""
        if not self._skips:
            self._rest += data
        if self._streamed and b"\n" in data:
            *lines, rest = (data if self._skips else self._rest).split(b"\n")
            self._rest = bytearray(rest)
            for line in lines[1 if self._skips else 0 :]:
                self._line(bytes(line))
            self._skips = False
        if len(self._rest) > _LONGEST:
            self._rest.clear()
            self._skips = True

    def close(self) -> None:
        """Hand on the counts, estimated ones where the answer did not come to its end."""
        if not self._streamed:
            self._event(bytes(self._rest))
            self._final = "output_tokens" in self._usage
        if not self._final:
            self._usage["output_tokens"] = max(self._usage.get("output_tokens", 0), self._heard)
        self._count(self._model, self._usage, self._final)

    def _line(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        if b'"content_block_delta"' in line:
            self._heard += max(1, (len(line) - _FRAME) // _BYTES_A_TOKEN)
        if b'"usage"' in line:
            self._event(line[5:])

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
        self._final = self._final or said.get("type") == "message_delta"
        for place in (message, said):
            usage = place.get("usage") if isinstance(place, dict) else None
            if isinstance(usage, dict):
                # The counts of a stream's last event are those of the whole answer, not of a step.
                self._usage |= _counts(usage)


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    """Return the counts and words that a `usage` of the Messages API names (its reference, "Usage")."""
    found: dict[str, Any] = {
        name: word[:_NAME] for name, key in WORDS.items() if isinstance(word := usage.get(key), str)
    }
    found |= {
        name: usage[key]
        for name, key in (
            ("input_tokens", "input_tokens"),
            ("output_tokens", "output_tokens"),
            ("cache_read_tokens", "cache_read_input_tokens"),
        )
        if _is_count(usage.get(key))
    }
    tools = usage.get("server_tool_use")
    if isinstance(tools, dict) and _is_count(tools.get("web_search_requests")):
        found["web_search_requests"] = tools["web_search_requests"]
    written: Any = usage.get("cache_creation_input_tokens")
    if _is_count(written):
        kinds = usage.get("cache_creation")
        said: Any = kinds.get("ephemeral_1h_input_tokens") if isinstance(kinds, dict) else 0
        hour = min(said, written) if _is_count(said) else 0
        found |= {"cache_write_5m_tokens": written - hour, "cache_write_1h_tokens": hour}
    return found


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST
