r"""The forms in which programs print a value: escaped, percent-encoded, in hexadecimal, in base64, over several lines.

A form is a row of patterns, one for each character or byte, that are matched one after another without ever going
back: so a search takes time in proportion to the text, whatever stands in it. All counts have bounds for that reason.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html.entities import html5
from itertools import groupby
from urllib.parse import quote

__all__ = ["Form", "forms_of"]

Spellings = Sequence[tuple[str, str]]
"""Ways to write one character: the first letter, and a pattern of the rest. The longer ones come first."""

_SLASHES = r"\\{1,63}+"  # each level of quoting doubles them: six levels
_ANY_SLASHES = r"\\{0,63}+"
_BREAK = rf"(?:[\r\n]|{_SLASHES}[rn])"
_NUMBERED = rf"\d{{1,7}}+(?:→|\t|{_SLASHES}(?:t|u2192))"  # a line, as `cat -n` and the Read tool print it
_NUMBER = f"(?:{_NUMBERED})?+"
_LINE = rf"{_BREAK}{{1,4}}+[ \t]{{0,16}}+{_NUMBER}"
# Between the characters of base64: `-w 1` breaks after each, and an unquoted `$(…)` makes spaces of all breaks.
_WHITE = rf"(?:(?:\s|{_SLASHES}[rnt]){{1,32}}+{_NUMBER})?+"
# Between characters in UTF-16, whose other byte is NUL; backslashes before it take in that of its own escape.
_NUL, _NUL_ESCAPED = (
    rf"(?:\0|\\{{{least},63}}+(?:u0000|x00)|\^@|%(?:25){{0,4}}+00|&#0;)?+" for least in (1, 0)
)
_OFFSET = r"[0-9a-fA-F]{6,8}+:?+[ \t]{1,2}+"  # in front of a line of od, xxd and hexdump
_SHOWN = (  # the text beside the bytes; in JSON no quotation mark ends it that is not escaped
    rf"  (?>(?:[^\n]{{0,40}}?\n|(?:[^\"\\\n]|{_SLASHES}[^\\\n]){{0,40}}?{_SLASHES}[rn])"
    rf"[ \t]{{0,16}}+{_NUMBER}{_OFFSET})"
)
_GAPS = (r"[,:-]?+ ?+(?:0[xX])?+", rf"[, \t]{{0,4}}+{_LINE}(?:{_OFFSET})?+(?:0[xX])?+", _SHOWN)
_TO_SHOWN = re.compile(r"(?:(?: {1,2}[0-9a-fA-F]{2}){0,32}+ {1,60}+[|>]|(?: ?[0-9a-fA-F]{2}){0,32}+ {2,60}+)")
_LONGEST_SHOWN = 32
# What an element may have begun with where a text was cut.
_CUT = (
    rf"(?:(?:{_SLASHES}(?:[uUx]\{{?)?|%)[0-9a-fA-F]{{0,8}}){{0,4}}(?:[&^][#\w;]{{0,12}}|'[\\\"']{{0,16}})?\Z"
)
_CUT_LINE = (
    rf"(?:[,:-]?[ \t]{{0,4}}|  [^\n]{{0,80}})(?:{_LINE})?(?:0[xX])?"
    r"[0-9a-fA-F]{0,8}:?[ \t]{0,2}[0-9a-fA-F]?\Z"
)
_CUT_NUMBER = rf"(?:{_NUMBERED}|\d{{1,7}}+)?+"
_MARK = r"[-+>|#]"  # in front of a line, as diff, a mail and a comment have it
_CUT_DRESSED = rf"(?:\s|{_SLASHES}t){{0,32}}+{_CUT_NUMBER}:?\s{{0,32}}+{_MARK}{{0,7}}\s{{0,32}}+"
_CUT_SHOWN = re.compile(r"[ 0-9a-fA-F]{0,100}(?:  [^\r\n]{0,40})?\Z")
_SHORT = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}
_COMPARED = 32  # elements that may tell a line's own beginning from what was put in front of it
_SEARCHED = 4  # elements that a search looks for before the whole form is tried
_NESTED = 6  # levels of JSON in JSON, as of a file in a tool's input in a line of a stream
_NAMES: dict[str, list[str]] = {}
for _name, _text in html5.items():
    if _name.endswith(";"):
        _NAMES.setdefault(_text, []).append(_name[:-1])


@dataclass(frozen=True)
class Form:
    """One form of one value.

    Args:
        elements: matched one after another.
        starts: by its first letter, what a search looks for.
        cut: what may stand between the last whole element and the end of a text that was cut.
        public: how many of the elements tell nothing but the published prefix of such values.
        shown: the value's characters, where a dump shows them beside the bytes.
    """

    elements: Sequence[str]
    starts: Mapping[str, str]
    cut: str
    public: int
    shown: Sequence[str] = ()

    def reach(self, text: str, start: int) -> tuple[int, int]:
        """Return how many elements match from `start` on, and where the last of them ends."""
        count, at = _matched(self.elements, text, start)
        if self.shown and count == len(self.elements):
            at = self._beside(text, at)
        return count, at

    def begun(self, text: str, start: int) -> int | None:
        """Return how many elements match from `start` on, if `text` ends before the form does, else None."""
        count, at = _matched(self.elements, text, start)
        if count == len(self.elements):  # the text beside the bytes is yet to come
            return count if self.shown and _CUT_SHOWN.match(text, at) else None
        return count if _compiled(self.cut).match(text, at) else None

    def _beside(self, text: str, at: int) -> int:
        """Return where the value's end is shown beside the bytes that end at `at`, if a dump does so."""
        column = _TO_SHOWN.match(text, at)
        if column is not None:
            for count in range(min(_LONGEST_SHOWN, len(self.shown)), 0, -1):
                matched, end = _matched(self.shown[-count:], text, column.end())
                if matched == count:
                    return end
        return at


