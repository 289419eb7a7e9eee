"""Ways to leave a session before its end: none of them leaves anything behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from claude_agent_sdk import AssistantMessage, Message

from harvest_nb import load
from harvest_nb.engine import DockerClient
from harvest_nb.errors import RunFolderError
from harvest_nb.sandbox.base import Provider
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.session.open import Setup, open_session
from harvest_nb.session.resume import find_past
from harvest_nb.session.run import run_session
from harvest_nb.snapshot import Snapshot
from tests.session.conftest import about, bash, conversation, echo, results, stream
from tests.session.test_faults import HERE, setup, swept

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SLEEPY = conversation(bash("ls / > /dev/null; sleep 60"), results)


@pytest.fixture(params=HERE)
def provider(request: pytest.FixtureRequest, provider_named: Callable[[str], Provider]) -> Provider:
    return provider_named(request.param)


def held(provider: Provider) -> tuple[set[str], set[int]]:
    """What this process has open, besides the engine's kept connections, and its children."""
    if isinstance(provider, DockerProvider):
        provider.client.api.close()
    gc.collect()
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{entry.name} {entry.readlink()}")
    return found, {child.pid for child in psutil.Process().children(recursive=True)}


@contextlib.asynccontextmanager
async def nothing_left(provider: Provider, runs: Path) -> AsyncIterator[None]:
    """Fails when the block leaves a task, a child, an open file or a sandbox."""
    swept()  # what an earlier test left to the collector is not this one's
    tasks = asyncio.all_tasks()
    files, children = held(provider)
    yield
    now_open, now_running = held(provider)
    assert asyncio.all_tasks() <= tasks
    for _ in range(20):
        if now_open <= files and now_running <= children:
            break
        await asyncio.sleep(0.1)  # a thread of the pool may be closing its connection
        now_open, now_running = held(provider)
    assert now_open - files == set()
    assert now_running - children == set()
    for folder in runs.iterdir():
        assert await provider.list({"harvest.run": folder.name}) == []
        assert about(folder)["status"] != "running"
        stream(folder)


async def at_tool(plan: Setup, then: Callable[[asyncio.Task[Any]], Awaitable[None]]) -> None:
    """A run that sleeps in its tool; `then` ends it."""
    there = asyncio.Event()

    def note(message: Message) -> None:
        if isinstance(message, AssistantMessage):
            there.set()

    task = asyncio.create_task(run_session("sleep", replace(plan, scenario=SLEEPY), on_message=note))
    await asyncio.wait_for(there.wait(), 60)
    await then(task)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_once_and_twice_in_a_tool(provider: Provider, tmp_path: Path) -> None:
    async def once(task: asyncio.Task[Any]) -> None:
        task.cancel()

    async def twice(task: asyncio.Task[Any]) -> None:
        task.cancel()
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0.2)
        task.cancel()

    async with nothing_left(provider, tmp_path):
        await at_tool(setup(provider, tmp_path), once)
        await at_tool(setup(provider, tmp_path), twice)


@pytest.mark.parametrize("seed", range(3))
async def test_cancelled_at_any_instant_of_its_start(seed: int, provider: Provider, tmp_path: Path) -> None:
    """While the sandbox is made, while the CLI starts, while it answers, while all of it is put away."""
    chance = random.Random(seed)
    async with nothing_left(provider, tmp_path):
        for _ in range(2):
            task = asyncio.create_task(run_session("hello", setup(provider, tmp_path)))
            await asyncio.sleep(chance.uniform(0, 2.5))
            task.cancel()
            if chance.random() < 0.5:
                await asyncio.sleep(chance.uniform(0, 0.3))
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_left_early_closed_twice_and_timed_out(provider: Provider, tmp_path: Path) -> None:
    async with nothing_left(provider, tmp_path):
        async with open_session(setup(provider, tmp_path)):
            pass  # before any prompt
        async with open_session(setup(provider, tmp_path, scenario=SLEEPY)) as session:
            asking = asyncio.create_task(session.ask("sleep"))
            while not (session._turn and session._turn.messages):
                await asyncio.sleep(0.01)
        # Left in the middle of a turn: the turn is stopped, and whoever waited for it is told.
        assert (await asking).status == "cancelled"
        await session.close()
        await session.close()
        await session.sandbox.close()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                run_session("sleep", setup(provider, tmp_path, scenario=SLEEPY)), timeout=2.5
            )

        async def fails() -> None:
            async with open_session(setup(provider, tmp_path)) as session:
                await session.ask("hello")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fails()


