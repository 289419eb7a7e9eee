"""Which of Daytona's errors are worth another try, how long to wait, and what to tell a person."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import TypeVar

from daytona import (
    DaytonaAuthenticationError,
    DaytonaBadGatewayError,
    DaytonaConnectionError,
    DaytonaError,
    DaytonaForbiddenError,
    DaytonaInternalServerError,
    DaytonaNotFoundError,
    DaytonaRateLimitError,
    DaytonaServiceUnavailableError,
    DaytonaTimeoutError,
)
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from harvest_nb.errors import HarvestError, SandboxError, TokenError
from harvest_nb.sandbox.daytona.outage import answered, waits

__all__ = ["REAP", "Kind", "explained", "is_starting", "kind_of", "persist", "retry_after", "why_waiting"]

T = TypeVar("T")
TRIES = 5
"""Attempts in all while an error is transient."""
_LONGEST = 30.0  # seconds between two attempts
_QUOTA = ("limit exceeded", "quota", "maximum allowed", "limit reached", "not enough")
_TOO_LARGE = "per sandbox"  # what one sandbox may have at most: no waiting helps
_FULL = "no available runners"
REAP = "`harvest-nb sandboxes --reap --provider daytona`"
"""The command that removes what was left at Daytona."""
_STARTING = "waiting for sandbox to start"  # the SDK's words for what it does after it has made one


class Kind(Enum):
    """What an error means for the next attempt."""

    WAIT = "wait"
    """A rate or a quota: the same call succeeds later."""
    TRANSIENT = "transient"
    """The network or a gateway: worth a few attempts."""
    FATAL = "fatal"
    """The same call fails again."""


def kind_of(error: BaseException) -> Kind:
    """What an error means for the next attempt.

    The status counts beside the class: for those that its table lacks (Cloudflare's 520 to 524), and in some of its
    own functions, the SDK raises a bare `DaytonaError`.
    """
    status = (error.status_code or 0) if isinstance(error, DaytonaError) else 0
    if isinstance(error, DaytonaRateLimitError) or status == 429 or _is_quota(error) or _is_full(error):
        return Kind.WAIT
    if status == 408 or status >= 500 or _is_unseen(error):
        return Kind.TRANSIENT
    if isinstance(
        error,
        (
            DaytonaConnectionError,
            DaytonaBadGatewayError,
            DaytonaServiceUnavailableError,
            DaytonaInternalServerError,
            DaytonaTimeoutError,
        ),
    ):
        return Kind.TRANSIENT
    return Kind.FATAL


def _is_quota(error: BaseException) -> bool:
    text = str(error).lower()
    refused = isinstance(error, DaytonaError) and error.status_code in (400, 402, 403, 409, 429)
    return refused and any(words in text for words in _QUOTA) and _TOO_LARGE not in text


def _is_full(error: BaseException) -> bool:
    return isinstance(error, DaytonaError) and _FULL in str(error).lower()


def is_starting(error: BaseException) -> bool:
    """Whether it came after a sandbox was made, while the SDK waited for its start."""
    return _STARTING in str(error)


def _is_unseen(error: BaseException) -> bool:
    """Whether Daytona does not know yet what it has just made: reading lags behind writing there."""
    return isinstance(error, DaytonaNotFoundError) and is_starting(error)


def retry_after(error: BaseException) -> float | None:
    """The seconds that the answer asks to wait, or None."""
    headers = getattr(error, "headers", None) or {}
    said = next((str(value) for name, value in headers.items() if str(name).lower() == "retry-after"), "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def why_waiting(error: BaseException, patience: float) -> str:
    """Return what keeps a call waiting, and for how long it is tried again.

    Args:
        patience: seconds in all to wait for a rate or a quota.
    """
    if kind_of(error) is not Kind.WAIT:
        return "Daytona cannot be reached or is not well (DAYTONA_API_URL says where), trying again"
    what = "has a quota that is used up" if _is_quota(error) else "limits the rate of calls"
    return f"Daytona {what}, trying again for {patience:g} s in all"


async def persist(
    action: Callable[[], Awaitable[T]],
    *,
    patience: float = 60.0,
    before_retry: Callable[[], Awaitable[T | None]] | None = None,
) -> T:
    """Do `action`, again where that is worth it; where that takes long, the log says so.

    Args:
        action: one attempt.
        patience: seconds in all to wait for a rate or a quota.
        before_retry: looks whether an attempt whose answer was lost has succeeded after all; what it finds is the
            result.

    Raises:
        DaytonaError: the last attempt's.
    """
    began, transient = time.monotonic(), 0

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = retry_after(error) if error else None
        if asked is not None and error is not None and kind_of(error) is not Kind.WAIT:
            # Only a rate's end is known to the second: a gateway may ask for an hour.
            asked = min(asked, _LONGEST, patience)
        base = min(_LONGEST, 0.25 * 2.0 ** min(state.attempt_number - 1, 10))
        # Jitter, so that twenty sandboxes that were refused together do not come back together.
        return asked + random.uniform(0, 1) if asked is not None else base * random.uniform(0.5, 1.5)  # noqa: S311

    def stop(state: RetryCallState) -> bool:
        nonlocal transient
        error = state.outcome.exception() if state.outcome else None
        if error is not None and kind_of(error) is Kind.WAIT:
            return time.monotonic() + state.upcoming_sleep - began > patience
        transient += 1
        return transient >= TRIES

    def say(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, Exception):
            waits(error, began=began, pause=state.upcoming_sleep, why=why_waiting(error, patience))

    attempts = AsyncRetrying(
        retry=retry_if_exception(lambda error: kind_of(error) is not Kind.FATAL),
        wait=wait,
        stop=stop,
        sleep=asyncio.sleep,
        before_sleep=say,
        reraise=True,
    )
    first = True
    async for attempt in attempts:
        with attempt:
            found = await before_retry() if not first and before_retry is not None else None
            first = False
            result = found if found is not None else await action()
            answered()
            return result
    raise AssertionError("tenacity ends with a result or an error")


def explained(error: DaytonaError, what: str) -> HarvestError:
    """The error as this package's own, saying what a person can do."""
    said = str(error).strip() or type(error).__name__
    if isinstance(error, DaytonaAuthenticationError):
        return TokenError(
            f"Daytona refused the key, so cannot {what}: {said}",
            hint="check DAYTONA_API_KEY and DAYTONA_API_URL",
        )
    if _TOO_LARGE in said.lower():
        hint = "ask for less with `limits`, or name a snapshot that has less"
    elif _is_full(error):
        hint = "Daytona has no machine free there: try again later, or in another region (DAYTONA_TARGET)"
    elif _is_quota(error):
        hint = (
            f"remove sandboxes ({REAP}; stopped ones count against the disk"
            " quota too), or ask for a larger quota in the Daytona dashboard"
        )
    elif isinstance(error, DaytonaRateLimitError) or error.status_code == 429:
        hint = "Daytona limits the rate of calls: run fewer at once, or try again later"
    elif isinstance(error, DaytonaForbiddenError) and "suspended" in said.lower():
        hint = "Daytona has suspended the organisation: see its billing page in the dashboard"
    elif isinstance(error, DaytonaForbiddenError):
        hint = "the key lacks a permission: give it sandboxes (write, delete) in the Daytona dashboard"
    elif "snapshot" in said.lower() and "not found" in said.lower():
        hint = "make a snapshot of that name at Daytona, name another one, or give `image=` to `create`"
    elif isinstance(error, DaytonaNotFoundError):
        hint = "see what there is: `harvest-nb sandboxes --provider daytona`"
    elif kind_of(error) is Kind.TRANSIENT:
        hint = "Daytona or the network was not well; see its status page, and try again"
    else:
        hint = ""
    return SandboxError(f"Daytona cannot {what}: {said}", hint=hint, status=error.status_code)
