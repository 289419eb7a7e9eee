"""After a use of Daytona, an interrupt does what it does without: in a notebook's kernel and in a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from jupyter_client.manager import KernelManager

from harvest_nb.daytona_local import LocalDaytona
from harvest_nb.settings import TOKEN_VARIABLES
from tests.sandbox.daytona.conftest import Left
from tests.test_cli import COMMAND
from tests.test_cli_chat import LIMIT, READY, about, runs, until

pytestmark = [pytest.mark.docker, pytest.mark.soak]


@pytest.fixture
def environment(daytona: LocalDaytona, snapshot_image: Any) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if k not in TOKEN_VARIABLES}
    return {
        **clean, "DAYTONA_API_URL": daytona.api_url, "DAYTONA_API_KEY": daytona.api_key, "TERM": "xterm-256color"
    }  # fmt: skip


Execute = Callable[..., str]


@pytest.fixture
def execute(environment: dict[str, str], tmp_path: Path) -> Iterator[Execute]:
    """Run a cell, interrupt it where `when` says so, and give the name of its error."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path), env=environment)
    client: Any = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=LIMIT)

    def run(code: str, when: Callable[[], bool] | None = None) -> str:
        sent = client.execute(code)
        if when is not None:
            until(when)
            manager.interrupt_kernel()
            client.kernel_info()  # ipykernel's signal handler does not wake its own loop (7.4.0)
        while True:
            reply = client.get_shell_msg(timeout=LIMIT)
            if reply["parent_header"].get("msg_id") == sent:
                return str(reply["content"].get("ename", ""))

    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_a_kernel_is_interrupted_as_ever(execute: Execute, tmp_path: Path, left: Left) -> None:
    (tmp_path / "run.py").write_text(
        "from harvest_nb import run\n"
        "async def go(prompt, provider):\n"
        "    more = {'allowed_tools': ['Bash'], 'mcp_servers': []}\n"
        "    return await run(prompt, provider=provider, scenario='conversation', **more)\n"
    )

    def moment() -> bool:
        time.sleep(1)
        return True

    def in_a_tool(number: int) -> Callable[[], bool]:
        def look() -> bool:
            found = runs(tmp_path)
            return len(found) == number and "echo waiting" in (found[-1] / "stream.jsonl").read_text()

        return look

    assert execute("from run import go; first = await go('hello', 'daytona')") == ""
    assert execute("import asyncio; await asyncio.sleep(600)", moment) != ""
    for number, provider in enumerate(("daytona", "docker"), 2):
        assert execute(f"await go('wait', {provider!r})", in_a_tool(number)) != ""
        assert about(runs(tmp_path)[-1])["status"] == "cancelled"
        assert (runs(tmp_path)[-1] / "memory.after.jsonl").exists()
    assert execute("assert first.ok") == ""
    until(lambda: not left())


def test_a_terminal_is_interrupted_as_ever(environment: dict[str, str], tmp_path: Path, left: Left) -> None:
    chat: pexpect.spawn[str] = pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], "chat", "--provider", "daytona", "--allow", "Bash"], cwd=str(tmp_path),
        env=environment, encoding="utf-8", timeout=LIMIT, dimensions=(40, 110),
    )  # fmt: skip
    chat.expect_exact(READY)
    chat.send("wait\r")
    chat.expect_exact("echo waiting")
    chat.sendcontrol("c")
    chat.expect_exact("in the middle of Bash")
    chat.send("hello\r")
    chat.expect_exact("You said: hello")
    chat.expect(r"1 turn,")
    chat.sendcontrol("c")
    chat.expect_exact("to go on: harvest-nb chat --resume")
    chat.expect(pexpect.EOF)
    chat.wait()
    assert chat.exitstatus == 130
    assert [entry["status"] for entry in about(runs(tmp_path)[0])["prompts"]] == ["cancelled", "success"]
    running = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], "run", "wait", "--scenario", "conversation", "--provider", "daytona", "--allow", "Bash"],
        cwd=str(tmp_path), env=environment, encoding="utf-8", timeout=LIMIT, dimensions=(40, 200),
    )  # fmt: skip
    running.expect_exact("echo waiting")
    running.sendcontrol("c")
    running.expect_exact("interrupted")
    running.expect(pexpect.EOF)
    running.wait()
    assert running.exitstatus == 130
    assert "Traceback" not in str(running.before)
    assert about(runs(tmp_path)[-1])["status"] == "cancelled"
    assert (runs(tmp_path)[-1] / "memory.after.jsonl").exists()
    until(lambda: not left())
