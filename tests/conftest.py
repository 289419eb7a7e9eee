"""Fixtures of the whole suite: a Docker engine, the snapshot image built once, and a stand-in for Daytona."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from pydantic import SecretStr

from harvest_nb.daytona_local import LocalDaytona, local_daytona
from harvest_nb.engine import APIError, DockerClient, connect
from harvest_nb.errors import EngineError
from harvest_nb.sandbox.base import Provider
from harvest_nb.sandbox.daytona import Account, DaytonaProvider
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.sandbox.host import HostProvider
from harvest_nb.snapshot import Snapshot, build

# A suite started in the background inherits an ignored Ctrl-C, and so would the programs whose Ctrl-C is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerClient]:
    """The running Docker engine. Without one its tests are skipped, or fail where `HARVEST_REQUIRE_DOCKER=1`."""
    try:
        client = connect()
    except EngineError as error:
        if os.environ.get("HARVEST_REQUIRE_DOCKER") == "1":
            pytest.fail(f"HARVEST_REQUIRE_DOCKER=1, but {error}")
        pytest.skip(str(error))
    with closing(client):
        yield client


@pytest.fixture(scope="session")
def daytona_server(engine: DockerClient) -> Iterator[LocalDaytona]:
    """The stand-in for Daytona; a test that switches a fault on takes `daytona`, which switches it off again."""
    with local_daytona(engine) as server:
        yield server


@pytest.fixture
def daytona(daytona_server: LocalDaytona) -> Iterator[LocalDaytona]:
    """The stand-in for Daytona, without faults before and after."""
    daytona_server.faults.clear()
    yield daytona_server
    daytona_server.faults.clear()


@pytest.fixture
def daytona_provider(daytona: LocalDaytona, snapshot_image: Snapshot) -> DaytonaProvider:
    """The provider `daytona` at the stand-in, with the snapshot image."""
    account = Account(SecretStr(daytona.api_key), daytona.api_url)
    return DaytonaProvider(account, snapshot=snapshot_image.id, start_timeout=60)


@pytest.fixture
def provider_named(request: pytest.FixtureRequest) -> Callable[[str], Provider]:
    """A provider by its name, ready to be used."""

    def named(name: str) -> Provider:
        if name == "host":
            return HostProvider()
        if name == "daytona":
            provider: Provider = request.getfixturevalue("daytona_provider")
            return provider
        request.getfixturevalue("snapshot_image")
        return DockerProvider(request.getfixturevalue("engine"))

    return named


@pytest.fixture(scope="session")
def snapshot_image(engine: DockerClient) -> Iterator[Snapshot]:
    """The snapshot image as `build()` makes it; what has not changed comes from the engine's cache.

    It has a name of this suite's for as long: another checkout's build takes the snapshot's tag over, and the engine
    removes an image without a name together with the last one that was made from it.
    """
    snapshot = asyncio.run(build(client=engine))
    api: Any = engine.api  # partly untyped
    name = f"harvest-test-suite:{os.getpid()}"
    api.tag(snapshot.id, *name.split(":"))
    try:
        yield snapshot
    finally:
        try:
            api.remove_image(name, noprune=True, force=True)
        except APIError as error:
            if error.status_code not in (404, 409):  # somebody has cleaned up, or uses it just now
                raise
