"""Carrying an image to another machine: into a tar, and out of it again."""

from __future__ import annotations

import errno
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harvest_nb.engine import APIError, DockerClient, ImageNotFound, engine_errors
from harvest_nb.errors import BuildError, DiskFullError, EngineError
from harvest_nb.machine.command import Cancelled, Stop, StoppableFile, unless_stopped
from harvest_nb.machine.held import discard, holding

__all__ = ["Archive", "load", "read_archive", "save"]

_CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Archive:
    """An image in a tar, as `docker save` writes it: the image's id and the names that it bore."""

    path: Path
    id: str
    tags: tuple[str, ...]


def save(
    client: DockerClient,
    image: str,
    target: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
    stop: Stop | None = None,
) -> Archive:
    """Write `image` into `target`, whole or not at all; `docker load` and `load` take it.

    Args:
        image: a tag, which is kept in the tar, or an id, which leaves the image without a name there.
        stop: ends the work when asked.

    Raises:
        Cancelled: `stop` was asked.
        BuildError: there is no such image, or `target` cannot be written.
        DiskFullError: there is no room. EngineError: the engine failed.
    """
    stop = stop or Stop()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file,
        holding(f"the file {file.name}", last=lambda: discard(file.name)),
    ):
        part = Path(file.name)
        try:
            with engine_errors(f"saving {image}"):
                client.images.get(image)
                written = 0
                # The engine puts the whole image together before it answers.
                chunks = unless_stopped(lambda: client.api.get_image(image, chunk_size=_CHUNK), stop)
                # Each in a thread that can be left: an engine that has stalled sends none.
                while (chunk := unless_stopped(lambda: next(chunks, None), stop)) is not None:
                    file.write(chunk)
                    if (written + len(chunk)) // (100 * _CHUNK) > written // (100 * _CHUNK):
                        say(f"saving {image}: {(written + len(chunk)) / 1e6:.0f} MB")
                    written += len(chunk)
            file.close()
            part.chmod(0o644)
            part.replace(target)
        except EngineError as error:
            if not isinstance(error.__cause__, ImageNotFound):
                raise
            raise BuildError(
                f"The engine has no image {image}", hint="make it: `harvest-nb build`", step="save", tail=""
            ) from None
        except OSError as error:
            kind = DiskFullError if error.errno in {errno.ENOSPC, errno.EDQUOT} else BuildError
            raise kind(
                f"{target} cannot be written: {error.strerror}",
                hint="make room there" if kind is DiskFullError else "name another file",
                step="save",
                tail="",
            ) from error
        finally:
            part.unlink(missing_ok=True)
    return read_archive(target)


def read_archive(path: Path) -> Archive:
    """What `path` holds, read from the tar alone.

    Raises:
        BuildError: it cannot be read, or holds no image, or more than one.
    """
    try:
        with tarfile.open(path) as tar:
            member = tar.extractfile("manifest.json")
            assert member is not None
            entries = json.loads(member.read())
            (entry,) = entries
            config = str(entry["Config"])
            if not tar.getmember(config).isfile():
                raise ValueError(f"no {config}")
    except (OSError, tarfile.TarError, KeyError, ValueError, TypeError, AssertionError) as error:
        raise BuildError(
            f"{path} is no image that was saved whole: {error}",
            hint="write it anew: `harvest-nb build --output`; was it cut on its way?",
            step="load",
            tail="",
        ) from error
    # `<id>.json`, or in the newer layout `blobs/sha256/<id>`.
    return Archive(path, f"sha256:{Path(config).stem}", tuple(entry.get("RepoTags") or ()))


@contextmanager
def load(
    client: DockerClient,
    path: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
    stop: Stop | None = None,
) -> Iterator[str]:
    """The id of the image in `path`, loaded into the engine.

    A name that the image bore is kept where it is free. One that another image has stays with that one; an image
    which has found no name that way is removed at the end, if it was not there before.

    Args:
        stop: ends the loading when asked.

    Raises:
        Cancelled: `stop` was asked.
        BuildError: `path` holds no whole image. DiskFullError, EngineError: the engine failed.
    """
    archive = read_archive(path)
    with engine_errors(f"loading {path}"):
        was_here = _id(client, archive.id) is not None
        taken = {
            name: ident for name in archive.tags if (ident := _id(client, name)) not in (None, archive.id)
        }
    if was_here:
        yield archive.id
        return
    with holding(f"the image of {path}", f"docker image rm --force {archive.id}"):
        try:
            say(f"loading {path} into the engine")
            with engine_errors(f"loading {path}"), StoppableFile(path, stop or Stop()) as file:
                client.images.load(file)
                for name, ident in taken.items():
                    repository, tag = name.rsplit(":", 1)
                    client.api.tag(str(ident), repository, tag)
                if _id(client, archive.id) is None:
                    raise BuildError(
                        f"{path} does not hold the image that it names, {archive.id}",
                        hint="write it anew: `harvest-nb build --output`",
                        step="load",
                        tail="",
                    )
                if stop is not None and stop.asked:
                    _remove_names(client, archive)
                    raise Cancelled
            yield archive.id
        finally:
            with engine_errors("removing the image that was loaded"):
                _remove_nameless(client, archive.id)


def _id(client: DockerClient, name: str) -> str | None:
    try:
        return str(client.images.get(name).id)
    except ImageNotFound:
        return None


def _remove_names(client: DockerClient, archive: Archive) -> None:
    for name in archive.tags:
        if _id(client, name) == archive.id:
            client.api.remove_image(name)


def _remove_nameless(client: DockerClient, image: str) -> None:
    try:
        if not client.images.get(image).tags:
            client.api.remove_image(image)
    except ImageNotFound:
        return
    except APIError as error:
        if error.status_code != 409:  # a container of it is there
            raise
