"""What the stream sends toward a sandbox, without one."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from harvest_nb.sandbox.daytona.stream import _Command
from harvest_nb.sandbox.relayd.lines import LineReader


@pytest.mark.parametrize("data", [os.urandom(500_000), b"a prompt " * 60_000], ids=["dense", "text"])
async def test_one_call_carries_no_more_than_a_slow_network_can(data: bytes) -> None:
    calls: list[str] = []

    async def send(_session: str, _id: str, text: str, request_timeout: float) -> None:
        calls.append(text)

    sandbox: Any = SimpleNamespace(process=SimpleNamespace(send_session_command_input=send))
    command = _Command(sandbox, set(), 20)
    command.write(data)
    pushing = asyncio.create_task(command._push())
    async with asyncio.timeout(10):
        while command._outgoing:
            await asyncio.sleep(0.01)
    pushing.cancel()
    await asyncio.gather(pushing, return_exceptions=True)
    assert b"".join(LineReader().feed("".join(calls).encode())) == data
    assert max(map(len, calls)) <= 64 * 1024
    assert len(calls) < 20
