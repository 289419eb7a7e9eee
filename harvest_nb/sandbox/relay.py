"""The desk's half of the relay: processes, files and connections in a sandbox over one byte stream.

A provider hands in `connect`, which opens a stream to the relay, and `gone`, which says how a sandbox ended.
A stream that is cut is opened again and taken up where it stopped; only a sandbox that has ended is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NoReturn

from harvest_nb.bounds import bounds
from harvest_nb.errors import RelayError, SandboxError, SandboxGone
from harvest_nb.machine.held import holding
from harvest_nb.sandbox.base import Completed
from harvest_nb.sandbox.relayd.frames import CHUNK, Kind, Link, ProtocolError, read_hello

__all__ = ["Relay", "RelayProcess", "Stream"]

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_log = logging.getLogger(__name__)
_ATTEMPTS = 8
_GARBLED = 3  # streams in a row without a proper greeting
_REPLACED = "its relay has ended, killed or for want of a renewed lease, and another one has taken its place"
_TAKEN = "another desk has taken it up"


class _Unread:
    """Counts the bytes that all channels of a sandbox have received and not yet read."""

    def __init__(self) -> None:
        self.bytes, self.most = 0, bounds().unread_bytes


class _Channel:
    """What arrives on one channel: an answer to its opening, output, and its end."""

    def __init__(self, unread: _Unread) -> None:
        self.opened: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.out: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.err: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._all, self._unread = unread, 0

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Count what has not been read no more: nobody will read it, or it is about to be dropped."""
        self.taken(self._unread)

    def taken(self, size: int) -> None:
        self._unread -= size
        self._all.bytes -= size

    def frame(self, kind: Kind, payload: bytes) -> None:
        if kind in (Kind.OUT, Kind.ERR):
            self.taken(-len(payload))
            if self._all.bytes > self._all.most:
                self.taken(len(payload))
                said = f"more than {self._all.most:,} bytes wait to be read (HARVEST_MAX_UNREAD_BYTES)"
                self.fail(SandboxError(f"A stream from the sandbox was given up: {said}"))
                return
            (self.out if kind is Kind.OUT else self.err).put_nowait(payload)
        elif kind is Kind.STARTED:
            if not self.opened.done():  # whoever asked for it may have been cancelled meanwhile
                self.opened.set_result(json.loads(payload))
        elif kind is Kind.OUT_END:
            self.out.put_nowait(None)
        elif kind is Kind.EXIT:
            self.finish(int(json.loads(payload)["code"]))
        elif kind is Kind.FAILED:
            said = json.loads(payload)
            # By name, as the numbers of the sandbox's system need not be this one's.
            self.fail(OSError(getattr(errno, said["errno"], errno.EIO), said["message"]))

    def finish(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(code)
        self.close()

    def fail(self, error: Exception) -> None:
        for future in (self.opened, self.ended):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever waits gets it; nobody waiting is no warning
        self.close()

    def close(self) -> None:
        self.out.put_nowait(None)
        self.err.put_nowait(None)


async def _drain(channel: _Channel, queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (data := await queue.get()) is not None:
        channel.taken(len(data))
        yield data
    queue.put_nowait(None)  # a second reader sees the end too


class _Stdin:
    def __init__(self, relay: Relay, number: int, channel: _Channel) -> None:
        self._relay, self._number, self._channel = relay, number, channel
        self._closed = False

    async def send(self, data: bytes) -> None:
        """Write all of `data`; raises BrokenPipeError once the process has ended."""
        for start in range(0, len(data), CHUNK):
            if self._closed or self._channel.ended.done():
                self._relay.check()
                raise BrokenPipeError("the process has ended or its input is closed")
            await self._relay.link.send(Kind.IN, self._number, data[start : start + CHUNK])

    async def aclose(self) -> None:
        """End of input."""
        if not self._closed:
            self._closed = True
            self._relay.link.post(Kind.IN_END, self._number)


class RelayProcess:
    """A process in the sandbox (see `harvest_nb.sandbox.base.Process`)."""

    def __init__(self, relay: Relay, number: int, channel: _Channel, pid: int) -> None:
        self.pid = pid
        self.stdin = _Stdin(relay, number, channel)
        self._relay, self._number, self._channel = relay, number, channel

    @property
    def stdout(self) -> AsyncIterator[bytes]:
        """Chunks of standard output as they come."""
        return _drain(self._channel, self._channel.out)

    @property
    def stderr(self) -> AsyncIterator[bytes]:
        """Chunks of standard error as they come."""
        return _drain(self._channel, self._channel.err)

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None while it runs or when the sandbox ended first."""
        ended = self._channel.ended
        return ended.result() if ended.done() and ended.exception() is None else None

    async def wait(self) -> int:
        """The exit code; raises SandboxGone when the sandbox ends first."""
        return await asyncio.shield(self._channel.ended)

    async def kill(self, sig: int = signal.SIGKILL) -> None:
        """Signal the whole process group."""
        if not self._channel.ended.done():
            self._relay.link.post(Kind.SIGNAL, self._number, json.dumps({"signal": int(sig)}).encode())


class Relay:
    """A live link to the relay in one sandbox. Make it with `Relay.open`.

    Args:
        connect: opens a stream to the relay.
        gone: says how the sandbox ended, or None while it is there.
        lease: seconds; renewed four times as often.
        ack_delay: seconds that an acknowledgement may wait, longer where each write is dear.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Stream]],
        gone: Callable[[], Awaitable[str | None]],
        lease: float,
        ack_delay: float = 0.02,
    ) -> None:
        self._connect, self._gone, self._lease = connect, gone, lease
        self.link = Link(uuid.uuid4().hex, self._on_frame, ack_delay)
        self._channels: dict[int, _Channel] = {}
        self._targets: dict[int, tuple[str, int]] = {}
        self._connections, self._most_connections = 0, bounds().connections
        self._unread = _Unread()
        self._next = 1
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None
        self._error: SandboxError | None = None
        self._closing = False
        self._leased = asyncio.Event()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        """Set once the sandbox has gone or the relay was closed."""
        self.taken = False
        """Whether it has gone to another desk, and is there still."""

    @classmethod
    async def open(
        cls,
        connect: Callable[[], Awaitable[Stream]],
        gone: Callable[[], Awaitable[str | None]],
        *,
        lease: float,
        ack_delay: float = 0.02,
    ) -> Relay:
        """Connect and wait for the relay's greeting.

        Raises:
            SandboxGone: the sandbox ended before the relay answered.
            RelayError: the relay speaks another protocol.
        """
        relay = cls(connect, gone, lease, ack_delay)
        relay._main = asyncio.create_task(relay._stay_connected())
        relay._main.add_done_callback(relay._main_ended)
        try:
            await asyncio.shield(relay._ready)
        except BaseException:
            await relay.close()
            raise
        relay._spawn(relay._renew())
        return relay

    @property
    def silent(self) -> float:
        """Seconds for which the relay has answered nothing that it was sent; 0 where nothing is open."""
        return self.link.silent

    def check(self) -> None:
        """Raise what ended this relay, if anything did."""
        if self._error is not None:
            raise self._error

    def _main_ended(self, main: asyncio.Task[None]) -> None:
        # Unexpected: whoever waits must hear of it rather than wait for ever.
        if main.cancelled():
            if not self._closing:
                reason = "the event loop that held it ended"
                self._fail(SandboxGone(f"The sandbox has gone: {reason}", reason=reason))
        elif (error := main.exception()) is not None:
            self._fail(RelayError(f"The stream to the sandbox failed: {error!r}"))

    async def _stay_connected(self) -> None:
        failures = garbled = 0
        while not self._closing:
            try:
                reader, writer = await self._connect()
                try:
                    writer.write(self.link.hello(again=self._ready.done()))
                    hello = await asyncio.wait_for(read_hello(reader), 20)
                    if hello is not None:
                        if hello["link"] != self.link.ident:
                            self.taken = bool(hello["link"])
                            why = _TAKEN if self.taken else _REPLACED
                            return self._fail(SandboxGone(f"The sandbox has gone: {why}", reason=why))
                        if not self._ready.done():
                            self._ready.set_result(None)
                        failures = 0
                        await self.link.serve(reader, writer, int(hello["received"]))
                        garbled = 0
                finally:
                    writer.close()
            except (OSError, TimeoutError) as error:
                last: Exception | None = error
            except ProtocolError as error:
                # Where the sandbox has just ended, this may be the engine's own text instead of the relay's.
                reason = await self._gone()
                if reason is not None:
                    return self._fail(SandboxGone(f"The sandbox has gone: {reason}", reason=reason))
                garbled += 1
                if garbled >= _GARBLED:
                    return self._fail(RelayError(f"The relay broke the protocol: {error}"))
                last = error
            except SandboxError as error:
                return self._fail(error)
            else:
                last = None
            if self._closing:
                break
            reason = await self._gone()
            failures += 1
            if reason is None and failures >= _ATTEMPTS:
                reason = f"the stream to it could not be opened again ({last or 'closed at once'})"
            if reason is not None:
                return self._fail(SandboxGone(f"The sandbox has gone: {reason}", reason=reason))
            await asyncio.sleep(min(0.05 * 2**failures, 2.0))
        return None

    def _fail(self, error: Exception) -> None:
        self._error = error if isinstance(error, SandboxError) else SandboxError(str(error))
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # whoever waits gets it; nobody waiting is no warning
        for channel in list(self._channels.values()):
            channel.fail(self._error)
        self._channels.clear()
        self.link.close()
        self.ended.set()

    def hold(self, seconds: float) -> None:
        """Lease the sandbox for that long from now, and as long at each renewal. Raises what ended the relay."""
        self.check()
        self._lease = seconds
        self._post_lease()
        self._leased.set()

    def _post_lease(self) -> None:
        self.link.post(Kind.LEASE, 0, json.dumps({"seconds": self._lease}).encode())

    async def _renew(self) -> None:
        while True:
            self._post_lease()
            self._leased.clear()
            # A new lease may be far shorter than the pause that the old one left.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leased.wait(), self._lease / 4)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_frame(self, kind: Kind, number: int, payload: bytes) -> None:
        if kind is Kind.OPEN:
            if self._connections >= self._most_connections:
                self.link.post(Kind.CLOSE, number)
                return
            channel = self._channels[number] = _Channel(self._unread)
            host, port = self._targets[json.loads(payload)["listener"]]
            self._connections += 1
            self._spawn(self._carry(number, channel, host, port))
            return
        channel_ = self._channels.get(number)
        if channel_ is None:
            return
        channel_.frame(kind, payload)
        if channel_.ended.done():
            self._channels.pop(number, None)
            if kind in (Kind.OUT, Kind.ERR):  # not its own end: it sent too much
                self.link.post(Kind.SIGNAL, number, b'{"signal": 9}')
                self.link.post(Kind.CLOSE, number)

    def _new(self) -> tuple[int, _Channel]:
        self.check()
        if self._closing:
            raise SandboxGone("The sandbox is closed", reason="closed")
        number, self._next = self._next, self._next + 2
        channel = self._channels[number] = _Channel(self._unread)
        return number, channel

    async def spawn(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: str | PurePosixPath
    ) -> RelayProcess:
        """Start a program. Raises SandboxError naming it when it cannot be started."""
        number, channel = self._new()
        ask = {"argv": [str(part) for part in argv], "env": dict(env), "cwd": str(cwd)}
        self.link.post(Kind.SPAWN, number, json.dumps(ask).encode())
        try:
            started = await channel.opened
        except OSError as error:
            raise SandboxError(
                f"Cannot start `{argv[0]}` in {cwd}: {error.strerror}",
                hint="Is it installed in the sandbox, and does the folder exist there?",
                errno=error.errno,
            ) from error
        except asyncio.CancelledError:
            self.link.post(Kind.SIGNAL, number, b'{"signal": 9}')
            raise
        return RelayProcess(self, number, channel, int(started["pid"]))

    async def run(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | PurePosixPath,
        input: bytes | None,  # noqa: A002
        timeout: float | None,
    ) -> Completed:
        """Run a program to its end; killed and TimeoutError after `timeout` seconds."""
        start = time.monotonic()
        process = await self.spawn(argv, env, cwd)
        out, err, most = bytearray(), bytearray(), bounds().output_bytes

        async def gather(stream: AsyncIterator[bytes], into: bytearray) -> None:
            async for data in stream:
                into += data
                if len(into) > most:
                    raise SandboxError(
                        f"`{' '.join(argv)[:200]}` printed more than {most:,} bytes (HARVEST_MAX_OUTPUT_BYTES)",
                        hint="let it print less, or write to a file",
                    )

        async def feed() -> None:
            # One that ends before it has read all says how by its exit code.
            with contextlib.suppress(BrokenPipeError):
                await process.stdin.send(input or b"")
            await process.stdin.aclose()

        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(feed(), gather(process.stdout, out), gather(process.stderr, err))
                code = await process.wait()
        except BaseException as error:
            await process.kill()
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"`{' '.join(argv)[:200]}` took more than {timeout} s") from None
            raise
        return Completed(tuple(argv), code, bytes(out), bytes(err), time.monotonic() - start)

    async def read(self, path: str | PurePosixPath, *, plain: bool = False) -> bytes:
        """Return a regular file's bytes; `plain`: a link is refused."""
        number, channel = self._new()
        most = bounds().read_bytes
        ask = {"path": str(path), "limit": most, "plain": plain}
        self.link.post(Kind.READ, number, json.dumps(ask).encode())
        data = bytearray()
        with holding(f"the sandbox's {path}") as item:
            async for chunk in _drain(channel, channel.out):
                data += chunk
                item.size = len(data)
                if len(data) > most:  # a relay that keeps to no limit
                    self.link.post(Kind.CLOSE, number)
                    self._channels.pop(number, None)
                    self._raise(OSError(errno.EFBIG, f"larger than {most:,} bytes"), path)
            await self._end_of_file(channel, path)
        return bytes(data)

    async def write(
        self, path: str | PurePosixPath, data: bytes, within: PurePosixPath | None = None
    ) -> None:
        """Write a file, whole or not at all; with `within`, only below that folder, links followed."""
        number, channel = self._new()
        ask = {"path": str(path), "within": within and str(within)}
        self.link.post(Kind.WRITE, number, json.dumps(ask).encode())
        try:
            for start in range(0, len(data), CHUNK):
                await self.link.send(Kind.IN, number, data[start : start + CHUNK])
        except asyncio.CancelledError:
            self.link.post(Kind.CLOSE, number)
            raise
        self.link.post(Kind.IN_END, number)
        await self._end_of_file(channel, path)

    async def _end_of_file(self, channel: _Channel, path: str | PurePosixPath) -> None:
        try:
            await channel.ended
        except OSError as error:
            self._raise(error, path)

    @staticmethod
    def _raise(error: OSError, path: str | PurePosixPath) -> NoReturn:
        raise OSError(error.errno, error.strerror, f"{path} in the sandbox") from None

    async def forward(self, host: str, port: int) -> int:
        """Listen on the sandbox's own 127.0.0.1 and carry each connection to the desk's `host:port`."""
        number, channel = self._new()
        self._targets[number] = (host, port)
        self.link.post(Kind.LISTEN, number, json.dumps({"limit": self._most_connections}).encode())
        return int((await channel.opened)["port"])

    async def _carry(self, number: int, channel: _Channel, host: str, port: int) -> None:
        """One connection from the sandbox to the desk's server, both ways, until both have ended."""
        try:
            await self._carry_both(number, channel, host, port)
        finally:
            self._connections -= 1
            self.link.post(Kind.CLOSE, number)
            self._channels.pop(number, None)
            channel.release()

    async def _carry_both(self, number: int, channel: _Channel, host: str, port: int) -> None:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError as error:
            # The connection in the sandbox is closed at once, which is how its program learns of it.
            _log.info("a connection from the sandbox found nobody at %s:%d: %s", host, port, error)
            return

        async def inward() -> None:
            # One that was cut has ended too.
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(CHUNK):
                    await self.link.send(Kind.IN, number, data)
            self.link.post(Kind.IN_END, number)

        async def outward() -> None:
            # Also a socket that the server has closed meanwhile, which is no ConnectionError.
            with contextlib.suppress(OSError):
                async for data in _drain(channel, channel.out):
                    writer.write(data)
                    await writer.drain()
                if writer.can_write_eof():
                    writer.write_eof()

        try:
            await asyncio.gather(inward(), outward())
        finally:
            writer.close()

    async def close(self, *, shutdown: bool = True) -> None:
        """End the link, and with `shutdown` the relay and everything it started."""
        if self._closing:
            return
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if shutdown and self._error is None:
                self.link.post(Kind.SHUTDOWN, 0)
                if self._main is not None:
                    # One that has not answered will hardly do so now; whoever removes the sandbox ends it.
                    await asyncio.wait([self._main], timeout=1 if self.link.silent > 1 else 5)
        finally:
            # Also when cancelled: nobody closes it a second time.
            if self._main is not None:
                self._main.cancel()
            if self._error is None:
                self._fail(SandboxGone("The sandbox is closed", reason="closed"))
        if self._main is not None:
            await asyncio.gather(self._main, return_exceptions=True)
