"""How fast sessions are, against the same CLI without this package: prints a table, writes JSON.

    python benchmarks/sessions.py [--part transport] [--count 10] [--at-once 8] [--json build/sessions.json]

Needs a Docker engine and the snapshot image (`harvest-nb build`). Nothing is live: a scripted endpoint answers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient, Message, ResultMessage, SystemMessage
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport

from harvest_nb.endpoint.messages import Block, Text, ToolUse
from harvest_nb.endpoint.scripted import Conversation, Script, Step, scripted
from harvest_nb.redact import Redactor
from harvest_nb.sandbox.base import Limits, Sandbox
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sandbox.pool import Pool
from harvest_nb.session.folder import RunFolder
from harvest_nb.session.open import Setup, open_session
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.run import run_session
from harvest_nb.session.session import Session
from harvest_nb.session.transport import SandboxTransport
from harvest_nb.settings import load_settings

IMAGE = load_settings().image
PLAIN = SessionOptions(mcp=[])


def _two_turns(_: Conversation) -> list[Block]:
    return [ToolUse("Bash", {"command": "ls / | head -3", "description": "list"})]


SCRIPT = Script("bench", (Step("tool", _two_turns), Step("answer", lambda _: [Text("word " * 200)])))


async def _scenario(_: Sandbox, __: str) -> Script:
    return SCRIPT


@asynccontextmanager
async def answered(sandbox: Any) -> AsyncIterator[dict[str, str]]:
    """The CLI's environment in `sandbox`, with a scripted endpoint behind it."""
    async with scripted(SCRIPT) as endpoint:
        port = await sandbox.forward("127.0.0.1", endpoint.port or 0)
        yield {
            "HOME": "/home/harvest",
            "CLAUDE_CONFIG_DIR": "/home/harvest/.claude",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{port}",
            "CLAUDE_CODE_OAUTH_TOKEN": endpoint.secret,
        }


def _exec(sandbox: Any, env: dict[str, str]) -> list[str]:
    settings = [item for name, value in env.items() for item in ("-e", f"{name}={value}")]
    return ["docker", "exec", "-i", "-w", "/app", *settings, f"harvest-{sandbox.id}", "claude"]


def _wrapper(folder: Path, sandbox: Any, env: dict[str, str]) -> str:
    """What the SDK's own transport starts instead of `claude`: the same CLI in the same container."""
    path = folder / "claude"
    words = " ".join(f"'{word}'" for word in _exec(sandbox, env))
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)
    return str(path)


async def transport(count: int, **_: Any) -> dict[str, Any]:
    """Start to `init` and to the result, our transport with its recording against the SDK's, interleaved."""
    sandbox = await DockerProvider().create(IMAGE)
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "sdk": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary), Redactor({"GITHUB_TOKEN": "ghp_" + "x" * 36}), {})
        try:
            async with answered(sandbox) as env:
                wrapper = _wrapper(Path(temporary), sandbox, env)
                for number in range(count + 1):
                    for which in ("ours", "sdk") if number % 2 else ("sdk", "ours"):
                        took = await _once(which, sandbox, env, wrapper, folder)
                        if number:  # the first of each warms the caches
                            times[which].append(took)
        finally:
            folder.close()
            await sandbox.close()
    found: dict[str, Any] = {}
    for place, name in enumerate(("init", "result")):
        ours, sdk = ([pair[place] for pair in times[which]] for which in ("ours", "sdk"))
        found |= {f"{name}_ours_s": statistics.median(ours), f"{name}_sdk_s": statistics.median(sdk)}
        found[f"{name}_ratio"] = statistics.median(ours) / statistics.median(sdk)
    return found


