"""Replaces secrets that a streaming model gives out in pieces, of which no recorded line holds the whole."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

from harvest_nb.redact import Pieces, Redactor

__all__ = ["Deltas"]

_MOST = 1_000  # blocks that are followed at one time
_FIELDS = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}


class Deltas:
    """Follows the content blocks that are streaming, each by its sub-agent and its number.

    Args:
        redactor: knows the values; without any, nothing is followed.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._blocks: defaultdict[int, Pieces] = defaultdict(lambda: Pieces(redactor))
        self._follows = redactor.knows

    def safe(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """A copy of a `stream_event` without its part of a value, or None when it can stay as it is."""
        if not self._follows or message.get("type") != "stream_event":
            return None
        event = message.get("event") or {}
        # A hash, as what is named there may be long.
        key = hash((str(message.get("parent_tool_use_id")), str(event.get("index"))))
        if event.get("type") in ("content_block_start", "content_block_stop"):
            self._blocks.pop(key, None)
            return None
        delta = event.get("delta") or {}
        name = _FIELDS.get(delta.get("type", ""))
        if event.get("type") != "content_block_delta" or name is None or not delta.get(name):
            return None
        if key not in self._blocks and len(self._blocks) == _MOST:
            del self._blocks[next(iter(self._blocks))]  # the one that began first
        cleaned = self._blocks[key].text(delta[name])
        if cleaned == delta[name]:
            return None
        changed = copy.deepcopy(message)
        changed["event"]["delta"][name] = cleaned
        return changed
