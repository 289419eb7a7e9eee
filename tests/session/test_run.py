from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import AssistantMessage, Message, ToolResultBlock, UserMessage

from harvest_nb.endpoint.messages import Text, ToolUse
from harvest_nb.endpoint.scripted import Script, Step
from harvest_nb.endpoint.tour import tour
from harvest_nb.engine import DockerClient
from harvest_nb.errors import EndpointError, ScenarioError, SessionError, TokenError
from harvest_nb.sandbox.base import Provider, Sandbox
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.open import Setup
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.result import RunResult
from harvest_nb.session.run import run_session as run_setup
from harvest_nb.snapshot import Snapshot
from harvest_nb.views.diagrams import check_run
from tests.session.conftest import BASH, about, stream

pytestmark = pytest.mark.slow


async def run_session(
    prompt: str, *, on_message: Callable[[Message], None] = lambda _: None, **setup: Any
) -> RunResult:
    return await run_setup(prompt, Setup(**setup), on_message=on_message)


PROMPT = "Summarise @docs/ai/shared/git-workflow.md"


async def test_the_tour_runs_every_tool_for_real(provider: Provider, tmp_path: Path) -> None:
    seen: list[Message] = []
    result = await run_session(PROMPT, provider=provider, runs_dir=tmp_path, on_message=seen.append)
    assert result.check().text is not None
    assert "Git workflow" in result.text  # type: ignore[operator]
    told = about(result.folder)
    assert told["status"] == "success"
    assert told["endpoint"] == "scripted"
    assert told["cli_version"] == "2.1.330"
    assert told["total_cost_usd"] == pytest.approx(result.total_cost_usd, abs=1e-9)
    assert check_run(result.folder) == []  # a path of the documented state diagram
    lines = stream(result.folder)
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    init = next(x["message"] for x in lines if x["message"].get("subtype") == "init")
    assert {s["name"]: s["status"] for s in init["mcp_servers"]}["memory"] == "connected"
    # What was shown is what was recorded, and what was recorded is what the CLI itself wrote down.
    results = {
        block.tool_use_id for m in seen if isinstance(m, UserMessage) for block in m.content
        if isinstance(block, ToolResultBlock)
    }  # fmt: skip
    transcript = (result.folder / "transcript" / f"{result.session_id}.jsonl").read_text()
    rows = [json.loads(line) for line in transcript.splitlines()]
    written = {
        block["tool_use_id"] for row in rows
        if row.get("type") == "user" and isinstance(row["message"]["content"], list)
        for block in row["message"]["content"] if block["type"] == "tool_result"
    }  # fmt: skip
    assert len(results) == 4
    assert results == written
    assert (result.folder / "memory.before.jsonl").read_bytes() == (
        result.folder / "memory.after.jsonl"
    ).read_bytes()


async def test_secrets_reach_the_agent_and_no_file_and_no_argument(
    provider: Provider, tmp_path: Path
) -> None:
    canary = "canary-" + "3f9a" * 8

    async def show(_: Sandbox, __: str) -> Script:
        def in_no_argument(c: Any) -> str | None:
            text = c.results[0][0] if c.results else ""
            return (
                None if "--mcp-config" in text and canary not in text else f"in the arguments: {text[:300]}"
            )

        def in_the_environment(c: Any) -> str | None:
            text = c.results[0][0] if c.results else ""
            return (
                None
                if f"GITHUB_TOKEN={canary}" in text
                else f"the token did not reach the agent: {text[:300]}"
            )

        return Script(
            "environment",
            (
                Step(
                    "arguments",
                    lambda _: [ToolUse("Bash", {"command": "tr '\\0' ' ' < /proc/$PPID/cmdline"})],
                ),
                Step(
                    "variables",
                    lambda _: [ToolUse("Bash", {"command": "env; env | base64 -w0"})],
                    in_no_argument,
                ),
                Step("end", lambda _: [Text("seen")], in_the_environment),
            ),
        )

    result = await run_session(
        "Show your environment", provider=provider, scenario=show, tokens={"GITHUB_TOKEN": canary},
        runs_dir=tmp_path, options=BASH,
    )  # fmt: skip
    assert result.check().ok
    everything = b"".join(path.read_bytes() for path in result.folder.rglob("*") if path.is_file())
    assert canary.encode() not in everything
    assert (
        everything.count(b"[redacted:GITHUB_TOKEN]") >= 4
    )  # plain and base64, in the stream and the transcript
    assert about(result.folder)["tokens"] == ["GITHUB_TOKEN"]


async def test_a_tool_that_did_not_run_fails_the_run(provider: Provider, tmp_path: Path) -> None:
    async def another_nonce(sandbox: Sandbox, prompt: str) -> Script:
        script = await tour(sandbox, prompt)
        for name in (await sandbox.run(["ls"], cwd=sandbox.workspace)).text.split():
            await sandbox.write(sandbox.workspace / name, b"not the nonce\n")
        return script

    result = await run_session(PROMPT, provider=provider, scenario=another_nonce, runs_dir=tmp_path)
    assert result.status == "error"
    assert "expected the nonce" in str(result.reason)
    assert about(result.folder)["status"] == "error"
    with pytest.raises(SessionError, match="expected the nonce"):
        result.check()


