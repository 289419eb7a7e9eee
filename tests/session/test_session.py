from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import (
    AssistantMessage,
    HookMatcher,
    Message,
    PermissionResultAllow,
    PermissionResultDeny,
    ResultMessage,
    StreamEvent,
    SystemMessage,
    ToolPermissionContext,
    create_sdk_mcp_server,
    tool,
)

from harvest_nb.endpoint.messages import Block, Text, ToolUse
from harvest_nb.endpoint.scripted import Conversation
from harvest_nb.errors import RunFolderError, SessionError
from harvest_nb.sandbox.base import Provider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.open import Setup, open_session
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.result import RunResult
from harvest_nb.session.resume import find_past, holds_any, project_key
from harvest_nb.session.run import run_session
from harvest_nb.session.said import main_thread
from harvest_nb.snapshot import Snapshot
from tests.session.conftest import BASH, about, bash, conversation, echo, results, say, stream, typed

pytestmark = pytest.mark.slow


def setup(provider: Provider, tmp_path: Path, **changes: Any) -> Setup:
    plan = Setup(provider=provider, runs_dir=tmp_path, options=BASH, scenario=conversation(echo))
    return replace(plan, **changes)


def history(c: Conversation) -> list[Block]:
    """Every prompt that a person has typed so far in this conversation."""
    said = []
    for message in c.body["messages"]:
        if message["role"] == "user":
            content = message["content"]
            parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
            said += [part for part in parts if part and not part.startswith("<system-reminder>")]
    return [Text(" / ".join(said))]


async def test_prompts_follow_each_other_in_one_session(provider: Provider, tmp_path: Path) -> None:
    async with open_session(setup(provider, tmp_path, scenario=conversation(history))) as session:
        first = await session.ask("one")
        second = await session.ask("two")
    assert (first.text, second.text) == ("one", "one / two")
    assert first.session_id == second.session_id
    told = about(session.folder.path)
    assert [entry["prompt"] for entry in told["prompts"]] == ["one", "two"]
    assert told["status"] == "success"
    # Costs of the prompts are the differences of a figure that grows within one process.
    assert second.total_cost_usd == pytest.approx(told["total_cost_usd"], abs=1e-9)
    assert first.cost_usd + second.cost_usd == pytest.approx(told["total_cost_usd"], abs=1e-9)  # type: ignore[operator]
    assert (session.folder.path / "transcript" / f"{first.session_id}.jsonl").is_file()


async def test_a_second_prompt_at_once_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    async with open_session(setup(HostProvider(), tmp_path)) as session:
        with pytest.raises(SessionError, match="empty"):
            await session.ask(" \n")
        asking = asyncio.create_task(session.ask("one"))
        await asyncio.sleep(0)
        with pytest.raises(SessionError, match="another prompt"):
            await session.ask("two")
        assert (await asking).ok


SLEEP = "ls / > /dev/null; sleep 61"


async def sleepers(session: Any) -> int:
    """How many of the tool's processes are left in the sandbox."""
    listed = await session.sandbox.run(["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"])
    return int(listed.text.count("sleep 61 "))


def sleep_if_asked(c: Conversation) -> list[Block]:
    return bash(SLEEP)(c) if typed(c) == "sleep" else echo(c)


async def test_a_cancel_in_the_middle_of_a_tool_keeps_session_and_sandbox(
    provider: Provider, tmp_path: Path
) -> None:
    calling = asyncio.Event()

    def note(message: Message) -> None:
        if isinstance(message, AssistantMessage):
            calling.set()

    async with open_session(setup(provider, tmp_path, scenario=conversation(sleep_if_asked))) as session:
        asking = asyncio.create_task(session.ask("sleep", on_message=note))
        await asyncio.wait_for(calling.wait(), 60)
        while not await sleepers(session):
            await asyncio.sleep(0.05)
        await session.cancel()
        cut = await asking
        assert (cut.status, cut.cut_short) == ("cancelled", ("Bash",))
        assert "in the middle of Bash" in str(cut.reason)
        assert cut.cost_usd is not None
        async with asyncio.timeout(10):  # the CLI ends them by itself, a moment after its result
            while await sleepers(session):
                await asyncio.sleep(0.05)
        again = await session.ask("hello")
    assert again.text == "you said: hello"
    assert again.session_id == cut.session_id
    assert [entry["status"] for entry in about(session.folder.path)["prompts"]] == ["cancelled", "success"]


