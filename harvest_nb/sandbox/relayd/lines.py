"""Bytes as numbered lines of text, for a carrier that knows only text, and may repeat, cut or garble it.

    12:9f3a01c7:zeJyrVsrPVrJSKkgsKlGqBQAVZgPC

A line is its number, the CRC-32 of its text, `z` (compressed) or `-`, and base64. Repeated lines are dropped by their
number, garbled ones by their sum; a missing one ends the stream, and the link above takes it up on another.
"""

from __future__ import annotations

import base64
import binascii
import zlib

__all__ = ["PAYLOAD", "Gap", "LineReader", "LineWriter"]

PAYLOAD = 64 * 1024
"""Bytes in one line, at most, before they are packed."""
_LONGEST = 2 * PAYLOAD  # bytes of a line, which base64 makes a third longer at most
_DIGITS = 18  # of a line's number, at most


class Gap(Exception):  # noqa: N818 - names what there is
    """A line never arrived whole."""


class LineWriter:
    """Numbers and packs bytes into lines."""

    def __init__(self) -> None:
        self._number = 0

    def line(self, data: bytes) -> bytes:
        """At most `PAYLOAD` bytes as the next line, with its end."""
        self._number += 1
        packed = zlib.compress(data, 1)
        text = b"z" + base64.b64encode(packed) if len(packed) < len(data) else b"-" + base64.b64encode(data)
        return b"%d:%08x:%s\n" % (self._number, zlib.crc32(text), text)


class LineReader:
    """Puts lines together again, from the carrier's pieces."""

    def __init__(self) -> None:
        self.seen = 0
        """The number of the last line that was given."""
        self._rest = b""

    def restart(self) -> None:
        """The carrier begins anew, perhaps from the start: half a line is worth nothing now."""
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of new lines, in order and once each.

        Raises:
            Gap: a line is missing, or longer than any that is written.
        """
        *whole, self._rest = (self._rest + data).split(b"\n") if b"\n" in data else (self._rest + data,)
        if len(self._rest) > _LONGEST:
            raise Gap(f"the line after {self.seen} is longer than {_LONGEST:,} bytes")
        found = []
        for line in whole:
            number, _, rest = line.partition(b":")
            if not number.isdigit() or len(number) > _DIGITS or int(number) <= self.seen:
                continue
            payload = _unpack(rest)
            if payload is None:
                continue
            if int(number) != self.seen + 1:
                raise Gap(f"line {int(number)} came after {self.seen}")
            self.seen += 1
            found.append(payload)
        return found


def _unpack(rest: bytes) -> bytes | None:
    total, _, text = rest.rstrip(b"\r").partition(b":")
    if total != b"%08x" % zlib.crc32(text):
        return None
    try:
        data = base64.b64decode(text[1:], validate=True)
        if text[:1] == b"z":
            # No further than a line may hold: whoever writes into the carrier could pack gigabytes into it.
            data = zlib.decompressobj().decompress(data, PAYLOAD + 1)
    except (binascii.Error, zlib.error):
        return None
    return data if len(data) <= PAYLOAD else None
