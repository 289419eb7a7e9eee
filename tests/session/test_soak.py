"""The full counts of what `test_leaving` does a few times."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from harvest_nb.sandbox.base import Provider
from harvest_nb.session.run import run_session
from tests.session.test_faults import HERE, setup
from tests.session.test_leaving import held, killed_at_random, nothing_left

pytestmark = pytest.mark.slow


@pytest.fixture(params=HERE)
def provider(request: pytest.FixtureRequest, provider_named: Callable[[str], Provider]) -> Provider:
    return provider_named(request.param)


async def started_and_cancelled(provider: Provider, runs: Path, count: int) -> list[int]:
    """So many sessions in a row, each cancelled at a random instant; this process's memory after each, in bytes."""
    chance = random.Random(int.from_bytes(os.urandom(4), "big"))
    resident = []
    for _ in range(count):
        task = asyncio.create_task(run_session("hello", setup(provider, runs)))
        await asyncio.sleep(chance.uniform(0, 2.0))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        held(provider)  # collects garbage
        _give_back()
        resident.append(psutil.Process().memory_info().rss)
    return resident


def _give_back() -> None:
    """What the allocator keeps for later is no session's: have it given back to the system (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def test_a_few_sessions_started_and_cancelled_in_a_row(provider: Provider, tmp_path: Path) -> None:
    async with nothing_left(provider, tmp_path):
        await started_and_cancelled(provider, tmp_path, 3)


@pytest.mark.soak
async def test_a_hundred_sessions_started_and_cancelled_in_a_row(provider: Provider, tmp_path: Path) -> None:
    began = time.monotonic()
    async with nothing_left(provider, tmp_path):
        resident = await started_and_cancelled(provider, tmp_path, 100)
    early, late = min(resident[30:50]), min(resident[-20:])
    print(
        f"\n{provider.name}: 100 sessions in {time.monotonic() - began:.0f} s, "
        f"memory {early / 1e6:.1f} MB after the first third, {late / 1e6:.1f} MB at the end"
    )
    # Less than 50 kB a session. Before that caches fill, of compiled patterns and of the engine's client.
    assert late - early < 50 * 50_000


@pytest.mark.soak
async def test_fifty_kernels_killed_at_random_instants(provider: Provider, tmp_path: Path) -> None:
    chance = random.Random(int.from_bytes(os.urandom(4), "big"))
    began = time.monotonic()
    for number in range(50 if provider.name == "docker" else 10):
        await killed_at_random(provider, tmp_path / str(number), chance)
    print(f"\n{provider.name}: all kills in {time.monotonic() - began:.0f} s")
