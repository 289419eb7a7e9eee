"""What an agent does to the machine that runs its session: each stream, file and wait has a bound."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
from docker.errors import APIError
from docker.models.containers import Container

from harvest_nb.engine import DockerClient
from harvest_nb.sandbox.base import Provider
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.open import Setup, open_session
from harvest_nb.session.run import run_session
from harvest_nb.snapshot import Snapshot
from harvest_nb.tables import load
from tests.memory import peak_memory
from tests.session.conftest import BASH, about, bash, conversation, say

pytestmark = pytest.mark.slow


@pytest.fixture(
    params=[pytest.param("docker", marks=pytest.mark.docker), pytest.param("host", marks=pytest.mark.soak)]
)
def provider(request: pytest.FixtureRequest, provider_named: object) -> Provider:
    return provider_named(request.param)  # type: ignore[operator,no-any-return]


def plan(provider: Provider, tmp_path: Path, command: str) -> Setup:
    script = conversation(bash(command), say("done"))
    return Setup(provider=provider, runs_dir=tmp_path, options=BASH, scenario=script)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("ln -sf /dev/zero $MEMORY_FILE_PATH", "memory graph"),
        ("rm -f $MEMORY_FILE_PATH; mkfifo $MEMORY_FILE_PATH", "not a regular file"),
        ("truncate -s 60G $MEMORY_FILE_PATH", "larger than"),
        (
            "d=$(dirname ~/.claude/projects/*/*.jsonl); s=$(basename $d/*.jsonl .jsonl); "
            'cd "$d"; mkdir -p "$s/tool-results"; cd "$s/tool-results"; truncate -s 60G big.txt; mkfifo pipe.txt',
            "big.txt",
        ),
    ],
    ids=["endless memory", "memory that waits", "huge memory", "huge result"],
)
async def test_what_is_brought_home_has_a_bound(
    provider: Provider, tmp_path: Path, command: str, said: str
) -> None:
    before, began = peak_memory(reset=True), time.monotonic()
    result = await run_session("go", plan(provider, tmp_path, command))
    assert result.ok, result.reason
    assert result.text == "done"
    assert peak_memory() - before < 300e6
    assert time.monotonic() - began < 60
    assert said in " ".join(about(result.folder)["problems"])
    problems = load(result.folder).problems
    assert "recorder" in set(problems["reason"])
    assert (result.folder / "transcript" / f"{result.session_id}.jsonl").stat().st_size > 1000


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("cat /dev/zero > /proc/$PPID/fd/1", "HARVEST_MAX_LINE_BYTES"),
        ("yes aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa > /proc/$PPID/fd/1", None),
    ],
    ids=["a line without an end", "lines without an end"],
)
@pytest.mark.docker
async def test_what_the_cli_says_has_a_bound(
    snapshot_image: Snapshot,
    tmp_path: Path,
    command: str,
    reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HARVEST_MAX_STDERR_BYTES", "1000000")
    before = peak_memory(reset=True)
    setup = replace(plan(DockerProvider(), tmp_path, command), snapshot=snapshot_image.id)
    async with open_session(setup, "go") as session:
        asking = asyncio.create_task(session.ask("go"))
        await asyncio.wait([asking], timeout=20)
        if not asking.done():
            await session.cancel()
        result = await asking
    assert reason is None or reason in str(result.reason)
    assert peak_memory() - before < 300e6
    log = (session.folder.path / "stderr.log").stat().st_size
    assert log < 1_200_000


WIDE = """python3 -c 'quote = chr(34)
print("{" + quote + "type" + quote + ": " + quote + "a" * 13_000_000 + %s + quote + "}")' > /proc/$PPID/fd/1"""


@pytest.mark.parametrize(
    "wide", ["chr(0x1F600)", 'chr(92) + "ud83d" + chr(92) + "ude00"'], ids=["plain", "escaped"]
)
async def test_a_line_whose_text_takes_four_times_its_bytes_is_left_out(wide: str, tmp_path: Path) -> None:
    result = await run_session("go", plan(HostProvider(), tmp_path, WIDE % wide))
    assert result.check().text == "done"
    assert "HARVEST_MAX_TEXT_BYTES" in (result.folder / "stderr.log").read_text()


async def test_messages_past_their_bound_are_recorded_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARVEST_MAX_MESSAGES_BYTES", "20000")
    seen: list[object] = []
    setup = plan(HostProvider(), tmp_path, "seq 2000")
    result = await run_session("go", setup, on_message=seen.append)
    assert result.check().text == "done"
    assert result.num_turns == 2
    assert result.total_cost_usd is not None
    assert 0 < len(result.messages) < len(seen)
    assert any("HARVEST_MAX_MESSAGES_BYTES" in text for text in about(result.folder)["problems"])
    frames = load(result.folder)
    assert len(frames.turns) == 2
    assert set(frames.problems["reason"]) == {"recorder"}


async def test_a_line_of_a_million_values_is_left_out(tmp_path: Path) -> None:
    """Brackets alone take 30 times their size in memory."""
    command = (
        "(printf '{\"type\": \"x\", \"y\": ['; yes '[],[],[],[],[],[],[],[],[],[],' | head -n 500000 | tr -d '\\n'; "
        "echo '[]]}') > /proc/$PPID/fd/1"
    )
    before = peak_memory(reset=True)
    result = await run_session("go", plan(HostProvider(), tmp_path, command))
    assert result.check().text == "done"
    assert "HARVEST_MAX_JSON_VALUES" in (result.folder / "stderr.log").read_text()
    assert peak_memory() - before < 300e6


async def paused(container: Container) -> None:
    """Pause a container; the engine refuses that while a process of it is just being started."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(APIError):
                return container.pause()
            await asyncio.sleep(0.2)


@pytest.mark.docker
@pytest.mark.parametrize("how", ["ends", "is cancelled"])
async def test_a_sandbox_that_does_not_answer_holds_no_run_up(
    engine: DockerClient, snapshot_image: Snapshot, tmp_path: Path, how: str
) -> None:
    setup = replace(
        plan(DockerProvider(), tmp_path, "sleep 60"), snapshot=snapshot_image.id, idle_timeout=2.0
    )
    calling = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(
            run_session("go", setup, on_message=lambda m: calling.set() if "Bash" in str(m) else None)
        )
        await asyncio.wait_for(calling.wait(), 30)
        (folder,) = tmp_path.iterdir()
        container = engine.containers.get(f"harvest-{about(folder)['sandbox_id']}")
        await paused(container)
        began = time.monotonic()
        if how == "is cancelled":
            running.cancel()
        await asyncio.wait([running])
    seconds = time.monotonic() - began
    assert seconds < 10  # 4 on an idle machine
    assert "has not answered" in " ".join(about(folder)["problems"])
    assert about(folder)["status"] == ("error" if how == "ends" else "cancelled")
    assert not engine.containers.list(all=True, filters={"id": str(container.id)})
