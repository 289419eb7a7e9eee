from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from harvest_nb.daytona_local.kept import keep_port, kept
from harvest_nb.daytona_local.machine import sweep
from harvest_nb.engine import DockerClient
from harvest_nb.snapshot import Snapshot

pytestmark = pytest.mark.docker
COMMAND = [sys.executable, "-c", "from harvest_nb.cli import main; main()"]


KEEPING = {"labels": {"harvest.sandbox": "c1", "harvest.run": "c"}, "autoDeleteInterval": -1}
PASSING = {"labels": {"harvest.sandbox": "c2", "harvest.run": "c"}, "autoDeleteInterval": 0}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, snapshot_image: Snapshot) -> None:
    """The key and the port that are kept are this test's own."""
    monkeypatch.setenv("HARVEST_CACHE", str(tmp_path / "cache"))


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A server that is ended when the test fails, instead of being waited for."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server
        finally:
            if server.poll() is None:
                server.terminate()


def told_by(server: subprocess.Popen[str]) -> dict[str, Any]:
    assert server.stdout is not None
    lines = ""
    while not lines.rstrip().endswith("}"):
        line = server.stdout.readline()
        assert line, f"it ended after {lines!r}"
        lines += line
    told: dict[str, Any] = json.loads(lines)
    return told


def ask(told: dict[str, Any], method: str, path: str, **body: Any) -> dict[str, Any]:
    answer = httpx.request(
        method,
        f"{told['DAYTONA_API_URL']}{path}",
        json=body or None,
        headers={"Authorization": f"Bearer {told['DAYTONA_API_KEY']}"},
        timeout=30,
    )
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def started(told: dict[str, Any], image: Snapshot, **asked: Any) -> str:
    ident: str = ask(told, "POST", "/sandbox", snapshot=image.id, **asked)["id"]
    for _ in range(300):
        if ask(told, "GET", f"/sandbox/{ident}")["state"] == "started":
            return ident
        time.sleep(0.1)
    raise AssertionError("it did not start")


def containers(engine: DockerClient, ident: str) -> list[str]:
    """The states of a sandbox's containers."""
    label = {"label": f"harvest.daytona-local.sandbox={ident}"}
    return [item["State"] for item in engine.api.containers(all=True, filters=label)]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_key_serves_and_takes_its_sandboxes_with_it(
    engine: DockerClient, snapshot_image: Snapshot, tmp_path: Path, sig: signal.Signals
) -> None:
    with serving(
        [*COMMAND, "daytona-local", "--json", "--key", "my-own", "--fault", "slow-start=0.1*1"]
    ) as server:
        told = told_by(server)
        assert told["DAYTONA_API_KEY"] == "my-own"
        assert told["stand_in"] is True
        assert told["DAYTONA_API_URL"].startswith("http://127.0.0.1:")
        env = {**os.environ, **{name: told[name] for name in ("DAYTONA_API_URL", "DAYTONA_API_KEY")}}
        made = ask(told, "POST", "/sandbox", snapshot=snapshot_image.id, **KEEPING)
        volume = ask(told, "POST", "/volumes", name="v")
        listed = subprocess.run(
            [*COMMAND, "sandboxes", "--provider", "daytona", "--all", "--json"],
            env=env,
            capture_output=True,
            check=True,
        )
        assert [item["id"] for item in json.loads(listed.stdout)["sandboxes"]] == ["c1"]
        ran = subprocess.run(
            [
                *COMMAND,
                "run",
                "Summarise @docs/ai/shared/testing.md",
                "--provider",
                "daytona",
                "--runs-dir",
                str(tmp_path),
                "--json",
            ],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert json.loads(ran.stdout)["status"] == "success"
        assert told["DAYTONA_API_KEY"] not in ran.stdout + ran.stderr
        server.send_signal(sig)
        assert server.wait(60) == 0
    assert containers(engine, made["id"]) == []
    assert not engine.api.volumes(filters={"name": volume["id"]})["Volumes"]


def test_what_a_killed_one_left_ends_by_itself_and_goes_when_another_starts(
    engine: DockerClient, snapshot_image: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = "import harvest_nb.daytona_local.machine as machine; machine._LEASE = 6.0; "
    command = [COMMAND[0], "-c", short + COMMAND[2]]
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(serving([*command, "daytona-local", "--json"]))
        told = told_by(first)
        other = stack.enter_context(serving([*COMMAND, "daytona-local", "--json"]))
        beside = told_by(other)
        assert told["DAYTONA_API_KEY"] == beside["DAYTONA_API_KEY"]
        assert told["DAYTONA_API_URL"] != beside["DAYTONA_API_URL"]
        keeping, passing = started(told, snapshot_image, **KEEPING), started(told, snapshot_image, **PASSING)
        volume = ask(told, "POST", "/volumes", name="v")
        held = started(beside, snapshot_image, **KEEPING)
        assert containers(engine, keeping) == containers(engine, passing) == ["running"]
        os.kill(first.pid, signal.SIGKILL)
        for _ in range(300):
            if containers(engine, keeping) == ["exited"] and containers(engine, passing) == []:
                break
            time.sleep(0.1)
        # An ephemeral sandbox is gone with its lease; one that may be started again ends, and keeps its files.
        assert (containers(engine, keeping), containers(engine, passing)) == (["exited"], [])
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("HARVEST_NAMESPACE", f"{os.environ['HARVEST_NAMESPACE']}.elsewhere")
            assert sweep(engine) == []  # another namespace's
        assert containers(engine, keeping) == ["exited"]
        with serving([*COMMAND, "daytona-local", "--json"]) as second:
            assert told_by(second) == told  # so shells that were open go on with it
            assert containers(engine, keeping) == []
            assert not engine.api.volumes(filters={"name": volume["id"]})["Volumes"]
            assert containers(engine, held) == ["running"]
            second.send_signal(signal.SIGTERM)
            assert second.wait(60) == 0
        assert ask(beside, "GET", f"/sandbox/{held}")["state"] == "started"
        other.send_signal(signal.SIGTERM)
        assert other.wait(60) == 0
    assert containers(engine, held) == []


def test_it_says_that_the_port_it_kept_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        kept()
        keep_port(port)
        with subprocess.Popen(
            [*COMMAND, "daytona-local", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as server:
            told = told_by(server)
            server.terminate()
            said = server.communicate(timeout=60)[1]
    assert str(port) not in told["DAYTONA_API_URL"]
    assert f"Port {port} is taken" in said


def test_it_lists_what_may_go_wrong_and_refuses_what_it_does_not_know() -> None:
    listed = subprocess.run(
        [*COMMAND, "daytona-local", "--faults"], capture_output=True, text=True, check=True
    )
    assert "stuck-starting" in listed.stdout
    refused = subprocess.run(
        [*COMMAND, "daytona-local", "--fault", "no"], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, "There is no fault" in refused.stderr) == (2, True)
