"""The MCP memory server, alone on its store: a lock first, then this process becomes the server.

    memory_server.py [ARGUMENT ...]

The server reads the whole store before each change and writes the whole of it after: of two servers on one store
each undoes what the other has learned, and neither notices. So the one that comes second is refused, on its error
output and, where a client asks, in its answer to `initialize`.

The lock is `flock` on `<store>.lock`, kept by the server's own process: the system releases it however that ends.
It is not on the store itself, which the server replaces when it writes.

Only the standard library is used: this file runs in the image with Debian's Python, and on the desk. The server is
`node_modules/.bin/mcp-server-memory` beside this file.

Exit codes: 73 the lock cannot be written, 75 another server has the store, 78 `MEMORY_FILE_PATH` is missing or not
absolute, 126 the server cannot be run.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Refusal", "lock", "main"]

CANNOT_CREATE, TAKEN, CONFIG, CANNOT_RUN = 73, 75, 78, 126
_PATIENCE_SECONDS = 3.0  # a session that takes up another one's starts while that one's server ends
_POLL_SECONDS = 0.05
_CLIENT_SECONDS = 5.0


class Refusal(Exception):  # noqa: N818 - it ends the program with a code, as meant
    """The server does not start: `code` is the exit code, the message says why."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def lock(store: Path, patience: float = _PATIENCE_SECONDS) -> int:
    """The descriptor of the lock of `store`, held as long as it is open anywhere; programs started here inherit it.

    Raises:
        Refusal: 75 when another process still holds it after `patience` seconds; 73 when it cannot be made.
    """
    path = Path(f"{os.path.realpath(store)}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Refusal(CANNOT_CREATE, f"cannot lock the memory store {store}: {error}") from error
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
                continue
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise Refusal(
                TAKEN,
                f"the memory store {store} is in use by another memory server (process {holder or 'unknown'}): "
                "two on one store would overwrite each other; end that one, or set MEMORY_FILE_PATH to another file",
            ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    os.set_inheritable(descriptor, True)
    return descriptor


def _tell_client(message: str) -> None:
    """Answer the first request on standard input, if one comes, so that an MCP client shows the reason."""
    if not select.select([sys.stdin], [], [], _CLIENT_SECONDS)[0]:
        return
    try:
        request = json.loads(sys.stdin.readline())
    except ValueError:
        return
    if isinstance(request, dict) and "id" in request:
        error = {"code": -32000, "message": message}
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}), flush=True)


def main(argv: Sequence[str]) -> int:
    """Lock the store, then become the server; returns only after a refusal."""
    server = Path(__file__).resolve().parent / "node_modules/.bin/mcp-server-memory"
    try:
        store = Path(os.environ.get("MEMORY_FILE_PATH", ""))
        if not store.is_absolute():
            raise Refusal(CONFIG, "MEMORY_FILE_PATH must be set to an absolute path")
        lock(store)
        try:
            os.execv(server, [str(server), *argv])  # noqa: S606 - an argument list, no shell
        except OSError as error:
            raise Refusal(CANNOT_RUN, f"cannot run {server}: {error}") from error
    except Refusal as refusal:
        message = f"harvest memory server: {refusal}"
        print(message, file=sys.stderr, flush=True)
        _tell_client(message)
        return refusal.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
