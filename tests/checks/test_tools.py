from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from harvest_nb.checks.tools import find_version

VERSION = """
[[check]]
name = "tool"
group = "tools"
kind = "version"
argv = ["tool", "--version"]
range = ">=2,<3"
hint = "install tool 2"
"""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v20.20.2\n", "20.20.2"),
        ("git version 2.39.5", "2.39.5"),
        ("ripgrep 13.0.0\n-SIMD -AVX (compiled)", "13.0.0"),
        ("2.1.330 (Claude Code)", "2.1.330"),
        ("HeadlessChrome/156.0.8078.79", "156.0.8078.79"),
        ("fdfind 8.6.0", "8.6.0"),
    ],
)
def test_versions_as_programs_print_them(text, version):
    assert find_version(text) == Version(version)


@given(st.text(alphabet="abc :/-()\n", max_size=20), st.lists(st.integers(0, 9999), min_size=2, max_size=5))
def test_a_dotted_number_is_found_after_any_words(words, parts):
    number = ".".join(map(str, parts))
    assert find_version(f"{words}{number} and 1.2") == Version(number)


@given(st.text(max_size=60))
def test_any_text_gives_a_version_or_none(text):
    found = find_version(text)
    assert found is None or isinstance(found, Version)


def program(tmp_path, name, body):
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("body", "status", "observed"),
    [
        ("echo tool 2.9.1", "pass", "2.9.1"),
        ("echo tool 2.9.1 >&2", "pass", "2.9.1"),
        ("echo tool 3.0", "fail", "3.0"),
        ("echo tool two", "fail", "no version in: tool two"),
        ("echo broken >&2; exit 3", "fail", "exit code 3: broken"),
    ],
)
async def test_version_check(desk, run_contract, tmp_path, body, status, observed):
    program(tmp_path, "tool", body)
    report = await run_contract(VERSION)
    assert (report.rows[0].status, report.rows[0].observed) == (status, observed)


async def test_a_missing_program_fails_with_its_name(run_contract):
    report = await run_contract(VERSION)
    assert report.rows[0].status == "fail"
    assert "Cannot start `tool`" in report.rows[0].observed


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ('matches = "^two$"', "pass"),
        ('matches = "^tw$"', "fail"),
        ('lacks = "one"', "fail"),
        ('lacks = "three"\nmatches = "one"', "pass"),
        ("exit_code = 1", "fail"),
    ],
)
async def test_command_check(run_contract, fields, status):
    entry = '[[check]]\nname = "c"\ngroup = "tools"\nkind = "command"\nhint = "h"\nargv = ["printf", "one\\ntwo\\n"]\n'
    report = await run_contract(entry + fields)
    assert report.rows[0].status == status, report.rows[0]


async def test_absent_check_names_what_is_there(run_contract, tmp_path):
    entry = '[[check]]\nname = "c"\ngroup = "security"\nkind = "absent"\nhint = "h"\n'
    entry += 'commands = ["no-such-thing", "sudo"]\n'
    (before,) = await run_contract(entry.replace("sudo", "no-such-other"))
    assert before.status == "pass"
    program(tmp_path, "sudo", "true")
    (after,) = await run_contract(entry)
    assert after.status == "fail"
    assert after.observed == str(tmp_path / "bin" / "sudo")
