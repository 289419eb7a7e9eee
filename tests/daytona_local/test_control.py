from __future__ import annotations

import asyncio
from typing import Any

import httpx
import psutil
import pytest
from daytona import (
    AsyncDaytona,
    AsyncSandbox,
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    CreateSnapshotParams,
    DaytonaError,
    DaytonaNotFoundError,
    ListSandboxesQuery,
    Resources,
    VolumeMount,
)
from daytona.common.errors import DaytonaAuthenticationError, DaytonaBadRequestError, DaytonaConflictError
from daytona_api_client_async.models.list_sandboxes_response import ListSandboxesResponse
from daytona_api_client_async.models.paginated_snapshots import PaginatedSnapshots
from daytona_api_client_async.models.sandbox import Sandbox

from harvest_nb.daytona_local import LocalDaytona
from harvest_nb.engine import DockerClient
from harvest_nb.snapshot import Snapshot
from tests.sdk import sdk_at

pytestmark = pytest.mark.docker


async def raw(server: LocalDaytona, path: str) -> Any:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {server.api_key}"}) as client:
        answer = await client.get(f"{server.api_url}{path}")
        assert answer.headers["x-stand-in"].startswith("harvest-nb")
        return answer.json()


async def test_a_sandbox_from_its_creation_to_its_end(
    sdk: AsyncDaytona, sandbox: AsyncSandbox, daytona: LocalDaytona, engine: DockerClient
) -> None:
    assert (sandbox.state, sandbox.target, sandbox.env) == ("started", "local", {"GIVEN": "a b"})
    assert [each.id async for each in sdk.list(ListSandboxesQuery(labels={"of": "test"}))] == [sandbox.id]
    assert [each.id async for each in sdk.list(ListSandboxesQuery(labels={"of": "another"}))] == []
    # The SDK's models, without the SDK's own tolerance.
    assert Sandbox.model_validate(await _fields(Sandbox, await raw(daytona, f"/sandbox/{sandbox.id}")))
    listed = ListSandboxesResponse.from_dict(await raw(daytona, "/sandbox"))
    assert listed is not None
    assert listed.next_cursor is None
    assert await sandbox.set_labels({"of": "other"}) == {"of": "other"}
    await sandbox.set_autostop_interval(7)
    await sandbox.set_ttl(5)
    await sandbox.refresh_activity()
    await sandbox.refresh_data()
    assert (sandbox.auto_stop_interval, sandbox.labels) == (7, {"of": "other"})
    assert sandbox.auto_destroy_at is not None
    await sandbox.process.exec("echo kept > /app/workspace/kept")
    await sandbox.stop()
    with pytest.raises(DaytonaBadRequestError, match="not running"):
        await sandbox.process.exec("true")
    await sandbox.start()
    assert (await sandbox.process.exec("cat /app/workspace/kept")).result == "kept\n"
    other = await sdk.create(CreateSandboxFromSnapshotParams(snapshot=sandbox.snapshot))
    await other.delete(wait=True)
    with pytest.raises(DaytonaNotFoundError):
        await sdk.get(other.id)
    label = {"label": f"harvest.daytona-local.sandbox={other.id}"}
    assert engine.api.containers(all=True, filters=label) == []


async def _fields(model: Any, data: dict[str, Any]) -> dict[str, Any]:
    """By field name, as the generated `from_dict` does before it validates."""
    parsed = model.from_dict(data)
    assert not parsed.additional_properties
    fields: dict[str, Any] = parsed.model_dump()
    return fields


async def test_an_ephemeral_sandbox_that_stops_is_gone_and_one_whose_time_is_over_too(
    sdk: AsyncDaytona, snapshot_image: Snapshot, daytona: LocalDaytona
) -> None:
    made = await sdk.create(CreateSandboxFromSnapshotParams(snapshot=snapshot_image.id, ephemeral=True))
    await made.stop()
    for _ in range(100):
        try:
            await sdk.get(made.id)
        except DaytonaNotFoundError:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it is still there")


async def test_nobody_passes_without_the_key(daytona: LocalDaytona) -> None:
    for key in ("wrong", daytona.api_key + "x"):
        async with sdk_at(daytona, api_key=key) as stranger:
            with pytest.raises(DaytonaAuthenticationError):
                await stranger.get("anything")
    toolbox = daytona.api_url.replace("/api", "/toolbox/x/process/execute")
    async with httpx.AsyncClient() as client:
        for url in (f"{daytona.api_url}/sandbox", toolbox, f"{daytona.api_url}/faults"):
            assert (await client.post(url, json={})).status_code == 401


async def test_events_are_for_no_page_of_another_origin(daytona: LocalDaytona) -> None:
    url = f"{daytona.api_url}/socket.io/?EIO=4&transport=polling"
    async with httpx.AsyncClient() as client:
        assert (await client.get(url)).status_code == 200
        assert (await client.get(url, headers={"Origin": "https://elsewhere.example"})).status_code == 400


def test_it_listens_on_loopback_only(daytona: LocalDaytona) -> None:
    port = int(daytona.api_url.split(":")[2].split("/")[0])
    listening = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    assert {one.laddr.ip for one in listening if one.laddr and one.laddr.port == port} == {"127.0.0.1"}


