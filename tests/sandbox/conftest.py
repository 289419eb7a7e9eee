"""The real relay program on this machine, reached as providers reach it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from harvest_nb.sandbox.relay import Relay, Stream
from harvest_nb.sandbox.relay_files import RELAY_HERE


class Daemon:
    """`relay.py serve` with a way to cut the streams attached to it."""

    def __init__(self, folder: Path) -> None:
        self.socket = str(folder / "relay.sock")
        self.process: asyncio.subprocess.Process | None = None
        self.bridges: list[asyncio.subprocess.Process] = []
        self.opened = 0
        self.replacing = False

    async def start(self, lease: float) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *RELAY_HERE, "serve", "--socket", self.socket, "--lease", str(lease),
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def connect(self) -> Stream:
        bridge = await asyncio.create_subprocess_exec(
            *RELAY_HERE, "attach", "--socket", self.socket,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        self.bridges.append(bridge)
        self.opened += 1
        assert bridge.stdin is not None
        assert bridge.stdout is not None
        return bridge.stdout, bridge.stdin

    async def gone(self) -> str | None:
        assert self.process is not None
        code = None if self.replacing else self.process.returncode
        return None if code is None else f"the daemon ended with {code}"

    async def replace(self) -> None:
        """Kill it, and put another one in its place."""
        assert self.process is not None
        self.replacing = True  # the place is there all the while
        self.process.kill()
        await self.process.communicate()
        await self.start(60)
        self.replacing = False

    def cut(self) -> None:
        for bridge in self.bridges:
            if bridge.returncode is None:
                bridge.kill()

    async def end(self) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(self.process.communicate(), 10)
        for bridge in self.bridges:
            if bridge.returncode is None:
                bridge.kill()
            await bridge.communicate()


@asynccontextmanager
async def daemon(folder: Path, lease: float = 60.0) -> AsyncIterator[tuple[Daemon, Relay]]:
    server = Daemon(folder)
    await server.start(lease)
    try:
        relay = await Relay.open(server.connect, server.gone, lease=lease)
        try:
            yield server, relay
        finally:
            await relay.close()
    finally:
        await server.end()


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Relay]:
    async with daemon(tmp_path) as (_, link):
        yield link


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
