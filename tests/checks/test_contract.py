from __future__ import annotations

import tomllib

import pytest

from harvest_nb.checks import GROUPS, load_contract
from harvest_nb.errors import CheckError
from harvest_nb.mcp_servers import mcp_servers
from harvest_nb.paths import config_dir

GOOD = """
[[check]]
name = "one"
group = "tools"
kind = "version"
argv = ["one", "--version"]
range = ">=1"
hint = "install one"
"""


def load(tmp_path, text, version="version = 1\n"):
    path = tmp_path / "contract.toml"
    path.write_text(version + text)
    return load_contract(path)


def test_the_contract_of_the_snapshot_covers_every_group_and_server():
    contract = load_contract()
    assert {check.group for check in contract.checks} == set(GROUPS)
    names = {check.name for check in contract.checks}
    assert {f"mcp:{server.name}" for server in mcp_servers()} <= names
    assert all(check.expected() for check in contract.checks)


def test_every_hint_is_a_sentence_of_its_own():
    entries = tomllib.loads((config_dir() / "contract.toml").read_text())["check"]
    assert all(len(entry["hint"]) > 15 for entry in entries)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (('range = ">=1"', 'range = "at least one"'), "range: .*'at least one' is no range"),
        (('range = ">=1"', 'range = ">=1"\ncolour = "red"'), "colour: Extra inputs"),
        (('kind = "version"', 'kind = "wish"'), "kind: .*'wish'"),
        (('kind = "version"\n', ""), "kind: Unable to extract tag"),
        (('group = "tools"', 'group = "toys"'), "group: "),
        (('argv = ["one", "--version"]', "argv = []"), "argv: "),
        (('hint = "install one"', 'hint = ""'), "hint: "),
        (('hint = "install one"', 'hint = "h"\ntimeout = 0'), "timeout: "),
    ],
)
def test_a_malformed_entry_is_named_with_its_field(tmp_path, change, problem):
    with pytest.raises(CheckError, match=rf"check 1 \(one\) is malformed: {problem}") as caught:
        load(tmp_path, GOOD.replace(*change))
    assert caught.value.entry == "one"


def test_the_number_of_the_malformed_entry_is_told(tmp_path):
    other = GOOD.replace('"one"', '"two"', 1).replace("group", "grup")
    with pytest.raises(CheckError, match=r"check 2 \(two\)"):
        load(tmp_path, GOOD + other)


def test_a_regular_expression_is_compiled_at_once(tmp_path):
    entry = '[[check]]\nname = "c"\ngroup = "tools"\nkind = "command"\nargv = ["true"]\nhint = "h"\nmatches = "("\n'
    with pytest.raises(CheckError, match="no regular expression"):
        load(tmp_path, entry)


@pytest.mark.parametrize(
    ("text", "version", "problem"),
    [
        (GOOD, "", "version None"),
        (GOOD, "version = 2\n", "version 2"),
        ("", "version = 1\n", "no .* entries"),
        (GOOD, "version = 1\nconcurrency = 0\n", "concurrency 0"),
        (GOOD, "version = 1\nconcurrency = true\n", "concurrency True"),
        (GOOD, "version = 1\nspeed = 3\n", "unknown key speed"),
        (GOOD, "version = = 1\n", "Cannot read"),
        (GOOD + GOOD, "version = 1\n", "two checks are named one"),
        (GOOD + 'after = ["later"]', "version = 1\n", "one comes after 'later'"),
        (GOOD + 'after = ["one"]', "version = 1\n", "one comes after 'one'"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, version, problem):
    with pytest.raises(CheckError, match=problem):
        load(tmp_path, text, version)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckError, match=r"nowhere\.toml"):
        load_contract(tmp_path / "nowhere.toml")


def test_groups_are_chosen_by_name():
    contract = load_contract()
    assert {check.group for check in contract.only(["sdk", "config"]).checks} == {"sdk", "config"}
    assert contract.only(None) is contract
    with pytest.raises(CheckError, match="Unknown group toys"):
        contract.only(["toys"])
    with pytest.raises(CheckError, match="no check in"):
        contract.only([])
