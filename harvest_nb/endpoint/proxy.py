"""A proxy on loopback between the CLI and an endpoint elsewhere.

It passes on what the Messages API needs and nothing else: whatever runs in the sandbox can reach it, and what it sends
bears a credential that may be good for much more, such as a gateway's keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from harvest_nb.bounds import bounds
from harvest_nb.endpoint.budget import Budget
from harvest_nb.endpoint.endpoint import Endpoint, Kind
from harvest_nb.endpoint.messages import error_body
from harvest_nb.endpoint.metering import Meter
from harvest_nb.endpoint.outward import reaches_out
from harvest_nb.endpoint.scripted import is_bearer
from harvest_nb.endpoint.server import body_of, no_body, serve
from harvest_nb.endpoint.streaming import CutShort, Piece, Streamed, client_left
from harvest_nb.machine.loopback import is_loopback

__all__ = ["Keep", "Keeper", "PassedOn", "passing_on"]

Keep = Callable[[list[tuple[float, bytes]], str], None]
"""Takes an answer's chunks, each with its time in seconds, and how it ended: `"whole"`, `"cut"` or `"left"`."""
Keeper = Callable[[int, Request, bytes, httpx.Response], Keep]
"""Told of each message request: its number, the request and its body, and the answer as it begins."""

# Credentials and what belongs to one connection; everything else reaches the endpoint as the CLI sent it.
_NOT_SENT = {
    *("host", "authorization", "x-api-key", "cookie", "proxy-authorization", "content-length"),
    *("accept-encoding", "connection", "transfer-encoding", "keep-alive", "te", "upgrade"),
}
_NOT_GIVEN = {
    "content-length",
    "content-encoding",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "set-cookie",
}
_PASSED = {
    "POST": re.compile(rb"/v1/messages(/count_tokens)?"),
    # No escapes: an endpoint may decode them to a path that leads elsewhere.
    "GET": re.compile(rb"/v1/models(/(?!\.+(/|$))[A-Za-z0-9._:@-]+)*"),
}
_STREAM = {"content-type": "text/event-stream"}


class _Left(Exception):  # noqa: N818
    """The client went before an answer came."""


