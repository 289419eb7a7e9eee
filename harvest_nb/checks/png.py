"""Reading a PNG far enough to say whether a screenshot shows anything. Source: the PNG specification, 3rd edition."""

from __future__ import annotations

import struct
import zlib
from collections import Counter
from dataclasses import dataclass

__all__ = ["Picture", "decode_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


@dataclass(frozen=True)
class Picture:
    """Pixels of a picture: `rows` hold `channels` bytes a pixel (a palette's index for indexed colour)."""

    width: int
    height: int
    channels: int
    rows: tuple[bytes, ...]

    def pixel(self, x: int, y: int) -> tuple[int, ...]:
        """The samples at column `x`, row `y`."""
        at = x * self.channels
        return tuple(self.rows[y][at : at + self.channels])

    def colours(self) -> Counter[tuple[int, ...]]:
        """How many pixels have each colour."""
        step = self.channels
        found: Counter[tuple[int, ...]] = Counter()
        for row in self.rows:
            found.update(zip(*(row[channel::step] for channel in range(step)), strict=True))
        return found


def decode_png(data: bytes) -> Picture:
    """The pixels of an 8-bit, non-interlaced PNG, which is what browsers write.

    Raises:
        ValueError: `data` is no such PNG: wrong signature, a bad checksum, a cut file, another format.
    """
    if not data.startswith(_SIGNATURE):
        raise ValueError("no PNG signature")
    header, packed = b"", b""
    at, ended = len(_SIGNATURE), False
    while at + 12 <= len(data) and not ended:
        (size,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        check = data[at + 8 + size : at + 12 + size]
        if len(check) < 4 or struct.unpack(">I", check)[0] != zlib.crc32(kind + body):
            raise ValueError(f"chunk {kind!r} is cut or its checksum is wrong")
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            packed += body
        ended = kind == b"IEND"
        at += 12 + size
    if not ended or len(header) != 13:
        raise ValueError("the file has no end or no header")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth != 8 or colour not in _CHANNELS or interlaced:
        raise ValueError(f"depth {depth}, colour type {colour}, interlace {interlaced} are not read here")
    channels = _CHANNELS[colour]
    try:
        raw = zlib.decompress(packed)
    except zlib.error as error:
        raise ValueError(f"the pixels cannot be unpacked: {error}") from error
    stride = width * channels
    if not width or not height or len(raw) != height * (stride + 1):
        raise ValueError(f"{len(raw)} bytes of pixels for {width} x {height}")
    rows: list[bytes] = []
    above = bytes(stride)
    for y in range(height):
        start = y * (stride + 1)
        above = _unfilter(raw[start], raw[start + 1 : start + 1 + stride], above, channels)
        rows.append(above)
    return Picture(width, height, channels, tuple(rows))


def _unfilter(kind: int, line: bytes, above: bytes, step: int) -> bytes:
    """One scan line without its filter (section 9.2)."""
    if kind == 0:
        return line
    out = bytearray(line)
    for i, value in enumerate(line):
        left = out[i - step] if i >= step else 0
        upper = above[i]
        corner = above[i - step] if i >= step else 0
        if kind == 1:
            guess = left
        elif kind == 2:
            guess = upper
        elif kind == 3:
            guess = (left + upper) // 2
        elif kind == 4:
            guess = _paeth(left, upper, corner)
        else:
            raise ValueError(f"filter type {kind} does not exist")
        out[i] = (value + guess) & 0xFF
    return bytes(out)


def _paeth(left: int, upper: int, corner: int) -> int:
    """The neighbour nearest to left + upper - corner (section 9.4)."""
    base = left + upper - corner
    near = (abs(base - left), abs(base - upper), abs(base - corner))
    if near[0] <= near[1] and near[0] <= near[2]:
        return left
    return upper if near[1] <= near[2] else corner
