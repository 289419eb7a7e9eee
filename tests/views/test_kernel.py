"""A chat's view in a real kernel: what is left when the kernel ends, or the cell runs again."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from harvest_nb.providers import get_provider
from harvest_nb.settings import TOKEN_VARIABLES

pytestmark = pytest.mark.slow

CHAT = "from harvest_nb import chat\ntalk = chat(allowed_tools=['Bash'], provider={provider!r}); await talk"
WAIT = """
import asyncio
begun = asyncio.Event()
asked = asyncio.ensure_future(talk.ask("wait"))
while "echo waiting" not in talk._panel._flow.children[0].value:
    await asyncio.sleep(0.05)
"""


class Kernel:
    """A kernel and its client."""

    def __init__(self, folder: Path) -> None:
        self.manager = KernelManager(kernel_name="python3")
        env = {k: v for k, v in os.environ.items() if k not in TOKEN_VARIABLES}
        self.manager.start_kernel(cwd=str(folder), env=env)
        self.client: Any = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code: str, cell: str) -> None:
        """Run a cell as JupyterLab does, which tells its id."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        message = self.client.session.msg("execute_request", content, metadata={"cellId": cell})
        self.client.shell_channel.send(message)
        while (reply := self.client.get_shell_msg(timeout=90))["parent_header"].get("msg_id") != message[
            "header"
        ]["msg_id"]:
            pass
        assert reply["content"]["status"] == "ok", reply["content"]


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.client.stop_channels()
    if kernel.manager.is_alive():
        kernel.manager.shutdown_kernel(now=True)


def left(provider: str, folder: Path) -> list[str]:
    """Runs of this folder whose sandboxes are still there."""
    runs = {path.parent.name for path in folder.glob("runs/*/run.json")}
    found = {s.labels.get("harvest.run", "") for s in asyncio.run(get_provider(provider).list())}
    return sorted(runs & found)


def statuses(folder: Path) -> list[str]:
    """Of the folder's runs, by their beginning; the names of those that began in one second have no order."""
    runs = [json.loads(path.read_text()) for path in folder.glob("runs/*/run.json")]
    return [run["status"] for run in sorted(runs, key=lambda run: run["created"])]


@pytest.mark.parametrize("provider", [pytest.param("docker", marks=pytest.mark.docker), "host"])
def test_a_kernel_that_is_shut_down_in_mid_turn_leaves_nothing(
    provider: str, kernel: Kernel, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if provider == "docker":
        request.getfixturevalue("snapshot_image")
    kernel.run(CHAT.format(provider=provider).replace("talk", "idle"), "a")
    kernel.run(CHAT.format(provider=provider), "b")
    kernel.run(WAIT, "c")
    kernel.run(f"quiet = chat(prompts=[], provider={provider!r}); await quiet.ask('hello')", "d")
    kernel.manager.shutdown_wait_time = 60  # a machine that does much else may need longer than Jupyter gives
    kernel.manager.shutdown_kernel(now=False)
    assert statuses(tmp_path) == ["success", "cancelled", "success"]
    assert left(provider, tmp_path) == []


def test_a_cell_that_runs_again_ends_the_chat_that_it_has_shown(kernel: Kernel, tmp_path: Path) -> None:
    kernel.run(CHAT.format(provider="host"), "a")
    kernel.run("other = chat(provider='host'); await other", "b")
    assert len(left("host", tmp_path)) == 2
    kernel.run("earlier = talk", "c")
    kernel.run(CHAT.format(provider="host"), "a")
    kernel.run("await earlier.close()", "c")  # which is under way already
    assert statuses(tmp_path) == ["success", "running", "running"]
    assert len(left("host", tmp_path)) == 2
    kernel.run("assert (await talk.ask('hello')).ok and (await other.ask('hello')).ok", "c")
    kernel.run("await talk.close(); await other.close()", "c")
    assert left("host", tmp_path) == []
