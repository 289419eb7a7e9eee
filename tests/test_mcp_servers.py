from __future__ import annotations

import re

import pytest

from harvest_nb.errors import SettingsError
from harvest_nb.mcp_servers import mcp_config, mcp_servers
from harvest_nb.settings import TOKEN_VARIABLES

NAMES = ["memory", "github", "linear", "gemini", "sentry", "playwright"]


def test_the_six_servers_and_their_commands():
    assert [server.name for server in mcp_servers()] == NAMES
    commands = {server.name: server.command for server in mcp_servers()}
    assert commands["memory"] == "mcp-server-memory"
    assert commands["github"] == "mcp-server-github"


def test_tokens_are_those_of_the_settings():
    tokens = {server.name: server.token for server in mcp_servers() if server.token is not None}
    assert tokens == {
        "github": "GITHUB_TOKEN",
        "linear": "LINEAR_API_KEY",
        "gemini": "GEMINI_API_KEY",
        "sentry": "SENTRY_AUTH_TOKEN",
    }
    assert set(tokens.values()) < set(TOKEN_VARIABLES)


@pytest.mark.parametrize("server", mcp_servers(), ids=lambda server: server.name)
def test_an_entry_is_complete(server):
    assert server.tools
    assert len(set(server.tools)) == len(server.tools)
    assert len(server.why) > 80
    used = {name for value in server.env.values() for name in re.findall(r"\$\{(\w+)\}", value)}
    # Anything else would reach the server as a literal `${NAME}` where it is not set.
    assert used <= {"HOME", "MEMORY_FILE_PATH", server.token}
    assert server.token is None or server.token in used


@pytest.mark.parametrize("name", NAMES)
def test_no_token_stands_in_arguments(name):
    server = next(server for server in mcp_servers() if server.name == name)
    assert not any("$" in argument or "token" in argument.lower() for argument in server.args)


def test_by_default_those_without_a_token():
    assert list(mcp_config()) == ["memory", "playwright"]


def test_and_those_whose_token_is_set():
    assert list(mcp_config(["SENTRY_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"])) == [
        "memory",
        "sentry",
        "playwright",
    ]


def test_only_takes_what_it_is_told():
    assert list(mcp_config(["GITHUB_TOKEN"], only=["linear"])) == ["linear"]
    assert mcp_config(only=[]) == {}


def test_the_configuration_has_references_and_no_values(monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_planted")
    entry = mcp_config(["GITHUB_TOKEN"])["github"]
    assert entry == {
        "type": "stdio",
        "command": "mcp-server-github",
        "args": [],
        "env": {"GITHUB_PERSONAL_ACCESS_TOKEN": "${GITHUB_TOKEN}"},
    }


def test_an_unknown_server_is_named():
    with pytest.raises(SettingsError, match="Unknown MCP server jira") as caught:
        mcp_config(only=["memory", "jira"])
    assert "github" in caught.value.hint


ENTRY = '[[server]]\nname = "x"\npackage = "p"\ncommand = "c"\ntools = ["t"]\nwhy = "w"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("[[server]", "line 1"),
        ("other = 1", "server"),
        (ENTRY.replace('command = "c"\n', ""), "command"),
        (ENTRY + 'tokens = "T"\n', "tokens"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path, text, said):
    path = tmp_path / "mcp.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError, match=said) as caught:
        mcp_servers(path)
    assert str(path) in str(caught.value)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mcp.toml"
    path.write_text(ENTRY)
    (server,) = mcp_servers(path)
    assert (server.name, server.args, server.token, server.tools) == ("x", (), None, ("t",))
