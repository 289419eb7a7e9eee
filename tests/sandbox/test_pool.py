from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest

from harvest_nb.engine import DockerClient
from harvest_nb.errors import SandboxError
from harvest_nb.sandbox.base import Limits
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.sandbox.pool import Pool
from harvest_nb.sandbox.relayed import RelayedSandbox
from harvest_nb.snapshot import Snapshot
from harvest_nb.snapshot.sources import collect

pytestmark = pytest.mark.slow


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "host"])
def provider(request: pytest.FixtureRequest) -> DockerProvider | HostProvider:
    if request.param == "host":
        return HostProvider()
    request.getfixturevalue("snapshot_image")
    return DockerProvider(request.getfixturevalue("engine"))


async def listed(provider: DockerProvider | HostProvider, ids: set[str]) -> dict[str, str]:
    """Which run each of these sandboxes is listed under."""
    return {i.id: i.labels.get("harvest.run", "") for i in await provider.list() if i.id in ids}


async def test_each_is_handed_out_once_and_named_after_its_run(
    provider: DockerProvider | HostProvider,
) -> None:
    async with Pool(provider, 2) as pool:
        await pool.filled()
        assert pool.ready == 2
        warm = {warm.sandbox.id for warm in pool._warm}
        taken = await asyncio.gather(
            *(pool.create(labels={"harvest.run": f"r{n}"}, env={"N": str(n)}) for n in range(5))
        )
        assert len({sandbox.id for sandbox in taken}) == 5
        assert warm <= {sandbox.id for sandbox in taken}
        said = [(await sandbox.run(["sh", "-c", "echo $N"])).text.strip() for sandbox in taken]
        assert said == ["0", "1", "2", "3", "4"]
        ids = {sandbox.id for sandbox in taken}
        assert await listed(provider, ids) == {s.id: f"r{n}" for n, s in enumerate(taken)}
        assert [info.id for info in await provider.list({"harvest.run": "r0"})] == [taken[0].id]
        await pool.filled()
        assert pool.ready == 2
        spare = {warm.sandbox.id for warm in pool._warm}
        await asyncio.gather(*(sandbox.close() for sandbox in taken))
        assert await listed(provider, ids) == {}
        assert set(await listed(provider, spare)) == spare
    assert await listed(provider, spare) == {}
    await pool.close()


async def test_one_that_died_while_it_waited_is_not_handed_out(
    provider: DockerProvider | HostProvider,
) -> None:
    async with Pool(provider, 1) as pool:
        await pool.filled()
        dead = pool._warm[0].sandbox
        await dead.relay.close()  # as an end from outside: the pool has not been told
        taken = await pool.create(labels={"harvest.run": "after"})
        assert taken.id != dead.id
        assert (await taken.run(["true"])).ok
        await taken.close()
        assert await listed(provider, {dead.id}) == {}


async def test_another_shape_is_made_anew(provider: DockerProvider | HostProvider) -> None:
    async with Pool(provider, 1) as pool:
        await pool.filled()
        warm = pool._warm[0].sandbox
        other = await pool.create(limits=Limits(memory_bytes=2**30))
        labelled = await pool.create(labels={"harvest.run": "r", "mine": "x"})
        assert warm.id not in (other.id, labelled.id)
        assert pool.ready == 1
        assert [info.id for info in await pool.list({"mine": "x"})] == [labelled.id]
        await other.close()
        await labelled.close()


async def test_closed_while_it_fills(provider: DockerProvider | HostProvider) -> None:
    before = {info.id for info in await provider.list()}
    pool = Pool(provider, 3)
    async with pool:
        await asyncio.sleep(0.1)
    mine = [i for i in await provider.list() if i.id not in before and "harvest.run" not in i.labels]
    from harvest_nb.sandbox.owner import owner

    assert [i for i in mine if i.labels.get("harvest.owner") == owner()] == []
    assert pool.ready == 0


