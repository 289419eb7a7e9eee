"""The one protocol behind which every sandbox stands, whichever provider made it."""

from __future__ import annotations

import builtins
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Protocol, runtime_checkable

from harvest_nb.errors import CommandError

__all__ = [
    "RULES",
    "Completed",
    "Limits",
    "Process",
    "Provider",
    "Sandbox",
    "SandboxInfo",
    "Stdin",
    "reap_command",
]


RULES = ("claude.md", "autonomous-agent.md")
"""Files in a sandbox's `workdir` that a session appends to the `claude_code` preset, in this order."""


@dataclass(frozen=True)
class Completed:
    """A command that has ended.

    `exit_code` follows the shell's convention for signals: 128 + number.
    """

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0

    @property
    def text(self) -> str:
        """Standard output as text, undecodable bytes replaced."""
        return self.stdout.decode("utf-8", "replace")

    def check(self) -> Completed:
        """This result, or `CommandError` with the last lines of its output when the exit code is not 0."""
        if self.ok:
            return self
        tail = (self.stderr or self.stdout).decode("utf-8", "replace").strip().splitlines()[-8:]
        raise CommandError(
            f"`{' '.join(self.argv)[:200]}` ended with {self.exit_code}: " + "\n".join(tail), completed=self
        )


@dataclass(frozen=True)
class Limits:
    """What a sandbox may use at most: bytes of memory, CPUs, processes and threads."""

    memory_bytes: int = 4 * 1024**3
    cpus: float = 2.0
    pids: int = 1024


@dataclass(frozen=True)
class SandboxInfo:
    """One sandbox as its provider lists it. `held` says whether its owner still renews the lease."""

    id: str
    provider: str
    state: str
    created: datetime
    labels: Mapping[str, str] = field(default_factory=dict)
    held: bool = True


class Stdin(Protocol):
    """Standard input of a process."""

    async def send(self, data: bytes) -> None:
        """Write all of `data`."""

    async def aclose(self) -> None:
        """End of input."""


@runtime_checkable
class Process(Protocol):
    """A running process, leader of its own process group."""

    @property
    def pid(self) -> int:
        """Its process id in the sandbox."""

    @property
    def stdin(self) -> Stdin:
        """Its standard input."""

    @property
    def stdout(self) -> AsyncIterator[bytes]:
        """Chunks of standard output as they come, byte-exact."""

    @property
    def stderr(self) -> AsyncIterator[bytes]:
        """Chunks of standard error as they come, byte-exact."""

    async def wait(self) -> int:
        """The exit code (128 + number after a signal). Raises `SandboxGone` when the sandbox ends first."""

    async def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send `sig` to the whole process group; a process that has ended is left alone."""


@runtime_checkable
class Sandbox(Protocol):
    """An isolated place where an agent runs.

    `workdir` is the executor's `/app`: in the image that path, on the host a directory laid out alike.
    `workspace` is the one place under it that the agent may write.
    """

    id: str
    provider: str
    workdir: PurePosixPath
    workspace: PurePosixPath
    home: PurePosixPath
    memory_file: PurePosixPath
    """The MCP memory server's store (`MEMORY_FILE_PATH`), seeded from `<workdir>/memory-seed.json`."""
    isolated: bool
    """False where nothing separates the agent from the desk (the `host` provider)."""
    image: str | None
    """The image's id (`sha256:…`), or None where there is no image."""
    manifest_hash: str | None
    """SHA-256 of the baked `manifest.json`."""
    problems: builtins.list[str]
    """What went wrong with it besides what was asked of it, its own removal included; told in the log too."""

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended, or was closed."""

    @property
    def given(self) -> frozenset[str]:
        """The names of the variables that are added to the environment of every program."""

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | PurePosixPath | None = None,
    ) -> Process:
        """Start a program, without a shell. `env` is added to the sandbox's own; `cwd` defaults to `workdir`.

        Raises `SandboxError` when the program cannot be started.
        """

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002 - subprocess.run's word
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | PurePosixPath | None = None,
    ) -> Completed:
        """Run a program to its end. Raises `TimeoutError` (and kills it) after `timeout` seconds."""

    @property
    def silent(self) -> float:
        """For how many seconds it has left what it was sent unanswered; 0 where all is answered."""

    async def read(self, path: str | PurePosixPath, *, plain: bool = False) -> bytes:
        """Return a regular file's bytes, at most `HARVEST_MAX_READ_BYTES`.

        Args:
            plain: whether a link is refused.

        Raises:
            FileNotFoundError, PermissionError, IsADirectoryError: as the sandbox's system says.
            OSError: it is larger, or no regular file.
        """

    async def write(
        self, path: str | PurePosixPath, data: bytes, *, within: PurePosixPath | None = None
    ) -> None:
        """Write a file, whole or not at all; its folder is made.

        Args:
            path: a relative one starts at `within`, or at `workdir`.
            within: for a name that comes from outside: a folder below which it must lie, links followed.

        Raises:
            PermissionError: it may not be written there, or leads out of `within`.
            OSError: the file system refuses the name or the file.
        """

    async def forward(self, host: str, port: int) -> int:
        """Make the desk's `host:port` reachable in the sandbox; returns the port on its own 127.0.0.1."""

    async def close(self) -> None:
        """End every process and remove the sandbox. Safe to call twice."""


class Provider(Protocol):
    """Makes, lists and removes sandboxes."""

    name: str

    async def create(
        self,
        snapshot: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        ttl: float = 120.0,
        limits: Limits | None = None,
        network: str = "none",
    ) -> Sandbox:
        """A new sandbox. `ttl` is the lease in seconds; `network` is `"none"` or `"open"`."""

    async def list(
        self, labels: Mapping[str, str] | None = None, *, all_namespaces: bool = False
    ) -> builtins.list[SandboxInfo]:
        """The sandboxes of this namespace (`HARVEST_NAMESPACE`), or of all, that carry all of `labels`."""

    async def reap(self, *, all_namespaces: bool = False) -> builtins.list[str]:
        """Remove the sandboxes of this namespace, or of all, that no live process holds; returns their ids."""


def reap_command(provider: str) -> str:
    """Return the command that removes the sandboxes which a process that has ended has left at `provider`."""
    return "harvest-nb sandboxes --reap" + ("" if provider == "docker" else f" --provider {provider}")
