"""A client that is closed leaves nothing behind, at whatever moment of its connecting to Daytona's events."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
import sys
from collections.abc import AsyncIterator

import pytest
from aiohttp import WSMsgType, web
from pydantic import SecretStr

from harvest_nb.sandbox.daytona import Account
from harvest_nb.sandbox.daytona.client import close_client, new_client

pytestmark = pytest.mark.slow


class Events:
    """The events' side of Daytona alone; it takes its time, and `behave` says what it does in the end."""

    def __init__(self, slowness: float = 0.0, behave: str = "stay") -> None:
        self.slowness, self.behave, self.url = slowness, behave, ""
        self.chance = random.Random(int.from_bytes(os.urandom(4), "big"))
        self.accepted = self.open = 0
        self.settled = asyncio.Event()

    async def _pause(self) -> None:
        await asyncio.sleep(self.chance.uniform(0, self.slowness))

    async def connected(self, request: web.Request) -> web.StreamResponse:
        self.accepted += 1
        self.open += 1
        try:
            await self._pause()
            if self.behave == "missing":
                return web.json_response({"statusCode": 404, "message": "Cannot GET"}, status=404)
            socket = web.WebSocketResponse()
            with contextlib.suppress(ConnectionError):
                await socket.prepare(request)
                await self._talk(socket)
            return socket
        finally:
            self.open -= 1
            self.settled.set()

    async def _talk(self, socket: web.WebSocketResponse) -> None:
        await self._pause()
        if self.behave == "silent":
            await socket.receive()
            return
        if self.behave == "refuse":
            await socket.close()
            return
        hello = {
            "sid": "a",
            "upgrades": [],
            "pingInterval": 25000,
            "pingTimeout": 20000,
            "maxPayload": 100000,
        }
        await socket.send_str("0" + json.dumps(hello))
        async for message in socket:
            if message.type is WSMsgType.TEXT and str(message.data).startswith("40"):
                await self._pause()
                await socket.send_str('40{"sid":"b"}')
                if self.behave == "cut":
                    await self._pause()
                    await socket.close()


@contextlib.asynccontextmanager
async def serving(events: Events) -> AsyncIterator[Account]:
    app = web.Application()
    app.router.add_get("/api/socket.io/", events.connected)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield Account(SecretStr("key"), f"http://{host}:{port}/api", "eu")
    finally:
        await runner.cleanup()


def tasks() -> set[asyncio.Task[object]]:
    """This loop's tasks but for the servers' own."""
    return {task for task in asyncio.all_tasks() if "web_protocol" not in repr(task)}


@pytest.mark.parametrize(("behave", "times"), [("stay", 50), ("missing", 10), ("refuse", 15), ("cut", 15)])
async def test_closed_at_any_moment_of_its_connecting(behave: str, times: int) -> None:
    events = Events(0.02, behave)
    async with serving(events) as account:
        before = tasks()
        for _ in range(times):
            client = new_client(account)
            await asyncio.sleep(events.chance.uniform(0, 0.08))
            await close_client(client)
            assert tasks() <= before
        del client
        gc.collect()  # what was left open complains when it is collected, and a warning is an error here
        accepted = events.accepted
        for _ in range(100):
            if not events.open:
                break
            await asyncio.sleep(0.02)
        assert events.open == 0
        assert events.accepted == accepted


async def test_a_client_whose_events_were_cut_does_not_go_on_connecting() -> None:
    events = Events(0.0, "cut")
    async with serving(events) as account:
        before = tasks()
        client = new_client(account)
        await events.settled.wait()
        await asyncio.sleep(0.1)
        assert tasks() > before  # it waits to connect again
        await close_client(client)
        assert tasks() == before


INTERRUPTED = """
import asyncio, os, signal, sys
from pydantic import SecretStr
from harvest_nb.sandbox.daytona import Account
from harvest_nb.sandbox.daytona.client import close_client, new_client

async def main():
    client = new_client(Account(SecretStr("key"), sys.argv[1], "eu"))
    while not client._event_dispatcher.is_connected:
        await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.sleep(5)
    finally:
        await asyncio.sleep(0.2)
        await close_client(client)
        print("closed")

for _ in range(2):
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        print("interrupted")
"""


async def test_ctrl_c_stays_the_programs_own() -> None:
    async with serving(Events()) as account:
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-c", INTERRUPTED, account.api_url, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await program.communicate()
    assert (program.returncode, said.split()) == (0, [b"closed", b"interrupted"] * 2)


async def test_events_that_never_say_hello_do_not_hold_the_end_up() -> None:
    events = Events(0.0, "silent")
    async with serving(events) as account:
        before = tasks()
        client = new_client(account)
        await asyncio.sleep(0.1)
        async with asyncio.timeout(15):
            await close_client(client)
        assert tasks() == before
        del client
        gc.collect()


async def test_whoever_is_cancelled_while_it_closes_has_closed_it() -> None:
    events = Events(0.05)
    async with serving(events) as account:
        before = tasks()
        client = new_client(account)
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(close_client(client))
        await asyncio.sleep(0.005)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        assert tasks() == before
        del client
        gc.collect()
