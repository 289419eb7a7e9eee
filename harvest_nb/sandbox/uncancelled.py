"""What must be done once it was begun, whoever gives up waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from harvest_nb.machine.command import Stop

__all__ = ["in_thread", "to_the_end", "until_stopped"]

T = TypeVar("T")
_TIMES = 3


def in_thread(work: Callable[..., T], *args: Any) -> asyncio.Future[T]:
    """Begin `work` in a thread. What is given is no task, so a loop that ends and cancels its tasks leaves it be."""
    return asyncio.get_running_loop().run_in_executor(None, partial(work, *args))


async def to_the_end(begin: Callable[[], Awaitable[T]]) -> T:
    """Await what `begin` gives to its end however often the caller is cancelled meanwhile; raise the cancellation then.

    A loop that ends cancels every task, also the one that does this work: it is begun again then, and must bear it.
    """
    cancelled: asyncio.CancelledError | None = None
    for _ in range(_TIMES):
        task = asyncio.ensure_future(begin())
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
        if not task.cancelled():
            break
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at: the cancellation is what the caller hears of
        raise cancelled
    return task.result()


async def until_stopped(work: Callable[[Stop], T]) -> T:
    """Run `work` in a thread. A cancellation asks it to stop, and is raised once it has.

    Args:
        work: takes what asks it to stop; it need not raise then.
    """
    stop = Stop()
    running = in_thread(work, stop)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop.ask()
        await to_the_end(lambda: asyncio.wait([running]))
        if not running.cancelled():
            running.exception()  # looked at: the cancellation is what the caller hears of
        raise
