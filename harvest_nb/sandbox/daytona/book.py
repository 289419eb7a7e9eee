"""What Daytona has of this package: looked up, judged, and deleted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from daytona import (
    AsyncDaytona,
    AsyncSandbox,
    DaytonaAuthenticationError,
    DaytonaError,
    DaytonaNotFoundError,
    ListSandboxesQuery,
)

from harvest_nb.sandbox.daytona.retry import Kind, explained, kind_of, persist
from harvest_nb.sandbox.daytona.sandbox import LABEL, state_of
from harvest_nb.sandbox.owner import is_alive

__all__ = ["Book", "is_held", "moment_of", "name_of", "take_up"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
_QUIET = 300.0  # seconds without a heartbeat after which another machine's sandbox counts as left behind
_let_go: set[str] = set()  # ids of sandboxes that this process could not delete: it holds them no more


class Book:
    """Looks things up with a client.

    Args:
        client: its caller closes it.
        patience: seconds in all to wait for a rate or a quota.
    """

    def __init__(self, client: AsyncDaytona, patience: float) -> None:
        self._client, self._patience = client, patience

    async def all_of(self, ident: str, *, patient: bool = True) -> list[AsyncSandbox]:
        """What Daytona has under this package's id: by name, and by label. A listing alone may lag behind.

        Args:
            patient: try again where that is worth it; False where the caller does.
        """
        named = await self._existing(name_of(ident), patient)
        found = {named.id: named} if named is not None else {}
        for listed in await self.labelled({LABEL: ident}, patient):
            if listed.id not in found:
                remote = await self._existing(listed.id, patient)
                if remote is not None:
                    found[remote.id] = remote
        return list(found.values())

    async def _existing(self, id_or_name: str, patient: bool) -> AsyncSandbox | None:
        try:
            remote = await self._asked(lambda: self._client.get(id_or_name, request_timeout=30), patient)
        except DaytonaNotFoundError:
            return None
        return None if state_of(remote) == "destroyed" else remote

    async def _asked(self, question: Callable[[], Awaitable[T]], patient: bool) -> T:
        return await (persist(question, patience=self._patience) if patient else question())

    async def labelled(self, labels: Mapping[str, str], patient: bool = True) -> list[AsyncSandbox]:
        """What a listing has with these labels."""

        async def once() -> list[AsyncSandbox]:
            query = ListSandboxesQuery(labels=dict(labels) or None)
            return [each async for each in self._client.list(query, request_timeout=30)]

        return await self._asked(once, patient)

    async def delete_all(self, ident: str, timeout: float) -> bool:
        """Delete every sandbox with that label, asked again where nothing happens; whether all are seen to be gone."""
        end, asked = time.monotonic() + timeout, 0.0
        _let_go.add(ident)
        while True:
            try:
                left = await self.all_of(ident)
            except DaytonaAuthenticationError:
                _let_go.discard(ident)
                return False  # with this key nothing was made
            except DaytonaError as error:
                _log.warning("cannot see whether sandbox %s is gone: %s", ident, error)
                return False
            if not left:
                _let_go.discard(ident)
                return True
            if time.monotonic() > end:
                _log.warning("sandbox %s is still there; `harvest-nb sandboxes --reap` removes it", ident)
                return False
            if time.monotonic() - asked > 5:
                asked = time.monotonic()
                for remote in left:
                    await self._delete(remote)
            await asyncio.sleep(0.3)

    async def _delete(self, remote: AsyncSandbox) -> None:
        with contextlib.suppress(DaytonaNotFoundError):
            try:
                await persist(lambda: remote.delete(timeout=30), patience=self._patience)
            except DaytonaNotFoundError:
                raise
            except DaytonaError as error:
                if kind_of(error) is Kind.FATAL and error.status_code not in (400, 409):
                    raise explained(error, f"delete sandbox {remote.id}") from error


def name_of(ident: str) -> str:
    """A sandbox's name at Daytona."""
    return f"harvest-{ident}"


def take_up(ident: str) -> None:
    """This process holds the sandbox from now on."""
    _let_go.discard(ident)


def is_held(remote: AsyncSandbox) -> bool:
    """Whether a live process still holds it: its owner on this machine, or else whoever's heart beats for it."""
    if state_of(remote) == "destroying" or remote.labels.get(LABEL) in _let_go:
        return False  # whoever held it has let go
    alive = is_alive(remote.labels.get("harvest.owner", ""))
    if alive is not None:
        return alive
    last = remote.last_activity_at or remote.created_at
    return (datetime.now(UTC) - moment_of(last)).total_seconds() < _QUIET


def moment_of(text: str | None) -> datetime:
    """A time as Daytona writes it; now where it writes none."""
    if not text:
        return datetime.now(UTC)
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
