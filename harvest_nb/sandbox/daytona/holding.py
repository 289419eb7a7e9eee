"""Taking a sandbox at Daytona over: its label names the process that holds it, and by that it is reaped or not."""

from __future__ import annotations

import logging

from daytona import AsyncSandbox, DaytonaError

from harvest_nb.errors import HarvestError
from harvest_nb.sandbox.daytona.account import Account
from harvest_nb.sandbox.daytona.client import close_client, new_client
from harvest_nb.sandbox.daytona.retry import persist
from harvest_nb.sandbox.owner import owner

__all__ = ["OWNER", "claim", "give_back"]

_log = logging.getLogger(__name__)
OWNER = "harvest.owner"


async def claim(remote: AsyncSandbox, patience: float) -> None:
    """Name this process as its owner. Raises DaytonaError; the label may be set all the same: see `give_back`."""
    mine = {**remote.labels, OWNER: owner()}
    await persist(lambda: remote.set_labels(mine, request_timeout=30), patience=patience)


async def give_back(account: Account, remote_id: str, labels: dict[str, str]) -> None:
    """Name again who held it before, where it could not be taken up and nobody else has claimed it since.

    What goes wrong with that is logged: its caller has an error of its own to raise.
    """
    try:
        client = new_client(account)
        try:
            remote = await client.get(remote_id, request_timeout=10)
            # Also where a claim cannot be seen: one that was cut may still be on its way.
            if remote.labels.get(OWNER) in (owner(), labels.get(OWNER)):
                await remote.set_labels(labels, request_timeout=10)
        finally:
            await close_client(client)
    except (DaytonaError, HarvestError, OSError) as error:
        _log.warning("sandbox %s may still name this process as its owner: %s", remote_id, error)
