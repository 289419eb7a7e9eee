"""The program in front of the memory server: with a server that stands for it on the desk, and with two real ones."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harvest_nb.checks.mcp import tool_text
from harvest_nb.checks.mcp_client import mcp_session
from harvest_nb.engine import DockerClient
from harvest_nb.errors import SandboxError
from harvest_nb.paths import snapshot_dir
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.snapshot import Snapshot

PROGRAM = snapshot_dir() / "memory_server.py"
SERVER = """#!{python}
import sys, time
print("serving", *sys.argv[1:], flush=True)
sys.stdin.readline()
"""


class Place:
    """The program beside a server of a few lines, and a store."""

    def __init__(self, root: Path) -> None:
        self.program = root / "memory_server.py"
        self.store = root / "home" / "memory.jsonl"
        shutil.copy(PROGRAM, self.program)
        server = root / "node_modules" / ".bin" / "mcp-server-memory"
        server.parent.mkdir(parents=True)
        server.write_text(SERVER.format(python=sys.executable))
        server.chmod(0o755)

    def start(self, *argv: str, store: str | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-I", str(self.program), *argv],
            env={"MEMORY_FILE_PATH": str(self.store) if store is None else store},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def ended(process: subprocess.Popen[str], said: str = "") -> tuple[int, str, str]:
    out, err = process.communicate(said, timeout=30)
    return process.returncode, out, err


def serving(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().startswith("serving")


def test_one_server_starts_and_gets_the_arguments(place):
    assert ended(place.start("--a", "b")) == (0, "serving --a b\n", "")


@pytest.mark.slow
def test_a_second_one_is_refused_with_a_clear_error_and_so_is_its_client(place):
    with place.start() as first:
        serving(first)
        code, out, err = ended(
            place.start(), json.dumps({"jsonrpc": "2.0", "id": 7, "method": "initialize"}) + "\n"
        )
        assert code == 75
        assert f"{place.store} is in use by another memory server (process {first.pid})" in err
        assert "MEMORY_FILE_PATH" in err
        answer = json.loads(out)
        assert (answer["id"], answer["error"]["message"]) == (7, err.strip())
        assert first.poll() is None
        ended(first, "\n")


@pytest.mark.slow
def test_a_link_to_the_store_is_the_store(place, tmp_path):
    place.store.parent.mkdir()
    place.store.write_text("")
    (tmp_path / "link.jsonl").symlink_to(place.store)
    with place.start() as first:
        serving(first)
        assert ended(place.start(store=str(tmp_path / "link.jsonl")))[0] == 75
        assert ended(place.start(store=str(tmp_path / "other.jsonl")))[0] == 0
        ended(first, "\n")


def test_one_that_comes_while_the_other_ends_waits_for_it(place):
    with place.start() as first:
        serving(first)
        second = place.start()
        time.sleep(0.5)
        ended(first, "\n")
        assert ended(second)[0] == 0


def test_a_server_that_was_killed_holds_nothing(place):
    with place.start() as first:
        serving(first)
        first.kill()
        first.wait()
    assert ended(place.start())[0] == 0


@pytest.mark.parametrize("store", ["", "memory.jsonl"])
def test_the_store_needs_an_absolute_path(place, store):
    code, _, err = ended(place.start(store=store))
    assert code == 78
    assert "MEMORY_FILE_PATH" in err


def test_a_lock_that_cannot_be_written(place):
    place.store.parent.write_text("a file where the folder belongs")
    code, _, err = ended(place.start())
    assert code == 73
    assert "cannot lock the memory store" in err


def test_a_server_that_is_not_there(place):
    shutil.rmtree(place.program.parent / "node_modules")
    assert ended(place.start())[0] == 126


def test_imports_the_standard_library_alone():
    nodes = [
        node
        for node in ast.walk(ast.parse(PROGRAM.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    names = {n.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for n in node.names}
    names |= {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)
    assert os.access(PROGRAM, os.R_OK)


@pytest.mark.docker
async def test_two_real_servers_on_one_store(engine: DockerClient, snapshot_image: Snapshot):
    async with await DockerProvider(engine).create(snapshot_image.id) as sandbox:
        env = {"MEMORY_FILE_PATH": str(sandbox.memory_file)}
        async with mcp_session(sandbox, ["mcp-server-memory"], env=env) as first:
            new = {"name": "Learned", "entityType": "fact", "observations": ["once"]}
            await first.call_tool("create_entities", {"entities": [new]})
            with pytest.raises(SandboxError, match="in use by another memory server") as caught:
                async with mcp_session(sandbox, ["mcp-server-memory"], env=env):
                    pass
            assert str(sandbox.memory_file) in str(caught.value)
            assert "Learned" in tool_text(await first.call_tool("read_graph", {}))
        async with mcp_session(sandbox, ["mcp-server-memory"], env=env) as third:
            assert "Learned" in tool_text(await third.call_tool("read_graph", {}))
