"""An image carried in a tar, as to another machine."""

from __future__ import annotations

import asyncio
import io
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harvest_nb import api
from harvest_nb.engine import DockerClient, ImageNotFound
from harvest_nb.errors import BuildError
from harvest_nb.machine.command import Cancelled, Stop
from harvest_nb.sandbox.docker import DockerProvider
from harvest_nb.snapshot.carry import load, read_archive, save

if TYPE_CHECKING:
    from tests.snapshot.conftest import Tiny
else:
    Tiny = Any


@pytest.mark.docker
async def test_there_and_back(tiny: Tiny, engine: DockerClient, tmp_path: Path):
    snapshot = await tiny.build()
    archive = save(engine, tiny.tag, tmp_path / "deep" / "snapshot.tar")
    assert (archive.id, archive.tags) == (snapshot.id, (tiny.tag,))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["snapshot.tar"]
    tiny.remove()
    with pytest.raises(ImageNotFound):
        engine.images.get(snapshot.id)
    said: list[str] = []
    with load(engine, archive.path, say=said.append) as ident:
        assert ident == snapshot.id
        assert engine.images.get(tiny.tag).id == snapshot.id
    assert said
    # Its name was free: it is there now, as whoever carried it wants.
    assert engine.images.get(tiny.tag).id == snapshot.id


@pytest.mark.docker
async def test_a_name_that_another_image_has_stays_with_that_one(
    tiny: Tiny, engine: DockerClient, tmp_path: Path
):
    first = await tiny.build()
    archive = save(engine, tiny.tag, tmp_path / "snapshot.tar")
    (tiny.root / "c.md").write_text("# Newer\n")
    engine.api.remove_image(tiny.tag, force=True)
    second = await tiny.build()
    with load(engine, archive.path) as ident:
        assert ident == first.id != second.id
        assert engine.images.get(tiny.tag).id == second.id
    with pytest.raises(ImageNotFound):
        engine.images.get(first.id)


@pytest.mark.docker
async def test_an_image_that_is_there_is_not_loaded_again(tiny: Tiny, engine: DockerClient, tmp_path: Path):
    snapshot = await tiny.build()
    archive = save(engine, snapshot.id, tmp_path / "snapshot.tar")
    assert archive.tags == ()
    said: list[str] = []
    with load(engine, archive.path, say=said.append) as ident:
        assert ident == snapshot.id
    assert said == []
    assert engine.images.get(tiny.tag).id == snapshot.id


@pytest.mark.docker
@pytest.mark.docker
async def test_a_validation_cancelled_while_its_tar_is_loaded_leaves_no_image(
    tiny: Tiny, engine: DockerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = await tiny.build()
    archive = save(engine, snapshot.id, tmp_path / "snapshot.tar")
    tiny.remove()
    loading, go_on, loaded = threading.Event(), threading.Event(), threading.Event()

    @contextmanager
    def slowly(client: DockerClient, path: Path, **_: object) -> Iterator[str]:
        loading.set()
        go_on.wait(30)
        with load(client, path) as ident:
            loaded.set()
            yield ident

    monkeypatch.setattr(api, "load", slowly)
    work = asyncio.create_task(api.validate(archive.path, provider=DockerProvider(engine)))
    await asyncio.to_thread(loading.wait, 30)
    work.cancel()
    asyncio.get_running_loop().call_later(0.2, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await work
    assert await asyncio.to_thread(loaded.wait, 30)
    assert tiny.images() == []


@pytest.mark.docker
async def test_what_is_asked_to_stop_while_it_is_saved_or_loaded_leaves_nothing(
    tiny: Tiny, engine: DockerClient, tmp_path: Path
):
    snapshot = await tiny.build()
    archive = save(engine, snapshot.id, tmp_path / "snapshot.tar")
    stop = Stop()
    stop.ask()
    with pytest.raises(Cancelled):
        save(engine, snapshot.id, tmp_path / "another.tar", stop=stop)
    assert list(tmp_path.glob("*another*")) == []
    tiny.remove()
    with pytest.raises(Cancelled), load(engine, archive.path, stop=stop):
        pass
    assert tiny.images() == []


def test_no_image_to_save_leaves_no_file(engine: DockerClient, tmp_path: Path):
    with pytest.raises(BuildError, match="no image harvest-test-never:made"):
        save(engine, "harvest-test-never:made", tmp_path / "snapshot.tar")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.docker
async def test_a_tar_that_was_cut_on_its_way_is_told(tiny: Tiny, engine: DockerClient, tmp_path: Path):
    await tiny.build()
    archive = save(engine, tiny.tag, tmp_path / "snapshot.tar")
    data = archive.path.read_bytes()
    archive.path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BuildError, match="no image that was saved whole"):
        read_archive(archive.path)


@pytest.mark.parametrize("content", [b"", b"not a tar", None])
def test_another_file_is_no_archive(tmp_path: Path, content: bytes | None):
    path = tmp_path / "snapshot.tar"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BuildError, match=r"snapshot\.tar"):
        read_archive(path)


def test_another_tar_is_no_archive(tmp_path: Path):
    path = tmp_path / "snapshot.tar"
    with tarfile.open(path, "w") as tar:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = 2
        tar.addfile(entry, io.BytesIO(b"[]"))
    with pytest.raises(BuildError, match="no image"):
        read_archive(path)
