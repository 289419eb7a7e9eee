"""Replaces known secrets by the names of their variables, wherever text is written.

A value is found in the forms that common programs print (`harvest_nb.secret_forms`), six levels of quoting deep, in the
middle of a longer text and over several lines: with JSON's, Python's and a shell's escapes, percent-encoded, with
HTML's entities, in UTF-16, in hexadecimal as od, xxd and hexdump write it, and in base64. Nobody can list what else may
be done to a value. Not found are: one that is reversed, in capitals, spaced letter by letter, or taken apart; base32,
octal and decimal numbers, words of two bytes (`od -x`); quoted-printable, `%uXXXX`, CSS's escapes, what `cat -v`
makes of letters beyond ASCII, and these percent-encoded in latin-1; backslashes in a row in UTF-16; hexadecimal and
base64 of other line breaks than the value's own; two such encodings of one another, and what is compressed or
encrypted; blocks that a dump leaves out as repeated (`*`); a value that is split over two messages, two files, or two
lines other than its own.
One that holds what looks like an escape itself (`%25`, `&amp;`, `\\u0000`) is found as it is, percent-encoded, in JSON,
hexadecimal and base64 alone.
Whatever has the published shape of a credential is caught besides, so that a token nobody declared is not published.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from harvest_nb.secret_forms import Form, forms_of

__all__ = [
    "LEAST",
    "SECRET_NAME",
    "SECRET_SHAPES",
    "SHORTEST",
    "Pieces",
    "Redactor",
    "all_secrets",
    "find_secret_shapes",
    "without_secrets",
]

SECRET_NAME = re.compile(
    r"^(?!SSH_AUTH_SOCK$|GPG_KEY$)"  # a socket's path, and a fingerprint that is published
    r"(?:.*(?:TOKEN|SECRET|PASSWORD|PASSWD|APIKEY)|(?:.*_)?(?:CREDENTIALS?|ACCESS_KEY|AUTH|PAT)|.*_KEY)(?:_.*)?$",
    re.IGNORECASE,
)
"""What a variable that holds a secret is called."""
# Published prefixes of credentials; the lengths keep prose such as "sk-ant-..." out.
SECRET_SHAPES: Mapping[str, re.Pattern[str]] = {
    "Anthropic": re.compile(r"sk-ant-[A-Za-z0-9_-]{16,}"),
    "GitHub": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,})"),
    "Linear": re.compile(r"\blin_api_[A-Za-z0-9]{20,}"),
    "Google": re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b"),
    "Sentry": re.compile(r"\bsntry[us]_[A-Za-z0-9_=+/-]{20,}"),
    "Daytona": re.compile(r"\bdtn_[A-Za-z0-9]{40,}"),
    "AWS": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}

_PUBLISHED = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]{0,20}://|sk-ant-(?:[a-z]{3}\d\d-)?|gh[pousr]_|github_pat_|lin_api_|AIza|sntry[us]_|dtn_"
    r"|AKIA|ASIA|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""How addresses and the credentials above begin, which tells nothing of a secret."""

SHORTEST = 6
"""Characters of the shortest value that is looked for: shorter ones would redact ordinary words."""
LEAST = 6
"""Characters or bytes of a secret, after a published prefix, from which on its beginning is taken for one."""
_AT_ONCE = 4 << 20  # bytes
_BEYOND = 1 << 20  # bytes; of values of up to some 10,000 characters every form is shorter
_WINDOW = 128  # characters at a text's end in which a form of a few characters may have begun


