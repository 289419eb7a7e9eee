"""A byte stream over one command of a Daytona session: the relay's lines in its log and its input.

The log of a command is replayed from its first byte on every connection, its socket is cut or refused now and then
and ends without saying why, and an input whose answer was lost may have arrived. So lines are numbered both ways, one
task alone writes, sockets are opened again, polling takes their place when they bring nothing, and only an exit code is
believed to be the end. What still goes wrong ends this stream, and the relay's link takes everything up on another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import time
import uuid
from collections.abc import Sequence

from daytona import AsyncSandbox, DaytonaError, SessionExecuteRequest, SessionExecuteResponse

from harvest_nb.bounds import bounds
from harvest_nb.sandbox.daytona.logs import fetch_log
from harvest_nb.sandbox.daytona.retry import Kind, kind_of, persist
from harvest_nb.sandbox.relay import Stream
from harvest_nb.sandbox.relayd.lines import Gap, LineReader, LineWriter

__all__ = ["CommandEnded", "open_command_stream"]

_log = logging.getLogger(__name__)
_READY = 60.0  # seconds for the relay to say that it is there
_POST = (
    64 * 1024
)  # characters of input in one call, at most: a slow network must carry them in the call's time
_LINE = _POST // 4  # bytes in one line of it, which has fewer than twice as many characters
_WORN = 8 * 1024 * 1024  # characters of log after which a cut stream is replaced rather than replayed
_LARGEST = (
    64 * 1024 * 1024
)  # characters of log after which any stream is replaced: they lie on the sandbox's disk
_SOCKETS = 3  # sockets in a row without news before polling
_POLLS = 20  # polls before a socket is tried again
_SILENCE = 3.0  # seconds without news before a socket that stays open is doubted, twice as many the next time
_DOUBT = 60.0  # seconds between two doubts, at most
_DOUBT_RATE = 1024 * 1024  # characters a second, at most, that doubts fetch


class CommandEnded(ConnectionError):  # noqa: N818 - says what happened
    """The relay's command ended before it was ready."""

    def __init__(self, code: int | None, said: str) -> None:
        super().__init__(f"the relay's command ended with {code}: {said}")
        self.code = code


class _Transport(asyncio.WriteTransport):
    """What is written goes to the command's input."""

    def __init__(self, command: _Command) -> None:
        super().__init__()
        self._command = command

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._command.write(bytes(data))

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self._command.closing

    def close(self) -> None:
        self._command.close()

    def abort(self) -> None:
        self._command.close()


