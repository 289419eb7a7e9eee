"""Engines that are started are second ones, with their own data, socket, process file and network: never the
machine's. The network matters: a dockerd that is told to have no bridge removes the one which is there.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from harvest_nb.engine import DockerClient, apt, client, connect, ensure, setup
from harvest_nb.errors import EngineError
from harvest_nb.machine import command

ROOT = os.geteuid() == 0

PROGRAM = """
import sys
from pathlib import Path
from harvest_nb.engine import client, ensure, setup
folder = Path(sys.argv[1])
client.DEFAULT_SOCKET = f"unix://{folder}/docker.sock"
setup._service_commands = lambda: []
setup.DOCKERD_ARGUMENTS = (
    "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--pidfile", f"{folder}/docker.pid",
    "--host", f"unix://{folder}/docker.sock", "--bridge=none", "--iptables=false", "--ip6tables=false",
)
found = ensure(print)
print("root", found.info()["DockerRootDir"])
found.close()
"""


def reason(where: pytest.ExceptionInfo[EngineError]) -> str:
    return str(where.value.reason)


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch, short_path: Path, own_locks: Path, no_docker_settings: None) -> Path:
    """A place of one's own where no engine answers, and nothing that could start one."""
    monkeypatch.setenv("HARVEST_CACHE", str(short_path / "cache"))
    monkeypatch.setattr(client, "DEFAULT_SOCKET", f"unix://{short_path}/docker.sock")
    monkeypatch.setattr(setup, "_service_commands", list)
    return short_path


@pytest.mark.docker
def test_a_running_engine_is_used_and_nothing_started(engine: DockerClient, monkeypatch):
    monkeypatch.setattr(setup, "_start", lambda *_: pytest.fail("started one"))
    said: list[str] = []
    with closing(ensure(said.append)) as found:
        assert found.info()["ID"] == engine.info()["ID"]
    assert len(said) == 1
    assert engine.version()["Version"] in said[0]


def test_off_forbids_it(own, monkeypatch):
    monkeypatch.setenv("HARVEST_ENGINE", "off")
    monkeypatch.setattr(setup, "_start", lambda *_: pytest.fail("started one"))
    with pytest.raises(EngineError) as caught:
        ensure(pytest.fail)
    assert reason(caught) == "off"


@pytest.mark.parametrize("host", ["tcp://127.0.0.1:9", "unix:///nowhere/docker.sock"])
def test_a_local_engine_is_never_started_for_a_remote_one(own, monkeypatch, host):
    monkeypatch.setenv("DOCKER_HOST", host)
    monkeypatch.setattr(setup, "_start", lambda *_: pytest.fail("started one"))
    with pytest.raises(EngineError, match="DOCKER_HOST") as caught:
        ensure(pytest.fail)
    assert reason(caught) == "unreachable"


def test_without_root_the_command_to_run_is_named(own, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EngineError, match="only root") as caught:
        ensure(lambda _: None)
    assert "sudo" in caught.value.hint


