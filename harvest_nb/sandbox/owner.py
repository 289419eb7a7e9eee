"""Who holds a sandbox: a process of this machine, named so that a reused process id is not mistaken for it."""

from __future__ import annotations

import os
import platform
from functools import cache

import psutil

__all__ = ["is_alive", "owner"]


def owner() -> str:
    """`host:pid:start`, this process's name as an owner."""
    return _name(os.getpid())


@cache
def _name(pid: int) -> str:
    return f"{platform.node()}:{pid}:{int(psutil.Process(pid).create_time())}"


def is_alive(name: str) -> bool | None:
    """Whether that owner still lives; None when it belongs to another machine or is not a name of ours."""
    host, _, rest = name.rpartition(":")[0].rpartition(":")
    if host != platform.node() or not rest.isdigit():
        return None
    try:
        process = psutil.Process(int(rest))
        return (
            abs(int(process.create_time()) - int(name.rpartition(":")[2])) <= 1
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.NoSuchProcess, ValueError):
        return False
