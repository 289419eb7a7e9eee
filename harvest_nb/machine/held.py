"""Records the resources that this process must remove or report when it is ended early."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["Held", "discard", "held", "holding"]

_held: list[Held] = []


class Held:
    """A resource that outlives this process, or data that it is receiving.

    Args:
        what: its name.
        remove: the command that removes it.
        last: called where this process is ended at once; what it gives is told, unless it is empty.
    """

    def __init__(self, what: str, remove: str = "", last: Callable[[], str] | None = None) -> None:
        self.what, self.remove, self.last = what, remove, last
        self.size = 0
        """The bytes that have come so far."""
        self.stays = False
        """Whether it is still there when its block has ended."""


@contextmanager
def holding(what: str, remove: str = "", last: Callable[[], str] | None = None) -> Iterator[Held]:
    """Register a resource for the duration of the block, so that a forced exit reports it; arguments as of `Held`."""
    item = Held(what, remove, last)
    _held.append(item)
    try:
        yield item
    finally:
        if not item.stays:
            _held.remove(item)


def discard(name: str) -> str:
    """Remove a file or a small folder, as a `last`; where it stays, return the command that removes it."""
    import shlex
    import shutil
    from pathlib import Path  # here, as what this module loads delays the moment from which Ctrl-C is heard

    path = Path(name)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()
    return f"left behind: {path}; to remove: rm -r {shlex.quote(name)}" if path.exists() else ""


def held() -> list[Held]:
    """Return what this process holds now, the latest last."""
    return list(_held)
