"""The modes of the relay's command; the package's docstring says what each is for."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

from .daemon import Relay
from .frames import CHUNK
from .identity import digest
from .lines import PAYLOAD, Gap, LineReader, LineWriter
from .processes import become_subreaper, pipe_reader, pipe_writer

__all__ = ["DEFAULT_SOCKET", "main"]

DEFAULT_SOCKET = "/tmp/harvest-relay.sock"  # noqa: S108 - the sandbox's own /tmp
OTHER_RELAY, NOBODY = 68, 69  # exit codes


async def serve(path: str, lease: float) -> int:
    """The daemon behind a unix socket."""
    relay = Relay(lease)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, relay.ending.set)

    async def status(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps({"lease_seconds": relay.expires - time.monotonic()}).encode())
        writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relay.spawn(relay.attach(reader, writer), stream=True)

    lock = Path(f"{path}.lock").open("w")  # noqa: SIM115 - held for as long as this program lives
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"harvest relay: another one serves {path}", file=sys.stderr)
        return 0
    for name in (path, f"{path}.status"):
        Path(name).unlink(missing_ok=True)
    mask = os.umask(0o177)
    server = await asyncio.start_unix_server(accept, path)
    board = await asyncio.start_unix_server(status, f"{path}.status")
    os.umask(mask)
    async with server, board:
        code = await relay.live(leased=True)
        server.close()
        board.close()
    return code


async def stdio(remove: str | None, hold: int | None) -> int:
    """One link over this program's own standard input and output."""
    become_subreaper()
    if hold is not None:
        os.set_inheritable(hold, False)  # locked for as long as this program lives, not what it starts
    loop = asyncio.get_running_loop()
    reader, writer = await pipe_reader(sys.stdin), await pipe_writer(sys.stdout)
    relay = Relay(3600)
    for sig in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(sig, relay.ending.set)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the desk's Ctrl-C reaches it as end of input

    async def whole() -> None:
        await relay.attach(reader, writer)
        relay.ending.set()

    serving = asyncio.ensure_future(whole())
    code = await relay.live(leased=False)
    serving.cancel()
    if remove is not None:
        shutil.rmtree(remove, ignore_errors=True)
    return code


def join(path: str) -> socket.socket | None:
    """A connection to the daemon, waiting for it to be there; None, having said so, when nothing listens."""
    stream = socket.socket(socket.AF_UNIX)
    start = time.monotonic()
    while True:
        try:
            stream.connect(path)
            return stream
        except (FileNotFoundError, ConnectionRefusedError) as error:
            # No socket yet: the daemon is starting. One that refuses has lost its daemon.
            patience = 10.0 if isinstance(error, FileNotFoundError) else 0.5
            if time.monotonic() - start > patience:
                print(f"harvest relay: nothing listens at {path}", file=sys.stderr)
                return None
            time.sleep(0.02)


def write_all(data: bytes) -> None:
    """Write to standard output, whole."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def attach(path: str) -> int:
    """Join standard input and output to the daemon."""
    stream = join(path)
    if stream is None:
        return NOBODY

    # Either side may be cut at any time: the desk takes the link up on another stream.
    def outward() -> None:
        with contextlib.suppress(OSError):
            while data := stream.recv(CHUNK):
                write_all(data)
        os._exit(0)  # the daemon closed: the other thread may be blocked in read for ever

    threading.Thread(target=outward, daemon=True).start()
    with contextlib.suppress(OSError):
        while data := os.read(0, CHUNK):
            stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
    return 0


def attach_lines(path: str) -> int:
    """Join standard input and output to the daemon as lines of text; an empty line first says that it is ready.

    Input never ends by itself there, so an empty line is its end.
    """
    stream = join(path)
    if stream is None:
        return NOBODY
    writer, reader = LineWriter(), LineReader()
    write_all(writer.line(b""))

    def outward() -> None:
        with contextlib.suppress(OSError):  # cut, as above
            while data := stream.recv(PAYLOAD):
                write_all(writer.line(data))
        os._exit(0)

    threading.Thread(target=outward, daemon=True).start()
    try:
        while data := os.read(0, CHUNK):
            for payload in reader.feed(data):
                if not payload:
                    return 0
                stream.sendall(payload)
    except Gap as error:
        print(f"harvest relay: {error}", file=sys.stderr)
        return 65
    except OSError:
        pass  # the daemon has closed
    return 0


def start_daemon(path: str, lease: float) -> None:
    """Start the daemon behind `path`, apart from this program, unless one listens there."""
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):  # nobody listens there
        probe.connect(path)
        return
    if os.fork() == 0:
        # A second fork: whoever ends this program's descendants must not find the daemon among them.
        os.setsid()
        if os.fork() == 0:
            null = os.open(os.devnull, os.O_RDWR)
            log = os.open(f"{path}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for number, source in enumerate((null, null, log)):
                os.dup2(source, number)
            entry = Path(sys.argv[0]).parent / "entrypoint.py"
            before = [sys.executable, str(entry)] if entry.exists() else []
            this = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
            program = [*before, *this, "serve", "--socket", path, "--lease", str(lease)]
            os.execvp(program[0], program)  # noqa: S606 - an argument list, no shell
        os._exit(0)
    os.wait()


def main(argv: list[str] | None = None) -> int:
    """Entry point; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="relay.py", description="The sandbox's end of Harvest's one stream."
    )
    parser.add_argument("mode", choices=["serve", "attach", "lines", "stdio", "status"])
    parser.add_argument("--socket", default=DEFAULT_SOCKET, help="the daemon's unix socket")
    parser.add_argument("--lease", type=float, default=120.0, help="seconds until an unrenewed lease lapses")
    parser.add_argument("--remove", help="a folder to remove at the end (stdio)")
    parser.add_argument("--hold", type=int, help="an inherited descriptor, kept open while alive (stdio)")
    parser.add_argument("--start", action="store_true", help="start the daemon if there is none (lines)")
    parser.add_argument("--expect", help="end with 68 unless this is the relay's digest (lines)")
    options = parser.parse_args(argv)
    if options.mode == "serve":
        return asyncio.run(serve(options.socket, options.lease))
    if options.mode == "stdio":
        return asyncio.run(stdio(options.remove, options.hold))
    if options.mode == "attach":
        return attach(options.socket)
    if options.mode == "lines":
        if options.expect not in (None, digest(Path(__file__).parent)):
            return OTHER_RELAY
        if options.start:
            start_daemon(options.socket, options.lease)
        return attach_lines(options.socket)
    with socket.socket(socket.AF_UNIX) as board:
        board.connect(f"{options.socket}.status")
        print(board.recv(4096).decode())
    return 0
