"""Ctrl-C, in a terminal, while an image is on its way to or from an engine that has stalled, or has not."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pexpect
import pytest

from harvest_nb.engine import DockerClient, ImageNotFound
from harvest_nb.settings import TOKEN_VARIABLES
from harvest_nb.snapshot.carry import Archive, save
from tests.conftest import BUILT_AS
from tests.stalling import MUCH, Stalling, stalling
from tests.test_cli import COMMAND
from tests.test_cli_chat import LIMIT, until

__all__ = ["stalling"]

pytestmark = [pytest.mark.docker, pytest.mark.slow]

BOUNDED = 10  # seconds on a machine that is busy


@contextmanager
def terminal(folder: Path, *arguments: str, **env: str) -> Iterator[pexpect.spawn[str]]:
    clean = {k: v for k, v in os.environ.items() if k not in TOKEN_VARIABLES}
    child = pexpect.spawn(
        COMMAND[0], [*COMMAND[1:], *arguments], cwd=str(folder), encoding="utf-8", timeout=LIMIT,
        env={**clean, "TERM": "xterm-256color", **env}, dimensions=(40, 200),
    )  # fmt: skip
    try:
        yield child
    finally:
        child.close(force=True)


def ended(child: pexpect.spawn[str], seconds: float = BOUNDED) -> str:
    """What a command says from Ctrl-C on, until it has ended for that."""
    began = time.monotonic()
    child.sendcontrol("c")
    child.expect(pexpect.EOF)
    said = str(child.before)
    child.wait()
    assert time.monotonic() - began < seconds
    assert child.exitstatus == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    return said


@pytest.fixture
def large(engine: DockerClient, tmp_path: Path) -> Iterator[Archive]:
    """An image in a tar, which the engine has no more."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        entry = tarfile.TarInfo("large")
        entry.size = 4 * MUCH
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    api: Any = engine.api
    name = f"harvest-test-carried:{os.environ['HARVEST_NAMESPACE']}"
    api.import_image_from_data(content.getvalue(), *name.split(":"))
    try:
        archive = save(engine, name, tmp_path / "large.tar")
    finally:
        api.remove_image(name)
    yield archive
    if has(engine, archive.id):
        api.remove_image(archive.id, force=True)


def has(engine: DockerClient, image: str) -> bool:
    try:
        return bool(engine.images.get(image))
    except ImageNotFound:
        return False


@pytest.mark.parametrize("twice", [False, True])
def test_an_image_that_is_being_saved_leaves_no_file(
    twice: bool, stalling: tuple[Stalling, str], snapshot_image: object, tmp_path: Path
) -> None:
    proxy, address = stalling
    (tmp_path / "out").mkdir()
    with terminal(
        tmp_path, "build", "--image", BUILT_AS, "--output", "out/s.tar", DOCKER_HOST=address
    ) as child:
        until(proxy.stalled.is_set)
        assert list((tmp_path / "out").iterdir())
        if twice:
            child.sendcontrol("c")
        assert "left behind" not in ended(child)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_image_that_an_engine_may_still_take_is_named(
    stalling: tuple[Stalling, str], large: Archive, engine: DockerClient, tmp_path: Path
) -> None:
    proxy, address = stalling
    with terminal(tmp_path, "validate", str(large.path), DOCKER_HOST=address) as child:
        until(proxy.stalled.is_set)
        said = ended(child)
    assert f"docker image rm --force {large.id}" in said
    assert not has(engine, large.id)


@pytest.mark.soak
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.5])
def test_an_image_that_is_being_loaded_leaves_nothing(
    delay: float, large: Archive, engine: DockerClient, tmp_path: Path
) -> None:
    with terminal(tmp_path, "validate", str(large.path)) as child:
        until(lambda: large.path in opened(child.pid))
        time.sleep(delay)
        said = ended(child)
    assert "left behind" not in said
    assert delay == 0.5 or not has(engine, large.id)  # the image may have been loaded by then, under its name


def opened(process: int | None) -> list[Path]:
    found = list[Path]()
    for link in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            found.append(link.readlink())
    return found
