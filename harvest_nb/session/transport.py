"""`SandboxTransport`: the Claude Agent SDK here, the `claude` CLI in a sandbox.

The SDK's control protocol crosses the CLI's standard streams unchanged. What the SDK does only for its own
subprocess transport is done here too: options become flags, and the CLI's environment names the SDK.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from claude_agent_sdk import ClaudeAgentOptions, Transport, __version__
from claude_agent_sdk._internal.transport.subprocess_cli import SubprocessCLITransport
from claude_agent_sdk.types import _configure_can_use_tool

from harvest_nb.bounds import bounds, json_within
from harvest_nb.errors import CLINotFound, SandboxError, SessionError
from harvest_nb.sandbox.base import Process, Sandbox

__all__ = ["SandboxTransport", "command"]

_STDERR_LINE = 64 * 1024  # bytes
_log = logging.getLogger(__name__)
Tap = Callable[[str, dict[str, Any], bytes], dict[str, Any]]
"""Takes a direction (`"out"`, `"in"`), a message and its bytes; gives the message to go on with."""


def command(options: ClaudeAgentOptions, cli: str = "claude") -> list[str]:
    """The CLI's argument list for `options`, as the SDK's own transport would make it.

    The method is private, so the SDK is pinned and a test holds this contract.
    """
    configured = _configure_can_use_tool(options)
    configured.cli_path = cli
    return SubprocessCLITransport(prompt="", options=configured)._build_command()


class SandboxTransport(Transport):
    """See `claude_agent_sdk.Transport`.

    Args:
        sandbox: where the CLI runs; it outlives the transport.
        options: the session's options; their `env` must not hold secrets.
        env: the CLI's environment, secrets included; it goes nowhere else.
        tap: called with each message before anybody else sees it; of one that came in, what it gives is seen.
        on_stderr: called with each line of the CLI's standard error, a long one in parts, and whether it ends there.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        options: ClaudeAgentOptions,
        *,
        env: Mapping[str, str] | None = None,
        tap: Tap = lambda _direction, message, _raw: message,
        on_stderr: Callable[[str, bool], None] = lambda _text, _whole: None,
    ) -> None:
        self._sandbox, self._options = sandbox, options
        self._env, self._tap, self._on_stderr = dict(env or {}), tap, on_stderr
        self._process: Process | None = None
        self._stderr: asyncio.Task[None] | None = None
        self._write_lock = asyncio.Lock()
        self._ready = self._killed = False
        self._values = bounds().json_values
        self.error: Exception | None = None
        """What ended the stream, when it was not its regular end."""

    async def connect(self) -> None:
        """Start the CLI.

        Raises:
            CLINotFound: there is no `claude` in the sandbox.
            SandboxError: the sandbox cannot start it, or has gone.
        """
        if self._process is not None:
            return
        cwd = str(self._options.cwd or self._sandbox.workdir)
        env = {
            "CLAUDE_CODE_ENTRYPOINT": "sdk-py",
            "CLAUDE_CODE_SDK_READS_SESSION_STATE": "1",
            **self._options.env,
            **self._env,
            "CLAUDE_AGENT_SDK_VERSION": __version__,
            "PWD": cwd,
        }
        try:
            self._process = await self._sandbox.spawn(command(self._options), env=env, cwd=cwd)
        except SandboxError as error:
            if error.data.get("errno") == errno.ENOENT:
                raise CLINotFound(
                    f"There is no `claude` command in {self._sandbox!r}",
                    hint="use an image built by `harvest-nb build`, and see `harvest-nb validate`",
                ) from error
            raise
        self._stderr = asyncio.create_task(self._read_stderr(self._process))
        self._ready = True

    async def _read_stderr(self, process: Process) -> None:
        try:
            async for line, whole in _lines(process.stderr, _STDERR_LINE, cut=True):
                self._on_stderr(line.decode("utf-8", "replace"), whole)
        except Exception as error:  # noqa: BLE001 - raised where messages are read, which ends with the process
            self.error = self.error or error
            await process.kill()

    async def write(self, data: str) -> None:
        """Send one or more JSON lines to the CLI."""
        async with self._write_lock:
            if self._process is None or not self._ready:
                raise SessionError("The CLI is not running, so nothing can be sent to it")
            raw = data.encode("utf-8", "surrogatepass")
            for line in raw.split(b"\n"):
                if line.strip():
                    self._tap("out", json.loads(line), line)
            await self._process.stdin.send(raw)

    def read_messages(self) -> AsyncIterator[dict[str, Any]]:
        """The CLI's messages, each recorded before it is given."""
        return self._read()

    async def _read(self) -> AsyncIterator[dict[str, Any]]:
        if self._process is None:
            raise SessionError("The CLI has not been started")
        process = self._process
        try:
            async for line, _ in _lines(process.stdout, bounds().line_bytes):
                message = self._message(line)
                if message is not None:
                    yield message
            self._ready = False
            code = await process.wait()
        except Exception as error:
            self.error = self.error or error
            await process.kill()
            raise
        if self.error is not None:
            raise self.error
        if code != 0:
            self.error = SessionError(f"The claude CLI ended {_how(code)}", code=code)
            raise self.error

    def _message(self, line: bytes) -> dict[str, Any] | None:
        """The message on a line, recorded; what is none goes where standard error goes."""
        line = line.strip()
        if not line.startswith(b"{"):
            if line:
                self._unreadable("[stdout]", line)
            return None
        try:
            message: dict[str, Any] = json_within(line, self._values)
        except ValueError as error:
            # The last line of a CLI that was killed in mid-write looks like this, or one that is not the CLI's.
            self._unreadable(f"[stdout, {error}]", line)
            return None
        return self._tap("in", message, line)

    def _unreadable(self, why: str, line: bytes) -> None:
        # In parts, so that a secret is not cut in two where the rest is left out.
        self._on_stderr(f"{why} {line[:_STDERR_LINE].decode('utf-8', 'replace')}", False)
        left = len(line) - _STDERR_LINE
        self._on_stderr(f" … ({left:,} bytes more)" if left > 0 else "", True)

    async def kill(self) -> None:
        """End the CLI and everything in its process group at once."""
        self._ready = False
        self._killed = True
        if self._process is not None:
            await self._process.kill()

    async def end_input(self) -> None:
        """End the CLI's standard input."""
        if self._process is not None:
            await self._process.stdin.aclose()

    async def close(self) -> None:
        """End the CLI: end of input, then SIGTERM, then SIGKILL, each with a bound. Safe to call twice."""
        self._ready = False
        process, self._process = self._process, None
        if process is not None:
            await process.stdin.aclose()
            # One that was killed and is still there has a sandbox that does not answer.
            steps = (
                [(None, 1.0)] if self._killed else [(None, 3.0), (signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)]
            )
            for sig, seconds in steps:
                if sig is not None:
                    await process.kill(sig)
                # A sandbox that has gone took the process with it: there is nothing left to end.
                with contextlib.suppress(TimeoutError, SandboxError):
                    await asyncio.wait_for(process.wait(), seconds)
                    break
        if self._stderr is not None:
            stderr, self._stderr = self._stderr, None
            await asyncio.wait([stderr], timeout=1)
            stderr.cancel()

    def is_ready(self) -> bool:
        """Whether the CLI can be written to."""
        return self._ready


async def _lines(
    chunks: AsyncIterator[bytes], most: int, *, cut: bool = False
) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield lines from chunks of any size, without their ends, and whether they end there; also a last one.

    Args:
        most: bytes that a line may have.
        cut: whether a longer one is given in pieces.

    Raises:
        SessionError: a line is longer and may not be cut.
    """
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for line in whole:
            parts.append(line)
            yield b"".join(parts), True
            parts, size = [], 0
        if rest:
            parts.append(rest)
            size += len(rest)
            if size > most:
                if not cut:
                    raise SessionError(
                        f"The claude CLI sent a line of more than {most:,} bytes (HARVEST_MAX_LINE_BYTES)"
                    )
                yield b"".join(parts), False
                parts, size = [], 0
    if parts:
        yield b"".join(parts), True


def _how(code: int) -> str:
    if code > 128:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(code - 128).name}"
    return f"with exit code {code}"
