"""The unmodified Daytona SDK at the stand-in.

Its own `close` leaves a connection behind where it comes while the events are being connected (one in a hundred at
once); the collector then says so in whichever test runs. So its clients are closed as the provider closes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from daytona import AsyncDaytona, DaytonaConfig

from harvest_nb.daytona_local import LocalDaytona
from harvest_nb.sandbox.daytona.client import close_client


@asynccontextmanager
async def sdk_at(server: LocalDaytona, *, api_key: str | None = None) -> AsyncIterator[AsyncDaytona]:
    """A client with the server's key, or with `api_key`."""
    key = server.api_key if api_key is None else api_key
    client = AsyncDaytona(DaytonaConfig(api_key=key, api_url=server.api_url, target="local"))
    try:
        yield client
    finally:
        await close_client(client)
