"""One session over a Daytona stream that is cut again and again, with a large prompt and a large answer of a tool."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import AssistantMessage, Message, create_sdk_mcp_server, tool

from harvest_nb.daytona_local import LocalDaytona
from harvest_nb.endpoint.messages import Block, Text, ToolUse
from harvest_nb.endpoint.scripted import Conversation
from harvest_nb.redact import Redactor
from harvest_nb.sandbox.daytona import DaytonaProvider
from harvest_nb.session.open import Setup, open_session
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.run import run_session
from harvest_nb.sessions import run
from tests.session.conftest import about, bash, conversation, echo, results, stream

pytestmark = [pytest.mark.docker, pytest.mark.slow]


def noise(length: int) -> str:
    """Text that cannot be made small."""
    return "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=length))


@pytest.mark.parametrize(
    ("answer", "least_cuts"),
    [(1_000_000, 3), pytest.param(20_000_000, 50, marks=pytest.mark.soak)],
)
async def test_a_session_whose_stream_is_cut_equals_the_transcript_line_for_line(
    answer: int, least_cuts: int, daytona: LocalDaytona, daytona_provider: DaytonaProvider, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    large, prompt = noise(answer), noise(500_000)
    cuts = 0
    take = daytona.faults.take

    def counted(name: str) -> float | None:
        nonlocal cuts
        found = take(name)
        cuts += name == "log-cut" and found is not None
        return found

    monkeypatch.setattr(daytona.faults, "take", counted)

    @tool("large", "Much text", {})
    async def much(_: dict[str, Any]) -> dict[str, Any]:
        # A fast machine is done before the stream was cut often enough: let more pass over it.
        while cuts < least_cuts:
            assert (await session.sandbox.run(["seq", "2000"], timeout=60)).ok
        return {"content": [{"type": "text", "text": large}]}

    def load(c: Conversation) -> list[Block]:
        assert prompt in str(c.body["messages"])  # the prompt arrived whole
        return [ToolUse("ToolSearch", {"query": "select:mcp__desk__large", "max_results": 1})]

    def call(_: Conversation) -> list[Block]:
        return [ToolUse("mcp__desk__large", {})]

    def end(c: Conversation) -> list[Block]:
        return [Text("done " + "x" * 300_000)]

    options = SessionOptions(
        allowed_tools=["Bash", "mcp__desk__large"],
        tools={"desk": create_sdk_mcp_server("desk", tools=[much])},
    )
    scenario = conversation(load, call, bash("sleep 3; seq 2000"), end)
    plan = Setup(provider=daytona_provider, runs_dir=tmp_path, options=options, scenario=scenario)
    daytona.faults.set("log-cut", 150)
    async with open_session(plan) as session:
        result = await session.ask(prompt)
        daytona.faults.clear()
        assert result.check().text == "done " + "x" * 300_000
        project = "$HOME/.claude/projects"
        own = await session.sandbox.run(["sh", "-c", f"cat {project}/*/{session.session_id}.jsonl"])
        kept = await session.sandbox.run(["sh", "-c", f"cat {project}/*/*/tool-results/*"])
    assert cuts >= least_cuts
    assert large in kept.text  # the tool's answer arrived whole, and the CLI put it aside
    messages = [
        line["message"]
        for line in stream(session.folder.path)
        if line["dir"] == "in" and line["message"]["type"] in ("assistant", "user")
    ]

    entries = [json.loads(line) for line in own.text.splitlines()]
    written = {entry["uuid"]: entry for entry in entries if entry.get("type") in ("assistant", "user")}
    seen = [message["uuid"] for message in messages]
    assert len(seen) == len(set(seen)) >= 7
    expected = [
        uuid for uuid, entry in written.items() if entry["type"] == "assistant" or "toolUseResult" in entry
    ]
    assert seen == expected
    for message in messages:
        assert message["message"]["content"] == written[message["uuid"]]["message"]["content"]


async def test_the_accounts_key_is_in_nothing_that_a_run_leaves(
    daytona: LocalDaytona,
    daytona_provider: DaytonaProvider,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tool on the desk that gives everything away, and an environment that holds another key."""
    monkeypatch.setenv("DAYTONA_API_KEY", ambient := "dtn_" + "5e" * 32)
    keys = {"OF_THE_ACCOUNT": daytona.api_key, "AMBIENT": ambient}

    @tool("tell", "All it knows", {})
    async def tell(_: dict[str, Any]) -> dict[str, Any]:
        text = " ".join(f"{key} {base64.b64encode(key.encode()).decode()}" for key in keys.values())
        return {"content": [{"type": "text", "text": text}]}

    result = await run(
        f"Is it {daytona.api_key}?",
        provider=daytona_provider,
        runs_dir=tmp_path,
        tools={"desk": create_sdk_mcp_server("desk", tools=[tell])},
        allowed_tools=["mcp__desk__tell"],
        scenario=conversation(
            lambda _: [ToolUse("ToolSearch", {"query": "select:mcp__desk__tell", "max_results": 1})],
            lambda _: [ToolUse("mcp__desk__tell", {})],
            results,
        ),
    )
    # The provider's own snapshot counts where the caller names none.
    assert about(result.folder)["image"] == daytona_provider.snapshot
    assert "[redacted:DAYTONA_API_KEY]" in str(result.check().text)
    for path in result.folder.rglob("*"):
        if path.is_file():
            assert Redactor(keys).found(path.read_text("utf-8", "replace")) == [], path
    assert Redactor(keys).found(repr(result) + repr(daytona_provider) + repr(daytona_provider.account)) == []