async def test_a_prompt_that_is_cancelled_before_it_was_sent_is_never_sent(
    provider: Provider, tmp_path: Path
) -> None:
    async with open_session(setup(provider, tmp_path, scenario=conversation(history))) as session:
        await session.start()
        for _ in range(2):
            asking = asyncio.create_task(session.ask("never mind"))
            while not session.busy:
                await asyncio.sleep(0)
            await session.cancel()
            cut = await asking
            assert cut.status == "cancelled"
            assert cut.messages == []
        after = await session.ask("hello")
    assert after.ok
    assert after.session_id == cut.session_id
    assert after.text == "hello"
    assert b"never mind" not in (session.folder.path / "stream.jsonl").read_bytes()


async def test_a_cancel_while_the_cli_starts(provider: Provider, tmp_path: Path) -> None:
    async with open_session(setup(provider, tmp_path)) as session:
        for delay in (0.0, 0.05, 0.4):
            asking = asyncio.create_task(session.ask("never mind"))
            await asyncio.sleep(delay)
            await session.cancel()
            cut = await asking
            assert (cut.status, cut.reason) == ("cancelled", "cancelled from the desk")
        assert (await session.ask("hello")).text == "you said: hello"


async def test_a_cancel_before_anything_was_sent_leaves_the_cli_warm(
    provider: Provider, tmp_path: Path
) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(64 * 1024**2))
    async with open_session(setup(provider, tmp_path / "runs")) as session:
        await session.start()
        asking = asyncio.create_task(session.ask("look", attachments=[large]))
        await asyncio.sleep(0.05)
        await session.cancel()
        assert not session.busy  # a cancelled turn has ended: the next prompt may come at once
        assert (await asking).status == "cancelled"
        missing = await session.ask("look", attachments=[tmp_path / "nothing"])
        assert missing.status == "error"
        assert "nothing" in str(missing.reason)
        assert (await session.ask("hello")).ok
        assert len(session._processes) == 1
    with pytest.raises(SessionError, match="has been closed"):
        await session.ask("hello")


@pytest.mark.parametrize("kind", ["new", "resumed", "branch"])
async def test_a_session_whose_first_cli_was_ended_before_it_answered(tmp_path: Path, kind: str) -> None:
    plan = setup(HostProvider(), tmp_path, scenario=conversation(history))
    first = await run_session("one", plan)
    if kind != "new":
        plan = replace(plan, past=find_past(first.folder, fork=kind == "branch"))
    async with open_session(plan) as session:
        await session.start()
        asking = asyncio.create_task(session.ask("never mind"))
        sent = session.folder.path / "stream.jsonl"
        while b"never mind" not in sent.read_bytes() and not asking.done():
            await asyncio.sleep(0)
        await session.cancel()
        assert (await asking).status == "cancelled"
        if kind != "resumed":
            # What a CLI writes first, a moment before the prompt.
            place = session.sandbox.home / ".claude/projects" / await project_key(session.sandbox)
            state = {"type": "mode", "mode": "normal", "sessionId": session.session_id}
            written = json.dumps(state) + "\n"
            if kind == "branch":  # and of its history the beginning
                past = await session.sandbox.read(place / f"{first.session_id}.jsonl")
                *begun, torn = (
                    past.decode().replace(str(first.session_id), session.session_id).splitlines()[:4]
                )
                written += "\n".join([*begun, torn[:50]])
            await session.sandbox.write(place / f"{session.session_id}.jsonl", written.encode())
        after = await session.ask("two")
    assert after.ok, after.reason
    said = str(after.text).split(" / ")
    assert said[-1] == "two"
    assert (said[0] == "one") is (kind != "new")
    assert after.session_id == about(session.folder.path)["session_id"]
    assert (after.session_id == first.session_id) is (kind == "resumed")
    rows = main_thread(session.folder.path, session.session_id)
    assert sum(row["type"] == "assistant" for row in rows) == (1 if kind == "new" else 2)


