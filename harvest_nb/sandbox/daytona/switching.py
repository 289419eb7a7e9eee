"""Stopping and starting a sandbox at Daytona, whatever answers are lost."""

from __future__ import annotations

from daytona import AsyncSandbox, DaytonaNotFoundError

from harvest_nb.sandbox.daytona.retry import persist
from harvest_nb.sandbox.daytona.sandbox import state_of

__all__ = ["start", "stop"]


async def stop(remote: AsyncSandbox, timeout: float, patience: float) -> None:
    """Stop it, and wait until it has stopped, or has gone if it is ephemeral. Raises DaytonaError."""

    async def stopping() -> bool | None:
        """An attempt without an answer may have stopped it: then another one is refused."""
        try:
            await remote.refresh_data(request_timeout=30)
        except DaytonaNotFoundError:
            return True
        if state_of(remote) not in ("stopping", "stopped"):
            return None
        await remote.wait_for_sandbox_stop(timeout=timeout)
        return True

    async def attempt() -> bool:
        await remote.stop(timeout=timeout)
        return True

    await persist(attempt, patience=patience, before_retry=stopping)


async def start(remote: AsyncSandbox, timeout: float, patience: float) -> None:
    """Start it, and wait until it has started. Raises DaytonaError."""

    async def starting() -> bool | None:
        await remote.refresh_data(request_timeout=30)
        if state_of(remote) not in ("starting", "started"):
            return None
        await remote.wait_for_sandbox_start(timeout=timeout)
        return True

    async def attempt() -> bool:
        await remote.start(timeout=timeout)
        return True

    await persist(attempt, patience=patience, before_retry=starting)
