from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from harvest_nb.redact import Redactor, all_secrets, find_secret_shapes

secrets = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=12, max_size=60)
around = st.text(max_size=20)


@given(secrets, around, around)
def test_no_form_of_a_secret_survives(secret: str, before: str, after: str) -> None:
    redactor = Redactor({"TOKEN": secret})
    # A tool's input streams as JSON inside a JSON line, and may itself be a file of JSON.
    once = json.dumps(secret)[1:-1]
    twice = json.dumps(once)[1:-1]
    for form in (secret, quote(secret, safe=""), once, twice, json.dumps(twice)[1:-1]):
        said = redactor.text(f"{before}{form}{after}")
        assert "[redacted:TOKEN]" in said
        assert secret not in said.replace("[redacted:TOKEN]", "")


@pytest.mark.parametrize("offset", [-30, -19, -18, -3, -1, 0, 1, 128])
def test_a_long_file_is_cleaned_as_a_short_one_is(offset: int) -> None:
    """It is looked at in parts of some megabytes."""
    value = "summer-holiday-2024"
    redactor = Redactor({"TOKEN": value})
    text = "é\U0001f600" + "x" * ((4 << 20) - 6 + offset) + value + "we met in the summer" * 2
    data = text.encode() + b"\xff" + f"{value} and {value[:-1]}".encode()
    expected = redactor.text(data.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    assert redactor.data(data) == expected
    assert expected.count(b"[redacted:TOKEN]") == 2


@example("abcdef\n" + "1" * 1000, 0)
@example("1\n> >1", 0)  # its second line begins with a mark, twice
@given(st.text("ab1:-+>|#\\ \t\r\n→", min_size=6, max_size=40).map(str.strip), st.integers(0, 3))
def test_whatever_the_lines_of_a_secret_begin_with(secret: str, levels: int) -> None:
    assume(len(secret) >= 6)
    redactor, text = Redactor({"TOKEN": secret}), f"before:{secret}:after"
    for level in range(levels):
        text = json.dumps(text, ensure_ascii=level % 2 == 0)
    said = redactor.text(text)
    assert "[redacted:TOKEN]" in said
    assert "before:" in said


@given(secrets, st.binary(max_size=20), st.binary(max_size=20))
def test_base64_hides_nothing(secret: str, before: bytes, after: bytes) -> None:
    said = base64.b64encode(before + secret.encode() + after).decode()
    assert "[redacted:TOKEN]" in Redactor({"TOKEN": secret}).text(said)


@pytest.mark.parametrize("value", ["value-of-the-token\n", " \tvalue-of-the-token", "value-of-the-token\r\n"])
def test_white_space_around_a_value_hides_it_from_nobody(value: str) -> None:
    said = f"x{value.strip()}y {base64.b64encode(value.strip().encode()).decode()} {json.dumps(value)}"
    cleaned = Redactor({"TOKEN": value}).text(said)
    assert cleaned.count("[redacted:TOKEN]") == 3
    assert "value-of" not in cleaned


def test_a_value_beyond_ascii_is_known_as_other_programs_escape_it() -> None:
    value = 'pass"wörd-of-mine'
    said = json.dumps({"input": json.dumps({"x": value}, ensure_ascii=False)}, ensure_ascii=False)
    assert "wörd" not in Redactor({"TOKEN": value}).text(said)


def test_short_and_empty_values_are_left_alone() -> None:
    assert Redactor({"A": "", "B": "on"}).text("on and on") == "on and on"


def test_names_are_told_and_values_are_not() -> None:
    redactor = Redactor({"GITHUB_TOKEN": "value-of-the-token"})
    assert redactor.found("x value-of-the-token y") == ["GITHUB_TOKEN"]
    assert "value-of-the-token" not in repr(redactor)


def test_two_values_of_one_name_are_both_known() -> None:
    known = all_secrets(
        {"KEY": "value-of-one"}, {"KEY": "value-of-two", "B": "value-of-b"}, {"KEY": "value-of-one"}
    )
    assert sorted(known.values()) == ["value-of-b", "value-of-one", "value-of-two"]
    assert "value" not in Redactor(known).text("value-of-one value-of-two value-of-b")


@pytest.mark.parametrize("prefix", ["gh" + "p_", "lin_" + "api_", "dt" + "n_"])
def test_shapes_of_credentials_are_known(prefix: str) -> None:
    assert find_secret_shapes(f"x {prefix}{'a1' * 20} y")
    assert not find_secret_shapes(f"{prefix}...")


@example("\\", 'x00"')
@given(st.sampled_from(["npm_", "token", "\\u0041", "\\", '"']), st.text('\\nu00b"x', max_size=12))
def test_json_stays_json_whatever_stands_before_and_behind(begin: str, around: str) -> None:
    secret = begin + "4tQ9vX" + begin
    redactor = Redactor({"TOKEN": secret})
    said = json.dumps(around + secret + around)
    assert "4tQ9vX" not in json.loads(redactor.text(said))
    # The beginning of a value may look like the end of an escape.
    json.loads(redactor.text(json.dumps(f"x\n{secret[1:]} \x7f{secret[1:]}{around}")))


def test_names_of_values_that_are_too_short_are_told() -> None:
    assert Redactor({"B": "on", "A": " five5 ", "C": "", "D": "enough"}).unprotected == ["A", "B"]
