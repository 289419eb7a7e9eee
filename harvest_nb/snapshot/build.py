"""Building the snapshot image: base, sources, context, the engine's classic builder, and the result looked at."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from harvest_nb.engine import DockerClient, connect, engine_errors
from harvest_nb.engine.stream import remove_traces, stream_build
from harvest_nb.errors import BuildError, DiskFullError, HarvestError, SettingsError
from harvest_nb.machine.command import Cancelled, Stop
from harvest_nb.machine.held import holding
from harvest_nb.machine.locks import one_at_a_time
from harvest_nb.paths import snapshot_dir
from harvest_nb.settings import load_settings
from harvest_nb.snapshot.base import resolve_base
from harvest_nb.snapshot.cache import building, keep_finished, keep_unfinished
from harvest_nb.snapshot.context import ca_bundle_bytes, packed_context, write_context
from harvest_nb.snapshot.image import Snapshot, inspect
from harvest_nb.snapshot.manifest import labels, make_manifest
from harvest_nb.snapshot.record import keep_record
from harvest_nb.snapshot.sources import SourceMap, collect
from harvest_nb.snapshot.steps import BuildLog

__all__ = ["BuildProgress", "build"]

_RELAY = Path(__file__).resolve().parent.parent / "sandbox" / "relayd"
_ENGINE_SECONDS = 300.0  # one answer; the build's own stream is not bounded
_HEARTBEAT_SECONDS = 1.0
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
_NO_PROXIES = ("NO_PROXY", "no_proxy")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class BuildProgress:
    """How far a build has come.

    `step` of `steps` is 0 of 0 while there is no Dockerfile step yet (base image, sources); `instruction` is
    the step's, or what is being done; `line` the last one of its output; `seconds` since the build began;
    `cached` whether the step came from the cache, None while that is open.
    """

    step: int
    steps: int
    instruction: str
    line: str
    seconds: float
    cached: bool | None = None


@dataclass(frozen=True)
class _Job:
    """What to build; everything that the thread needs, so that it looks at no setting while it works."""

    tag: str
    source_root: Path | None
    node_version: str
    client: DockerClient | None
    ca_bundle: bytes
    snapshot: Path
    relay: Path
    source_map: SourceMap | None
    pull: bool
    began: float
    tell: Callable[[BuildProgress], None]
    stop: Stop = field(default_factory=Stop)
    log: BuildLog = field(default_factory=BuildLog)

    def say(self, what: str, line: str) -> None:
        self.tell(BuildProgress(0, 0, what, line, time.monotonic() - self.began))


async def build(
    *,
    tag: str | None = None,
    source_root: Path | None = None,
    on_progress: Callable[[BuildProgress], None] | None = None,
    node_version: str = "20",
    client: DockerClient | None = None,
    ca_bundle: Path | None = None,
    snapshot: Path | None = None,
    relay: Path | None = None,
    source_map: SourceMap | None = None,
    pull: bool = False,
) -> Snapshot:
    """Build the snapshot image; what has not changed comes from the engine's cache.

    A build that is cancelled ends its step and leaves neither container nor image behind; one that fails keeps
    the steps before the failing one as cache under a name (see `harvest_nb.snapshot.cache`), so that the next
    attempt goes on there. Builds of the same tag by the same user wait for each other.

    Args:
        tag: the image's name (default: `HARVEST_IMAGE`, else the namespace's, see `Settings.image`).
        source_root: where the config sources are (default: the enclosing repository).
        on_progress: called in the event loop with every line, and once a second without one.
        node_version: Node's major version, which chooses the base image.
        client: the engine (default: the one that `harvest_nb.engine.connect` finds); it must be running.
        ca_bundle: PEM certificates that the downloads in builder stages trust (default: those that the
            environment names).
        snapshot: the folder of Dockerfile, lockfile and entrypoint (default: the package's own).
        relay: the folder of the relay's package (default: the package's own).
        source_map: which config sources (default: `config/sources.toml`).
        pull: get the base image anew, with the packages of today, also where the engine has one.

    Raises:
        SourceError: a config source cannot be used. SettingsError: a CA bundle cannot be read, or a proxy is none.
        BuildError: a step failed; `step` names it and `tail` holds its last lines.
        EngineError: the engine cannot be used or failed. DiskFullError: it has no space left.
    """
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[BuildProgress] = asyncio.Queue()
    job = _Job(
        tag=tag or load_settings().image,
        source_root=source_root,
        node_version=node_version,
        client=client,
        ca_bundle=ca_bundle_bytes(ca_bundle),
        snapshot=snapshot or snapshot_dir(),
        relay=relay or _RELAY,
        source_map=source_map,
        pull=pull,
        began=time.monotonic(),
        tell=lambda progress: _hand_over(loop, lines, progress),
    )
    work = loop.run_in_executor(None, _work, job)
    try:
        await _report(work, lines, on_progress or (lambda _: None), job.began)
        return await asyncio.shield(work)
    finally:
        # Not done: cancelled, or on_progress raised. Whatever comes now, nothing may be left behind.
        if not work.done():
            job.stop.ask()
            await _settled(work)
        elif not work.cancelled():
            work.exception()  # looked at, so that asyncio does not complain when on_progress has raised


def _hand_over(
    loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[BuildProgress], progress: BuildProgress
) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(lines.put_nowait, progress)


async def _report(
    work: asyncio.Future[Snapshot],
    lines: asyncio.Queue[BuildProgress],
    on_progress: Callable[[BuildProgress], None],
    began: float,
) -> None:
    """Call `on_progress` until the work has ended and every line is told."""
    last: BuildProgress | None = None
    while not (work.done() and lines.empty()):
        getter = asyncio.ensure_future(lines.get())
        try:
            either: set[asyncio.Future[Any]] = {getter, work}
            await asyncio.wait(either, timeout=_HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                last = getter.result()
            elif last is not None and not work.done():
                last = replace(last, seconds=time.monotonic() - began)
            else:
                continue
        finally:
            getter.cancel()
        on_progress(last)


async def _settled(work: asyncio.Future[Snapshot]) -> None:
    """Wait until the work has ended, however often this is cancelled meanwhile."""
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            cancelled = True
    error = work.exception()
    if error is not None and not isinstance(error, Cancelled):
        raise error
    if cancelled:
        raise asyncio.CancelledError


def _work(job: _Job) -> Snapshot:
    with ExitStack() as stack:
        client = job.client or stack.enter_context(closing(connect(_ENGINE_SECONDS)))
        stack.enter_context(
            one_at_a_time(f"build of {job.tag}", say=lambda line: job.say("waiting", line), stop=job.stop)
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="harvest-build-")))
        stack.enter_context(holding(f"the folder {folder}", f"rm -r {shlex.quote(str(folder))}"))
        sources = collect(job.source_root, source_map=job.source_map)
        job.say("config sources", f"{len(sources.files)} files from {sources.root}")
        base = resolve_base(
            client,
            job.node_version,
            say=lambda line: job.say("base image", line),
            stop=job.stop,
            pull=job.pull,
        )
        manifest = make_manifest(sources, base, job.snapshot / "package-lock.json", job.relay)
        write_context(
            folder,
            snapshot=job.snapshot,
            relay=job.relay,
            sources=sources,
            manifest=manifest,
            ca_bundle=job.ca_bundle,
        )
        context = stack.enter_context(packed_context(folder))
        arguments = {"NODE_VERSION": job.node_version, "BASE_IMAGE": base.reference, **_proxy_arguments()}
        try:
            with building():
                for event in stream_build(
                    client, context, tag=job.tag, buildargs=arguments, labels=labels(manifest), stop=job.stop
                ):
                    for line in job.log.feed(event):
                        _tell_line(job, line)
                job.log.end()
        except Cancelled:
            remove_traces(client, containers=job.log.containers, images=job.log.made)
            raise
        except HarvestError:
            keep_unfinished(client, job.tag, job.log)
            raise
        if job.log.error is not None or job.log.image is None:
            keep_unfinished(client, job.tag, job.log)
            _fail(job)
        keep_finished(client, job.tag, job.log)
        _keep_record(job, client, job.log.image)
        seconds = time.monotonic() - job.began
        found = inspect(job.log.image, client)
        return replace(found, name=job.tag, built=not job.log.wholly_cached, seconds=seconds)


def _keep_record(job: _Job, client: DockerClient, image: str) -> None:
    api: Any = client.api  # partly untyped
    with engine_errors(f"looking at {image}"):
        described = api.inspect_image(image)
    try:
        keep_record(described, job.tag)
    except OSError as error:
        job.say("record", f"not kept, so `validate` cannot compare the image with this build: {error}")


def _tell_line(job: _Job, line: str) -> None:
    step, seconds = job.log.step, time.monotonic() - job.began
    if step is None:
        job.tell(BuildProgress(0, 0, "build", line, seconds))
    else:
        job.tell(BuildProgress(step.number, step.of, step.instruction, line, seconds, step.cached))


def _fail(job: _Job) -> NoReturn:
    step, tail = job.log.step, "\n".join(job.log.tail)
    name = step.name if step is not None else "before the first step"
    said = job.log.error or "the engine ended the stream without a result"
    words = f"{said}\n{tail}".lower()
    if "no space left on device" in words or "enospc" in words:
        raise DiskFullError(
            f"The Docker engine's disk is full ({name}): {said}\n{tail}",
            hint="make room with `docker system prune`, or give the engine a larger disk",
            step=name,
            tail=tail,
        )
    raise BuildError(
        f"The build of {job.tag} failed. {name}\n{said}\n{tail}",
        hint="the lines above are the step's last ones; after the cause is mended the build goes on from there",
        step=name,
        tail=tail,
    )


def _proxy_arguments() -> dict[str, str]:
    """The proxy settings of the environment; the builder keeps these arguments out of the image and the cache.

    A proxy on this machine's loopback is left out: a container cannot reach it.
    """
    found = {name: os.environ[name] for name in (*_PROXIES, *_NO_PROXIES) if os.environ.get(name)}
    return {
        name: value for name, value in found.items() if name in _NO_PROXIES or not _is_loopback(name, value)
    }


def _is_loopback(name: str, proxy: str) -> bool:
    try:
        # `host:port` alone is allowed, and would be read as a scheme.
        return urlsplit(proxy if "://" in proxy else f"//{proxy}").hostname in _LOOPBACK
    except ValueError as error:
        raise SettingsError(f"{name} is no proxy's address: {error}", hint=f"correct {name}") from error
