"""Sessions and their commands, run by the same kind of shell wrapper as in the real daemon, so with its quirks.

A session is one shell, fed with commands. Each command gets FIFOs, and its output passes through shell `read` loops
that mark every line with the stream it came from. So standard input never ends, NULs are lost, long output is
slow, and a top-level `exit` takes the session's shell with it, whose exit code is then never written.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import shlex
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from harvest_nb.daytona_local.machine import WORK, Machine
from harvest_nb.daytona_local.replies import ApiError
from harvest_nb.errors import HarvestError
from harvest_nb.sandbox.relay import RelayProcess

__all__ = ["Command", "Session", "Sessions", "split"]

STDOUT, STDERR = b"\x01\x01\x01", b"\x02\x02\x02"
_WRAPPER = """{{
log={dir}/output.log; sp={dir}/stdout.pipe; ep={dir}/stderr.pipe; ip={dir}/input.pipe
mkdir -p {dir}; rm -f "$sp" "$ep" "$ip"; mkfifo "$sp" "$ep" "$ip"
( while IFS= read -r line || [ -n "$line" ]; do printf '\\001\\001\\001%s\\n' "$line"; done < "$sp" ) >> "$log" & r1=$!
( while IFS= read -r line || [ -n "$line" ]; do printf '\\002\\002\\002%s\\n' "$line"; done < "$ep" ) >> "$log" & r2=$!
sleep infinity > "$ip" & keep=$!
{{ {command}
}} < "$ip" > "$sp" 2> "$ep"
echo "$?" > {dir}/exit_code.new; mv {dir}/exit_code.new {dir}/exit_code
kill "$keep" 2> /dev/null
wait "$r1" "$r2"
rm -f "$sp" "$ep" "$ip"
}}
"""
_WRITE = ["sh", "-c", '[ -p "$1" ] || exit 3; exec cat > "$1"', "sh"]
_FOLLOW = ["sh", "-c", 'until [ -e "$1" ]; do sleep 0.02; done; exec tail -c +1 -s 0.02 -f "$1"', "sh"]


def _daemon(status: int, message: str, code: str | None = None) -> ApiError:
    return ApiError(status, message, code=code, source="DAYTONA_DAEMON")


@dataclass
class Command:
    """One command of a session."""

    id: str
    command: str
    folder: str
    echo: bool
    exit_code: int | None = None
    gone: bool = False
    """Whether its session was deleted."""

    @property
    def log(self) -> str:
        """Its log in the sandbox."""
        return f"{self.folder}/output.log"


@dataclass
class Session:
    """One shell."""

    id: str
    shell: RelayProcess
    commands: dict[str, Command] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether its shell has gone."""
        return self.shell.exit_code is not None


