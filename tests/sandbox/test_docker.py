from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.engine import DockerClient
from harvest_nb.errors import SandboxError, SandboxGone
from harvest_nb.sandbox.base import Limits
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sandbox.relay_files import FOLDER, RELAY, relay_digest, relay_files
from harvest_nb.sandbox.relayed import RelayedSandbox
from harvest_nb.settings import load_settings
from harvest_nb.snapshot import Snapshot

pytestmark = pytest.mark.docker


@pytest.fixture
def provider(engine: DockerClient) -> DockerProvider:
    return DockerProvider(engine)


def containers(engine: DockerClient, run: str) -> list[Any]:
    label = [f"harvest.run={run}", f"harvest.namespace={load_settings().namespace}"]
    return list(engine.api.containers(all=True, filters={"label": label}))


async def test_a_sandbox_is_locked_down_and_removed(
    provider: DockerProvider, snapshot_image: Snapshot
) -> None:
    async with await provider.create(
        snapshot_image.id, labels={"harvest.run": "t1"}, limits=Limits(memory_bytes=512 * 1024**2, pids=99)
    ) as sandbox:
        assert (await sandbox.run(["id", "-un"])).text == "harvest\n"
        status = (await sandbox.run(["cat", "/proc/self/status"])).text
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        (found,) = containers(provider.client, "t1")
        host: Any = provider.client.api
        config = host.inspect_container(found["Id"])["HostConfig"]
        assert (config["NetworkMode"], config["Memory"], config["PidsLimit"]) == ("none", 512 * 1024**2, 99)
        with pytest.raises(PermissionError):
            await sandbox.write("claude.md", b"changed")
        await sandbox.write("workspace/mine.txt", b"mine")
        assert await sandbox.read(sandbox.workspace / "mine.txt") == b"mine"
    assert containers(provider.client, "t1") == []


async def test_secrets_given_to_programs_are_not_in_the_containers_description(
    provider: DockerProvider, snapshot_image: Snapshot
) -> None:
    async with await provider.create(
        snapshot_image.id, labels={"harvest.run": "t2"}, env={"TOKEN": "canary-value"}
    ) as sandbox:
        assert (await sandbox.run(["printenv", "TOKEN"])).text == "canary-value\n"
        (found,) = containers(provider.client, "t2")
        api: Any = provider.client.api
        assert "canary-value" not in str(api.inspect_container(found["Id"]))
        assert b"canary-value" not in (await sandbox.run(["sh", "-c", "cat /proc/[0-9]*/cmdline"])).stdout


