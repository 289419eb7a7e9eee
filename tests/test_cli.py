from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harvest_nb.settings import TOKEN_VARIABLES

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from harvest_nb.cli import main; main()"]


def call(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in TOKEN_VARIABLES}
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_doctor_tells_what_is_here_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GITHUB_TOKEN=the-value-of-the-token\n")
    done = call("doctor", "--json", cwd=tmp_path)
    found = {item["what"]: item for item in json.loads(done.stdout)}
    assert done.returncode == 0
    assert found["GITHUB_TOKEN"]["found"] == "set"
    assert found["LINEAR_API_KEY"]["found"] == "not set"
    assert "the-value-of-the-token" not in done.stdout + done.stderr


def test_no_engine_is_exit_code_three(tmp_path: Path) -> None:
    done = call("build", cwd=tmp_path, HARVEST_ENGINE="off")
    assert done.returncode == 3
    assert "HARVEST_ENGINE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_exit_code_two(tmp_path: Path) -> None:
    assert call("run", "hello", "--provider", "elsewhere", cwd=tmp_path).returncode == 2
    done = call("run", "hello", "--live", "--provider", "host", cwd=tmp_path)
    assert done.returncode == 2
    assert "CLAUDE_CODE_OAUTH_TOKEN" in done.stderr


def test_a_missing_notebook_and_an_unknown_parameter_are_named(tmp_path: Path) -> None:
    assert "no notebook nowhere.ipynb" in call("notebooks", "run", "nowhere.ipynb", cwd=tmp_path).stderr
    done = call("notebooks", "run", "-p", "colour=blue", cwd=tmp_path, HARVEST_ENGINE="off")
    assert done.returncode == 2
    assert "colour" in done.stderr


def test_a_run_prints_one_json_document(tmp_path: Path) -> None:
    done = call("run", "Summarise @docs/ai/shared/testing.md", "--provider", "host", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"], told["endpoint"]) == (0, True, "scripted")
    assert Path(told["folder"]).parent == tmp_path / "runs"


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = call("lab", "--no-browser", "--port", str(taken.getsockname()[1]), cwd=tmp_path)
    assert done.returncode == 1
    assert "is taken" in done.stderr


@pytest.mark.docker
def test_ctrl_c_leaves_no_container(snapshot_image: object, engine: object, tmp_path: Path) -> None:
    from harvest_nb.sandbox.docker import DockerProvider

    provider = DockerProvider(engine)  # type: ignore[arg-type]
    with subprocess.Popen(
        [*COMMAND, "run", "Summarise @docs/ai/shared/testing.md"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as running:  # fmt: skip
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("runs/*/run.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.4)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "run.json").read_text())["status"] == "cancelled"
    assert asyncio.run(provider.list({"harvest.run": folder.name})) == []
