"""An endpoint elsewhere: a server that shares no code with ours, bare bytes on a socket, sound and faulty."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.endpoint.open import check_spec
from harvest_nb.errors import EndpointError
from harvest_nb.sandbox.base import Provider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.open import Setup
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.run import run_session
from harvest_nb.settings import ENDPOINT_TOKEN

pytestmark = pytest.mark.slow

PLAIN = SessionOptions(mcp=[], env={"CLAUDE_CODE_MAX_RETRIES": "1"})
TOKEN = "-".join(["gateway", "token", "of", "this", "test"])
Answer = Callable[[asyncio.StreamWriter, dict[str, Any]], Awaitable[None]]


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n".encode() for e in events)


def hello(model: str) -> bytes:
    usage = {"input_tokens": 11, "output_tokens": 1}
    message: dict[str, Any] = {
        "id": "msg_foreign", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": usage,
    }  # fmt: skip
    return sse(
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "Hello from afar."},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {**usage, "output_tokens": 7},
        },
        {"type": "message_stop"},
    )


def head(status: str, kind: str = "application/json", *more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", "connection: close", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def sound(writer: asyncio.StreamWriter, asked: dict[str, Any]) -> None:
    writer.write(head("200 OK", "text/event-stream") + hello(asked["model"]))


async def in_drops(writer: asyncio.StreamWriter, asked: dict[str, Any]) -> None:
    """One byte at a time, so that every event and every header is cut everywhere."""
    for byte in head("200 OK", "text/event-stream") + hello(asked["model"]):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)


async def garbage(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
    writer.write(b"\x16\x03\x01\x00\xff this is no HTTP\r\n\r\n")


async def reset(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
    writer.transport.abort()


async def a_web_page(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
    writer.write(head("200 OK", "text/html") + b"<html><h1>Sign in to the Wi-Fi</h1></html>")


async def forbidden(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
    writer.write(head("401 Unauthorized") + b'{"error": "who are you"}')


async def too_short(writer: asyncio.StreamWriter, asked: dict[str, Any]) -> None:
    body = hello(asked["model"])
    writer.write(head("200 OK", "text/event-stream", f"content-length: {len(body)}") + body[: len(body) // 2])


async def elsewhere(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
    """The CLI itself would follow this, to a server that is not the gateway."""
    writer.write(head("307 Temporary Redirect", "text/plain", "location: http://127.0.0.1:9/v1/messages"))


@contextlib.asynccontextmanager
async def foreign(answer: Answer) -> AsyncIterator[tuple[str, list[str]]]:
    """The base URL of a server that answers so, and the authorization of each message request."""
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = re.search(r"(?im)^content-length: (\d+)", text)
            body = await reader.readexactly(int(length[1])) if length else b""
            if text.startswith(("POST /prefix/v1/messages?beta=true ", "POST /prefix/v1/messages ")):
                found = re.search(r"(?im)^authorization: (.*?)\r$", text)
                seen.append(found[1] if found else "")
                await answer(writer, json.loads(body))
            else:
                writer.write(head("404 Not Found") + b"{}")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/prefix", seen
    finally:
        server.close()
        await server.wait_closed()


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "host"])
def provider(request: pytest.FixtureRequest, provider_named: Callable[[str], Provider]) -> Provider:
    return provider_named(request.param)


async def test_a_gateway_answers_and_is_sent_its_own_token_only(provider: Provider, tmp_path: Path) -> None:
    tokens = {ENDPOINT_TOKEN: TOKEN, "CLAUDE_CODE_OAUTH_TOKEN": "never-for-a-gateway"}
    cassette = tmp_path / "x.cassette"
    async with foreign(sound) as (url, seen):
        plan = Setup(
            provider=provider,
            runs_dir=tmp_path / "runs",
            endpoint=url,
            tokens=tokens,
            options=PLAIN,
            record=cassette,
        )
        result = await run_session("hello", plan)
    assert result.check().text == "Hello from afar."
    assert set(seen) == {f"Bearer {TOKEN}"}
    about = (result.folder / "run.json").read_text()
    assert json.loads(about)["endpoint"] == "gateway"
    assert json.loads(about)["network"] == "none"
    for path in (cassette, *(path for path in result.folder.rglob("*") if path.is_file())):
        assert TOKEN.encode() not in path.read_bytes(), path
    played = Setup(provider=provider, runs_dir=tmp_path / "runs", endpoint=cassette, options=PLAIN)
    assert (await run_session("hello", played)).check().text == "Hello from afar."


FAULTS: list[tuple[Answer, str, str]] = [
    (in_drops, "success", "success"),
    (garbage, "error", "cannot be reached"),
    (reset, "error", "cannot be reached"),
    (a_web_page, "error", "empty or malformed response"),
    (forbidden, "error", "HARVEST_ENDPOINT_TOKEN"),
    (elsewhere, "error", "redirects (307) to http://127.0.0.1:9/v1/messages"),
    (too_short, "error", "Connection to the API was lost"),
]


@pytest.mark.parametrize(("answer", "status", "reason"), FAULTS, ids=[case[0].__name__ for case in FAULTS])
async def test_a_faulty_gateway(answer: Answer, status: str, reason: str, tmp_path: Path) -> None:
    async with foreign(answer) as (url, seen):
        result = await run_session(
            "hello",
            Setup(provider=HostProvider(), runs_dir=tmp_path, endpoint=url, options=PLAIN, idle_timeout=20),
        )
    assert seen
    assert set(seen) == {""}  # without a token none is made up
    assert result.status == status, result.reason
    assert reason in str(result.reason)


async def test_a_gateway_that_is_not_there(tmp_path: Path) -> None:
    async with foreign(sound) as (url, _):
        pass
    plan = Setup(provider=HostProvider(), runs_dir=tmp_path, endpoint=url, options=PLAIN)
    result = await run_session("hello", plan)
    assert result.status == "error"
    assert "cannot be reached" in str(result.reason)


def test_what_is_no_endpoint() -> None:
    assert check_spec("https://gateway.example/api") == "gateway"
    with pytest.raises(EndpointError, match="ftp"):
        check_spec("ftp://gateway.example")
    wrongs = ("http://", "http://host:port", "https://me:hidden-word@gateway.example")
    # What a query or a fragment holds would not reach the gateway.
    parts = ("?key=hidden-word", "/api?key=hidden-word", "?", "/#hidden-word")
    for wrong in (*wrongs, *(f"https://gateway.example{part}" for part in parts)):
        with pytest.raises(EndpointError, match="gateway's URL") as raised:
            check_spec(wrong)
        assert "hidden-word" not in str(raised.value)