async def test_errors_are_the_sdks_own(sdk: AsyncDaytona, sandbox: AsyncSandbox) -> None:
    with pytest.raises(DaytonaNotFoundError, match="no-such"):
        await sdk.get("no-such")
    with pytest.raises(DaytonaBadRequestError, match="Snapshot no-such not found"):
        await sdk.create(CreateSandboxFromSnapshotParams(snapshot="no-such"))
    with pytest.raises(DaytonaConflictError, match="already exists"):
        await sdk.create(CreateSandboxFromSnapshotParams(snapshot=sandbox.snapshot, name=sandbox.name))


async def test_a_sandbox_from_an_image_with_resources(sdk: AsyncDaytona, snapshot_image: Snapshot) -> None:
    said: list[str] = []
    made = await sdk.create(
        CreateSandboxFromImageParams(image=snapshot_image.tag, resources=Resources(cpu=1, memory=2)),
        on_snapshot_create_logs=said.append,
    )
    try:
        assert (made.cpu, made.memory) == (1, 2)
        limit = await made.process.exec(
            "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
        )
        assert str(2 * 1024**3) in limit.result
        assert "".join(said).startswith("FROM ")
    finally:
        await made.delete(wait=True)


async def test_snapshots(sdk: AsyncDaytona, snapshot_image: Snapshot, daytona: LocalDaytona) -> None:
    made = await sdk.snapshot.create(CreateSnapshotParams(name="mine", image=snapshot_image.tag))
    try:
        assert (made.state, (await sdk.snapshot.get("mine")).id) == ("active", made.id)
        page = PaginatedSnapshots.from_dict(await raw(daytona, "/snapshots"))
        assert page is not None
        assert [each.name for each in page.items] == ["mine"]
        with pytest.raises(DaytonaConflictError):
            await sdk.snapshot.create(CreateSnapshotParams(name="mine", image=snapshot_image.tag))
    finally:
        await sdk.snapshot.delete(made)
    with pytest.raises(DaytonaNotFoundError):
        await sdk.snapshot.get("mine")
    with pytest.raises(DaytonaError, match="not found"):
        await sdk.snapshot.create(CreateSnapshotParams(name="bad", image="no-such-image:1"))


async def test_a_volume_is_shared_and_outlives_its_sandboxes(
    sdk: AsyncDaytona, snapshot_image: Snapshot, engine: DockerClient
) -> None:
    volume = await sdk.volume.create("data")
    assert [each.id for each in await sdk.volume.list()] == [volume.id]
    assert (await sdk.volume.get("data")).id == volume.id
    with pytest.raises(DaytonaConflictError, match="already exists"):
        await sdk.volume.create("data")

    async def having(*mounts: VolumeMount) -> AsyncSandbox:
        return await sdk.create(
            CreateSandboxFromSnapshotParams(snapshot=snapshot_image.id, volumes=list(mounts))
        )

    first = await having(VolumeMount(volume_id=volume.id, mount_path="/mnt/data"))
    second = await having(
        VolumeMount(volume_id="data", mount_path="/home/harvest/data"),
        VolumeMount(volume_id="data", mount_path="/part", subpath="a/b"),
    )
    try:
        assert [(each.volume_id, each.mount_path) for each in first.volumes or []] == [
            (volume.id, "/mnt/data")
        ]
        await first.process.exec("echo shared > /mnt/data/file")
        assert (await second.process.exec("cat /home/harvest/data/file")).result == "shared\n"
        await second.process.exec("echo part > /part/file")
        assert (await first.process.exec("cat /mnt/data/a/b/file")).result == "part\n"
        with pytest.raises(DaytonaConflictError, match="in use"):
            await sdk.volume.delete(volume)
    finally:
        await asyncio.gather(first.delete(wait=True), second.delete(wait=True))
    third = await having(VolumeMount(volume_id=volume.id, mount_path="/mnt/data"))
    assert (await third.process.exec("cat /mnt/data/file")).result == "shared\n"
    await third.delete(wait=True)
    await sdk.volume.delete(volume)
    assert await sdk.volume.list() == []
    assert engine.api.volumes(filters={"name": volume.id})["Volumes"] in (None, [])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"volumes": [VolumeMount(volume_id="none", mount_path="/mnt")]}, "none not found"),
        ({"volumes": [VolumeMount(volume_id="none", mount_path="mnt")]}, "must be absolute"),
        ({"network_allow_list": "10.0.0.0/8,10.0.0.0/40"}, "10.0.0.0/40"),
        ({"domain_allow_list": "example.com,not a domain"}, "not a domain"),
    ],
)
async def test_what_a_sandbox_cannot_have_is_refused(
    wrong: dict[str, Any], says: str, sdk: AsyncDaytona, snapshot_image: Snapshot
) -> None:
    with pytest.raises(DaytonaBadRequestError, match=says):
        await sdk.create(CreateSandboxFromSnapshotParams(snapshot=snapshot_image.id, **wrong))
    assert [each.id async for each in sdk.list()] == []


async def test_what_may_be_reached_is_told_and_nothing_else_is(
    sdk: AsyncDaytona, snapshot_image: Snapshot
) -> None:
    made = await sdk.create(
        CreateSandboxFromSnapshotParams(
            snapshot=snapshot_image.id,
            network_allow_list="10.0.0.0/8,192.168.1.1/32",
            domain_allow_list="example.com,*.example.org",
        )
    )
    try:
        assert made.network_block_all is False
        assert made.network_allow_list == "10.0.0.0/8,192.168.1.1/32"
        assert made.domain_allow_list == "example.com,*.example.org"
        # The stand-in cannot filter, and so lets nothing through.
        assert (await made.process.exec("ls /sys/class/net")).result == "lo\n"
    finally:
        await made.delete(wait=True)
