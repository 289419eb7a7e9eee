"""A sandbox on this machine over the real relay: what checks can do without an image is tested with real programs."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

from harvest_nb.checks import Report, load_contract, validate_sandbox
from harvest_nb.engine import DockerClient
from harvest_nb.sandbox.relay import Relay, Stream
from harvest_nb.sandbox.relay_files import RELAY_HERE
from harvest_nb.sandbox.relayed import RelayedSandbox
from harvest_nb.snapshot import Snapshot

RunContract = Callable[..., Awaitable[Report]]


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[RelayedSandbox]:
    """A folder laid out like the image, with `bin/` first on its PATH; it claims to be isolated."""
    app, home, programs = tmp_path / "app", tmp_path / "home", tmp_path / "bin"
    for folder in (app / "workspace", home, programs):
        folder.mkdir(parents=True)
    log = (tmp_path / "relay.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        *RELAY_HERE, "stdio",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
        env={"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(home)},
        cwd=app, start_new_session=True,
    )  # fmt: skip
    log.close()
    reader, writer = process.stdout, process.stdin
    assert reader is not None
    assert writer is not None

    async def connect() -> Stream:
        return reader, writer

    async def gone() -> str | None:
        return f"ended with {await process.wait()}"

    async def remove() -> None:
        await process.wait()

    sandbox = RelayedSandbox(
        await Relay.open(connect, gone, lease=60),
        remove,
        id="desk",
        provider="desk",
        app=PurePosixPath(app),
        home=PurePosixPath(home),
        memory_file=PurePosixPath(home / "memory.jsonl"),
        isolated=True,
        image=None,
        manifest_hash=None,
        env={},
    )
    yield sandbox
    await sandbox.close()


@pytest.fixture
def run_contract(desk: RelayedSandbox, tmp_path: Path) -> RunContract:
    """Write a contract's text and run it on the desk."""

    async def run(text: str, **options: object) -> Report:
        path = tmp_path / "contract.toml"
        path.write_text(text if "version =" in text else f"version = 1\n{text}")
        load_contract(path)
        return await validate_sandbox(desk, contract=path, **options)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def kept(engine: DockerClient, snapshot_image: Snapshot) -> Iterator[Snapshot]:
    """The snapshot under a name of its own: removing an image also takes a parent that has lost its last name."""
    repository, tag = "harvest-test-kept", secrets.token_hex(4)
    assert engine.api.tag(snapshot_image.id, repository, tag)
    yield snapshot_image
    engine.api.remove_image(f"{repository}:{tag}", noprune=True)