class Redactor:
    """Replaces secret values in text, in the forms that the module's docstring names.

    Args:
        secrets: variable name to value. White space around one does not count, as whoever uses it may leave that
            out; empty values and values under six characters are ignored.
    """

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        self._secrets = dict(secrets or {})
        self._forms: defaultdict[str, list[tuple[Form, str]]] = defaultdict(list)
        starts: defaultdict[str, list[str]] = defaultdict(list)
        for value, name in {value.strip(): name for name, value in reversed(self._secrets.items())}.items():
            prefix = _PUBLISHED.match(value)
            for form in forms_of(value, prefix.end() if prefix else 0) if len(value) >= SHORTEST else ():
                for letter, pattern in form.starts.items():
                    self._forms[letter].append((form, name))
                    starts[letter].append(pattern)
        parts = [f"{re.escape(letter)}(?:{'|'.join(dict.fromkeys(ends))})" for letter, ends in starts.items()]
        self._search = re.compile("|".join(parts)) if parts else None

    def knowing(self, more: Mapping[str, str]) -> Redactor:
        """A redactor of these secrets and `more`."""
        return Redactor({**self._secrets, **more})

    @property
    def knows(self) -> bool:
        """Whether there is any secret that it can replace."""
        return self._search is not None

    @property
    def unprotected(self) -> list[str]:
        """Names of the secrets that are too short to be replaced."""
        return sorted(name for name, value in self._secrets.items() if 0 < len(value.strip()) < SHORTEST)

    def text(self, value: str) -> str:
        """`value` with every known secret replaced by `[redacted:NAME]`."""
        parts, at = [], 0
        for begin, end, name in self.spans(value):
            parts += [value[at:begin], f"[redacted:{name}]"]
            at = end
        return "".join([*parts, value[at:]]) if parts else value

    def data(self, data: bytes) -> bytes:
        """Return UTF-8 text with every known secret replaced; other bytes stay as they are.

        A long text is looked at in windows, as one emoji makes four bytes of every character of a text. What begins in
        a window is looked for up to `_BEYOND` bytes after it.
        """
        if not self.knows:
            return data
        clean: list[bytes] = []
        at = 0
        while at < len(data):
            end, place = at + _AT_ONCE, max(0, at - _WINDOW)
            text = data[place : end + _BEYOND].decode("utf-8", "surrogateescape")
            seen = 0
            for begin, stop, name in self.spans(text):
                first = place + len(text[seen:begin].encode("utf-8", "surrogateescape"))
                place, seen = first + len(text[begin:stop].encode("utf-8", "surrogateescape")), stop
                if first >= end:
                    break
                if place > at:
                    clean += [data[at : max(at, first)], f"[redacted:{name}]".encode()]
                    at = place
            clean.append(data[at:end])
            at = max(at, end)
        return b"".join(clean)

    def found(self, value: str) -> list[str]:
        """Names of the secrets that occur in `value`, in any form."""
        return sorted({name for _, _, name in self.spans(value)})

    def spans(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Yield where secrets begin and end in `text`, and their names, in order and apart from each other.

        Of secrets that overlap, the first one's name stands for all. One that overlaps itself is not followed: a row
        of one letter would take the square of its length.
        """
        if self._search is None:
            return
        ended, found = 0, (0, 0, "")  # where the last one ends, and the one that may yet become longer
        at, latest = 0, ""
        while (candidate := self._search.search(text, at)) is not None:
            begin = candidate.start()
            at = begin + 1
            if begin >= found[1] and found[2]:
                yield found
                ended, found, latest = found[1], (0, 0, ""), ""
            end, name = found[1], ""
            for form, whose in self._forms[text[begin]]:
                if whose != latest:
                    count, reached = form.reach(text, begin)
                    if count == len(form.elements) and reached > end:
                        end, name = reached, whose
            if name:
                first = found[0] if found[2] else _with_escape(text, begin, ended)
                found, latest = (first, end, found[2] or name), name
        if found[2]:
            yield found

    def begun(self, text: str, least: int, last: int) -> tuple[int, str, bool]:
        """Return where the secret begins that `text` ends in the middle of, its name, and whether that is certain.

        Args:
            least: where it begins at the earliest.
            last: where the last whole one began, which more may belong to; -1 if there is none.

        Returns:
            The end of `text`, with no name, if none has begun.
        """
        at = last if last >= 0 else least  # another may begin within the last whole one
        places = {*range(max(at, len(text) - _WINDOW), len(text)), *([last] if last >= 0 else [])}
        while self._search is not None and (candidate := self._search.search(text, at)) is not None:
            places.add(candidate.start())
            at = candidate.start() + 1
        found = [
            (begin, name, count - form.public >= LEAST)
            for begin in sorted(places)
            if text[begin] in self._forms and text[max(0, begin - 1) : begin + 1] != "\\\\"
            for form, name in self._forms[text[begin]]
            if (count := form.begun(text, begin)) is not None
        ]
        certain = [item for item in found if item[2]]
        return next(iter(certain or found), (len(text), "", False))


class Pieces:
    """A text that comes in pieces, each of which is written at once: no piece holds a secret, nor do all together.

    Nothing is held back until the next piece is there. What a secret goes on with, or begins with at least `LEAST`
    characters or bytes after a published prefix, is replaced at once; so at most `LEAST - 1` of these can be put
    together again. It is meant for values of up to some kilobytes: each piece is compared with all that a value has
    begun with, so the time grows with the square of its length (two seconds for 3 kB in hexadecimal in pieces of four
    characters).
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._tail = ""  # of the pieces before, from where a secret may have begun
        self._told = False  # whether that has been replaced already

    def text(self, piece: str) -> str:
        """`piece` without what belongs to a secret, be it whole or only begun."""
        both, start = self._tail + piece, len(self._tail)
        parts, at, ended, last, told = [], start, 0, -1, self._told
        for last, ended, name in self._redactor.spans(both):
            if ended > start:
                if not (told and last == 0):
                    parts += [both[at : max(at, last)], f"[redacted:{name}]"]
                at = ended
        begin, name, self._told = self._redactor.begun(both, ended, last)
        if self._told:
            if begin >= ended and not (told and begin == 0):
                parts += [both[at : max(at, begin)], f"[redacted:{name}]"]
            at = len(both)
        self._tail = both[begin:]
        return "".join([*parts, both[at:]])


def all_secrets(*known: Mapping[str, str]) -> dict[str, str]:
    """The secrets of all of `known`; a name that stands for two values is told apart, so that neither is forgotten."""
    found: dict[str, str] = {}
    for secrets in known:
        for name, value in secrets.items():
            while found.setdefault(name, value) != value:
                name += " (another)"
    return found


def _with_escape(text: str, begin: int, least: int) -> int:
    """Return where the escape sequence begins that `begin` lies within, else `begin`: half of one would be left."""
    digits = begin
    while digits > max(least, begin - 3) and text[digits - 1] in "0123456789abcdefABCDEF":
        digits -= 1
    for at in {begin, digits - 1 if text[digits - 1 : digits] == "u" else begin}:
        first = at
        while first > least and text[first - 1] == "\\":
            first -= 1
        if (at - first) % 2:
            return at - 1
    return begin


def without_secrets(text: str, redactor: Redactor) -> str:
    """Return `text` without the secrets that `redactor` knows, and without credentials of a published shape."""
    text = redactor.text(text)
    for kind, shape in SECRET_SHAPES.items():
        text = shape.sub(f"[redacted:{kind}]", text)
    return text


def find_secret_shapes(text: str) -> list[str]:
    """Kinds of credentials (`"GitHub"`, `"Anthropic"` …) whose published shape occurs in `text`."""
    return [kind for kind, shape in SECRET_SHAPES.items() if shape.search(text)]
