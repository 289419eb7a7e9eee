"""Limits on input from outside: from sandboxes, endpoints and other people's files.

Each bound can be set by an environment variable, `HARVEST_MAX_` and its name in capital letters.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from harvest_nb.errors import SettingsError

__all__ = ["Bounds", "bounds", "json_within"]

_MIB = 1024**2
_WIDEST = re.compile(rb"[\xf0-\xf4]|\\u[dD][89abAB]")  # beyond U+FFFF, as it is or as an escape
_WIDE = re.compile(rb"[\xc4-\xef]|\\u(?!00)")  # beyond U+00FF
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
    """Memory of the text of one message or request: one emoji in it makes four bytes of every character."""
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
        ValueError: it is no JSON, holds more, or is longer than `Bounds.text_bytes` in memory.
    """
    # See PEP 393: the widest character of a text decides how many bytes each takes.
    if len(data) > _MIB and len(data) * (
        width := 4 if _WIDEST.search(data) else 2 if _WIDE.search(data) else 1
    ) > (room := bounds().text_bytes):
        raise ValueError(
            f"more than {room // width:,} bytes where characters take {width} (HARVEST_MAX_TEXT_BYTES)"
        )
    if _marks(data) > most and (data.count(b'"') > 2 * most or _marks(_STRING.sub(b"", data)) > most):
        raise ValueError(f"more than {most:,} values (HARVEST_MAX_JSON_VALUES)")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("values that are nested too deeply") from None


def _marks(data: bytes) -> int:
    """Return how many values JSON text holds at most."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")