@pytest.mark.parametrize("kind", ["new", "resumed", "branch"])
async def test_a_session_whose_cli_was_killed_after_an_answer_goes_on_with_it(
    tmp_path: Path, kind: str
) -> None:
    def dying(c: Conversation) -> list[Block]:
        return [ToolUse("Bash", {"command": "kill -9 $PPID"})] if typed(c) == "die" else history(c)

    plan = setup(HostProvider(), tmp_path, scenario=conversation(dying, history))
    if kind != "new":
        first = await run_session("zero", plan)
        plan = replace(plan, past=find_past(first.folder, fork=kind == "branch"))
    async with open_session(plan) as session:
        one = await session.ask("one")
        died = await session.ask("die")
        assert died.status == "died"
        two = await session.ask("two")
    assert two.ok, two.reason
    assert one.session_id == two.session_id
    said = str(two.text).split(" / ")
    assert (said[0], said[-1]) == ("one" if kind == "new" else "zero", "two")
    assert "one" in said


@pytest.mark.docker
@pytest.mark.parametrize("command", ["/context", "/compact", "/clear"])
async def test_a_session_whose_only_prompt_was_a_command_survives_its_cli(
    provider_named: Callable[[str], Provider], snapshot_image: Snapshot, tmp_path: Path, command: str
) -> None:
    plan = setup(
        provider_named("docker"), tmp_path, snapshot=snapshot_image.id, scenario=conversation(history)
    )
    async with open_session(plan) as session:
        assert (await session.ask(command)).ok
        ident = session.session_id
        kill = 'for p in /proc/[0-9]*; do [ "$(cat "$p/comm")" != claude ] || kill -9 "${p#/proc/}"; done'
        await session.sandbox.run(["sh", "-c", kill])
        after = await session.ask("two")
        if not after.ok:  # its end was not known yet when the prompt was sent
            after = await session.ask("two")
    assert after.ok, after.reason
    assert after.session_id == ident
    assert command in str(after.text)  # what came before is in the conversation


async def test_a_transcript_holds_a_prompt_only_with_a_whole_row_of_it() -> None:
    sandbox = await HostProvider().create()
    try:
        path = sandbox.home / ".claude/projects/-app/s.jsonl"
        assert not await holds_any(sandbox, "s", ["a"])
        for row, held in {
            '{"type":"mode"}': False,
            '{"parentUuid":"a","type":"user","uuid":"b"}': False,
            '{"type":"user","uuid":"a","timesta': False,
            '{"type":"user","uuid":"b"}\n{"type":"user","uuid":"a","timesta': False,
            '{"type":"user","uuid":"a","userType":"external"}': True,
        }.items():
            await sandbox.write(path, row.encode())
            assert await holds_any(sandbox, "s", ["z", "a"]) is held
        assert not await holds_any(sandbox, "s", [])
    finally:
        await sandbox.close()


async def test_background_agents_owe_results_to_the_prompt_that_started_them(tmp_path: Path) -> None:
    async with open_session(setup(HostProvider(), tmp_path, scenario="background-agents")) as session:
        first = await session.ask("Ask two helpers.")
        second = await session.ask("And once more.")
    for result in (first, second):
        assert result.ok, result.reason
        assert len([m for m in result.messages if isinstance(m, ResultMessage)]) >= 2


async def test_what_an_earlier_prompt_left_in_the_background_is_no_answer_to_the_next(tmp_path: Path) -> None:
    def background(c: Conversation) -> list[Block]:
        if typed(c) == "begin":
            slow = {
                "command": "ls / > /dev/null; sleep 1; echo over",
                "run_in_background": True,
                "description": "slow",
            }
            return [ToolUse("Bash", slow)]
        return echo(c)

    async with open_session(
        setup(HostProvider(), tmp_path, scenario=conversation(background, say("begun")))
    ) as session:
        assert (await session.ask("begin")).text == "begun"
        for number in range(8):
            assert (await session.ask(f"hello {number}")).text == f"you said: hello {number}"
            await asyncio.sleep(0.2)


