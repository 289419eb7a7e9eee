"""What Daytona refuses or leaves undone is told soon, in the run's problems too, and takes back no outcome."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr

from harvest_nb.daytona_local import LocalDaytona, local_daytona
from harvest_nb.engine import DockerClient
from harvest_nb.errors import SandboxError
from harvest_nb.sandbox.daytona import Account, DaytonaProvider
from harvest_nb.session.open import Setup, open_session
from harvest_nb.snapshot import Snapshot
from harvest_nb.tables import load
from tests.session.conftest import BASH, about, conversation, say

pytestmark = pytest.mark.docker
SOON = 5.0
REAP = "harvest-nb sandboxes --reap --provider daytona"


@pytest.fixture
def provider(daytona: LocalDaytona, snapshot_image: Snapshot) -> DaytonaProvider:
    """Less patient than by default."""
    account = Account(SecretStr(daytona.api_key), daytona.api_url)
    return DaytonaProvider(
        account, snapshot=snapshot_image.id, start_timeout=30, patience=4, delete_timeout=5
    )


async def told(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Wait until the log says so."""
    async with asyncio.timeout(SOON):
        while words not in caplog.text:
            await asyncio.sleep(0.05)


async def test_a_lost_heartbeat_and_a_refused_deletion_are_the_runs_problems_and_leave_its_outcome(
    daytona: LocalDaytona,
    provider: DaytonaProvider,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harvest_nb.sandbox.daytona.sandbox._HEARTBEAT", 0.1)
    script = conversation(say("done"))
    setup = Setup(provider=provider, runs_dir=tmp_path, options=BASH, scenario=script)
    async with open_session(setup) as session:
        daytona.faults.parse("heartbeat-lost=0*1")
        result = await session.ask("go")
        assert session.sandbox.problems == []  # one that heals is none
        daytona.faults.parse("heartbeat-lost")
        await told(caplog, "heartbeats")
        daytona.faults.clear()
        daytona.faults.parse("delete-forbidden")
    assert result.ok
    assert about(result.folder)["status"] == "success"
    lost, refused = sorted(about(result.folder)["problems"], key=lambda text: REAP in text)
    assert session.sandbox.id in lost
    assert "heartbeats" in lost
    assert "permission" in refused
    assert REAP in caplog.text
    assert list(load(result.folder).problems["reason"]).count("recorder") == 2
    daytona.faults.clear()
    assert await provider.reap() == [session.sandbox.id]


async def test_a_deletion_that_never_happens_is_told_while_it_is_waited_for(
    daytona: LocalDaytona, provider: DaytonaProvider, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox = await provider.create()
    daytona.faults.parse("stuck-deleting")
    closing = asyncio.create_task(sandbox.close())
    await told(caplog, "not deleted yet")
    await closing
    assert REAP in caplog.text
    assert REAP in sandbox.problems[0]
    assert [info.held for info in await provider.list({"harvest.sandbox": sandbox.id})] == [False]
    daytona.faults.clear()
    assert await provider.reap() == [sandbox.id]


async def test_a_key_that_is_refused_at_the_end_is_a_problem(
    daytona: LocalDaytona, provider: DaytonaProvider, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox = await provider.create()
    sandbox.remote._sandbox_api.api_client.default_headers["Authorization"] = "Bearer revoked"
    await sandbox.close()
    assert REAP in caplog.text
    assert REAP in sandbox.problems[0]
    assert await provider.reap() == [sandbox.id]


async def test_a_rate_limit_without_end_is_told_and_ends_with_its_patience(
    daytona: LocalDaytona, provider: DaytonaProvider, caplog: pytest.LogCaptureFixture
) -> None:
    daytona.faults.parse("rate-limit=1")
    async with asyncio.timeout(15):  # not the patience once more to see whether anything is left
        creating = asyncio.create_task(provider.create())
        await told(caplog, "4 s in all")
        with pytest.raises(SandboxError, match="Too many requests"):
            await creating


async def test_a_server_that_dies_is_told_soon(
    engine: DockerClient, snapshot_image: Snapshot, caplog: pytest.LogCaptureFixture
) -> None:
    with local_daytona(engine) as server:
        account = Account(SecretStr(server.api_key), server.api_url)
        provider = DaytonaProvider(account, snapshot=snapshot_image.id, delete_timeout=2)
        sandbox = await provider.create()
        process = await sandbox.spawn(["sleep", "60"])
    waiting = asyncio.create_task(process.wait())
    await told(caplog, "cannot be reached")
    assert "DAYTONA_API_URL" in caplog.text
    await sandbox.close()
    assert REAP in sandbox.problems[-1]
    await asyncio.gather(waiting, return_exceptions=True)
