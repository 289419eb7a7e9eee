"""A log comes whole or not at all, and takes no more memory than it may."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from daytona import DaytonaError, DaytonaNotFoundError

from harvest_nb.sandbox.daytona.logs import LogTooLarge, fetch_log
from harvest_nb.sandbox.daytona.retry import Kind, kind_of


async def answer(request: web.Request) -> web.StreamResponse:
    what = request.match_info["what"]
    if what == "whole":
        return web.json_response({"output": "ab", "stdout": "a", "stderr": None})
    if what == "gone":
        return web.json_response({"message": "command not found"}, status=404)
    if what == "text":
        return web.Response(text="no JSON")
    response = web.StreamResponse()
    if what == "cut":
        response.content_length = 100
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        await response.write(b"{")
        while what == "endless":
            await response.write(b"x" * 65536)
    if what == "cut":
        assert request.transport is not None
        request.transport.abort()
    return response


@pytest.fixture
async def ask() -> AsyncIterator[Any]:
    app = web.Application()
    app.router.add_get("/{what}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession() as session:

        async def get(what: str, _request_timeout: float) -> aiohttp.ClientResponse:
            return await session.get(f"http://{host}:{port}/{what}")

        yield partial(fetch_log, get, timeout=10)
    await runner.cleanup()


async def test_a_log_is_fetched_in_its_parts(ask: Any) -> None:
    assert await ask("whole", most=1000) == {"output": "ab", "stdout": "a", "stderr": ""}


@pytest.mark.parametrize("what", ["endless", "whole"])
async def test_one_that_is_too_large_is_left(ask: Any, what: str) -> None:
    with pytest.raises(LogTooLarge):
        await ask(what, most=10)


async def test_what_is_refused_cut_or_garbled_is_the_sdks_error(ask: Any) -> None:
    with pytest.raises(DaytonaNotFoundError, match="command not found"):
        await ask("gone", most=1000)
    with pytest.raises(DaytonaError) as cut:
        await ask("cut", most=1000)
    assert kind_of(cut.value) is Kind.TRANSIENT
    with pytest.raises(DaytonaError, match="JSON"):
        await ask("text", most=1000)
