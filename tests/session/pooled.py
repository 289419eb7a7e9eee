"""Runs that share a pool, in a process whose end the tests look at: `pooled.py PROVIDER RUNS HOW [TTL]`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from harvest_nb.providers import get_provider
from harvest_nb.sandbox.pools import _shared
from harvest_nb.session.open import Setup
from harvest_nb.session.options import SessionOptions
from harvest_nb.session.run import run_session
from tests.session.conftest import conversation, echo


def plan(provider: str, runs: str, ttl: float = 600.0) -> Setup:
    return Setup(
        provider=get_provider(provider),
        snapshot=os.environ.get("HARVEST_IMAGE"),
        runs_dir=Path(runs),
        options=SessionOptions(mcp=[]),
        scenario=conversation(echo),
        pool=2,
        ttl=ttl,
    )


def ready() -> list[str]:
    """The sandboxes that stand ready in this process."""
    return [w.sandbox.id for shared in _shared.values() for pool in shared.pools.values() for w in pool._warm]


async def filled() -> None:
    for shared in _shared.values():
        for pool in shared.pools.values():
            await pool.filled()


async def main(provider: str, runs: str, how: str, ttl: str = "600") -> None:
    """Two runs; then what stands ready is told, and the process ends as `how` says: made, making, killed."""
    about: list[Any] = []
    for number in range(2):
        result = await run_session(f"hello {number}", plan(provider, runs, float(ttl)))
        about.append(json.loads((result.folder / "run.json").read_text())["sandbox_id"])
        await filled()
    if how == "making":
        for shared in _shared.values():
            for pool in shared.pools.values():
                pool.grow(4)
                pool._fill()
        await asyncio.sleep(random.uniform(0, 0.2))
    print(json.dumps({"used": about, "ready": ready()}), flush=True)
    if how == "killed":
        await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
