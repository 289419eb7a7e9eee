"""Kinds that speak to the MCP servers: a handshake with each, the memory graph, a missing token."""

from __future__ import annotations

import json
import re
import secrets
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harvest_nb.checks.base import Check, Context, Outcome, shorten
from harvest_nb.checks.mcp_client import expand_variables, mcp_session
from harvest_nb.checks.tools import Regex
from harvest_nb.errors import CheckError, SandboxError
from harvest_nb.mcp_servers import MCPServer, mcp_servers

if TYPE_CHECKING:
    from mcp import ClientSession

__all__ = [
    "MCPServerCheck",
    "MCPServersCheck",
    "MemoryAloneCheck",
    "MemoryGraphCheck",
    "MissingTokenCheck",
    "server_named",
    "started",
    "tool_text",
]


def server_named(name: str) -> MCPServer:
    """The server of `config/mcp.toml`.

    Raises:
        CheckError: there is none of that name.
    """
    for server in mcp_servers():
        if server.name == name:
            return server
    raise CheckError(
        f"The contract asks for the MCP server {name!r}, which config/mcp.toml does not list",
        hint=f"known: {', '.join(server.name for server in mcp_servers())}",
    )


def tool_text(result: Any) -> str:
    """The text blocks of a `CallToolResult`, joined."""
    return "\n".join(block.text for block in result.content if getattr(block, "type", "") == "text")


def started(server: MCPServer, context: Context, *, token: bool = True) -> tuple[list[str], dict[str, str]]:
    """The server's argv and environment. A token it asks for is made up on the spot: nothing real is needed."""
    made_up = {server.token: secrets.token_hex(20)} if server.token and token else {}
    known = {"HOME": str(context.sandbox.home), "MEMORY_FILE_PATH": str(context.scratch / "unused.jsonl")}
    env = expand_variables(server.env, known | made_up)
    return [server.command, *server.args], made_up | env


async def _tools(session: ClientSession) -> set[str]:
    """The names of all tools, page after page."""
    from mcp.types import PaginatedRequestParams

    page = await session.list_tools()
    found = {tool.name for tool in page.tools}
    while page.next_cursor is not None:
        page = await session.list_tools(params=PaginatedRequestParams(cursor=page.next_cursor))
        found |= {tool.name for tool in page.tools}
    return found


class MCPServerCheck(Check):
    """One server answers `initialize` and `tools/list`, and offers the tools that `config/mcp.toml` names."""

    kind: Literal["mcp_server"]
    server: str

    def expected(self) -> str:
        """The tools."""
        tools = server_named(self.server).tools
        shown = ", ".join(tools[:4]) + (f" and {len(tools) - 4} more" if len(tools) > 4 else "")
        return f"initialize, tools/list with {shown}"

    async def observe(self, context: Context) -> Outcome:
        """Start the server in the sandbox and shake hands with it."""
        server = server_named(self.server)
        argv, env = started(server, context)
        if server.name == "memory":
            env["MEMORY_FILE_PATH"] = str(context.scratch / f"{self.name.replace(':', '-')}.jsonl")
            await context.sandbox.write(env["MEMORY_FILE_PATH"], b"")
        context.steps[self.name] = "waiting for the answer to initialize"
        async with mcp_session(context.sandbox, argv, env=env, timeout=self.timeout) as session:
            context.steps[self.name] = "after initialize, waiting for the answer to tools/list"
            tools = await _tools(session)
            info = session.server_info
        missing = [tool for tool in server.tools if tool not in tools]
        named = f"{info.name} {info.version}" if info else "a server without a name"
        if missing:
            return Outcome(False, f"{named}: {len(tools)} tools, without {', '.join(missing)}")
        return Outcome(True, f"{named}: {len(tools)} tools")


class MCPServersCheck(Check):
    """Stands for one `mcp_server` check a server of `config/mcp.toml`, named `<name>:<server>`."""

    kind: Literal["mcp_servers"]

    def expand(self) -> tuple[Check, ...]:
        """One check a server."""
        shared = self.model_dump(exclude={"kind", "name"})
        return tuple(
            MCPServerCheck(kind="mcp_server", name=f"{self.name}:{server.name}", server=server.name, **shared)
            for server in mcp_servers()
        )


