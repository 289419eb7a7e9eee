"""The relay's state in the sandbox: one link, what it carries, and the lease."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from typing import Any

from .channels import Channel
from .frames import Kind, Link, read_hello
from .processes import kill_descendants, kill_group

__all__ = ["LAPSED", "Relay"]

CONNECTIONS = 64
LAPSED = 75
"""Exit code of a relay whose lease nobody renewed (sysexits' EX_TEMPFAIL)."""


class Relay:
    """The program's state: one link, its channels and listeners, and the lease."""

    def __init__(self, lease: float) -> None:
        self.channels: dict[int, Channel] = {}
        self.listeners: list[asyncio.Server] = []
        self.link = Link("", self.on_frame)
        self.expires = time.monotonic() + lease
        self.ending = asyncio.Event()
        self.crash: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: set[asyncio.Task[None]] = set()  # those of the tasks that serve a stream
        self.connections = 0
        self._next = 2  # the relay's own channels are even, the desk's odd

    def spawn(self, work: Any, *, stream: bool = False) -> None:
        """Run a task whose unexpected failure ends the program."""
        task = asyncio.ensure_future(work)
        if stream:
            self._streams.add(task)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._streams.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.crash = self.crash or error
            self.ending.set()

    def on_frame(self, kind: Kind, number: int, payload: bytes) -> None:
        """Act on a frame from the desk."""
        if kind is Kind.LEASE:
            self.expires = time.monotonic() + float(json.loads(payload)["seconds"])
        elif kind is Kind.SHUTDOWN:
            self.ending.set()
        elif kind in (Kind.SPAWN, Kind.LISTEN, Kind.READ, Kind.WRITE):
            self._open(kind, number, json.loads(payload))
        elif (channel := self.channels.get(number)) is None:
            return  # it has ended meanwhile
        elif kind is Kind.SIGNAL:
            sig = int(json.loads(payload)["signal"])
            if channel.pid is None:
                channel.pending_signal = sig
            else:
                kill_group(channel.pid, sig)
        else:
            channel.frames.put_nowait((kind, payload))

    def _open(self, kind: Kind, number: int, ask: dict[str, Any]) -> None:
        channel = self.channels[number] = Channel(self, number)
        if kind is Kind.SPAWN:
            channel.start(channel.process(ask["argv"], ask.get("env") or {}, ask.get("cwd")))
        elif kind is Kind.READ:
            channel.start(channel.read_file(ask["path"], ask.get("limit"), plain=bool(ask.get("plain"))))
        elif kind is Kind.WRITE:
            channel.start(channel.write_file(ask["path"], ask.get("within")))
        else:
            channel.start(self._listen(channel, ask))

    async def _listen(self, listener: Channel, ask: dict[str, Any]) -> None:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.connections >= int(ask.get("limit") or CONNECTIONS):
                writer.transport.abort()  # the agent's own doing: nobody else opens so many
                return
            number, self._next = self._next, self._next + 2
            channel = self.channels[number] = Channel(self, number)
            channel.post(Kind.OPEN, json.dumps({"listener": listener.number}).encode())
            self.connections += 1
            channel.start(self._carry(channel, reader, writer))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.listeners.append(server)
        listener.post(Kind.STARTED, json.dumps({"port": server.sockets[0].getsockname()[1]}).encode())

    async def _carry(
        self, channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await channel.connection(reader, writer)
        finally:
            self.connections -= 1

    async def attach(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a stream: take the link up if it is the desk's, else start afresh.

        A desk that comes back for a link that is not here any more has lost all it had: it is told whose is, no more.
        """
        try:
            hello = await read_hello(reader)
            if hello is None:
                return
            if hello["link"] != self.link.ident:
                if hello["again"]:
                    writer.write(self.link.hello())
                    return
                await self._reset(hello["link"])
            writer.write(self.link.hello())
            await self.link.serve(reader, writer, int(hello["received"]))
        except ConnectionError:
            pass  # the desk comes back, or the lease lapses
        finally:
            writer.close()

    async def _reset(self, ident: str) -> None:
        """A desk that knows nothing of the old link: what the old one started has no owner any more."""
        await self._stop()
        self.link.close()
        self.link = Link(ident, self.on_frame)

    async def _stop(self) -> None:
        for server in self.listeners:
            server.close()
        self.listeners.clear()
        for channel in self.channels.values():
            if channel.pid is not None:
                kill_group(channel.pid, signal.SIGKILL)
        tasks = [task for task in self._tasks if task not in self._streams]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.channels.clear()

    async def live(self, *, leased: bool) -> int:
        """Wait for the end: asked for, lapsed or crashed. Returns the exit code."""
        lapsed = False
        while not self.ending.is_set():
            remaining = self.expires - time.monotonic() if leased else 3600.0
            if remaining <= 0:
                print("harvest relay: the lease has lapsed", file=sys.stderr)
                lapsed = True
                break
            with contextlib.suppress(TimeoutError):
                # A renewal may bring the end nearer too, so it is looked at again each second.
                await asyncio.wait_for(self.ending.wait(), min(remaining, 1.0))
        await self._stop()
        kill_descendants()
        self.link.close()  # last: a desk that sees the stream end may rely on nothing being left
        if self.crash is not None:
            print(f"harvest relay: {self.crash!r}", file=sys.stderr)
            return 70
        return LAPSED if lapsed else 0