class _Protocol(asyncio.streams.FlowControlMixin):
    def _get_close_waiter(self, _stream: asyncio.StreamWriter) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class _Command:
    """One session with one command in it."""

    def __init__(self, sandbox: AsyncSandbox, ending: set[asyncio.Task[None]], input_timeout: float) -> None:
        self._ending, self._input_timeout = ending, input_timeout
        self._process = sandbox.process
        self._session = f"harvest-{uuid.uuid4().hex[:12]}"
        self._id = ""
        self.reader = asyncio.StreamReader()
        self._lines, self._writer = LineReader(), LineWriter()
        self._log = self._received = 0  # characters of the log: known, and of this connection
        self._errors = ""
        self._outgoing = bytearray()
        self._wake = asyncio.Event()
        self.ready = asyncio.Event()
        self.closing = self._over = False
        self._code: int | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, argv: Sequence[str]) -> None:
        """Start the command and wait until the relay is ready.

        Raises:
            CommandEnded: it ended instead. ConnectionError: it said nothing in time.
            DaytonaError: Daytona cannot start it.
        """
        await persist(lambda: self._process.create_session(self._session, request_timeout=30))
        # A child, never `exec`: a session whose shell is replaced never learns the exit code.
        request = SessionExecuteRequest(command=shlex.join(argv), run_async=True, suppress_input_echo=True)
        answer = await persist(lambda: self._execute(request))
        self._id = answer.cmd_id
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._push())]
        for task in self._tasks:
            task.add_done_callback(self._ended)
        with contextlib.suppress(TimeoutError):  # judged below
            await asyncio.wait_for(self.ready.wait(), _READY)
        if self._over:
            raise CommandEnded(self._code, self._errors.strip()[-500:])
        if not self.ready.is_set():
            raise ConnectionError(f"the relay said nothing for {_READY:g} s")

    async def _execute(self, request: SessionExecuteRequest) -> SessionExecuteResponse:
        try:
            return await self._process.execute_session_command(self._session, request, timeout=30)
        except DaytonaError as error:
            if kind_of(error) is Kind.TRANSIENT:
                # It may have begun all the same: not a second one in this session, but another session.
                raise ConnectionError(str(error)) from error
            raise

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            return
        self._errors += f"\n{task.exception()!r}"
        self._finish()

    def _finish(self) -> None:
        """Nothing more comes, and nothing more goes out."""
        if not self._over:
            self._over = self.closing = True
            self.reader.feed_eof()
            self.ready.set()
            self._wake.set()

    # ---- toward the desk

    async def _follow(self) -> None:
        quiet = 0
        while not self._over:
            before, began = self._lines.seen, time.monotonic()
            alive = True
            if quiet < _SOCKETS:
                alive = await self._socket()
            else:
                await self._poll()
                quiet = 0
            if await self._has_ended():
                break
            if not alive:
                quiet = _SOCKETS
            elif self._lines.seen > before or time.monotonic() - began > 5:
                quiet = 0
            else:
                quiet += 1
                await asyncio.sleep(0.05 * 2**quiet)
            if self._log > _WORN:
                break  # a fresh stream costs less than the replay of this one
        self._finish()

    async def _socket(self) -> bool:
        """Follow the log until the socket ends. False when it stays open and no more is to be had from it."""
        self._restart()
        following = asyncio.ensure_future(
            self._process.get_session_command_logs_async(
                self._session, self._id, self._on_stdout, self._on_stderr
            )
        )
        silence, received = self._patience(), self._received
        try:
            while not following.done():
                await asyncio.wait([following], timeout=silence)
                if received != self._received:
                    silence, received = self._patience(), self._received
                elif not following.done():
                    if await self._is_dead():
                        return False
                    silence = max(self._patience(), min(_DOUBT, 2 * silence))
            await following
        except Gap:
            raise
        except (DaytonaError, OSError) as error:
            # Refused, cut, or a gap within it: SDK errors carry what a callback raised as their cause.
            if isinstance(error.__cause__, Gap):
                raise error.__cause__ from None
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        return True

    def _patience(self) -> float:
        """Seconds without news before the socket is doubted: a doubt fetches the whole log."""
        return _SILENCE + self._log / _DOUBT_RATE

    async def _is_dead(self) -> bool:
        """Whether the command has ended, or its log has had more for a while than the open socket has brought."""
        received = self._received
        try:
            command = await self._process.get_session_command(self._session, self._id, request_timeout=30)
            if command.exit_code is not None:
                return True
            logs = await self._whole_log()
        except DaytonaError as error:
            return kind_of(error) is Kind.FATAL  # there is no such command any more
        await asyncio.sleep(0.5)
        return received == self._received < len(logs["stdout"].rstrip())

    async def _poll(self) -> None:
        """Ask for the whole log now and then, for a while; each answer begins at the first byte."""
        pause = 0.1
        for _ in range(_POLLS):
            before = self._lines.seen
            await self._fetch()
            if await self._has_ended() or self._over or self._log > _WORN:
                return
            pause = 0.1 if self._lines.seen > before else min(1.0, pause * 1.5)
            await asyncio.sleep(pause)

    async def _fetch(self) -> None:
        try:
            logs = await self._whole_log()
        except DaytonaError as error:
            if kind_of(error) is Kind.FATAL:
                raise  # for ever: this stream ends, and the relay opens another one
            _log.info("a log was not to be had, and is asked for again: %s", error)
            return
        self._restart()
        self._on_stdout(logs["stdout"])
        self._errors = logs["stderr"][-4096:]

    async def _whole_log(self) -> dict[str, str]:
        """Return the log from its first byte on. Raises DaytonaError, or LogTooLarge, which ends the stream."""
        ask = self._process._api_client.get_session_command_logs_without_preload_content
        return await fetch_log(ask, self._session, self._id, most=bounds().unread_bytes, timeout=60)

    def _restart(self) -> None:
        self._lines.restart()
        self._received = 0
        self._errors = ""

    def _on_stdout(self, text: str) -> None:
        self._received += len(text)
        self._log = max(self._log, self._received)
        for payload in self._lines.feed(text.encode("ascii", "replace")):
            if payload and not self._over:
                self.reader.feed_data(payload)
            self.ready.set()
        if self._log > _LARGEST:
            self._finish()

    def _on_stderr(self, text: str) -> None:
        self._errors = (self._errors + text)[-4096:]

    async def _has_ended(self) -> bool:
        """Whether there is an exit code, or no such command any more; its last lines are fetched then."""
        try:
            command = await persist(
                lambda: self._process.get_session_command(self._session, self._id, request_timeout=30)
            )
        except DaytonaError as error:
            # Gone with its session or its sandbox, or not to be reached: the relay asks how the sandbox is.
            self._errors += f"\n{error}"
            return True
        if command.exit_code is None:
            return False
        self._code = int(command.exit_code)
        # The code is written before the daemon's pumps have carried the last lines into the log.
        for pause in (0.0, 0.3):
            await asyncio.sleep(pause)
            await self._fetch()
        return True

    # ---- toward the sandbox

    def write(self, data: bytes) -> None:
        """Queue bytes; the one writing task sends them."""
        if not self.closing:
            self._outgoing += data
            self._wake.set()

    async def _push(self) -> None:
        while not self._over:
            await self._wake.wait()
            self._wake.clear()
            while self._outgoing and not self._over:
                text = bytearray()
                while self._outgoing and len(text) + 2 * _LINE <= _POST:
                    text += self._writer.line(bytes(self._outgoing[:_LINE]))
                    del self._outgoing[:_LINE]
                if not await self._send(text.decode("ascii")):
                    return self._finish()
        return None

    async def _send(self, text: str) -> bool:
        """Send lines until they have certainly arrived; False when the command takes no more."""
        attempt = 0

        async def once() -> bool:
            nonlocal attempt
            attempt += 1
            # Half a line of a lost attempt must not run into this one; blank and repeated lines are dropped there.
            data = text if attempt == 1 else f"\n{text}"
            await self._process.send_session_command_input(
                self._session, self._id, data, request_timeout=self._input_timeout
            )
            return True

        try:
            return await persist(once)
        except DaytonaError as error:
            self._errors += f"\n{error}"
            return False

    def close(self) -> None:
        """End both ways, and take the session with its log away, without waiting."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self._finish()
        session, self._session = self._session, ""
        if session:
            cleaning = asyncio.ensure_future(self._clean(session, tasks))
            self._ending.add(cleaning)
            cleaning.add_done_callback(self._ending.discard)

    async def _clean(self, session: str, tasks: Sequence[asyncio.Task[None]]) -> None:
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._process.delete_session(session, request_timeout=10)
        except (DaytonaError, OSError, RuntimeError) as error:  # RuntimeError: the client has been closed
            _log.info("session %s was not deleted, and goes with its sandbox: %s", session, error)


async def open_command_stream(
    sandbox: AsyncSandbox, argv: Sequence[str], ending: set[asyncio.Task[None]], *, input_timeout: float
) -> Stream:
    """Reader and writer over a new command in `sandbox`, which runs the relay with `lines`.

    What still ends after the stream was closed is in `ending`; wait for it before the client is closed. An input that
    is not answered after `input_timeout` seconds is sent again.

    Raises:
        CommandEnded: it ended at once, with this exit code (`code`).
        ConnectionError: Daytona cannot start it just now.
        DaytonaError: it never will.
    """
    command = _Command(sandbox, ending, input_timeout)
    try:
        await command.start(argv)
    except DaytonaError as error:
        command.close()
        if kind_of(error) is Kind.FATAL:
            raise
        raise ConnectionError(str(error)) from error
    except BaseException:
        command.close()
        raise
    loop = asyncio.get_running_loop()
    writer = asyncio.StreamWriter(_Transport(command), _Protocol(), None, loop)
    return command.reader, writer
