from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from harvest_nb.endpoint.messages import Text, Thinking, ToolUse
from harvest_nb.endpoint.scripted import Conversation, Endpoint, Script, Step, scripted
from harvest_nb.errors import EndpointError

TOOLS = [{"name": "Bash"}]


def body(*messages: dict[str, Any], tools: Any = TOOLS) -> dict[str, Any]:
    return {"model": "m", "stream": True, "system": "s", "tools": tools, "messages": list(messages)}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def result(text: str, *, failed: bool = False) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": "t", "content": text, "is_error": failed}],
    }


ASSISTANT = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {}}]}


def wants_hello(c: Conversation) -> str | None:
    return None if c.results and "hello" in c.results[0][0] else "no hello"


SCRIPT = Script(
    "greeting",
    (
        Step("ask", lambda _: [Thinking("so"), Text("ä" * 100), ToolUse("Bash", {"command": "echo hello"})]),
        Step("check", lambda _: [Text("good")], wants_hello),
    ),
)


async def post(endpoint: Endpoint, content: Any, secret: str | None = None) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(
            f"http://127.0.0.1:{endpoint.port}/v1/messages?beta=true",
            json=content,
            headers={"authorization": f"Bearer {secret or endpoint.secret}"},
        )


def parsed(response: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]


async def test_a_step_streams_its_blocks_whole() -> None:
    async with scripted(SCRIPT) as endpoint:
        events = parsed(await post(endpoint, body(user("go"))))
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_stop"
    text = "".join(e["delta"]["text"] for e in events if e.get("delta", {}).get("type") == "text_delta")
    given = "".join(
        e["delta"]["partial_json"] for e in events if e.get("delta", {}).get("type") == "input_json_delta"
    )
    assert text == "ä" * 100
    assert json.loads(given) == {"command": "echo hello"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] > 1


async def test_a_result_that_is_not_as_expected_is_refused_and_kept() -> None:
    async with scripted(SCRIPT) as endpoint:
        good = await post(endpoint, body(user("go"), ASSISTANT, result("hello")))
        bad = await post(endpoint, body(user("go"), ASSISTANT, result("pretended")))
        assert good.status_code == 200
        assert bad.status_code == 400
        assert "no hello" in bad.json()["error"]["message"]
        assert endpoint.failures == ["step “check” of script “greeting”: no hello"]


async def test_a_new_prompt_starts_the_script_again() -> None:
    async with scripted(SCRIPT) as endpoint:
        again = body(
            user("go"), ASSISTANT, result("hello"), {"role": "assistant", "content": "good"}, user("go")
        )
        assert parsed(await post(endpoint, again))[-2]["delta"]["stop_reason"] == "tool_use"


async def test_nobody_else_can_use_it() -> None:
    async with scripted(SCRIPT) as endpoint:
        response = await post(endpoint, body(user("go")), secret="guessed")
        assert response.status_code == 401
        assert endpoint.requests == 0
        assert endpoint.secret not in repr(endpoint)


async def test_what_was_sent_before_is_read_from_the_cache() -> None:
    async with scripted(SCRIPT) as endpoint:
        first = parsed(await post(endpoint, body(user("go " * 500))))[0]["message"]["usage"]
        second = parsed(await post(endpoint, body(user("go " * 500), ASSISTANT, result("hello"))))
        usage = second[0]["message"]["usage"]
    assert first["cache_read_input_tokens"] == 0
    assert usage["cache_read_input_tokens"] == first["cache_creation_input_tokens"]


async def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EndpointError, match=f"Port {port} of 127.0.0.1 is taken"):
            async with scripted(SCRIPT, port=port):
                pass
