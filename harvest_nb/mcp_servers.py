"""The MCP servers of the executor, as `config/mcp.toml` lists them.

One place says how each is started, which token it needs and which tools it must offer; sessions, checks,
diagrams and the documentation read it from here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from harvest_nb.errors import SettingsError
from harvest_nb.paths import config_dir

__all__ = ["MCPServer", "mcp_config", "mcp_servers"]


class MCPServer(BaseModel):
    """One stdio MCP server in the snapshot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """The key in the MCP configuration, and so the middle of `mcp__<name>__<tool>`."""
    package: str
    """The npm package that brings it."""
    command: str
    args: tuple[str, ...] = ()
    token: str | None = None
    """The variable that must be set for the server to be useful; None where none is needed."""
    env: Mapping[str, str] = {}
    """Environment of the server; `${NAME}` is expanded by the CLI from its own environment."""
    tools: tuple[str, ...]
    """Tools that it must offer, a subset of what `tools/list` returns."""
    why: str
    """Why this server was chosen."""


@cache
def mcp_servers(path: Path | None = None) -> tuple[MCPServer, ...]:
    """All servers in the file's order.

    Raises:
        SettingsError: the file is missing or malformed, with the entry named.
    """
    source = path or config_dir() / "mcp.toml"
    try:
        raw = tomllib.loads(source.read_text(encoding="utf-8"))
        return tuple(MCPServer.model_validate(entry) for entry in raw["server"])
    except (OSError, tomllib.TOMLDecodeError, KeyError, ValidationError) as error:
        raise SettingsError(f"Cannot read the MCP servers from {source}: {error}") from error


def mcp_config(tokens: Iterable[str] = (), only: Iterable[str] | None = None) -> dict[str, dict[str, object]]:
    """The `mcpServers` object for a session: servers that need no token and those whose token is set.

    Values of tokens never appear, only `${NAME}` references.

    Args:
        tokens: names of the token variables that are set.
        only: names of servers to take instead of the default choice.
    """
    have = set(tokens)
    chosen = set(only) if only is not None else None
    known = {server.name for server in mcp_servers()}
    if chosen is not None and chosen - known:
        raise SettingsError(
            f"Unknown MCP server {', '.join(sorted(chosen - known))}",
            hint=f"known: {', '.join(sorted(known))}",
        )
    return {
        server.name: {
            "type": "stdio",
            "command": server.command,
            "args": list(server.args),
            "env": dict(server.env),
        }
        for server in mcp_servers()
        if (server.name in chosen if chosen is not None else server.token is None or server.token in have)
    }
