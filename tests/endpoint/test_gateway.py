"""An endpoint elsewhere: a server that shares no code with ours, bare bytes on a socket, sound and faulty."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from harvest_nb import load
from harvest_nb.endpoint import open_endpoint
from harvest_nb.endpoint.open import check_spec
from harvest_nb.errors import EndpointError
from harvest_nb.sandbox.base import Provider, Sandbox
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.open import Setup
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.run import run_session
from harvest_nb.settings import ENDPOINT_TOKEN
from tests.endpoint.conftest import FolderSandbox

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


async def test_a_gateway_that_is_not_there_is_named_before_a_sandbox_is_made(tmp_path: Path) -> None:
    async with foreign(sound) as (url, _):
        pass
    provider = HostProvider()
    before = {info.id for info in await provider.list(all_namespaces=True)}
    plan = Setup(provider=provider, runs_dir=tmp_path, endpoint=url, options=PLAIN)
    with pytest.raises(EndpointError, match=f"{re.escape(url)}: .*refused"):
        await run_session("hello", plan)
    (about,) = [json.loads(path.read_text()) for path in tmp_path.glob("*/run.json")]
    assert about["status"] == "error"
    assert url in about["exit_reason"]
    assert "sandbox_id" not in about
    assert {info.id for info in await provider.list(all_namespaces=True)} <= before


async def failing(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
    writer.write(head("500 Internal Server Error") + b'{"type": "error", "error": {"message": "no"}}')


async def headers_without_end(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
    writer.write(head("200 OK", "text/event-stream", "x-more: " + "a" * 200_000))


async def not_found(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
    writer.write(head("404 Not Found", "text/plain") + b"no such page")


@pytest.mark.parametrize("answer", [failing, headers_without_end, reset, not_found, a_web_page, too_short])
async def test_errors_name_the_gateway_and_no_port_of_the_sandbox(answer: Answer, tmp_path: Path) -> None:
    shown: list[Any] = []
    async with foreign(answer) as (url, _):
        plan = Setup(provider=HostProvider(), runs_dir=tmp_path, endpoint=url, options=PLAIN)
        result = await run_session("hello", plan, on_message=shown.append)
    assert result.status == "error"
    assert url in str(result.reason)
    known = f"127.0.0.1:{httpx.URL(url).port}"
    for text in (result.reason, result.text, *shown):
        assert set(re.findall(r"127\.0\.0\.1:\d+", str(text))) <= {known}


async def test_a_request_that_did_not_reach_the_gateway_is_not_said_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARVEST_MAX_REQUEST_BYTES", "1000")
    async with foreign(sound) as (url, seen):
        plan = Setup(provider=HostProvider(), runs_dir=tmp_path, endpoint=url, options=PLAIN)
        result = await run_session("hello", plan)
    assert (result.status, seen) == ("error", [])
    assert url not in str(result.reason)


async def test_images_of_many_megabytes_reach_the_gateway(tmp_path: Path) -> None:
    """What the CLI says to the model besides holds characters that take four bytes each."""
    image = base64.b64encode(bytes(4_000_000)).decode()
    source = {"type": "base64", "media_type": "image/png", "data": image}
    content = [{"type": "text", "text": "\U0001f916"}, *[{"type": "image", "source": source}] * 3]
    asked = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    async with (
        foreign(sound) as (url, seen),
        open_endpoint(url, sandbox=cast(Sandbox, FolderSandbox(tmp_path)), prompt="x") as endpoint,
        httpx.AsyncClient(trust_env=False, timeout=20) as client,
    ):
        answer = await client.post(
            f"http://127.0.0.1:{endpoint.port}/v1/messages",
            content=json.dumps(asked, ensure_ascii=False).encode(),
            headers={"authorization": f"Bearer {endpoint.secret}"},
        )
    assert (answer.status_code, len(seen)) == (200, 1)


async def test_an_address_that_the_cli_names_is_shown_as_the_gateways(tmp_path: Path) -> None:
    mark = str(uuid.uuid4())
    said: list[str] = []

    async def names_the_port(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        found = {
            variables["ANTHROPIC_BASE_URL"]
            for environ in Path("/proc").glob("[0-9]*/environ")
            if (variables := environment(environ)).get("MARK") == mark and "ANTHROPIC_BASE_URL" in variables
        }
        (inner,) = found
        said.append(inner)
        body = {"type": "error", "error": {"type": "invalid_request_error", "message": f"{inner} says no"}}
        writer.write(head("400 Bad Request") + json.dumps(body).encode())

    shown: list[Any] = []
    async with foreign(names_the_port) as (url, _):
        options = replace(PLAIN, env={**PLAIN.env, "MARK": mark})
        plan = Setup(provider=HostProvider(), runs_dir=tmp_path, endpoint=url, options=options)
        result = await run_session("hello", plan, on_message=shown.append)
    assert said
    for text in (result.reason, result.text, shown):
        assert f"{url} says no" in str(text)
        assert said[0] not in str(text)


def environment(path: Path) -> dict[str, str]:
    """The variables of a process, none of one that has ended or is another user's."""
    with contextlib.suppress(OSError):
        parts = path.read_bytes().decode("utf-8", "replace").split("\0")
        return dict(part.split("=", 1) for part in parts if "=" in part)
    return {}


ASK = """
token=$(tr '\\0' '\\n' < /proc/$PPID/environ | sed -n s/^CLAUDE_CODE_OAUTH_TOKEN=//p)
curl -sS -o /dev/null -w '%{http_code} ' -H "authorization: Bearer $token" -H 'content-type: application/json' \\
  -d '{"model": "claude-haiku-4-5", "messages": [], "max_tokens": 9}' "$ANTHROPIC_BASE_URL/v1/messages"
"""


