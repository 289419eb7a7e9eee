"""Making a sandbox at Daytona: once, whatever answers are lost, and again where it does not start."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from daytona import (
    AsyncDaytona,
    AsyncSandbox,
    CreateSandboxFromImageParams,
    CreateSandboxFromSnapshotParams,
    DaytonaConflictError,
    DaytonaError,
    DaytonaTimeoutError,
)

from harvest_nb.errors import SandboxError
from harvest_nb.sandbox.daytona.book import Book
from harvest_nb.sandbox.daytona.retry import Kind, explained, kind_of, persist
from harvest_nb.sandbox.daytona.sandbox import state_of

__all__ = ["Maker"]

_STARTS = 2  # sandboxes that are tried when one is stuck in its start
_LOST = ("error", "build_failed", "destroying")


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

    async def make(
        self,
        params: CreateSandboxFromImageParams | CreateSandboxFromSnapshotParams,
        ident: str,
    ) -> AsyncSandbox:
        """A running sandbox. Raises TokenError, SandboxError."""
        what = f"create a sandbox from {getattr(params, 'snapshot', None) or getattr(params, 'image', '')}"
        for start in range(1, _STARTS + 1):
            deadline = time.monotonic() + self._start_timeout
            try:
                return await persist(
                    lambda deadline=deadline: self._attempt(params, ident, deadline),  # type: ignore[misc]
                    patience=self._patience,
                    before_retry=lambda: self._found(ident),
                )
            except _Stuck as error:
                await self._book.delete_all(ident, self._delete_timeout)
                if start == _STARTS:
                    raise SandboxError(
                        f"Daytona cannot {what}: {error}",
                        hint="try again; if it goes on, see Daytona's status page",
                    ) from None
            except DaytonaError as error:
                raise explained(error, what) from error
        raise AssertionError("the loop returns or raises")

    async def _attempt(self, params: Any, ident: str, deadline: float) -> AsyncSandbox:
        left = max(1.0, deadline - time.monotonic())
        try:
            return await self._client.create(params.model_copy(deep=True), timeout=left)
        except DaytonaTimeoutError as error:
            if error.sandbox_id is not None or time.monotonic() >= deadline:
                raise self._stuck(await self._state(error.sandbox_id)) from error
            raise
        except DaytonaConflictError as error:
            # The name is taken: by an attempt whose answer was lost.
            found = await self._found(ident)
            if found is None:
                await self._raise_reason(ident, error)
                raise
            return found
        except DaytonaError as error:
            await self._raise_reason(ident, error)
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
        with contextlib.suppress(DaytonaError):
            for remote in await self._book.all_of(ident):
                if state_of(remote) in ("error", "build_failed"):
                    return remote
        return None

    async def _state(self, sandbox_id: str | None) -> str:
        if sandbox_id is not None:
            with contextlib.suppress(DaytonaError):
                return state_of(await self._client.get(sandbox_id, request_timeout=10))
        return "unknown"

    async def _found(self, ident: str) -> AsyncSandbox | None:
        """The sandbox that an attempt without an answer has made after all, started."""
        for remote in await self._book.all_of(ident, patient=False):
            if state_of(remote) in _LOST:
                continue
            try:
                await remote.wait_for_sandbox_start(timeout=self._start_timeout)
            except DaytonaTimeoutError as error:
                raise self._stuck(await self._state(remote.id)) from error
            except DaytonaError as error:
                await self._raise_reason(ident, error)
                raise
            return remote
        return None


class _Stuck(Exception):  # noqa: N818 - says what it is
    """A sandbox did not start, for a reason that another one need not meet."""