async def test_a_cancel_while_the_model_streams(provider: Provider, tmp_path: Path) -> None:
    streaming = asyncio.Event()

    def note(message: Message) -> None:
        if type(message).__name__ == "StreamEvent":
            streaming.set()

    def long_or_echo(c: Conversation) -> list[Block]:
        return [Text("word " * 200_000)] if typed(c) == "long" else echo(c)

    async with open_session(setup(provider, tmp_path, scenario=conversation(long_or_echo))) as session:
        asking = asyncio.create_task(session.ask("long", on_message=note))
        await asyncio.wait_for(streaming.wait(), 60)
        await session.cancel()
        assert (await asking).status == "cancelled"
        assert (await session.ask("hello")).text == "you said: hello"


async def test_a_session_goes_on_in_another_sandbox_and_forks(provider: Provider, tmp_path: Path) -> None:
    plan = setup(provider, tmp_path, scenario=conversation(history))
    first = await run_session("one", plan)
    past = find_past("latest", tmp_path)
    assert past.session_id == first.session_id
    second = await run_session("two", setup(provider, tmp_path, scenario=conversation(history), past=past))
    assert second.check().text == "one / two"
    assert second.session_id == first.session_id
    assert about(second.folder)["resumed_from"] == {
        "run_id": first.id, "session_id": first.session_id, "forked": False, "at": None,
    }  # fmt: skip
    # What the session had cost before is in the CLI's figure, and is not what this prompt cost.
    assert about(second.folder)["cost_before_usd"] == pytest.approx(first.total_cost_usd, abs=1e-9)
    assert second.cost_usd == pytest.approx(second.total_cost_usd - first.total_cost_usd, abs=1e-9)  # type: ignore[operator]
    # A second person who goes on from the first run gets a branch, and an explicit fork is one from the start.
    branch = await run_session("three", setup(provider, tmp_path, scenario=conversation(history), past=past))
    assert branch.check().text == "one / three"
    assert branch.session_id not in (None, first.session_id)
    fork = await run_session(
        "four",
        setup(provider, tmp_path, scenario=conversation(history), past=find_past(second.folder, fork=True)),
    )
    assert fork.check().text == "one / two / four"
    assert len({first.session_id, branch.session_id, fork.session_id}) == 3


async def test_a_session_goes_on_from_what_was_heard_before_it_was_mirrored(tmp_path: Path) -> None:
    """A desk that is killed at once leaves a stream, and a transcript that ends earlier, or none."""
    first = await run_session(
        "one", setup(HostProvider(), tmp_path, scenario=conversation(bash("echo a tool"), say("done")))
    )
    transcript = first.folder / "transcript" / f"{first.session_id}.jsonl"
    whole = transcript.read_text().splitlines(keepends=True)
    (first.folder / "run.json").write_text(
        json.dumps(about(first.folder) | {"status": "running", "prompts": [], "transcript_whole": False})
    )

    def asked(c: Conversation) -> list[Block]:
        return [Text(json.dumps(c.body["messages"]))]

    until_call = next(number for number, line in enumerate(whole) if '"tool_use"' in line)
    for written in ([], whole[:until_call], whole[: until_call + 1]):
        transcript.write_text("".join(written))
        again = await run_session(
            "two", setup(HostProvider(), tmp_path, scenario=conversation(asked), past=find_past(first.folder))
        )
        text = str(again.check().text)
        assert [text.count(part) for part in ('"one"', "echo a tool", '"done"')] == [1, 1, 1], text
        assert text.index('"one"') < text.index("echo a tool") < text.index('"done"') < text.index('"two"')
    transcript.unlink()
    (first.folder / "stream.jsonl").write_text("")
    with pytest.raises(RunFolderError, match="no transcript"):
        find_past(first.folder)