def test_on_another_system_docker_desktop_is_named(own, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EngineError) as caught:
        ensure(lambda _: None)
    assert "Docker Desktop" in caught.value.hint


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_dockerd_that_dies_is_told_with_the_end_of_its_log(own, monkeypatch):
    fake(own / "bin", "dockerd", "echo 'failed to start: no cgroups here'; exit 1")
    monkeypatch.setenv("PATH", f"{own / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    said: list[str] = []
    with pytest.raises(EngineError, match="no cgroups here") as caught:
        ensure(said.append)
    assert reason(caught) == "start"
    assert str(own / "cache" / "dockerd.log") in caught.value.hint
    assert any("in the background" in line for line in said)


def test_a_service_that_fails_is_told_and_dockerd_tried(own, monkeypatch):
    fake(own / "bin", "dockerd", "exit 1")
    fake(own / "bin", "service", "echo 'docker: unrecognized service'; exit 1")
    monkeypatch.setenv("PATH", f"{own / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup, "_service_commands", lambda: [["service", "docker", "start"]])
    said: list[str] = []
    with pytest.raises(EngineError):
        ensure(said.append)
    assert said[0] == "starting the Docker engine: service docker start"
    assert "unrecognized service" in said[1]


def test_a_missing_engine_is_installed_from_the_systems_packages(own, monkeypatch):
    log = own / "apt.log"
    # The first install finds no lists; after the update it brings a dockerd (which then cannot run here).
    fake(
        own / "bin",
        "apt-get",
        f'echo "$@ [$DEBIAN_FRONTEND]" >> {log}\n'
        f'case "$*" in *update*) touch {own}/lists;; '
        f"*) test -e {own}/lists || exit 100; printf '#!/bin/sh\\nexit 1\\n' > {own}/bin/dockerd; "
        f"chmod 755 {own}/bin/dockerd;; esac",
    )
    for name in ("sh", "touch", "chmod", "test", "printf"):
        (own / "bin" / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(own / "bin"))
    monkeypatch.setattr(setup, "_SBIN", str(own / "bin"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(apt, "os_release", lambda: {"ID": "ubuntu", "ID_LIKE": "debian"})
    said: list[str] = []
    with pytest.raises(EngineError, match="did not become ready"):
        ensure(said.append)
    assert said[0] == "installing docker.io and iptables from the system's packages with apt-get"
    install, update, again = log.read_text().splitlines()
    assert install == again
    assert "install --no-install-recommends docker.io iptables [noninteractive]" in install
    assert "update" in update


def test_an_install_that_fails_is_told_with_its_last_lines(own, monkeypatch):
    fake(own / "bin", "apt-get", "echo 'E: Unable to locate package docker.io'; exit 100")
    monkeypatch.setenv("PATH", f"{own / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(EngineError, match="Unable to locate package") as caught:
        apt.apt_install(["docker.io"])
    assert "apt-get update && apt-get install docker.io" in caught.value.hint


def test_another_distribution_is_left_alone(own, monkeypatch):
    monkeypatch.setenv("PATH", str(own))
    monkeypatch.setattr(setup, "_SBIN", str(own))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(apt, "os_release", lambda: {"ID": "fedora"})
    with pytest.raises(EngineError, match="not Debian's or Ubuntu's"):
        ensure(lambda _: None)


@pytest.mark.docker
@pytest.mark.skipif(not ROOT, reason="only root starts an engine")
def test_an_engine_that_was_started_outlives_the_command_that_started_it(own):
    interfaces = set(Path("/sys/class/net").iterdir())
    with subprocess.Popen(
        ["unshare", "--net", sys.executable, "-c", PROGRAM, str(own)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=command.clean_env(
            {"HARVEST_CACHE": str(own / "cache"), "DOCKER_CONFIG": str(own / "docker-config")}
        ),
        start_new_session=True,
    ) as started:
        output, _ = started.communicate(timeout=120)
    assert started.returncode == 0, output
    lines = output.splitlines()
    assert lines[0] == f"starting dockerd in the background, its log in {own / 'cache' / 'dockerd.log'}"
    assert lines[-1] == f"root {own / 'data'}"
    pid = int((own / "docker.pid").read_text())
    try:
        # Not even the end of the whole session of that command reaches it.
        with pytest.raises(ProcessLookupError):
            os.killpg(started.pid, signal.SIGHUP)
        with closing(connect()) as found:
            assert found.info()["DockerRootDir"] == str(own / "data")
        said: list[str] = []
        ensure(said.append).close()
        assert len(said) == 1
        assert "answers" in said[0]
    finally:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 30
        while (own / "docker.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    assert not (own / "docker.pid").exists()
    # Other tests' containers come and go meanwhile; the machine's own interfaces must not.
    assert {i for i in interfaces if not i.name.startswith("veth")} <= set(Path("/sys/class/net").iterdir())