class Sessions:
    """The sessions of one sandbox, and the one of its entrypoint."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.all: dict[str, Session] = {}
        self.entrypoint: Session | None = None

    async def begin(self) -> None:
        """Run the image's entrypoint as a session of its own, as the daemon does."""
        await self._machine.run(["mkdir", "-p", f"{WORK}/sessions"])
        if self._machine.entrypoint:
            self.entrypoint = await self._open("entrypoint")
            await self._give(self.entrypoint, shlex.join(self._machine.entrypoint), echo=False)

    async def create(self, ident: str) -> Session:
        """A new session. Raises ApiError 409 when there is one of that name."""
        if not ident or "/" in ident:
            raise _daemon(400, "sessionId is missing or malformed")
        if ident in self.all:
            raise _daemon(409, "session already exists")
        session = self.all[ident] = await self._open(ident)
        return session

    async def _open(self, ident: str) -> Session:
        bash = (await self._machine.run(["sh", "-c", "command -v bash || command -v sh"])).text.strip()
        shell = await self._machine.spawn([bash])
        session = Session(ident, shell)
        for stream in (shell.stdout, shell.stderr):
            task = asyncio.create_task(_discard(stream))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return session

    def get(self, ident: str) -> Session:
        """The session. Raises ApiError 404."""
        if ident not in self.all:
            raise _daemon(404, "session not found", "PROCESS_NOT_FOUND")
        return self.all[ident]

    def command(self, session: str, ident: str) -> Command:
        """One of its commands. Raises ApiError 404."""
        found = self.get(session).commands.get(ident)
        if found is None:
            raise _daemon(404, "command not found", "PROCESS_NOT_FOUND")
        return found

    async def execute(self, session: Session, asked: dict[str, Any]) -> tuple[Command, dict[str, Any] | None]:
        """Give the shell a command; its output too, unless it was asked to run in the background."""
        text = asked.get("command") or ""
        if not text.strip():
            raise _daemon(400, "command cannot be empty")
        if session.ended:
            raise _daemon(410, "session has ended", "SESSION_ENDED")
        command = await self._give(session, text, echo=not asked.get("suppressInputEcho"))
        if asked.get("runAsync") or asked.get("async"):
            return command, None
        while await self.exit_code(command) is None:
            if session.ended:
                raise _daemon(410, "session has ended", "SESSION_ENDED")
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.05)  # the pumps may be a little behind
        return command, {**(await self.logs(command)), "exitCode": command.exit_code}

    async def _give(self, session: Session, text: str, *, echo: bool) -> Command:
        ident = str(uuid.uuid4())
        folder = f"{WORK}/sessions/{session.id}/{ident}"
        command = session.commands[ident] = Command(ident, text, folder, echo)
        wrapped = _WRAPPER.format(dir=shlex.quote(folder), command=text)
        # A shell that has ended takes no command, which then never has an exit code: as in the real daemon.
        with contextlib.suppress(BrokenPipeError):
            await session.shell.stdin.send(wrapped.encode())
        return command

    async def exit_code(self, command: Command) -> int | None:
        """The exit code, or None while it runs, and for ever where the shell went with it."""
        if command.exit_code is None:
            with contextlib.suppress(OSError, ValueError):  # not written yet, or not whole
                command.exit_code = int(
                    await self._machine.live.read(posixpath.join(command.folder, "exit_code"))
                )
        return command.exit_code

    async def send(self, command: Command, data: str) -> None:
        """Write to the command's standard input; a line feed is added where there is none."""
        if await self.exit_code(command) is not None:
            raise _daemon(410, "command has already completed", "COMMAND_ALREADY_COMPLETED")
        text = (data if data.endswith("\n") else data + "\n").encode()
        try:
            done = await self._machine.run([*_WRITE, f"{command.folder}/input.pipe"], stdin=text, timeout=60)
        except TimeoutError:
            raise _daemon(500, "failed to write input: nobody reads it") from None
        if done.exit_code != 0:
            raise _daemon(500, "failed to open input pipe: no such file or directory")
        if command.echo:
            echoed = b"".join(STDOUT + line + b"\n" for line in text.splitlines())
            await self._machine.run(["sh", "-c", 'cat >> "$1"', "sh", command.log], stdin=echoed)

    async def logs(self, command: Command) -> dict[str, str]:
        """The whole log, apart and together."""
        try:
            data = await self._machine.live.read(command.log)
        except FileNotFoundError:
            data = b""
        except OSError as error:
            raise _daemon(500, f"the log cannot be read: {error.strerror}") from error
        out, err = split(data)
        both = data.replace(STDOUT, b"").replace(STDERR, b"")
        return {name: part.decode("utf-8", "replace") for name, part in
                (("output", both), ("stdout", out), ("stderr", err))}  # fmt: skip

    async def follow(self, command: Command) -> RelayProcess:
        """A process whose output is the log from its first byte on, as it grows."""
        return await self._machine.spawn([*_FOLLOW, command.log])

    async def delete(self, session: Session) -> None:
        """End the shell and its children, and remove its files."""
        del self.all[session.id]
        for command in session.commands.values():
            command.gone = True
        await session.shell.kill()
        # Its sandbox has gone, or the kernel takes its time: its files are removed all the same.
        with contextlib.suppress(HarvestError, TimeoutError):
            await asyncio.wait_for(session.shell.wait(), 5)
        await self._machine.run(["rm", "-rf", f"{WORK}/sessions/{session.id}"])

    async def describe(self, session: Session) -> dict[str, Any]:
        """The session as the API describes it."""
        return {
            "sessionId": session.id,
            "commands": [await self.describe_command(command) for command in session.commands.values()],
        }

    async def describe_command(self, command: Command) -> dict[str, Any]:
        """A command as the API describes it."""
        code = await self.exit_code(command)
        described: dict[str, Any] = {"id": command.id, "command": command.command}
        return described if code is None else {**described, "exitCode": code}


async def _discard(stream: AsyncIterator[bytes]) -> None:
    async for _ in stream:
        pass


def split(data: bytes) -> tuple[bytes, bytes]:
    """The standard output and the standard error of a log."""
    out, err = bytearray(), bytearray()
    for line in data.splitlines(keepends=True):
        if line.startswith(STDERR):
            err += line[len(STDERR) :]
        else:
            out += line.removeprefix(STDOUT)
    return bytes(out), bytes(err)
