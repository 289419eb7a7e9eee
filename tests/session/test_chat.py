"""Conversations: several prompts, several sessions, one ledger."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import AssistantMessage, Message, ToolUseBlock

from harvest_nb.errors import RunFolderError, SessionError
from harvest_nb.sandbox.base import Provider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.chat import Chat
from harvest_nb.session.open import Setup
from harvest_nb.views.diagrams import check_run
from tests.session.conftest import BASH, about

pytestmark = pytest.mark.slow


def plan(provider: Provider, runs: Path, **changes: Any) -> Setup:
    return Setup(provider=provider, runs_dir=runs, options=BASH, scenario="conversation", **changes)


async def left(provider: Provider, chat: Chat) -> list[str]:
    """Sandboxes of this chat's own that are still there."""
    runs = {folder.name for folder in chat.folders}
    return [info.id for info in await provider.list() if info.labels.get("harvest.run") in runs]


def calls(event: asyncio.Event) -> Any:
    def note(message: Message) -> None:
        if isinstance(message, AssistantMessage) and any(
            isinstance(b, ToolUseBlock) for b in message.content
        ):
            event.set()

    return note


async def test_a_ledger_of_prompts_one_of_them_stopped_and_of_a_branch(
    provider: Provider, tmp_path: Path
) -> None:
    calling = asyncio.Event()
    async with Chat(plan(provider, tmp_path)) as chat:
        assert chat.frame.empty
        await chat.ask("hello")
        waiting = asyncio.create_task(chat.ask("wait", on_message=calls(calling)))
        await asyncio.wait_for(calling.wait(), 60)
        await chat.cancel()
        assert (await waiting).cut_short == ("Bash",)
        await chat.ask("and on")
        first = await left(provider, chat)
        await chat.fork()
        branch = await chat.ask("as a branch")
        assert len(first) == len(await left(provider, chat)) == 1
    assert await left(provider, chat) == []
    frame = chat.frame
    assert list(frame["prompt"]) == ["hello", "wait", "and on", "as a branch"]
    assert list(frame["status"]) == ["success", "cancelled", "success", "success"]
    assert list(frame["cut_short"]) == ["", "Bash", "", ""]
    assert frame["run_id"].nunique() == len(chat.folders) == 2
    assert branch.session_id not in {result.session_id for result in chat.results[:3]}
    # What a branch cost does not hold again what the session had cost before.
    assert branch.total_cost_usd > branch.cost_usd > 0  # type: ignore[operator]
    told = [about(folder)["total_cost_usd"] for folder in chat.folders]
    assert (
        sum(told)
        == pytest.approx(frame["cost_usd"].sum(), abs=1e-8)
        == pytest.approx(chat.cost_usd, abs=1e-8)
    )
    assert about(chat.folders[0])["prompt"] == "hello"
    assert [check_run(folder) for folder in chat.folders] == [[], []]


async def test_a_sandbox_that_went_away_is_followed_by_another_with_the_same_session(
    provider: Provider, tmp_path: Path
) -> None:
    async with Chat(plan(provider, tmp_path)) as chat:
        first = await chat.ask("hello")
        await chat.sessions[-1].sandbox.close()
        again = await chat.ask("here")
        assert (again.text, again.session_id) == ("You said: here", first.session_id)
    assert len(chat.folders) == 2
    assert check_run(chat.folders[-1]) == []


async def test_a_sandbox_that_went_before_anything_was_said(tmp_path: Path) -> None:
    async with Chat(plan(HostProvider(), tmp_path)) as chat:
        await (await chat.open()).sandbox.close()
        assert (await chat.ask("hello")).text == "You said: hello"
    assert await left(HostProvider(), chat) == []


