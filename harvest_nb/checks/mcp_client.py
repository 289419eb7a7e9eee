"""An MCP client for a server that runs in a sandbox: the `mcp` library's session over a process's streams."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from harvest_nb.errors import SandboxError
from harvest_nb.sandbox.base import Process, Sandbox

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp import ClientSession
    from mcp.shared.message import SessionMessage

__all__ = ["expand_variables", "mcp_session", "server_tail"]

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_TAIL = 4_000  # bytes of standard error that are kept to explain a failure


def expand_variables(env: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """`env` with `${NAME}` replaced from `values`, as the CLI does; a name without a value becomes empty."""
    return {key: _VARIABLE.sub(lambda m: values.get(m.group(1), ""), text) for key, text in env.items()}


@asynccontextmanager
async def mcp_session(
    sandbox: Sandbox, argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 30.0
) -> AsyncIterator[ClientSession]:
    """A session with the stdio server `argv`, initialized; the server is ended with the block.

    Args:
        timeout: seconds that one request may take.

    Raises:
        SandboxError: the server ended, or spoke no MCP; the last words of its standard error are in it
            (`said` has more of them).
    """
    from mcp import ClientSession, MCPError

    process = await sandbox.spawn(argv, env=env)
    to_session, from_server = anyio.create_memory_object_stream["SessionMessage | Exception"](64)
    to_server, from_session = anyio.create_memory_object_stream["SessionMessage"](64)
    errors = bytearray()
    pumps = [
        asyncio.ensure_future(_read(process, to_session)),
        asyncio.ensure_future(_write(process, from_session)),
        asyncio.ensure_future(_keep_tail(process, errors)),
    ]
    try:
        async with ClientSession(from_server, to_server, read_timeout_seconds=timeout) as session:
            try:
                await session.initialize()
            except (MCPError, ValueError) as error:
                # Let the last words arrive before they are quoted.
                await asyncio.wait(pumps[2:], timeout=1.0)
                said = server_tail(errors)
                raise SandboxError(
                    f"`{' '.join(argv)}` did not initialize: {error}; it said: {said}",
                    said=bytes(errors).decode("utf-8", "replace"),
                ) from error
            yield session
    except ExceptionGroup as group:
        # The library's task group wraps whatever happens in it, even when it is one plain error.
        cause: Exception = group
        while isinstance(cause, ExceptionGroup) and len(cause.exceptions) == 1:
            cause = cause.exceptions[0]
        raise cause from None
    finally:
        await process.kill()
        for pump in pumps:
            pump.cancel()
        # A pump's own failure has reached the session already, as the end of its stream.
        await asyncio.wait(pumps, timeout=5.0)
        for stream in (to_session, from_server, to_server, from_session):
            stream.close()


def server_tail(errors: bytes | bytearray) -> str:
    """The last lines of a server's standard error, or `nothing`."""
    lines = bytes(errors).decode("utf-8", "replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-6:] if line.strip()) or "nothing"


async def _read(process: Process, sink: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    """Lines of standard output to the session; a line that is no message goes on as its error."""
    from mcp.shared.message import SessionMessage
    from mcp.types import jsonrpc_message_adapter as adapter

    buffer = b""
    async with sink:
        async for chunk in process.stdout:
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                if not line.strip():
                    continue
                try:
                    message: SessionMessage | Exception = SessionMessage(
                        adapter.validate_json(line, by_name=False)
                    )
                except ValueError as error:
                    message = error
                await sink.send(message)


async def _write(process: Process, source: MemoryObjectReceiveStream[SessionMessage]) -> None:
    """Messages of the session to standard input, one a line."""
    async with source:
        async for item in source:
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            await process.stdin.send(text.encode() + b"\n")


async def _keep_tail(process: Process, kept: bytearray) -> None:
    """Standard error, drained so that the server never blocks on it; its end is kept."""
    async for chunk in process.stderr:
        kept += chunk
        del kept[:-_TAIL]
