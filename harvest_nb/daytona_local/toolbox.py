"""The toolbox: what the SDK asks of the daemon in a sandbox, except files and terminals."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from harvest_nb.daytona_local.boxes import Box, Boxes
from harvest_nb.daytona_local.replies import STAND_IN, ApiError, body
from harvest_nb.daytona_local.sessions import Command, Sessions
from harvest_nb.errors import HarvestError

__all__ = ["box_of", "routes"]

_INTERPRETERS = {"python": ["python3", "-c"], "javascript": ["node", "-e"]}
_EXEC_SECONDS = 360.0
_AFTER_EXIT = 1.0  # seconds that a log socket stays open after the command's end


def box_of(connection: HTTPConnection) -> Box:
    """The running sandbox that a call is for. Raises ApiError."""
    boxes: Boxes = connection.app.state.boxes
    box = boxes.get(connection.path_params["box"])
    if box.state != "started":
        raise ApiError(400, f"Sandbox is not running ({box.state})", source="DAYTONA_PROXY")
    box.touch()
    return box


def _sessions(connection: HTTPConnection) -> Sessions:
    return box_of(connection).sessions


def _command(connection: HTTPConnection) -> Command:
    return _sessions(connection).command(connection.path_params["sid"], connection.path_params["cid"])


async def execute(request: Request) -> Response:
    """POST /process/execute."""
    box, asked = box_of(request), await body(request)
    if not asked.get("command"):
        raise ApiError(400, "empty command", source="DAYTONA_DAEMON")
    done = await _run(box, ["sh", "-c", 'exec 2>&1; eval "$1"', "sh", asked["command"]], asked)
    return JSONResponse({"exitCode": done[0], "result": done[1]})


async def code_run(request: Request) -> Response:
    """POST /process/code-run."""
    box, asked = box_of(request), await body(request)
    interpreter = _INTERPRETERS.get(asked.get("language") or "python")
    if interpreter is None:
        raise ApiError(400, f"unsupported language {asked.get('language')}", source="DAYTONA_DAEMON")
    argv = [*interpreter, asked.get("code") or "", *(asked.get("argv") or [])]
    code, result = await _run(box, ["sh", "-c", 'exec 2>&1; exec "$@"', "sh", *argv], asked)
    return JSONResponse({"exitCode": code, "result": result, "artifacts": {"charts": []}})


async def _run(box: Box, argv: list[str], asked: dict[str, Any]) -> tuple[int, str]:
    try:
        done = await box.machine.run(
            argv, env=asked.get("envs"), cwd=asked.get("cwd"), timeout=asked.get("timeout") or _EXEC_SECONDS
        )
    except TimeoutError:
        raise ApiError(
            408, "command execution timeout", code="PROCESS_EXECUTION_TIMEOUT", source="DAYTONA_DAEMON"
        ) from None
    return done.exit_code, done.text


async def sessions(request: Request) -> Response:
    """GET and POST /process/session."""
    store = _sessions(request)
    if request.method == "POST":
        await store.create(str((await body(request)).get("sessionId") or ""))
        return Response(status_code=201)
    return JSONResponse([await store.describe(session) for session in store.all.values()])


async def session(request: Request) -> Response:
    """GET and DELETE /process/session/{sid}."""
    store = _sessions(request)
    found = store.get(request.path_params["sid"])
    if request.method == "DELETE":
        await store.delete(found)
        return Response(status_code=204)
    return JSONResponse(await store.describe(found))


async def session_exec(request: Request) -> Response:
    """POST /process/session/{sid}/exec."""
    store = _sessions(request)
    if (seconds := request.app.state.boxes.faults.take("exec-limited")) is not None:
        raise ApiError(429, "Too many requests", headers={"Retry-After": f"{seconds:g}"})
    command, done = await store.execute(store.get(request.path_params["sid"]), await body(request))
    return JSONResponse({"cmdId": command.id, **(done or {})}, status_code=202 if done is None else 200)


async def command(request: Request) -> Response:
    """GET /process/session/{sid}/command/{cid}."""
    return JSONResponse(await _sessions(request).describe_command(_command(request)))


async def command_input(request: Request) -> Response:
    """POST …/command/{cid}/input."""
    store = _sessions(request)
    if request.app.state.boxes.faults.take("input-hung") is not None:
        while not await request.is_disconnected():  # noqa: ASYNC110 - there is nothing to wait for
            await asyncio.sleep(0.1)
        return Response(status_code=204)
    await store.send(_command(request), str((await body(request)).get("data") or ""))
    if request.app.state.boxes.faults.take("input-lost") is not None:
        raise ApiError(502, "upstream connection lost", source="DAYTONA_PROXY")
    return Response(status_code=204)


async def command_logs(request: Request) -> Response:
    """GET …/command/{cid}/logs."""
    return JSONResponse(await _sessions(request).logs(_command(request)))


async def entrypoint(request: Request) -> Response:
    """GET /process/session/entrypoint and its logs."""
    store = _sessions(request)
    found = store.entrypoint
    if found is None:
        raise ApiError(404, "no entrypoint session", source="DAYTONA_DAEMON")
    if request.url.path.endswith("/logs"):
        return JSONResponse(await store.logs(next(iter(found.commands.values()))))
    return JSONResponse(await store.describe(found))


async def follow(socket: WebSocket) -> None:
    """GET …/command/{cid}/logs?follow=true as a web socket: from the first byte, to a second after the end."""
    store, faults = _sessions(socket), socket.app.state.boxes.faults
    if socket.path_params.get("cid"):
        wanted = _command(socket)
    else:
        if store.entrypoint is None:
            raise ApiError(404, "no entrypoint session", source="DAYTONA_DAEMON")
        wanted = next(iter(store.entrypoint.commands.values()))
    await socket.accept()
    if faults.take("log-refused") is not None:
        return await _hang_up(socket)
    cut, silent = faults.take("log-cut"), faults.take("log-silent") is not None
    tail = await store.follow(wanted)

    async def outward() -> None:
        async for data in tail.stdout:
            if not silent:
                await socket.send_bytes(data)

    async def until_end() -> None:
        while not wanted.gone and await store.exit_code(wanted) is None:  # noqa: ASYNC110 - a file in the sandbox
            await asyncio.sleep(0.1)
        await asyncio.sleep(_AFTER_EXIT)

    async def until_left() -> None:
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass

    tasks = [asyncio.ensure_future(work()) for work in (outward, until_end, until_left)]
    try:
        done, _ = await asyncio.wait(
            tasks, timeout=None if cut is None else cut / 1000, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            return await _hang_up(socket)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client has left first
            await socket.close(1000)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(HarvestError):  # the sandbox has gone, and the process with it
            await tail.kill()
    return None


async def _hang_up(socket: WebSocket) -> None:
    """End too early, by turns as if all were said, and without any closing frame."""
    app = socket.app
    app.state.cuts = getattr(app.state, "cuts", 0) + 1
    if app.state.cuts % 2:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # the client has left first
            await socket.close(1000)


async def places(request: Request) -> Response:
    """GET /work-dir, /user-home-dir, /version."""
    box = box_of(request)
    if request.url.path.endswith("/version"):
        return JSONResponse({"version": STAND_IN})
    if request.url.path.endswith("/work-dir"):
        return JSONResponse({"dir": box.machine.workdir})
    return JSONResponse({"dir": (await box.machine.run(["sh", "-c", 'printf %s "$HOME"'])).text})


async def follow_or_logs(socket: WebSocket) -> None:
    """The socket at the same place as the plain logs."""
    try:
        await follow(socket)
    except ApiError as error:
        # Before it is accepted, a socket is refused by an HTTP answer.
        await socket.send_denial_response(JSONResponse({"message": error.message}, status_code=error.status))


_COMMAND = "/process/session/{sid}/command/{cid}"
routes = [
    Route("/process/execute", execute, methods=["POST"]),
    Route("/process/code-run", code_run, methods=["POST"]),
    Route("/process/session", sessions, methods=["GET", "POST"]),
    Route("/process/session/entrypoint", entrypoint),
    Route("/process/session/entrypoint/logs", entrypoint),
    WebSocketRoute("/process/session/entrypoint/logs", follow_or_logs),
    Route("/process/session/{sid}", session, methods=["GET", "DELETE"]),
    Route("/process/session/{sid}/exec", session_exec, methods=["POST"]),
    Route(_COMMAND, command),
    Route(f"{_COMMAND}/input", command_input, methods=["POST"]),
    Route(f"{_COMMAND}/logs", command_logs),
    WebSocketRoute(f"{_COMMAND}/logs", follow_or_logs),
    *(Route(path, places) for path in ("/work-dir", "/user-home-dir", "/version")),
]
