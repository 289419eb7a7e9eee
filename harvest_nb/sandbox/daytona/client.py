"""Clients of Daytona's SDK, opened and closed so that nothing of them is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import partial
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import socketio
from daytona import AsyncDaytona, DaytonaConfig

from harvest_nb.sandbox.daytona.account import Account
from harvest_nb.sandbox.uncancelled import to_the_end

__all__ = ["close_client", "new_client"]

_SETTLE = 2.0  # seconds for the connection to Daytona's events to stand or to fail


def new_client(account: Account) -> AsyncDaytona:
    """A client for `account`; it begins at once to connect to Daytona's events. Close it with `close_client`."""
    config = DaytonaConfig(
        api_key=account.api_key.get_secret_value(), api_url=account.api_url, target=account.target
    )
    client = AsyncDaytona(config)
    _leave_ctrl_c_alone(getattr(client, "_event_dispatcher", None))
    return client


def _leave_ctrl_c_alone(events: Any) -> None:
    """Have a client's connections to the events install no handler of SIGINT.

    Socket.IO and Engine.IO install theirs unless they are told not to, and the SDK does not tell them. Those stay for
    the life of the process, cancel every task of the loop and stop it: a notebook's kernel is dead then. So in this
    client alone `socketio.AsyncClient` is one with `handle_sigint=False` for the method that connects.
    """
    connect = getattr(type(events), "connect", None)
    if isinstance(connect, FunctionType):  # it runs in the loop's next round at the earliest
        quiet = SimpleNamespace(AsyncClient=partial(socketio.AsyncClient, handle_sigint=False))
        own = FunctionType(
            connect.__code__,
            {**connect.__globals__, "socketio": quiet},
            connect.__name__,
            connect.__defaults__,
            connect.__closure__,
        )
        own.__kwdefaults__ = connect.__kwdefaults__
        events.connect = MethodType(own, events)


async def close_client(client: AsyncDaytona) -> None:
    """Close a client and its connection to the events, whatever that is doing; done also when cancelled."""
    await to_the_end(lambda: _close(client))


async def _close(client: AsyncDaytona) -> None:
    # The SDK's own `close` leaves two things behind. It cancels a connecting that is under way; but until the server
    # has said hello, Engine.IO holds its web socket in a local variable, which nobody can close after that. And it
    # disconnects, but a connection that the server has cut is connected again by a task of Socket.IO that a
    # disconnection does not end. There is no public way to either; without these attributes the SDK's `close` is all.
    events = getattr(client, "_event_dispatcher", None)
    connecting: asyncio.Task[None] | None = getattr(events, "_connect_task", None)
    if connecting is not None and not connecting.done():
        # A task that has not begun has no socket yet.
        await asyncio.sleep(0)
        await _settled(connecting, events)
    socket = getattr(events, "_sio", None)
    if socket is not None:
        socket.reconnection = False
        if not socket.connected:
            await _settled(asyncio.ensure_future(socket.shutdown()), events)
    await client.close()  # type: ignore[no-untyped-call]


async def _settled(work: asyncio.Task[None], events: Any) -> None:
    """Wait for a connecting to end; where the server keeps it waiting, its connection is taken away."""
    await asyncio.wait([work], timeout=_SETTLE)
    if not work.done():
        session = getattr(getattr(getattr(events, "_sio", None), "eio", None), "http", None)
        if session is not None:
            closing: Awaitable[None] = session.close()
            await closing
        await asyncio.wait([work], timeout=_SETTLE)
    if work.done() and not work.cancelled():
        work.exception()  # looked at: a connection that failed is closed all the same
