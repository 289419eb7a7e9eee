"""Files in a sandbox, as the toolbox gives and takes them."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from harvest_nb.daytona_local.boxes import Box
from harvest_nb.daytona_local.replies import ApiError, body
from harvest_nb.daytona_local.toolbox import box_of
from harvest_nb.errors import HarvestError

__all__ = ["routes"]

_PROGRAM = (Path(__file__).parent / "in_sandbox" / "files.py").read_text(encoding="utf-8")
_CODES = {
    "FileNotFoundError": (404, "FILE_NOT_FOUND"),
    "PermissionError": (403, "FILE_ACCESS_DENIED"),
    "IsADirectoryError": (400, "INVALID_FILE_PATH"),
    "NotADirectoryError": (400, "INVALID_FILE_PATH"),
}


def _error(name: str, message: str) -> ApiError:
    status, code = _CODES.get(name, (400, None))
    return ApiError(status, message, code=code, source="DAYTONA_DAEMON")


async def _ask(box: Box, what: str, **asked: Any) -> Any:
    """Do something with files in the sandbox. Raises ApiError."""
    done = await box.machine.run(
        ["python3", "-c", _PROGRAM], stdin=json.dumps({"what": what, **asked}).encode()
    )
    answer = json.loads(done.stdout or b'{"error": "OSError", "message": "the daemon has failed"}')
    if "error" in answer:
        raise _error(answer["error"], answer["message"])
    return answer["result"]


async def upload(request: Request) -> Response:
    """POST /files/bulk-upload: `files[i].path` and `files[i].file`."""
    box = box_of(request)
    if request.app.state.boxes.faults.take("upload-failed") is not None:
        raise ApiError(502, "upstream unavailable", source="DAYTONA_PROXY")
    async with request.form(max_files=10_000, max_fields=10_000) as form:
        for key, value in form.multi_items():
            if not isinstance(value, UploadFile):
                continue
            path = form.get(key.removesuffix(".file") + ".path") or value.filename
            await _write(box, str(path), await value.read())
    return Response(status_code=200)


async def _write(box: Box, path: str, data: bytes) -> None:
    full = path if path.startswith("/") else f"{box.machine.workdir}/{path}"
    try:
        await box.machine.live.write(full, data)
    except OSError as error:
        raise _error(type(error).__name__, f"{path}: {error.strerror}") from error
    except HarvestError as error:
        raise ApiError(500, error.message, source="DAYTONA_DAEMON") from error


async def download(request: Request) -> Response:
    """POST /files/bulk-download: a part for each path, the file or an error."""
    box = box_of(request)
    paths, boundary = (await body(request)).get("paths") or [], uuid.uuid4().hex

    async def parts() -> AsyncIterator[bytes]:
        # One file at a time, and none any more once the client has gone.
        for path in paths:
            name, kind, data = await _part(box, str(path))
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{path}"\r\n'
            yield f"{head}Content-Type: {kind}\r\n\r\n".encode() + data + b"\r\n"
        yield f"--{boundary}--\r\n".encode()

    return StreamingResponse(parts(), media_type=f"multipart/form-data; boundary={boundary}")


async def _part(box: Box, path: str) -> tuple[str, str, bytes]:
    """Read a file for a download: its part's name, type and bytes. What cannot be read is a part of its own kind."""
    full = path if path.startswith("/") else f"{box.machine.workdir}/{path}"
    try:
        return "file", "application/octet-stream", await box.machine.live.read(full)
    except (OSError, HarvestError, ApiError) as error:
        status, code = _CODES.get(type(error).__name__, (400, "FILE_READ_FAILED"))
        why = error.strerror if isinstance(error, OSError) else error.message
        said = {"message": f"{path}: {why}", "statusCode": status, "code": code, "source": "DAYTONA_DAEMON"}
        return "error", "application/json", json.dumps(said).encode()


async def entries(request: Request) -> Response:
    """GET /files (a folder's entries), DELETE /files."""
    box, query = box_of(request), request.query_params
    if request.method == "DELETE":
        await _ask(box, "delete", path=query.get("path"), recursive=query.get("recursive") == "true")
        return Response(status_code=204)
    return JSONResponse(await _ask(box, "list", path=query.get("path") or "."))


async def info(request: Request) -> Response:
    """GET /files/info."""
    return JSONResponse(await _ask(box_of(request), "info", path=request.query_params.get("path")))


async def folder(request: Request) -> Response:
    """POST /files/folder."""
    query = request.query_params
    await _ask(box_of(request), "folder", path=query.get("path"), mode=query.get("mode") or "755")
    return Response(status_code=201)


async def move(request: Request) -> Response:
    """POST /files/move."""
    query = request.query_params
    await _ask(box_of(request), "move", path=query.get("source"), to=query.get("destination"))
    return Response(status_code=200)


async def permissions(request: Request) -> Response:
    """POST /files/permissions."""
    query = request.query_params
    await _ask(box_of(request), "permissions", path=query.get("path"), mode=query.get("mode"))
    return Response(status_code=200)


async def find(request: Request) -> Response:
    """GET /files/find: lines that hold a text."""
    query = request.query_params
    return JSONResponse(
        await _ask(box_of(request), "find", path=query.get("path"), pattern=query.get("pattern"))
    )


async def search(request: Request) -> Response:
    """GET /files/search: names that fit a pattern."""
    query = request.query_params
    found = await _ask(box_of(request), "search", path=query.get("path"), pattern=query.get("pattern"))
    return JSONResponse({"files": found})


async def replace(request: Request) -> Response:
    """POST /files/replace."""
    asked = await body(request)
    wanted = {key: asked.get(key) for key in ("files", "pattern")}
    return JSONResponse(await _ask(box_of(request), "replace", new=asked.get("newValue"), **wanted))


routes = [
    Route("/files/bulk-upload", upload, methods=["POST"]),
    Route("/files/bulk-download", download, methods=["POST"]),
    Route("/files", entries, methods=["GET", "DELETE"]),
    Route("/files/info", info),
    Route("/files/folder", folder, methods=["POST"]),
    Route("/files/move", move, methods=["POST"]),
    Route("/files/permissions", permissions, methods=["POST"]),
    Route("/files/find", find),
    Route("/files/search", search),
    Route("/files/replace", replace, methods=["POST"]),
]
