"""The verbs, with their displays: what a notebook's cell and the command line call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from harvest_nb import snapshot as snapshots
from harvest_nb.checks import (
    Report,
    dockerfile_start,
    failed_start,
    load_contract,
    validate_build,
    validate_image,
    validate_layers,
    validate_sandbox,
)
from harvest_nb.engine import connect, engine_errors
from harvest_nb.errors import RelayError, SandboxError
from harvest_nb.machine.command import Stop, unless_stopped
from harvest_nb.machine.held import holding
from harvest_nb.paths import snapshot_dir
from harvest_nb.providers import get_provider, name_for
from harvest_nb.sandbox.base import Provider, Sandbox, reap_command
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sandbox.uncancelled import until_stopped
from harvest_nb.sessions import chat, resume, run
from harvest_nb.settings import load_settings
from harvest_nb.snapshot import Snapshot
from harvest_nb.snapshot.carry import load, save
from harvest_nb.snapshot.image import read_file
from harvest_nb.snapshot.record import find_record
from harvest_nb.views.progress import BuildBar

__all__ = ["build", "chat", "resume", "run", "validate"]


async def build(
    image: str | None = None,
    *,
    source_root: Path | str | None = None,
    node_version: str = "20",
    pull: bool = False,
    output: Path | str | None = None,
    on_progress: Callable[[snapshots.BuildProgress], None] | None = None,
) -> Snapshot:
    """Build the snapshot image, showing how far it has come; see `harvest_nb.snapshot.build`.

    Args:
        image: the tag (default: `HARVEST_IMAGE`, else the namespace's, see `Settings.image`).
        source_root: where the config sources are (default: the enclosing repository).
        node_version: Node's major version in the image.
        pull: get the base image anew first, with the packages of today.
        output: a tar to write the image into as well, to be carried to another machine.
        on_progress: called instead of the display.

    Raises:
        SourceError, BuildError, EngineError: see `harvest_nb.snapshot.build`.
    """
    with BuildBar() if on_progress is None else nullcontext() as bar:
        show = on_progress if bar is None else bar.show
        snapshot = await snapshots.build(
            tag=image,
            source_root=Path(source_root) if source_root else None,
            node_version=node_version,
            pull=pull,
            on_progress=show,
        )
    if output is not None:
        await until_stopped(partial(_save, snapshot.tag, Path(output)))
    return snapshot


def _save(image: str, output: Path, stop: Stop) -> None:
    with closing(connect()) as client:
        save(client, image, output, stop=stop)


async def validate(
    snapshot: Snapshot | Path | str | None = None,
    *,
    provider: str | Provider = "docker",
    contract: Path | str | None = None,
    groups: Iterable[str] | None = None,
    source_root: Path | str | None = None,
    layers: bool = True,
) -> Report:
    """Run the validation contract in a new sandbox from `snapshot`; with Docker the image itself is looked at too.

    Args:
        snapshot: a snapshot, an image's tag or id, or a tar that `build(output=…)` wrote (`….tar`).
        provider: `"docker"`, `"host"`, or a provider.
        contract: a contract's file (default: `config/contract.toml`).
        groups: the groups to run (default: all).
        source_root: a checkout that the baked files are compared with.
        layers: whether to read the image's layers for secrets too: a gigabyte, once for each layer that is new.

    Raises:
        EngineError, SandboxError: no sandbox could be made, and not for the image's sake. What goes wrong in a
            check is a failed row, and so is an image from which no sandbox starts.
        BuildError: the tar holds no whole image. CheckError: the contract is malformed.
    """
    maker = get_provider(provider) if isinstance(provider, str) else provider
    image = name_for(
        maker, snapshot if isinstance(snapshot, Snapshot) else str(snapshot or load_settings().image)
    )
    chosen = None if groups is None else list(groups)
    load_contract(Path(contract) if contract else None).only(chosen)
    with ExitStack() as stack:
        if isinstance(maker, DockerProvider) and image.endswith(".tar"):
            stop = Stop()
            image = await _entered(stack, load(maker.client, Path(image), stop=stop), stop)
        return await _validate(
            maker,
            image,
            contract=Path(contract) if contract else None,
            groups=chosen,
            source_root=Path(source_root) if source_root else None,
            layers=layers,
        )


async def _entered(stack: ExitStack, loading: AbstractContextManager[str], stop: Stop) -> str:
    """What `loading` gives, entered in a thread, for a gigabyte is read; if cancelled, only once `stack` has it."""
    work = asyncio.ensure_future(asyncio.to_thread(stack.enter_context, loading))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.ask()
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        work.exception()  # looked at: the cancel is what is told
        raise


async def _validate(
    maker: Provider,
    image: str,
    *,
    contract: Path | None,
    groups: list[str] | None,
    source_root: Path | None,
    layers: bool,
) -> Report:
    looks, known = isinstance(maker, DockerProvider), load_contract(contract).variables
    began = time.monotonic()
    reading: asyncio.Future[Report] | None = None
    if isinstance(maker, DockerProvider) and (groups is None or "security" in groups):
        # The sandbox is asked meanwhile.
        reading = asyncio.ensure_future(until_stopped(partial(_look_at_layers, maker, image, layers)))
    try:
        report, manifest = await _ask(
            maker, image, looks, contract=contract, groups=groups, source_root=source_root
        )
        rows = list(report)
        if isinstance(maker, DockerProvider):
            rows += [
                row
                for row in await asyncio.to_thread(_look_at_image, maker, image, manifest, known)
                if groups is None or row.group in groups
            ]
        if reading is not None:
            rows += list(await reading)
        return Report(rows, subject=report.subject, seconds=time.monotonic() - began, notes=report.notes)
    finally:
        if reading is not None:
            reading.cancel()  # where it is not done, as something has stopped the validation
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.exception()  # looked at: what stopped the validation has been said


async def _ask(
    maker: Provider,
    image: str,
    looks: bool,
    *,
    contract: Path | None,
    groups: list[str] | None,
    source_root: Path | None,
) -> tuple[Report, bytes | None]:
    """The report of a new sandbox, and its manifest; one that does not start is a report too."""
    with holding(f"a {maker.name} sandbox", reap_command(maker.name)):
        try:
            sandbox = await maker.create(image, labels={"harvest.run": "validate"})
        except (SandboxError, RelayError) as error:
            if "image" in error.data or not looks:
                raise  # there is no such image, or there is none at all
            return failed_start(error, image, await asyncio.to_thread(_account, maker, image, contract)), None
        try:
            report = await validate_sandbox(
                sandbox, contract=contract, groups=groups, source_root=source_root
            )
            return report, await _manifest(sandbox)
        finally:
            await sandbox.close()


async def _manifest(sandbox: Sandbox) -> bytes | None:
    try:
        return await sandbox.read("manifest.json")
    except (OSError, SandboxError):
        return None  # the contract's own checks have said so


def _account(provider: Provider, image: str, contract: Path | None) -> str:
    """Return the fault of the agent's user in the image's /etc/passwd, an empty text without one."""
    user = load_contract(contract).user
    if user is None or not isinstance(provider, DockerProvider):
        return ""
    try:
        with engine_errors(f"look at the users of {image}"):
            return user.account(read_file(provider.client, image, "/etc/passwd").decode("utf-8", "replace"))
    except (OSError, ValueError) as error:
        return f"/etc/passwd cannot be read: {error}"


def _look_at_image(
    provider: DockerProvider, image: str, manifest: bytes | None, variables: dict[str, str] | None
) -> Report:
    api: Any = provider.client.api  # partly untyped
    with engine_errors(f"look at {image}"):
        return validate_image(
            api.inspect_image(image),
            api.history(image),
            manifest=manifest,
            variables=variables,
            start=dockerfile_start((snapshot_dir() / "Dockerfile").read_text(encoding="utf-8")),
        )


def _look_at_layers(provider: DockerProvider, image: str, layers: bool, stop: Stop) -> Report:
    api: Any = provider.client.api

    def look() -> Report:
        with engine_errors(f"look at the layers of {image}"):
            described = api.inspect_image(image)
            record = find_record(described)
            if not layers:
                return validate_build(described, record)
            return validate_layers(
                described,
                lambda: api.get_image(described["Id"], chunk_size=1 << 20),
                history=api.history(image),
                record=record,
                stop=stop,
            )

    return unless_stopped(look, stop)  # the engine puts the whole image together before it answers
