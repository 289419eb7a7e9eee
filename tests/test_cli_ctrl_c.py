"""Ctrl-C on the command line: a word at once, an end in bounded time, and nothing left that is not named."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import nbformat
import psutil
import pytest

from harvest_nb.settings import TOKEN_VARIABLES
from tests.test_cli import COMMAND, call
from tests.test_cli_chat import LIMIT, about, gone, runs, until

pytestmark = pytest.mark.slow

WAIT = ("run", "wait", "--scenario", "conversation", "--allow", "Bash", "--provider")
AT_ONCE = 4  # seconds on a machine that is busy
BOUNDED = 15


@contextmanager
def started(folder: Path, *arguments: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    clean = {k: v for k, v in os.environ.items() if k not in TOKEN_VARIABLES}
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env={**clean, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as child:  # fmt: skip
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def runs_still(program: psutil.Process) -> bool:
    try:
        return program.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def in_a_tool(folder: Path) -> None:
    until(lambda: any("echo waiting" in path.read_text() for path in folder.glob("runs/*/stream.jsonl")))


def ended(child: subprocess.Popen[str], seconds: float, number: signal.Signals = signal.SIGINT) -> list[str]:
    """The lines of standard error of a command that has been sent a signal, and has ended for that."""
    child.send_signal(number)
    began = time.monotonic()
    _, said = child.communicate(timeout=LIMIT)
    assert time.monotonic() - began < seconds
    assert child.returncode == 128 + number
    assert "Traceback" not in said
    return [line for line in said.splitlines() if line]


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.2, 0.4])
def test_a_second_one_in_the_last_moment_leaves_the_exit_code(pause: float, tmp_path: Path) -> None:
    with started(tmp_path, *WAIT, "host") as child:
        in_a_tool(tmp_path)
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None
        assert "interrupted" in child.stderr.readline()
        time.sleep(pause)
        ended(child, AT_ONCE)


@pytest.mark.parametrize("loaded", ["_pydantic_core", "_psutil"])
def test_it_is_heard_while_the_command_is_loaded(loaded: str, tmp_path: Path) -> None:
    with started(tmp_path, "build", "--image", "nosuch:tag", HARVEST_ENGINE="off") as child:
        maps = Path(f"/proc/{child.pid}/maps")
        while child.poll() is None and loaded not in maps.read_text():
            time.sleep(0.005)
        (line,) = ended(child, AT_ONCE)
        assert "interrupted" in line


@contextmanager
def frozen(child: subprocess.Popen[str]) -> Iterator[None]:
    """A sandbox whose programs have stopped, which answers nothing."""
    programs = psutil.Process(child.pid).children(recursive=True)
    assert programs
    for program in programs:
        with suppress(psutil.NoSuchProcess):  # one of the agent's commands may end meanwhile
            program.suspend()
    try:
        yield
    finally:
        for program in programs:
            if program.is_running():
                program.kill()


@pytest.mark.soak
def test_a_sandbox_that_answers_nothing_is_ended_in_bounded_time(tmp_path: Path) -> None:
    with started(tmp_path, *WAIT, "host") as child:
        in_a_tool(tmp_path)
        with frozen(child):
            lines = ended(child, BOUNDED)
    assert "interrupted" in lines[0]
    (folder,) = runs(tmp_path)
    assert about(folder)["status"] == "cancelled"


def test_the_second_one_ends_at_once_and_names_what_is_left(tmp_path: Path) -> None:
    with started(tmp_path, *WAIT, "host") as child:
        in_a_tool(tmp_path)
        programs = psutil.Process(child.pid).children(recursive=True)
        with frozen(child):
            child.send_signal(signal.SIGINT)
            assert child.stderr is not None
            assert "interrupted" in child.stderr.readline()
            left, where = ended(child, AT_ONCE)
            until(lambda: not any(map(runs_still, programs)))
    assert "harvest-nb sandboxes --reap --provider host" in left
    (folder,) = runs(tmp_path)
    assert str(folder) in where
    assert about(folder)["status"] == "cancelled"
    assert not gone(tmp_path, "host")
    call("sandboxes", "--reap", "--provider", "host", cwd=tmp_path)
    assert gone(tmp_path, "host")


def test_a_toolchain_that_is_half_installed_is_named(tmp_path: Path) -> None:
    def halves() -> list[Path]:
        return list((tmp_path / "cache").glob(".toolchain-*/package-lock.json"))

    with started(tmp_path, *WAIT, "host", HARVEST_CACHE=str(tmp_path / "cache")) as child:
        until(lambda: bool(halves()))
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None
        assert "interrupted" in child.stderr.readline()
        begun = halves()
        lines = ended(child, AT_ONCE)
    assert begun
    for half in begun:
        assert any(f"rm -r {half.parent}" in line for line in lines) or not half.parent.exists()


def test_a_run_ends_when_its_time_is_over(tmp_path: Path) -> None:
    done = call(*WAIT, "host", "--timeout", "3", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert (done.returncode, told["status"]) == (1, "error")
    assert "3 s" in told["reason"]
    assert gone(tmp_path, "host")


TALK = """
from harvest_nb import chat
talk = chat(prompts=[], provider="host", allowed_tools=["Bash"])
await talk.ask("hello")
await talk.ask("wait")
"""


STUBBORN = """
import pathlib, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path("begun").touch()
time.sleep(600)
"""


def test_an_interrupted_notebook_lets_go_of_its_sandboxes_and_is_named(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TALK)])
    nbformat.write(book, tmp_path / "talk.ipynb")
    with started(tmp_path, "notebooks", "run", "talk.ipynb", "--out", "done") as child:
        in_a_tool(tmp_path)
        child.send_signal(signal.SIGINT)
        out, said = child.communicate(timeout=LIMIT)
    assert child.returncode == 130
    assert "interrupted" in said
    assert "Traceback" not in out + said
    assert "done/talk.ipynb" in out + said
    assert (tmp_path / "done" / "talk.ipynb").exists()
    (folder,) = runs(tmp_path)
    if "left behind" in said:  # a machine that does much else had not ended it all by then
        call("sandboxes", "--reap", "--provider", "host", cwd=tmp_path)
    else:
        assert [entry["status"] for entry in about(folder)["prompts"]] == ["success", "cancelled"]
    assert gone(tmp_path, "host")


def test_a_second_one_leaves_no_file_of_a_kernel(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(STUBBORN)])
    nbformat.write(book, tmp_path / "book.ipynb")
    with started(tmp_path, "notebooks", "run", "book.ipynb", "--out", "done") as child:
        until((tmp_path / "begun").exists)
        (kernel,) = psutil.Process(child.pid).children()
        words = kernel.cmdline()
        connection = Path(words[words.index("-f") + 1])
        sockets = [
            Path(path) for item in kernel.net_connections("unix") if "/k-" in (path := str(item.laddr))
        ]
        assert sockets
        assert connection.exists()
        child.send_signal(signal.SIGINT)
        assert child.stderr is not None
        assert "interrupted" in child.stderr.readline()
        ended(child, AT_ONCE)
    assert not [file for file in (connection, *sockets) if file.exists()]


@pytest.mark.docker
@pytest.mark.soak
@pytest.mark.parametrize("delay", [1.0, 2.5, 4.0, 8.0])
def test_a_validation_ends_in_whatever_it_is_doing(
    delay: float, snapshot_image: object, tmp_path: Path
) -> None:
    with started(tmp_path, "validate", XDG_CACHE_HOME=str(tmp_path / "cache")) as child:
        time.sleep(delay)
        lines = ended(child, BOUNDED)
    assert "interrupted" in lines[0]
    listed = json.loads(call("sandboxes", "--json", cwd=tmp_path).stdout)["sandboxes"]
    assert not [item for item in listed if item["labels"].get("harvest.run") == "validate"]


SANDBOX = """
import asyncio, threading
from harvest_nb.providers import get_provider