async def test_who_comes_while_a_session_goes_on_gets_a_branch(tmp_path: Path) -> None:
    async with open_session(setup(HostProvider(), tmp_path, scenario=conversation(history))) as session:
        first = await session.ask("one")
        other = await run_session(
            "two",
            setup(
                HostProvider(), tmp_path, scenario=conversation(history), past=find_past(session.folder.path)
            ),
        )
        assert "one" in str(other.check().text)
        assert other.session_id != first.session_id
        assert "two" not in str((await session.ask("three")).check().text)


async def test_what_an_agent_puts_in_the_way_takes_no_result_back(tmp_path: Path) -> None:
    spoil = bash('rm -rf "$MEMORY_FILE_PATH" && mkdir "$MEMORY_FILE_PATH"')
    result = await run_session(
        "go", setup(HostProvider(), tmp_path, scenario=conversation(spoil, say("done")))
    )
    assert result.check().text == "done"
    assert about(result.folder)["status"] == "success"
    assert "memory graph was not collected" in (result.folder / "stderr.log").read_text()


async def test_who_ended_before_they_said_anything_took_nothing(tmp_path: Path) -> None:
    first = await run_session("one", setup(HostProvider(), tmp_path))
    plan = setup(HostProvider(), tmp_path, past=find_past(first.folder))
    async with open_session(plan):
        pass
    second = await run_session("two", plan)
    third = await run_session("three", plan)
    assert second.session_id == first.session_id != third.session_id


async def test_a_session_goes_on_from_a_message(tmp_path: Path) -> None:
    plan = setup(HostProvider(), tmp_path, scenario=conversation(history))
    async with open_session(plan) as session:
        first = await session.ask("one")
        await session.ask("two")
    at = next(m.uuid for m in reversed(first.messages) if isinstance(m, AssistantMessage))
    past = find_past(session.folder.path, fork=True, at=at)
    branch = await run_session(
        "three", setup(HostProvider(), tmp_path, scenario=conversation(history), past=past)
    )
    assert branch.check().text == "one / three"


