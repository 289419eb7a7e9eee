"""The pools that runs of one process share: one for each shape of sandbox on each event loop, closed with the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Hashable
from dataclasses import dataclass, field

from harvest_nb.machine.ending import before_the_end, go_on, has_stopped
from harvest_nb.sandbox.base import Limits
from harvest_nb.sandbox.pool import Pool, Relabelling
from harvest_nb.settings import load_settings

__all__ = ["close_pools", "shared_pool"]

_log = logging.getLogger(__name__)
_EXIT_SECONDS = 20.0


@dataclass
class _Shared:
    """The pools of one loop, and what the loop itself closes when it ends."""

    end: AsyncGenerator[None, None]
    pools: dict[Hashable, Pool] = field(default_factory=dict)


_shared: dict[asyncio.AbstractEventLoop, _Shared] = {}


async def shared_pool(
    provider: Relabelling,
    size: int,
    *,
    snapshot: str | None = None,
    limits: Limits | None = None,
    network: str = "none",
    ttl: float = 600.0,
) -> Pool:
    """The pool of that shape on this event loop, made at the first call; as large as the largest `size` asked for.

    It is closed by `close_pools`, at the end of the loop (`asyncio.run`), or at the end of a process whose loop only
    stops (a notebook's kernel). What a process that is killed leaves ends by itself when its lease lapses.

    Raises:
        SandboxError: the size is not at least 1.
        EngineError: the provider does not know where its sandboxes are made.
    """
    loop = asyncio.get_running_loop()
    if loop not in _shared:
        _forget_closed_loops()
        _shared[loop] = _Shared(_until_the_loop_ends(loop))
        # Begun here, it is among the generators that a loop closes before it closes itself.
        await anext(_shared[loop].end)
    pools = _shared[loop].pools
    image = snapshot or load_settings().image
    shape = (provider.name, provider.place(), image, limits, network)
    if shape not in pools:
        pools[shape] = Pool(provider, size, snapshot=image, limits=limits, network=network, ttl=ttl)
    pools[shape].grow(size)
    return pools[shape]


async def close_pools() -> None:
    """Remove the sandboxes that stand ready on this event loop for runs with `pool=n`; a later run makes new ones."""
    shared = _shared.get(asyncio.get_running_loop())
    if shared is not None:
        await shared.end.aclose()


async def _until_the_loop_ends(loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        shared = _shared.pop(loop, None)
        pools = list(shared.pools.values()) if shared is not None else []
        ended = await asyncio.gather(*(pool.close() for pool in pools), return_exceptions=True)
        for error in ended:
            if isinstance(error, BaseException):
                raise error


def _forget_closed_loops() -> None:
    """Loops that were closed without closing their generators: nothing can be done on them any more."""
    for loop in [loop for loop in _shared if loop.is_closed()]:
        del _shared[loop]


def _at_exit() -> None:
    """The process ends: loops that have only stopped, as a kernel's does, go on until their pools are closed."""
    for loop, shared in [item for item in _shared.items() if has_stopped(item[0])]:
        try:
            go_on(loop, asyncio.wait_for(shared.end.aclose(), _EXIT_SECONDS))
        except Exception:  # noqa: BLE001 - the others are still to be closed, and leases end what is left
            _log.exception("Sandboxes that stood ready could not be removed")


before_the_end(_at_exit)