def _matched(elements: Iterable[str], text: str, at: int) -> tuple[int, int]:
    count = 0
    for element in elements:
        found = _compiled(element).match(text, at)
        if found is None:
            break
        count, at = count + 1, found.end()
    return count, at


@lru_cache(maxsize=64)
def forms_of(value: str, public: int = 0) -> list[Form]:
    """Return the forms of a value that is no shorter than six characters.

    Args:
        public: how many characters at its beginning are published, and tell nothing; they are ASCII.
    """
    raw = value.encode("utf-8", "surrogatepass")
    percent = quote(raw, safe="")
    escaped = [value]
    for ascii_only in (True, False):
        for _ in range(_NESTED):
            escaped.append(json.dumps(escaped[-1], ensure_ascii=ascii_only)[1:-1])
        escaped.append(value)
    forms = [_as_characters(value, public), _as_digits(raw, public)]
    quoted = len(quote(value[:public], safe=""))
    if set(value) & set("\\%&'^\0"):  # what looks like an escape may be the value's own
        forms += [
            _form([[(letter, "")] for letter in text], quoted if text == percent else public)
            for text in {*escaped, percent}
        ]
    for text in {value, escaped[1], percent}:
        first = -(-(quoted if text == percent else public) * 4 // 3)
        forms += [_form([_in_base64(x) for x in middle], first, _WHITE) for middle in _middles(text)]
    return forms


def _as_characters(value: str, public: int) -> Form:
    # Backslashes in a row are one part, and so are line breaks with the white space after them.
    parts = re.findall(r"\\+|\r?\n(?:[ \t]*\r?\n)*[ \t]*|[^\\]", value, re.DOTALL)
    before, after = ["", *parts], [*parts[1:], ""]
    escaped = [part[:1] == "\\" for part in before]
    spelled = [_characters(*each) for each in zip(parts, escaped, [not part for part in after], strict=False)]
    patterns = [_either(each) for each in spelled]
    for at, part in enumerate(parts):
        if "\n" in part:
            then = ""
            for each in reversed(range(at + 1, at + 1 + _ambiguous(parts[at + 1 :]))):
                gap = _NUL_ESCAPED if escaped[each + 1 : each + 2] == [True] else _NUL
                then = patterns[each] + (f"(?:{_CUT}|{gap}{then})" if then else "")
            patterns[at] = _breaks(part, then, escaped[at])
    gaps = [_NUL_ESCAPED if each else _NUL for each in escaped[1:]]
    cut = _NUL + (_CUT_DRESSED if "\n" in value else "") + _CUT
    rest = [gap + x for gap, x in zip(gaps, patterns[1:], strict=False)]
    if rest and value.endswith("\\"):  # before an "x00" that is not the value's it is no escape
        rest[-1] = f"(?:{patterns[-1]}|{rest[-1]})"
    return _made(spelled[0], rest, cut, public)


def _ambiguous(parts: Sequence[str]) -> int:
    """Return how many of `parts` it takes to tell a line's own beginning from a number or a mark in front of it."""
    for at, part in enumerate(parts[:_COMPARED]):
        if not re.fullmatch(r"[\d:→\t >|#+\\-]+", part):
            return at + (part[0] != "\n")
    return min(len(parts), _COMPARED)


def _breaks(part: str, then: str, escaped: bool) -> str:
    """Return the pattern of line breaks and the white space after them, in front of what `then` matches.

    Programs end lines otherwise, number, indent and mark them, or join them with a space or without one.
    """
    space, tab, feed, back = (_either([x for x in _characters(each) if x[0] != "+"]) for each in " \t\n\r")
    white = f"(?:(?:{space}|{tab}){_NUL})"
    end = f"(?:(?:{back}{_NUL})?+{feed}|{back}{'|[nr]' if escaped else ''}){_NUL}"
    dressed = rf"(?:(?:{_NUMBERED}|\d{{1,7}}+:){white}{{0,32}}+)?(?:{_MARK}{white}{{0,32}}+)?"
    own = "".join(_either(_characters(each)) + _NUL for each in part.rpartition("\n")[2])
    last = f"(?:{f'{own}(?={then})|' if own else ''}{white}{{0,32}}+(?:{dressed}(?={then}))?+)"
    empty = f"(?:{end}{white}{{0,32}}+{dressed}){{0,{part.count(chr(10)) - 1}}}"
    return rf"(?:{empty}{end}{last}|(?:{white}{{1,32}}+|\+)(?={then})|)"


def _as_digits(raw: bytes, public: int) -> Form:
    spelled = [_digits(byte) for byte in raw]
    # hexdump leaves two spaces in the middle of a line, and xxd in front of the text, which may begin like a byte.
    bytes_ = map(_either, spelled[1:])
    elements = ["|".join([*(gap + byte for gap in _GAPS), f"  {byte}(?= )"]) for byte in bytes_]
    return _made(spelled[0], elements, _CUT_LINE, public, [_shown(byte) for byte in raw])


def _form(spelled: Sequence[Spellings], public: int, gap: str = "") -> Form:
    cut = gap + (_CUT_NUMBER if gap else "") + _CUT
    return _made(spelled[0], [gap + _either(x) for x in spelled[1:]], cut, public)


def _made(first: Spellings, rest: Sequence[str], cut: str, public: int, shown: Sequence[str] = ()) -> Form:
    plain = first[-1][0]
    starts = {}
    for letter, spellings in groupby(sorted(first, key=lambda x: x[0]), key=lambda x: x[0]):
        ends = [end for _, end in spellings]
        # Of a row of backslashes the first is the beginning, else each of them would be tried.
        before = r"(?<!\\\\)" if letter == "\\" else ""
        # An escape is rare enough as it is; how a character is that many texts escape, two tell.
        count = _SEARCHED if "" in ends or letter not in "\\%&" else 1 if plain.isalnum() else 2
        starts[letter] = f"{before}(?:{'|'.join(ends)})" + "".join(f"(?>{x})" for x in rest[: count - 1])
    return Form([_either(first), *rest], starts, cut, public, shown)


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _either(spellings: Spellings) -> str:
    return f"(?:{'|'.join(re.escape(first) + rest for first, rest in spellings)})"


@lru_cache(maxsize=1024)
def _characters(part: str, escaped: bool = False, last: bool = False) -> Spellings:
    """Return the spellings of a character, or of backslashes in a row.

    Args:
        escaped: whether it follows upon backslashes, which take in that of its own escape.
        last: whether it ends the value.
    """
    character, count = part[0], len(part)
    raw, code = character.encode("utf-8", "surrogatepass"), ord(character)
    units = character.encode("utf-16-be", "surrogatepass").hex(" ", 2).split()
    escapes = [_SLASHES.join(f"u{_hex(unit)}" for unit in units), f"U{_hex(f'{code:08x}')}"]
    escapes.append(rf"[ux]\{{0{{0,5}}+{_hex(f'{code:x}')}\}}")
    escapes += [_SLASHES.join(f"x{_hex(f'{byte:02x}')}" for byte in raw)]
    escapes += [f"x{_hex(f'{code:02x}')}"] if 127 < code < 256 else []
    escapes += [_SHORT[character]] if character in _SHORT else []
    names = "".join(f"|{name};" for name in _NAMES.get(character, ()) if name != "amp")
    entity = rf"(?:amp;){{0,4}}+(?:#0{{0,6}}+{code};|#[xX]0{{0,6}}+{_hex(f'{code:x}')};{names})"
    if character == "&":
        entity = f"(?:{entity}|(?:amp;){{1,4}}+)"
    escapes.append(f"(?:&|u0026){entity}")
    percent = "%".join(rf"(?:25){{0,4}}+{_hex(f'{byte:02x}')}" for byte in raw)
    if character == "\\":
        again = "".join(rf"{_SLASHES}(?:{'|'.join(escapes)})" for _ in range(count - 1))
        # What follows the value may be escaped itself: of an odd number of backslashes the last is left to it.
        pairs = rf"\\(?:\\\\){{{max(0, count // 2 - 1)},{32 * count}}}+"
        row = (f"(?:{pairs})?+" if count == 1 else pairs) if last else rf"\\{{{count - 1},{63 * count}}}+"
        return [
            ("\\", rf"{_ANY_SLASHES}(?:{'|'.join(escapes)}){again}"),
            ("\\", row),
            ("%", percent + f"%{percent}" * (count - 1)),
            ("&", entity + f"&{entity}" * (count - 1)),
        ]
    found = []
    if character == "%":
        percent = "(?:25){1,4}+"
    if character == "'":  # quoted for a shell: '\'' and '"'"'
        found += [
            ("'", rf"{_SLASHES}''"),
            ("'", rf"{_ANY_SLASHES}\"{_ANY_SLASHES}'{_ANY_SLASHES}\"{_ANY_SLASHES}'"),
        ]
    if not character.isalnum():
        escapes.append(re.escape(character))
    found += [("\\", rf"{_ANY_SLASHES}(?:{'|'.join(escapes)})"), ("%", percent), ("&", entity)]
    found += [("+", "")] if character == " " else []
    found += [("u", _hex(f"{code:04x}"))] if escaped and not character.isalnum() else []
    return [*found, (character, "")]


@lru_cache(maxsize=256)
def _digits(byte: int) -> Spellings:
    high, low = divmod(byte, 16)
    return [(letter, _hex(f"{low:x}")) for letter in sorted({f"{high:x}", f"{high:X}"})]


@lru_cache(maxsize=256)
def _shown(byte: int) -> str:
    character = chr(byte) if 32 <= byte < 127 else "."
    return _either([("\\", rf"{_ANY_SLASHES}{re.escape(character)}"), *_characters(character)])


@lru_cache(maxsize=64)
def _in_base64(letter: str) -> Spellings:
    if letter.isalnum():
        return [(letter, "")]
    return [*_characters(letter), ({"+": "-", "/": "_"}[letter], "")]


def _middles(text: str) -> list[str]:
    """Return what base64 makes of a text within a longer one, at each of the three offsets that it may have.

    The outermost characters depend on the neighbours, so they are left out.
    """
    raw = text.encode("utf-8", "surrogatepass")
    found = []
    for lead in range(3):
        encoded = base64.b64encode(b"\0" * lead + raw).decode().rstrip("=")
        found.append(encoded[-(-lead * 8 // 6) : len(encoded) - (1 if (lead + len(raw)) % 3 else 0)])
    return found


def _hex(digits: str) -> str:
    return "".join(f"[{x}{x.upper()}]" if x.isalpha() else x for x in digits)