async def full(pool: Pool) -> None:
    async with asyncio.timeout(30):
        while pool.ready < pool._size:
            await asyncio.sleep(0.02)


class Faulty(HostProvider):
    """Raises what is in `errors` before it makes anything."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors, self.asked = list(errors), 0

    async def create(self, *args: Any, **more: Any) -> RelayedSandbox:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return await super().create(*args, **more)


async def test_a_pool_fills_once_sandboxes_can_be_made_again(caplog: pytest.LogCaptureFixture) -> None:
    provider = Faulty(*(SandboxError("the engine is down") for _ in range(4)), KeyError("no such thing"))
    async with Pool(provider, 3) as pool:
        await pool.filled()
        assert (pool.ready, provider.asked) == (0, 3)
        assert pool._pause is not None  # it waits before it tries again
        await full(pool)
        assert provider.asked == 3 + 2 + 3
    assert caplog.text.count("the engine is down") == 1  # not once more for each attempt
    assert "Traceback" in caplog.text  # what nobody foresaw is seen
    assert "no such thing" in caplog.text


async def test_a_sandbox_that_is_made_for_a_run_ends_the_pause(caplog: pytest.LogCaptureFixture) -> None:
    provider = Faulty(*(SandboxError("the engine is down") for _ in range(2)))
    async with Pool(provider, 2) as pool:
        await pool.filled()
        assert pool._pause is not None
        taken = await pool.create()
        assert pool._pause is None
        await full(pool)
        await taken.close()
    assert provider.asked == 5


async def test_what_was_made_from_old_sources_is_not_handed_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for file in collect().files:
        target = root / file.source
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data)
    provider = HostProvider(root)
    async with Pool(provider, 2) as pool:
        await pool.filled()
        old = {warm.sandbox.id for warm in pool._warm}
        (root / ".claude" / "CLAUDE.md").write_text("# Other rules\n")
        taken = await pool.create()
        assert await taken.read("claude.md") == b"# Other rules\n"
        await full(pool)
        again = await pool.create()
        assert await again.read("claude.md") == b"# Other rules\n"
        await taken.close()
        await again.close()
    assert await listed(provider, old) == {}


@pytest.mark.docker
async def test_what_was_made_from_an_old_image_is_not_handed_out(
    engine: DockerClient, snapshot_image: Snapshot
) -> None:
    tag = f"harvest-pool-{uuid.uuid4().hex[:8]}:latest"
    engine.images.get(snapshot_image.id).tag(tag)
    container = engine.containers.create(snapshot_image.id)
    try:
        async with Pool(DockerProvider(engine), 1, snapshot=tag) as pool:
            await pool.filled()
            newer = container.commit(*tag.split(":"), conf={"Labels": {"newer": "yes"}})
            taken = await pool.create(tag)
            assert taken.image == newer.id
            await taken.close()
    finally:
        container.remove(force=True)
        engine.images.remove(tag, force=True, noprune=True)


async def test_a_pool_that_cannot_be_filled(engine: DockerClient, caplog: pytest.LogCaptureFixture) -> None:
    async with Pool(DockerProvider(engine), 1, snapshot="harvest-no-such-image:latest") as pool:
        await pool.filled()
        assert "There is no image" in caplog.text
        with pytest.raises(SandboxError, match="There is no image"):
            await pool.create("harvest-no-such-image:latest")
    with pytest.raises(SandboxError, match="size"):
        Pool(DockerProvider(engine), 0)


async def test_sessions_from_a_pool(engine: DockerClient, snapshot_image: Snapshot, tmp_path: Path) -> None:
    from harvest_nb.session.run import run_session
    from tests.session.test_faults import setup

    async with Pool(DockerProvider(engine), 2) as pool:
        results = await asyncio.gather(*(run_session(f"hello {n}", setup(pool, tmp_path)) for n in range(3)))
        assert [result.text for result in results] == [f"you said: hello {n}" for n in range(3)]
