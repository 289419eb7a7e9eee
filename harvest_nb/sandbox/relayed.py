"""A sandbox over its relay: what every provider gives back, whatever carries the stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Self

from harvest_nb.sandbox.base import Completed
from harvest_nb.sandbox.relay import Relay, RelayProcess

__all__ = ["RelayedSandbox"]


class RelayedSandbox:
    """See `harvest_nb.sandbox.base.Sandbox`.

    Args:
        relay: the live link.
        remove: takes the sandbox away after the relay has been told to end.
        env: added to the environment of every program; secrets stay on the desk until then.
    """

    def __init__(
        self,
        relay: Relay,
        remove: Callable[[], Awaitable[None]],
        *,
        id: str,  # noqa: A002 - the protocol's word
        provider: str,
        app: PurePosixPath,
        home: PurePosixPath,
        memory_file: PurePosixPath,
        isolated: bool,
        image: str | None,
        manifest_hash: str | None,
        env: Mapping[str, str],
    ) -> None:
        self.id, self.provider, self.isolated = id, provider, isolated
        self.workdir, self.workspace, self.home = app, app / "workspace", home
        self.memory_file, self.image, self.manifest_hash = memory_file, image, manifest_hash
        self.relay = relay
        self.problems: list[str] = []
        self._remove, self._env = remove, dict(env)
        self._closed = False

    def __repr__(self) -> str:
        return f"<{self.provider} sandbox {self.id}>"

    @property
    def gone(self) -> bool:
        """Whether it is known to have ended, or was closed."""
        return self._closed or self.relay.ended.is_set()

    @property
    def given(self) -> frozenset[str]:
        """The names of the variables that are added to the environment of every program."""
        return frozenset(self._env)

    @property
    def silent(self) -> float:
        """For how many seconds the sandbox has left what it was sent unanswered."""
        return self.relay.silent

    def hand_over(self, env: Mapping[str, str], lease: float) -> None:
        """Give a sandbox that waited in a pool to its user. Raises SandboxGone if it has ended meanwhile."""
        self.relay.hold(lease)
        self._env = dict(env)

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | PurePosixPath | None = None,
    ) -> RelayProcess:
        """Start a program, without a shell."""
        return await self.relay.spawn(argv, {**self._env, **(env or {})}, cwd or self.workdir)

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,  # noqa: A002
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | PurePosixPath | None = None,
    ) -> Completed:
        """Run a program to its end; killed and TimeoutError after `timeout` seconds."""
        return await self.relay.run(
            argv, env={**self._env, **(env or {})}, cwd=cwd or self.workdir, input=input, timeout=timeout
        )

    async def read(self, path: str | PurePosixPath, *, plain: bool = False) -> bytes:
        """Return a regular file's bytes; a relative path starts at `workdir`; `plain`: a link is refused."""
        return await self.relay.read(self.workdir / path, plain=plain)

    async def write(
        self, path: str | PurePosixPath, data: bytes, *, within: PurePosixPath | None = None
    ) -> None:
        """Write a file, whole or not at all; a relative path starts at `within`, or at `workdir`."""
        await self.relay.write((within or self.workdir) / path, data, within)

    async def forward(self, host: str, port: int) -> int:
        """The port on the sandbox's 127.0.0.1 that leads to the desk's `host:port`."""
        return await self.relay.forward(host, port)

    async def close(self) -> None:
        """End every process and remove the sandbox."""
        if self._closed:
            return
        self._closed = True
        try:
            await self.relay.close()
        finally:
            await self._remove()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
