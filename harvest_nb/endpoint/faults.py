"""What a faulty endpoint does, as data: each fault is one that the real one, or what lies before it, has shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import JSONResponse, Response

from harvest_nb.endpoint.messages import Reply, error_body, whole
from harvest_nb.endpoint.messages import events as stream_events
from harvest_nb.endpoint.streaming import Ending, Piece, Streamed, error_event, sse

__all__ = ["Fault", "faulty"]

# Anthropic's API reference, "Errors".
_TYPES: Mapping[int, tuple[str, str]] = {
    400: ("invalid_request_error", "scripted: the request is malformed"),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "scripted: this credential may not use the resource"),
    404: ("not_found_error", "scripted: no such model"),
    413: ("request_too_large", "scripted: the request is too large"),
    429: ("rate_limit_error", "scripted: the rate limit is exceeded"),
    500: ("api_error", "Internal server error"),
    529: ("overloaded_error", "Overloaded"),
}
_JSON = {"content-type": "application/json"}


class Fault(BaseModel):
    """One fault of an answer. `times` bounds how often a request meets it before it is answered properly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["status", "hang", "cut", "malformed", "empty", "nothing", "error_event"]
    times: int | None = Field(None, ge=1)
    """How often; without it, always."""
    status: int | None = Field(None, ge=400, le=599)
    """`status`: the HTTP status."""
    retry_after: float | None = Field(None, ge=0)
    """`status`: seconds in the `Retry-After` header."""
    should_retry: bool | None = None
    """`status`: the `x-should-retry` header, which tells the client outright."""
    error: str | None = None
    """`status`, `error_event`: the error's type."""
    message: str | None = None
    """`status`, `error_event`: the error's text."""
    after: int = Field(0, ge=0)
    """`hang`, `cut`, `malformed`, `error_event`: how many events are sent before; a hang after 0 sends no headers."""

    @model_validator(mode="after")
    def _fits(self) -> Fault:
        if (self.kind == "status") != (self.status is not None):
            raise ValueError("`status` goes with `kind: status`, and with no other kind")
        if self.kind != "status" and (self.retry_after is not None or self.should_retry is not None):
            raise ValueError("`retry_after` and `should_retry` go with `kind: status` alone")
        return self

    def __str__(self) -> str:
        return f"{self.kind} {self.status}" if self.kind == "status" else self.kind


def faulty(
    fault: Fault, reply: Reply, *, stream: bool = True, on_close: Callable[[bool], None] = lambda _: None
) -> Response:
    """The response that meets `fault` instead of giving `reply`, as a stream or whole."""
    events = list(stream_events(reply))
    kind, message = _TYPES.get(fault.status or 529, ("api_error", f"scripted: status {fault.status}"))
    kind, message = fault.error or kind, fault.message or message
    before = sse(events[: fault.after])
    match fault.kind:
        case "status":
            headers: dict[str, str] = {"request-id": "req_scripted"}
            if fault.retry_after is not None:
                headers["retry-after"] = f"{fault.retry_after:g}"
            if fault.should_retry is not None:
                headers["x-should-retry"] = str(fault.should_retry).lower()
            body: dict[str, Any] = error_body(kind, message)
            return JSONResponse(body, fault.status or 529, headers)
        case "empty":
            empty = list(stream_events(replace(reply, blocks=(), stop="end_turn")))
            if stream:
                return Streamed(sse(empty))
            return JSONResponse(whole(json.loads(event["data"]) for event in empty))
        case "error_event" if not stream:
            return JSONResponse(error_body(kind, message), 529)
        case _ if not stream and fault.kind != "nothing":
            half = json.dumps(whole(json.loads(event["data"]) for event in events)).encode()[
                : 20 * fault.after
            ]
            ending: Ending = (
                "whole" if fault.kind == "malformed" else "cut" if fault.kind == "cut" else "hang"
            )
            return Streamed([Piece(half)] if half else [], ending=ending, headers=_JSON, on_close=on_close)
        case "hang":
            return Streamed(before, ending="hang", on_close=on_close)
        case "cut":
            return Streamed(before, ending="cut", on_close=on_close)
        case "malformed":
            return Streamed([*before, Piece(b'event: content_block_delta\ndata: {"type": "conte\n\n')])
        case "error_event":
            return Streamed([*before, *sse([error_event(kind, message)])])
        case "nothing":
            return Streamed([])
