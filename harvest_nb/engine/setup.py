"""Getting a running Docker engine: found, else started, else installed from the system's packages and started."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harvest_nb.engine.apt import apt_install, can_install
from harvest_nb.engine.client import DockerClient, connect, endpoint
from harvest_nb.errors import EngineError
from harvest_nb.machine.children import OUTLIVES
from harvest_nb.machine.command import Stop, clean_env, run_lines
from harvest_nb.machine.locks import one_at_a_time
from harvest_nb.paths import cache_dir

__all__ = ["ensure", "start_in_background"]

PACKAGES = ("docker.io", "iptables")
READY_SECONDS = 60.0
_SERVICE_SECONDS = 20.0
_POLL_SECONDS = 0.25
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
DOCKERD_ARGUMENTS: tuple[str, ...] = ()  # the defaults are the ones that the `docker` command expects
_background: list[subprocess.Popen[bytes]] = []  # kept, so that letting go of one does not warn


def ensure(say: Callable[[str], None], *, stop: Stop | None = None, timeout: float = 60) -> DockerClient:
    """A client of a running engine, which is started, or installed and started, where that is possible.

    A local engine is never started while `DOCKER_HOST` or a context points elsewhere.

    Args:
        say: gets one line for each step.
        stop: ends the work when asked.
        timeout: seconds that one answer of the engine may take later on.

    Raises:
        EngineError: there is none and none can be had; says what to do. `HARVEST_ENGINE=off` forbids all of it.
        Cancelled: `stop` was asked.
    """
    try:
        return _found(say, timeout)
    except EngineError as error:
        if error.reason != "absent" or not endpoint().local_default:
            raise
    with one_at_a_time("start of the Docker engine", say=say, stop=stop):
        try:
            return _found(say, timeout)
        except EngineError as error:
            if error.reason != "absent":
                raise
        return _start(say, stop or Stop(), timeout)


def _found(say: Callable[[str], None], timeout: float) -> DockerClient:
    client = connect(timeout)
    where = endpoint()
    say(f"Docker engine {client.version()['Version']} answers at {where.host} ({where.said_by})")
    return client


def _start(say: Callable[[str], None], stop: Stop, timeout: float) -> DockerClient:
    if sys.platform != "linux":
        raise EngineError(
            "No Docker engine runs, and on this system it cannot be started from here",
            hint="start Docker Desktop (or another engine), then try again; provider='host' works without",
            reason="absent",
        )
    if os.geteuid() != 0:
        installed = _program("dockerd") is not None
        raise EngineError(
            f"No Docker engine runs, and only root can {'start' if installed else 'install'} one",
            hint="sudo systemctl start docker"
            if installed
            else "install Docker (Debian, Ubuntu: sudo apt-get install docker.io); provider='host' works without",
            reason="absent",
        )
    if _program("dockerd") is None:
        if not can_install():
            raise EngineError(
                "No Docker engine is installed, and this system's packages are not Debian's or Ubuntu's",
                hint="install Docker as its documentation says; provider='host' works without",
                reason="absent",
            )
        say(f"installing {' and '.join(PACKAGES)} from the system's packages with apt-get")
        apt_install(PACKAGES, stop=stop)
        try:
            return _found(say, timeout)  # the package may have started it
        except EngineError as error:
            if error.reason != "absent":
                raise
    return _start_installed(say, stop, timeout)


def _start_installed(say: Callable[[str], None], stop: Stop, timeout: float) -> DockerClient:
    for argv in _service_commands():
        say(f"starting the Docker engine: {' '.join(argv)}")
        done = run_lines(argv, stop=stop)
        if done.exit_code == 0:
            client = _wait(say, stop, timeout, _SERVICE_SECONDS)
            if client is not None:
                return client
            say(f"`{' '.join(argv)}` did not bring it up")
        else:
            say(f"`{' '.join(argv)}` failed: {done.tail[-1] if done.tail else f'exit code {done.exit_code}'}")
    log = cache_dir() / "dockerd.log"
    say(f"starting dockerd in the background, its log in {log}")
    process = start_in_background(log, DOCKERD_ARGUMENTS)
    client = _wait(say, stop, timeout, READY_SECONDS, process)
    if client is not None:
        return client
    code = process.poll()
    raise EngineError(
        "dockerd did not become ready: "
        + (f"it ended with {code}" if code is not None else f"no answer after {READY_SECONDS:.0f} s")
        + "\n"
        + _tail(log),
        hint=f"its log is {log}; in a container it needs to be privileged",
        reason="start",
    )


def _service_commands() -> list[list[str]]:
    if Path("/run/systemd/system").is_dir() and shutil.which("systemctl"):
        return [["systemctl", "start", "docker"]]
    if Path("/etc/init.d/docker").exists() and _program("service"):
        return [["service", "docker", "start"]]
    return []


def start_in_background(log: Path, arguments: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start `dockerd` so that it outlives this process: in its own session, its output appended to `log`.

    Raises:
        EngineError: it cannot be started.
    """
    program = _program("dockerd")
    if program is None:
        raise EngineError("There is no dockerd to start", hint="install Docker", reason="absent")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [program, *arguments],
            env=clean_env({OUTLIVES: "1"}),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _background.append(process)
    return process


def _wait(
    say: Callable[[str], None],
    stop: Stop,
    timeout: float,
    seconds: float,
    process: subprocess.Popen[bytes] | None = None,
) -> DockerClient | None:
    """The client once the engine answers; None after `seconds`, or when `process` has ended."""
    end = time.monotonic() + seconds
    while True:
        ended = process is not None and process.poll() is not None
        try:
            return _found(say, timeout)
        except EngineError as error:
            # While it comes up, its socket may be there already and answer nothing, or an error.
            if error.reason not in {"absent", "unreachable"}:
                raise
        if ended or time.monotonic() > end:
            return None
        stop.wait(_POLL_SECONDS)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
