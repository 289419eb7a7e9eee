"""Terminals: one web socket makes a shell on a terminal and carries it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from harvest_nb.daytona_local.replies import ApiError, body, now
from harvest_nb.daytona_local.toolbox import box_of
from harvest_nb.sandbox.relay import RelayProcess

__all__ = ["routes"]

_PROGRAM = (Path(__file__).parent / "in_sandbox" / "terminal.py").read_text(encoding="utf-8")
_ENVS = "X-Daytona-Pty-Envs~"


@dataclass
class _Terminal:
    id: str
    cwd: str
    envs: dict[str, str]
    cols: int
    rows: int
    process: RelayProcess
    tty: str
    created: str = field(default_factory=now)

    def describe(self) -> dict[str, Any]:
        return {"id": self.id, "cwd": self.cwd, "envs": self.envs, "cols": self.cols, "rows": self.rows,
                "createdAt": self.created, "active": self.process.exit_code is None, "lazyStart": False}  # fmt: skip


def _terminals(connection: Request | WebSocket) -> dict[str, _Terminal]:
    box = box_of(connection)
    store: dict[str, _Terminal] = connection.app.state.terminals.setdefault(box.id, {})
    return store


async def connect(socket: WebSocket) -> None:
    """GET /process/pty/create-connect."""
    try:
        box, store, query = box_of(socket), _terminals(socket), socket.query_params
        ident = query.get("id") or ""
        if ident in store:
            raise ApiError(409, f"PTY session {ident} already exists", source="DAYTONA_DAEMON")
        envs = _envs(socket.scope.get("subprotocols") or [])
        cols, rows = int(query.get("cols") or 80), int(query.get("rows") or 24)
        cwd = query.get("cwd") or box.machine.workdir
        process = await box.machine.spawn(
            ["python3", "-c", _PROGRAM, str(cols), str(rows)], env={"TERM": "xterm-256color", **envs}, cwd=cwd
        )
    except ApiError as error:
        await socket.send_denial_response(JSONResponse({"message": error.message}, status_code=error.status))
        return
    output = process.stdout
    first = await anext(output, b"")
    tty, _, rest = first.partition(b"\n")
    terminal = store[ident] = _Terminal(ident, cwd, envs, cols, rows, process, tty.decode())
    offered = socket.scope.get("subprotocols") or []
    await socket.accept(subprotocol=offered[0] if offered else None)
    try:
        await _carry(socket, terminal, output, rest)
    finally:
        await process.kill()
        store.pop(ident, None)


def _envs(offered: list[str]) -> dict[str, str]:
    for name in offered:
        if name.startswith(_ENVS):
            text = name.removeprefix(_ENVS)
            decoded: dict[str, str] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            return decoded
    return {}


async def _carry(socket: WebSocket, terminal: _Terminal, output: AsyncIterator[bytes], first: bytes) -> None:
    await socket.send_text(json.dumps({"type": "control", "status": "connected"}))
    if first:
        await socket.send_bytes(first)

    async def inward() -> None:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("bytes") or (message.get("text") or "").encode()
            with contextlib.suppress(BrokenPipeError):  # its end is told below
                await terminal.process.stdin.send(data)

    async def outward() -> None:
        async for data in output:
            await socket.send_bytes(data)

    tasks = [asyncio.ensure_future(inward()), asyncio.ensure_future(outward())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    left = tasks[0].done()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if left:
        return
    code = await terminal.process.wait()
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client has left first
        await socket.send_text(json.dumps({"type": "control", "status": "exited", "exitCode": code}))
        await socket.close(1000, json.dumps({"exitCode": code, "exitReason": ""}))


async def listing(request: Request) -> Response:
    """GET /process/pty."""
    return JSONResponse({"sessions": [each.describe() for each in _terminals(request).values()]})


async def one(request: Request) -> Response:
    """GET and DELETE /process/pty/{id}, POST /process/pty/{id}/resize."""
    terminal = _terminals(request).get(request.path_params["id"])
    if terminal is None:
        raise ApiError(404, "PTY session not found", source="DAYTONA_DAEMON")
    if request.method == "DELETE":
        await terminal.process.kill()
        return JSONResponse({"message": "PTY session deleted"})
    if request.method == "POST":
        asked = await body(request)
        terminal.cols, terminal.rows = int(asked["cols"]), int(asked["rows"])
        sizes = ["cols", str(terminal.cols), "rows", str(terminal.rows)]
        await box_of(request).machine.run(["stty", "-F", terminal.tty, *sizes])
    return JSONResponse(terminal.describe())


routes = [
    WebSocketRoute("/process/pty/create-connect", connect),
    Route("/process/pty", listing),
    Route("/process/pty/{id}/resize", one, methods=["POST"]),
    Route("/process/pty/{id}", one, methods=["GET", "DELETE"]),
]
