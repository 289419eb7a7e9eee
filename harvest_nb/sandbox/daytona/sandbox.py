"""One Daytona sandbox: the relay over a session's command, and a heartbeat while a process here holds it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import PurePosixPath
from types import MappingProxyType

from daytona import AsyncSandbox, DaytonaError, DaytonaNotFoundError, FileUpload

from harvest_nb.bounds import bounds
from harvest_nb.errors import SandboxError, SandboxGone
from harvest_nb.sandbox.daytona.logs import LogTooLarge, fetch_log
from harvest_nb.sandbox.daytona.retry import explained, persist
from harvest_nb.sandbox.daytona.stream import CommandEnded, open_command_stream
from harvest_nb.sandbox.relay import Relay, Stream
from harvest_nb.sandbox.relay_files import RELAY, relay_digest, relay_files
from harvest_nb.sandbox.relayed import RelayedSandbox
from harvest_nb.sandbox.uncancelled import to_the_end

__all__ = ["DaytonaSandbox", "open_sandbox", "state_of", "why_gone"]

_log = logging.getLogger(__name__)
APP = PurePosixPath("/app")
HOME = PurePosixPath("/home/harvest")
MEMORY = HOME / "memory" / "memory.jsonl"
LABEL = "harvest.sandbox"
_HEARTBEAT = 60.0  # seconds
_TOLD = 2  # heartbeats in a row that must fail to be a problem
_INPUT = 20.0  # seconds for one call of input, at most: the renewals of the lease queue behind it
_NO_RELAY = (2, 68, 127)  # no such file or mode, another relay, no Python
_ACK_DELAY = 0.2  # seconds: each acknowledgement is a call
_DEAD = {
    "stopped": "it was stopped",
    "stopping": "it was stopped",
    "archived": "it was archived",
    "paused": "it was paused",
    "destroyed": "it was destroyed",
    "destroying": "it was destroyed",
}


async def why_gone(sandbox: AsyncSandbox) -> str | None:
    """How it ended, or None while it is there or Daytona cannot be asked."""
    try:
        await sandbox.refresh_data(request_timeout=20)
    except DaytonaNotFoundError:
        return "it was destroyed"
    except DaytonaError:
        return None  # not to be reached: the relay goes on trying for a while
    state = state_of(sandbox)
    if state in ("error", "build_failed"):
        return f"it failed: {sandbox.error_reason or 'Daytona gives no reason'}"
    return _DEAD.get(state)


def pause_of(ttl_minutes: int) -> float:
    """Seconds between two beats: at least four of them in the time that the sandbox has without any."""
    return min(_HEARTBEAT, ttl_minutes * 15.0) if ttl_minutes else _HEARTBEAT


def state_of(sandbox: AsyncSandbox) -> str:
    """Its state as Daytona calls it."""
    return str(sandbox.state.value) if sandbox.state is not None else "unknown"


async def _heard(call: Awaitable[object]) -> Exception | None:
    """Await a sign of life, and return what kept it from being heard."""
    try:
        await call
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and the next one may be heard
        return error
    return None


class DaytonaSandbox(RelayedSandbox):
    """See `harvest_nb.sandbox.base.Sandbox`. `remote` is the SDK's own object."""

    remote: AsyncSandbox
    leave: Callable[[], Awaitable[None]]
    secrets: Mapping[str, str] = MappingProxyType({})
    """What no recording may hold, by name."""
    _beating: asyncio.Task[None] | None = None

    def beat(self, ttl_minutes: int) -> None:
        """Tell Daytona again and again that the sandbox is in use, and put its end off."""
        self._beating = asyncio.create_task(self._beat(ttl_minutes))

    async def _beat(self, ttl_minutes: int) -> None:
        # The end is put off at once, as one that is taken up may be near it, and then after each quarter of its time.
        beats = quarter = max(1, ttl_minutes // 4)
        failed = 0
        while True:
            error = await _heard(self.remote.refresh_activity(request_timeout=20))
            if ttl_minutes and beats >= quarter:
                late = await _heard(self.remote.set_ttl(ttl_minutes, request_timeout=20))
                error, beats = late or error, beats if late else 0
            failed = failed + 1 if error else 0
            if error is not None:
                self._missed(failed, ttl_minutes, error)
            await asyncio.sleep(pause_of(ttl_minutes))
            beats += 1

    def _missed(self, failed: int, ttl_minutes: int, error: Exception) -> None:
        """Log a heartbeat that was not heard, and warn of several in a row."""
        end = (
            f"Daytona destroys it {ttl_minutes} min after the last one" if ttl_minutes else "it may be reaped"
        )
        said = (
            f"sandbox {self.id}: {failed} heartbeats in a row were not heard, and without any {end}: {error}"
        )
        loud = failed == _TOLD or failed % 10 == 0
        _log.log(logging.WARNING if loud else logging.INFO, "%s", said)
        if failed == _TOLD:
            self.problems.append(said)

    async def logs(self) -> str:
        """Return what the image's entrypoint has said. Raises SandboxError."""
        most = bounds().read_bytes
        ask = self.remote.process._api_client.get_entrypoint_logs_without_preload_content
        try:
            return (await persist(lambda: fetch_log(ask, most=most, timeout=30)))["output"]
        except LogTooLarge as error:
            raise SandboxError(
                f"The log of sandbox {self.id} is {error}", hint="HARVEST_MAX_READ_BYTES allows more"
            ) from error
        except DaytonaError as error:
            raise explained(error, f"read the logs of {self.id}") from error

    async def release(self) -> None:
        """Let go of it without ending it; `DaytonaProvider.get` takes it up again."""
        await self._let_go(lambda: to_the_end(self.leave))

    async def close(self) -> None:
        """Remove the sandbox, and with it every process; one that another desk has taken up stays."""
        if not self._closed:
            await self._let_go(lambda: to_the_end(self.leave) if self.relay.taken else self._remove())

    async def _let_go(self, then: Callable[[], Awaitable[None]]) -> None:
        """End what this process does with it, and after that do `then`; all of it also when cancelled."""
        self._closed = True
        try:
            await self._end_beating()
        finally:
            try:
                # Where the sandbox goes, it goes as a whole: no need to wait for the relay's end over a slow stream.
                await self.relay.close(shutdown=False)
            finally:
                await then()

    async def _end_beating(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)


async def open_sandbox(
    remote: AsyncSandbox,
    remove: Callable[[], Awaitable[None]],
    leave: Callable[[], Awaitable[None]],
    ending: set[asyncio.Task[None]],
    *,
    lease: float,
    ttl_minutes: int,
) -> DaytonaSandbox:
    """The relay in a running sandbox, started where it does not run.

    Raises:
        SandboxGone: it ended meanwhile. SandboxError: it has no Python, or Daytona refuses.
    """
    command = ["python3", RELAY]
    options = ["lines", "--start", "--lease", str(lease), "--expect", relay_digest()]

    async def begin() -> Stream:
        argv, patience = [*command, *options], min(_INPUT, lease / 6)
        return await open_command_stream(remote, argv, ending, input_timeout=patience)

    async def begin_or_put() -> Stream:
        nonlocal command, options
        try:
            return await begin()
        except CommandEnded as error:
            if error.code not in _NO_RELAY or command[1] != RELAY:
                raise
            folder = await _put_relay(remote)
            command = ["python3", f"{folder}/relay.py"]
            # A relay of its own has a daemon of its own: what listens at the usual place speaks another protocol.
            options = [*options, "--socket", f"{folder}/daemon.sock"]
            return await begin()

    async def connect() -> Stream:
        try:
            return await begin_or_put()
        except DaytonaError as error:
            if (reason := await why_gone(remote)) is not None:
                raise SandboxGone(f"The sandbox has gone: {reason}", reason=reason) from error
            raise ConnectionError(str(error)) from error

    relay = await Relay.open(connect, lambda: why_gone(remote), lease=lease, ack_delay=_ACK_DELAY)
    try:
        manifest = await _manifest_hash(relay)
    except BaseException:
        await relay.close(shutdown=False)
        raise
    sandbox = DaytonaSandbox(
        relay,
        remove,
        id=remote.labels.get(LABEL, remote.id),
        provider="daytona",
        app=APP,
        home=HOME,
        memory_file=MEMORY,
        isolated=True,
        image=remote.snapshot,
        manifest_hash=manifest,
        env={},
    )
    sandbox.remote, sandbox.leave = remote, leave
    sandbox.beat(ttl_minutes)
    return sandbox


async def _put_relay(remote: AsyncSandbox) -> str:
    """Put this package's relay where the sandbox's user may write, and say in which folder."""
    folder = f"/tmp/harvest-relay-{remote.id[:12]}"  # noqa: S108 - the sandbox's own /tmp
    uploads = [
        FileUpload(source=file.read_bytes(), destination=f"{folder}/{name}")
        for name, file in relay_files().items()
    ]
    with contextlib.suppress(DaytonaError):  # an upload makes its folders too
        await remote.fs.create_folder(f"{folder}/relayd", "700", request_timeout=30)
    await persist(lambda: remote.fs.upload_files(uploads, timeout=60))
    return folder


async def _manifest_hash(relay: Relay) -> str | None:
    """SHA-256 of the baked manifest: Daytona shows no image labels."""
    import hashlib

    try:
        return hashlib.sha256(await relay.read(APP / "manifest.json")).hexdigest()
    except FileNotFoundError:
        return None  # an image of somebody else's
    except OSError as error:
        _log.warning("the baked manifest cannot be read, so the run will not say which it is: %s", error)
        return None
