"""What a prompt is booked as, whatever happens while it ends; with a CLI that is made up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions

from harvest_nb.endpoint import Endpoint
from harvest_nb.errors import SessionError
from harvest_nb.redact import Redactor
from harvest_nb.session.folder import RunFolder
from harvest_nb.session.session import Session
from harvest_nb.session.turn import Prompted
from tests.session.conftest import about


class SlowLink:
    """Answers no interrupt and takes a moment to end."""

    alive, cost, brought = True, 0.0, 0.0

    def __init__(self) -> None:
        self.client = SimpleNamespace(interrupt=self.interrupt)
        self.stops = self.stopped = 0
        self.stopping = asyncio.Event()

    async def interrupt(self) -> None:
        raise SessionError("no")

    async def stop(self, *, kill: bool = False) -> None:
        self.stops += 1
        self.stopping.set()
        await asyncio.sleep(0.05)
        self.stopped += 1


class Under(Session):
    """A session whose prompt is under way at once."""

    fails: Exception | None = None

    async def _prepared(self, turn: Prompted, attachments: Any) -> None:
        turn.sent, turn.init = True, {}
        if self.fails is not None:
            raise self.fails


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path, Redactor(), {"endpoint": "test"})
    yield made
    made.close()


def session(folder: RunFolder) -> tuple[Under, SlowLink]:
    endpoint = Endpoint(0, "secret")
    made = Under(
        SimpleNamespace(), folder, ClaudeAgentOptions(), {},
        session_id="s", begin=lambda options: options, endpoint=endpoint, mcp="warn", idle_timeout=60,
    )  # fmt: skip
    link: Any = SlowLink()
    made._link = link
    return made, link


async def test_a_second_cancel_does_not_turn_a_cancelled_prompt_into_an_error(folder: RunFolder) -> None:
    made, link = session(folder)
    asking = asyncio.create_task(made.ask("hi"))
    await asyncio.sleep(0)
    asking.cancel()
    await link.stopping.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (made.results[-1].status, made.results[-1].reason) == ("cancelled", "cancelled from the desk")
    assert [entry["status"] for entry in about(folder.path)["prompts"]] == ["cancelled"]
    assert link.stopped == 1


@pytest.mark.parametrize("error", [SessionError("this ended it"), ValueError("this ended it")])
async def test_a_cancel_while_the_cli_is_ended_hides_no_reason(folder: RunFolder, error: Exception) -> None:
    made, link = session(folder)
    made.fails = error
    asking = asyncio.create_task(made.ask("hi"))
    await link.stopping.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert made.results[-1].status == "error"
    assert "this ended it" in str(made.results[-1].reason)
    assert link.stopped == 1


async def test_a_ledger_that_cannot_be_written_keeps_no_cancel_waiting(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = session(folder)

    def save(**_: Any) -> None:
        raise OSError("as no RunFolderError")

    monkeypatch.setattr(folder, "save", save)
    asking = asyncio.create_task(made.ask("hi"))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await made.cancel()
    with pytest.raises(OSError, match="as no RunFolderError"):
        await asking
    assert made.results[-1].status == "cancelled"
