"""What counts as a screenshot of the page, and what does not."""

from __future__ import annotations

import struct
import zlib

import pytest

from harvest_nb.checks.browser import judge_screenshot, page_html

LEFT, RIGHT, WHITE = (192, 57, 43), (41, 128, 185), (255, 255, 255)


def png(*columns: tuple[int, int, int], height: int = 4) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = b"\0" + b"".join(bytes(colour) for colour in columns)
    header = struct.pack(">IIBBBBB", len(columns), height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * height))
        + chunk(b"IEND", b"")
    )


def test_both_halves_pass():
    assert judge_screenshot(png(LEFT, LEFT, RIGHT, RIGHT)) == ""


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        (png(WHITE, WHITE), "blank"),
        (png(LEFT, LEFT, LEFT), "blank"),
        (png(WHITE, LEFT), "page's script covers 0%"),
        (png(WHITE, RIGHT), "page's style covers 0%"),
        (png(LEFT, LEFT, LEFT, RIGHT), "page's script covers 25%"),
        (b"<html>", "no readable PNG"),
        (png(LEFT, RIGHT)[:-20], "no readable PNG"),
    ],
)
def test_anything_else_is_named(picture, problem):
    assert problem in judge_screenshot(picture)


def test_the_title_is_not_in_the_page_but_made_by_its_script():
    assert "0123456789abcdef" not in page_html("0123456789abcdef")
