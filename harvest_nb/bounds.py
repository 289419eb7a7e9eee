"""Limits on input from outside: from sandboxes, endpoints and other people's files.

Each bound can be set by an environment variable, `HARVEST_MAX_` and its name in capital letters.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from harvest_nb.errors import SettingsError

__all__ = ["Bounds", "bounds", "json_within"]

_MIB = 1024**2
_WIDE, _WIDEST = re.compile(rb"[\xc4-\xef]"), re.compile(rb"[\xf0-\xf4]")  # beyond U+00FF, and beyond U+FFFF
_WIDEST_ESCAPED = re.compile(rb"(?<!\\)(?:\\\\)*+\\u[dD][89abAB]")
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]+")
_FEW = 1000  # bytes on average between what is not ASCII
# Possessive, and with an end that may be missing: each byte is looked at once.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)


class Bounds(BaseSettings):
    """The bounds that hold in this process."""

    model_config = SettingsConfigDict(env_prefix="HARVEST_MAX_", env_ignore_empty=True, frozen=True)

    file_bytes: int = Field(default=1024 * _MIB, gt=0)
    """One file of a run folder, a log, a transcript, a cassette or a memory store, as it lies on the disk."""
    read_bytes: int = Field(default=48 * _MIB, gt=0)
    """One file that is read out of a sandbox, the memory store above all, or brought home from it."""
    artifact_bytes: int = Field(default=256 * _MIB, gt=0)
    """All the files of a session that are brought home together."""
    artifact_files: int = Field(default=10_000, gt=0)
    """The number of those files."""
    output_bytes: int = Field(default=48 * _MIB, gt=0)
    """Each of the two output streams of a command that is run in a sandbox to its end."""
    line_bytes: int = Field(default=32 * _MIB, gt=0)
    """One line of the CLI, which is one message."""
    unread_bytes: int = Field(default=64 * _MIB, gt=0)
    """Bytes received from a sandbox, by all its processes and connections, and not yet read."""
    stderr_bytes: int = Field(default=16 * _MIB, gt=0)
    """A run's `stderr.log`; the rest is left out."""
    stream_bytes: int = Field(default=2048 * _MIB, gt=0)
    """A run's `stream.jsonl`, past which the run ends, and the transcript that grows beside it."""
    text_bytes: int = Field(default=48 * _MIB, gt=0)
    """Memory of the strings in one message or request: one emoji makes four bytes of every character of its string."""
    messages_bytes: int = Field(default=64 * _MIB, gt=0)
    """Memory of the typed messages that a session's results hold, and that of partial ones; `stream.jsonl` has all."""
    json_values: int = Field(default=1_000_000, gt=0)
    """Values in one message, request or line of a transcript, for each takes some hundred bytes of memory."""
    request_bytes: int = Field(default=32 * _MIB, gt=0)
    """One request that a sandbox sends to its endpoint; twice that, all of those that are being answered."""
    answer_bytes: int = Field(default=32 * _MIB, gt=0)
    """One answer of an endpoint elsewhere."""
    connections: int = Field(default=64, gt=0)
    """Connections from a sandbox to its endpoint at one time; others are closed at once."""
    silent_seconds: float = Field(default=3.0, gt=0)
    """How long a sandbox may leave a message unanswered while a run that has ended is put away."""
    unpacked_bytes: int = Field(default=1024 * _MIB, gt=0)
    """Bytes that one compressed file unpacks to."""
    unpacked_ratio: int = Field(default=200, gt=0)
    """How many times its own size a compressed file may unpack to; the first 16 MiB are free."""
    image_bytes: int = Field(default=16 * 1024 * _MIB, gt=0)
    """All the layers of an image that is read, unpacked."""
    image_files: int = Field(default=2_000_000, gt=0)
    """Files, folders and links in all the layers of an image that is read."""


def bounds() -> Bounds:
    """Return the bounds, as the environment sets them now.

    Raises:
        SettingsError: a variable holds no positive number.
    """
    try:
        return Bounds()
    except ValidationError as error:
        names = ", ".join(f"HARVEST_MAX_{str(item['loc'][0]).upper()}" for item in error.errors())
        raise SettingsError(f"Cannot use the value of {names}", hint="give a positive number") from None


def json_within(data: bytes, most: int) -> Any:
    """Parse JSON text that holds at most `most` values, as `[]` alone takes 30 times its size in memory.

    Raises:
        ValueError: it is no JSON, holds more, or its strings take more memory than `Bounds.text_bytes`.
    """
    if _marks(data) > most and (data.count(b'"') > 2 * most or _marks(_STRING.sub(b"", data)) > most):
        raise ValueError(f"more than {most:,} values (HARVEST_MAX_JSON_VALUES)")
    if len(data) > _MIB and len(data) * _width(data) > (room := bounds().text_bytes):
        size = 0
        for number, match in enumerate(_STRING.finditer(data)):
            string = match.group()
            size += len(string) * _width(string)
            if size > room:
                raise ValueError(
                    f"its strings take more than {room:,} bytes of memory (HARVEST_MAX_TEXT_BYTES)"
                )
            if number > 2 * most:
                raise ValueError(f"more than {most:,} values (HARVEST_MAX_JSON_VALUES)")
        if sum(1 for _ in islice(_BEYOND_ASCII.finditer(data), len(data) // _FEW)) < len(data) // _FEW:
            data = _in_ascii(data)
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("values that are nested too deeply") from None


def _in_ascii(data: bytes) -> bytes:
    """Return JSON text with escapes for what is not ASCII, so that a few wide characters do not widen all of it."""
    return _BEYOND_ASCII.sub(
        lambda run: json.dumps(run.group().decode("utf-8", "surrogatepass"))[1:-1].encode(), data
    )


def _width(text: bytes) -> int:
    """Return how many bytes each character of JSON text takes in memory: the widest decides (PEP 393)."""
    width = 1
    if not text.isascii():
        width = 4 if _WIDEST.search(text) else 2 if _WIDE.search(text) else 1
    if width < 4 and b"\\u" in text:
        return 4 if _WIDEST_ESCAPED.search(text) else 2
    return width


def _marks(data: bytes) -> int:
    """Return how many values JSON text holds at most."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")
