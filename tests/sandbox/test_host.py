from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harvest_nb.paths import cache_dir
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.sandbox.toolchain import host_toolchain
from harvest_nb.settings import load_settings

pytestmark = pytest.mark.slow


@pytest.fixture
async def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with this user's toolchain and nobody else's sandboxes: `<cache>/sandboxes`."""
    await host_toolchain(lambda _: None)
    folder = tmp_path / "cache"
    folder.mkdir()
    for path in cache_dir().iterdir():
        if path.name != "sandboxes":
            (folder / path.name).symlink_to(path)
    monkeypatch.setenv("HARVEST_CACHE", str(folder))
    return folder


def left(cache: Path) -> list[str]:
    """The directories that are there."""
    return [path.name for path in (cache / "sandboxes").glob("*/")]


@contextlib.contextmanager
def reaper(cache: Path) -> Iterator[None]:
    """Another process that reaps without a pause."""
    program = (
        "import asyncio; from harvest_nb.sandbox.host import HostProvider\n"
        "async def main():\n"
        "    while True:\n"
        "        for ident in await HostProvider().reap(): print(ident, flush=True)\n"
        "asyncio.run(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "HARVEST_CACHE": str(cache)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    left_behind = cache / "sandboxes" / "left-behind"
    left_behind.mkdir(parents=True)
    (left_behind / "labels").write_text(f"harvest.namespace={load_settings().namespace}")
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "left-behind\n"  # it is at work
        yield
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


async def test_one_that_is_being_made_is_not_reaped(cache: Path) -> None:
    with reaper(cache):
        made = await asyncio.gather(*(HostProvider().create() for _ in range(3)))
        for sandbox in made:
            assert (await sandbox.run(["pwd"])).ok
            assert b"HarvestSession" in await sandbox.read(sandbox.memory_file)
        assert sorted(left(cache)) == sorted(sandbox.id for sandbox in made)
        for sandbox in made:
            await sandbox.close()
    assert left(cache) == []


async def test_a_desk_killed_while_it_makes_one_leaves_it_to_the_reaper(cache: Path) -> None:
    program = (
        "import asyncio; from harvest_nb.sandbox.host import HostProvider\n"
        "print(flush=True); asyncio.run(HostProvider().create())"
    )
    chance = random.Random(7)
    for _ in range(8):
        desk = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env={**os.environ})
        assert desk.stdout is not None
        desk.stdout.readline()
        await asyncio.sleep(chance.uniform(0, 0.5))
        desk.kill()
        desk.communicate()
    deadline = time.monotonic() + 10
    while left(cache):
        await HostProvider().reap()
        assert time.monotonic() < deadline  # a relay that had begun ends by itself
        await asyncio.sleep(0.05)


async def test_nothing_is_left_of_one_that_is_cancelled_while_it_is_made(cache: Path) -> None:
    for seed in range(24):
        chance = random.Random(seed)
        making = asyncio.create_task(HostProvider().create())
        await asyncio.sleep(chance.uniform(0, 0.45))
        making.cancel()
        if seed % 2:
            await asyncio.sleep(chance.uniform(0, 0.02))
            making.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await (await making).close()
        assert left(cache) == [], seed
        started = []
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
                started.append(child.cmdline())
        assert [argv for argv in started if any(str(cache) in word for word in argv)] == [], seed
        assert [argv for argv in started if "--seed-only" in argv] == [], seed


async def test_a_directory_is_laid_out_like_the_image_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "ambient-credential")
    async with await HostProvider().create(labels={"harvest.run": "h1"}) as sandbox:
        assert not sandbox.isolated
        assert sandbox.image is None
        assert (await sandbox.read("claude.md")).startswith(b"#")
        assert b"HarvestSession" in await sandbox.read(sandbox.memory_file)
        done = await sandbox.run(["sh", "-c", "pwd; command -v claude mcp-server-memory node; env"])
        assert done.text.startswith(f"{sandbox.workdir}\n")
        assert "ambient-credential" not in done.text
        assert "2.1.330" in (await sandbox.run(["claude", "--version"])).text
        (info,) = await HostProvider().list({"harvest.run": "h1"})
        assert info.held
        assert sandbox.id not in await HostProvider().reap()
        base = Path(sandbox.workdir).parent
    assert not base.exists()


async def test_the_relays_end_removes_the_directory_and_what_it_started() -> None:
    sandbox = await HostProvider().create()
    base = Path(sandbox.workdir).parent
    process = await sandbox.spawn(["sh", "-c", "setsid sleep 600 & echo $!; wait"])
    child = int(await anext(process.stdout))
    await sandbox.relay.close(shutdown=False)  # as if the desk had gone
    for _ in range(200):
        if not base.exists():
            break
        await asyncio.sleep(0.05)
    assert not base.exists()
    assert not Path(f"/proc/{child}").exists()
    await sandbox.close()
