"""Sandboxes of other namespaces: not listed, not reaped and not handed out, unless all are asked for."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harvest_nb.daytona_local import LocalDaytona
from harvest_nb.sandbox.base import Provider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.sandbox.pool import Relabelling
from harvest_nb.sandbox.pools import close_pools, shared_pool
from harvest_nb.snapshot import Snapshot
from tests.test_cli import call

pytestmark = pytest.mark.slow

HERE = [pytest.param("docker", marks=pytest.mark.docker), "host"]
MINE = os.environ["HARVEST_NAMESPACE"]
ELSEWHERE = f"{MINE}.elsewhere"
PROGRAM = """
import asyncio, sys
from harvest_nb.providers import get_provider
async def main():
    sandbox = await get_provider(sys.argv[1]).create(sys.argv[2] or None, labels={"harvest.run": sys.argv[3]}, ttl=600)
    print(sandbox.id, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def left_behind(provider: Provider, image: str, run: str, **env: str) -> str:
    """The id of a sandbox that a process which has been killed has left in this namespace."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, provider.name, image, run],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **env},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        ident = process.stdout.readline().strip()
        process.kill()
    assert ident
    return ident


@pytest.fixture
def provider(request: pytest.FixtureRequest, provider_named: Callable[[str], Provider]) -> Provider:
    return provider_named(request.param)


@pytest.mark.docker
@pytest.mark.parametrize("provider", ["docker", "daytona"], indirect=True)
async def test_what_is_left_in_another_namespace_is_neither_listed_nor_reaped(
    provider: Provider, daytona: LocalDaytona, snapshot_image: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, run = snapshot_image.id, f"{ELSEWHERE}-{provider.name}"
    env = {"DAYTONA_API_KEY": daytona.api_key, "DAYTONA_API_URL": daytona.api_url}
    left = await asyncio.to_thread(lambda: left_behind(provider, image, run, **env))
    async with await provider.create(image, labels={"harvest.run": run}) as mine:  # type: ignore[attr-defined]
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("HARVEST_NAMESPACE", ELSEWHERE)
            async with await provider.create(image, labels={"harvest.run": run}) as own:  # type: ignore[attr-defined]
                assert [info.id for info in await provider.list({"harvest.run": run})] == [own.id]
                assert await provider.reap() == []
                every = {i.id: i for i in await provider.list({"harvest.run": run}, all_namespaces=True)}
                # Another user of the engine may just have reaped in every namespace, and removed what is left.
                assert set(every) - {left} == {mine.id, own.id}
                assert {ident for ident, info in every.items() if not info.held} <= {left}
                assert every[mine.id].labels["harvest.namespace"] == MINE
                assert every[own.id].labels["harvest.namespace"] == ELSEWHERE
                if provider.name == "daytona":  # at a server of this test's own, nobody else is disturbed
                    assert await provider.reap(all_namespaces=True) == [left]
        assert set(await provider.reap()) <= {left}
        assert [info.id for info in await provider.list({"harvest.run": run})] == [mine.id]


async def test_directories_of_every_namespace_are_reaped_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = HostProvider()
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path))
    for namespace in ("one", "two", ""):
        folder = tmp_path / "sandboxes" / f"left-in-{namespace}"
        folder.mkdir(parents=True)
        (folder / "labels").write_text(
            f"harvest.namespace={namespace}\n" if namespace else "harvest.run=older\n"
        )
    monkeypatch.setenv("HARVEST_NAMESPACE", "one")
    assert await provider.reap() == ["left-in-one"]
    listed = call("sandboxes", "--provider", "host", "--all", cwd=tmp_path)
    assert [line.split()[-1] for line in listed.stdout.splitlines()] == ["namespace", "default", "two"]
    # What older versions made has no such label, and is in the default namespace.
    monkeypatch.delenv("HARVEST_NAMESPACE")
    assert await provider.reap() == ["left-in-"]
    done = call("sandboxes", "--provider", "host", "--reap", "--all", cwd=tmp_path)
    assert (done.returncode, "removed left-in-two" in done.stdout) == (0, True)
    assert list((tmp_path / "sandboxes").glob("left-*")) == []


@pytest.mark.parametrize("provider", HERE, indirect=True)
async def test_each_namespace_has_pools_of_its_own(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(provider, Relabelling)
    pool = await shared_pool(provider, 1)
    assert await shared_pool(provider, 1) is pool
    monkeypatch.setenv("HARVEST_NAMESPACE", ELSEWHERE)
    assert await shared_pool(provider, 1) is not pool
    await close_pools()


async def test_a_directory_that_is_given_to_a_run_stays_in_its_namespace() -> None:
    provider = HostProvider()
    async with await provider.create() as sandbox:
        await provider.relabel(sandbox.id, ELSEWHERE)
        (info,) = await provider.list({"harvest.run": ELSEWHERE})
        assert info.labels["harvest.namespace"] == MINE
