"""Secrets that a streaming model gives out in pieces: no recorded line holds the whole, and neither may all together.

A delta is recorded the moment it comes, so nothing can be held back until its neighbour is there. What a delta
continues, or begins with at least `LEAST` characters, is replaced at once; so at most `LEAST - 1` leading
characters of a value can be put together again from a run folder.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

from harvest_nb.redact import Redactor

__all__ = ["LEAST", "Deltas"]

LEAST = 6
_FIELDS = {"text_delta": "text", "input_json_delta": "partial_json", "thinking_delta": "thinking"}


class Deltas:
    """Follows the content blocks that are streaming, each by its sub-agent and its number.

    Args:
        redactor: knows the values; without any, nothing is followed.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._marks = redactor.forms
        self._longest = max(map(len, self._marks), default=0)
        self._ends: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
        for form in self._marks:
            for end in range(LEAST, len(form)):
                self._ends[form[end - LEAST : end]].append((form, end))
        self._tails: dict[tuple[str | None, int], str] = {}

    def safe(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """A copy of a `stream_event` without its part of a value, or None when it can stay as it is."""
        if not self._marks or message.get("type") != "stream_event":
            return None
        event = message.get("event") or {}
        key = (message.get("parent_tool_use_id"), event.get("index", -1))
        if event.get("type") == "content_block_start":
            self._tails.pop(key, None)
            return None
        delta = event.get("delta") or {}
        name = _FIELDS.get(delta.get("type", ""))
        if event.get("type") != "content_block_delta" or name is None or not delta.get(name):
            return None
        before = self._tails.get(key, "")
        both = before + delta[name]
        self._tails[key] = both[-self._longest :]
        cleaned = self._cleaned(both, len(before))
        if cleaned == delta[name]:
            return None
        changed = copy.deepcopy(message)
        changed["event"]["delta"][name] = cleaned
        return changed

    def _cleaned(self, both: str, start: int) -> str:
        """`both` from `start` on, without what belongs to a value, be it whole or only begun."""
        parts, at = [], start
        for begin, end, mark in self._spans(both):
            if end <= at:
                continue
            if begin >= at:
                parts += [both[at:begin], mark]
            elif not parts and begin + LEAST > start:
                parts.append(mark)  # its beginning was too short to be known for one
            at = end
        return "".join([*parts, both[at:]])

    def _spans(self, both: str) -> list[tuple[int, int, str]]:
        found = []
        for form, mark in self._marks.items():
            begin = both.find(form)
            while begin >= 0:
                found.append((begin, begin + len(form), mark))
                begin = both.find(form, begin + 1)
        for form, end in self._ends.get(both[-LEAST:], ()):
            if both.endswith(form[:end]):
                found.append((len(both) - end, len(both), self._marks[form]))
        return sorted(found, key=lambda span: (span[0], -span[1]))
