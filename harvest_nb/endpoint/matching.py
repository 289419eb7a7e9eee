"""Which recorded request a request is: by what was said and done, without what differs between machines.

A request's *view* is a list of lines: who asks, each prompt in its own words, each text and tool call of the model,
and whether each tool succeeded. Left out are the system prompt, the CLI's reminders, what tools printed, thinking,
and how many notices of background tasks came in between; paths are placeholders, and ids and dates are masked.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harvest_nb.endpoint.conversation import Conversation, own_words, text_of, without_reminders

__all__ = ["Line", "View", "diff", "view_of"]

_MASKS = (
    (re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"), "<uuid>"),
    (re.compile(r"\b(?:toolu|msg|req|srvtoolu)_[A-Za-z0-9]{8,}\b"), "<id>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"), "<date>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{12,}\b"), "<hex>"),
    (re.compile(r"\b2\.\d+\.\d{1,4}\b(?=[^\n]{0,20}Claude Code)"), "<version>"),
)
_SHOWN = 240


@dataclass(frozen=True)
class Line:
    """One line of a view.

    Args:
        shown: what a diff adds to it and matching ignores: the beginning of a tool's output.
        digest: what a cassette keeps in its place: length and SHA-256.
    """

    key: str
    shown: str = ""
    digest: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.shown}" if self.shown else self.key


@dataclass(frozen=True)
class View:
    """A request as it is matched."""

    lines: tuple[Line, ...]
    notified: int = 0
    """How many ends of background tasks have been reported; prefers one of several recordings that fit."""

    @property
    def digests(self) -> list[str]:
        """A digest for each number of leading lines; the last one is the view's own."""
        found, digest = [], b""
        for line in self.lines:
            digest = hashlib.sha256(digest + line.key.encode("utf-8", "surrogatepass") + b"\0").digest()
            found.append(digest.hex()[:32])
        return found

    @property
    def digest(self) -> str:
        """What two requests that are the same have in common."""
        return self.digests[-1]


def view_of(c: Conversation, clean: Callable[[str], str]) -> View:
    """The view of a request. `clean` masks what belongs to this machine, such as its paths."""

    def mask(text: str) -> str:
        text = clean(text)
        for pattern, name in _MASKS:
            text = pattern.sub(name, text)
        return text.strip()

    names: dict[str, str] = {}
    turns: list[list[Line]] = []
    notified = 0
    for message in c.messages:
        blocks = message["content"]
        if isinstance(blocks, str):
            blocks = [{"type": "text", "text": blocks}]
        if message["role"] == "user":
            count = sum(
                "<task-notification>" in text_of(block) for block in blocks if block["type"] == "text"
            )
            notified += count
            lines = [line for block in blocks for line in _user(block, names, mask)]
            turns.append(lines or [Line("a background task ended" if count else "the session goes on")])
        else:
            turns.append([line for block in blocks for line in _assistant(block, names, mask)])
    flat = [line for turn in _without_notices(turns) for line in turn]
    streamed = "" if c.body.get("stream") else ", as a whole"
    return View((Line(f"agent: {c.agent}{streamed}"), *flat), notified)


def _without_notices(turns: list[list[Line]]) -> list[list[Line]]:
    """Turns without those in which a notice only brought a word: how many there are is a matter of timing."""
    kept: list[list[Line]] = []
    for turn in turns:
        notice = [line.key for line in turn] == ["a background task ended"]
        before = kept[-2:]
        if (
            notice
            and len(before) == 2
            and [line.key for line in before[0]] == ["a background task ended"]
            and not any("calls " in line.key for line in before[1])
        ):
            del kept[-2:]
        kept.append(turn)
    return kept


def _user(block: dict[str, Any], names: dict[str, str], mask: Callable[[str], str]) -> list[Line]:
    match block["type"]:
        case "text":
            words = own_words(block["text"])
            return [Line(f"user: {mask(words)}")] if words else []
        case "tool_result":
            name = names.get(block["tool_use_id"], "a tool")
            text = mask(without_reminders(text_of(block.get("content", ""))))
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            outcome = "failed" if block.get("is_error") else "succeeded"
            kept = f"{len(text)} characters, SHA-256 {digest[:16]}…"
            return [Line(f"{name} {outcome}", text[:_SHOWN], kept)]
        case kind:
            digest = hashlib.sha256(json.dumps(block.get("source"), sort_keys=True).encode()).hexdigest()
            return [Line(f"user: {kind} {digest[:12]}")]


def _assistant(block: dict[str, Any], names: dict[str, str], mask: Callable[[str], str]) -> list[Line]:
    match block["type"]:
        case "text":
            text = mask(block["text"])
            return [Line(f"assistant: {text}")] if text else []
        case "tool_use" | "server_tool_use":
            names[block["id"]] = block["name"]
            # Versions of the CLI differ in which defaults they fill in.
            set_ = {name: value for name, value in block["input"].items() if value not in (None, False)}
            given = mask(json.dumps(set_, sort_keys=True, ensure_ascii=False))
            return [Line(f"assistant calls {block['name']} {given}")]
        case "thinking" | "redacted_thinking":
            return []
        case kind:
            return [Line(f"assistant: {kind}")]


def diff(expected: Sequence[Line], came: Sequence[Line]) -> str:
    """Where two views part, as `-` recorded and `+` came, with two lines before."""
    same = 0
    while same < min(len(expected), len(came)) and expected[same].key == came[same].key:
        same += 1
    lines = [f"    {_cut(str(line), 0)}" for line in came[max(0, same - 2) : same]]
    pairs = max(len(expected), len(came))
    for old, new in zip(
        [*expected[same : same + 3], *[None] * 3], [*came[same : same + 3], *[None] * 3], strict=False
    ):
        if old is None and new is None:
            break
        start = _first_difference(str(old), str(new)) if old is not None and new is not None else 0
        if old is not None:
            lines.append(f"  - {_cut(str(old), start)}")
        if new is not None:
            lines.append(f"  + {_cut(str(new), start)}")
    if pairs > same + 3:
        lines.append(f"    … and {pairs - same - 3} more lines")
    return "\n".join(lines)


def similarity(expected: Sequence[Line], came: Sequence[Line]) -> tuple[int, float]:
    """How near two views are: leading lines that are the same, then the likeness of the rest."""
    same = 0
    while same < min(len(expected), len(came)) and expected[same].key == came[same].key:
        same += 1
    old, new = (" ".join(line.key for line in lines[same : same + 2])[:400] for lines in (expected, came))
    return same, difflib.SequenceMatcher(None, old, new).ratio() if old and new else 0.0


def _first_difference(old: str, new: str) -> int:
    for place, (a, b) in enumerate(zip(old, new, strict=False)):
        if a != b:
            return place
    return min(len(old), len(new))


def _cut(text: str, start: int) -> str:
    text = text.replace("\n", "⏎")
    lead = "…" if start > 120 else ""
    begin = start - 40 if start > 120 else 0
    return lead + text[begin : begin + _SHOWN] + ("…" if len(text) > begin + _SHOWN else "")
