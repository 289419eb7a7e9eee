"""Errors and small answers in the shape that the real API gives them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response

__all__ = ["STAND_IN", "ApiError", "body", "error_response", "now"]

STAND_IN = "harvest-nb daytona-local"
"""How this server names itself: it is a stand-in, not Daytona."""
_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    408: "REQUEST_TIMEOUT",
    409: "CONFLICT",
    410: "GONE",
    429: "TOO_MANY_REQUESTS",
    500: "INTERNAL_SERVER_ERROR",
    501: "NOT_IMPLEMENTED",
    502: "BAD_GATEWAY",
}


class ApiError(Exception):
    """An answer that is an error. `source` is who says it: the API, the daemon in a sandbox, or the proxy."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        source: str = "DAYTONA_API",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.source = status, message, source
        self.code = code or _CODES.get(status, "ERROR")
        self.headers = headers or {}


def error_response(connection: HTTPConnection, error: ApiError) -> Response:
    """The error in the API's envelope."""
    return JSONResponse(
        {
            "statusCode": error.status,
            "message": error.message,
            "code": error.code,
            "source": error.source,
            "timestamp": now(),
            "path": connection.url.path,
            "method": connection.scope.get("method", "GET"),
        },
        status_code=error.status,
        headers=error.headers,
    )


async def body(request: Request) -> dict[str, Any]:
    """The request's JSON object. Raises ApiError 400."""
    try:
        data = json.loads(await request.body() or b"{}")
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ApiError(400, "the body is not an object")
    return data


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
