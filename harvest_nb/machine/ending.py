"""The end of a process whose event loops have only stopped, as those of a notebook's kernel have."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401 - what is registered last comes first, and threads end in here
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["before_the_end", "go_on", "has_stopped"]

_STOPS = 9


def before_the_end(work: Callable[[], None]) -> None:
    """Have `work` called when the process ends, where that can be while threads may still be started.

    At `atexit` they take no work any more, and engines are spoken to in threads.
    """
    getattr(threading, "_register_atexit", atexit.register)(work)


def has_stopped(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop runs no more and can go on."""
    return not (loop.is_closed() or loop.is_running())


def go_on(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, object]) -> None:
    """Run `work` to its end on a loop that has stopped; what it raises is raised."""
    if threading.current_thread() is threading.main_thread():
        # Jupyter asks for the kernel's end, sends this soon after, and makes short work a little later.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    task = loop.create_task(work)
    for _ in range(_STOPS):
        # What has stopped the loop may have asked for it more than once.
        with contextlib.suppress(RuntimeError):
            loop.run_until_complete(task)
        if task.done():
            return