async def _once(
    which: str, sandbox: Any, env: dict[str, str], wrapper: str, folder: RunFolder
) -> tuple[float, float]:
    options = ClaudeAgentOptions(
        cwd="/app" if which == "ours" else "/", model="claude-sonnet-4-5", permission_mode="bypassPermissions",
        include_partial_messages=True, setting_sources=[],
        cli_path=None if which == "ours" else wrapper,
    )  # fmt: skip

    def tap(direction: str, message: dict[str, Any], raw: bytes) -> dict[str, Any]:
        folder.record(direction, raw)
        return message

    chosen = SandboxTransport(sandbox, options, env=env, tap=tap) if which == "ours" else None
    start = time.perf_counter()
    init = 0.0
    client = ClaudeSDKClient(options, chosen or SubprocessCLITransport(prompt=_never(), options=options))
    await client.connect()
    try:
        await client.query("go")
        async for message in client.receive_response():
            if isinstance(message, SystemMessage) and message.subtype == "init":
                init = time.perf_counter() - start
            if isinstance(message, ResultMessage):
                assert not message.is_error, message
        return init, time.perf_counter() - start
    finally:
        await client.disconnect()


async def _never() -> AsyncIterator[dict[str, Any]]:
    return
    yield {}


async def sandboxes(count: int, **_: Any) -> dict[str, Any]:
    """From `create` to the end of a first command: a new container, and a warm one."""

    async def timed(make: Callable[[], Awaitable[Any]]) -> float:
        start = time.perf_counter()
        sandbox = await make()
        (await sandbox.run(["true"])).check()
        seconds = time.perf_counter() - start
        await sandbox.close()
        return seconds

    provider = DockerProvider()
    await timed(lambda: provider.create(IMAGE))
    new = [await timed(lambda: provider.create(IMAGE)) for _ in range(count)]
    async with Pool(provider, 1, snapshot=IMAGE) as pool:
        warm = []
        for number in range(count):
            await pool.filled()
            run = f"bench-{number}"
            warm.append(await timed(lambda run=run: pool.create(labels={"harvest.run": run})))  # type: ignore[misc]
    return {"new_s": statistics.median(new), "warm_s": statistics.median(warm)}


