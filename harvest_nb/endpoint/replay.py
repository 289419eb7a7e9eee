"""A cassette played back: the recorded model answers, and the CLI runs its tools for real.

A request gets the answer that the same request (`matching`) got when it was recorded; requests that are alike get
theirs in the recorded order, and the last one again after that, as in a fork. One that was never recorded is refused
with a diff, and so is everything after it: the conversation has departed.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harvest_nb.endpoint.cassette import Cassette, Exchange, load_cassette
from harvest_nb.endpoint.conversation import Conversation
from harvest_nb.endpoint.endpoint import Endpoint
from harvest_nb.endpoint.matching import View, diff, similarity, view_of
from harvest_nb.endpoint.messages import error_body, new_id
from harvest_nb.endpoint.places import Places, deep, rewrite
from harvest_nb.endpoint.scripted import is_bearer
from harvest_nb.endpoint.server import body_of, no_body, serve
from harvest_nb.endpoint.streaming import Ending, Piece, Streamed
from harvest_nb.redact import Redactor, without_secrets

__all__ = ["playing"]

_ENDINGS: Mapping[str, Ending] = {"whole": "whole", "cut": "cut", "left": "hang"}


class _Player:
    def __init__(self, cassette: Cassette, places: Places, redactor: Redactor, pace: float) -> None:
        self._cassette, self._places, self._redactor, self._pace = cassette, places, redactor, pace
        model = cassette.models[0] if cassette.models else None
        self.endpoint = Endpoint(0, secrets.token_hex(24), kind="cassette", model=model)
        self._by_digest: defaultdict[str, list[Exchange]] = defaultdict(list)
        for exchange in cassette.exchanges:
            self._by_digest[exchange.view.digest].append(exchange)
        self._given: Counter[int] = Counter()

    async def messages(self, request: Request) -> Response:
        if not is_bearer(request, self.endpoint.secret):
            self.endpoint.note("POST", "/v1/messages", 401, "not this run's credential")
            return JSONResponse(error_body("authentication_error", "not this run's credential"), 401)
        try:
            _, body = await body_of(request)
            c = Conversation(body, dict(request.headers))
        except (ValueError, ClientDisconnect) as error:
            return no_body(self.endpoint, "/v1/messages", error)
        self.endpoint.requests += 1
        places = self._places.with_values(session=c.session, agent=c.agent_id)
        view = view_of(c, lambda text: places.to_marks(without_secrets(text, self._redactor)))
        exchange = None if self.endpoint.failures else self._find(view)
        if exchange is None:
            if not self.endpoint.failures:
                self.endpoint.failures.append(self._departure(view))
            self.endpoint.note("POST", "/v1/messages", 400, "departed from the cassette")
            return JSONResponse(error_body("invalid_request_error", self.endpoint.failures[0]), 400)
        self._given[exchange.number] += 1
        again = " again" if self._given[exchange.number] > 1 else ""
        self.endpoint.note("POST", "/v1/messages", exchange.status, f"exchange {exchange.number}{again}")
        return self._answer(exchange, places)

    def _find(self, view: View) -> Exchange | None:
        alike = self._by_digest.get(view.digest, [])
        fresh = [exchange for exchange in alike if not self._given[exchange.number]]
        timely = [exchange for exchange in fresh if exchange.view.notified == view.notified]
        return next(iter(timely or fresh or alike[-1:]), None)

    def _answer(self, exchange: Exchange, places: Places) -> Response:
        headers = dict(exchange.headers)
        if exchange.events is None:
            body = _fresh(deep(exchange.body, places.from_marks))
            content = body if isinstance(body, str) else json.dumps(body)
            return Streamed(
                [Piece(content.encode("utf-8", "backslashreplace"))],
                status=exchange.status,
                headers=headers,
                ending=_ENDINGS[exchange.ending],
            )
        datas = [_fresh(data) for data in rewrite([data for _, data in exchange.events], places.from_marks)]
        times = [at * self._pace for at, _ in exchange.events]
        delays = [now - before for before, now in zip([0.0, *times], times, strict=False)]
        pieces = [Piece(_event(data), delay) for data, delay in zip(datas, delays, strict=True)]
        return Streamed(pieces, status=exchange.status, headers=headers, ending=_ENDINGS[exchange.ending])

    def _departure(self, view: View) -> str:
        same = [e for e in self._cassette.exchanges if e.view.lines[0] == view.lines[0]]
        name = self._cassette.path.name
        if not same:
            return (
                f"The conversation departed from {name}: nothing was recorded for a request like this "
                f"({view.lines[0]}), which said\n" + diff((), view.lines)
            )
        near = max(
            same, key=lambda e: (*similarity(e.view.lines, view.lines), not self._given[e.number], -e.number)
        )
        return (
            f"The conversation departed from {name}. The nearest of its {len(self._cassette.exchanges)} exchanges "
            f"is number {near.number} (- recorded, + came):\n" + diff(near.view.lines, view.lines)
        )

    async def count_tokens(self, request: Request) -> Response:
        try:
            content, _ = await body_of(request)
        except (ValueError, ClientDisconnect) as error:
            return no_body(self.endpoint, "/v1/messages/count_tokens", error)
        self.endpoint.note("POST", "/v1/messages/count_tokens", 200)
        return JSONResponse({"input_tokens": len(content) // 4})


def _fresh(data: Any) -> Any:
    """`data` with a message id of its own: tables count each response once, by its id."""
    if not isinstance(data, dict):
        return data
    if data.get("type") == "message_start":
        return {**data, "message": _fresh(data["message"])}
    return {**data, "id": new_id("msg")} if data.get("type") == "message" else data


def _event(data: Any) -> bytes:
    if not isinstance(data, dict):  # it was malformed when it was recorded
        return f"event: content_block_delta\ndata: {data}\n\n".encode("utf-8", "backslashreplace")
    # In ASCII: half a surrogate pair has no other form.
    return f"event: {data.get('type', 'message')}\ndata: {json.dumps(data)}\n\n".encode()


@contextlib.asynccontextmanager
async def playing(
    path: Path,
    *,
    places: Places,
    secrets_given: Mapping[str, str],
    port: int = 0,
    pace: float = 0.0,
) -> AsyncIterator[tuple[Endpoint, Mapping[str, str]]]:
    """Play the cassette `path` on loopback; gives the endpoint, and the files that the conversation needs.

    Args:
        secrets_given: by name; what the recording has in their place is matched with them.
        pace: 1 answers as fast as the recorded endpoint did, 0 at once.

    Raises:
        CassetteError: it cannot be read.
        EndpointError: the port is taken.
    """
    cassette = load_cassette(path)
    player = _Player(cassette, places, Redactor(secrets_given), pace)
    app = Starlette(
        routes=[
            Route("/v1/messages", player.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", player.count_tokens, methods=["POST"]),
        ]
    )
    async with serve(app, port=port) as bound:
        player.endpoint.port = bound
        files = {places.from_marks(name): places.from_marks(text) for name, text in cassette.files.items()}
        yield player.endpoint, files
