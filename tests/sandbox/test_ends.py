"""However the relay in a sandbox ends, whoever waits hears of it, and soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from harvest_nb.errors import SandboxGone
from harvest_nb.sandbox.base import Provider


@pytest.fixture
def provider(request: pytest.FixtureRequest, provider_named: Callable[[str], Provider]) -> Provider:
    return provider_named(request.param)


async def ends_soon(sandbox: Any, waiting: list[asyncio.Task[Any]], reason: str) -> None:
    async with asyncio.timeout(20):
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, SandboxGone), outcome
            assert reason in str(outcome)
    with pytest.raises(SandboxGone, match=reason):
        await sandbox.run(["true"])
    assert sandbox.gone


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        pytest.param("docker", "ended by signal 9", marks=pytest.mark.docker),
        pytest.param("daytona", "relay has ended", marks=pytest.mark.docker),
        ("host", "exit code -9"),
    ],
    indirect=["provider"],
)
async def test_a_relay_that_is_killed(provider: Provider, reason: str) -> None:
    sandbox: Any = await provider.create()
    async with sandbox:
        killing = ["sh", "-c", "sleep 1; kill -9 $PPID; sleep 60"]
        process = await sandbox.spawn(["sleep", "60"])
        waiting = [asyncio.create_task(sandbox.run(argv)) for argv in (["sleep", "60"], killing)]
        waiting.append(asyncio.create_task(process.wait()))
        await ends_soon(sandbox, waiting, reason)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("provider", "reason"),
    [("docker", "lease lapsed"), ("daytona", "want of a renewed lease")],
    indirect=["provider"],
)
async def test_a_lease_that_lapses_while_the_desk_sleeps(provider: Provider, reason: str) -> None:
    sandbox: Any = await provider.create(ttl=6)
    async with sandbox:
        waiting = [asyncio.create_task(sandbox.run(["sleep", "60"]))]
        await asyncio.sleep(0.5)
        time.sleep(10)  # as a machine that sleeps does
        await ends_soon(sandbox, waiting, reason)
