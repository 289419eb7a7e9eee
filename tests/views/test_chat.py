"""The notebook's view of a chat, pressed as a person presses it, over a real session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny, ToolPermissionContext

from harvest_nb import chat, resume, run
from harvest_nb.errors import SessionError, SettingsError
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.chat import Chat
from harvest_nb.session.open import Setup
from harvest_nb.session.options import SessionOptions
from harvest_nb.views.diagrams import check_run
from harvest_nb.views.panel import Panel
from harvest_nb.views.permission import CellQuestions

pytestmark = pytest.mark.slow


async def until(true: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.02)


def shown(panel: Any) -> str:
    return str(panel.bundle()["text/html"])


async def test_typing_stopping_and_ending(tmp_path: Path) -> None:
    setup = Setup(
        provider=HostProvider(),
        runs_dir=tmp_path,
        scenario="conversation",
        options=SessionOptions(allowed_tools=["Bash"]),
    )
    talk = Chat(setup)
    panel = Panel(talk, ask=False)
    await until(lambda: "ready" in shown(panel))

    def say(text: str) -> None:
        panel.input.value = text
        panel.send.click()

    say("slow please")
    await until(lambda: "This answer" in shown(panel))
    assert panel.send.disabled
    panel.stop.click()
    await until(lambda: "cancelled from the desk" in shown(panel))
    await until(lambda: not panel.send.disabled)
    say("<b>bold</b>")
    await until(lambda: "You said: &lt;b&gt;bold" in shown(panel))
    await until(lambda: not panel.send.disabled)
    assert "2 prompts" in shown(panel)
    assert "so far" in shown(panel)
    panel.end.click()
    await until(lambda: "ended, recorded in" in shown(panel))
    assert panel.input.disabled
    assert list(talk.frame["status"]) == ["cancelled", "success"]
    assert check_run(talk.folders[0]) == []
    runs = {folder.name for folder in talk.folders}
    assert not [s for s in await HostProvider().list() if s.labels.get("harvest.run") in runs]


async def test_questions_are_buttons(tmp_path: Path) -> None:
    async with Chat(Setup(provider=HostProvider(), runs_dir=tmp_path, scenario="ask-permission")) as talk:
        panel = Panel(talk, ask=True)
        questions = panel._questions
        assert questions is not None
        buttons = {button.description: button for button in questions.view.children[1].children}
        for press, says in (("Deny", "I was not allowed"), ("Always", "says hello"), (None, "says hello")):
            saying = asyncio.create_task(panel.say("write"))
            if press is not None:
                await until(lambda: questions.view.layout.display != "none")
                assert "May the agent use Write?" in questions.view.children[0].value
                await asyncio.sleep(0.6)  # two clicks in less than half a second are one
                buttons[press].click()
            assert says in str((await saying).text)
            assert questions.view.layout.display == "none"
        stopping = asyncio.create_task(panel.say("write"))
        questions._always.clear()
        await until(lambda: questions.view.layout.display != "none")
        panel.stop.click()
        assert (await stopping).status == "cancelled"
        await panel.close()
    assert check_run(talk.folders[0]) == []


async def test_a_double_click_answers_one_question() -> None:
    asking = CellQuestions()
    row = asking.view.children[1]
    context = ToolPermissionContext()
    first, second = (asyncio.create_task(asking("Bash", {"command": c}, context)) for c in ("ls", "rm -rf x"))
    await asyncio.sleep(0.02)
    row.children[0].click()
    await asyncio.sleep(0.02)
    row.children[0].click()
    assert isinstance(await first, PermissionResultAllow)
    await asyncio.sleep(0.6)
    assert not second.done()
    row.children[2].click()
    assert isinstance(await second, PermissionResultDeny)


async def test_a_second_prompt_leaves_the_first_ones_view_as_it_is(tmp_path: Path) -> None:
    talk = Chat(Setup(provider=HostProvider(), runs_dir=tmp_path, scenario="conversation"))
    panel = Panel(talk, ask=False)
    panel.input.value = "slow please"
    panel.send.click()
    await until(lambda: "This answer" in shown(panel))
    with pytest.raises(SessionError, match="Another prompt"):
        await panel.say("two")
    assert (panel.send.disabled, panel.stop.disabled) == (True, False)
    panel.stop.click()
    await until(lambda: "cancelled from the desk" in shown(panel))
    await panel.close()


async def test_prompts_without_anybody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where: dict[str, Any] = {"provider": "host", "runs_dir": tmp_path}
    waiting = chat(prompts=["hello", "again"], **where)
    assert "await it" in repr(waiting)
    talk = await waiting
    assert [result.text for result in talk.results] == ["You said: hello", "You said: again"]
    assert "$" in repr(talk)
    assert "You said: again" in capsys.readouterr().out
    more = await resume(talk.folder or "", "and on", on_message=lambda _: None, **where)
    assert more.text == "You said: and on"
    assert more.session_id == talk.results[0].session_id
    with pytest.raises(SettingsError, match="in a notebook"):
        chat(**where)
    with pytest.raises(SettingsError, match="nobody to ask"):
        chat(prompts=["x"], can_use_tool="ask", **where)
    with pytest.raises(SettingsError, match="for mcp"):
        await run("x", mcp="perhaps", **where)
