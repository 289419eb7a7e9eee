"""What an agent may send to its endpoint by hand: each request is answered, soon, and the endpoint stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest_nb.endpoint import Endpoint, open_endpoint
from harvest_nb.endpoint.conversation import Conversation
from harvest_nb.sandbox.base import Sandbox
from tests.endpoint.conftest import FolderSandbox, body, post, said, user
from tests.memory import peak_memory


async def sent(endpoint: Endpoint, content: bytes | list[bytes]) -> int:
    async def pieces() -> Any:
        for piece in content:
            yield piece

    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        response = await client.post(
            f"http://127.0.0.1:{endpoint.port}/v1/messages",
            content=content if isinstance(content, bytes) else pieces(),
            headers={"authorization": f"Bearer {endpoint.secret}", "content-type": "application/json"},
        )
    return response.status_code


async def test_requests_that_would_take_all_time_or_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARVEST_MAX_REQUEST_BYTES", "20000000")
    sandbox = cast(Sandbox, FolderSandbox(tmp_path))
    text = {"reminders": "<system-reminder>" * 100_000, "notices": "<task-notification>" * 100_000}
    async with open_endpoint("scripted", scenario="refusal", sandbox=sandbox, prompt="go") as endpoint:
        before = peak_memory(reset=True)
        async with asyncio.timeout(30):
            for unclosed in text.values():
                assert (await post(endpoint, body(user(unclosed)))).status_code == 200
            assert await sent(endpoint, b'{"model": "m", "messages": ' + b"[" * 100_000) == 400
            assert await sent(endpoint, b'{"model": "m", "messages": [' + b"[]," * 5_000_000 + b"[]]}") == 400
            assert await sent(endpoint, b'{"model": "m", "messages": [' + b'"",' * 5_000_000 + b'""]}') == 400
            quotes = b"," * 1_000_001 + b'"' + b'\\"' * 500_000  # a string that does not end
            assert await sent(endpoint, b'{"model": ' + quotes) == 400
            # Without a length, and many at once.
            huge = [sent(endpoint, [b" " * 1_000_000] * 30) for _ in range(8)]
            assert await asyncio.gather(*huge, return_exceptions=True)
        assert peak_memory() - before < 300e6
        assert said(await post(endpoint, body(user("go"))))


async def test_nothing_is_printed_of_requests_that_are_none_or_never_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sandbox = cast(Sandbox, FolderSandbox(tmp_path))
    async with (
        contextlib.AsyncExitStack() as stack,
        open_endpoint("scripted", scenario="refusal", sandbox=sandbox, prompt="go") as endpoint,
    ):

        async def connected(data: bytes) -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection("127.0.0.1", endpoint.port)
            stack.callback(writer.close)
            writer.write(data)
            await writer.drain()
            return reader

        assert b"400" in await (await connected(b"\x16\x03\x01 no HTTP\r\n\r\n")).readline()
        head = f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {endpoint.secret}\r\n"
        for _ in range(3):  # their bodies are still to come when the endpoint closes
            await connected(f"{head}content-length: 1000\r\n\r\n{{".encode())
        await asyncio.sleep(0.1)
    assert capfd.readouterr() == ("", "")


SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "tools", "model", "messages", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(
    model=SHAPES,
    messages=SHAPES
    | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": SHAPES}), max_size=2),
    tools=SHAPES,
)
def test_a_body_is_a_request_or_refused(model: Any, messages: Any, tools: Any) -> None:
    try:
        conversation = Conversation({"model": model, "messages": messages, "tools": tools})
    except ValueError:
        return
    assert isinstance(conversation.agent, str)
    assert isinstance(conversation.own_prompt, str)
    json.dumps([conversation.results, conversation.notifications, sorted(conversation.tools)])
