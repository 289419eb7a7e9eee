"""Numbered, acknowledged frames over a stream that may be cut: what both halves of the relay share."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any

__all__ = ["CHUNK", "HEADER", "Kind", "Link", "ProtocolError", "read_frame", "read_hello"]

PROTOCOL = 1
HEADER = struct.Struct(">IBIQ")  # payload bytes, kind, channel, sequence number (0: not numbered)
CHUNK = 128 * 1024
WINDOW = 8 * 1024 * 1024  # unacknowledged bytes before a sender waits
ACK_EVERY = 1024 * 1024
LARGEST = 64 * 1024 * 1024


class Kind(IntEnum):
    """What a frame says. IN goes toward the sandbox's side of a channel, OUT and ERR toward the desk's."""

    HELLO = 1  # {"protocol", "link", "received", "again"}: opens a link, or takes one up `again`
    ACK = 2  # its sequence number: everything up to it has arrived
    SPAWN = 3  # {"argv", "env", "cwd"}
    STARTED = 4  # {"pid"} or {"port"}
    FAILED = 5  # {"errno", "message"}
    IN = 6
    IN_END = 7
    OUT = 8
    OUT_END = 9
    ERR = 10
    EXIT = 11  # {"code"}
    SIGNAL = 12  # {"signal"}
    LISTEN = 13  # {"limit"}: a port on the sandbox's own 127.0.0.1
    OPEN = 14  # {"listener"}: a connection to it, carried on this channel
    CLOSE = 15
    READ = 16  # {"path", "limit", "plain"}
    WRITE = 17  # {"path", "within"}
    LEASE = 18  # {"seconds"}
    SHUTDOWN = 19


class ProtocolError(Exception):
    """The other side sent what the protocol does not allow."""


class Link:
    """Numbered, acknowledged frames over a stream that may be replaced by another one.

    Args:
        ident: names the link; both sides must agree on it to take it up again.
        on_frame: called with each new frame, in order, exactly once.
        ack_delay: seconds that an acknowledgement may wait for more to acknowledge.
    """

    def __init__(
        self, ident: str, on_frame: Callable[[Kind, int, bytes], None], ack_delay: float = 0.02
    ) -> None:
        self.ident = ident
        self._on_frame = on_frame
        self._ack_delay = ack_delay
        self._sent = 0
        self._received = 0
        self._acked = 0
        self._unacked: deque[tuple[int, bytes]] = deque()
        self._unacked_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._writer: asyncio.StreamWriter | None = None
        self._closed = False
        self._since_ack = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._asked: float | None = None  # when the other side was first left something to acknowledge
        self._heard = 0.0

    @property
    def silent(self) -> float:
        """For how many seconds the other side has said nothing, although a frame waits for its acknowledgement."""
        return 0.0 if self._asked is None else time.monotonic() - max(self._asked, self._heard)

    def post(self, kind: Kind, channel: int, payload: bytes = b"") -> None:
        """Queue a frame and write it if a stream is attached; never waits. A closed link drops it."""
        if self._closed:
            return
        self._sent += 1
        frame = HEADER.pack(len(payload), kind, channel, self._sent) + payload
        if not self._unacked:
            self._asked = time.monotonic()
        self._unacked.append((self._sent, frame))
        self._unacked_bytes += len(frame)
        if self._unacked_bytes > WINDOW:
            self._room.clear()
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame)

    async def send(self, kind: Kind, channel: int, payload: bytes = b"") -> None:
        """Like `post`, but first waits while too much is unacknowledged."""
        await self._room.wait()
        self.post(kind, channel, payload)

    def hello(self, *, again: bool = False) -> bytes:
        """The frame that opens a stream; `again` where the other side has greeted this link before."""
        said = {"protocol": PROTOCOL, "link": self.ident, "received": self._received, "again": again}
        body = json.dumps(said).encode()
        return HEADER.pack(len(body), Kind.HELLO, 0, 0) + body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, arrived: int) -> None:
        """Use this stream until it ends; `arrived` is the last sequence number the other side has."""
        previous, self._writer = self._writer, writer
        self._heard = time.monotonic()  # its greeting
        if previous is not None and previous is not writer:
            previous.close()
        self._forget(arrived)
        for _, frame in list(self._unacked):
            writer.write(frame)
        try:
            while (frame_read := await read_frame(reader)) is not None:
                kind, channel, number, payload = frame_read
                self._heard = time.monotonic()
                if self._writer is not writer:
                    return
                if kind is Kind.ACK:
                    self._forget(number)
                elif number == self._received + 1:
                    self._received = number
                    self._since_ack += len(payload) + HEADER.size
                    self._on_frame(kind, channel, payload)
                    self._ack_soon()
                elif number > self._received:
                    raise ProtocolError(f"frame {number} came after {self._received}")
        finally:
            if self._writer is writer:
                self._writer = None

    def _forget(self, number: int) -> None:
        while self._unacked and self._unacked[0][0] <= number:
            self._unacked_bytes -= len(self._unacked.popleft()[1])
        if not self._unacked:
            self._asked = None
        if self._unacked_bytes <= WINDOW:
            self._room.set()

    def _ack_soon(self) -> None:
        if self._since_ack >= ACK_EVERY:
            self._ack()
        elif self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(self._ack_delay, self._ack)

    def _ack(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._since_ack = 0
        if self._writer is not None and not self._writer.is_closing() and self._received > self._acked:
            self._acked = self._received
            self._writer.write(HEADER.pack(0, Kind.ACK, 0, self._received))

    def close(self) -> None:
        """Stop the timer and close the stream; whoever waits for room waits no longer."""
        self._closed = True
        self._unacked.clear()
        self._room.set()
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None


async def read_frame(reader: asyncio.StreamReader) -> tuple[Kind, int, int, bytes] | None:
    """One frame as kind, channel, number, payload; None at the end of the stream, also within a frame."""
    try:
        size, kind, channel, number = HEADER.unpack(await reader.readexactly(HEADER.size))
        if size > LARGEST:
            raise ProtocolError(f"a frame of {size} bytes")
        return Kind(kind), channel, number, await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except ValueError as error:
        raise ProtocolError(str(error)) from error


async def read_hello(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The other side's opening frame, or None when the stream ends before it."""
    frame = await read_frame(reader)
    if frame is None:
        return None
    if frame[0] is not Kind.HELLO:
        raise ProtocolError(f"expected HELLO, got {frame[0].name}")
    hello: dict[str, Any] = json.loads(frame[3])
    if hello.get("protocol") != PROTOCOL:
        raise ProtocolError(f"protocol {hello.get('protocol')}, expected {PROTOCOL}")
    return hello