class MemoryGraphCheck(Check):
    """The memory server, given a copy of the sandbox's store, reads the graph with all `entities`.

    The copy keeps the session's own file out of it: two servers on one file overwrite each other.
    """

    kind: Literal["memory_graph"]
    server: str = "memory"
    entities: tuple[str, ...] = Field(min_length=1)

    def expected(self) -> str:
        """The entities."""
        return f"read_graph returns {', '.join(self.entities)}, each with observations"

    async def observe(self, context: Context) -> Outcome:
        """Copy the store, start the server on the copy, call `read_graph`."""
        source = context.sandbox.memory_file
        try:
            store = await context.sandbox.read(source)
        except FileNotFoundError:
            return Outcome(
                False, f"{source} is missing", "the image's entrypoint makes it from memory-seed.json"
            )
        server = server_named(self.server)
        argv, env = started(server, context)
        env["MEMORY_FILE_PATH"] = str(context.scratch / "graph.jsonl")
        await context.sandbox.write(env["MEMORY_FILE_PATH"], store)
        async with mcp_session(context.sandbox, argv, env=env, timeout=self.timeout) as session:
            result = await session.call_tool("read_graph", {})
        text = tool_text(result)
        if getattr(result, "is_error", False):
            return Outcome(False, f"read_graph failed: {shorten(text)}")
        graph = json.loads(text)
        observed = {entity["name"]: entity.get("observations", []) for entity in graph["entities"]}
        missing = [name for name in self.entities if name not in observed]
        empty = [name for name in self.entities if name in observed and not observed[name]]
        if missing or empty:
            parts = [f"without {', '.join(missing)}"] if missing else []
            parts += [f"{', '.join(empty)} without observations"] if empty else []
            return Outcome(False, f"{len(observed)} entities, {'; '.join(parts)}")
        return Outcome(True, f"{len(observed)} entities, {len(graph.get('relations', []))} relations")


class MemoryAloneCheck(Check):
    """A second memory server on a store is refused with a clear error, and the first goes on working."""

    kind: Literal["memory_alone"]
    server: str = "memory"
    says: Regex = "in use by another memory server"

    def expected(self) -> str:
        """The refusal."""
        return f"a second {self.server} server on one store ends with /{self.says}/"

    async def observe(self, context: Context) -> Outcome:
        """Start two servers on one store; ask the first again after the second has gone."""
        server = server_named(self.server)
        argv, env = started(server, context)
        env["MEMORY_FILE_PATH"] = str(context.scratch / "alone.jsonl")
        await context.sandbox.write(env["MEMORY_FILE_PATH"], b"")
        async with mcp_session(context.sandbox, argv, env=env, timeout=self.timeout) as first:
            try:
                async with mcp_session(context.sandbox, argv, env=env, timeout=self.timeout):
                    return Outcome(
                        False, "the second server started: each would overwrite the other's changes"
                    )
            except SandboxError as error:
                text = error.message
            await first.call_tool("read_graph", {})
        found = re.search(self.says, text)
        return Outcome(found is not None, shorten(text[found.start() :] if found else text) or "nothing")


class MissingTokenCheck(Check):
    """Without its token, the server says so itself: at its start, or in the answer to `tool`.

    `says` is what its own words must match.
    """

    kind: Literal["mcp_missing_token"]
    server: str
    says: Regex
    tool: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)

    def expected(self) -> str:
        """The server's message."""
        where = f"{self.tool} answers" if self.tool else "the start ends with"
        return f"without {server_named(self.server).token} {where} /{self.says}/"

    async def observe(self, context: Context) -> Outcome:
        """Start the server with an empty token and read what it says."""
        server = server_named(self.server)
        argv, env = started(server, context, token=False)
        env = {name: value for name, value in env.items() if value} | {str(server.token): ""}
        try:
            async with mcp_session(context.sandbox, argv, env=env, timeout=self.timeout) as session:
                if self.tool is None:
                    return Outcome(False, "the server started as if nothing was missing")
                text = tool_text(await session.call_tool(self.tool, self.arguments))
        except SandboxError as error:
            # A server that prints its usage says the reason first: the message quotes the end only.
            text = str(error.data.get("said") or error.message)
        found = re.search(self.says, text)
        return Outcome(found is not None, shorten(text[found.start() :] if found else text) or "nothing")
