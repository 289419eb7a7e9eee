"""What goes wrong between a desk, a sandbox and an endpoint, made to happen with the real CLI."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import shutil
import subprocess
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import docker
import psutil
import pytest
from claude_agent_sdk import AssistantMessage, Message, create_sdk_mcp_server, tool

from harvest_nb.endpoint.messages import Block, ToolUse
from harvest_nb.endpoint.scripted import Conversation
from harvest_nb.engine import DockerClient, connect
from harvest_nb.sandbox.base import Limits, Provider
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.session.open import Setup
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.result import RunResult
from harvest_nb.session.run import run_session
from harvest_nb.snapshot import Snapshot
from tests.session.conftest import about, bash, conversation, echo, results, say, stream

pytestmark = pytest.mark.slow

# No MCP servers: they take most of a session's start, and have no part in these faults.
PLAIN = SessionOptions(mcp=[], allowed_tools=["Bash"], env={"CLAUDE_CODE_MAX_RETRIES": "2"})

# Daytona's own faults are tested where its provider is.
HERE = [pytest.param("docker", marks=pytest.mark.docker), "host"]


@pytest.fixture(params=HERE)
def provider(request: pytest.FixtureRequest, provider_named: Callable[[str], Provider]) -> Provider:
    return provider_named(request.param)


def setup(provider: Provider | None, runs: Path, **changes: Any) -> Setup:
    return replace(
        Setup(provider=provider, runs_dir=runs, options=PLAIN, scenario=conversation(echo)), **changes
    )


# ── the endpoint ──────────────────────────────────────────────────────────────────────────────────────────

SUCCESS = ("success", "success")
# scenario: status, what the reason says, HTTP statuses of the retries that must have been seen (None: no response)
ENDPOINT: dict[str, tuple[str, str, list[int | None]]] = {
    "fault-401": ("error", "set CLAUDE_CODE_OAUTH_TOKEN", [401]),
    "fault-403": ("error", "set CLAUDE_CODE_OAUTH_TOKEN", []),
    "fault-429": (*SUCCESS, [429, 429]),
    "fault-429-retry-after": (*SUCCESS, [429, 429]),
    "fault-429-always": ("error", "rate limit", [429, 429]),
    "fault-500": (*SUCCESS, [500, 500]),
    "fault-500-retry-after": (*SUCCESS, [500, 500]),
    "fault-500-always": ("error", "500", [500, 500]),
    "fault-529": (*SUCCESS, [529, 529]),
    "fault-529-retry-after": (*SUCCESS, [529, 529]),
    "fault-529-always": ("error", "Overloaded", [529, 529]),
    "fault-cut": (*SUCCESS, [None]),
    "fault-cut-always": ("error", "Connection to the API was lost", [None, None]),
    "fault-malformed": (*SUCCESS, []),
    "fault-malformed-always": ("error", "JSON Parse error", []),
    "fault-overloaded-event": (*SUCCESS, []),
    "fault-empty": ("error", "no content", []),
    "fault-nothing": ("error", "empty or malformed response", []),
    "fault-hang": ("error", "No message came for 4 s, waiting for the model's answer", []),
    "fault-hang-mid-stream": ("error", "No message came for 4 s, waiting for the model's answer", []),
}


def _retries(folder: Path) -> list[dict[str, Any]]:
    return [line["message"] for line in stream(folder) if line["message"].get("subtype") == "api_retry"]


def _check(name: str, result: RunResult) -> None:
    status, reason, retried = ENDPOINT[name]
    assert result.status == status, (name, result.reason)
    assert reason in str(result.reason), name
    retries = _retries(result.folder)
    assert [entry["error_status"] for entry in retries] == retried, name
    assert [entry["attempt"] for entry in retries] == list(range(1, len(retried) + 1)), name
    if "retry-after" in name:
        assert all(entry["retry_delay_ms"] >= 1000 for entry in retries), name
    told = about(result.folder)
    assert (told["status"], told["exit_reason"]) == (result.status, result.reason)


@pytest.mark.parametrize("name", ENDPOINT)
async def test_a_faulty_endpoint(name: str, tmp_path: Path) -> None:
    seen: list[Message] = []
    result = await run_session(
        "Say hello.",
        setup(HostProvider(), tmp_path, scenario=name, idle_timeout=4),
        on_message=seen.append,
    )
    _check(name, result)
    # The caller saw the retries while they happened, not only the recorder.
    shown = [message for message in seen if getattr(message, "subtype", None) == "api_retry"]
    assert len(shown) == len(_retries(result.folder))


@pytest.mark.docker
async def test_faulty_endpoints_of_many_sessions_in_one_container(
    engine: DockerClient, snapshot_image: Snapshot, tmp_path: Path
) -> None:
    sandbox = await DockerProvider(engine).create(snapshot_image.id)
    turns = asyncio.Semaphore(4)

    async def run(name: str) -> RunResult:
        async with turns:
            return await run_session(
                "Say hello.",
                setup(None, tmp_path, sandbox=sandbox, scenario=name, idle_timeout=8),
            )

    names = [f"fault-{kind}" for kind in ("401", "403", "429", "500-always", "cut", "malformed", "nothing")]
    try:
        ended = await asyncio.gather(*map(run, names))
    finally:
        await sandbox.close()
    for name, result in zip(names, ended, strict=True):
        _check(name, result)
        assert (result.folder / "transcript" / f"{result.session_id}.jsonl").is_file()
    assert len({result.session_id for result in ended}) == len(names)


# ── the CLI, the container, its memory ────────────────────────────────────────────────────────────────────


async def dying(plan: Setup, command: str, **more: Any) -> tuple[RunResult, float]:
    """A run whose one tool calls `command`, and how many seconds it lived after the call came."""
    called = 0.0

    def note(message: Message) -> None:
        nonlocal called
        if isinstance(message, AssistantMessage):
            called = time.monotonic()

    result = await run_session(
        "go", replace(plan, scenario=conversation(bash(command), results)), on_message=note, **more
    )
    return result, time.monotonic() - called


def _has_call(folder: Path) -> bool:
    return any(line["message"]["type"] == "assistant" for line in stream(folder))


KILLS = "ls / > /dev/null; kill -9 $PPID; sleep 30"


async def test_the_cli_killed_in_the_sandbox(provider: Provider, tmp_path: Path) -> None:
    result, seconds = await dying(setup(provider, tmp_path), KILLS)
    assert (result.status, result.reason) == ("died", "The claude CLI ended by SIGKILL")
    assert seconds < 20  # nobody has waited for a time-out
    assert _has_call(result.folder)
    assert about(result.folder)["exit_reason"] == result.reason


HOG = "python3 -c 'x = bytearray(2**30); print(len(x))'"


@pytest.mark.docker
@pytest.mark.parametrize("victim", ["the tool", "the CLI", "the container"])
async def test_a_container_out_of_memory(
    victim: str, engine: DockerClient, snapshot_image: Snapshot, tmp_path: Path
) -> None:
    """The kernel chooses whom to end: the test tells it, by the only way that needs no privilege."""
    plan = setup(
        DockerProvider(engine),
        tmp_path,
        snapshot=snapshot_image.id,
        limits=Limits(memory_bytes=800 * 1024**2),
    )
    prefer = {
        "the tool": "",
        "the CLI": "echo 1000 > /proc/$PPID/oom_score_adj; ",
        "the container": "for p in /proc/[0-9]*; do grep -q python3 $p/comm && echo 1000 > $p/oom_score_adj; done; ",
    }[victim]
    result, seconds = await dying(plan, f"ls / > /dev/null; {prefer}{HOG}")
    if victim == "the tool":
        assert result.check().text is not None  # an agent whose tool was ended goes on
        return
    assert result.status == "died"
    assert "out of memory" in str(result.reason)
    assert seconds < 20  # nobody has waited for a time-out
    assert _has_call(result.folder)


@pytest.mark.docker
async def test_memory_that_was_short_before_is_not_blamed(
    engine: DockerClient, snapshot_image: Snapshot, tmp_path: Path
) -> None:
    limits = Limits(memory_bytes=800 * 1024**2)
    sandbox = await DockerProvider(engine).create(snapshot_image.id, limits=limits)
    try:
        assert (await sandbox.run(["sh", "-c", HOG])).exit_code == 137
        result, _ = await dying(setup(None, tmp_path, sandbox=sandbox), KILLS)
    finally:
        await sandbox.close()
    assert (result.status, result.reason) == ("died", "The claude CLI ended by SIGKILL")


async def test_the_machines_memory_is_not_blamed_where_nothing_is_isolated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sandbox = await HostProvider().create()
    counts = itertools.count(1)

    async def read(path: str | PurePosixPath, real: Any = sandbox.read, **how: Any) -> Any:
        """The machine's counters, on a machine that is short of memory."""
        return b"oom_kill %d\n" % next(counts) if str(path).startswith("/sys/") else await real(path, **how)

    monkeypatch.setattr(sandbox, "read", read)
    try:
        result, _ = await dying(setup(None, tmp_path, sandbox=sandbox), KILLS)
    finally:
        await sandbox.close()
    assert (result.status, result.reason) == ("died", "The claude CLI ended by SIGKILL")