def bash(model: str, command: str) -> bytes:
    usage = {"input_tokens": 20, "output_tokens": 1, "cache_read_input_tokens": 3}
    message: dict[str, Any] = {
        "id": "msg_tool", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": usage,
    }  # fmt: skip
    call = {"type": "tool_use", "id": "toolu_1", "name": "Bash", "input": {}}
    given = json.dumps({"command": command, "description": "ask the model"})
    return sse(
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": call},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": given},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use"},
            "usage": {**usage, "output_tokens": 9},
        },
        {"type": "message_stop"},
    )


@pytest.mark.parametrize("asks", [False, True], ids=["the CLI alone asks", "the agent asks too"])
async def test_what_the_endpoint_counted_stands_beside_what_the_cli_reports(
    asks: bool, provider: Provider, tmp_path: Path
) -> None:
    async def answer(writer: asyncio.StreamWriter, asked: dict[str, Any]) -> None:
        first = asked["max_tokens"] != 9 and not any(
            isinstance(part, dict) and part.get("type") == "tool_result"
            for message in asked["messages"]
            for part in message["content"]
        )
        body = bash(asked["model"], ASK if asks else "true") if first else hello(asked["model"])
        writer.write(head("200 OK", "text/event-stream") + body)

    options = replace(PLAIN, model="claude-sonnet-4-5", allowed_tools=["Bash"])
    async with foreign(answer) as (url, _):
        plan = Setup(provider=provider, runs_dir=tmp_path, endpoint=url, options=options)
        result = await run_session("go", plan)
    frames = load(result.check().folder)
    (run,) = frames.runs.to_dict("records")
    counted = frames.endpoint_usage
    assert [time >= run["created"] for time in counted["time"]] == [True] * len(counted)
    sonnet = counted[counted["model"] == "claude-sonnet-4-5"]
    assert sonnet.filter(like="_tokens").to_numpy().tolist() == [[20, 9, 0, 0, 3], [11, 7, 0, 0, 0]]
    found = [row.reason for row in frames.problems.itertuples()]
    assert ("claude-haiku-4-5" in set(counted["model"])) == asks
    assert found == (["endpoint_usage_differs"] if asks else [])
    assert (run["cost_endpoint_usd"] > run["cost_usd"]) == asks
    assert run["cost_endpoint_usd"] == sum(frames.endpoint_usage["cost_usd"])


# Each answer costs 0.7 USD: at 5 and 150 USD for a million tokens, and 10 for a thousand searches.
COSTLY = [
    ("claude-haiku-4-5", {"output_tokens": 140_000}),
    ("claude-opus-4-6", {"output_tokens": 4_667, "speed": "fast"}),
    ("claude-haiku-4-5", {"server_tool_use": {"web_search_requests": 70}}),
]


@pytest.mark.parametrize(("model", "usage"), COSTLY, ids=["tokens", "fast tokens", "searches"])
async def test_a_budget_bounds_what_the_agent_itself_asks(
    model: str, usage: dict[str, Any], tmp_path: Path
) -> None:
    """The CLI stops its own requests at the budget; it does not see the others."""
    answered = 0

    async def answer(writer: asyncio.StreamWriter, asked: dict[str, Any]) -> None:
        nonlocal answered
        answered += 1
        body = bash(asked["model"], ASK * 40) if asked["max_tokens"] != 9 else costly
        writer.write(head("200 OK", "text/event-stream") + body)

    said = json.dumps({"output_tokens": 7} | usage)[1:-1].encode()
    costly = hello(model).replace(b'"output_tokens": 7', said)
    options = replace(PLAIN, model="claude-sonnet-4-5", allowed_tools=["Bash"], max_budget_usd=2.0)
    async with foreign(answer) as (url, _):
        plan = Setup(provider=HostProvider(), runs_dir=tmp_path, endpoint=url, options=options)
        result = await run_session("go", plan)
    assert answered == 1 + 3
    assert result.status == "error"
    assert "max_budget_usd" in str(result.reason)


async def test_a_live_run_keeps_its_token_outside_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    async def answer(writer: asyncio.StreamWriter, asked: dict[str, Any]) -> None:
        if "tool_result" in (text := json.dumps(asked["messages"])):
            shown.append(text)
        body = (
            hello(asked["model"])
            if shown
            else bash(asked["model"], "tr '\\0' '\\n' < /proc/$PPID/environ; env")
        )
        writer.write(head("200 OK", "text/event-stream") + body)

    options = replace(PLAIN, allowed_tools=["Bash"])
    async with foreign(answer) as (url, seen):
        monkeypatch.setattr("harvest_nb.endpoint.open.ANTHROPIC", url)
        plan = Setup(
            provider=HostProvider(),
            runs_dir=tmp_path,
            endpoint="anthropic",
            tokens={"CLAUDE_CODE_OAUTH_TOKEN": TOKEN},
            options=options,
        )
        result = await run_session("go", plan)
    assert result.check().text == "Hello from afar."
    assert set(seen) == {f"Bearer {TOKEN}"}
    assert "ANTHROPIC_BASE_URL" in shown[0]
    assert TOKEN not in shown[0]
    about = json.loads((result.folder / "run.json").read_text())
    assert about["network"] == "none"
    assert len(load(result.folder).endpoint_usage) == 2


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
