from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvest_nb.checks.settings import setting_names
from harvest_nb.checks.variables import foreign_variables

NAME = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
VALUE = st.from_regex(r"VALUE[ -~]{0,20}", fullmatch=True)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            '[url "https://evil.example/"]\n\tinsteadOf = https://github.com/\n[http]\n\tsslVerify = false\n# x = y\n',
            ["url.insteadOf", "http.sslVerify"],
        ),
        ('[url "https://0123456789abcdef@github.com/"]\n\tinsteadOf = x\n', ["url.insteadOf"]),
        ("//bob:hunter2secret@host/:always-auth=true\n", ["always-auth"]),
        ("//host/:_authToken=x\nregistry=http://x/\n; a=b\n", ["_authToken", "registry"]),
        (
            '{"hooks": {"PreToolUse": []}, "env": {"A": "x"}, "model": "y"}',
            ["hooks.PreToolUse", "env.A", "model"],
        ),
        ("export A=1\nB=2\n", ["A", "B"]),
        ("npmRegistryServer: http://x/\n", ["npmRegistryServer"]),
        ("just-a-word-that-may-be-a-secret\nc2VjcmV0\nc2VjcmV0==\n", []),
        ("[1, 2]", []),
    ],
)
def test_settings_are_named(text: str, names: list[str]):
    assert setting_names(text) == names


@given(st.dictionaries(NAME, VALUE, max_size=5))
def test_values_are_never_named(settings: dict[str, str]):
    lines = "\n".join(f"{name} = {value}" for name, value in settings.items())
    for text in (lines, json.dumps(settings), json.dumps({"env": settings})):
        assert "VALUE" not in " ".join(setting_names(text))


@given(st.text(max_size=200))
def test_any_text_is_read(text: str):
    assert all(isinstance(name, str) for name in setting_names(text))


def test_only_known_variables_with_known_values_may_be_set():
    known = {"LANG": r"C\.UTF-8", "PATH": ".*"}
    assert foreign_variables({"LANG": "C.UTF-8", "PATH": "/bin"}, known) == []
    assert foreign_variables({"LANG": "CxUTF-8", "NODE_OPTIONS": "--require=/x"}, known) == [
        r"LANG is not C\.UTF-8",
        "NODE_OPTIONS is set",
    ]


def test_a_secret_is_left_to_the_checks_for_secrets():
    assert foreign_variables({"NPM_TOKEN": "x", "HTTPS_PROXY": "http://user:pw@proxy"}, {}) == []
