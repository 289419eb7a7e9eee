"""Bytes to JSON objects, with every byte accounted for: what cannot be read becomes a `Problem`.

A file is read in one pass over its bytes. It is JSON lines, or a document (an array, or objects one after
the other, over several lines); which of them is seen from its beginning.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from harvest_nb.files import read_regular
from harvest_nb.tables.problems import Problem, Problems
from harvest_nb.tables.rescue import Found, Text, decode_at, whole_records

__all__ = ["HUGE", "Line", "read_json", "read_lines", "values_in"]

HUGE = 64 * 1024 * 1024
"""Bytes; a longer line is read, and mentioned."""

_BOM = b"\xef\xbb\xbf"
_BLANK = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s,]*")


@dataclass(slots=True)
class Line:
    """A JSON object and where it stood: line from 1, offset and size in bytes."""

    value: dict[str, Any]
    number: int
    offset: int
    size: int


def read_json(path: Path, problems: Problems) -> dict[str, Any]:
    """The object in `path`; `{}` and a problem where there is none."""
    try:
        value = orjson.loads(read_regular(path))
    except FileNotFoundError:
        problems.add(Problem(path, "missing_file", f"{path.name} is missing"))
        return {}
    except OSError as error:
        problems.add(Problem(path, "unreadable_file", f"{path.name}: {error.strerror}"))
        return {}
    except orjson.JSONDecodeError as error:
        problems.add(Problem(path, "not_json", f"{path.name} is not JSON: {error}", 1, 0))
        return {}
    if not isinstance(value, dict):
        detail = f"{path.name} holds {type(value).__name__}, not an object"
        problems.add(Problem(path, "not_an_object", detail, 1, 0))
        return {}
    return value


def read_lines(path: Path, problems: Problems) -> Iterator[Line]:
    """Every object in the file `path`, in order; see `values_in`."""
    try:
        data = read_regular(path)
    except OSError as error:
        problems.add(Problem(path, "unreadable_file", f"{path.name}: {error.strerror}"))
        return
    yield from values_in(path, data, problems)


def values_in(path: Path, data: bytes, problems: Problems) -> Iterator[Line]:
    """Every object in `data`, the content of `path`, in order.

    Lines that are cut, glued, badly encoded or no objects are problems; what can be saved of them is
    yielded all the same.
    """
    start = 0
    if data.startswith(_BOM):
        problems.add(Problem(path, "byte_order_mark", "begins with a byte order mark", 1, 0, salvaged=True))
        start = len(_BOM)
    if b"\r\n" in data:
        problems.add(Problem(path, "crlf", "lines end with CR LF", 1, start, salvaged=True))
    if _is_document(data, start):
        yield from _document(path, data, start, problems)
    else:
        yield from _lines(path, data, start, problems)


def _is_document(data: bytes, start: int) -> bool:
    """Whether values run over several lines, or the whole is one array."""
    begin = start
    while begin < len(data) and data[begin] in b" \t\r\n\0":
        begin += 1
    end = data.find(b"\n", begin)
    first = data[begin : len(data) if end < 0 else end].strip()
    if first[:1] not in (b"[", b"{"):
        return False
    try:
        value = orjson.loads(first)
    except orjson.JSONDecodeError:
        if first in (b"[", b"{") or first[:1] == b"[":
            return True
        # An object that goes on in the next line; a broken line of JSON lines goes on nowhere.
        return end >= 0 and data[end + 1 : end + 2] in (b" ", b"\t", b'"', b"}") and _loads(data) is not None
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _loads(data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _lines(path: Path, data: bytes, start: int, problems: Problems) -> Iterator[Line]:
    number, view = 0, memoryview(data)
    loads, size = orjson.loads, len(data)
    while start < size:
        end = data.find(b"\n", start)
        last = end < 0
        end = size if last else end
        number += 1
        if end - start > HUGE:
            detail = f"a line of {(end - start) / 1e6:.0f} MB"
            problems.add(Problem(path, "huge_line", detail, number, start, salvaged=True))
        try:
            value = loads(view[start:end])
        except orjson.JSONDecodeError:
            yield from _salvage(path, data[start:end], number, start, last, problems)
        else:
            if isinstance(value, dict):
                yield Line(value, number, start, end - start)
            else:
                inside = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
                detail = f"a line holds {type(value).__name__}, not an object"
                saved = bool(inside) and len(inside) == len(value)
                problems.add(Problem(path, "not_an_object", detail, number, start, salvaged=saved))
                for item in inside:
                    yield Line(item, number, start, end - start)
        start = end + 1


def _salvage(
    path: Path, raw: bytes, number: int, offset: int, last: bool, problems: Problems
) -> Iterator[Line]:
    if not raw.strip():
        problems.add(Problem(path, "blank_line", "the line is blank", number, offset, salvaged=True))
        return
    text, notes = _text(raw)
    if not text.strip():
        detail = f"{len(raw)} bytes, all of them NUL"
        problems.add(Problem(path, "nul_bytes", detail, number, offset))
        return
    values, rest = _decode_all(text)
    objects = [value for value in values if isinstance(value, dict)]
    tail = [one.value for one in whole_records(rest, 0)] if rest else []
    if len(values) > 1 or tail:
        notes.append("glued_lines")
    if not rest and objects and not notes:
        notes.append("not_strict_json")
    for reason in notes if objects or tail else []:
        detail = f"read all the same: {reason.replace('_', ' ')}"
        problems.add(Problem(path, reason, detail, number, offset, salvaged=True))
    if rest or len(objects) < len(values):
        ends = last and rest and not tail
        reason = "truncated_line" if ends or tail else "not_json" if rest else "not_an_object"
        lost = rest or next(str(value) for value in values if not isinstance(value, dict))
        detail = f"{len(lost.encode(errors='replace'))} bytes cannot be read as JSON"
        if ends:
            detail += ": the file ends within the line"
        if tail:
            detail = "a record breaks off and another begins in the same line: the second is read"
        problems.add(Problem(path, reason, detail, number, offset))
    for value in (*objects, *tail):
        yield Line(value, number, offset, len(raw))


def _text(raw: bytes) -> tuple[str, list[str]]:
    """`raw` as text that JSON can be read from, and what had to be done for it."""
    notes: list[str] = []
    if b"\0" in raw:
        raw = raw.replace(b"\0", b"")
        notes.append("nul_bytes")
    try:
        return raw.decode(), notes
    except UnicodeDecodeError:
        return raw.decode(errors="replace"), [*notes, "invalid_utf8"]


def _decode_all(text: str) -> tuple[list[Any], str]:
    """Every JSON value from the start of `text` on, and what is left where that ends."""
    values: list[Any] = []
    position = _skip(text, 0)
    while position < len(text):
        found = decode_at(text, position)
        if found is None:
            return values, text[position:]
        values.append(found[0])
        position = _skip(text, found[1])
    return values, ""


def _document(path: Path, data: bytes, start: int, problems: Problems) -> Iterator[Line]:
    """The objects of an array, or of values that follow each other, with their places in the file."""
    decoded, notes = _text(data[start:])
    text = Text(decoded)
    for reason in notes:
        detail = f"read all the same: {reason.replace('_', ' ')}"
        problems.add(Problem(path, reason, detail, 1, start, salvaged=True))
    place = _Place(text, start)
    position = _skip(text, 0)
    array = text[position : position + 1] == "["
    position += array
    rescued: list[Found] | None = None
    sure = position  # the end of the last object: what follows it may be the rest of a broken one
    bare = False
    while True:
        match = _SEPARATOR.match(text, position)
        parted = match is not None and "," in match[0]
        position = match.end() if match else position
        if position >= len(text):
            if array:
                line, offset = place.at(len(text))
                problems.add(Problem(path, "truncated_document", "the array is not closed", line, offset))
            return
        if text[position] in "][":
            array = text[position] == "["
            position += 1
            continue
        line, offset = place.at(position)
        # Values without a comma between them are none, unless they are objects.
        torn = array and not parted and position > sure and (bare or text[position] != "{")
        found = None if torn else decode_at(text, position)
        if found is None:
            if rescued is None:  # once for the whole rest, however often it breaks
                rescued = whole_records(text, sure)
            after = bisect_left(rescued, sure, key=lambda one: one.start)
            follows = rescued[after].start if after < len(rescued) else None
            lost = len(text[position : follows or len(text)].encode(errors="replace"))
            reason = "truncated_document" if follows is None else "not_json"
            detail = f"{lost} bytes cannot be read as JSON"
            problems.add(Problem(path, reason, detail, line, offset))
            if follows is None:
                return
            position = sure = follows
            bare = False
            continue
        value, end = found
        bare = not isinstance(value, dict)
        if isinstance(value, dict):
            sure = end
            size = len(text[position:end].encode(errors="replace"))
            yield Line(value, line, offset, size)
        else:
            detail = f"an element is {type(value).__name__}, not an object"
            problems.add(Problem(path, "not_an_object", detail, line, offset))
        position = end


class _Place:
    """Line and byte offset of positions in a text, asked for in rising order."""

    def __init__(self, text: str, start: int) -> None:
        self._text, self._at, self._line, self._offset = text, 0, 1, start

    def at(self, position: int) -> tuple[int, int]:
        passed = self._text[self._at : position]
        self._line += passed.count("\n")
        self._offset += len(passed) if passed.isascii() else len(passed.encode(errors="replace"))
        self._at = position
        return self._line, self._offset


def _skip(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position