async def hold():
    kept = await get_provider("docker").create()
    await asyncio.sleep(600)

threading.Thread(target=asyncio.run, args=(hold(),), daemon=True).start()
"""


@pytest.mark.docker
@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_lab_ends_with_its_kernels_and_their_sandboxes(
    number: signal.Signals, snapshot_image: object, tmp_path: Path
) -> None:
    def listed() -> list[object]:
        return list(json.loads(call("sandboxes", "--json", cwd=tmp_path).stdout)["sandboxes"])

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, before = f"http://127.0.0.1:{port}/api", len(listed())
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "sandbox.py").write_text(SANDBOX)

    def answers() -> bool:
        try:
            return httpx.get(f"{address}/status").status_code > 0
        except httpx.HTTPError:
            assert child.poll() is None
            return False

    with started(
        tmp_path, "lab", "--no-browser", "--port", str(port), "--", "--IdentityProvider.token=t",
        IPYTHONDIR=str(tmp_path / "ipython"),
    ) as child:  # fmt: skip
        until(answers)
        told = httpx.post(
            f"{address}/kernels",
            json={"name": "python3"},
            headers={"Authorization": "token t"},
            timeout=LIMIT,
        )
        assert told.status_code == 201
        until(lambda: len(listed()) > before)
        programs = psutil.Process(child.pid).children(recursive=True)
        assert len(programs) > 1
        lines = ended(child, BOUNDED, number)
        until(lambda: not any(map(runs_still, programs)))
    if any(
        "left behind" in line for line in lines
    ):  # a machine that does much else had not ended it all by then
        call("sandboxes", "--reap", cwd=tmp_path)
    assert len(listed()) == before
