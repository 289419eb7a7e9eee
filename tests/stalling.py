"""An engine that stalls: a socket that leads to the real one, up to a point."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harvest_nb.engine import DockerClient, endpoint

__all__ = ["MUCH", "Stalling", "stalling"]

MUCH = 8 * 1024 * 1024


class Stalling:
    """Passes on what goes to and from the engine, and nothing more once one connection has carried `most` bytes."""

    def __init__(self, engine: str, address: Path, most: int) -> None:
        self.stalled = threading.Event()
        self._engine, self._most, self._open = engine, most, list[socket.socket]()
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(address))
        self.server.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.server.accept()
                far = self._connected()
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _connected(self) -> socket.socket:
        far = socket.socket(socket.AF_UNIX)
        far.connect(self._engine)
        return far

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        carried = 0
        with suppress(OSError):
            while data := source.recv(65536):
                carried += len(data)
                if carried > self._most:
                    self.stalled.set()
                    return
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in (self.server, *self._open):
            with suppress(OSError):  # closed by now
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def stalling(
    engine: DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Stalling, str]]:
    address = tmp_path_factory.mktemp("engine") / "docker.sock"
    where = urlsplit(endpoint().host)
    if where.scheme != "unix":
        pytest.skip("the engine is not reached through a socket of this machine")
    proxy = Stalling(where.path, address, MUCH)
    yield proxy, f"unix://{address}"
    proxy.close()