# ── what is large, and what is no text ────────────────────────────────────────────────────────────────────

LARGE = 20 * 1024**2


async def test_a_line_of_20_mb_and_bytes_that_are_no_text_through_a_process(provider: Provider) -> None:
    sandbox = await provider.create()
    try:
        line = bytes(range(1, 10)) + b"\0\xff\xfe\x80" + b"x" * LARGE + b"\n"
        process = await sandbox.spawn(["cat"])

        async def send() -> None:
            await process.stdin.send(line)
            await process.stdin.aclose()

        async def take() -> bytes:
            return b"".join([chunk async for chunk in process.stdout])

        _, came = await asyncio.gather(send(), take())
        assert await process.wait() == 0
        assert came == line
    finally:
        await sandbox.close()


async def test_an_in_process_tool_answers_with_20_mb(provider: Provider, tmp_path: Path) -> None:
    text = "".join(f"{number:09d} " for number in range(LARGE // 10))

    @tool("large", "Much text", {})
    async def large(_: dict[str, Any]) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": text}]}

    def load(_: Conversation) -> list[Block]:
        return [ToolUse("ToolSearch", {"query": "select:mcp__desk__large", "max_results": 1})]

    def call(_: Conversation) -> list[Block]:
        return [ToolUse("mcp__desk__large", {})]

    options = replace(
        PLAIN,
        tools={"desk": create_sdk_mcp_server("desk", tools=[large])},
        allowed_tools=["mcp__desk__large"],
    )
    result = await run_session(
        "go", setup(provider, tmp_path, options=options, scenario=conversation(load, call, say("done")))
    )
    assert result.check().text == "done"
    answers = [
        line["message"] for line in stream(result.folder)
        if line["dir"] == "out" and line["message"]["type"] == "control_response"
        and "mcp_response" in json.dumps(line["message"])[:2000]
    ]  # fmt: skip
    assert any(text in json.dumps(answer, ensure_ascii=False) for answer in answers)
    # The CLI keeps what it shortens in a file of its own, which comes home with the transcript.
    kept = list((result.folder / "transcript" / str(result.session_id) / "tool-results").iterdir())
    assert any(text in path.read_text() for path in kept)


async def test_what_the_cli_shortens_comes_home_whole(provider: Provider, tmp_path: Path) -> None:
    command = "seq 1 2000000"
    result = await run_session(
        "go", setup(provider, tmp_path, scenario=conversation(bash(command), say("done")))
    )
    assert result.check().text == "done"
    kept = list((result.folder / "transcript" / str(result.session_id) / "tool-results").iterdir())
    assert len(kept) == 1
    assert kept[0].read_text().split() == [str(number) for number in range(1, 2_000_001)]


# ── the engine ────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def second_engine(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A dockerd of the test's own, in a network of its own: one without a bridge removes the one which is there."""
    folder.mkdir()
    socket = f"unix://{folder}/docker.sock"
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                "unshare", "--net", "dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec",
                "--pidfile", f"{folder}/pid", "--host", socket, "--bridge=none", "--iptables=false",
                "--ip6tables=false",
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while subprocess.run(["docker", "-H", socket, "info"], capture_output=True).returncode != 0:
            assert daemon.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield daemon, socket
    finally:
        if daemon.poll() is None:
            daemon.terminate()
        daemon.wait(60)
        # What the engine's own end did not take along, when it was killed.
        for shim in psutil.process_iter(["cmdline"]):
            if str(folder) in " ".join(shim.info["cmdline"] or []):
                for process in [*shim.children(recursive=True), shim]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()


@pytest.mark.docker
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("dockerd") is None,
    reason="only root starts an engine, where there is one",
)
async def test_an_engine_that_stops(
    engine: DockerClient,
    snapshot_image: Snapshot,
    tmp_path: Path,
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped as a service is, while a tool runs."""
    with second_engine(short_path / "e") as (daemon, socket):
        await asyncio.to_thread(
            subprocess.run,
            f"docker save {snapshot_image.id} | docker -H {socket} load && docker -H {socket} images -q",
            shell=True, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        monkeypatch.setenv("DOCKER_HOST", socket)
        with contextlib.closing(connect()) as client:
            plan = setup(DockerProvider(client), tmp_path / "runs", snapshot=snapshot_image.id)
            stopped: list[float] = []

            def stop(message: Message) -> None:
                if isinstance(message, AssistantMessage) and not stopped:
                    stopped.append(time.monotonic())
                    daemon.terminate()

            plan = replace(plan, scenario=conversation(bash("ls / > /dev/null; sleep 60"), results))
            result = await run_session("go", plan, on_message=stop)
            assert time.monotonic() - stopped[0] < 20
            assert result.status == "died"
            assert "engine" in str(result.reason)
            assert _has_call(result.folder)
            assert about(result.folder)["exit_reason"] == result.reason
    del client
    gc.collect()  # a socket that was left open would be a warning here, and a warning is an error


@pytest.mark.docker
async def test_an_engine_that_answers_no_more(
    engine: DockerClient, snapshot_image: Snapshot, tmp_path: Path, short_path: Path
) -> None:
    """As after a kill -9 of the engine: the streams to it end, and it takes no connection."""
    async with road_to_the_engine(short_path / "engine.sock") as cut:
        url = f"unix://{short_path}/engine.sock"
        with contextlib.closing(await asyncio.to_thread(docker.DockerClient, base_url=url)) as client:
            began: list[float] = []

            def stop(message: Message) -> None:
                if isinstance(message, AssistantMessage) and not began:
                    began.append(time.monotonic())
                    cut()

            plan = setup(DockerProvider(client), tmp_path / "runs", snapshot=snapshot_image.id)
            plan = replace(plan, scenario=conversation(bash("ls / > /dev/null; sleep 60"), results))
            result = await run_session("go", plan, on_message=stop)
    seconds = time.monotonic() - began[0]
    left = await DockerProvider(engine).list({"harvest.run": result.id})
    for info in left:
        await asyncio.to_thread(DockerProvider(engine)._remove, info.id)
    assert len(left) == 1
    assert seconds < 20  # nobody has waited for a time-out
    assert result.status == "died"
    assert "the engine does not answer any more" in str(result.reason)
    assert _has_call(result.folder)
    assert "the sandbox could not be removed" in (result.folder / "stderr.log").read_text()


def swept() -> None:
    """Collect what is unreachable, without its warnings: an engine's client that was cut off leaves sockets open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@contextlib.asynccontextmanager
async def road_to_the_engine(path: Path) -> AsyncIterator[Callable[[], None]]:
    """The engine's socket under another name, with a way to cut it off."""
    writers: list[asyncio.StreamWriter] = []
    tasks: set[asyncio.Task[None]] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection("/var/run/docker.sock")
        writers.extend((writer, back))
        for task in (copy(reader, back), copy(there, writer)):
            started = asyncio.create_task(task)
            tasks.add(started)

    server = await asyncio.start_unix_server(carry, path)

    def cut() -> None:
        server.close()
        for writer in writers:
            writer.transport.abort()

    try:
        yield cut
    finally:
        cut()
        await asyncio.gather(*tasks, return_exceptions=True)
        swept()
