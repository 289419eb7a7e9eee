"""`harvest-nb lab`: JupyterLab, for as long as this command runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from harvest_nb.cli.common import kernels_sandboxes
from harvest_nb.cli.ctrl_c import ending
from harvest_nb.errors import EndpointError
from harvest_nb.machine.children import children_of
from harvest_nb.machine.held import holding
from harvest_nb.machine.loopback import is_loopback

if TYPE_CHECKING:
    import psutil

app = typer.Typer()
_LOOK = 0.2  # seconds between two looks at whether JupyterLab has ended by itself
_SECONDS = 4.0  # for JupyterLab to put its kernels away, and they their sandboxes


@app.command()
def lab(
    port: Annotated[int, typer.Option(help="JupyterLab's port.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    passed: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="Passed on to JupyterLab.")
    ] = None,
) -> None:
    """Start JupyterLab on the notebooks, until Ctrl-C; its kernels and their sandboxes end with it."""
    import socket

    from harvest_nb.paths import notebooks_dir

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EndpointError(
                f"Port {port} of 127.0.0.1 is taken", hint="choose another with --port"
            ) from error
    command = [
        sys.executable, "-m", "jupyterlab", f"--notebook-dir={notebooks_dir()}", f"--port={port}",
        "--ServerApp.port_retries=0", *([] if browser else ["--no-browser"]), *_where(passed or ()), *(passed or ()),
    ]  # fmt: skip
    asked = threading.Event()
    with ending.stopping(asked.set), kernels_sandboxes():
        # A session of its own: Ctrl-C comes here alone, so that JupyterLab does not ask for confirmation.
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        while server.poll() is None and not asked.wait(_LOOK):
            pass
        if asked.is_set():
            with holding("JupyterLab"):
                _end(server)
    raise typer.Exit(ending.code or server.returncode)


def _where(passed: Sequence[str]) -> list[str]:
    """Return the address, unless one is given, and for root, on loopback only, the permission to run as root."""
    words = [word for text in passed for word in text.split("=", 1)]
    given = [words[at + 1] for at, word in enumerate(words[:-1]) if word in ("--ip", "--ServerApp.ip")]
    own = [] if given else ["--ip=127.0.0.1"]
    return own + ["--allow-root"] * (os.geteuid() == 0 and all(map(is_loopback, given)))


def _is_kernel(process: psutil.Process) -> bool:
    """Return whether a process of JupyterLab's is a kernel: it has been given a connection file."""
    return any(word.startswith("kernel-") for part in process.cmdline() for word in part.rsplit("/", 1)[-1:])


def _end(server: subprocess.Popen[bytes]) -> None:
    """End JupyterLab and its kernels; what they leave is removed."""
    import psutil

    from harvest_nb.notebooks.leaving import remove_left

    with suppress(psutil.NoSuchProcess):
        # A browser and the programs of JupyterLab's terminals are the user's own.
        kernels = [child for child in psutil.Process(server.pid).children() if _is_kernel(child)]
        below = [process for kernel in kernels for process in children_of(kernel)]
        server.terminate()
        _, alive = psutil.wait_procs([psutil.Process(server.pid), *kernels, *below], timeout=_SECONDS)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    server.wait()
    remove_left()
