"""What is left at the stand-in, seen from the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from harvest_nb.engine import DockerClient
from harvest_nb.sandbox.owner import owner

Left = Callable[[], list[Any]]


@pytest.fixture
def left(engine: DockerClient) -> Left:
    """The containers of every stand-in that this process runs."""

    def look() -> list[Any]:
        label = f"harvest.daytona-local.owner={owner()}"
        return list(engine.api.containers(all=True, filters={"label": label}))

    return look


async def soon_empty(look: Left, seconds: float = 10) -> bool:
    for _ in range(int(seconds / 0.1)):
        if not await asyncio.to_thread(look):
            return True
        await asyncio.sleep(0.1)
    return False
