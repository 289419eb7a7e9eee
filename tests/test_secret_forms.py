"""What programs print of a secret: made by those very programs, over tokens with every awkward character."""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest_nb.redact import LEAST, Pieces, Redactor

AWKWARD = "/+=&<>'\"%\\"
PLAIN = "ABCXYZabcxyz0123456789-_."
edges = st.text(PLAIN + AWKWARD, min_size=6, max_size=6)
# What is in one place alone tells where a value begins and ends: of a row of zeros, a neighbour may be taken for one.
begins, ends = edges.map("Q{}".format), edges.map("{}J".format)
middles = st.integers(1, 100).flatmap(
    lambda size: st.tuples(*[st.text(PLAIN + AWKWARD, min_size=size, max_size=size)] * 2)
)
around = st.text(PLAIN + AWKWARD + " \n", max_size=60)
COMMANDS = [
    *(["base64", "-w", str(width)] for width in (0, 60, 64, 76, 1)),
    ["xxd"], ["xxd", "-u"], ["xxd", "-g1", "-c", "24"], ["xxd", "-p"], ["xxd", "-p", "-u", "-c", "7"], ["xxd", "-i"],
    ["od", "-v", "-tx1"],
    ["od", "-An", "-v", "-tx1"], ["od", "-v", "-Ax", "-tx1z", "-w8"], ["hexdump", "-vC"],
    ["jq", "-Rs", "."], ["jq", "-Rs", "@uri"], ["jq", "-Rs", "@html"], ["jq", "-Rs", "@base64"],
    ["jq", "-Rs", "[., @json, (. | @json | @json)]"],
    ["iconv", "-f", "utf-8", "-t", "utf-16le"], ["iconv", "-f", "utf-8", "-t", "utf-16be"],
]  # fmt: skip
PYTHON = r"""
import base64, html, json, shlex, sys, urllib.parse as u
t = sys.stdin.buffer.read().decode()
j = json.dumps(t)
print("\0\0\0\0".join([
    repr(t), ascii(t), repr(t.encode()), repr([t]), j, json.dumps(j), json.dumps(json.dumps(j)), j.replace("/", "\\/"),
    '"' + "".join(f"\\u{ord(c):04x}" for c in t) + '"', '"' + "".join(f"\\u{ord(c):04X}" for c in t) + '"',
    "".join(f"\\x{ord(c):02x}" for c in t),
    j.replace("<", "\\u003c").replace(">", "\\u003E").replace("&", "\\u0026"),
    u.quote(t), u.quote(t, safe=""), u.quote_plus(t), u.quote(t, safe="/+=&<>'\"\\"),
    "".join(f"%{b:02x}" for b in t.encode()), "".join(f"%{b:02X}" for b in t.encode()),
    u.quote(u.quote(t, safe=""), safe=""), u.quote(t, safe="").lower() if t.islower() else u.quote(t),
    html.escape(t), html.escape(t, quote=False), html.escape(html.escape(t)), html.escape(j),
    "".join(f"&#{ord(c)};" for c in t), "".join(f"&#x{ord(c):x};" for c in t), "".join(f"&#X{ord(c):04X};" for c in t),
    shlex.quote(t), base64.urlsafe_b64encode(t.encode()).decode(), base64.encodebytes(t.encode()).decode(),
    "".join(f"\\u{{{ord(c):x}}}" for c in t), "".join(f"\\u{{{ord(c):04X}}}" for c in t), t.encode().hex("-"),
    t.encode().hex(), t.encode().hex(" "), t.encode().hex(":", 1).upper(), t.encode("utf-16").decode("latin-1"),
    json.dumps(t.encode("utf-16-le").decode()), repr(t.encode("utf-16-le")),
]))
"""
NODE = r"""
const t = require("fs").readFileSync(0), s = t.toString();
console.log([
  encodeURIComponent(s), encodeURI(s), escape(s), JSON.stringify({a: JSON.stringify([s])}), t.toString("base64"),
  t.toString("base64url"), t.toString("hex"), new URLSearchParams({s}).toString(), require("querystring").escape(s),
  require("util").inspect(s),
].join("\0\0\0\0"));
"""
COMMANDS += [[sys.executable, "-c", PYTHON], ["node", "-e", NODE]]


