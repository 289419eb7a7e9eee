"""The processes that this one has started, apart from those that are meant to outlive it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

__all__ = ["OUTLIVES", "children_of", "kill_children"]

OUTLIVES = "HARVEST_OUTLIVES"
"""An environment variable: processes that have it stay when the one that started them ends."""


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes below `process`, without those that are to outlive it and what is below those."""
    import psutil

    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        for child in process.children():
            with contextlib.suppress(psutil.Error):
                if OUTLIVES not in child.environ():
                    found += [child, *children_of(child)]
    return found


def kill_children() -> None:
    """Kill all processes below this one but those that are to outlive it."""
    import psutil

    for child in children_of(psutil.Process()):
        with contextlib.suppress(psutil.Error):
            child.kill()
