"""What Daytona has of this package: looked up, judged, and deleted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
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

from harvest_nb.errors import SandboxError
from harvest_nb.sandbox.daytona.holding import OWNER
from harvest_nb.sandbox.daytona.outage import waits
from harvest_nb.sandbox.daytona.retry import (
    REAP,
    Kind,
    explained,
    kind_of,
    persist,
    retry_after,
    why_waiting,
)
from harvest_nb.sandbox.daytona.sandbox import LABEL, state_of
from harvest_nb.sandbox.owner import is_alive

__all__ = ["OURS", "Book", "created_at", "moment_of", "name_of", "take_up"]

T = TypeVar("T")
_log = logging.getLogger(__name__)
OURS = {"harvest": "1"}
"""What every sandbox of this package is labelled with, as only a listing of these is sure to be read: it fails as a
whole where the SDK knows nothing of what one of another team's has, such as its language."""
_QUIET = 300.0  # seconds without a heartbeat after which another machine's sandbox counts as left behind
_AGAIN = 5.0  # seconds until a deletion that was accepted is asked for again
_CALL = 10.0  # seconds for one call of a deletion
_SLOW = 4.0  # seconds of a deletion after which it is said that it is waited for
_AT_ONCE = 8  # sandboxes that are asked for at the same time
_let_go: set[str] = set()  # ids of sandboxes that this process could not delete: it holds them no more


class Book:
    """Looks things up with a client.

    Args:
        client: its caller closes it.
        patience: seconds in all to wait for a rate or a quota.
    """

    def __init__(self, client: AsyncDaytona, patience: float) -> None:
        self._client, self._patience = client, patience

    async def all_of(self, ident: str, *, patient: bool = True, timeout: float = 30.0) -> list[AsyncSandbox]:
        """What Daytona has under this package's id: by name, and by label. A listing alone may lag behind.

        Args:
            patient: try again where that is worth it; False where the caller does.
            timeout: seconds for one call.
        """
        named = await self._existing(name_of(ident), patient, timeout)
        found = {named.id: named} if named is not None else {}
        for listed in await self._listed(ListSandboxesQuery(labels={LABEL: ident}), patient, timeout):
            if listed.id not in found:
                remote = await self._existing(listed.id, patient, timeout)
                if remote is not None:
                    found[remote.id] = remote
        return list(found.values())

    async def labelled(self, labels: Mapping[str, str]) -> list[AsyncSandbox]:
        """What a listing has with these labels; of this package's alone where the SDK cannot read another's."""
        try:
            return await self._listed(ListSandboxesQuery(labels=dict(labels) or None))
        except DaytonaError as error:
            if error.status_code is not None or kind_of(error) is not Kind.FATAL:
                raise
            return await self._listed(ListSandboxesQuery(labels={**labels, **OURS}))

    async def reachable(self, remote: AsyncSandbox, *, patient: bool = True) -> AsyncSandbox:
        """It, with its toolbox's address: the SDK asks for a missing one as it lists, but not as it gets."""
        if remote.toolbox_proxy_url:
            return remote
        listed = await self._listed(ListSandboxesQuery(id=remote.id), patient)
        return listed[0] if listed else remote

    async def _existing(
        self, id_or_name: str, patient: bool = True, timeout: float = 30.0
    ) -> AsyncSandbox | None:
        try:
            remote = await self._asked(lambda: self._client.get(id_or_name, request_timeout=timeout), patient)
        except DaytonaNotFoundError:
            return None
        return None if state_of(remote) == "destroyed" else remote

    async def _listed(
        self, query: ListSandboxesQuery, patient: bool = True, timeout: float = 30.0
    ) -> list[AsyncSandbox]:
        async def once() -> list[AsyncSandbox]:
            return [each async for each in self._client.list(query, request_timeout=timeout)]

        return await self._asked(once, patient)

    async def _asked(self, question: Callable[[], Awaitable[T]], patient: bool) -> T:
        return await (persist(question, patience=self._patience) if patient else question())

    async def are_held(self, remotes: Sequence[AsyncSandbox]) -> list[bool]:
        """See `is_held`, for each of them, some at once."""
        some = asyncio.Semaphore(_AT_ONCE)

        async def one(remote: AsyncSandbox) -> bool:
            async with some:
                return await self.is_held(remote)

        return await asyncio.gather(*(one(remote) for remote in remotes))

    async def is_held(self, remote: AsyncSandbox) -> bool:
        """Whether a live process still holds it: its owner on this machine, or else whoever's heart beats for it.

        One that has gone meanwhile is not held. One that was never active counts from when it was made.
        """
        if state_of(remote) == "destroying" or remote.labels.get(LABEL) in _let_go:
            return False  # whoever held it has let go
        alive = is_alive(remote.labels.get(OWNER, ""))
        if alive is not None:
            return alive
        if not remote.last_activity_at:
            try:
                told = await self._existing(remote.id)  # a listing may leave the last activity out
            except DaytonaError:
                return True
            if told is None:
                return False
            remote = told
        last = moment_of(remote.last_activity_at) if remote.last_activity_at else _made_at(remote)
        return last is None or (datetime.now(UTC) - last).total_seconds() < _QUIET

    async def delete_all(self, ident: str, timeout: float, *, settle: float = 0.0) -> bool:
        """Delete every sandbox with that label, asked again where nothing happens; whether all are seen to be gone.

        Args:
            timeout: seconds for that; what Daytona's rate limit takes comes on top, up to the patience.
            settle: seconds for which one that was never seen may still come to be, from a call without an answer.

        What keeps it from being gone is in the log.

        Raises:
            SandboxError: Daytona refuses to delete one.
        """
        began = time.monotonic()
        end, ask_at, waited, seen, told = began + settle + timeout, began, 0.0, False, False
        _let_go.add(ident)
        while True:
            call = max(1.0, min(_CALL, timeout / 2))
            try:
                left = await self.all_of(ident, patient=False, timeout=call)
                pause = 0.3 if left else 1.0
                if left and not seen:
                    seen, end = True, min(end, time.monotonic() + timeout)
                if not left and (seen or time.monotonic() >= began + settle):
                    _let_go.discard(ident)
                    return True
                if left and time.monotonic() >= ask_at:
                    accepted = [await _delete(remote, call) for remote in left]
                    ask_at = time.monotonic() + (_AGAIN if all(accepted) else 1.0)
                if left and not told and time.monotonic() > began + _SLOW:
                    told = True
                    more = end - time.monotonic()
                    _log.warning("sandbox %s is not deleted yet; waiting for up to %.0f s more", ident, more)
            except DaytonaError as error:
                kind, pause = kind_of(error), 1.0
                if kind is Kind.WAIT:
                    pause = max(pause, retry_after(error) or 0.0)
                    if waited + pause <= self._patience:
                        waited, end = waited + pause, end + pause
                if kind is Kind.FATAL or time.monotonic() + pause > end:
                    _log.warning(
                        "cannot see whether sandbox %s is gone: %s; %s removes it", ident, error, REAP
                    )
                    return False
                why = f"sandbox {ident} is to be deleted: {why_waiting(error, timeout + self._patience)}"
                waits(error, began=began, pause=pause, why=why)
            if time.monotonic() > end:
                _log.warning("sandbox %s is still there; %s removes it", ident, REAP)
                return False
            await asyncio.sleep(pause)


