"""Sessions against both kinds of sandbox, with conversations made for one test."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.endpoint.messages import Block, Text, ToolUse
from harvest_nb.endpoint.scripted import Conversation, Script, Step
from harvest_nb.sandbox.base import Provider, Sandbox
from harvest_nb.session.options import SessionOptions

BASH = SessionOptions(allowed_tools=["Bash"])  # the host provider asks before everything else
Scenario = Callable[[Sandbox, str], Awaitable[Script]]


# What is the same code whichever provider it is, two of them show every day. Daytona's own part has its own tests.
@pytest.fixture(
    params=[
        pytest.param("docker", marks=pytest.mark.docker),
        "host",
        pytest.param("daytona", marks=[pytest.mark.docker, pytest.mark.soak]),
    ]
)
def provider(request: pytest.FixtureRequest, provider_named: Callable[[str], Provider]) -> Provider:
    return provider_named(request.param)


def stream(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "stream.jsonl").read_text().splitlines()]


def about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def typed(conversation: Conversation) -> str:
    """What the person typed last, without what the CLI puts beside it."""
    for message in reversed(conversation.body["messages"]):
        content = message["content"] if message["role"] == "user" else []
        texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        for text in reversed(texts):
            if text.strip() and not text.startswith(("<system-reminder>", "[Request interrupted")):
                return str(text.strip())
    return ""


def conversation(*steps: Callable[[Conversation], Sequence[Block]]) -> Scenario:
    """A scenario of these answers, one after the other, for each prompt anew."""

    async def scenario(_: Sandbox, __: str) -> Script:
        return Script("test", tuple(Step(f"step {number}", answer) for number, answer in enumerate(steps, 1)))

    return scenario


def bash(command: str) -> Callable[[Conversation], list[Block]]:
    return lambda _: [ToolUse("Bash", {"command": command, "description": "as the test says"})]


def say(text: str) -> Callable[[Conversation], list[Block]]:
    return lambda _: [Text(text)]


def echo(conversation: Conversation) -> list[Block]:
    return [Text(f"you said: {typed(conversation)}")]


def results(conversation: Conversation) -> list[Block]:
    return [Text(" | ".join(text for text, _ in conversation.results))]
