"""A decoder is tested against an encoder of its own making, with every filter the format has."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.checks.png import decode_png

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def encode(width: int, channels: int, rows: list[bytes], filters: list[int], depth: int = 8) -> bytes:
    raw, above = b"", bytes(width * channels)
    for row, kind in zip(rows, filters, strict=True):
        line = bytearray()
        for i, value in enumerate(row):
            left = row[i - channels] if i >= channels else 0
            corner = above[i - channels] if i >= channels else 0
            upper = above[i]
            base = left + upper - corner
            nearest = min(
                (abs(base - left), 0, left), (abs(base - upper), 1, upper), (abs(base - corner), 2, corner)
            )
            guess = (0, left, upper, (left + upper) // 2, nearest[2])[kind]
            line.append((value - guess) % 256)
        raw += bytes([kind]) + bytes(line)
        above = row
    header = struct.pack(">IIBBBBB", width, len(rows), depth, COLOUR_TYPE[channels], 0, 0, 0)
    packed = zlib.compress(raw)
    half = len(packed) // 2
    return (
        SIGNATURE
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", packed[:half])
        + chunk(b"tEXt", b"Software\0test")
        + chunk(b"IDAT", packed[half:])
        + chunk(b"IEND", b"")
    )


@st.composite
def pictures(draw: st.DrawFn) -> tuple[int, int, list[bytes], list[int]]:
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 7))
    channels = draw(st.sampled_from([1, 2, 3, 4]))
    size = width * channels
    rows = draw(st.lists(st.binary(min_size=size, max_size=size), min_size=height, max_size=height))
    filters = draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    return width, channels, rows, filters


@given(pictures())
def test_every_filter_is_undone(picture: tuple[int, int, list[bytes], list[int]]):
    width, channels, rows, filters = picture
    found = decode_png(encode(width, channels, rows, filters))
    assert (found.width, found.height, found.channels) == (width, len(rows), channels)
    assert list(found.rows) == rows
    assert sum(found.colours().values()) == width * len(rows)
    assert found.pixel(width - 1, 0) == tuple(rows[0][-channels:])


@given(pictures(), st.data())
def test_a_damaged_file_is_refused(picture: tuple[int, int, list[bytes], list[int]], data: st.DataObject):
    whole = encode(*picture)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match=r"\w"):
        decode_png(whole[:cut])
    at = data.draw(st.integers(0, len(whole) - 13))  # the end chunk's own bytes mean nothing more
    damaged = whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :]
    with pytest.raises(ValueError, match=r"\w"):
        decode_png(damaged)


def test_other_depths_are_refused_by_name():
    with pytest.raises(ValueError, match="depth 16"):
        decode_png(encode(2, 1, [b"ab"], [0], depth=16))
