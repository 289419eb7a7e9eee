"""The proxy at the level of HTTP: what an endpoint elsewhere says in an odd shape, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from harvest_nb.endpoint import Endpoint
from harvest_nb.endpoint.proxy import PassedOn, passing_on
from harvest_nb.endpoint.streaming import Streamed
from tests.endpoint.conftest import body, leave_in_mid_request, post, said, user
from tests.endpoint.test_gateway import Answer, foreign, head, hello

CANARY = "canary-" + "3f9a" * 4


def answering(*parts: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        writer.write(b"".join(parts))

    return answer


@contextlib.asynccontextmanager
async def before(
    answer: Answer, *, token: str = "", **more: Any
) -> AsyncIterator[tuple[Endpoint, list[str]]]:
    """The proxy before a gateway that answers so, and the authorization of each request there."""
    async with foreign(answer) as (url, seen), passing_on(url, token, "gateway", **more) as endpoint:
        yield endpoint, seen


@pytest.mark.parametrize("token", [f"{CANARY}\n", f"{CANARY}\r\nx-more: 1", f"\0{CANARY}"])
async def test_a_credential_that_is_no_header_is_not_told(token: str) -> None:
    async with before(answering(head("200 OK")), token=token) as (endpoint, seen):
        response = await post(endpoint, body(user("go")))
    assert response.status_code == 502
    assert response.json()["error"]["message"] == (
        "a header of the request, perhaps the endpoint's credential, is not valid"
    )
    assert seen == []
    assert CANARY not in response.text + str(endpoint.log)


async def test_a_header_line_that_is_none_is_not_told() -> None:
    """What a gateway sends back may hold what it was sent."""
    answer = answering(b"HTTP/1.1 200 OK\r\nauthorization Bearer ", CANARY.encode(), b"\r\n\r\n")
    async with before(answer, token=CANARY) as (endpoint, _):
        response = await post(endpoint, body(user("go")))
    assert response.status_code == 502
    assert "cannot be reached: illegal header line" in response.json()["error"]["message"]
    assert CANARY not in response.text + str(endpoint.log)


async def test_a_header_in_another_alphabet_is_passed_on() -> None:
    """httpx reads such headers as UTF-8 where it can; they go on byte by byte."""
    shown = "x-place: Zürich, 東京".encode()
    twice = "x-more: a\r\nx-more: b"
    start = head("200 OK", "text/event-stream", twice).removesuffix(b"\r\n") + shown + b"\r\n\r\n"

    async with before(answering(start, hello("m"))) as (endpoint, _):
        response = await post(endpoint, body(user("go")))
    assert response.status_code == 200
    assert said(response) == "Hello from afar."
    assert (b"x-place", shown.removeprefix(b"x-place: ")) in response.headers.raw
    assert response.headers["x-more"] == "a, b"


async def test_a_token_in_another_alphabet_is_passed_on() -> None:
    async with before(answering(head("200 OK", "text/event-stream"), hello("m")), token="mot-clé") as (
        endpoint,
        seen,
    ):
        assert said(await post(endpoint, body(user("go")))) == "Hello from afar."
    assert [text.encode("latin-1").decode() for text in seen] == ["Bearer mot-clé"]


class _Answer(httpx.AsyncByteStream):
    """An answer's body that says whether it was closed."""

    closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"hello"

    async def aclose(self) -> None:
        self.closed = True


async def test_an_answer_whose_client_leaves_before_its_first_byte_is_closed() -> None:
    stream, kept = _Answer(), list[str]()
    passed = PassedOn(
        httpx.Response(200, stream=stream), lambda _, ending: kept.append(ending), lambda most: None
    )

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        await asyncio.Event().wait()

    await Streamed(passed.pieces(), at_end=passed.close)({}, receive, send)
    assert stream.closed
    assert kept == ["left"]


async def test_an_answer_that_is_read_to_its_end_is_kept_once() -> None:
    stream, kept = _Answer(), list[str]()
    passed = PassedOn(
        httpx.Response(200, stream=stream), lambda _, ending: kept.append(ending), lambda most: None
    )
    never = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await never.wait()
        return {}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            assert kept == ["whole"]  # done before the client sees the end

    await Streamed(passed.pieces(), at_end=passed.close)({}, receive, send)
    assert stream.closed
    assert kept == ["whole"]