async def test_twenty_megabytes_in_one_line_are_byte_exact(
    provider: DockerProvider, snapshot_image: Snapshot
) -> None:
    data = bytes(range(256)).replace(b"\n", b"\xff") * 80_000 + b"\n"
    async with await provider.create(snapshot_image.id) as sandbox:
        done = await sandbox.run(["cat"], input=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


async def test_a_killed_container_says_how_it_ended(
    provider: DockerProvider, snapshot_image: Snapshot
) -> None:
    sandbox = await provider.create(snapshot_image.id, labels={"harvest.run": "t3"})
    process = await sandbox.spawn(["sleep", "60"])
    provider.client.api.kill(containers(provider.client, "t3")[0]["Id"])
    with pytest.raises(SandboxGone, match="ended by signal 9"):
        await asyncio.wait_for(process.wait(), 10)
    await sandbox.close()
    assert containers(provider.client, "t3") == []


async def test_an_image_with_another_relay_gets_this_one(
    provider: DockerProvider, snapshot_image: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert snapshot_image.labels["harvest.relay.sha256"] == relay_digest()
    monkeypatch.setattr("harvest_nb.sandbox.docker.relay_digest", lambda: "another")
    async with await provider.create(snapshot_image.id) as sandbox:
        done = await sandbox.run(["sha256sum", *(f"{FOLDER}/{name}" for name in relay_files())])
        here = [hashlib.sha256(file.read_bytes()).hexdigest() for file in relay_files().values()]
        assert [line.split()[0] for line in done.text.splitlines()] == here


async def test_a_missing_image_is_named(provider: DockerProvider) -> None:
    with pytest.raises(SandboxError, match="no image no-such-image"):
        await provider.create("no-such-image")


async def test_a_cancelled_creation_leaves_nothing(
    provider: DockerProvider, snapshot_image: Snapshot
) -> None:
    cancelled = 0
    for number in range(14):
        making = asyncio.create_task(provider.create(snapshot_image.id, labels={"harvest.run": "t4"}))
        await asyncio.sleep(0.04 * number)
        making.cancel()
        if number % 2:  # whoever is impatient must not leave more behind
            await asyncio.sleep(0.01)
            making.cancel()
        (outcome,) = await asyncio.gather(making, return_exceptions=True)
        if isinstance(outcome, RelayedSandbox):
            await outcome.close()
        else:
            assert isinstance(outcome, asyncio.CancelledError)
            cancelled += 1
        assert containers(provider.client, "t4") == []
    assert cancelled >= 2


async def test_a_creation_cancelled_while_its_relay_opens_leaves_nothing(
    provider: DockerProvider, snapshot_image: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def opening(*_: Any, **__: Any) -> Any:
        reached.set()
        await asyncio.sleep(60)

    monkeypatch.setattr("harvest_nb.sandbox.docker.Relay.open", opening)
    making = asyncio.create_task(provider.create(snapshot_image.id, labels={"harvest.run": "t6"}))
    await asyncio.wait_for(reached.wait(), 30)
    assert len(containers(provider.client, "t6")) == 1
    for _ in range(3):
        making.cancel()
        await asyncio.sleep(0.005)
    with pytest.raises(asyncio.CancelledError):
        await making
    assert containers(provider.client, "t6") == []


async def test_a_container_that_ends_before_its_relay_answers_says_how(
    provider: DockerProvider, snapshot_image: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach = provider._attach

    def late(container: str) -> Any:
        provider.client.api.kill(container)
        return attach(container)

    monkeypatch.setattr(provider, "_attach", late)
    with pytest.raises(SandboxGone, match="ended by signal 9"):
        await provider.create(snapshot_image.id, labels={"harvest.run": "t7"})
    assert containers(provider.client, "t7") == []


async def test_a_container_whose_desk_was_killed_is_reaped_or_ends_by_itself(
    provider: DockerProvider, snapshot_image: Snapshot
) -> None:
    program = (
        "import asyncio, sys\n"
        "from harvest_nb.sandbox.docker import DockerProvider\n"
        "async def main():\n"
        "    for ttl in (3.0, 600.0):\n"
        "        await DockerProvider().create(sys.argv[1], labels={'harvest.run': 't5'}, ttl=ttl)\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, snapshot_image.id], stdout=subprocess.PIPE, text=True
    ) as desk:
        assert desk.stdout is not None
        assert await asyncio.to_thread(desk.stdout.readline) == "ready\n"
        mine = await provider.create(snapshot_image.id, labels={"harvest.run": "t5"})
        assert all(info.held for info in await provider.list({"harvest.run": "t5"}))
        os.kill(desk.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while len(containers(provider.client, "t5")) > 2:  # until the short lease has lapsed
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)
    # The owner of the other one has ended. Another user of the engine may reap in every namespace, and remove it first.
    held = {info.id: info.held for info in await provider.list({"harvest.run": "t5"})}
    assert held.pop(mine.id)
    assert not any(held.values())
    assert set(await provider.reap()) <= set(held)
    assert [info.id for info in await provider.list({"harvest.run": "t5"})] == [mine.id]
    await mine.close()


async def test_a_relay_of_another_version_that_is_put_in_is_the_one_that_runs(
    provider: DockerProvider, snapshot_image: Snapshot, tmp_path: Path
) -> None:
    # As a desk does that is newer than the image; the image's compiled files must not stand in the way.
    (tmp_path / FOLDER.strip("/") / "relayd").mkdir(parents=True)
    (tmp_path / FOLDER.strip("/") / "relayd/__init__.py").write_text("raise SystemExit(42)\n")
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w") as archive:
        archive.add(tmp_path / "usr", "usr")
    container = provider.client.containers.create(
        snapshot_image.id, ["python3", RELAY, "serve"], network_mode="none"
    )
    try:
        container.put_archive("/", other.getvalue())
        container.start()
        assert container.wait(timeout=60)["StatusCode"] == 42
    finally:
        container.remove(force=True)
