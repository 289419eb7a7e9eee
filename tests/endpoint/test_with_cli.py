"""Scenarios, faults and cassettes with the real `claude` CLI."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import SystemMessage

from harvest_nb.endpoint.cassette import load_cassette
from harvest_nb.endpoint.library import load_scenario
from harvest_nb.engine import DockerClient
from harvest_nb.sandbox.base import Provider
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.open import Setup, open_session
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.result import RunResult
from harvest_nb.session.run import run_session
from harvest_nb.snapshot import Snapshot

pytestmark = pytest.mark.slow

TOUR = "Summarise @docs/ai/shared/git-workflow.md"
# The host provider asks before everything that is not named.
ALLOWED = ["Bash", "Edit", "Write", "Agent", "mcp__memory"]
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "pages": {"type": "integer"}},
    "required": ["title", "pages"],
}


def options(**more: Any) -> SessionOptions:
    return SessionOptions(allowed_tools=ALLOWED, mcp=["memory"], **more)


async def play(
    scenario: str | None, provider: Provider, runs: Path, *, env: dict[str, str] | None = None, **more: Any
) -> RunResult:
    prompt = more.pop("prompt", None) or (load_scenario(scenario).prompt if scenario else TOUR)
    chosen = options(extra={"env": env or {}}, schema=SCHEMA if scenario == "structured-output" else None)
    setup = Setup(
        provider=provider, scenario=scenario, options=chosen, runs_dir=runs, idle_timeout=60, **more
    )
    return await run_session(prompt, setup)


@pytest.mark.parametrize(
    ("scenario", "turns", "text"),
    [
        ("edit-and-test", 5, "The check passes"),
        ("sub-agents", 3, "Both are back"),
        ("long-tool-loop", 21, "Twenty lines"),
        ("ask-permission", 3, "says hello"),
        ("big-output", 3, "too large"),
        ("structured-output", None, '"pages":8'),
        ("mcp-tool", 3, "holds its entities"),
    ],
)
async def test_a_shipped_scenario_is_played_to_its_end(
    scenario: str, turns: int | None, text: str, tmp_path: Path
) -> None:
    result = (await play(scenario, HostProvider(), tmp_path)).check()
    assert text in str(result.text)
    assert turns in (None, result.num_turns)
    if scenario == "structured-output":
        assert result.structured == {"title": "Shared pages", "pages": 8}


async def test_a_refused_permission_is_met_by_a_rule_of_its_own(tmp_path: Path) -> None:
    setup = Setup(
        provider=HostProvider(), scenario="ask-permission", runs_dir=tmp_path, options=SessionOptions(mcp=[])
    )
    result = (await run_session("Write a greeting to a file.", setup)).check()
    assert "I was not allowed to write the file" in str(result.text)


QUICK = {"CLAUDE_CODE_MAX_RETRIES": "1", "API_TIMEOUT_MS": "2000"}
STAYS: dict[str, tuple[list[int | None], str]] = {
    "fault-401": ([401], "set CLAUDE_CODE_OAUTH_TOKEN"),
    "fault-403": ([], "403"),
    "fault-429-always": ([429], "temporarily limiting requests"),
    "fault-500-always": ([500], "500 Internal server error"),
    "fault-529-always": ([529], "529 Overloaded"),
    "fault-hang": ([None], "Request timed out"),
    "fault-cut-always": ([None], "Connection to the API was lost"),
    "fault-malformed-always": ([], "JSON Parse error"),
    "fault-nothing": ([], "empty or malformed response"),
    "refusal": ([], "can't help with this"),
}
PASSES: dict[str, list[int | None]] = {
    "fault-429": [429, 429],
    "fault-500": [500, 500],
    "fault-529-retry-after": [529, 529],
    "fault-cut": [None],
    "fault-malformed": [],
    "fault-overloaded-event": [],
}


def retries(result: RunResult) -> list[int | None]:
    return [
        message.data.get("error_status")
        for message in result.messages
        if isinstance(message, SystemMessage) and message.subtype == "api_retry"
    ]


async def several(names: Iterable[str], runs: Path, env: dict[str, str]) -> dict[str, RunResult]:
    """Runs of scenarios, some at a time: they mostly wait."""
    at_once = asyncio.Semaphore(5)

    async def one(name: str) -> RunResult:
        async with at_once:
            return await play(name, HostProvider(), runs, env=env)

    return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))


async def test_a_fault_that_stays_ends_in_a_recorded_reason(tmp_path: Path) -> None:
    results = await several(STAYS, tmp_path, QUICK)
    assert {name: result.status for name, result in results.items()} == dict.fromkeys(STAYS, "error")
    assert {name: retries(result) for name, result in results.items()} == {
        n: s for n, (s, _) in STAYS.items()
    }
    assert [(n, r.reason) for n, r in results.items() if STAYS[n][1] not in str(r.reason)] == []


async def test_a_fault_that_passes_is_survived(tmp_path: Path) -> None:
    results = await several(PASSES, tmp_path, {})
    assert {name: result.text for name, result in results.items()} == dict.fromkeys(PASSES, "Hello.")
    assert {name: retries(result) for name, result in results.items()} == PASSES


@pytest.fixture
def docker(engine: DockerClient, snapshot_image: Snapshot) -> Provider:
    return DockerProvider(engine)


@pytest.mark.docker
@pytest.mark.parametrize("scenario", [None, "sub-agents"], ids=str)
async def test_a_recording_is_played_in_other_sandboxes(
    scenario: str | None, docker: Provider, snapshot_image: Snapshot, tmp_path: Path
) -> None:
    cassette, image = tmp_path / "a.cassette", snapshot_image.id
    recorded = (await play(scenario, docker, tmp_path, snapshot=image, record=cassette)).check()
    for provider in (docker, HostProvider()) if scenario is None else (HostProvider(),):
        played = (
            await play(None, provider, tmp_path, prompt=recorded.prompt, snapshot=image, endpoint=cassette)
        ).check()
        assert played.endpoint == "cassette"
        assert played.text == recorded.text
        assert played.num_turns == recorded.num_turns
        assert played.session_id != recorded.session_id
        assert played.total_cost_usd == recorded.total_cost_usd


async def test_background_agents_are_played_whenever_they_end(tmp_path: Path) -> None:
    cassette, host = tmp_path / "a.cassette", HostProvider()
    recorded = (await play("background-agents", host, tmp_path, record=cassette)).check()
    prompt = recorded.prompt
    played = await asyncio.gather(
        *(play(None, host, tmp_path, prompt=prompt, endpoint=cassette) for _ in range(2))
    )
    # Their ends may be reported apart or together, so the number of turns may differ.
    assert [result.check().text for result in played] == ["Somebody is back."] * 2


async def test_a_conversation_that_departs_ends_with_a_diff(tmp_path: Path) -> None:
    cassette, host = tmp_path / "a.cassette", HostProvider()
    recorded = (await play("edit-and-test", host, tmp_path, record=cassette)).check()
    # The prompt is another one.
    other = await play(None, host, tmp_path, prompt="Leave it as it is.", endpoint=cassette)
    assert other.status == "error"
    assert "- user: The check in the workspace fails." in str(other.reason)
    assert "+ user: Leave it as it is." in str(other.reason)
    # A tool that worked in the recording does not work here.
    less = SessionOptions(mcp=["memory"], allowed_tools=["Bash"])
    denied = await run_session(
        recorded.prompt, Setup(provider=host, endpoint=cassette, runs_dir=tmp_path, options=less)
    )
    assert denied.status == "error"
    assert "- Edit succeeded" in str(denied.reason)
    assert "+ Edit failed" in str(denied.reason)


async def test_a_chat_is_recorded_and_played_through_a_compaction(tmp_path: Path) -> None:
    cassette = tmp_path / "chat.cassette"
    prompts = ["list", "/compact", "list again", "hello"]

    async def chat(**more: Any) -> list[str | None]:
        setup = Setup(provider=HostProvider(), runs_dir=tmp_path, options=options(), **more)
        async with open_session(setup, prompts[0]) as session:
            return [(await session.ask(prompt)).check().text for prompt in prompts]

    said = await chat(scenario="conversation", record=cassette)
    assert "workspace" in str(said[0])
    assert "workspace" in str(said[2])
    assert said[3] == "You said: hello"
    played = await chat(endpoint=cassette)
    assert played[3] == said[3]
    assert load_cassette(cassette).exchanges[2].view.lines[0].key == "agent: compact"


async def test_a_token_in_the_agents_environment_is_not_on_the_cassette(tmp_path: Path) -> None:
    canary = "canary-" + "3f9a" * 8
    scenario, cassette = tmp_path / "env.yaml", tmp_path / "env.cassette"
    scenario.write_text(
        "about: prints its environment\n"
        "rules:\n"
        "  - steps:\n"
        "      - tools: [{Bash: {command: 'env; env | base64 -w0'}}]\n"
        f"      - expect: {{contains: 'GITHUB_TOKEN={canary}'}}\n"
        '        text: "It is {result}"\n'
    )
    setup = Setup(
        provider=HostProvider(),
        scenario=scenario,
        record=cassette,
        runs_dir=tmp_path / "runs",
        tokens={"GITHUB_TOKEN": canary},
        options=options(),
    )
    (await run_session(f"Print it, {canary}", setup)).check()
    text = cassette.read_text()
    assert canary not in text
    exchanges = load_cassette(cassette).exchanges
    assert exchanges[0].view.lines[1].key == "user: Print it, [redacted:GITHUB_TOKEN]"
    answer = "".join(data.get("delta", {}).get("text", "") for _, data in exchanges[-1].events or [])
    assert answer.count("[redacted:GITHUB_TOKEN]") == 2  # plain and base64
    again = await run_session(
        f"Print it, {canary}",
        Setup(
            provider=HostProvider(),
            endpoint=cassette,
            runs_dir=tmp_path / "runs",
            tokens={"GITHUB_TOKEN": canary},
            options=options(),
        ),
    )
    assert again.check().text is not None
