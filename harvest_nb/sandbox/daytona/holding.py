"""Taking a sandbox at Daytona over: its label names the process that holds it, and by that it is reaped or not."""

from __future__ import annotations

import contextlib

from daytona import AsyncSandbox, DaytonaError

from harvest_nb.sandbox.daytona.account import Account
from harvest_nb.sandbox.daytona.client import close_client, new_client
from harvest_nb.sandbox.daytona.retry import persist
from harvest_nb.sandbox.owner import owner

__all__ = ["OWNER", "claim", "give_back"]

OWNER = "harvest.owner"


async def claim(remote: AsyncSandbox, patience: float) -> dict[str, str]:
    """Name this process as its owner; its labels before that. Raises DaytonaError."""
    before = dict(remote.labels)
    mine = {**before, OWNER: owner()}
    await persist(lambda: remote.set_labels(mine, request_timeout=30), patience=patience)
    return before


async def give_back(account: Account, remote_id: str, labels: dict[str, str]) -> None:
    """Name again who held it before, where it could not be taken up and nobody else has claimed it since."""
    client = new_client(account)
    try:
        with contextlib.suppress(DaytonaError):
            remote = await client.get(remote_id, request_timeout=10)
            if remote.labels.get(OWNER) == owner():
                await remote.set_labels(labels, request_timeout=10)
    finally:
        await close_client(client)
