"""What builds leave on the engine to go on from, under names of its own: no untagged image, and nobody else's.

Each snapshot tag has at most two such images, `harvest-build-cache:<tag>.toolchain` (the builder stage, about
1 GB) and `harvest-build-cache:<tag>.unfinished` (where a failed build stopped). A build that ends gives the names
to its own images; those that had them before are removed once nobody builds any more. `docker image prune` leaves
them alone, and `docker image rm $(docker image ls -q harvest-build-cache)` removes them all.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from harvest_nb.engine import APIError, DockerClient, Image, ImageNotFound, engine_errors
from harvest_nb.paths import locks_dir
from harvest_nb.snapshot.steps import BuildLog

__all__ = ["REPOSITORY", "building", "cache_name", "forget", "keep_finished", "keep_unfinished"]

REPOSITORY = "harvest-build-cache"
_LONGEST = 100  # of 128 characters that a tag may have


def cache_name(tag: str, part: str) -> str:
    """The name under which `part` (`toolchain`, `unfinished`) of the builds of `tag` is kept."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", tag)
    mark = hashlib.sha256(tag.encode()).hexdigest()[:8]
    return f"{REPOSITORY}:{plain[:_LONGEST]}-{mark}.{part}"


def keep_finished(client: DockerClient, tag: str, log: BuildLog) -> None:
    """After a build: name its builder stage, if it has one, and let go of what it has superseded.

    Raises:
        EngineError: the engine refused.
    """
    with engine_errors("keeping the build's cache"):
        stages = log.stages
        _give(client, cache_name(tag, "toolchain"), stages[0] if len(stages) > 1 else None)
        _give(client, cache_name(tag, "unfinished"), None)
        _remove_superseded(client, tag)


def keep_unfinished(client: DockerClient, tag: str, log: BuildLog) -> None:
    """After a failed build: name what it has made, so that the next one goes on there and nothing dangles.

    Raises:
        EngineError: the engine refused.
    """
    with engine_errors("keeping the build's cache"):
        for part, stage in zip(("unfinished", "toolchain"), reversed(log.stages), strict=False):
            _give(client, cache_name(tag, part), stage)
        _remove_superseded(client, tag)


def forget(client: DockerClient, tag: str) -> None:
    """Let go of everything that builds of `tag` have kept; what another tag's builds keep stays.

    Raises:
        EngineError: the engine refused.
    """
    with engine_errors("removing the build's cache"):
        for part in ("toolchain", "unfinished"):
            _give(client, cache_name(tag, part), None)
        _remove_superseded(client, tag)


def _give(client: DockerClient, name: str, image: str | None) -> None:
    """Give `name` to `image`, or to none; an image that had it before is superseded."""
    before = _find(client, name)
    after = None if image is None else _find(client, image)
    # The base, or a whole snapshot, has a name of its own and needs none of these.
    if after is not None and any(not one.startswith(f"{REPOSITORY}:") for one in after.tags):
        after = None
    if before is not None and (after is None or after.id != before.id):
        # Under this name until nobody builds: another build may be about to go on from it.
        _tag(client, before, f"{name}.superseded-{str(before.id).removeprefix('sha256:')[:12]}")
        client.api.remove_image(name)
    if after is not None:
        _tag(client, after, name)


def _find(client: DockerClient, name: str) -> Image | None:
    try:
        return client.images.get(name)
    except ImageNotFound:
        return None


def _tag(client: DockerClient, image: Image, name: str) -> None:
    repository, tag = name.rsplit(":", 1)
    client.api.tag(str(image.id), repository, tag)


def _remove_superseded(client: DockerClient, tag: str) -> None:
    """Remove what the builds of `tag` have superseded, unless this user builds something just now."""
    mine = cache_name(tag, "")
    with _lock_file() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # the next build of this tag does it
        for image in client.api.images(name=REPOSITORY):
            for name in image["RepoTags"] or ():
                if name.startswith(mine) and ".superseded-" in name:
                    _remove(client, name)


def _remove(client: DockerClient, name: str) -> None:
    try:
        client.api.remove_image(name)
    except APIError as error:
        # A container of it is there, or somebody else was quicker.
        if error.status_code not in {404, 409}:
            raise


@contextmanager
def building() -> Iterator[None]:
    """Within it, no other build of this user removes cache that this one may be about to go on from."""
    with _lock_file() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def _lock_file() -> IO[str]:
    return (locks_dir() / "build-cache.lock").open("w")