class _Proxy:
    def __init__(
        self,
        endpoint: Endpoint,
        client: httpx.AsyncClient,
        token: str,
        keeper: Keeper,
        budget: Budget | None,
        server_tools: bool,
    ) -> None:
        self.endpoint, self._client, self._token, self._keeper = endpoint, client, token, keeper
        self._budget, self._server_tools = budget, server_tools
        self._kept: Counter[str] = Counter()
        self._numbers = itertools.count()

    async def handle(self, request: Request) -> Response:
        path = request.url.path
        if not is_bearer(request, self.endpoint.secret):
            self.endpoint.note(request.method, path, 401, "not this run's credential")
            return JSONResponse(error_body("authentication_error", "not this run's credential"), 401)
        allowed = _PASSED.get("GET" if request.method == "HEAD" else request.method)
        if allowed is None or not allowed.fullmatch(request.scope["raw_path"]):
            self.endpoint.note(request.method, path, 404, "not passed on")
            return JSONResponse(error_body("not_found_error", "only the Messages API is passed on"), 404)
        try:
            content, body = await body_of(request) if request.method == "POST" else (b"", None)
        except ClientDisconnect:
            self.endpoint.note(request.method, path, None, "the client left in mid-request")
            return Response(status_code=499)
        except ValueError as error:
            return no_body(self.endpoint, path, error)
        if not self._server_tools and path == "/v1/messages" and (outward := reaches_out(body)):
            why = f"{outward} reaches the internet from outside the sandbox, which has no network"
            self.endpoint.note(request.method, path, 400, why)
            why += '; `network="open"` allows it'
            return JSONResponse(error_body("invalid_request_error", why), 400)
        asked = body if path == "/v1/messages" and isinstance(body, dict) else None
        is_message = asked is not None
        if is_message and self._budget is not None and self._budget.is_spent:
            why = f"the session's budget of {self._budget.most} USD is spent (max_budget_usd)"
            self.endpoint.on_problem(f"The endpoint was asked for more: {why}")
            return self._refused(request, why)
        self.endpoint.requests += is_message
        if is_message:
            self.endpoint.latest = None
        number = next(self._numbers)
        # As bytes, here and on the way back: nobody says which alphabet a header is in.
        headers = [item for item in request.headers.raw if item[0].decode("latin-1") not in _NOT_SENT]
        headers += [(b"accept-encoding", b"identity")]
        if self._token:
            headers += [(b"authorization", f"Bearer {self._token}".encode())]
        sent = self._client.build_request(
            request.method,
            request.url.path,
            params=request.url.query.encode(),
            headers=headers,
            content=content,
        )
        try:
            answer = await self._ask(sent, request)
        except _Left:
            self.endpoint.note(request.method, path, None, "the client closed it before an answer came")
            if asked is not None:  # the endpoint may have begun to answer, and asks to be paid for that
                Meter(self._count, str(asked.get("model")), len(content), streamed=True).close()
            if is_message:
                self._keeper(number, request, content, httpx.Response(200, headers=_STREAM))([], "left")
            return Response(status_code=499)
        except httpx.LocalProtocolError:  # whose text shows the header
            perhaps = ", perhaps the endpoint's credential," if self._token else ""
            return self._refused(request, f"a header of the request{perhaps} is not valid")
        except httpx.HTTPError as error:
            # A protocol error's text ends with the line that was wrong, which may hold a credential.
            reason = str(error).partition(": ")[0] if isinstance(error, httpx.ProtocolError) else str(error)
            if "buffer too long" in reason:  # h11's words; asked again, it would send the same
                return self._refused(request, "the headers of the endpoint's answer are too long")
            self.endpoint.note(request.method, path, 502, f"{type(error).__name__}: {reason}")
            where = self.endpoint.url or "the endpoint"
            return JSONResponse(error_body("api_error", f"{where} cannot be reached: {reason}"), 502)
        if answer.is_redirect:  # the CLI would follow it, past this proxy and with its credential
            await answer.aclose()
            return self._refused(
                request,
                f"the endpoint redirects ({answer.status_code}) to {_place(answer.next_request)}, "
                "which is not followed: give the URL that answers itself",
            )
        self.endpoint.note(request.method, path, answer.status_code, "passed on")
        if is_message:
            self.endpoint.latest = answer.status_code
        keep = self._keeper(number, request, content, answer) if is_message else _forget
        headers_given = httpx.Headers(answer.headers.raw, encoding="latin-1").items()
        meter = None
        if asked is not None and answer.is_success:
            streamed = "text/event-stream" in answer.headers.get("content-type", "")
            meter = Meter(self._count, str(asked.get("model")), len(content), streamed=streamed)
        passed = PassedOn(answer, keep, self._too_long, meter, self._kept)
        return Streamed(
            passed.pieces(),
            status=answer.status_code,
            headers={name: value for name, value in headers_given if name not in _NOT_GIVEN},
            at_end=passed.close,
        )

    def _count(self, model: str, counts: Mapping[str, Any], final: bool) -> None:
        self.endpoint.on_usage(model, counts, final)
        if self._budget is not None:
            self._budget.add(model, counts)

    def _too_long(self, why: str) -> None:
        self.endpoint.on_problem(f"An answer of the endpoint was cut: {why}")

    def _refused(self, request: Request, why: str) -> Response:
        """An error that trying again does not mend."""
        self.endpoint.note(request.method, request.url.path, 502, why)
        return JSONResponse(error_body("api_error", why), 502, {"x-should-retry": "false"})

    async def _ask(self, sent: httpx.Request, request: Request) -> httpx.Response:
        asking = asyncio.create_task(self._client.send(sent, stream=True))
        leaving = asyncio.create_task(client_left(request.receive))
        try:
            await asyncio.wait([asking, leaving], return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise _Left
            return asking.result()
        finally:
            leaving.cancel()
            if not asking.done():
                asking.cancel()
            await asyncio.gather(asking, leaving, return_exceptions=True)


def _forget(_chunks: list[tuple[float, bytes]], _ending: str) -> None:
    pass


def _keep_nothing(*_: object) -> Keep:
    return _forget


def _place(request: httpx.Request | None) -> str:
    """Where `request` goes, without what may be a credential."""
    if request is None:
        return "nowhere"
    return f"{request.url.scheme}://{request.url.netloc.decode('ascii')}{request.url.path}"


class PassedOn:
    """An answer on its way to the client; `close` lets it go and has it kept, whatever was sent of it.

    Args:
        too_long: called with the reason when the answer passes a limit and is cut.
        meter: counts what the answer says that it used.
        kept: how many bytes of all answers are kept at the moment, for a recording; it may be twice one answer's limit.
    """

    def __init__(
        self,
        answer: httpx.Response,
        keep: Keep,
        too_long: Callable[[str], None],
        meter: Meter | None = None,
        kept: Counter[str] | None = None,
    ) -> None:
        self._answer, self._keep, self._too_long, self._meter = answer, keep, too_long, meter
        self._kept = Counter() if kept is None else kept
        self._size = 0
        self._chunks: list[tuple[float, bytes]] = []
        self._ending = "left"
        self._closed = False

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The answer's body as it comes; closes it at its end."""
        start, most = time.monotonic(), bounds().answer_bytes
        try:
            async for data in self._answer.aiter_bytes():
                self._size += len(data)
                if self._keep is not _forget:
                    self._kept["bytes"] += len(data)
                if self._size > most or self._kept["bytes"] > 2 * most:
                    self._ending = "cut"
                    which = "it is" if self._size > most else "those that are being recorded are together"
                    allowed = most if self._size > most else 2 * most
                    self._too_long(f"{which} longer than {allowed:,} bytes (HARVEST_MAX_ANSWER_BYTES)")
                    raise CutShort
                if self._meter is not None:
                    self._meter.feed(data)
                if self._keep is not _forget:
                    self._chunks.append((round(time.monotonic() - start, 4), data))
                yield Piece(data)
            self._ending = "whole"
        except httpx.HTTPError as error:
            self._ending = "cut"
            raise CutShort from error
        finally:
            await self.close()

    async def close(self) -> None:
        """Close it, once."""
        if self._closed:
            return
        self._closed = True
        if self._meter is not None:
            self._meter.close()
        try:
            self._keep(self._chunks, self._ending)
        finally:
            if self._keep is not _forget:
                self._kept["bytes"] -= self._size
            with contextlib.suppress(httpx.HTTPError, OSError):  # its connection is dropped all the same
                await asyncio.shield(self._answer.aclose())


@contextlib.asynccontextmanager
async def passing_on(
    upstream: str,
    token: str,
    kind: Kind,
    *,
    keeper: Keeper = _keep_nothing,
    secret: str | None = None,
    port: int = 0,
    budget_usd: float | None = None,
    server_tools: bool = True,
) -> AsyncIterator[Endpoint]:
    """Pass on what the CLI asks to `upstream` (a base URL), and what that answers back.

    Args:
        token: the bearer token for `upstream`; none is sent when it is empty.
        secret: what the CLI must send (default: made up).
        port: on this machine's loopback; 0 takes a free one.
        budget_usd: once more than that has been spent, nothing is passed on any more.
        server_tools: whether requests may have the endpoint reach other places of the internet.

    Raises:
        EndpointError: the port is taken.
    """
    elsewhere = upstream if kind in ("anthropic", "gateway") else None
    endpoint = Endpoint(0, secret or secrets.token_hex(24), kind=kind, url=elsewhere)
    # A proxy of the environment's does not lead to this machine.
    outside = not is_loopback(httpx.URL(upstream).host)
    timeout = httpx.Timeout(None, connect=30)
    async with httpx.AsyncClient(base_url=upstream, timeout=timeout, trust_env=outside) as client:
        client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=()))  # keep none
        budget = None if budget_usd is None else Budget(budget_usd)
        proxy = _Proxy(endpoint, client, token, keeper, budget, server_tools)
        methods = ["GET", "HEAD", "POST", "PUT", "DELETE"]
        app = Starlette(routes=[Route("/{path:path}", proxy.handle, methods=methods)])
        async with serve(app, port=port) as bound:
            endpoint.port = bound
            yield endpoint
