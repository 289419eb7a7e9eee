"""One run: a prompt in, every message out and on disk, to a result or an end that says why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from claude_agent_sdk import Message

from harvest_nb.errors import SandboxGone, SessionError
from harvest_nb.session.folder import RunFolder
from harvest_nb.session.open import Setup, open_session
from harvest_nb.session.result import RunResult
from harvest_nb.session.session import Session

__all__ = ["run_session"]


async def run_session(
    prompt: str,
    setup: Setup,
    *,
    attachments: Sequence[Path | str] = (),
    on_message: Callable[[Message], None] = lambda _: None,
    on_cancelled: Callable[[RunResult], None] = lambda _: None,
) -> RunResult:
    """Run one prompt in a session of its own and record it.

    Args:
        attachments: files of the desk that go along with the prompt.
        on_message: called with each typed message as it comes.
        on_cancelled: called with what there is of the result, when the calling task is cancelled.

    Returns:
        The result, whatever its status; `.check()` raises unless it is a success.

    Raises:
        TokenError: a live run without `CLAUDE_CODE_OAUTH_TOKEN`.
        SandboxError, EngineError, EndpointError, RunFolderError: something could not be started or recorded.
    """
    if not prompt.strip():
        raise SessionError("The prompt is empty", hint="say what the agent should do")
    folders: list[RunFolder] = []
    session: Session | None = None
    began = time.monotonic()
    try:
        async with open_session(setup, prompt, on_folder=folders.append) as session:
            return await session.ask(prompt, attachments=attachments, on_message=on_message, began=began)
    except asyncio.CancelledError:
        if session is not None and session.results:
            on_cancelled(session.results[-1])
        elif folders:
            about = folders[0].about
            on_cancelled(RunResult.without_session(folders[0], prompt, about["status"], about["exit_reason"]))
        raise
    except (SandboxGone, SessionError) as error:
        if not folders:
            raise
        if session is not None and session.results:
            return session.results[-1]  # known before the session could not be put away
        return RunResult.without_session(folders[0], prompt, folders[0].about["status"], error.message)
