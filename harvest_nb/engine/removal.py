"""Containers taken away so that nothing lists them any more."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from harvest_nb.engine.client import APIClient, APIError, NotFound
from harvest_nb.errors import EngineError

__all__ = ["remove_containers"]

_ATTEMPTS, _BETWEEN = 100, 0.05  # seconds


def remove_containers(api: APIClient, filters: Mapping[str, str]) -> None:
    """Remove the containers that `filters` (as the engine's list takes them) select, with their volumes.

    Returns when the engine does not list them any more, which may be a moment after it can no longer find them.

    Raises:
        EngineError: one is still there after seconds. APIError: the engine refuses.
    """
    untyped: Any = api
    for attempt in range(_ATTEMPTS):
        left = untyped.containers(all=True, filters=dict(filters))
        if not left:
            return
        if attempt:
            time.sleep(_BETWEEN)
        for container in left:
            _discard(untyped, container["Id"])
    names = ", ".join(
        container["Names"][0].strip("/") if container["Names"] else container["Id"] for container in left
    )
    raise EngineError(
        f"The engine cannot remove the container {names}", hint=f"`docker rm -f {names}` by hand"
    )


def _discard(api: Any, container: str) -> None:
    try:
        api.remove_container(container, force=True, v=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:  # its own removal is under way
            raise