@pytest.mark.parametrize(
    ("status", "location", "named"),
    [
        ("307 Temporary Redirect", "https://elsewhere.example/v1/messages", "https://elsewhere.example/v1/messages"),
        ("302 Found", f"https://me:{CANARY}@login.example/?token={CANARY}#{CANARY}", "https://login.example/"),
        ("301 Moved", "/prefix/v1/messages", "/prefix/v1/messages"),
        ("304 Not Modified", "", "nowhere"),
    ],
)  # fmt: skip
async def test_a_redirect_is_an_error_and_is_not_followed(status: str, location: str, named: str) -> None:
    more = [f"location: {location}"] if location else []
    async with before(answering(head(status, "text/plain", *more)), token=CANARY) as (endpoint, seen):
        response = await post(endpoint, body(user("go")))
    assert response.status_code == 502
    assert "location" not in response.headers
    assert response.headers["x-should-retry"] == "false"
    code = status.split()[0]
    message = response.json()["error"]["message"]
    assert message.startswith(f"the endpoint redirects ({code}) to ")
    assert f"{named}, which is not followed" in message
    assert len(seen) == 1
    assert endpoint.statuses == [502]
    assert CANARY not in response.text + str(endpoint.log)


async def test_a_redirect_that_cannot_be_read_is_not_told() -> None:
    answer = answering(head("302 Found", "text/plain", f"location: http://x:{CANARY}"))
    async with before(answer, token=CANARY) as (endpoint, _):
        response = await post(endpoint, body(user("go")))
    assert response.status_code == 502
    assert CANARY not in response.text + str(endpoint.log)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_client_that_leaves_in_mid_request_is_noted(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with before(answering(head("200 OK"))) as (endpoint, seen):
        await leave_in_mid_request(endpoint, path)
    assert [event.note for event in endpoint.log] == ["the client left in mid-request"]
    assert seen == []
    assert caplog.records == []


async def test_tools_that_run_elsewhere_are_refused_where_there_is_no_network() -> None:
    url = {"type": "image", "source": {"type": "url", "url": "http://out.example/?secret"}}
    outward: list[dict[str, Any]] = [
        {"mcp_servers": [{"type": "url", "url": "http://out.example"}]},
        {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
        {"messages": [user(url)]},
        {"messages": [user({"type": "tool_result", "tool_use_id": "t", "content": [url]})]},
    ]
    answer = answering(head("200 OK", "text/event-stream"), hello("m"))
    for allowed in (True, False):
        async with before(answer, server_tools=allowed) as (endpoint, seen):
            for more in outward:
                response = await post(endpoint, body(user("go")) | more)
                assert response.status_code == (200 if allowed else 400), more
                assert allowed or 'network="open"' in response.json()["error"]["message"]
            assert (await post(endpoint, body(user("go")))).status_code == 200
        assert len(seen) == (len(outward) if allowed else 0) + 1


async def test_what_is_left_in_mid_answer_is_counted() -> None:
    counted: list[tuple[str, dict[str, int], bool]] = []
    left, ended = asyncio.Event(), asyncio.Event()

    async def slow(writer: asyncio.StreamWriter, _: dict[str, Any]) -> None:
        whole = hello("m")
        writer.write(head("200 OK", "text/event-stream") + whole[: whole.index(b"event: message_delta")])
        await writer.drain()
        await left.wait()
        ended.set()

    async with before(slow) as (endpoint, _):
        endpoint.on_usage = lambda model, counts, final: counted.append((model, dict(counts), final))
        with pytest.raises(httpx.TimeoutException):
            await post(endpoint, body(user("go")), timeout=0.5)
        async with asyncio.timeout(5):
            while not counted:
                await asyncio.sleep(0.01)
            left.set()
            await ended.wait()
            await asyncio.sleep(0.1)
    ((model, counts, final),) = counted
    assert (model, counts["input_tokens"], final) == ("m", 11, False)
    assert counts["output_tokens"] >= 1