async def test_a_run_that_cannot_be_resumed_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run in"):
        find_past("latest", tmp_path)
    with pytest.raises(RunFolderError, match="no run nonsense"):
        find_past("nonsense", tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text('{"run_id": "empty", "session_id": null}')
    with pytest.raises(RunFolderError, match="no transcript"):
        find_past("empty", tmp_path)


async def test_tools_hooks_and_permissions_of_the_notebook_cross_the_stream(
    provider: Provider, tmp_path: Path
) -> None:
    asked: list[str] = []
    hooked: list[str] = []

    @tool("double", "Twice a number", {"number": int})
    async def double(given: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": f"twice is {2 * int(given['number'])}"}]}

    async def allow(name: str, given: dict[str, Any], _: Any) -> PermissionResultAllow | PermissionResultDeny:
        asked.append(name)
        if name == "Bash":
            return PermissionResultDeny(message="not today")
        return PermissionResultAllow()

    async def hook(given: Any, _: str | None, __: Any) -> Any:
        hooked.append(given["tool_name"])
        return {}

    options = SessionOptions(
        tools={"desk": create_sdk_mcp_server("desk", tools=[double])},
        can_use_tool=allow,
        hooks={"PreToolUse": [HookMatcher(hooks=[hook])]},
    )

    def load(_: Conversation) -> list[Block]:
        return [ToolUse("ToolSearch", {"query": "select:mcp__desk__double", "max_results": 1})]

    def call(_: Conversation) -> list[Block]:
        return [ToolUse("mcp__desk__double", {"number": 21}), ToolUse("Bash", {"command": "touch /tmp/x"})]

    result = await run_session(
        "go", setup(provider, tmp_path, options=options, scenario=conversation(load, call, results))
    )
    assert "twice is 42" in str(result.check().text)
    assert "not today" in str(result.text)
    assert "Bash" in asked
    assert {"mcp__desk__double", "Bash"} <= set(hooked)
    assert about(result.folder)["options"]["can_use_tool"].endswith("allow")


async def test_a_person_may_take_their_time_and_a_cancel_ends_the_question(tmp_path: Path) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def slow(name: str, given: dict[str, Any], _: ToolPermissionContext) -> Any:
        asked.set()
        try:
            await asyncio.sleep(9 if "quick" in given["command"] else 600)
        except asyncio.CancelledError:
            left.set()
            raise
        return PermissionResultAllow()

    def call(c: Conversation) -> list[Block]:
        return bash(f"touch /dev/null; echo {typed(c)}")(c)

    plan = setup(
        HostProvider(),
        tmp_path,
        options=SessionOptions(mcp=[], can_use_tool=slow),
        scenario=conversation(call, results),
        idle_timeout=6.0,
    )
    async with open_session(plan) as session:
        assert "quick" in str((await session.ask("quick")).check().text)
        asked.clear()
        asking = asyncio.create_task(session.ask("never"))
        await asyncio.wait_for(asked.wait(), 60)
        await session.cancel()
        cut = await asking
        assert (cut.status, cut.cut_short) == ("cancelled", ("Bash",))
        await asyncio.wait_for(left.wait(), 5)
        assert (await session.ask("quick again")).ok


async def test_a_question_that_is_cancelled_by_itself_is_answered(tmp_path: Path) -> None:
    """The SDK answers nothing when a callback's own work is cancelled: the CLI would wait for ever."""

    async def cancelled(*_: Any) -> Any:
        raise asyncio.CancelledError

    async def told(options: SessionOptions) -> str:
        plan = setup(
            HostProvider(), tmp_path, options=options, scenario=conversation(bash("touch x"), results)
        )
        async with asyncio.timeout(60):
            return str((await run_session("go", replace(plan, idle_timeout=20.0))).check().text)

    assert "the permission callback was cancelled" in await told(
        SessionOptions(mcp=[], can_use_tool=cancelled)
    )
    matchers = [HookMatcher(hooks=[cancelled])]
    await told(SessionOptions(mcp=[], allowed_tools=["Bash"], hooks={"PreToolUse": matchers}))


async def test_limits_on_turns_money_and_tools(provider: Provider, tmp_path: Path) -> None:
    async def ended(scenario: Any, **options: Any) -> RunResult:
        return await run_session(
            "go", setup(provider, tmp_path, scenario=scenario, options=replace(BASH, mcp=[], **options))
        )

    loop = conversation(*[bash("true")] * 9, say("done"))
    turns = await ended(loop, max_turns=2)
    assert (turns.status, turns.num_turns) == ("error", 3)  # the third is where the CLI notices
    assert str(turns.reason).startswith("error_max_turns")
    money = await ended(loop, max_budget_usd=0.000_001)
    assert money.status == "error"
    assert str(money.reason).startswith("error_max_budget_usd")
    assert money.cost_usd is not None
    assert money.cost_usd > 0.000_001
    tools = await ended(conversation(bash("echo it ran"), results), disallowed_tools=["Bash"])
    assert "it ran" not in str(tools.check().text)
    init = next(m for m in tools.messages if isinstance(m, SystemMessage) and m.subtype == "init")
    assert "Bash" not in init.data["tools"]
    whole = await ended(conversation(say("all at once")), partial_messages=False)
    assert whole.check().text == "all at once"
    assert not [m for m in whole.messages if isinstance(m, StreamEvent)]


async def test_an_answer_by_a_schema(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]}

    def structured(c: Conversation) -> list[Block]:
        return [ToolUse("StructuredOutput", {"colour": "red"})]

    result = await run_session(
        "Which colour?",
        setup(
            HostProvider(),
            tmp_path,
            options=SessionOptions(schema=schema),
            scenario=conversation(structured, say("done")),
        ),
    )
    assert result.check().structured == {"colour": "red"}


async def test_attachments_are_files_in_the_workspace(provider: Provider, tmp_path: Path) -> None:
    note = tmp_path / "a note.txt"
    note.write_text("the attached words\n")

    def see(c: Conversation) -> list[Block]:
        return [Text(str("the attached words" in str(c.body["messages"])))]

    plan = setup(provider, tmp_path / "runs", scenario=conversation(see))
    result = await run_session("Read it", plan, attachments=[note])
    assert result.check().text == "True"
    missing = await run_session("Read it", plan, attachments=[tmp_path / "absent.txt"])
    assert (missing.status, "absent.txt" in str(missing.reason)) == ("error", True)


async def test_a_callers_own_error_is_raised_and_the_session_stays(tmp_path: Path) -> None:
    def fail(_: Message) -> None:
        raise ZeroDivisionError("mine")

    async with open_session(setup(HostProvider(), tmp_path)) as session:
        with pytest.raises(ZeroDivisionError, match="mine"):
            await session.ask("one", on_message=fail)
        assert (await session.ask("two")).ok
    assert [entry["status"] for entry in about(session.folder.path)["prompts"]] == ["error", "success"]


async def test_an_error_of_the_callers_own_is_raised_whatever_its_kind(tmp_path: Path) -> None:
    def note(message: Message) -> None:
        raise SessionError("the caller's own")

    async with open_session(setup(HostProvider(), tmp_path)) as session:
        with pytest.raises(SessionError, match="the caller's own"):
            await session.ask("hello", on_message=note)
        assert (await session.ask("and again")).ok


async def test_the_model_changes_in_mid_session(tmp_path: Path) -> None:
    def model(c: Conversation) -> list[Block]:
        return [Text(c.body["model"])]

    async with open_session(setup(HostProvider(), tmp_path, scenario=conversation(model))) as session:
        assert (await session.ask("which?")).text == "claude-sonnet-4-5"
        await session.set_model("claude-haiku-4-5")
        assert (await session.ask("and now?")).text == "claude-haiku-4-5"


async def test_the_mirror_equals_the_transcript_of_the_cli(provider: Provider, tmp_path: Path) -> None:
    """What the store wrote while the session ran is what the CLI itself has on disk, entry for entry."""
    async with open_session(
        setup(provider, tmp_path, scenario=conversation(bash("ls /"), say("seen")))
    ) as session:
        await session.ask("look")
        found = await session.sandbox.run(
            ["sh", "-c", f'cat "$HOME"/.claude/projects/*/{session.session_id}.jsonl'],
            env={"HOME": str(session.sandbox.home)},
        )
        mirrored = (session.folder.path / "transcript" / f"{session.session_id}.jsonl").read_text()
    wrote = [line for line in found.check().text.splitlines() if line]
    safe = session.folder.redactor.text
    assert len(wrote) > 3
    assert _entries(mirrored) == _entries("\n".join(map(safe, wrote)))
    assert not any(line["message"]["type"] == "transcript_mirror" for line in stream(session.folder.path))


def _entries(text: str) -> list[Any]:
    """The entries that a conversation consists of; the CLI does not mirror its notes on requests."""
    entries = [json.loads(line) for line in text.splitlines()]
    return [entry for entry in entries if entry.get("uuid")]


async def test_the_store_passes_the_sdks_own_conformance_suite(tmp_path: Path) -> None:
    from claude_agent_sdk.testing import run_session_store_conformance

    from harvest_nb.session.store import TranscriptStore

    count = 0

    def make() -> Any:
        nonlocal count
        count += 1
        return TranscriptStore(tmp_path / str(count), "proj")

    make_store: Callable[[], Any] = make
    await run_session_store_conformance(make_store)
    assert count > 5


async def test_a_transcript_that_was_cut_is_read_and_goes_on(tmp_path: Path) -> None:
    from harvest_nb.session.store import TranscriptStore

    key: Any = {"project_key": "p", "session_id": "s"}
    path = tmp_path / "s.jsonl"
    path.write_bytes('{"type": "a"}\n{"type": "b", "text": "caf\u00e9'.encode()[:-1])
    store = TranscriptStore(tmp_path, "p")
    assert await store.load(key) == [{"type": "a"}]
    await store.append(key, [{"type": "c"}])
    assert await store.load(key) == [{"type": "a"}, {"type": "c"}]
