"""The application: control plane, toolbox and events behind one key."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import socketio
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from harvest_nb import engine
from harvest_nb.daytona_local import control, files, pty, toolbox
from harvest_nb.daytona_local.boxes import Boxes
from harvest_nb.daytona_local.faults import Faults
from harvest_nb.daytona_local.machine import sweep
from harvest_nb.daytona_local.replies import STAND_IN, ApiError, error_response
from harvest_nb.daytona_local.snapshots import Snapshots

__all__ = ["make_app"]


def make_app(client: engine.DockerClient, key: str, faults: Faults, base: str) -> ASGIApp:
    """The whole server as an ASGI application.

    Args:
        client: the engine that the sandboxes run in.
        key: what every call must bring.
        faults: what goes wrong on purpose.
        base: its own address, `http://127.0.0.1:PORT`.
    """
    server = uuid.uuid4().hex[:12]
    # Pages of another origin are refused at once: only `None` means that, an empty list lets every origin in.
    events = socketio.AsyncServer(
        async_mode="asgi", cors_allowed_origins=None, logger=False, engineio_logger=False
    )

    @events.event  # type: ignore[untyped-decorator]
    async def connect(_sid: str, _environ: Mapping[str, Any], auth: Mapping[str, Any] | None) -> bool:
        return hmac.compare_digest(str((auth or {}).get("token")), key)

    boxes = Boxes(client, faults, Snapshots(client, faults), server, events.emit)
    boxes.toolbox_url = f"{base}/toolbox"

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(sweep, client)
        tending = asyncio.create_task(boxes.tend())
        try:
            yield
        finally:
            tending.cancel()
            await asyncio.gather(tending, return_exceptions=True)
            await boxes.close()
            await asyncio.to_thread(sweep, client, server)

    async def refused(connection: HTTPConnection, error: Exception) -> Any:
        assert isinstance(error, ApiError)
        return error_response(connection, error)

    async def missing(connection: HTTPConnection, error: Exception) -> Any:
        status = getattr(error, "status_code", 404)
        method = connection.scope.get("method", "GET")
        return error_response(connection, ApiError(status, f"Cannot {method} {connection.url.path}"))

    app = Starlette(
        routes=[
            Mount("/api", routes=control.routes),
            Mount("/toolbox/{box}", routes=[*toolbox.routes, *files.routes, *pty.routes]),
        ],
        lifespan=lifespan,
        exception_handlers={ApiError: refused, 404: missing, 405: missing},
    )
    app.state.boxes = boxes
    app.state.terminals = {}
    return socketio.ASGIApp(events, other_asgi_app=_Door(app, key, faults), socketio_path="/api/socket.io")  # type: ignore[no-any-return]


class _Door:
    """Nobody passes without the key; some faults strike here."""

    def __init__(self, app: ASGIApp, key: str, faults: Faults) -> None:
        self._app, self._key, self._faults = app, key, faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        error = self._objection(connection)
        if error is None:
            await self._app(scope, receive, _named(send))
        elif scope["type"] == "http":
            await error_response(connection, error)(scope, receive, send)
        else:
            denial = JSONResponse({"message": error.message}, status_code=error.status)
            await send(
                {
                    "type": "websocket.http.response.start",
                    "status": error.status,
                    "headers": denial.raw_headers,
                }
            )
            await send({"type": "websocket.http.response.body", "body": denial.body})

    def _objection(self, connection: HTTPConnection) -> ApiError | None:
        given = connection.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._key}".encode()):
            return ApiError(401, "Invalid credentials")
        path = connection.url.path
        if path == "/api/faults":
            return None
        if self._faults.take("bad-gateway") is not None:
            return ApiError(502, "upstream unavailable", source="DAYTONA_PROXY")
        if path.startswith("/api/"):
            if (seconds := self._faults.take("rate-limit")) is not None:
                return ApiError(429, "Too many requests", headers={"Retry-After": f"{seconds:g}"})
            if self._faults.take("forbidden") is not None:
                return ApiError(403, "Access denied: missing permission write:sandboxes")
        return None


def _named(send: Send) -> Send:
    """Every answer says what made it."""

    async def named(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"x-stand-in", STAND_IN.encode())]}
        await send(message)

    return named