def _slow(seconds: int) -> Any:
    async def scenario(_: Sandbox, __: str) -> Script:
        sleep = Step("sleep", lambda _: [ToolUse("Bash", {"command": f"ls /; sleep {seconds}"})])
        return Script("slow", (sleep, Step("end", lambda _: [Text("awake")])))

    return scenario


@pytest.mark.docker
async def test_a_container_killed_in_mid_run_loses_nothing(
    engine: DockerClient, snapshot_image: Snapshot, tmp_path: Path
) -> None:
    def kill_at_the_tool(message: Message) -> None:
        if isinstance(message, AssistantMessage):
            (found,) = engine.api.containers(
                filters={"label": f"harvest.run={next(tmp_path.iterdir()).name}"}
            )
            engine.api.kill(found["Id"])

    result = await run_session(
        "Sleep", provider=DockerProvider(engine), snapshot=snapshot_image.id, scenario=_slow(60),
        runs_dir=tmp_path, on_message=kill_at_the_tool,
    )  # fmt: skip
    assert result.status == "died"
    assert "ended by signal 9" in str(result.reason)
    assert any(line["message"]["type"] == "assistant" for line in stream(result.folder))
    assert about(result.folder)["exit_reason"] == result.reason


async def test_a_cancelled_run_says_so_and_leaves_nothing(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine the CLI may take longer to answer an interrupt than a person would wait.
    monkeypatch.setattr("harvest_nb.session.session._STOP_SECONDS", 30)
    at_tool = asyncio.Event()

    def note(message: Message) -> None:
        if isinstance(message, AssistantMessage):
            at_tool.set()

    task = asyncio.create_task(
        run_session(
            "Sleep", provider=provider, scenario=_slow(60), runs_dir=tmp_path, on_message=note, options=BASH
        )
    )
    await asyncio.wait_for(at_tool.wait(), 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (folder,) = tmp_path.iterdir()
    told = about(folder)
    assert told["status"] == "cancelled"
    assert told["total_cost_usd"] > 0  # the interrupt brought a result
    assert await provider.list({"harvest.run": folder.name}) == []


@pytest.mark.docker
async def test_a_missing_cli_is_named(engine: DockerClient, snapshot_image: Snapshot, tmp_path: Path) -> None:
    class WithoutCLI(DockerProvider):
        async def create(self, *args: Any, **more: Any) -> Any:
            return await super().create(*args, **more, env={"PATH": "/usr/bin:/bin"})

    result = await run_session(
        PROMPT, provider=WithoutCLI(engine), snapshot=snapshot_image.id, runs_dir=tmp_path
    )
    assert result.status == "error"
    assert "no `claude` command" in str(result.reason)


async def test_options_are_recorded_by_name_where_they_may_hold_secrets(tmp_path: Path) -> None:
    server = {
        "type": "stdio",
        "command": "true",
        "args": ["--flag"],
        "env": {"SERVER_KEY": "value-of-server"},
    }
    options = SessionOptions(
        mcp=[],
        env={"CLAUDE_CODE_MAX_RETRIES": "1", "SOME_SETTING": "value-of-setting"},
        extra={"mcp_servers": {"mine": server}},
    )
    result = await run_session(
        "hello",
        provider=HostProvider(),
        runs_dir=tmp_path,
        options=options,
        scenario="fault-500-always",
        mcp="warn",
    )
    kept = (result.folder / "run.json").read_text()
    assert "value-of" not in kept
    told = json.loads(kept)["options"]
    assert {"CLAUDE_CODE_MAX_RETRIES", "SOME_SETTING"} <= set(told["env"])
    assert told["mcp_servers"]["mine"] == {**server, "env": ["SERVER_KEY"]}


async def test_a_watchdog_ends_a_silent_run(tmp_path: Path) -> None:
    result = await run_session(
        "Sleep", provider=HostProvider(), scenario=_slow(60), runs_dir=tmp_path, idle_timeout=3, options=BASH
    )
    assert result.status == "error"
    assert "No message came for 3 s" in str(result.reason)


async def test_bad_input_is_named_before_anything_starts(tmp_path: Path) -> None:
    host = HostProvider()
    with pytest.raises(TokenError, match="CLAUDE_CODE_OAUTH_TOKEN"):
        await run_session(PROMPT, provider=host, endpoint="anthropic", runs_dir=tmp_path)
    with pytest.raises(EndpointError, match="Unknown endpoint"):
        await run_session(PROMPT, provider=host, endpoint="elsewhere", runs_dir=tmp_path)
    with pytest.raises(SessionError, match="empty"):
        await run_session("  ", provider=host, runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())


async def test_bad_input_found_in_the_sandbox_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="refers to no page"):
        await run_session("Hello", provider=HostProvider(), runs_dir=tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EndpointError, match=f"Port {port} of 127.0.0.1 is taken"):
            await run_session(PROMPT, provider=HostProvider(), runs_dir=tmp_path, port=port)
    assert {about(folder)["status"] for folder in tmp_path.iterdir()} == {"error"}
