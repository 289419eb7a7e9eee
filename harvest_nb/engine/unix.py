"""The SDK's connections over a Unix socket, closed also where nobody listens (any more).

`UnixHTTPConnection.connect` of docker 7 leaves its socket to the garbage collector when it cannot connect.
"""

from __future__ import annotations

import socket
from typing import Any

from docker import APIClient
from docker.transport.unixconn import UnixHTTPAdapter, UnixHTTPConnection, UnixHTTPConnectionPool

__all__ = ["close_what_cannot_connect"]


class _Connection(UnixHTTPConnection):
    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self.unix_socket)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class _ConnectionPool(UnixHTTPConnectionPool):
    def _new_conn(self) -> Any:
        return _Connection(self.base_url, self.socket_path, self.timeout)  # type: ignore[arg-type]


class _Adapter(UnixHTTPAdapter):
    def get_connection(self, url: Any, proxies: Any = None) -> _ConnectionPool:
        with self.pools.lock:
            found: _ConnectionPool | None = self.pools.get(url)
            if found is None:
                found = _ConnectionPool(url, self.socket_path, self.timeout, maxsize=self.max_pool_size)
                self.pools[url] = found
        return found


def close_what_cannot_connect(api: APIClient) -> None:
    """Have a client's connections closed when they cannot be made; one that uses no Unix socket stays as it is."""
    given = api.get_adapter(api.base_url)
    if type(given) is UnixHTTPAdapter:
        given.close()
        path = f"http+unix://{given.socket_path}"
        adapter = _Adapter(path, given.timeout, max_pool_size=given.max_pool_size)
        api.mount("http+docker://", adapter)
        api._custom_adapter = adapter  # type: ignore[attr-defined]
