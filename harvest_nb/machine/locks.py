"""One at a time across processes: a lock on a file, released by the system when its holder dies."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harvest_nb.files import open_regular
from harvest_nb.machine.command import Stop
from harvest_nb.paths import locks_dir

__all__ = ["is_locked", "one_at_a_time"]

_POLL_SECONDS = 0.25


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock on a regular file; none does on one that is not there.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    try:
        with open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def one_at_a_time(name: str, *, say: Callable[[str], None], stop: Stop | None = None) -> Iterator[None]:
    """Hold this user's lock `name` on this machine; while another process or thread holds it, wait and say so.

    Raises:
        Cancelled: `stop` was asked while waiting.
        OSError: see `harvest_nb.paths.locks_dir`.
    """
    stop = stop or Stop()
    with (locks_dir() / (re.sub(r"[^A-Za-z0-9._-]+", "_", name) + ".lock")).open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"waiting: another {name} is under way")
                    told = True
                stop.wait(_POLL_SECONDS)
        yield