async def many(at_once: int, count: int, **_: Any) -> dict[str, Any]:
    """Whole recorded runs at once through one process, against the same CLIs run raw in the same container."""
    # Room for all of them: each CLI takes some 250 MB and two dozen threads.
    room = Limits(memory_bytes=at_once * 400 * 1024**2 + 2**30, pids=1024 + at_once * 64)
    sandbox = await DockerProvider().create(IMAGE, limits=room)
    rates: dict[str, list[float]] = {"ours": [], "raw": []}
    flags = ["-p", "go", "--output-format", "stream-json", "--verbose", "--include-partial-messages"]
    flags += ["--model", "claude-sonnet-4-5", "--permission-mode", "bypassPermissions"]

    async def raw(env: dict[str, str]) -> None:
        process = await asyncio.create_subprocess_exec(
            *_exec(sandbox, env), *flags, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out[-500:]

    with tempfile.TemporaryDirectory() as temporary:
        plan = Setup(sandbox=sandbox, scenario=_scenario, options=PLAIN, runs_dir=Path(temporary))

        async def ours() -> None:
            (await run_session("go", plan)).check()

        try:
            async with answered(sandbox) as env:
                await asyncio.gather(ours(), raw(env))
                for number in range(max(2, count // 4)):
                    for which in ("ours", "raw") if number % 2 else ("raw", "ours"):
                        start = time.perf_counter()
                        await asyncio.gather(
                            *(ours() if which == "ours" else raw(env) for _ in range(at_once))
                        )
                        rates[which].append(at_once / (time.perf_counter() - start))
        finally:
            await sandbox.close()
    ours_rate, raw_rate = statistics.median(rates["ours"]), statistics.median(rates["raw"])
    return {
        "at_once": at_once, "ours_per_s": ours_rate, "raw_per_s": raw_rate, "ratio": ours_rate / raw_rate,
    }  # fmt: skip


async def idle(at_once: int, **_: Any) -> dict[str, Any]:
    """Memory of this process for each session that waits for its next prompt."""
    sandbox = await DockerProvider().create(IMAGE)
    with tempfile.TemporaryDirectory() as temporary:
        plan = Setup(sandbox=sandbox, scenario=_scenario, options=PLAIN, runs_dir=Path(temporary))
        go_on = asyncio.Event()
        asked: asyncio.Queue[None] = asyncio.Queue()

        async def wait() -> None:
            async with open_session(plan) as session:
                (await session.ask("go")).check()
                session.results[-1].messages.clear()
                asked.put_nowait(None)
                await go_on.wait()

        (await run_session("go", plan)).check()
        before = psutil.Process().memory_info().rss
        tasks = [asyncio.create_task(wait()) for _ in range(at_once)]
        for _ in tasks:
            await asked.get()
        after = psutil.Process().memory_info().rss
        go_on.set()
        await asyncio.gather(*tasks)
        await sandbox.close()
    return {"sessions": at_once, "mb_per_session": (after - before) / at_once / 1e6}


async def cancel(count: int, **_: Any) -> dict[str, Any]:
    """How long `cancel()` takes: before `init`, while the model streams, in the middle of a tool."""

    def answer(_: Conversation) -> list[Block]:
        return [ToolUse("Bash", {"command": "ls / > /dev/null; sleep 300", "description": "sleep"})]

    async def scenario(_: Sandbox, __: str) -> Script:
        return Script("cancel", (Step("answer", answer),))

    found: dict[str, Any] = {}
    sandbox = await DockerProvider().create(IMAGE)
    with tempfile.TemporaryDirectory() as temporary:
        plan = Setup(sandbox=sandbox, scenario=scenario, options=PLAIN, runs_dir=Path(temporary))
        for where in ("before init", "streaming", "in a tool"):
            # A stream at a model's pace: one that comes all at once is over before anybody can stop it.
            paced = replace(plan, scenario="slow-stream") if where == "streaming" else plan
            async with open_session(paced) as session:
                times = [await _cancelled(session, where) for _ in range(count)]
            key = where.replace(" ", "_")
            found |= {f"{key}_median_s": statistics.median(times), f"{key}_max_s": max(times)}
        await sandbox.close()
    return found


async def _cancelled(session: Session, where: str) -> float:
    there = asyncio.Event()
    wanted = {"streaming": "StreamEvent", "in a tool": "AssistantMessage"}.get(where)

    def note(message: Message) -> None:
        if type(message).__name__ == wanted:
            there.set()

    if where == "before init":
        await session.start()
    asking = asyncio.create_task(session.ask("stream" if where == "streaming" else "tool", on_message=note))
    if wanted:
        await there.wait()
        if where == "in a tool":
            await asyncio.sleep(0.1)  # its process has started by then
    else:
        await asyncio.sleep(0.005)
    start = time.perf_counter()
    await session.cancel()
    seconds = time.perf_counter() - start
    result = await asking
    assert result.status == "cancelled", result.reason
    return seconds


PARTS = {"transport": transport, "sandboxes": sandboxes, "many": many, "idle": idle, "cancel": cancel}


async def main(arguments: argparse.Namespace) -> None:
    """Run the parts that were asked for."""
    for name in [name for name in os.environ if name.startswith(("ANTHROPIC_", "CLAUDE_"))]:
        del os.environ[name]
    report: dict[str, Any] = {
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}",
        "load_before": os.getloadavg()[0],
    }
    for name in arguments.part or PARTS:
        report[name] = await PARTS[name](count=arguments.count, at_once=arguments.at_once)
        for figure, value in report[name].items():
            print(f"{name:<12}{figure:<28}{value:>10.3f}", flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{report['machine']}; load before {report['load_before']:.1f}", file=sys.stderr)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this one; may be repeated")
    parser.add_argument("--count", type=int, default=10, help="measurements of each kind")
    parser.add_argument("--at-once", type=int, default=8, help="sessions at once")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    asyncio.run(main(parser.parse_args()))
