"""The command that runs a stand-in for Daytona on this machine."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from harvest_nb.cli.common import Json, err, out, print_json
from harvest_nb.cli.ctrl_c import ending
from harvest_nb.machine.held import holding
from harvest_nb.sandbox.base import reap_command

if TYPE_CHECKING:
    from harvest_nb.daytona_local import LocalDaytona

app = typer.Typer()


@app.command("daytona-local")
def daytona_local(
    port: Annotated[
        int | None, typer.Option(help="Port on 127.0.0.1; 0 takes a free one (default: the last one again).")
    ] = None,
    key: Annotated[str | None, typer.Option(help="The API key (default: the last one again).")] = None,
    new_key: Annotated[bool, typer.Option("--new-key", help="Make a new API key, and keep it.")] = False,
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", help="Let something go wrong: name, name=value or name=value*count."),
    ] = None,
    faults: Annotated[bool, typer.Option("--faults", help="List what may go wrong, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Run a stand-in for Daytona's API on loopback, backed by Docker, until Ctrl-C; its sandboxes go with it.

    Its key and port stay the same from start to start, in a file of the cache that its owner alone may read.
    """
    from harvest_nb.daytona_local import FAULTS
    from harvest_nb.daytona_local.kept import checked_key
    from harvest_nb.errors import SettingsError

    if faults:
        for name, what in FAULTS.items():
            out.print(f"{name:22} {what}", highlight=False)
        return
    if key is not None:
        if new_key:
            raise SettingsError("Give either --key or --new-key")
        checked_key(key)
    ending.patient = True  # each sandbox that ends takes a moment, and there may be many
    with holding("sandboxes of the stand-in", reap_command("docker")), _serving(port, key, new_key) as server:
        for text in fault or []:
            server.faults.parse(text)
        told = {"DAYTONA_API_URL": server.api_url, "DAYTONA_API_KEY": server.api_key}
        if as_json:
            print_json({"stand_in": True, **told})
        else:
            out.print("This is a stand-in for Daytona on this machine, not Daytona. For this shell:")
            for name, value in told.items():
                out.print(f"export {name}={value}", highlight=False, soft_wrap=True)
            out.print("Ctrl-C ends it and its sandboxes.")
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        with contextlib.suppress(KeyboardInterrupt):
            ended.wait()


@contextlib.contextmanager
def _serving(port: int | None, key: str | None, new_key: bool) -> Iterator[LocalDaytona]:
    """Run the server at the port and with the key that were given, else at and with those of the last one."""
    from harvest_nb.daytona_local import local_daytona
    from harvest_nb.daytona_local.kept import keep_port, kept
    from harvest_nb.errors import EndpointError

    last = None if key is not None and port is not None else kept(fresh=new_key)
    key = key if key is not None or last is None else last.key
    wanted = port if port is not None or last is None else last.port
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(local_daytona(port=wanted or 0, key=key))
        except EndpointError as error:
            taken = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EADDRINUSE
            if port is not None or not wanted or not taken:
                raise
            # Another stand-in has it, and keeps it: this one goes elsewhere, and comes back to it the next time.
            server = stack.enter_context(local_daytona(key=key))
            err.print(f"Port {wanted} is taken; this stand-in is at {server.port}", highlight=False)
        else:
            if port is None and not wanted:
                keep_port(server.port)
        yield server
