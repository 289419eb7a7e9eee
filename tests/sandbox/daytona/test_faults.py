"""What Daytona's users complain about, one fault a test: nothing is lost, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from pydantic import SecretStr

from harvest_nb.daytona_local import FAULTS, LocalDaytona
from harvest_nb.errors import SandboxError, SandboxGone, SettingsError
from harvest_nb.sandbox.daytona import Account, DaytonaProvider
from harvest_nb.snapshot import Snapshot
from tests.sandbox.daytona.conftest import Left, soon_empty

pytestmark = pytest.mark.docker


@pytest.fixture
def provider(daytona: LocalDaytona, snapshot_image: Snapshot) -> DaytonaProvider:
    """Less patient than by default."""
    account = Account(SecretStr(daytona.api_key), daytona.api_url)
    return DaytonaProvider(
        account, snapshot=snapshot_image.id, start_timeout=30, patience=8, delete_timeout=20
    )


async def works(provider: DaytonaProvider, left: Left, expected: int = 1) -> None:
    """A sandbox is made, does something, and is the only one; then nothing is left."""
    async with await provider.create(labels={"harvest.run": "f"}) as sandbox:
        assert (await sandbox.run(["echo", "done"], timeout=60)).text == "done\n"
        assert len(await provider.list({"harvest.run": "f"})) == expected
    assert await soon_empty(left)


async def test_a_creation_whose_answer_is_lost(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    daytona.faults.parse("create-response-lost=0*1")
    await works(provider, left)


async def test_a_rate_limit(daytona: LocalDaytona, provider: DaytonaProvider, left: Left) -> None:
    daytona.faults.parse("rate-limit=0.3*5")
    await works(provider, left)


async def test_a_rate_limit_without_end(daytona: LocalDaytona, provider: DaytonaProvider, left: Left) -> None:
    daytona.faults.parse("rate-limit=60")
    with pytest.raises(SandboxError, match="Too many requests") as caught:
        await provider.create()
    assert "rate of calls" in caught.value.hint
    assert left() == []


async def test_bursts_of_502_anywhere(daytona: LocalDaytona, provider: DaytonaProvider, left: Left) -> None:
    async with await provider.create() as sandbox:
        for _ in range(3):
            daytona.faults.parse("bad-gateway=0*3")
            assert (await sandbox.run(["echo", "done"], timeout=60)).text == "done\n"
        daytona.faults.parse("bad-gateway=0*3")
    daytona.faults.parse("bad-gateway=0*3")
    await works(provider, left)


async def test_a_sandbox_that_is_stuck_in_its_start_is_replaced(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "_start_timeout", 3.0)
    daytona.faults.parse("stuck-starting=0*1")
    await works(provider, left)
    daytona.faults.parse("stuck-starting")
    with pytest.raises(SandboxError, match="stayed in “starting”"):
        await provider.create(labels={"harvest.run": "f"})
    assert await provider.list({"harvest.run": "f"}) == []


async def test_a_sandbox_that_fails_as_it_starts_is_replaced(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    daytona.faults.parse("start-failed=0*1")
    await works(provider, left)
    daytona.faults.parse("start-failed")
    with pytest.raises(SandboxError, match="the runner was lost") as caught:
        await provider.create(labels={"harvest.run": "f"})
    assert "try again" in caught.value.hint
    assert await provider.list({"harvest.run": "f"}) == []


async def test_a_deletion_that_is_accepted_and_does_nothing_is_asked_again(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    sandbox = await provider.create(labels={"harvest.run": "f"})
    daytona.faults.parse("stuck-deleting=0*1")
    await sandbox.close()
    assert await provider.list({"harvest.run": "f"}) == []
    assert await soon_empty(left)


async def test_a_cancelled_creation_says_so_though_nothing_may_be_deleted(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    daytona.faults.parse("slow-start=1*1")
    daytona.faults.parse("delete-forbidden")
    making = asyncio.create_task(provider.create())
    await asyncio.sleep(0.5)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    daytona.faults.clear()
    assert len(await provider.reap()) == 1
    assert await soon_empty(left)


async def test_an_answer_without_the_toolboxs_address(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    daytona.faults.parse("toolbox-unnamed")
    daytona.faults.parse("create-response-lost=0*1")
    async with await provider.create() as sandbox:
        await sandbox.release()
        async with await provider.get(sandbox.id) as taken:
            assert (await taken.run(["echo", "done"], timeout=60)).text == "done\n"
    assert await soon_empty(left)


async def test_a_build_that_stays_pending_is_given_up(
    daytona: LocalDaytona,
    provider: DaytonaProvider,
    snapshot_image: Snapshot,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(provider, "_start_timeout", 3.0)
    daytona.faults.parse("stuck-pending")
    with pytest.raises(SandboxError, match="stayed in “pending_build”"):
        await provider.create(image=snapshot_image.tag, labels={"harvest.run": "f"})
    assert await provider.list({"harvest.run": "f"}) == []


async def test_a_build_that_fails_is_not_tried_again(
    daytona: LocalDaytona, provider: DaytonaProvider, snapshot_image: Snapshot
) -> None:
    daytona.faults.parse("build-failed=0*1")
    with pytest.raises(SandboxError, match="step 2 exited with 1"):
        await provider.create(image=snapshot_image.tag, labels={"harvest.run": "f"})
    assert await provider.list({"harvest.run": "f"}) == []


async def test_a_log_socket_that_is_refused_is_replaced_by_polling(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    daytona.faults.parse("log-refused")
    await works(provider, left)


async def test_a_log_socket_that_stays_open_and_says_nothing_is_replaced_by_polling(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    daytona.faults.parse("log-silent")
    await works(provider, left)
    # Nor does it hide that its command has ended.
    async with await provider.create() as sandbox:
        killed = await sandbox.remote.process.exec("pkill -9 -f 'relay.py line[s]'")
        assert killed.exit_code == 0
        assert (await sandbox.run(["echo", "again"], timeout=60)).text == "again\n"


async def test_an_input_whose_answer_is_lost_arrives_once(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    async with await provider.create() as sandbox:
        process = await sandbox.spawn(["cat"])
        for number in range(8):
            daytona.faults.parse("input-lost=0*1")
            await process.stdin.send(b"%d\n" % number)
            await asyncio.sleep(0.05)
        await process.stdin.aclose()
        got = b"".join([chunk async for chunk in process.stdout])
        assert got == b"".join(b"%d\n" % number for number in range(8))
        assert await process.wait() == 0
    assert await soon_empty(left)


async def test_an_input_that_is_never_answered_is_sent_again_before_the_lease_lapses(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    async with await provider.create(ttl=12) as sandbox:
        process = await sandbox.spawn(["cat"])
        daytona.faults.parse("input-hung=0*1")
        await process.stdin.send(b"once")
        await process.stdin.aclose()
        async with asyncio.timeout(20):
            assert b"".join([chunk async for chunk in process.stdout]) == b"once"
            assert await process.wait() == 0
    assert await soon_empty(left)


async def test_a_rate_limit_of_commands_is_waited_for(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    daytona.faults.parse("exec-limited=0.3*10")
    await works(provider, left)


async def test_an_image_without_this_relay_whose_upload_fails_at_first(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harvest_nb.sandbox.daytona.sandbox.RELAY", "/usr/local/lib/harvest/none.py")
    daytona.faults.parse("upload-failed=0*2")
    await works(provider, left)


@pytest.mark.parametrize("ticks", range(6))
async def test_a_close_that_is_cancelled_at_once_removes_it_all_the_same(
    daytona_provider: DaytonaProvider, left: Left, ticks: int
) -> None:
    sandbox = await daytona_provider.create()
    closing = asyncio.create_task(sandbox.close())
    for _ in range(ticks):
        await asyncio.sleep(0)
    closing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    await sandbox.close()
    assert await soon_empty(left)


@pytest.mark.parametrize("ticks", range(1, 6))
async def test_a_release_that_is_cancelled_at_once_lets_go_all_the_same(
    daytona_provider: DaytonaProvider, ticks: int
) -> None:
    first = await daytona_provider.create()
    releasing = asyncio.create_task(first.release())
    for _ in range(ticks):
        await asyncio.sleep(0)
    releasing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await releasing
    async with await daytona_provider.get(first.id) as second:
        assert first.relay.ended.is_set()
        assert first.relay._main is not None
        assert first.relay._main.done()
        assert (await second.run(["echo", "mine"])).text == "mine\n"


def test_a_loop_that_ends_while_one_is_being_deleted_leaves_none(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    async def leave(after: float) -> asyncio.Task[None]:
        sandbox = await provider.create()
        daytona.faults.parse("stuck-deleting=0*1")  # for five seconds
        closing = asyncio.create_task(sandbox.close())
        await asyncio.sleep(after)
        return closing

    for after in (0.05, 0.5):
        closing = asyncio.run(leave(after))
        assert closing.cancelled()
        assert left() == []


async def test_a_sandbox_that_runs_out_of_memory_says_so(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    daytona.faults.parse("out-of-memory=6*1")
    sandbox = await provider.create()
    process = await sandbox.spawn(["sleep", "60"])
    with pytest.raises(SandboxGone, match="ran out of memory"):
        await asyncio.wait_for(process.wait(), 30)
    await sandbox.close()
    assert await soon_empty(left)


async def test_a_slow_start_is_waited_for(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    daytona.faults.parse("slow-start=3*1")
    await works(provider, left)


async def test_a_quota_is_waited_for_then_said(
    daytona: LocalDaytona, provider: DaytonaProvider, left: Left
) -> None:
    daytona.faults.parse("quota=1")
    first = await provider.create()
    with pytest.raises(SandboxError, match="limit exceeded") as caught:
        await provider.create()
    assert "--reap" in caught.value.hint
    waiting = asyncio.create_task(provider.create())
    await asyncio.sleep(0.5)
    await first.close()
    await (await waiting).close()
    assert await soon_empty(left)


async def test_a_key_without_permission(daytona: LocalDaytona, provider: DaytonaProvider) -> None:
    daytona.faults.parse("forbidden")
    with pytest.raises(SandboxError, match="missing permission") as caught:
        await provider.create()
    assert "permission" in caught.value.hint


def test_a_fault_that_there_is_not(daytona: LocalDaytona) -> None:
    with pytest.raises(SettingsError, match="no fault"):
        daytona.faults.parse("surprise")
    with pytest.raises(SettingsError, match="Cannot read"):
        daytona.faults.parse(f"{next(iter(FAULTS))}=x")
