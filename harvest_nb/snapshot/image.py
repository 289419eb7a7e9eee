"""A snapshot image that the engine has: its layers, its labels, its manifest."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from harvest_nb.bounds import bounds
from harvest_nb.engine import Container, DockerClient, ImageNotFound, NotFound, connect, engine_errors
from harvest_nb.errors import BuildError
from harvest_nb.machine.held import holding
from harvest_nb.settings import load_settings
from harvest_nb.snapshot.manifest import LABEL_MANIFEST, digest
from harvest_nb.snapshot.sources import MANIFEST

if TYPE_CHECKING:
    import pandas as pd

    from harvest_nb.snapshot.inventory import Inventory

__all__ = ["Snapshot", "container_of", "inspect", "read_file"]

_NOP = "/bin/sh -c #(nop) "
_SHELL = "/bin/sh -c "


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A snapshot image.

    Attributes:
        id: `sha256:…`.
        tags: its names.
        size: bytes, all layers together.
        labels: those of `harvest.*` say what is in it.
        manifest: `/app/manifest.json` as read from the image.
        layers: one row a step of its history, the oldest first: `index`, `created` (UTC), `created_by`,
            `size_bytes`, `empty` (whether it holds no files).
        sources: one row a config source: `image_path`, `source`, `size_bytes`, `sha256`.
        built: False when every step came from the cache, or when the image was only looked at.
        seconds: how long the build took; 0 when the image was only looked at.
        name: the one that it was asked for by: a tag, or its id.
        diff_ids: digest of each layer's files, the lowest first.
    """

    id: str
    tags: tuple[str, ...]
    size: int
    labels: Mapping[str, str]
    manifest: dict[str, Any]
    layers: pd.DataFrame
    sources: pd.DataFrame
    built: bool = False
    seconds: float = 0.0
    name: str = ""
    diff_ids: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """The tag that it was asked for by, else its first one, else its id."""
        asked = self.name if ":" in self.name.rsplit("/", 1)[-1] else f"{self.name}:latest"
        if asked in self.tags:
            return asked
        return self.tags[0] if self.tags else self.id

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of its layers: unlike the id, the same for the same layers whenever built."""
        return f"sha256:{hashlib.sha256(''.join(self.diff_ids).encode()).hexdigest()}"

    @cached_property
    def inventory(self) -> Inventory:
        """All apt, npm and pip packages in it; looked at in a container, once."""
        # Needs the docker extra's libraries, which looking at tables alone does not.
        from harvest_nb.snapshot.inventory import inventory

        return inventory(self.id)

    @property
    def manifest_hash(self) -> str:
        """SHA-256 of `/app/manifest.json`, in hex."""
        return digest(self.manifest)

    def __repr__(self) -> str:
        return f"<Snapshot {self.tag} {self.id[:19]} {self.size / 1e9:.2f} GB, {len(self.sources)} sources>"


def inspect(tag: str | None = None, client: DockerClient | None = None) -> Snapshot:
    """Look at a snapshot that is there. No container is started, and none is left.

    The manifest is read from the image itself and must have the digest that the label names.

    Args:
        tag: a tag or an id (default: `HARVEST_IMAGE`, else the namespace's, see `Settings.image`).
        client: the engine (default: the one that `harvest_nb.engine.connect` finds).

    Raises:
        BuildError: there is no such image, or it is not one that `build()` made.
        EngineError: the engine cannot be used.
    """
    name = tag or load_settings().image
    if client is None:
        with closing(connect()) as own:
            return inspect(name, own)
    with engine_errors(f"looking at {name}"):
        try:
            image = client.images.get(name)
        except ImageNotFound:
            raise BuildError(
                f"The engine has no image {name}", hint="make it: `harvest-nb build`", step="inspect", tail=""
            ) from None
        history = image.history()
        manifest = _read_manifest(client, str(image.id), name)
    expected = image.labels.get(LABEL_MANIFEST)
    if digest(manifest) != expected:
        raise BuildError(
            f"{MANIFEST} in {name} is not the one that its label names ({digest(manifest)}, label {expected})",
            hint="build it anew: `harvest-nb build`",
            step="inspect",
            tail="",
        )
    return Snapshot(
        id=str(image.id),
        tags=tuple(sorted(image.tags)),
        size=int(image.attrs["Size"]),
        labels=dict(image.labels),
        manifest=manifest,
        layers=_layers(history),
        sources=_sources(manifest),
        name=name,
        diff_ids=tuple(image.attrs["RootFS"]["Layers"]),
    )


@contextmanager
def container_of(client: DockerClient, image: str, command: list[str], **options: Any) -> Iterator[Container]:
    """Create a container, and remove it at the end; a forced exit names it."""
    name = f"harvest-look-{uuid.uuid4().hex[:12]}"
    with holding(f"the container {name}", f"docker rm --force --volumes {name}"):
        container = client.containers.create(image, command, name=name, **options)
        try:
            yield container
        finally:
            container.remove(force=True, v=True)


def read_file(client: DockerClient, image: str, path: str) -> bytes:
    """The bytes of a file in an image, which is not started.

    Raises:
        FileNotFoundError: it has none there. ValueError: that is no file, or larger than `HARVEST_MAX_READ_BYTES`.
    """
    packed, most = io.BytesIO(), bounds().read_bytes
    with container_of(client, image, ["true"], labels={"harvest.purpose": "inspect"}) as container:
        try:
            chunks = container.get_archive(path)[0]
        except NotFound:
            raise FileNotFoundError(path) from None
        for chunk in chunks:
            packed.write(chunk)
            if packed.tell() > most:
                raise ValueError(f"{path} is larger than {most:,} bytes (HARVEST_MAX_READ_BYTES)")
    packed.seek(0)
    with tarfile.open(fileobj=packed) as tar:
        (first, *_) = tar.getmembers()
        member = tar.extractfile(first) if first.isreg() else None
        if member is None:
            raise ValueError("it is not a file")
        return member.read()


def _read_manifest(client: DockerClient, image: str, name: str) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(read_file(client, image, MANIFEST))
    except FileNotFoundError:
        raise BuildError(
            f"{name} is not a snapshot of this package: it has no {MANIFEST}",
            hint="build one: `harvest-nb build`",
            step="inspect",
            tail="",
        ) from None
    except ValueError as error:
        raise BuildError(
            f"{MANIFEST} in {name} cannot be read: {error}",
            hint="build it anew: `harvest-nb build`",
            step="inspect",
            tail="",
        ) from error
    return manifest


def _layers(history: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {
            "index": index,
            "created": pd.Timestamp(entry["Created"], unit="s", tz="UTC"),
            "created_by": _instruction(entry.get("CreatedBy") or entry.get("Comment") or ""),
            "size_bytes": int(entry["Size"]),
            "empty": int(entry["Size"]) == 0,
        }
        for index, entry in enumerate(reversed(history))
    ]
    return pd.DataFrame(rows, columns=["index", "created", "created_by", "size_bytes", "empty"])


def _instruction(created_by: str) -> str:
    """The Dockerfile's words, out of the shell form that the builder records."""
    if created_by.startswith(_NOP):
        return " ".join(created_by.removeprefix(_NOP).split())
    if created_by.startswith("|"):
        # `|2 ARG=… ARG=… /bin/sh -c …`: build arguments in front of the command.
        _, found, command = created_by.partition(_SHELL)
        return "RUN " + " ".join((command if found else created_by).split())
    if created_by.startswith(_SHELL):
        return "RUN " + " ".join(created_by.removeprefix(_SHELL).split())
    return " ".join(created_by.split())


def _sources(manifest: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    rows = [(f["image_path"], f["source"], f["size"], f["sha256"]) for f in manifest["files"]]
    return pd.DataFrame(rows, columns=["image_path", "source", "size_bytes", "sha256"]).astype(
        {"image_path": "string", "source": "string", "size_bytes": "int64", "sha256": "string"}
    )
