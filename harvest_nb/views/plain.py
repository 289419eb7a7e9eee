"""Text from elsewhere, safe to write to a terminal and to send to a browser."""

from __future__ import annotations

import re

__all__ = ["plain"]

# What a terminal would obey instead of showing it: CSI (colours, the cursor), strings such as a window's title,
# and the short ones. None of them can match across another one's beginning, so that no text takes long.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_LINE_ENDS = re.compile("\r\n?")
_SHOWN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
# C1 controls, halves of surrogate pairs (which no encoding takes), and what turns the reading direction around.
_LOST = [*range(0x80, 0xA0), *range(0xD800, 0xE000), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SHOWN |= dict.fromkeys(_LOST, 0xFFFD)


def plain(text: str) -> str:
    """The text without terminal sequences; other control characters become signs that can be seen.

    A sequence that is cut in two, as when text is streamed, is not taken out, but does nothing either.
    """
    if text.isascii() and text.isprintable():
        return text
    return _LINE_ENDS.sub("\n", _SEQUENCES.sub("", text)).translate(_SHOWN)
