"""The options that a session hands to the SDK."""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
from claude_agent_sdk import ClaudeAgentOptions, HookMatcher, PermissionResultAllow

from harvest_nb.errors import SessionError
from harvest_nb.session.options import SessionOptions, recordable, sdk_options


async def options(**chosen: Any) -> ClaudeAgentOptions:
    async def read(_: PurePosixPath) -> bytes:
        return b"a rule"

    here: Any = SimpleNamespace(
        read=read, workdir=PurePosixPath("/app"), home=PurePosixPath("/home"), isolated=True
    )
    return await sdk_options(here, SessionOptions(mcp=[], **chosen), ())


class Questions:
    """A callback that is an object, as the terminal's is."""

    async def __call__(self, *_: Any) -> PermissionResultAllow:
        return PermissionResultAllow()


async def given_up(*_: Any) -> Any:
    raise asyncio.CancelledError


@pytest.mark.parametrize("extra", [False, True])
async def test_a_callback_that_is_cancelled_by_itself_says_so(extra: bool) -> None:
    callbacks: dict[str, Any] = {
        "can_use_tool": given_up,
        "hooks": {"PreToolUse": [HookMatcher(matcher="Bash", hooks=[given_up], timeout=7)]},
    }
    made = await options(**({"extra": callbacks} if extra else callbacks))
    assert made.can_use_tool is not None
    with pytest.raises(SessionError, match="the permission callback was cancelled"):
        await made.can_use_tool("Bash", {}, None)  # type: ignore[arg-type]
    (matcher,) = (made.hooks or {})["PreToolUse"]
    assert (matcher.matcher, matcher.timeout) == ("Bash", 7)
    with pytest.raises(SessionError, match="the PreToolUse hook was cancelled"):
        await matcher.hooks[0]({}, None, {})  # type: ignore[arg-type, typeddict-item]
    assert recordable(made)["can_use_tool"] == "given_up"


async def test_a_question_that_is_withdrawn_stays_cancelled() -> None:
    async def slow(*_: Any) -> Any:
        await asyncio.sleep(60)

    made = await options(can_use_tool=slow)
    assert made.can_use_tool is not None
    asking = asyncio.ensure_future(made.can_use_tool("Bash", {}, None))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()


async def test_a_callback_that_is_an_object_is_asked_and_named() -> None:
    made = await options(can_use_tool=Questions())
    assert made.can_use_tool is not None
    assert isinstance(await made.can_use_tool("Bash", {}, None), PermissionResultAllow)  # type: ignore[arg-type]
    assert recordable(made)["can_use_tool"] == "Questions"