async def _delete(remote: AsyncSandbox, timeout: float) -> bool:
    """Ask for its deletion; False where it cannot be deleted just now: it changes its state, or has not settled.

    Raises:
        SandboxError: that is refused. DaytonaError: it is worth another try, or the key is refused.
    """
    try:
        await remote.delete(timeout=timeout)
    except DaytonaError as error:
        if kind_of(error) is not Kind.FATAL or isinstance(error, DaytonaAuthenticationError):
            raise
        if error.status_code in (400, 404, 409):
            return False
        told = explained(error, f"delete sandbox {remote.id}, which stays")
        hint = f"{told.hint}; then {REAP} removes it" if told.hint else f"{REAP} removes it"
        raise SandboxError(told.message, hint=hint, status=error.status_code) from error
    return True


def name_of(ident: str) -> str:
    """A sandbox's name at Daytona."""
    return f"harvest-{ident}"


def take_up(ident: str) -> None:
    """This process holds the sandbox from now on."""
    _let_go.discard(ident)


def created_at(remote: AsyncSandbox) -> datetime:
    """When it was made; now where neither Daytona nor its label says so."""
    return _made_at(remote) or datetime.now(UTC)


def _made_at(remote: AsyncSandbox) -> datetime | None:
    return moment_of(remote.created_at) or moment_of(remote.labels.get("harvest.created"))


def moment_of(text: str | None) -> datetime | None:
    """A time as Daytona writes it, UTC where it names no zone; None where it is none that can be read."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
