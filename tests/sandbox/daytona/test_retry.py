from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from daytona import DaytonaError, DaytonaNotFoundError, DaytonaRateLimitError
from daytona.common.errors import create_daytona_error

from harvest_nb.errors import SandboxError, TokenError
from harvest_nb.sandbox.daytona.retry import TRIES, Kind, explained, kind_of, persist, retry_after

QUOTA = "Total CPU limit exceeded. Maximum allowed: 10"
TOO_LARGE = (
    "CPU request 16 exceeds maximum allowed per sandbox (4).\nNeed higher resource limits per-sandbox?"
)
UNSEEN = "Failure during waiting for sandbox to start: Failed to refresh sandbox data: not found"


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    # The module's alone: the stand-in of other tests sleeps in a thread of its own.
    monkeypatch.setattr("harvest_nb.sandbox.daytona.retry.asyncio", SimpleNamespace(sleep=sleep))
    return slept


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (429, "slow down", Kind.WAIT),
        (403, QUOTA, Kind.WAIT),
        (400, QUOTA, Kind.WAIT),
        (403, "missing permission write:sandboxes", Kind.FATAL),
        (401, "Invalid credentials", Kind.FATAL),
        (404, "not found", Kind.FATAL),
        (409, "exists", Kind.FATAL),
        (408, "timeout", Kind.TRANSIENT),
        (500, "oops", Kind.TRANSIENT),
        (502, "gateway", Kind.TRANSIENT),
        (503, "busy", Kind.TRANSIENT),
        (504, "gateway", Kind.TRANSIENT),
        (520, "Cloudflare's own, of which the SDK's table knows nothing", Kind.TRANSIENT),
        (524, "a timeout occurred", Kind.TRANSIENT),
        (403, TOO_LARGE, Kind.FATAL),
        (400, "No available runners", Kind.WAIT),
        (404, UNSEEN, Kind.TRANSIENT),
        (None, "Sandbox entered error state: build_failed, error reason: step 2", Kind.FATAL),
    ],
)
def test_what_an_error_means(status: int | None, message: str, kind: Kind) -> None:
    assert kind_of(create_daytona_error(message, status_code=status)) is kind


def test_an_error_without_a_class_of_its_own_is_judged_by_its_status() -> None:
    # As `upload_files` raises it.
    assert kind_of(DaytonaError("upload failed", status_code=502)) is Kind.TRANSIENT
    assert kind_of(DaytonaError("upload failed", status_code=429)) is Kind.WAIT


def test_retry_after_in_seconds_or_as_a_date() -> None:
    assert retry_after(DaytonaRateLimitError("x", headers={"RETRY-after": "7"})) == 7
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    asked = retry_after(DaytonaRateLimitError("x", headers={"Retry-After": later}))
    assert asked is not None
    assert 25 < asked <= 30
    for said in ({}, {"Retry-After": "soon"}, None):
        assert retry_after(DaytonaRateLimitError("x", headers=said)) is None


async def test_a_rate_limit_waits_as_long_as_it_is_asked_to_and_a_little_more(no_sleep: list[float]) -> None:
    left = [DaytonaRateLimitError("x", status_code=429, headers={"Retry-After": "3"})] * 2

    async def action() -> str:
        if left:
            raise left.pop()
        return "done"

    assert await persist(action, patience=60) == "done"
    assert len(no_sleep) == 2
    assert all(3 <= seconds <= 4 for seconds in no_sleep)
    assert no_sleep[0] != no_sleep[1]


async def test_patience_ends(no_sleep: list[float]) -> None:
    async def action() -> None:
        raise DaytonaRateLimitError("x", status_code=429, headers={"Retry-After": "1000"})

    start = time.monotonic()
    with pytest.raises(DaytonaRateLimitError):
        await persist(action, patience=10)
    assert (no_sleep, time.monotonic() - start < 5) == ([], True)


@pytest.mark.parametrize("asked", ["3600", "inf"])
async def test_a_gateway_cannot_ask_to_wait_for_longer_than_the_patience(
    no_sleep: list[float], asked: str
) -> None:
    async def action() -> None:
        raise create_daytona_error("maintenance", status_code=503, headers={"Retry-After": asked})

    with pytest.raises(DaytonaError):
        await persist(action, patience=5)
    assert len(no_sleep) == TRIES - 1
    assert max(no_sleep) <= 6


@pytest.mark.parametrize(("status", "calls"), [(502, TRIES), (404, 1)])
async def test_transient_errors_are_tried_a_few_times_and_others_once(status: int, calls: int) -> None:
    made = 0

    async def action() -> None:
        nonlocal made
        made += 1
        raise create_daytona_error("x", status_code=status)

    with pytest.raises(DaytonaError):
        await persist(action)
    assert made == calls


async def test_what_a_lost_attempt_made_is_the_result() -> None:
    made = 0

    async def action() -> str:
        nonlocal made
        made += 1
        raise create_daytona_error("the answer was lost", status_code=502)

    async def look() -> str | None:
        return "found" if made == 2 else None

    assert await persist(action, before_retry=look) == "found"
    assert made == 2


@pytest.mark.parametrize(
    ("status", "message", "kind", "hint"),
    [
        (401, "Invalid credentials", TokenError, "DAYTONA_API_KEY"),
        (403, QUOTA, SandboxError, "--reap"),
        (403, "missing permission", SandboxError, "permission"),
        (403, TOO_LARGE, SandboxError, "limits"),
        (403, "Organization is suspended: payment failed", SandboxError, "billing"),
        (400, "No available runners", SandboxError, "no machine free"),
        (429, "slow down", SandboxError, "rate"),
        (404, "not found", SandboxError, "harvest-nb sandboxes"),
        (502, "gateway", SandboxError, "status page"),
    ],
)
def test_errors_say_what_to_do(status: int, message: str, kind: type[Exception], hint: str) -> None:
    error = explained(create_daytona_error(message, status_code=status), "do it")
    assert isinstance(error, kind)
    assert hint in error.hint
    assert message in error.message
    assert isinstance(explained(DaytonaNotFoundError("x"), "do it"), SandboxError)
