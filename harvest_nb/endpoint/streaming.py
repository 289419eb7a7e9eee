"""A response that is sent piece by piece, at a pace, and that may end as no response should."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["CutShort", "Ending", "Piece", "Streamed", "client_left", "error_event", "sse"]

Ending = Literal["whole", "cut", "hang"]
SSE_HEADERS: Mapping[str, str] = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
}


class CutShort(Exception):  # noqa: N818 - says what happens
    """Raised by an iterator of pieces to have the connection closed in mid-body."""


@dataclass(frozen=True)
class Piece:
    """Some bytes of a body, sent `delay` seconds after the piece before it."""

    data: bytes
    delay: float = 0.0


def sse(items: Iterable[Mapping[str, str]], pace: float = 0.0) -> list[Piece]:
    """Server-sent events (`{"event", "data"}`) as pieces; `pace` seconds lie between two deltas."""
    return [
        Piece(
            f"event: {item['event']}\ndata: {item['data']}\n\n".encode(),
            pace if item["event"] == "content_block_delta" else 0.0,
        )
        for item in items
    ]


class Streamed(Response):
    """Sends `pieces`, then ends `"whole"`, is `"cut"` (the connection closes in mid-body) or `"hang"`s.

    Args:
        pieces: the body; an asynchronous generator is read as it is sent.
        on_close: called with True when everything was sent, False when the client went first.
        at_end: awaited last, also when nothing was sent: a generator that never began cannot clean up.
    """

    def __init__(
        self,
        pieces: Sequence[Piece] | AsyncGenerator[Piece, None],
        *,
        ending: Ending = "whole",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        start_delay: float = 0.0,
        on_close: Callable[[bool], None] = lambda _: None,
        at_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(None, status, dict(SSE_HEADERS if headers is None else headers))
        if "content-length" in self.headers:
            del self.headers["content-length"]
        self._pieces, self._ending = pieces, ending
        self._start_delay, self._on_close, self._at_end = start_delay, on_close, at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; stop at once when the client closes the connection."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(client_left(receive))
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
            done = sending.done()
            self._on_close(done)
            if done:
                await sending
        finally:
            for task in (sending, leaving):
                task.cancel()
            try:
                await asyncio.gather(sending, leaving, return_exceptions=True)
            finally:
                if self._at_end is not None:
                    await self._at_end()

    async def _send(self, send: Send) -> None:
        await asyncio.sleep(self._start_delay)
        if self._ending == "hang" and isinstance(self._pieces, Sequence) and not self._pieces:
            await asyncio.Event().wait()  # not even headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if isinstance(self._pieces, Sequence):
            for piece in self._pieces:
                await asyncio.sleep(piece.delay)
                await send({"type": "http.response.body", "body": piece.data, "more_body": True})
        else:
            try:
                # Closed here, so that what the generator does at its end is done when the response is.
                async with contextlib.aclosing(self._pieces) as pieces:
                    async for piece in pieces:
                        await send({"type": "http.response.body", "body": piece.data, "more_body": True})
            except CutShort:
                return
        if self._ending == "hang":
            await asyncio.Event().wait()
        if self._ending == "whole":
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def client_left(receive: Receive) -> None:
    """Wait until the client closes its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def error_event(kind: str, message: str) -> dict[str, str]:
    """An error in mid-stream, as the API sends one."""
    data: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
    return {"event": "error", "data": json.dumps(data)}
