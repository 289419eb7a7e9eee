"""Sandboxes as directories of this machine, for desks without Docker. They isolate nothing, and say so.

The locked agent toolchain comes from a cache; the config sources are laid out as the image has them; the relay
is a child process whose end (also the desk's own, by any signal) ends everything it started and removes the
directory.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Hashable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from harvest_nb.errors import SandboxError
from harvest_nb.machine.command import Stop
from harvest_nb.machine.locks import is_locked
from harvest_nb.paths import cache_dir, snapshot_dir
from harvest_nb.sandbox.base import Limits, SandboxInfo
from harvest_nb.sandbox.owner import in_namespace, namespace_filter
from harvest_nb.sandbox.relay import Relay, Stream
from harvest_nb.sandbox.relay_files import RELAY_HERE
from harvest_nb.sandbox.relayed import RelayedSandbox
from harvest_nb.sandbox.toolchain import Toolchain, host_toolchain
from harvest_nb.sandbox.uncancelled import in_thread, to_the_end, until_stopped
from harvest_nb.settings import load_settings
from harvest_nb.snapshot.sources import collect, stage

__all__ = ["HostProvider"]

_LOG = "relay.log"
# What a program needs to know of the machine; credentials and settings of the desk's own stay out.
_PASSED = ("LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "TMPDIR")


class HostProvider:
    """Makes, lists and removes directories; see `harvest_nb.sandbox.base.Provider`.

    Args:
        source_root: where the config sources are taken from (default: this package's own).
        say: told what takes a while, such as the first set-up of the toolchain.
    """

    name = "host"

    def __init__(self, source_root: Path | None = None, say: Callable[[str], None] = lambda _: None) -> None:
        self._source_root, self._say = source_root, say

    async def create(
        self,
        snapshot: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        ttl: float = 120.0,
        limits: Limits | None = None,
        network: str = "none",
    ) -> RelayedSandbox:
        """A directory laid out as `/app`, with the locked toolchain on its PATH.

        `snapshot`, `limits` and `network` have no meaning here: there is no image, and nothing is isolated.

        Raises:
            SandboxError: the toolchain or the layout cannot be made.
        """
        toolchain = await host_toolchain(self._say)
        ident = uuid.uuid4().hex[:12]
        base = _folder() / ident
        laying = in_thread(self._lay_out, base, {**(labels or {}), **in_namespace()}, toolchain)
        try:
            lock = await asyncio.shield(laying)
        except asyncio.CancelledError:
            await to_the_end(lambda: _discard_late(laying, base))
            raise
        try:
            environment = _environment(base, toolchain)
            await _seed(environment, lock)
            return await self._open(ident, base, environment, env or {}, ttl, lock)
        except BaseException:
            await to_the_end(lambda: in_thread(_discard, base))
            raise
        finally:
            os.close(lock)  # the relay has it too, if there is one

    def _lay_out(self, base: Path, labels: Mapping[str, str], toolchain: Toolchain) -> int:
        """Make the directory. Returns the descriptor of its lock, held."""
        base.parent.mkdir(parents=True, exist_ok=True)
        with _alone():
            base.mkdir()
            lock = os.open(base / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            _write_labels(base, labels)
            stage(collect(self._source_root), base)
            for name in ("app/workspace", "home", "tmp"):
                (base / name).mkdir(parents=True)
            (base / "app" / "node_modules").symlink_to(toolchain.node_modules)
        except BaseException:
            _discard(base)
            os.close(lock)
            raise
        return lock

    async def _open(
        self,
        ident: str,
        base: Path,
        environment: Mapping[str, str],
        extra: Mapping[str, str],
        ttl: float,
        lock: int,
    ) -> RelayedSandbox:
        log = base / _LOG
        process: subprocess.Popen[bytes] | None = None
        sock: socket.socket | None = None

        async def connect() -> Stream:
            nonlocal process, sock
            if process is not None:
                raise ConnectionError("the host's relay is reached once")
            process, sock = _start_relay(base, environment, lock)
            return await _stream_to(process, sock)

        async def gone() -> str | None:
            if process is None:
                return "its relay could not be started"
            code = await in_thread(process.wait)
            said = log.read_text(errors="replace").strip() if log.exists() else ""
            return f"its relay ended with exit code {code}" + (f": {said[-500:]}" if said else "")

        async def end() -> None:
            if process is not None and sock is not None:
                # Its input ends here in any case: what was cancelled may still hold the stream, and the relay with it.
                with contextlib.suppress(OSError):  # closed already
                    sock.shutdown(socket.SHUT_RDWR)
                await in_thread(process.wait)
            await in_thread(_discard, base)

        async def remove() -> None:
            await to_the_end(end)

        try:
            relay = await Relay.open(connect, gone, lease=ttl)
        except BaseException:
            await remove()
            raise
        return RelayedSandbox(
            relay,
            remove,
            id=ident,
            provider=self.name,
            app=PurePosixPath(base / "app"),
            home=PurePosixPath(base / "home"),
            memory_file=PurePosixPath(environment["MEMORY_FILE_PATH"]),
            isolated=False,
            image=None,
            manifest_hash=None,
            env=extra,
        )

    async def made_from(self, snapshot: str | None) -> str:
        """The SHA-256 of the config sources as they are now; `snapshot` has no meaning here.

        Raises:
            SourceError: one of them is missing or cannot be read.
        """
        return await asyncio.to_thread(self._digest)

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for file in collect(self._source_root).files:
            digest.update(f"{file.image_path} {file.sha256}\n".encode())
        return digest.hexdigest()

    def place(self) -> Hashable:
        """The folder that holds the directories, where the config sources are taken from, and the namespace."""
        return _folder(), self._source_root, load_settings().namespace

    async def relabel(self, ident: str, run: str) -> None:
        """List the directory under `harvest.run=<run>` from now on."""
        base = _folder() / ident
        try:
            _write_labels(base, {**_labels(base), "harvest.run": run})
        except FileNotFoundError as error:
            raise SandboxError(f"There is no sandbox {ident}") from error

    async def list(
        self, labels: Mapping[str, str] | None = None, *, all_namespaces: bool = False
    ) -> builtins.list[SandboxInfo]:
        """The directories under this user's cache, of this namespace or of all, that carry `labels`."""
        wanted = namespace_filter(all_namespaces)
        found = await asyncio.to_thread(self._list)
        return [
            info
            for info in found
            if (labels or {}).items() <= info.labels.items()
            # Without any label: its maker was killed before it could say whose it is, so it is everybody's to reap.
            and (wanted(info.labels) or not (info.labels or info.held))
        ]

    def _list(self) -> builtins.list[SandboxInfo]:
        if not _folder().is_dir():
            return []
        found = []
        with _alone():
            for base in sorted(_folder().glob("*/")):
                # One that is removed while it is looked at is not there.
                with contextlib.suppress(FileNotFoundError):
                    found.append(self._info(base))
        return found

    def _info(self, base: Path) -> SandboxInfo:
        held, created = is_locked(base / "lock"), datetime.fromtimestamp(base.stat().st_mtime, UTC)
        return SandboxInfo(base.name, self.name, "running" if held else "left", created, _labels(base), held)

    async def reap(self, *, all_namespaces: bool = False) -> builtins.list[str]:
        """Remove the directories of this namespace, or of all, that no relay holds any more; returns their ids."""
        left = [info.id for info in await self.list(all_namespaces=all_namespaces) if not info.held]
        for ident in left:
            # Nobody takes up a directory that was let go of, so it needs no lock to be removed.
            await asyncio.to_thread(_discard, _folder() / ident)
        return left


def _folder() -> Path:
    return cache_dir() / "sandboxes"


def _write_labels(base: Path, labels: Mapping[str, str]) -> None:
    """Write the labels of a directory, all or none of them."""
    part = base / "labels.part"
    part.write_text("\n".join(f"{key}={value}" for key, value in labels.items()))
    part.replace(base / "labels")


def _labels(base: Path) -> dict[str, str]:
    """The labels of a directory; none while it is being laid out."""
    text = (base / "labels").read_text() if (base / "labels").exists() else ""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Within it, nobody else makes a directory or looks which are held: each is made and locked in one step."""
    with (_folder() / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _discard(base: Path) -> None:
    shutil.rmtree(base, ignore_errors=True)


async def _discard_late(laying: asyncio.Future[int], base: Path) -> None:
    """Remove a directory that was made after nobody waited for it any more."""
    await asyncio.wait([laying])
    if laying.exception() is None:
        await in_thread(_discard, base)
        os.close(laying.result())


def _start_relay(
    base: Path, environment: Mapping[str, str], lock: int
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the relay of a directory; returns it, and the socket whose other end is its standard input.

    asyncio's own subprocesses will not do: a loop that ends while it starts one waits for ever, as it cancels the task
    that connects the pipes and asyncio reports the exit only once all pipes are connected (Python 3.11 and 3.12).
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs, (base / _LOG).open("wb") as errors:
            process = subprocess.Popen(
                [*RELAY_HERE, "stdio", "--hold", str(lock), "--remove", str(base)],
                stdin=theirs.fileno(), stdout=subprocess.PIPE, stderr=errors,
                env=environment, cwd=base / "app", start_new_session=True, pass_fds=(lock,),
            )  # fmt: skip
    except BaseException:
        ours.close()
        raise
    return process, ours


async def _stream_to(process: subprocess.Popen[bytes], sock: socket.socket) -> Stream:
    """Connect a stream to the program's standard output and to `sock`, its input; both are closed where that fails."""
    reader = asyncio.StreamReader()
    assert process.stdout is not None
    try:
        output, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), process.stdout
        )
    except BaseException:
        sock.close()  # which ends the program
        raise
    try:
        _, writer = await asyncio.open_connection(sock=sock)
    except BaseException:
        sock.close()
        output.close()
        raise
    return reader, writer


async def _seed(environment: Mapping[str, str], lock: int) -> None:
    """Fill the memory store as the image's entry point does. It holds the lock too, for as long as it runs."""

    def seed(stop: Stop) -> tuple[int, bytes]:
        with subprocess.Popen(
            [sys.executable, "-I", str(snapshot_dir() / "entrypoint.py"), "--seed-only"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=environment, pass_fds=(lock,),
        ) as process:  # fmt: skip
            forget = stop.on_ask(process.kill)
            output, _ = process.communicate()
            forget()
        return process.returncode, output

    code, output = await until_stopped(seed)
    if code != 0:
        raise SandboxError(f"The memory store cannot be seeded: {output.decode('utf-8', 'replace').strip()}")


def _environment(base: Path, toolchain: Toolchain) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in _PASSED if name in os.environ},
        "PATH": f"{toolchain.bin}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(base / "home"),
        "HARVEST_APP": str(base / "app"),
        "MEMORY_FILE_PATH": str(base / "home" / "memory" / "memory.jsonl"),
    }
