"""The unmodified SDK at the stand-in: it validates every reply with its own models."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from daytona import AsyncDaytona, AsyncSandbox, CreateSandboxFromSnapshotParams

from harvest_nb.daytona_local import LocalDaytona
from harvest_nb.snapshot import Snapshot
from tests.sdk import sdk_at


@pytest.fixture
async def sdk(daytona: LocalDaytona) -> AsyncIterator[AsyncDaytona]:
    async with sdk_at(daytona) as client:
        yield client


@pytest.fixture
async def sandbox(sdk: AsyncDaytona, snapshot_image: Snapshot) -> AsyncIterator[AsyncSandbox]:
    made = await sdk.create(
        CreateSandboxFromSnapshotParams(
            snapshot=snapshot_image.id, env_vars={"GIVEN": "a b"}, labels={"of": "test"}
        )
    )
    yield made
    await made.delete(wait=True)
