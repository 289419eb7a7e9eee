"""A notebook's kernel, as far as a session knows it: killed by tests in the middle of its work."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from harvest_nb.providers import get_provider
from harvest_nb.session.open import Setup, open_session
from harvest_nb.session.options import SessionOptions
from tests.session.conftest import bash, conversation, say


async def main(provider: str, runs: str) -> None:
    """Prompts without end, each with a tool, so that some line is nearly always being written."""
    plan = Setup(
        provider=get_provider(provider),
        snapshot=os.environ.get("HARVEST_IMAGE"),
        runs_dir=Path(runs),
        options=SessionOptions(mcp=[], allowed_tools=["Bash"]),
        scenario=conversation(bash("ls / | head -3; seq 1 2000"), say("done " * 500)),
    )
    async with open_session(plan) as session:
        print("opened", flush=True)
        while True:
            await session.ask("go on")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
