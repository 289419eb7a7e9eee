"""The byte stream of a container's exec, without the engine's framing.

The engine sends standard output and error in frames of an eight-byte head (1 or 2, three zero bytes, the length as
four bytes, big-endian): Engine API, "Attach to a container", stream format.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Any

__all__ = ["open_exec_stream"]

_HEAD = struct.Struct(">BxxxI")
_CHUNK = 128 * 1024


class _Demultiplexer(asyncio.Protocol):
    """Feeds a reader with the standard output's bytes alone; the last of standard error is kept for messages."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._buffer = bytearray()
        self.errors = bytearray()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _HEAD.size:
            stream, size = _HEAD.unpack_from(self._buffer, start)
            if stream > 2 or self._buffer[start + 1 : start + 4] != b"\0\0\0":
                # The engine's own words, without a head: it could not start the program.
                self.errors += self._buffer[start:]
                self._buffer.clear()
                if not self._reader.at_eof():
                    self._reader.feed_eof()
                return
            end = start + _HEAD.size + size
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[start + _HEAD.size : end])
            if stream == 2:
                self.errors = (self.errors + payload)[-4096:]
            else:
                self._reader.feed_data(payload)
            start = end
        del self._buffer[:start]

    def eof_received(self) -> bool:
        self._reader.feed_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._reader.at_eof():
            self._reader.feed_eof()


class _Protocol(asyncio.streams.FlowControlMixin, _Demultiplexer):
    def __init__(self, reader: asyncio.StreamReader, raw: Any) -> None:
        asyncio.streams.FlowControlMixin.__init__(self)
        _Demultiplexer.__init__(self, reader)
        self._raw = raw
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        asyncio.streams.FlowControlMixin.connection_lost(self, exc)
        _Demultiplexer.connection_lost(self, exc)
        # The SDK's file object holds the socket's descriptor open until it is closed as well.
        self._raw.close()
        if not self._closed.done():
            self._closed.set_result(None)

    def _get_close_waiter(self, stream: asyncio.StreamWriter) -> asyncio.Future[None]:
        return self._closed


async def open_exec_stream(raw: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Reader and writer over the socket that docker's `exec_start(socket=True)` returns.

    A plain socket is taken over by the event loop; anything else (TLS, SSH, a named pipe) is carried by two threads.
    """
    inner = getattr(raw, "_sock", raw)
    plain = inner if type(inner) is socket.socket else _carried(raw, inner)
    plain.setblocking(False)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    transport, protocol = await loop.create_connection(lambda: _Protocol(reader, raw), sock=plain)
    return reader, asyncio.StreamWriter(transport, protocol, None, loop)


def _carried(raw: Any, inner: Any) -> socket.socket:
    ours, theirs = socket.socketpair()
    receive = getattr(inner, "recv", None) or raw.read
    send = getattr(inner, "sendall", None) or raw.write

    # A stream that was cut ends the other half too; the relay's link takes it up again and says what has gone.
    def inward() -> None:
        with contextlib.suppress(OSError):
            while data := receive(_CHUNK):
                theirs.sendall(data)
        with contextlib.suppress(OSError):
            theirs.shutdown(socket.SHUT_WR)

    def outward() -> None:
        with contextlib.suppress(OSError):
            while data := theirs.recv(_CHUNK):
                send(data)
        with contextlib.suppress(OSError):
            inner.close()
        theirs.close()

    for work in (inward, outward):
        threading.Thread(target=work, daemon=True, name="harvest-exec-stream").start()
    return ours
