"""What a channel carries in the sandbox: a process, a connection, or a file."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, Protocol

from .frames import CHUNK, Kind, Link
from .processes import exited, kill_group, pipe_reader, pipe_writer

__all__ = ["Channel", "below"]


class Owner(Protocol):
    """The daemon, as far as a channel knows it."""

    link: Link
    channels: dict[int, Channel]

    def spawn(self, work: Any) -> None:
        """Run a task whose unexpected failure ends the program."""


def failure(error: OSError | ValueError) -> bytes:
    """An operating system error, or a name that no system takes (a NUL in it), as the payload of FAILED."""
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    said = error.strerror if isinstance(error, OSError) else None
    name = errno.errorcode.get(number or 0, "EIO")
    return json.dumps({"errno": name, "message": said or str(error)}).encode()


def below(folder: Path, path: Path) -> Path:
    """Return `path` with its links followed, the last name excepted: that is replaced, not followed.

    Raises:
        PermissionError: it is not below `folder`, or `folder` is itself a link.
    """
    root, parent = folder.resolve(), path.parent.resolve()
    if folder.is_symlink() or path.name in ("", "..") or not parent.is_relative_to(root):
        raise PermissionError(errno.EACCES, f"leads out of {folder}")
    return parent / path.name


class Channel:
    """One process, connection or file: a queue of frames and the task that works them off."""

    def __init__(self, relay: Owner, number: int) -> None:
        self.relay = relay
        self.number = number
        self.frames: asyncio.Queue[tuple[Kind, bytes]] = asyncio.Queue()
        self.pid: int | None = None
        self.pending_signal: int | None = None

    def start(self, work: Awaitable[None]) -> None:
        """Run `work` as this channel's task; the channel ends with it."""

        async def whole() -> None:
            try:
                await work
            finally:
                self.relay.channels.pop(self.number, None)

        self.relay.spawn(whole())

    def post(self, kind: Kind, payload: bytes = b"") -> None:
        """Send the desk a frame on this channel."""
        self.relay.link.post(kind, self.number, payload)

    async def pump(self, reader: asyncio.StreamReader, kind: Kind) -> None:
        """Carry everything that `reader` gives to the desk."""
        link = self.relay.link
        while data := await reader.read(CHUNK):
            await link.send(kind, self.number, data)

    async def feed(self, writer: asyncio.StreamWriter) -> None:
        """Carry what the desk sends to `writer`, to IN_END or CLOSE; a reader that left is no error."""
        # Not only a ConnectionError: the end of a connection that was reset meanwhile is ENOTCONN.
        with contextlib.suppress(OSError):
            while True:
                kind, payload = await self.frames.get()
                if kind is Kind.IN:
                    writer.write(payload)
                    await writer.drain()
                    continue
                if kind is Kind.IN_END and writer.can_write_eof():
                    writer.write_eof()
                    continue
                break
        writer.close()

    async def process(self, argv: list[str], env: Mapping[str, str], cwd: str | None) -> None:
        """Run a program as the leader of its own process group, to its end."""
        try:
            child = subprocess.Popen(  # noqa: ASYNC220 - a fork takes milliseconds
                argv,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **env},
                cwd=cwd,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self.post(Kind.FAILED, failure(error))
            return
        self.pid = child.pid
        self.post(Kind.STARTED, json.dumps({"pid": child.pid}).encode())
        if self.pending_signal is not None:
            kill_group(child.pid, self.pending_signal)
        feeding = asyncio.ensure_future(self.feed(await pipe_writer(child.stdin)))
        stdout, stderr = await pipe_reader(child.stdout), await pipe_reader(child.stderr)
        pumps = asyncio.gather(self.pump(stdout, Kind.OUT), self.pump(stderr, Kind.ERR))
        try:
            code = await exited(child)
            # A grandchild may hold the pipes open for ever: give what is in them time to arrive, then end it.
            done, _ = await asyncio.wait([pumps], timeout=2)
            if not done:
                kill_group(child.pid, signal.SIGKILL)
                await asyncio.wait([pumps], timeout=2)
        finally:
            kill_group(child.pid, signal.SIGKILL)
            feeding.cancel()
            pumps.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # as it was just cancelled
                await pumps
        self.post(Kind.EXIT, json.dumps({"code": code if code >= 0 else 128 - code}).encode())

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one accepted connection to the desk and back."""
        feeding = asyncio.ensure_future(self.feed(writer))
        try:
            with contextlib.suppress(OSError):  # a connection that was reset has ended
                await self.pump(reader, Kind.OUT)
            self.post(Kind.OUT_END)
            await feeding
        finally:
            feeding.cancel()
            writer.close()

    async def read_file(self, path: str, limit: int | None, *, plain: bool) -> None:
        """Send a regular file's bytes to the desk, unless there are more than `limit`; `plain`: it is no link."""
        try:
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if plain else 0)
            with os.fdopen(os.open(path, flags), "rb") as file:
                found = os.fstat(file.fileno())
                if stat.S_ISDIR(found.st_mode):
                    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
                if not stat.S_ISREG(found.st_mode):
                    raise OSError(errno.EINVAL, "not a regular file")
                sent = 0
                while data := file.read(CHUNK):
                    sent += len(data)
                    if limit is not None and max(sent, found.st_size) > limit:
                        raise OSError(errno.EFBIG, f"larger than {limit:,} bytes")
                    if not self.frames.empty():
                        raise OSError(errno.ECANCELED, "the transfer was given up")
                    await self.relay.link.send(Kind.OUT, self.number, data)
        except (OSError, ValueError) as error:
            self.post(Kind.FAILED, failure(error))
        else:
            self.post(Kind.EXIT, b'{"code": 0}')

    async def write_file(self, path: str, within: str | None) -> None:
        """Write a file from the desk's bytes, whole or not at all, and if need be only below a folder."""
        target = Path(path)
        temporary: str | None = None
        try:
            if within is not None:
                target = below(Path(within), target)
            target.parent.mkdir(parents=True, exist_ok=True)
            # Not the file's own name, which may be as long as names can be.
            handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".harvest-")
            with os.fdopen(handle, "wb") as file:
                while True:
                    kind, payload = await self.frames.get()
                    if kind is not Kind.IN:
                        break
                    file.write(payload)
            if kind is not Kind.IN_END:
                raise OSError(errno.ECANCELED, "the transfer was given up")
            mask = os.umask(0)
            os.umask(mask)
            Path(temporary).chmod(0o666 & ~mask)
            Path(temporary).replace(target)
            temporary = None
            end = Kind.EXIT, b'{"code": 0}'
        except (OSError, ValueError) as error:
            end = Kind.FAILED, failure(error)
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
        self.post(*end)  # last: nothing of a write that failed is left when it is known
