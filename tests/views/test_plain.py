"""Text from an agent or a tool must not command what shows it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.views.plain import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("as it is: 漢字 é 🙂👨‍👩‍👧 العربية\n\tindented", "as it is: 漢字 é 🙂👨‍👩‍👧 العربية\n\tindented"),
        ("\x1b[1;31mred\x1b[0m, \x9b32mgreen\x9b0m", "red, green"),
        ("\x1b[2J\x1b[?1049h\x1b[3;4H\x1bc\x1b(0gone", "gone"),
        ("\x1b]0;title\x07a\x1b]8;;file:///etc\x1b\\link\x1b]8;;\x1b\\", "alink"),
        ("\x1bP1$r\x1b\\\x90q\x9cdevice", "device"),
        ("dos\r\nends, 10%\r20%", "dos\nends, 10%\n20%"),
        ("bell\x07 back\x08 nul\x00 del\x7f", "bell␇ back␈ nul␀ del␡"),
        ("never ended \x1b]0;title", "never ended 0;title"),
        ("cut in two \x1b", "cut in two ␛"),
        ("half a pair \ud83d, turned \u202egnp.exe", "half a pair �, turned �gnp.exe"),
    ],
)
def test_sequences_go_and_controls_are_seen(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text(st.sampled_from("\x1b[]0;m\x07\\\x9b\x9c\x9d\r\nP a\x7f\x00")), st.integers(0, 30))
def test_whatever_comes_nothing_is_left_to_obey(text: str, cut: int) -> None:
    for shown in (plain(text), plain(text[:cut]) + plain(text[cut:])):
        assert not [sign for sign in shown if sign != "\n" and (sign < " " or "\x7f" <= sign < "\xa0")]
