"""Making a sandbox at Daytona: once, whatever answers are lost, and again where it does not start."""

from __future__ import annotations

import logging
import time
from enum import IntEnum
from typing import Any

from daytona import (
    AsyncDaytona,
    AsyncSandbox,
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    DaytonaAuthenticationError,
    DaytonaConflictError,
    DaytonaConnectionError,
    DaytonaError,
    DaytonaRateLimitError,
    DaytonaTimeoutError,
)

from harvest_nb.errors import SandboxError
from harvest_nb.sandbox.daytona.book import Book
from harvest_nb.sandbox.daytona.retry import Kind, explained, is_starting, kind_of, persist
from harvest_nb.sandbox.daytona.sandbox import state_of

__all__ = ["Maker"]

_log = logging.getLogger(__name__)
_STARTS = 2  # sandboxes that are tried when one is stuck in its start
_LOST = ("error", "build_failed", "destroying")
_SETTLE = 10.0  # seconds in which a call that nobody waits for any more may still make a sandbox
_SLACK = 0.5  # seconds: a timeout of the SDK's own ends about when it is due


class _Fate(IntEnum):
    """What the calls so far may have made, for all that was heard of them."""

    NOTHING = 0
    """Daytona has not heard of any."""
    REFUSED = 1
    """Daytona refused them all."""
    UNKNOWN = 2
    """A sandbox, which perhaps is to come yet."""


class Maker:
    """Makes sandboxes with a client.

    Args:
        client: its caller closes it.
        start_timeout: seconds until a sandbox must have started.
        patience: seconds in all to wait for a rate limit or a quota.
        delete_timeout: seconds until one that did not start must be gone.
    """

    def __init__(
        self, client: AsyncDaytona, *, start_timeout: float, patience: float, delete_timeout: float
    ) -> None:
        self._client, self._book = client, Book(client, patience)
        self._start_timeout, self._patience, self._delete_timeout = start_timeout, patience, delete_timeout
        self._fate = _Fate.NOTHING

    async def make(
        self,
        params: CreateSandboxFromImageParams | CreateSandboxFromSnapshotParams,
        ident: str,
    ) -> AsyncSandbox:
        """A running sandbox. Raises TokenError, SandboxError."""
        what = f"create a sandbox from {getattr(params, 'snapshot', None) or getattr(params, 'image', '')}"
        for start in range(1, _STARTS + 1):
            try:
                return await persist(
                    lambda: self._attempt(params, ident),
                    patience=self._patience,
                    before_retry=lambda: self._found(ident),
                )
            except _Stuck as error:
                # Its name is taken until it has gone.
                if start == _STARTS or not await self.unmake(ident):
                    raise SandboxError(
                        f"Daytona cannot {what}: {error}",
                        hint="try again; if it goes on, see Daytona's status page",
                    ) from None
            except DaytonaError as error:
                raise explained(error, what) from error
        raise AssertionError("the loop returns or raises")

    async def unmake(self, ident: str) -> bool:
        """Delete what was made, also what a call without an answer makes yet; whether all is gone.

        Raises:
            SandboxError: Daytona refuses to delete it.
        """
        if self._fate is _Fate.NOTHING:
            return True
        settle = _SETTLE if self._fate is _Fate.UNKNOWN else 0.0
        return await self._book.delete_all(ident, self._delete_timeout, settle=settle)

    async def _attempt(self, params: Any, ident: str) -> AsyncSandbox:
        deadline = time.monotonic() + self._start_timeout
        try:
            return await self._posted(params)
        except DaytonaTimeoutError as error:
            # The SDK names the sandbox in every timeout, also where one look of many had no answer.
            if time.monotonic() >= deadline - _SLACK:
                raise self._stuck(await self._state(error.sandbox_id)) from error
            raise
        except DaytonaConflictError as error:
            # The name is taken: by an attempt whose answer was lost.
            found = await self._found(ident)
            if found is None:
                await self._raise_reason(ident, error)
                raise DaytonaConnectionError(f"{error}, but it cannot be seen") from error
            return found
        except DaytonaError as error:
            await self._raise_reason(ident, error)
            raise

    async def _posted(self, params: Any) -> AsyncSandbox:
        before, self._fate = self._fate, _Fate.UNKNOWN
        try:
            return await self._client.create(params.model_copy(deep=True), timeout=self._start_timeout)
        except DaytonaError as error:
            self._fate = max(before, _fate_after(error))
            raise

    async def _raise_reason(self, ident: str, error: DaytonaError) -> None:
        """Say more where the sandbox itself has failed: the SDK lacks a reason that came as an event."""
        if not isinstance(error, DaytonaConflictError) and (
            error.status_code or kind_of(error) is not Kind.FATAL
        ):
            return
        failed = await self._failed(ident)
        if failed is None:
            return
        reason = f"it failed: {failed.error_reason or 'Daytona gives no reason'}"
        if state_of(failed) == "error":
            raise _Stuck(reason) from error
        raise DaytonaError(reason) from error

    def _stuck(self, state: str) -> _Stuck:
        return _Stuck(f"it stayed in “{state}” for {self._start_timeout:g} s")

    async def _failed(self, ident: str) -> AsyncSandbox | None:
        """The sandbox, where it failed as it started (another may be luckier) or its build did (none will be)."""
        try:
            for remote in await self._book.all_of(ident):
                if state_of(remote) in ("error", "build_failed"):
                    return remote
        except DaytonaError as error:  # its caller raises what it has
            _log.warning("cannot see why sandbox %s does not start: %s", ident, error)
        return None

    async def _state(self, sandbox_id: str | None) -> str:
        if sandbox_id is not None:
            try:
                return state_of(await self._client.get(sandbox_id, request_timeout=10))
            except DaytonaError as error:  # its caller says that it is stuck
                _log.warning("cannot see the state of sandbox %s: %s", sandbox_id, error)
        return "unknown"

    async def _found(self, ident: str) -> AsyncSandbox | None:
        """The sandbox that an attempt without an answer has made after all, started."""
        for remote in await self._book.all_of(ident, patient=False):
            if state_of(remote) in _LOST:
                continue
            deadline = time.monotonic() + self._start_timeout
            try:
                await remote.wait_for_sandbox_start(timeout=self._start_timeout)
            except DaytonaTimeoutError as error:
                if time.monotonic() < deadline - _SLACK:
                    raise
                raise self._stuck(await self._state(remote.id)) from error
            except DaytonaError as error:
                await self._raise_reason(ident, error)
                raise
            return await self._book.reachable(remote, patient=False)
        return None


def _fate_after(error: DaytonaError) -> _Fate:
    if is_starting(error):
        return _Fate.UNKNOWN
    # A rate limit stands before everything else, and looking for what it let through would only meet it again.
    limited = isinstance(error, DaytonaRateLimitError) or error.status_code == 429
    if limited or isinstance(error, DaytonaAuthenticationError) or "Cannot connect to host" in str(error):
        return _Fate.NOTHING
    refused = error.status_code is not None and 400 <= error.status_code < 500
    return _Fate.REFUSED if refused and kind_of(error) is not Kind.TRANSIENT else _Fate.UNKNOWN


class _Stuck(Exception):  # noqa: N818 - says what it is
    """A sandbox did not start, for a reason that another one need not meet."""
