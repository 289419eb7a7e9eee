"""A build as the engine streams it, which another thread can end, and what it leaves behind then."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

from harvest_nb.engine.client import (
    APIError,
    CancellableStream,
    DockerClient,
    DockerException,
    HTTPError,
    NotFound,
    RequestException,
    engine_errors,
    translate,
)
from harvest_nb.errors import BuildError, EngineError
from harvest_nb.machine.command import Stop

__all__ = ["remove_traces", "stream_build"]

_REMOVAL_SECONDS = 20.0
_POLL_SECONDS = 0.1


def stream_build(
    client: DockerClient,
    context: IO[bytes],
    *,
    tag: str,
    buildargs: dict[str, str],
    labels: dict[str, str],
    stop: Stop,
) -> Iterator[dict[str, Any]]:
    """The events of the classic builder, one by one.

    When `stop` is asked the connection is shut; the engine then ends the step that runs and removes its container.

    Raises:
        Cancelled: `stop` was asked.
        BuildError: the Dockerfile cannot be parsed. DiskFullError, EngineError: the engine failed.
    """
    me = threading.get_ident()

    live: list[Any] = []

    def shut() -> None:
        for response in live:
            _shut(response)

    def taken(response: Any, *_: Any, **__: Any) -> None:
        # The client may be shared: only this thread's own build is to be shut.
        if threading.get_ident() == me and "/build?" in response.url:
            live.append(response)
            stop.on_ask(shut)

    stop.check()
    hooks: list[Any] = client.api.hooks["response"]
    hooks.append(taken)
    try:
        yield from client.api.build(
            fileobj=context,
            custom_context=True,
            decode=True,
            rm=True,
            forcerm=True,
            tag=tag,
            buildargs=buildargs,
            labels=labels,
        )
    except APIError as error:
        stop.check()
        if error.status_code == 400:
            raise BuildError(
                f"The engine refused the Dockerfile: {error.explanation or error}",
                hint="correct snapshot/Dockerfile; the classic builder knows no BuildKit syntax",
                step="Dockerfile",
                tail="",
            ) from error
        raise translate(error, f"building {tag}") from error
    except (DockerException, RequestException, HTTPError, OSError, ValueError) as error:
        # A stream that is shut while it is read ends in any of these.
        stop.check()
        if isinstance(error, (OSError, ValueError)) and not isinstance(error, RequestException):
            raise EngineError(
                f"The stream of the build of {tag} broke: {error}",
                hint="see whether the engine still runs: `docker info`",
                reason="unreachable",
            ) from error
        raise translate(error, f"building {tag}") from error
    finally:
        hooks.remove(taken)
        live.clear()  # its connection goes back to the pool, and is another's from now on
    stop.check()


def _shut(response: Any) -> None:
    try:
        CancellableStream(iter(()), response).close()
    except (DockerException, OSError):
        # Over SSH there is no socket to shut, and one that has just ended cannot be.
        response.close()


def remove_traces(client: DockerClient, *, containers: Sequence[str], images: Sequence[str]) -> None:
    """Remove what a build that was ended has made: its containers, and its images from the newest back.

    An image that another build has already gone on from, or that bears a tag, stays.

    Raises:
        EngineError: the engine refused.
    """
    with engine_errors("removing what a cancelled build left"):
        end = time.monotonic() + _REMOVAL_SECONDS
        for container in containers:
            # The engine removes it by itself; only where it does not, it is done here.
            while _exists(client, container) and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
            try:
                client.api.remove_container(container, force=True, v=True)
            except NotFound:
                continue
        for image in reversed(images):
            try:
                if not client.images.get(image).tags:
                    client.api.remove_image(image, noprune=True)
            except NotFound:
                continue
            except APIError as error:
                if error.status_code != 409:
                    raise


def _exists(client: DockerClient, container: str) -> bool:
    try:
        client.api.inspect_container(container)
    except NotFound:
        return False
    return True
