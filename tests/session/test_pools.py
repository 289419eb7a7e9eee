"""Runs with `pool=n`: the next one finds its sandbox ready, and nothing is left of those that nobody took."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from harvest_nb.errors import SessionError
from harvest_nb.sandbox.base import Limits, Provider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.sandbox.pool import Relabelling
from harvest_nb.sandbox.pools import _shared, close_pools, shared_pool
from harvest_nb.session.open import Setup
from harvest_nb.session.run import run_session
from harvest_nb.sessions import plan
from tests.session.conftest import about
from tests.session.test_faults import HERE, setup
from tests.session.test_leaving import nothing_left

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(params=HERE)
def provider(request: pytest.FixtureRequest, provider_named: Callable[[str], Provider]) -> Provider:
    return provider_named(request.param)


async def there(provider: Provider, ids: set[str]) -> set[str]:
    return {info.id for info in await provider.list()} & ids


async def test_runs_one_after_another_share_a_pool(provider: Provider, tmp_path: Path) -> None:
    assert isinstance(provider, Relabelling)
    async with nothing_left(provider, tmp_path):
        warm = setup(provider, tmp_path, pool=2, limits=Limits(pids=500))
        first = (await run_session("one", warm)).check()
        (pool,) = _shared[asyncio.get_running_loop()].pools.values()
        assert await shared_pool(provider, 1, limits=Limits(pids=500)) is pool
        await pool.filled()
        ready = {each.sandbox.id for each in pool._warm}
        assert len(ready) == 2
        others = await asyncio.gather(*(run_session(f"run {n}", warm) for n in range(3)))
        used = [about(result.folder)["sandbox_id"] for result in (first, *others)]
        assert len(set(used)) == 4
        assert ready <= set(used[1:])
        assert [result.text for result in others] == [f"you said: run {n}" for n in range(3)]
        for result in others:
            assert await provider.list({"harvest.run": result.id}) == []
        await run_session("another shape", replace(warm, limits=Limits(pids=400)))
        assert len(_shared[asyncio.get_running_loop()].pools) == 2
        await close_pools()
        assert asyncio.get_running_loop() not in _shared
        await close_pools()


@pytest.mark.parametrize("how", ["made", "making"])
async def test_a_loop_that_ends_closes_its_pools(how: str, provider: Provider, tmp_path: Path) -> None:
    before = {info.id for info in await provider.list()}
    program = [sys.executable, "-W", "error", "-m", "tests.session.pooled"]
    done = await asyncio.to_thread(
        lambda: subprocess.run(
            [*program, provider.name, tmp_path, how],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
        )
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert len(told["ready"]) >= 2
    made = {info.id: info for info in await provider.list() if info.id not in before}
    assert not set(made) & {*told["used"], *told["ready"]}
    assert [info for info in made.values() if not info.held] == []


async def test_a_kernel_that_ends_closes_its_pools(provider: Provider, tmp_path: Path) -> None:
    kernel = AsyncKernelManager()
    log = (tmp_path / "kernel.log").open("w+")
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    await kernel.start_kernel(env=env, cwd=str(REPOSITORY), stdout=log, stderr=log)
    client = kernel.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        runs = tmp_path / "runs"
        said = await output(
            client,
            "from tests.session.pooled import *; import tests.session.pooled as pooled\n"
            f"await pooled.main({provider.name!r}, {str(runs)!r}, 'made')",
        )
        ready = set(json.loads(said)["ready"])
        assert await there(provider, ready) == ready
        # The next cell still finds the pool.
        again = await output(client, f"await pooled.main({provider.name!r}, {str(runs)!r}, 'made')")
        assert ready == set(json.loads(again)["used"])
        ready = set(json.loads(again)["ready"])
    finally:
        client.stop_channels()
        await kernel.shutdown_kernel()
    assert await there(provider, ready) == set()
    log.seek(0)
    assert "Traceback" not in log.read()
    log.close()


async def output(client: AsyncKernelClient, code: str) -> str:
    """What a cell prints; its errors are raised."""
    said: list[str] = []

    def note(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            said.append(message["content"]["text"])

    reply = await client.execute_interactive(code, output_hook=note, timeout=120)
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(said)


async def test_what_a_killed_process_leaves_ends_by_itself(provider: Provider, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.session.pooled", provider.name, tmp_path, "killed", "15"],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    ) as desk:  # fmt: skip
        assert desk.stdout is not None
        ready = set(json.loads(await asyncio.to_thread(desk.stdout.readline))["ready"])
        assert len(await there(provider, ready)) == 2
        desk.kill()
    deadline = time.monotonic() + 60
    while await there(provider, ready):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


def test_a_pool_that_makes_no_sense() -> None:
    assert plan(provider="host", pool=2).pool == 2
    with pytest.raises(SessionError, match="pool=-1"):
        Setup(provider=HostProvider(), pool=-1).checked()

    class Plain:
        name = "plain"

    with pytest.raises(SessionError, match="'plain' keeps no sandboxes ready"):
        Setup(provider=Plain(), pool=1).checked()  # type: ignore[arg-type]
