"""A web application on this machine's loopback, served by the running event loop for as long as it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from harvest_nb.bounds import bounds, json_within
from harvest_nb.endpoint.endpoint import Endpoint
from harvest_nb.endpoint.messages import error_body
from harvest_nb.errors import EndpointError
from harvest_nb.sandbox.uncancelled import to_the_end

__all__ = ["body_of", "no_body", "serve"]

_log = logging.getLogger(__name__)


class BodyTooLargeError(ValueError):
    """A request's body passes a limit; `status` is the HTTP status that says so."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Bounded:
    """Limits an application's requests to `HARVEST_MAX_REQUEST_BYTES` each, and to twice that at one time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._most = app, bounds().request_bytes
        self._held = 0
        self._failed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, most = 0, self._most
        declared = dict(scope.get("headers") or ()).get(b"content-length", b"")
        if declared.isdigit() and int(declared) > most:
            said = error_body("request_too_large", f"more than {most:,} bytes (HARVEST_MAX_REQUEST_BYTES)")
            await JSONResponse(said, 413)(scope, receive, send)
            return

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            length = len(message.get("body", b""))
            size += length
            self._held += length
            if size > most:
                raise BodyTooLargeError(413, f"more than {most:,} bytes (HARVEST_MAX_REQUEST_BYTES)")
            if self._held > 2 * most:
                raise BodyTooLargeError(
                    503, f"with others more than {2 * most:,} bytes (HARVEST_MAX_REQUEST_BYTES)"
                )
            return message

        try:
            await self._app(scope, bounded, send)
        except Exception:  # noqa: BLE001 - one request's trouble; its client has been told
            # With its traceback the first time only: a sandbox may send the same a thousand times.
            level = logging.DEBUG if self._failed else logging.WARNING
            _log.log(level, "A request to the endpoint could not be answered", exc_info=True)
            self._failed = True
        finally:
            self._held -= size


async def body_of(request: Request) -> tuple[bytes, Any]:
    """Return a request's body, and the same parsed as JSON.

    Raises:
        ValueError: it is no JSON, too long, or holds more than `HARVEST_MAX_JSON_VALUES` values.
        ClientDisconnect: the client left.
    """
    content = await request.body()
    return content, json_within(content, bounds().json_values)


def no_body(endpoint: Endpoint, path: str, error: Exception) -> Response:
    """Return the answer to a request whose body cannot be read, or whose client left before it was whole."""
    status = error.status if isinstance(error, BodyTooLargeError) else 400
    endpoint.note("POST", path, status, f"no request body: {error}")
    kind = {413: "request_too_large", 503: "api_error"}.get(status, "invalid_request_error")
    return JSONResponse(error_body(kind, f"the body cannot be read: {error}"), status)


class _Server(uvicorn.Server):
    """Ends as soon as it is asked to and nothing is open; uvicorn's own looks at that ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.asked_to_end = asyncio.Event()

    async def main_loop(self) -> None:
        await self.asked_to_end.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for _ in range(3):  # a connection without a request is closed in the loop's next rounds
            await asyncio.sleep(0)
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
        else:
            for server in self.servers:
                await server.wait_closed()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave Ctrl-C to the program that this server is a guest of."""
        yield


@contextlib.asynccontextmanager
async def serve(app: ASGIApp, *, port: int = 0) -> AsyncIterator[int]:
    """Serve `app` on 127.0.0.1 and give the port; `port=0` takes a free one.

    Raises:
        EndpointError: the port is taken or not allowed.
    """
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        what = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise EndpointError(
            f"Port {port} of 127.0.0.1 {what}", hint="leave the port out to take a free one", port=port
        ) from error
    server = _Server(
        uvicorn.Config(
            _Bounded(app),
            # It complains of each request that is none or was cut, as often as a sandbox likes; an application's own
            # exceptions are logged above.
            log_config=None,
            log_level="critical",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            date_header=False,  # the main loop keeps it up to date
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if serving.done():
                await serving
                raise EndpointError("The loopback server ended before it had started")
            await asyncio.sleep(0.005)
        yield listener.getsockname()[1]
    finally:
        server.asked_to_end.set()
        try:
            await to_the_end(lambda: _ended(serving))
        finally:
            listener.close()


async def _ended(serving: asyncio.Task[None]) -> None:
    await asyncio.wait([serving], timeout=5)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
