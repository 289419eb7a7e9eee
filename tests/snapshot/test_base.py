import io
import os
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from requests.exceptions import ChunkedEncodingError

from harvest_nb.engine import DockerClient, ImageNotFound, connect
from harvest_nb.errors import BuildError, DiskFullError, EngineError
from harvest_nb.machine.command import Cancelled, Stop
from harvest_nb.machine.held import held
from harvest_nb.snapshot import base
from harvest_nb.snapshot.base import _local as local
from harvest_nb.snapshot.base import _pull, resolve_base
from harvest_nb.snapshot.homemade import Recipe, read_recipe
from tests.stalling import MUCH, stalling

__all__ = ["stalling"]


def other_recipe() -> Recipe:
    """The real one, told apart by one more exclusion, so that it is never there yet."""
    recipe = read_recipe()
    return recipe.model_copy(update={"path_exclude": (*recipe.path_exclude, f"/nothing/{time.time_ns()}")})


def without_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harvest_nb.snapshot.base._registry_refusal", lambda *_: "not asked in this test")


def shim(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An mmdebstrap that fails in a way of its own."""
    (folder / "bin").mkdir()
    (folder / "bin/mmdebstrap").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def test_another_recipe_has_another_tag():
    recipe = read_recipe()
    tags = {
        recipe.reference("20", "amd64"),
        recipe.reference("20", "arm64"),
        other_recipe().reference("20", "amd64"),
    }
    assert len(tags) == 3
    assert all(tag.startswith("harvest-base:bookworm-node20-") for tag in tags)
    assert recipe.reference("20", "amd64") == read_recipe().reference("20", "amd64")


@pytest.mark.parametrize("text", ["", "suite = 3", 'suite = "bookworm"\ntypo = 1'])
def test_a_recipe_that_cannot_be_used(tmp_path, text):
    (tmp_path / "base.toml").write_text(text)
    with pytest.raises(BuildError, match=r"base\.toml"):
        read_recipe(tmp_path / "base.toml")


@pytest.mark.docker
def test_the_base_is_reused_and_has_node_and_npm(engine: DockerClient):
    first = resolve_base(engine, say=lambda _: None)
    said: list[str] = []
    second = resolve_base(engine, say=said.append)
    assert second == first
    assert len(said) == 1
    assert said[0].startswith(f"using {first.reference}")
    assert first.official == first.reference.startswith("node:")
    output = engine.containers.run(
        first.reference,
        [
            "sh",
            "-c",
            "node --version; npm --version; npx --version; id -un 1000; . /etc/os-release; echo $VERSION_CODENAME",
        ],
        entrypoint="",
        remove=True,
        network_disabled=True,
    )
    node, npm, npx, user, release = output.decode().split()
    assert node == f"v{first.node}"
    assert node.startswith("v20.")
    assert npm == npx
    assert (user, release) == ("node", "bookworm")


@pytest.mark.docker
def test_an_old_base_is_pointed_out_and_pull_gets_a_new_one(engine: DockerClient, monkeypatch):
    without_registry(monkeypatch)
    recipe, made = other_recipe(), list[str]()
    reference = recipe.reference("20", engine.version()["Arch"])

    def assemble(client: DockerClient, *_: object) -> None:
        empty = io.BytesIO()
        with tarfile.open(fileobj=empty, mode="w"):
            pass
        empty.seek(0)
        repository, tag = reference.rsplit(":", 1)
        label = f"LABEL harvest.test.number={len(made)}"
        client.api.import_image_from_data(empty.read(), repository=repository, tag=tag, changes=[label])
        made.append(str(client.images.get(reference).id))

    monkeypatch.setattr(base, "assemble", assemble)
    monkeypatch.setattr(
        base, "_local", lambda client, name: None if name.startswith("node:") else local(client, name)
    )
    said: list[str] = []
    try:
        first = resolve_base(engine, say=said.append, recipe=recipe)
        assert first.days == 0
        assert not [line for line in said if "days old" in line]
        monkeypatch.setattr(base, "OLD_DAYS", -1)
        assert resolve_base(engine, say=said.append, recipe=recipe).id == first.id
        assert [line for line in said if "build --pull" in line]
        second = resolve_base(engine, say=said.append, recipe=recipe, pull=True)
        assert (second.id, len(made)) == (made[1], 2)
        # What it replaced has lost its name, and is gone.
        with pytest.raises(ImageNotFound):
            engine.images.get(first.id)
    finally:
        engine.api.remove_image(reference, noprune=True)


@pytest.mark.docker
def test_the_home_made_base_never_bears_the_official_name(engine: DockerClient):
    base = resolve_base(engine, say=lambda _: None)
    bears = {tag.split(":")[0] for tag in engine.images.get(base.reference).tags}
    assert ("node" in bears, "harvest-base" in bears) == (base.official, not base.official)


@pytest.mark.docker
def test_a_version_without_a_recipe(engine: DockerClient, monkeypatch):
    without_registry(monkeypatch)
    with pytest.raises(BuildError, match="no recipe for Node 99") as caught:
        resolve_base(engine, "99", say=lambda _: None)
    assert "known: Node 20" in caught.value.hint


@pytest.mark.docker
@pytest.mark.parametrize(
    ("line", "kind"),
    [("E: cannot find debian", BuildError), ("tar: write error: No space left on device", DiskFullError)],
)
def test_an_mmdebstrap_that_fails_is_told_with_its_last_lines(engine, monkeypatch, tmp_path, line, kind):
    without_registry(monkeypatch)
    shim(tmp_path, monkeypatch, f"echo '{line}' >&2; exit 25")
    recipe = other_recipe()
    with pytest.raises(kind, match="exit code 25") as caught:
        resolve_base(engine, say=lambda _: None, recipe=recipe)
    assert line in str(caught.value)
    with pytest.raises(ImageNotFound):
        engine.images.get(recipe.reference("20", "amd64"))


@pytest.mark.docker
def test_a_stop_ends_mmdebstrap_and_leaves_no_image(engine, monkeypatch, tmp_path):
    without_registry(monkeypatch)
    shim(tmp_path, monkeypatch, f"echo 'I: begun'; echo $$ > {tmp_path}/pid; exec sleep 60")
    stop, recipe = Stop(), other_recipe()

    def say(line: str) -> None:
        if line == "I: begun":
            threading.Timer(0.2, stop.ask).start()

    with pytest.raises(Cancelled):
        resolve_base(engine, say=say, stop=stop, recipe=recipe)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    with pytest.raises(ImageNotFound):
        engine.images.get(recipe.reference("20", "amd64"))


def with_a_large_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(folder / "large.tar", "w") as tar:
        entry = tarfile.TarInfo("large")
        entry.size = 4 * MUCH
        tar.addfile(entry, io.BytesIO(os.urandom(entry.size)))
    shim(folder, monkeypatch, f"for to; do case $to in */base.tar) cp {folder}/large.tar $to; esac; done")


@pytest.mark.docker
def test_a_base_that_an_engine_may_still_take_is_named(engine, stalling, monkeypatch, tmp_path):
    without_registry(monkeypatch)
    with_a_large_base(tmp_path, monkeypatch)
    proxy, address = stalling
    monkeypatch.setenv("DOCKER_HOST", address)
    recipe, named, others = other_recipe(), list[str](), held()
    reference = recipe.reference("20", str(engine.version()["Arch"]))

    def end() -> None:
        proxy.stalled.wait(60)
        named.extend(item.remove for item in held())
        proxy.close()

    threading.Thread(target=end).start()
    with closing(connect()) as client, pytest.raises(EngineError):
        resolve_base(client, say=lambda _: None, recipe=recipe)
    assert f"docker image rm {reference}" in named
    assert held() == others
    with pytest.raises(ImageNotFound):
        engine.images.get(reference)


@pytest.mark.docker
@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1, 0.3])
def test_a_base_whose_import_is_stopped_is_whole_or_not_there(engine, delay, monkeypatch, tmp_path):
    without_registry(monkeypatch)
    with_a_large_base(tmp_path, monkeypatch)
    stop, recipe, others = Stop(), other_recipe(), held()
    reference = recipe.reference("20", str(engine.version()["Arch"]))

    def say(line: str) -> None:
        if line.startswith("importing"):
            threading.Timer(delay, stop.ask).start()

    try:
        with suppress(Cancelled):  # unless it was done before
            resolve_base(engine, say=say, stop=stop, recipe=recipe)
        made = local(engine, reference)
        assert made is None if not delay else made is None or made.attrs["Size"] >= 4 * MUCH
        assert held() == others
    finally:
        if local(engine, reference) is not None:
            engine.api.remove_image(reference)


@pytest.mark.docker
def test_where_mmdebstrap_is_missing_and_cannot_be_installed(engine, monkeypatch):
    without_registry(monkeypatch)
    monkeypatch.setattr("harvest_nb.snapshot.homemade.shutil.which", lambda _: None)
    monkeypatch.setattr("harvest_nb.snapshot.homemade.can_install", lambda: False)
    with pytest.raises(BuildError, match="no mmdebstrap") as caught:
        resolve_base(engine, say=lambda _: None, recipe=other_recipe())
    assert "apt-get install mmdebstrap" in caught.value.hint


def test_a_pull_whose_connection_breaks_is_the_engines_failure():
    class API:
        def pull(self, *_: object, **__: object) -> Iterator[dict[str, str]]:
            yield {"status": "Pulling"}
            raise ChunkedEncodingError("Connection broken")

    client: Any = SimpleNamespace(api=API())
    with pytest.raises(EngineError, match="pulling node:20-bookworm-slim"):
        _pull(client, "node:20-bookworm-slim", lambda _: None, Stop())
