"""Whole records in a text of which something is broken: found by their brackets, in one pass.

A decoder stops where JSON breaks, and cannot say where the next record begins: the break may lie in a string,
and swallow the beginning of what follows. So brackets are matched over the rest of the text, and of objects that
close, those that look like records are decoded. A string that is followed by what can follow none is no string:
what was taken for its end is the beginning of the next. At the latest that happens at the first key of a record.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import orjson

__all__ = ["Found", "decode_at", "is_record", "whole_records"]

# Control characters within strings are read too.
_DECODER = json.JSONDecoder(
    strict=False, parse_constant=lambda _: None, parse_float=lambda text: _finite(float(text))
)

# What only the beginning of a record has, and no object inside one.
_KEYS = ("uuid", "sessionId", "session_id", "seq", "parentUuid", "leafUuid")
_KINDS = ("type", "dir")
_SPEAKS = ("user", "assistant")
_REPORTS = ("total_cost_usd", "modelUsage")
_NESTED = 8
"""Records within a record that are looked into: each is decoded once more for every one around it."""

_INSIDE = r'(?:[^"\\]++|\\.)*+'
_TELLING = "|".join((*_KEYS, *_KINDS, *_REPORTS, "message"))
_ENDS = r"(?=\s*+(?:[,:\]}]|\Z))"
# All that leaves the brackets as they are and is no key that tells a record.
_DULL = re.compile(rf'(?:[^"{{}}\[\]]++|(?!"(?:{_TELLING})"\s*+:)"{_INSIDE}"{_ENDS})*+', re.DOTALL)
_TOKEN = re.compile(rf'[{{}}\[\]]|"(?P<key>{_TELLING})"\s*+:|"{_INSIDE}"', re.DOTALL)
# The message in a line of a run folder's stream, or in a progress row, is no record of its own. A record may stand
# there all the same, where another broke off right before its message.
_OWN = ("sessionId", "session_id", "parentUuid", "seq")
_OF_ANOTHER = re.compile(r'"message"\s*:\s*\Z')
_OF = 40


@dataclass(frozen=True, slots=True)
class Found:
    """A whole record and its place in the text."""

    start: int
    end: int
    value: dict[str, Any]


@dataclass(slots=True)
class _Open:
    bracket: str
    start: int
    kind: bool = False
    mark: bool = False
    recording: bool = False
    broken: bool = False
    depth: int = 0
    """Of records within it."""
    first: int = 0
    """How many records had been found before it began."""


class Text(str):
    """A text in which nobody asks where a decoding failed: line and column would be counted from its beginning."""

    __slots__ = ()

    def count(self, *_: object) -> int:
        return 0

    def rfind(self, *_: object) -> int:
        return -1


def decode_at(text: str, position: int) -> tuple[Any, int] | None:
    """The JSON value that begins at `position` and where it ends; `None` where there is none."""
    try:
        value, end = _DECODER.raw_decode(text, position)
        # A lone surrogate is legal in JSON and in no encoding: it becomes "?".
        return orjson.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace")), end
    except (ValueError, RecursionError, TypeError):
        return None


def is_record(value: Any) -> bool:
    """Whether a decoded value is a record by itself, not a part of one."""
    if not isinstance(value, dict) or not any(key in value for key in _KINDS):
        return False
    if any(key in value for key in (*_KEYS, *_REPORTS)):
        return True
    return value.get("type") in _SPEAKS and isinstance(value.get("message"), dict)


def whole_records(text: str, position: int) -> list[Found]:
    """The outermost whole records of `text` from `position` on, in order, in linear time."""
    found: list[Found] = []
    opened: list[_Open] = []
    while True:
        match = _DULL.match(text, position)
        position = match.end() if match else position
        token = _TOKEN.match(text, position)
        if token is None:  # the end, or a string that nothing ends
            return found
        position = token.end()
        sign = token[0]
        if sign in ("{", "["):
            opened.append(_Open(sign, token.start(), first=len(found)))
        elif sign in ("}", "]"):
            _close(text, sign, position, opened, found)
        elif token["key"] is not None:
            if opened and opened[-1].bracket == "{":
                opened[-1].kind |= token["key"] in _KINDS
                opened[-1].mark |= token["key"] not in _KINDS
                opened[-1].recording |= token["key"] == "dir"
        else:
            # Its end is the beginning of a string; what was open has something in it that is no JSON.
            opened.clear()
            position -= 1
            before = len(text[max(token.start(), position - _OF) : position].rstrip())
            brace = max(token.start(), position - _OF) + before - 1
            if before and text[brace] == "{":
                opened.append(_Open("{", brace, first=len(found)))


def _close(text: str, sign: str, end: int, opened: list[_Open], found: list[Found]) -> None:
    partner = "{" if sign == "}" else "["
    while opened and opened[-1].bracket != partner:
        opened.pop()
    if not opened:
        return
    here = opened.pop()
    outer = opened[-1] if opened else None
    if here.kind and here.mark and not here.broken:
        value = _decode(text[here.start : end]) if here.depth < _NESTED else None
        here.depth += 1
        if value is None:
            here.broken = True
        elif is_record(value) and not _is_part(text, here.start, value, outer):
            del found[here.first :]
            found.append(Found(here.start, end, value))
    if outer is not None:
        outer.broken |= here.broken
        outer.depth = max(outer.depth, here.depth)


def _decode(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        found = decode_at(text, 0)
        return found[0] if found is not None and found[1] == len(text) else None


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _is_part(text: str, start: int, value: dict[str, Any], outer: _Open | None) -> bool:
    if _OF_ANOTHER.search(text, max(start - _OF, 0), start) is None:
        return False
    if outer is not None and outer.recording:
        return "dir" not in value
    return not any(key in value for key in _OWN)
