"""Fixtures of the whole suite: a Docker engine, the snapshot image built once, and a stand-in for Daytona.

Each process that runs tests has a namespace of its own, apart from the other processes of the same run and from other
users of the engine or the machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, settings

from harvest_nb.errors import EngineError
from harvest_nb.settings import load_settings

# What takes long to load is loaded by the fixtures that need it: a test that needs none of it starts at once.
if TYPE_CHECKING:
    from harvest_nb.daytona_local import LocalDaytona
    from harvest_nb.engine import DockerClient
    from harvest_nb.sandbox.base import Provider
    from harvest_nb.sandbox.daytona import DaytonaProvider
    from harvest_nb.snapshot import Snapshot

# A suite started in the background, or under nohup, inherits ignored signals, and so would the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes says something about who else is using the machine, and nothing about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

BUILT_AS = os.environ.setdefault("HARVEST_TEST_IMAGE", load_settings().image)
"""The tag under which the image is built: that of the user who runs the tests, so that the next run finds it.

It is in the environment, as the processes of pytest-xdist inherit that of the one that starts them, namespace included.
"""
os.environ.pop("HARVEST_IMAGE", None)
os.environ["HARVEST_NAMESPACE"] = f"test-{uuid.uuid4().hex[:12]}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tests so that processes side by side all have something to do, up to the end.

    Notebooks take longest and come first, some of the short tests last. In between tests that compute and tests that
    wait are mixed, always in the same way. A shuffled run (`--randomly-seed`) stays as it is.
    """
    if config.pluginmanager.hasplugin("randomly"):
        return

    def rank(item: pytest.Item) -> tuple[int, int]:
        mixed = zlib.crc32(item.nodeid.encode())
        short = not any(item.get_closest_marker(mark) for mark in ("slow", "docker"))
        return (0 if item.get_closest_marker("notebook") else 2 if short and mixed % 4 == 0 else 1), mixed

    items.sort(key=rank)


def pytest_sessionfinish(exitstatus: int) -> None:
    """Remove what the tests wrote (`HARVEST_TEST_FILES`) where all have passed."""
    files = os.environ.get("HARVEST_TEST_FILES")
    if files and exitstatus == 0 and "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(files, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let the JUnit report say which process ran the test."""
    item.user_properties.append(("worker", os.environ.get("PYTEST_XDIST_WORKER", "main")))


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerClient]:
    """The running Docker engine. Without one its tests are skipped, or fail where `HARVEST_REQUIRE_DOCKER=1`."""
    from harvest_nb.engine import connect

    try:
        client = connect()
    except EngineError as error:
        if os.environ.get("HARVEST_REQUIRE_DOCKER") == "1":
            pytest.fail(f"HARVEST_REQUIRE_DOCKER=1, but {error}")
        pytest.skip(str(error))
    with closing(client):
        yield client
        _clear_namespace(client)


def _clear_namespace(client: DockerClient) -> None:
    """Remove what tests have left on purpose: sandboxes of processes that were killed, the namespace's tags."""
    from harvest_nb.daytona_local.machine import sweep
    from harvest_nb.engine import APIError
    from harvest_nb.sandbox.docker import DockerProvider
    from harvest_nb.snapshot.cache import forget

    asyncio.run(DockerProvider(client).reap())
    sweep(client)
    tag, api = load_settings().image, cast(Any, client.api)  # partly untyped
    forget(client, tag)
    try:
        api.remove_image(tag, noprune=True, force=True)
    except APIError as error:
        if error.status_code not in (404, 409):  # there is none, or somebody uses it just now
            raise


@pytest.fixture(scope="session")
def daytona_server(engine: DockerClient) -> Iterator[LocalDaytona]:
    """The stand-in for Daytona; a test that switches a fault on takes `daytona`, which switches it off again."""
    from harvest_nb.daytona_local import local_daytona

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
    from pydantic import SecretStr

    from harvest_nb.sandbox.daytona import Account, DaytonaProvider

    account = Account(SecretStr(daytona.api_key), daytona.api_url)
    return DaytonaProvider(account, snapshot=snapshot_image.id, start_timeout=60)


@pytest.fixture
def provider_named(request: pytest.FixtureRequest) -> Callable[[str], Provider]:
    """A provider by its name, ready to be used."""

    def named(name: str) -> Provider:
        if name == "host":
            from harvest_nb.sandbox.host import HostProvider

            return HostProvider()
        if name == "daytona":
            provider: Provider = request.getfixturevalue("daytona_provider")
            return provider
        from harvest_nb.sandbox.docker import DockerProvider

        request.getfixturevalue("snapshot_image")
        return DockerProvider(request.getfixturevalue("engine"))

    return named


@pytest.fixture(scope="session")
def snapshot_image(engine: DockerClient) -> Snapshot:
    """The snapshot image as `build()` makes it; what has not changed comes from the engine's cache.

    It has this namespace's tag too: another checkout's build takes over the tag under which it was built, and the
    engine removes an image without a tag together with the last one that was made from it.
    """
    from harvest_nb.snapshot import build, inspect

    built = asyncio.run(build(tag=BUILT_AS, client=engine))
    tag, api = load_settings().image, cast(Any, engine.api)
    api.tag(built.id, *tag.split(":"))
    return inspect(tag, engine)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder like `tmp_path` whose name leaves room for sockets below it: theirs may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp") as folder:
        yield Path(folder)
        # An engine of a test's own that did not end in peace leaves its mounts.
        for mount in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (point := mount.split()[1]).startswith(folder):
                subprocess.run(["umount", "--lazy", point], check=False)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Any]:
    """Make something that takes long once for all processes of a run: `once(name, make)` gives what `make(folder)` did.

    The process that comes first makes it, in a folder that the others see too.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def get(name: str, make: Callable[[Path], Any]) -> Any:
        kept = shared / f"{name}.pickle"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                shutil.rmtree(shared / name, ignore_errors=True)  # of an attempt that failed
                (shared / name).mkdir()
                kept.write_bytes(pickle.dumps(make(shared / name)))
        return pickle.loads(kept.read_bytes())

    return get


@pytest.fixture
def own_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The machine's locks for this test alone: what others build or start does not make it wait."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder
