"""The book, the maker and the switches against a Daytona of a few lines, on a clock that runs as fast as it is read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from daytona import DaytonaConflictError, DaytonaError, DaytonaNotFoundError, DaytonaTimeoutError
from daytona.common.errors import create_daytona_error

from harvest_nb.errors import SandboxError
from harvest_nb.sandbox.daytona import account
from harvest_nb.sandbox.daytona.book import Book, moment_of
from harvest_nb.sandbox.daytona.making import Maker
from harvest_nb.sandbox.daytona.switching import start, stop


class Remote:
    """A sandbox as the SDK hands it out."""

    def __init__(self, sdk: Sdk, **said: Any) -> None:
        self.sdk, self.id, self.labels, self.error_reason = sdk, "remote", {"harvest.sandbox": "one"}, None
        self.created_at, self.toolbox_proxy_url = "", "http://toolbox"
        self.last_activity_at: str | None = None
        self.waited: list[str] = []
        self.enter("started")
        for name, value in said.items():
            setattr(self, name, value)

    def enter(self, state: str) -> None:
        self.state = SimpleNamespace(value=state)

    async def delete(self, timeout: float) -> None:
        self.sdk.call("delete", timeout)
        self.sdk.there = None

    async def refresh_data(self, request_timeout: float) -> None:
        self.sdk.call("refresh", request_timeout)

    async def wait_for_sandbox_start(self, timeout: float) -> None:
        self.waited.append("start")

    async def wait_for_sandbox_stop(self, timeout: float) -> None:
        self.waited.append("stop")

    async def stop(self, timeout: float) -> None:
        self.enter("stopping")
        self.sdk.call("stop", timeout)

    async def start(self, timeout: float) -> None:
        self.enter("starting")
        self.sdk.call("start", timeout)


class Sdk:
    """A client of one sandbox at most; `fails` has the errors of the next calls, by name."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.there: Any = None
        self.calls: list[str] = []
        self.timeouts: list[float] = []
        self.fails: dict[str, list[Exception]] = {}
        self.outage = 0.0
        self.comes: tuple[float, Remote] | None = None

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.comes is not None and self.now >= self.comes[0]:
            self.there, self.comes = self.comes[1], None

    def call(self, name: str, _timeout: float = 0) -> None:
        self.calls.append(name)
        if self.now < self.outage:
            raise create_daytona_error("bad gateway", status_code=502)
        if self.fails.get(name):
            raise self.fails[name].pop(0)

    async def get(self, _name: str, request_timeout: float) -> Any:
        self.call("get", request_timeout)
        if self.there is None:
            raise DaytonaNotFoundError("not found", status_code=404)
        return self.there

    async def list(self, _query: object, request_timeout: float) -> AsyncIterator[Remote]:
        self.call("list", request_timeout)
        if self.there is not None:
            yield self.there

    async def create(self, _params: object, timeout: float) -> Any:
        self.timeouts.append(timeout)
        self.call("create", timeout)
        self.there = Remote(self)
        return self.there


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Sdk:
    sdk = Sdk()
    clock = SimpleNamespace(monotonic=lambda: sdk.now, time=time.time)
    for module in ("book", "making", "retry"):
        monkeypatch.setattr(f"harvest_nb.sandbox.daytona.{module}.time", clock)
    loop = SimpleNamespace(sleep=sdk.sleep, gather=asyncio.gather, Semaphore=asyncio.Semaphore)
    for module in ("book", "retry"):  # theirs alone: the stand-in sleeps in a thread of its own
        monkeypatch.setattr(f"harvest_nb.sandbox.daytona.{module}.asyncio", loop)
    return sdk


@pytest.fixture
def maker(sdk: Sdk) -> Maker:
    return Maker(sdk, start_timeout=20, patience=10, delete_timeout=5)  # type: ignore[arg-type]


def book(sdk: Sdk) -> Book:
    return Book(sdk, 10)  # type: ignore[arg-type]


async def make(maker: Maker) -> Any:
    return await maker.make(SimpleNamespace(snapshot="s", model_copy=lambda deep: None), "one")  # type: ignore[arg-type]


async def test_a_deletion_goes_on_through_an_outage(sdk: Sdk) -> None:
    sdk.there, sdk.outage = Remote(sdk), 1015.0
    assert await book(sdk).delete_all("one", 60)
    assert sdk.there is None


async def test_a_deletion_in_an_outage_ends_in_time(sdk: Sdk) -> None:
    sdk.there, sdk.outage = Remote(sdk), 2000.0
    assert not await book(sdk).delete_all("one", 20)
    assert sdk.now <= 1020


async def test_a_deletion_that_hangs_is_asked_again_in_its_time(sdk: Sdk) -> None:
    sdk.there = Remote(sdk)
    asked: list[float] = []

    real = sdk.call

    def call(name: str, timeout: float = 0) -> None:
        if name == "delete" and not asked:
            asked.append(timeout)
            sdk.now += timeout
            raise DaytonaTimeoutError("no answer")
        real(name, timeout)

    sdk.call = call  # type: ignore[method-assign, assignment]
    assert await book(sdk).delete_all("one", 5)
    assert sdk.now <= 1006


async def test_what_a_rate_limit_takes_is_not_a_deletions_time(sdk: Sdk) -> None:
    sdk.there = Remote(sdk)
    sdk.fails["get"] = [create_daytona_error("slow down", status_code=429, headers={"Retry-After": "8"})]
    assert await book(sdk).delete_all("one", 5)


async def test_what_a_call_without_an_answer_makes_later_is_deleted(sdk: Sdk, maker: Maker) -> None:
    sdk.fails["create"] = [RuntimeError("as abrupt as a cancellation")]
    with pytest.raises(RuntimeError):
        await make(maker)
    sdk.comes = (1004.0, Remote(sdk))
    assert await maker.unmake("one")
    assert sdk.calls[-3:] == ["delete", "get", "list"]


async def test_nothing_is_waited_for_where_daytona_refused_or_was_not_reached(sdk: Sdk, maker: Maker) -> None:
    sdk.fails["create"] = [create_daytona_error("no such snapshot", status_code=404)]
    with pytest.raises(SandboxError, match="no such snapshot"):
        await make(maker)
    await maker.unmake("one")
    assert sdk.now == 1000


async def test_one_look_without_an_answer_does_not_make_a_sandbox_stuck(sdk: Sdk, maker: Maker) -> None:
    lost = DaytonaTimeoutError("upstream timeout", status_code=504)
    lost._attach_sandbox_id("remote")
    sdk.fails["create"], sdk.there = [lost], Remote(sdk)
    assert await make(maker) is sdk.there
    assert "delete" not in sdk.calls


async def test_the_wait_for_a_quota_is_not_the_starts_time(sdk: Sdk, maker: Maker) -> None:
    quota = create_daytona_error("CPU limit exceeded", status_code=403, headers={"Retry-After": "8"})
    sdk.fails["create"] = [quota]
    await make(maker)
    assert sdk.timeouts == [20, 20]


async def test_what_cannot_be_seen_yet_is_looked_for_again(sdk: Sdk, maker: Maker) -> None:
    unseen = "Failure during waiting for sandbox to start: Failed to refresh sandbox data: not found"
    sdk.fails["create"] = [
        DaytonaNotFoundError(unseen, status_code=404),
        DaytonaConflictError("Sandbox with name harvest-one already exists", status_code=409),
    ]
    there = Remote(sdk)
    sdk.comes = (1000.3, there)
    assert await make(maker) is there


async def test_the_reason_is_said_where_a_stuck_one_cannot_be_deleted(sdk: Sdk, maker: Maker) -> None:
    sdk.there = Remote(sdk, error_reason="the runner was lost")
    sdk.there.enter("error")
    sdk.fails["create"] = [DaytonaError("entered error state")]

    async def nothing(timeout: float) -> None:
        sdk.call("delete", timeout)

    sdk.there.delete = nothing
    with pytest.raises(SandboxError, match="the runner was lost"):
        await make(maker)
    assert sdk.calls.count("create") == 1


async def test_a_stop_or_a_start_whose_answer_is_lost_is_not_refused(sdk: Sdk) -> None:
    remote: Any = Remote(sdk)
    for switch, name in ((stop, "stop"), (start, "start")):
        refused = create_daytona_error("Sandbox is not in valid state", status_code=400)
        sdk.fails[name] = [create_daytona_error("the answer was lost", status_code=502), refused]
        await switch(remote, 5, 10)
        assert remote.waited.pop() == name


@pytest.mark.parametrize("state", ["listed", "looked up", "just made", "cannot be read"])
async def test_one_of_another_machine_is_held_while_its_heart_beats(sdk: Sdk, state: str) -> None:
    long_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    just_now = datetime.now(UTC).isoformat()
    listed, sdk.there = (
        Remote(sdk, created_at=long_ago, labels={"harvest.owner": "elsewhere:7:1"}) for _ in range(2)
    )
    if state == "listed":
        listed.last_activity_at = just_now
    elif state == "looked up":
        sdk.there.last_activity_at = just_now
    elif state == "just made":
        sdk.there.created_at = just_now
    else:
        sdk.there.last_activity_at = "just now"
    assert await book(sdk).is_held(listed)  # type: ignore[arg-type]
    listed.last_activity_at = long_ago
    assert not await book(sdk).is_held(listed)  # type: ignore[arg-type]


async def test_one_of_another_machine_that_was_never_active_or_has_gone_is_not_held(sdk: Sdk) -> None:
    long_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    listed, sdk.there = (
        Remote(sdk, created_at=long_ago, labels={"harvest.owner": "elsewhere:7:1"}) for _ in range(2)
    )
    assert not await book(sdk).is_held(listed)  # type: ignore[arg-type]
    sdk.there = None
    assert not await book(sdk).is_held(listed)  # type: ignore[arg-type]
    sdk.fails["get"] = [create_daytona_error("forbidden", status_code=403)]
    assert await book(sdk).is_held(listed)  # type: ignore[arg-type]


async def test_several_are_asked_for_at_once_but_not_all(sdk: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    now = most = 0

    async def is_held(_book: Book, remote: Any) -> bool:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        return bool(remote % 2)

    monkeypatch.setattr(Book, "is_held", is_held)
    assert await book(sdk).are_held(range(20)) == [bool(number % 2) for number in range(20)]  # type: ignore[arg-type]
    assert 1 < most <= 8


def test_times_as_daytona_may_write_them() -> None:
    assert moment_of("2026-01-01T00:00:00") == datetime(2026, 1, 1, tzinfo=UTC)
    assert moment_of("2026-01-01T02:00:00.123456789+02:00") == datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)
    for said in ("2026-01-01 00:00:00 +0000 UTC", "", None):
        assert moment_of(said) is None


def test_an_address_may_end_with_a_slash(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("DAYTONA_API_KEY", "key")
    monkeypatch.setenv("DAYTONA_API_URL", "http://127.0.0.1:1/api/")
    assert account.given_account(tmp_path).api_url == "http://127.0.0.1:1/api"
