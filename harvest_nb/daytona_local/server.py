"""The server on loopback, in a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn

from harvest_nb import engine
from harvest_nb.daytona_local.app import make_app
from harvest_nb.daytona_local.faults import Faults
from harvest_nb.daytona_local.kept import new_key
from harvest_nb.errors import EndpointError

__all__ = ["LocalDaytona", "local_daytona"]


@dataclass(frozen=True)
class LocalDaytona:
    """A running stand-in for Daytona: what the SDK needs to reach it, and its faults."""

    api_url: str
    api_key: str = field(repr=False)
    faults: Faults
    port: int


@contextmanager
def local_daytona(
    client: engine.DockerClient | None = None, *, port: int = 0, key: str | None = None
) -> Iterator[LocalDaytona]:
    """Run the server while the block runs; its sandboxes go with it.

    Args:
        client: the engine (default: the one that `harvest_nb.engine.connect` finds).
        port: on 127.0.0.1; 0 takes a free one.
        key: the API key (default: made up).

    Raises:
        EndpointError: the port is taken.
        EngineError: there is no engine.
    """
    own = engine.connect() if client is None else None
    using = client or own
    assert using is not None
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise EndpointError(
                f"Cannot listen on 127.0.0.1:{port}: {error.strerror}", hint="use another port"
            ) from error
        own_port: int = listener.getsockname()[1]
        base = f"http://127.0.0.1:{own_port}"
        faults, secret = Faults(), key or new_key()
        config = uvicorn.Config(
            make_app(using, secret, faults, base),
            log_level="error",
            access_log=False,
            ws="websockets-sansio",
            ws_max_size=64 * 1024 * 1024,
            timeout_graceful_shutdown=2,
            lifespan="on",
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="daytona-local", daemon=True
        )
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise EndpointError("The local Daytona server could not start", hint="see what it printed")
            time.sleep(0.02)
        try:
            yield LocalDaytona(f"{base}/api", secret, faults, own_port)
        finally:
            server.should_exit = True
            thread.join(60)
    finally:
        listener.close()
        if own is not None:
            own.close()
