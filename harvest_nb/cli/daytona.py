"""The command that runs a stand-in for Daytona on this machine."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import Annotated

import typer

from harvest_nb.cli.common import Json, out, print_json

app = typer.Typer()


@app.command("daytona-local")
def daytona_local(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
    fault: Annotated[
        list[str] | None, typer.Option(help="Let something go wrong: name, name=value or name=value*count.")
    ] = None,
    faults: Annotated[bool, typer.Option("--faults", help="List what may go wrong, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Run a stand-in for Daytona's API on loopback, backed by Docker, until Ctrl-C; its sandboxes go with it."""
    from harvest_nb.daytona_local import FAULTS, local_daytona

    if faults:
        for name, what in FAULTS.items():
            out.print(f"{name:22} {what}", highlight=False)
        return
    with local_daytona(port=port) as server:
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