LINES = [
    ["cat"], ["cat", "-n"], ["nl", "-ba"], ["grep", "-n", ""], ["sed", "s/$/\r/"],
    ["tr", "\n", " "], ["tr", "-d", "\n"],
    *(["sed", f"s/^/{mark}/"] for mark in ("    ", "\t", "+", "-", "+    ", "> ", "# ", "| ")),
    [sys.executable, "-c", "import sys\nfor n, line in enumerate(sys.stdin, 1): print(f'{n:6}→{line}', end='')"],
    [sys.executable, "-c", "import sys\nfor n, line in enumerate(sys.stdin, 1): print(f'{n}→-   {line}', end='')"],
]  # fmt: skip


def printed(command: list[str], text: str) -> list[str]:
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=True, timeout=60, env=env)
    return done.stdout.decode("utf-8", "replace").split("\0\0\0\0")


def cleaned(text: str, secret: str) -> str:
    """What is left of `text`, without the quotation marks that a program chooses by what stands between them."""
    return re.sub(r"[\\\"'`]", "", Redactor({"TOKEN": secret}).text(text))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[-30:])
def test_what_is_left_of_a_secret_does_not_depend_on_it(command: list[str]) -> None:
    """Two secrets with the same ends leave the same text: nothing between the ends has got out."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")

    @settings(max_examples=3 if len(command[-1]) > 15 else 6)
    @given(begins, middles, ends, around, around)
    def check(begin: str, both: tuple[str, str], end: str, before: str, after: str) -> None:
        secrets = [begin + middle + end for middle in both]
        # They hold nothing that looks like an escape itself, nor backslashes in a row, which UTF-16 takes apart.
        secrets = [re.sub(r"%(?=25|00)|\\(?=[ux\\])|&(?=amp;|#)", ".", secret) for secret in secrets]
        for one, two in zip(*(printed(command, before + secret + after) for secret in secrets), strict=True):
            nested = [(one, two)]
            for ascii_only in (True, False):  # as in a line of a stream, and in a tool's input in it
                one, two = (json.dumps(text, ensure_ascii=ascii_only) for text in (one, two))
                nested.append((one, two))
            for level, texts in enumerate(nested):
                left = [cleaned(text, secret) for text, secret in zip(texts, secrets, strict=True)]
                assert "[redacted:TOKEN]" in left[0]
                assert left[0] == left[1]
                if level:
                    json.loads(Redactor({"TOKEN": secrets[0]}).text(texts[0]))

    check()


@given(
    begins, middles, ends, around, around, st.sampled_from([c for c in COMMANDS if c[0] in ("base64", "xxd", "od")]),
    st.none() | st.lists(st.integers(0, 5000), max_size=30),
)  # fmt: skip
@settings(max_examples=40)
def test_nor_does_it_where_the_text_comes_in_pieces(
    begin: str,
    both: tuple[str, str],
    end: str,
    before: str,
    after: str,
    command: list[str],
    cuts: list[int] | None,
) -> None:
    left = []
    for middle in both:
        (text,) = printed(command, before + begin + middle + end + after)
        pieces = text.splitlines(keepends=True)
        if cuts is not None:
            places = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
            pieces = [text[a:b] for a, b in pairwise(places)]
        stream = Pieces(Redactor({"TOKEN": begin + middle + end}))
        left.append("".join(map(stream.text, pieces)))
    assert "[redacted:TOKEN]" in left[0]
    assert left[0] == left[1]


def key(seed: int) -> str:
    rows = [base64.b64encode(random.Random(f"{seed} {row}").randbytes(30)).decode() for row in range(3)]
    kind = "PRIVATE KEY-----"
    return "\n".join(
        [f"-----BEGIN {kind}", "+4tQ9vX", *rows, "1:", "", "  indented", "-7LmN", f"-----END {kind}"]
    )


@pytest.mark.parametrize("command", LINES, ids=lambda command: " ".join(command)[-30:])
def test_a_value_of_several_lines_is_found_however_they_are_shown(command: list[str]) -> None:
    texts = [printed(command, f"before\n{key(seed)}\nafter\n")[0] for seed in (1, 2)]
    for level, size in ((0, 10_000), (0, 3), (1, 10_000), (2, 17)):
        left = []
        for seed, text in enumerate(texts, 1):
            for nested in range(level):
                text = json.dumps(text, ensure_ascii=nested == 0)
            stream = Pieces(Redactor({"TOKEN": key(seed)}))
            left.append("".join(stream.text(text[at : at + size]) for at in range(0, len(text), size)))
        assert left[0] == left[1]
        assert left[0].count("[redacted:TOKEN]") == 1
        assert "after" in left[0]


PUBLISHED = [
    "https://", "postgres+psycopg://", "sk-ant-", "sk-ant-" + "api03-", "gh" + "p_", "github_" + "pat_",
    "lin_" + "api_",    "AI" + "za", "sntry" + "s_", "dt" + "n_", "AK" + "IA", "-----BEGIN RSA " + "PRIVATE KEY-----",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PUBLISHED)
@pytest.mark.parametrize(
    "encoded", [str, quote, lambda text: text.encode().hex(), lambda text: text.encode().hex(" ")]
)
def test_how_credentials_begin_in_general_stays_in_pieces(prefix: str, encoded: Callable[[str], str]) -> None:
    rest = "4tQ9vXcZ7LmN2bKpR8sWdYfH"
    redactor = Redactor({"TOKEN": prefix + rest})
    text, secret = encoded(f"see {prefix}... and {prefix}"), encoded(prefix + rest)
    for at in range(len(text) + 1):
        stream = Pieces(redactor)
        assert stream.text(text[:at]) + stream.text(text[at:]) == text
    for at in range(len(secret) + 1):
        stream = Pieces(redactor)
        left = stream.text(secret[:at]) + stream.text(secret[at:])
        assert "[redacted:TOKEN]" in left
        assert encoded(prefix + rest[:LEAST]) not in left
        assert encoded(rest[-LEAST:]) not in left


@pytest.mark.parametrize("size", [100, 12, 5, 1])
def test_secrets_that_overlap_are_replaced_to_the_end_of_the_last(size: int) -> None:
    text = "x4tQ9vXcZ7LmxYfHd2bKpR8sWy!"
    stream = Pieces(Redactor({"A": text[:13], "B": text[1:20], "C": text[15:26]}))
    left = "".join(stream.text(text[at : at + size]) for at in range(0, len(text), size))
    assert left.endswith("!")
    assert not any(text[at : at + LEAST] in left for at in range(len(text) - LEAST))


@settings(max_examples=10)
@given(edges, middles, edges)
def test_nothing_else_is_redacted(begin: str, both: tuple[str, str], end: str) -> None:
    redactor = Redactor({"TOKEN": begin + both[0] + end})
    for path in Path(__file__).parents[1].glob("*.md"):
        text = path.read_text()
        assert redactor.text(text) == text
    pieces = Pieces(redactor)
    assert [line for line in text.splitlines() if pieces.text(f"{line}\n") != f"{line}\n"] == []


TOKENS = {f"TOKEN_{n}": random.Random(n).randbytes(20 + n).hex()[: 30 + n] for n in range(7)}
BAD = {
    "backslashes": "\\" * 200_000,
    "white space": "a" + " \n" * 200_000,
    "escaped line breaks": "a\\n" * 100_000,
    "percent signs": "%25" * 150_000,
    "ampersands": "&amp;" * 100_000,
    "the beginning, again and again": TOKENS["TOKEN_0"][:20] * 5_000,
    "its base64, character by character": "\n".join("MTIzNDU2Nzg5" * 10_000),
    "a dump of one byte": "00000000: 6161 6161 6161 6161 6161 6161 6161 6161  aaaaaaaaaaaaaaaa\n" * 6_000,
}


@pytest.mark.parametrize("name", BAD)
def test_time_goes_with_the_length_of_the_text(name: str) -> None:
    redactor, text = Redactor({**TOKENS, "ROW": "a" * 60, "SLASHES": "\\" * 20 + "/x"}), BAD[name]
    began = time.process_time()
    redactor.text(text)
    pieces = Pieces(redactor)
    for place in range(0, len(text) // 8, 500):
        pieces.text(text[place : place + 500])
    assert time.process_time() - began < 8  # quadratic, it takes minutes
