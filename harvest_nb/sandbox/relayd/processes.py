"""Processes, their pipes and their end, as asyncio sees them; and whatever they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["become_subreaper", "exited", "kill_descendants", "kill_group", "pipe_reader", "pipe_writer"]


async def pipe_reader(pipe: Any) -> asyncio.StreamReader:
    """A process's output as a stream."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader


async def pipe_writer(pipe: Any) -> asyncio.StreamWriter:
    """A process's input as a stream."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    return asyncio.StreamWriter(transport, protocol, None, loop)


async def exited(child: subprocess.Popen[bytes]) -> int:
    """The exit code as soon as there is one; asyncio's own processes wait for their pipes as well."""
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(child.pid)
    except (AttributeError, OSError):  # not Linux, or a kernel that forbids it
        return await loop.run_in_executor(None, child.wait)
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return child.wait()


def kill_group(pid: int, sig: int) -> None:
    """Signal a process group; one that has ended is left alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, sig)


def kill_descendants() -> None:
    """End whatever this program's processes left behind, also those that moved to sessions of their own."""
    for _ in range(20):
        children = _descendants()
        if not children:
            return
        for pid in children:
            # It has ended meanwhile, or is another user's: the next look says which.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # none is left
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def _descendants() -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):  # it ends while it is looked at
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z" or int(fields[1]) == os.getpid():
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [os.getpid()]
    while todo:
        for child in parents.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return found


def become_subreaper() -> None:
    """Orphans come to this program, not to the host's init, and so can be found (prctl 36)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