async def test_a_sandbox_that_may_not_be_deleted_takes_no_result_away(
    daytona: LocalDaytona, daytona_provider: DaytonaProvider, tmp_path: Path
) -> None:
    def then_forbidden(c: Conversation) -> list[Block]:
        daytona.faults.parse("delete-forbidden")
        return echo(c)

    plan = Setup(provider=daytona_provider, runs_dir=tmp_path, scenario=conversation(then_forbidden))
    result = await run_session("Hello", plan)
    assert result.check().text == "you said: Hello"
    told = (result.folder / "stderr.log").read_text()
    assert "could not be removed" in told
    assert "the key lacks a permission" in told
    daytona.faults.clear()
    assert [info.held for info in await daytona_provider.list({"harvest.run": result.folder.name})] == [False]
    assert len(await daytona_provider.reap()) == 1
    assert await daytona_provider.list() == []


async def test_a_relay_that_ends_in_mid_run_is_said_and_loses_nothing(
    daytona_provider: DaytonaProvider, tmp_path: Path
) -> None:
    plan = Setup(
        provider=daytona_provider,
        runs_dir=tmp_path,
        options=SessionOptions(allowed_tools=["Bash"]),
        scenario=conversation(bash("pkill -9 -f 'harvest/relay.py serv[e]'; sleep 60"), bash("true")),
    )
    async with asyncio.timeout(60):
        result = await run_session("Wait", plan)
    assert result.status == "died"
    assert "its relay has ended" in str(result.reason)
    assert "assistant" in [line["message"]["type"] for line in stream(result.folder)]
    assert await daytona_provider.list() == []


async def test_a_sandbox_that_runs_out_of_memory_in_mid_run_is_said_and_loses_nothing(
    daytona: LocalDaytona, daytona_provider: DaytonaProvider, tmp_path: Path
) -> None:
    plan = Setup(
        provider=daytona_provider,
        runs_dir=tmp_path,
        options=SessionOptions(allowed_tools=["Bash"]),
        scenario=conversation(bash("sleep 60"), bash("true")),
    )

    def strike(message: Message) -> None:
        if isinstance(message, AssistantMessage):
            daytona.faults.parse("out-of-memory=0*1")

    result = await run_session("Wait", plan, on_message=strike)
    assert result.status == "died"
    assert "ran out of memory" in str(result.reason)
    kinds = [line["message"]["type"] for line in stream(result.folder)]
    assert "assistant" in kinds
    assert await daytona_provider.list() == []
