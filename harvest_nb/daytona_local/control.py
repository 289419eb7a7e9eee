"""The control plane: sandboxes, snapshots, volumes."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from harvest_nb.daytona_local.boxes import Box, Boxes
from harvest_nb.daytona_local.replies import STAND_IN, ApiError, body
from harvest_nb.daytona_local.snapshots import snapshot_dto

__all__ = ["routes"]

_PAGE = 100


def _boxes(request: Request) -> Boxes:
    boxes: Boxes = request.app.state.boxes
    return boxes


def _box(request: Request) -> Box:
    return _boxes(request).get(request.path_params["id"])


def _answer(request: Request, box: Box, status: int = 200) -> Response:
    described = _boxes(request).dto(box)
    if _boxes(request).faults.take("toolbox-unnamed") is not None:
        described["toolboxProxyUrl"] = ""
    return JSONResponse(described, status_code=status)


class Lost(Response):
    """An answer that never arrives: the connection ends in the middle of it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Begin an answer, and stop."""
        headers = [(b"content-type", b"application/json"), (b"content-length", b"100000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


async def create(request: Request) -> Response:
    """POST /sandbox."""
    boxes = _boxes(request)
    box = await boxes.create(await body(request))
    if boxes.faults.take("create-response-lost") is not None:
        return Lost()
    return _answer(request, box)


async def listing(request: Request) -> Response:
    """GET /sandbox, a page at a time."""
    boxes = _boxes(request)
    query = request.query_params
    try:
        labels = json.loads(query.get("labels") or "{}")
        limit = min(int(query.get("limit") or _PAGE), 200)
        start = int(query.get("cursor") or 0)
    except ValueError as error:
        raise ApiError(400, f"malformed query: {error}") from error
    states = set(query.getlist("states"))
    found = [
        box
        for box in boxes.all.values()
        if box.state != "destroyed"
        and all(box.labels.get(key) == value for key, value in labels.items())
        and (not states or box.state in states)
        and query.get("name") in (None, box.name)
    ]
    page = found[start : start + limit]
    more = str(start + limit) if start + limit < len(found) else None
    return JSONResponse({"items": [boxes.dto(box, listed=True) for box in page], "nextCursor": more})


async def get(request: Request) -> Response:
    """GET /sandbox/{id}."""
    return _answer(request, _box(request))


async def delete(request: Request) -> Response:
    """DELETE /sandbox/{id}."""
    box = _box(request)
    if _boxes(request).faults.take("delete-forbidden") is not None:
        raise ApiError(403, "Access denied: missing permission delete:sandboxes")
    await _boxes(request).delete(box)
    return _answer(request, box)


async def start(request: Request) -> Response:
    """POST /sandbox/{id}/start."""
    box = _box(request)
    await _boxes(request).start(box)
    return _answer(request, box)


async def stop(request: Request) -> Response:
    """POST /sandbox/{id}/stop."""
    box = _box(request)
    await _boxes(request).stop(box)
    return _answer(request, box)


async def labels(request: Request) -> Response:
    """PUT /sandbox/{id}/labels."""
    box = _box(request)
    box.labels = dict((await body(request)).get("labels") or {})
    return JSONResponse({"labels": box.labels})


async def interval(request: Request) -> Response:
    """POST /sandbox/{id}/autostop/{n} and the like."""
    box, number = _box(request), int(request.path_params["number"])
    what = request.path_params["what"]
    if what == "ttl":
        _lose_heartbeat(request)
        _boxes(request).set_ttl(box, number)
    else:
        names = {"autostop": "Stop", "autoarchive": "Archive", "autodelete": "Delete", "autopause": "Pause"}
        if what not in names:
            raise ApiError(404, f"Cannot POST {request.url.path}")
        box.intervals[f"auto{names[what]}Interval"] = number
    return _answer(request, box)


async def activity(request: Request) -> Response:
    """POST /sandbox/{id}/last-activity."""
    box = _box(request)
    _lose_heartbeat(request)
    box.touch()
    return Response(status_code=201)


def _lose_heartbeat(request: Request) -> None:
    if _boxes(request).faults.take("heartbeat-lost") is not None:
        raise ApiError(502, "upstream unavailable", source="DAYTONA_PROXY")


async def toolbox_url(request: Request) -> Response:
    """GET /sandbox/{id}/toolbox-proxy-url."""
    _box(request)
    return JSONResponse({"url": _boxes(request).toolbox_url})


async def preview(request: Request) -> Response:
    """GET /sandbox/{id}/ports/{port}/preview-url: an address that nothing answers here."""
    box = _box(request)
    url = f"http://{request.path_params['port']}-{box.id}.localhost"
    return JSONResponse({"sandboxId": box.id, "url": url, "token": uuid.uuid4().hex})


async def build_logs_url(request: Request) -> Response:
    """GET /sandbox/{id}/build-logs-url."""
    box = _box(request)
    return JSONResponse(
        {"url": str(request.url).replace(request.url.path, f"/api/sandbox/{box.id}/build-logs")}
    )


async def build_logs(request: Request) -> Response:
    """GET /sandbox/{id}/build-logs?follow=true."""
    box = _box(request)

    async def chunks() -> Any:
        sent = 0
        while True:
            text, over = box.logs[sent:], box.state not in ("pending_build", "building_snapshot")
            sent += len(text)
            if text:
                yield text
            if over:
                return
            await asyncio.sleep(0.1)

    return StreamingResponse(chunks(), media_type="text/plain")


async def snapshots(request: Request) -> Response:
    """GET and POST /snapshots."""
    store = _boxes(request).snapshots
    if request.method == "POST":
        return JSONResponse(snapshot_dto(await store.create(await body(request))))
    page, limit = (
        int(request.query_params.get(name) or default) for name, default in (("page", 1), ("limit", _PAGE))
    )
    found = list(store.all.values())
    return JSONResponse(
        {
            "items": [snapshot_dto(each) for each in found[(page - 1) * limit : page * limit]],
            "total": len(found),
            "page": page,
            "totalPages": max(1, -(-len(found) // limit)),
        }
    )


def _snapshot(request: Request) -> dict[str, Any]:
    found = _boxes(request).snapshots.find(request.path_params["id"])
    if found is None:
        raise ApiError(404, f"Snapshot with name {request.path_params['id']} not found")
    return found


async def snapshot(request: Request) -> Response:
    """GET and DELETE /snapshots/{id}, POST /snapshots/{id}/activate."""
    found = _snapshot(request)
    if request.method == "DELETE":
        del _boxes(request).snapshots.all[found["id"]]
    return JSONResponse(snapshot_dto(found))


async def snapshot_logs_url(request: Request) -> Response:
    """GET /snapshots/{id}/build-logs-url."""
    found = _snapshot(request)
    return JSONResponse(
        {"url": f"{request.url.scheme}://{request.url.netloc}/api/snapshots/{found['id']}/build-logs"}
    )


async def snapshot_logs(request: Request) -> Response:
    """GET /snapshots/{id}/build-logs."""
    return PlainTextResponse(_snapshot(request)["logs"])


async def volumes(request: Request) -> Response:
    """GET and POST /volumes."""
    store = _boxes(request).volumes
    if request.method == "GET":
        return JSONResponse([store.dto(each) for each in store.all.values()])
    return JSONResponse(await store.create((await body(request)).get("name")))


async def volume(request: Request) -> Response:
    """GET and DELETE /volumes/{id}, GET /volumes/by-name/{name}."""
    store = _boxes(request).volumes
    found = store.get(request.path_params["id"])
    if request.method == "DELETE":
        await store.delete(found)
    return JSONResponse(store.dto(found))


async def config(_: Request) -> Response:
    """GET /config: what this is."""
    return JSONResponse({"version": STAND_IN, "environment": "local stand-in", "analyticsApiUrl": None})


async def faults(request: Request) -> Response:
    """GET, POST, DELETE /faults: this server's own, not the API's."""
    store = _boxes(request).faults
    if request.method == "POST":
        store.parse(str((await body(request)).get("fault") or ""))
    elif request.method == "DELETE":
        store.clear()
    return JSONResponse({"standIn": STAND_IN})


routes = [
    Route("/faults", faults, methods=["GET", "POST", "DELETE"]),
    Route("/config", config),
    Route("/sandbox", create, methods=["POST"]),
    Route("/sandbox", listing, methods=["GET"]),
    Route("/sandbox/{id}", get, methods=["GET"]),
    Route("/sandbox/{id}", delete, methods=["DELETE"]),
    Route("/sandbox/{id}/start", start, methods=["POST"]),
    Route("/sandbox/{id}/stop", stop, methods=["POST"]),
    Route("/sandbox/{id}/labels", labels, methods=["PUT"]),
    Route("/sandbox/{id}/last-activity", activity, methods=["POST"]),
    Route("/sandbox/{id}/toolbox-proxy-url", toolbox_url),
    Route("/sandbox/{id}/build-logs-url", build_logs_url),
    Route("/sandbox/{id}/build-logs", build_logs),
    Route("/sandbox/{id}/ports/{port:int}/preview-url", preview),
    Route("/sandbox/{id}/{what}/{number:int}", interval, methods=["POST"]),
    Route("/snapshots", snapshots, methods=["GET", "POST"]),
    Route("/snapshots/{id}/build-logs-url", snapshot_logs_url),
    Route("/snapshots/{id}/build-logs", snapshot_logs),
    Route("/snapshots/{id}/activate", snapshot, methods=["POST"]),
    Route("/snapshots/{id:path}", snapshot, methods=["GET", "DELETE"]),
    Route("/volumes", volumes, methods=["GET", "POST"]),
    Route("/volumes/by-name/{id}", volume),
    Route("/volumes/{id}", volume, methods=["GET", "DELETE"]),
]