async def test_a_caller_that_blocks_for_a_while_loses_nothing(provider: Provider, tmp_path: Path) -> None:
    seen: list[Message] = []

    def slow(message: Message) -> None:
        time.sleep(0.1)
        seen.append(message)

    result = await run_session("hello " * 300, setup(provider, tmp_path), on_message=slow)
    assert result.check().text == f"you said: {('hello ' * 300).strip()}"
    recorded = [x["message"] for x in stream(result.folder) if x["dir"] == "in"]
    events = [m for m in recorded if m["type"] == "stream_event"]
    assert len([m for m in seen if type(m).__name__ == "StreamEvent"]) == len(events) > 10


@pytest.mark.docker
async def test_a_lease_that_lapsed_says_so(
    engine: DockerClient, snapshot_image: Snapshot, tmp_path: Path
) -> None:
    plan = setup(DockerProvider(engine), tmp_path, snapshot=snapshot_image.id, ttl=2.0)
    async with open_session(plan) as session:
        assert (await session.ask("one")).ok
        time.sleep(5)  # a cell that computes: nobody renews the lease meanwhile
        result = await session.ask("two")
    assert result.status == "died"
    assert "lease" in str(result.reason)


# ── the desk's own end ────────────────────────────────────────────────────────────────────────────────────


def kernel(provider: str, runs: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.session.kernel", provider, str(runs)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


async def killed_at_random(provider: Provider, runs: Path, chance: random.Random) -> None:
    """Kill -9, then everything that must hold: the folder's lines, the reader, the reaper, the resume."""
    runs.mkdir()
    process = kernel(provider.name, runs)
    assert process.stdout is not None
    try:
        first = await asyncio.to_thread(process.stdout.readline)
        assert first == "opened\n", first + process.stdout.read()
        # From the start of its CLI to some prompts later.
        await asyncio.sleep(chance.uniform(0, 4))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    (folder,) = runs.iterdir()
    *whole, rest = (folder / "stream.jsonl").read_bytes().split(b"\n")
    numbers = [json.loads(line)["seq"] for line in whole]
    assert numbers == list(range(len(whole)))
    frames = load(folder)
    flagged = frames.problems[frames.problems["path"].astype(str).str.endswith("stream.jsonl")]
    assert len(flagged) == (1 if rest else 0)
    assert frames.runs["status"].tolist() == ["died"]
    assert "killed" in set(frames.problems["reason"])
    copy = shutil.copytree(folder, runs.with_name(f"{runs.name}-copy"))
    assert load(copy).runs["status"].tolist() == ["unknown"]
    async with asyncio.timeout(5):  # a relay learns of its desk's end a moment later
        while any(info.held for info in await provider.list({"harvest.run": folder.name})):
            await asyncio.sleep(0.05)
    await asyncio.to_thread(
        subprocess.run,
        [str(Path(sys.executable).with_name("harvest-nb")), "sandboxes", "--provider", provider.name, "--reap"],
        check=True, capture_output=True,
    )  # fmt: skip
    assert await provider.list({"harvest.run": folder.name}) == []
    if not any(x["dir"] == "out" and x["message"]["type"] == "user" for x in map(json.loads, whole)):
        with pytest.raises(RunFolderError, match="run its prompt again"):
            find_past(folder)  # nothing had been said
        return
    resumed = await run_session(
        "again", setup(provider, runs, scenario=conversation(echo), past=find_past(folder))
    )
    assert resumed.check().text == "you said: again"
    assert resumed.session_id == about(folder)["session_id"]


async def test_a_kernel_killed_at_random_instants(provider: Provider, tmp_path: Path) -> None:
    chance = random.Random(int.from_bytes(os.urandom(4), "big"))
    for number in range(3 if provider.name == "docker" else 1):
        await killed_at_random(provider, tmp_path / str(number), chance)


# ── the desk's disk ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root mounts a disk")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


async def test_a_disk_that_fills_up(small_disk: Path, provider: Provider) -> None:
    plan = setup(provider, small_disk, scenario=conversation(bash("seq 1 9000"), bash("seq 1 9000"), results))
    async with nothing_left(provider, small_disk):

        async def go_on() -> None:
            async with open_session(plan) as session:
                for _ in range(20):
                    await session.ask("go on")

        with pytest.raises(RunFolderError, match="No space left on device"):
            await go_on()
    (folder,) = small_disk.iterdir()
    told = about(folder)
    assert told["status"] == "error"
    assert "No space left" in told["exit_reason"]
    lines = stream(folder)
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    for transcript in (folder / "transcript").rglob("*.jsonl"):
        for line in transcript.read_text().splitlines():
            json.loads(line)
    assert not list(folder.rglob(".*"))