async def test_a_stop_while_the_session_opens_keeps_it_for_the_next_prompt(
    provider: Provider, tmp_path: Path
) -> None:
    async with Chat(plan(provider, tmp_path)) as chat:
        for delay in (0.0, 0.1, 0.3):
            asking = asyncio.create_task(chat.ask("never mind"))
            await asyncio.sleep(delay)
            if not chat.busy:  # not even begun
                await asyncio.sleep(0)
            await chat.cancel()
            assert not chat.busy
            result = await asking
            assert (result.status, result.prompt) == ("cancelled", "never mind")
        assert (await chat.ask("hello")).text == "You said: hello"
        await chat.fork()
        asking = asyncio.create_task(chat.ask("not as a branch"))
        await asyncio.sleep(0)
        await chat.cancel()
        assert (await asking).status == "cancelled"
        assert (await chat.ask("a branch")).ok
    assert list(chat.frame["status"]) == [*["cancelled"] * 3, "success", "cancelled", "success"]
    assert list(chat.frame["run_id"]) == [chat.folders[0].name] * 4 + [chat.folders[1].name] * 2
    assert len(chat.folders) == len(chat.sessions) == 2
    kept = [entry["status"] for folder in chat.folders for entry in about(folder)["prompts"]]
    assert kept == list(chat.frame["status"])
    assert await left(provider, chat) == []


async def test_each_session_of_a_recorded_chat_has_a_cassette_of_its_own(tmp_path: Path) -> None:
    first, second = tmp_path / "talk.cassette", tmp_path / "talk-2.cassette"
    async with Chat(plan(HostProvider(), tmp_path / "runs", record=first)) as chat:
        await chat.ask("hello")
        await chat.fork()
        before = first.read_bytes()
        await chat.ask("again")
    assert first.read_bytes() == before
    assert b"again" in second.read_bytes()
    async with Chat(plan(HostProvider(), tmp_path / "runs", endpoint=first)) as chat:
        assert (await chat.ask("hello")).text == "You said: hello"


async def test_a_closed_chat_takes_nothing(tmp_path: Path) -> None:
    chat = Chat(plan(HostProvider(), tmp_path))
    closing = asyncio.gather(chat.ask("hello"), chat.close(), chat.close(), return_exceptions=True)
    assert isinstance((await closing)[0], SessionError)
    with pytest.raises(SessionError, match="has been closed"):
        await chat.ask("hello")
    assert await left(HostProvider(), chat) == []


async def test_any_task_may_open_ask_and_close(tmp_path: Path) -> None:
    chat = Chat(plan(HostProvider(), tmp_path))
    opening = asyncio.create_task(chat.ask("never mind"))
    await asyncio.sleep(0.05)
    opening.cancel()  # whoever waits may leave; the session opens all the same
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert (await asyncio.create_task(chat.ask("hello"))).ok
    await asyncio.create_task(chat.close())
    await chat.close()
    assert await left(HostProvider(), chat) == []
    assert len(chat.folders) == 1


async def test_closing_while_it_opens_leaves_nothing(tmp_path: Path) -> None:
    chat = Chat(plan(HostProvider(), tmp_path))
    asking = asyncio.create_task(chat.ask("never mind"))
    await asyncio.sleep(0.02)
    await chat.close()
    with pytest.raises(Exception, match="closed before it began"):
        await asking
    assert await left(HostProvider(), chat) == []


async def test_model_and_mode_hold_for_later_sessions_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    chat = Chat(plan(HostProvider(), tmp_path))
    with pytest.raises(RunFolderError, match="nothing to fork"):
        await chat.fork()
    with pytest.raises(RunFolderError, match="no run nonsense"):
        await chat.resume("nonsense")
    await chat.set_model("claude-haiku-4-5")
    async with chat:
        assert (await chat.ask("hello")).ok
        await chat.set_permission_mode("plan")
        await chat.set_model("claude-opus-4-5")
    assert about(chat.folders[0])["options"]["model"] == "claude-haiku-4-5"
    assert chat.setup.options.model == "claude-opus-4-5"
    assert chat.setup.options.permission_mode == "plan"
