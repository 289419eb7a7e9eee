from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from pydantic import SecretStr

from harvest_nb.daytona_local import LocalDaytona
from harvest_nb.errors import SandboxError, SandboxGone, SettingsError, TokenError
from harvest_nb.providers import get_provider
from harvest_nb.sandbox.base import Limits
from harvest_nb.sandbox.daytona import Account, DaytonaProvider
from harvest_nb.sandbox.daytona.sandbox import DaytonaSandbox, pause_of
from harvest_nb.sandbox.owner import owner
from harvest_nb.snapshot import Snapshot
from tests.sandbox.daytona.conftest import Left, soon_empty
from tests.sdk import sdk_at

pytestmark = pytest.mark.docker
PROGRAM = """
import asyncio, sys
from harvest_nb.providers import get_provider

async def main():
    provider = get_provider("daytona")
    if sys.argv[2] == "d6":
        print("begun", flush=True)
    await provider.create(sys.argv[1], labels={"harvest.run": sys.argv[2]})
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_one_that_cannot_be_taken_up_stays(
    daytona_provider: DaytonaProvider, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await daytona_provider.create(labels={"harvest.run": "d9"}) as sandbox:
        reached = asyncio.Event()

        async def hangs(*_: object, **__: object) -> None:
            reached.set()
            await asyncio.sleep(600)

        dead = {**sandbox.remote.labels, "harvest.owner": owner().rsplit(":", 2)[0] + ":4000000:1"}
        await sandbox.remote.set_labels(dead)
        with monkeypatch.context() as patch:
            patch.setattr("harvest_nb.sandbox.daytona.provider.open_sandbox", hangs)
            getting = asyncio.create_task(daytona_provider.get(sandbox.id))
            await asyncio.wait_for(reached.wait(), 60)
            getting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await getting
        (info,) = await daytona_provider.list({"harvest.run": "d9"})
        assert (info.id, info.held, dict(info.labels)) == (sandbox.id, False, dead)
        # One that was taken up is held, whoever made it.
        taken = await daytona_provider.get(sandbox.id)
        assert await daytona_provider.reap() == []
        assert (await taken.run(["echo", "here"])).text == "here\n"
        await taken.release()


async def test_a_desk_that_another_one_has_displaced_leaves_the_sandbox_to_it(
    daytona_provider: DaytonaProvider, left: Left
) -> None:
    async with await daytona_provider.create() as first:
        second = await daytona_provider.get(first.id)
        await asyncio.wait_for(first.relay.ended.wait(), 60)
    assert (await second.run(["echo", "here"], timeout=60)).text == "here\n"
    await second.close()
    assert await soon_empty(left)


async def test_another_teams_sandbox_of_any_language_spoils_no_listing(
    daytona_provider: DaytonaProvider,
) -> None:
    async with await daytona_provider.create(labels={"harvest.run": "d10"}) as sandbox:
        labels = dict(sandbox.remote.labels)
        await sandbox.remote.set_labels({"code-toolbox-language": "cobol"})
        assert sandbox.id not in [info.id for info in await daytona_provider.list()]
        await sandbox.remote.set_labels(labels)
        assert [info.id for info in await daytona_provider.list({"harvest.run": "d10"})] == [sandbox.id]


async def test_a_sandbox_does_what_the_protocol_says(daytona_provider: DaytonaProvider, left: Left) -> None:
    async with await daytona_provider.create(env={"GIVEN": "a b"}, labels={"harvest.run": "d1"}) as sandbox:
        assert (sandbox.provider, str(sandbox.workdir), sandbox.isolated) == ("daytona", "/app", True)
        assert sandbox.manifest_hash is not None
        done = await sandbox.run(["sh", "-c", "printenv GIVEN; id -un; cat; exit 7"], input=b"in\0put\n")
        assert (done.exit_code, done.stdout) == (7, b"a b\nharvest\nin\0put\n")
        await sandbox.write("workspace/mine", b"mine\0")
        assert await sandbox.read("workspace/mine") == b"mine\0"
        with pytest.raises(PermissionError):
            await sandbox.write("claude.md", b"changed")
        with pytest.raises(TimeoutError):
            await sandbox.run(["sleep", "60"], timeout=0.5)
        remote = sandbox.remote
        assert (remote.auto_stop_interval, remote.auto_delete_interval) == (0, 0)
        assert remote.auto_destroy_at is not None
        assert remote.network_block_all is True
        (info,) = await daytona_provider.list({"harvest.run": "d1"})
        assert (info.id, info.state, info.held) == (sandbox.id, "started", True)
        assert await daytona_provider.list({"harvest.run": "none"}) == []
        assert isinstance(await sandbox.logs(), str)
    await sandbox.close()
    assert await daytona_provider.list({"harvest.run": "d1"}) == []
    assert await soon_empty(left)


async def test_a_connection_is_carried_to_the_desk(daytona_provider: DaytonaProvider) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    client = (
        "import socket,sys;s=socket.create_connection(('127.0.0.1',int(sys.argv[1])));"
        "s.sendall(b'hello'*20000);s.shutdown(1);n=0\n"
        "while d:=s.recv(65536):n+=len(d);last=d\nprint(n,last[-5:])"
    )
    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    async with server, await daytona_provider.create() as sandbox:
        port = await sandbox.forward("127.0.0.1", server.sockets[0].getsockname()[1])
        runs = (sandbox.run(["python3", "-c", client, str(port)], timeout=30) for _ in range(3))
        assert [done.text for done in await asyncio.gather(*runs)] == ["100000 b'HELLO'\n"] * 3


async def test_it_stops_and_starts_and_is_taken_up_again(
    daytona: LocalDaytona, snapshot_image: Snapshot
) -> None:
    account = Account(SecretStr(daytona.api_key), daytona.api_url)
    provider = DaytonaProvider(account, snapshot=snapshot_image.id, ephemeral=False)
    first = await provider.create(labels={"harvest.run": "d2"})
    await first.write("workspace/kept", b"kept")
    process = await first.spawn(["sleep", "60"])
    await provider.stop(first.id)
    with pytest.raises(SandboxGone, match="it was stopped"):
        await asyncio.wait_for(process.wait(), 30)
    with pytest.raises(SandboxError, match="is stopped"):
        await provider.get(first.id)
    await provider.start(first.id)
    second = await provider.get(first.id)
    assert await second.read("workspace/kept") == b"kept"
    await second.release()
    third = await provider.get(first.remote.name)
    assert third.id == first.id
    await third.close()
    await first.close()
    assert await provider.list({"harvest.run": "d2"}) == []
    with pytest.raises(SandboxError, match="find sandbox"):
        await provider.get("no-such")


async def test_a_sandbox_from_an_image_with_limits(
    daytona_provider: DaytonaProvider, snapshot_image: Snapshot
) -> None:
    limits = Limits(memory_bytes=3 * 1024**3, cpus=1)
    async with await daytona_provider.create(
        image=snapshot_image.tag, limits=limits, network="open"
    ) as sandbox:
        assert (sandbox.remote.cpu, sandbox.remote.memory, sandbox.remote.network_block_all) == (1, 3, False)


async def test_volumes_and_allow_lists_arrive_as_they_were_given(
    daytona: LocalDaytona, snapshot_image: Snapshot, left: Left
) -> None:
    account = Account(SecretStr(daytona.api_key), daytona.api_url)
    async with sdk_at(daytona) as sdk:
        volume = await sdk.volume.create("shared")
    provider = DaytonaProvider(account, snapshot=snapshot_image.id, volumes={"/mnt/shared": "shared"})
    first, second = await asyncio.gather(
        provider.create(),
        provider.create(
            volumes={"/mnt/other": volume.id},
            allow_networks=["10.0.0.0/8", "192.168.0.0/16"],
            allow_domains=["example.com"],
        ),
    )
    try:
        told = [(each.volume_id, each.mount_path) for each in first.remote.volumes or []]
        assert (told, first.remote.network_block_all) == ([("shared", "/mnt/shared")], True)
        told = [(each.volume_id, each.mount_path) for each in second.remote.volumes or []]
        assert (told, second.remote.network_block_all) == ([(volume.id, "/mnt/other")], False)
        assert second.remote.network_allow_list == "10.0.0.0/8,192.168.0.0/16"
        assert second.remote.domain_allow_list == "example.com"
        await first.write("/mnt/shared/file", b"from the first")
        assert await second.read("/mnt/other/file") == b"from the first"
    finally:
        await asyncio.gather(first.close(), second.close())
    async with sdk_at(daytona) as sdk:
        await sdk.volume.delete(volume)
    with pytest.raises(SandboxError, match="shared not found"):
        await provider.create()
    with pytest.raises(SandboxError, match="not a network"):
        await provider.create(volumes={}, allow_networks=["not a network"])
    assert await soon_empty(left)


async def test_an_image_without_this_relay_gets_it(
    daytona_provider: DaytonaProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harvest_nb.sandbox.daytona.sandbox.RELAY", "/usr/local/lib/harvest/none.py")
    async with await daytona_provider.create() as sandbox:
        names = (await sandbox.run(["sh", "-c", "ls /tmp/harvest-relay-*"])).text.split()
        assert {"relay.py", "relayd", "daemon.sock"} <= set(names)


async def test_a_secret_given_to_a_program_is_in_no_log_of_the_sandbox(
    daytona_provider: DaytonaProvider,
) -> None:
    async with await daytona_provider.create() as sandbox:
        done = await sandbox.run(["printenv", "TOKEN"], env={"TOKEN": "canary-value"})
        assert done.text == "canary-value\n"
        assert "canary-value" not in str(sandbox.remote.model_dump())
        search = 'cat /proc/[0-9]*/cmdline; grep -r "$(printf canary)-value" /tmp /home || true'
        assert b"canary-value" not in (await sandbox.run(["sh", "-c", search])).stdout


async def test_a_cancelled_creation_leaves_nothing(daytona_provider: DaytonaProvider, left: Left) -> None:
    for delay in (0.0, 0.02, 0.1, 0.3, 0.6):
        making = asyncio.create_task(daytona_provider.create(labels={"harvest.run": "d3"}))
        await asyncio.sleep(delay)
        making.cancel()
        await asyncio.sleep(0.01)
        making.cancel()
        (outcome,) = await asyncio.gather(making, return_exceptions=True)
        if not isinstance(outcome, BaseException):
            await outcome.close()
        assert await daytona_provider.list({"harvest.run": "d3"}) == []
    assert await soon_empty(left)


async def test_kill_9_of_the_desk_then_reap(
    daytona: LocalDaytona, daytona_provider: DaytonaProvider, snapshot_image: Snapshot
) -> None:
    env = {**os.environ, "DAYTONA_API_KEY": daytona.api_key, "DAYTONA_API_URL": daytona.api_url}
    mine = await daytona_provider.create(labels={"harvest.run": "d4"})
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, snapshot_image.id, "d4"], stdout=subprocess.PIPE, text=True, env=env
    ) as desk:
        assert desk.stdout is not None
        assert await asyncio.to_thread(desk.stdout.readline) == "ready\n"
        assert [info.held for info in await daytona_provider.list({"harvest.run": "d4"})] == [True, True]
        assert await daytona_provider.reap() == []
        os.kill(desk.pid, signal.SIGKILL)
    assert len(await daytona_provider.reap()) == 1
    assert [info.id for info in await daytona_provider.list({"harvest.run": "d4"})] == [mine.id]
    assert (await mine.run(["echo", "alive"])).text == "alive\n"
    await mine.close()


def test_a_loop_that_ends_in_the_middle_of_a_creation_leaves_nothing(
    daytona: LocalDaytona, daytona_provider: DaytonaProvider, left: Left
) -> None:
    async def main() -> asyncio.Task[object]:
        making: asyncio.Task[object] = asyncio.create_task(daytona_provider.create())
        await asyncio.sleep(0.5)
        return making

    daytona.faults.parse("slow-start=1*1")
    assert asyncio.run(main()).cancelled()
    assert asyncio.run(soon_empty(left))


async def killed_in_creation(
    daytona: LocalDaytona, provider: DaytonaProvider, image: Snapshot, left: Left, after: float
) -> bool:
    """A desk that is killed so many seconds after it began to create; whether there was anything to reap."""
    env = {**os.environ, "DAYTONA_API_KEY": daytona.api_key, "DAYTONA_API_URL": daytona.api_url}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, image.id, "d6"], stdout=subprocess.PIPE, text=True, env=env
    ) as desk:
        assert desk.stdout is not None
        assert await asyncio.to_thread(desk.stdout.readline) == "begun\n"
        await asyncio.sleep(after)
        os.kill(desk.pid, signal.SIGKILL)
    reaped, quiet = 0, 0
    async with asyncio.timeout(60):
        while quiet < 3:  # what was sent may still be on its way to a busy server
            reaped += len(await provider.reap())
            empty = not await asyncio.to_thread(left)
            quiet = quiet + 1 if empty and await provider.list({"harvest.run": "d6"}) == [] else 0
            await asyncio.sleep(0.1)
    return reaped > 0


async def test_kill_9_in_the_middle_of_a_creation_then_reap(
    daytona: LocalDaytona, daytona_provider: DaytonaProvider, snapshot_image: Snapshot, left: Left
) -> None:
    chance = random.Random(int.from_bytes(os.urandom(4), "big"))
    for part in range(4):
        await killed_in_creation(
            daytona, daytona_provider, snapshot_image, left, (part + chance.random()) * 0.35
        )


@pytest.mark.soak
async def test_kill_9_at_thirty_instants_of_a_creation_then_reap(
    daytona: LocalDaytona, daytona_provider: DaytonaProvider, snapshot_image: Snapshot, left: Left
) -> None:
    chance = random.Random(int.from_bytes(os.urandom(4), "big"))
    reaped = [
        await killed_in_creation(daytona, daytona_provider, snapshot_image, left, chance.uniform(0, 1.6))
        for _ in range(30)
    ]
    print(f"\n30 desks killed while they created, {sum(reaped)} left a sandbox for the reaper")
    assert any(reaped)


async def test_the_heartbeat_keeps_it_and_puts_its_end_off(
    daytona_provider: DaytonaProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harvest_nb.sandbox.daytona.sandbox._HEARTBEAT", 0.05)
    monkeypatch.setattr(daytona_provider, "_ttl", 4)
    async with await daytona_provider.create() as sandbox:
        await sandbox.remote.refresh_data()
        first = sandbox.remote.last_activity_at, sandbox.remote.auto_destroy_at
        await asyncio.sleep(1.0)
        await sandbox.remote.refresh_data()
        second = sandbox.remote.last_activity_at, sandbox.remote.auto_destroy_at
    assert None not in (*first, *second)
    assert str(second[0]) > str(first[0])
    assert str(second[1]) > str(first[1])


async def test_one_that_is_taken_up_has_its_end_put_off_at_once(
    daytona_provider: DaytonaProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # What puts the end off is the second desk's beat alone.
        patch.setattr(DaytonaSandbox, "beat", lambda *_: None)
        first = await daytona_provider.create()
    async with first:
        await first.remote.refresh_data()
        before = str(first.remote.auto_destroy_at)
        await first.release()
        async with await daytona_provider.get(first.id) as second, asyncio.timeout(10):
            while str(second.remote.auto_destroy_at) <= before:
                await asyncio.sleep(0.1)
                await second.remote.refresh_data()


@pytest.mark.parametrize(("ttl_minutes", "pause"), [(0, 60), (1, 15), (2, 30), (120, 60)])
def test_the_heart_beats_four_times_before_the_end(ttl_minutes: int, pause: float) -> None:
    assert pause_of(ttl_minutes) == pause


async def test_what_is_wrong_is_said_before_anything_is_made(
    daytona: LocalDaytona, daytona_provider: DaytonaProvider, left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SandboxError, match="no-such") as caught:
        await daytona_provider.create("no-such")
    assert "make a snapshot of that name" in caught.value.hint
    with pytest.raises(SandboxError, match="network"):
        await daytona_provider.create(network="some")
    stranger = DaytonaProvider(Account(SecretStr("wrong"), daytona.api_url))
    with pytest.raises(TokenError, match="refused the key"):
        await stranger.create()
    with pytest.raises(TokenError):
        await stranger.list()
    nobody = DaytonaProvider(Account(SecretStr("any"), "http://127.0.0.1:9/api"), snapshot="any", patience=2)
    async with asyncio.timeout(40):
        with pytest.raises(SandboxError, match="Cannot connect"):
            await nobody.create()
    assert left() == []
    monkeypatch.delenv("DAYTONA_API_KEY", raising=False)
    with pytest.raises(TokenError, match="DAYTONA_API_KEY"):
        get_provider("daytona")
    with pytest.raises(SettingsError, match="elsewhere"):
        get_provider("elsewhere")


async def test_five_megabytes_cross_byte_exact_while_the_log_socket_is_cut(
    daytona: LocalDaytona, daytona_provider: DaytonaProvider
) -> None:
    data = os.urandom(1_500_000) + b'{"type": "assistant"}\n' * 200_000
    async with await daytona_provider.create() as sandbox:
        daytona.faults.set("log-cut", 150)
        start = time.monotonic()
        done = await sandbox.run(["cat"], input=data, timeout=120)
        daytona.faults.clear()
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert done.exit_code == 0
    assert time.monotonic() - start < 120


@pytest.mark.soak
async def test_twenty_sandboxes_at_once(daytona_provider: DaytonaProvider, left: Left) -> None:
    async def one(number: int) -> bytes:
        async with await daytona_provider.create(labels={"harvest.run": "d5"}) as sandbox:
            return (await sandbox.run(["sh", "-c", f"sleep 1; echo {number}"], timeout=120)).stdout

    answers = await asyncio.gather(*(one(number) for number in range(20)))
    assert answers == [b"%d\n" % number for number in range(20)]
    assert await daytona_provider.list({"harvest.run": "d5"}) == []
    assert await soon_empty(left, 30)


@pytest.mark.soak
async def test_twenty_megabytes_that_cannot_be_made_smaller(daytona_provider: DaytonaProvider) -> None:
    data = os.urandom(20_000_000)
    async with await daytona_provider.create() as sandbox:
        done = await sandbox.run(["cat"], input=data, timeout=300)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
