"""A check that crashes, hangs or was not tried never passes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from harvest_nb.checks import validate_sandbox
from harvest_nb.checks.base import Check, Context, Outcome
from harvest_nb.checks.contract import Contract
from harvest_nb.checks.run import run_contract as run_checks
from harvest_nb.checks.tools import CommandCheck
from harvest_nb.errors import SandboxError


def entry(name, script, **fields):
    extra = "".join(f"{key} = {value}\n" for key, value in fields.items())
    return (
        f'[[check]]\nname = "{name}"\ngroup = "tools"\nkind = "command"\nhint = "look at {name}"\n'
        f"argv = ['sh', '-c', '''{script}''']\n{extra}"
    )


def behaving(name: str, behaviour: Callable[[], Awaitable[Outcome]]) -> Check:
    """A check whose observation is the given coroutine function."""

    class Behaving(CommandCheck):
        async def observe(self, context: Context) -> Outcome:
            return await behaviour()

    return Behaving(kind="command", name=name, group="tools", hint="h", argv=("true",), timeout=5)


async def test_rows_come_in_the_contracts_order_whatever_ends_first(run_contract):
    seen = []
    text = entry("slow", "sleep 0.3") + entry("fast", "true") + entry("wrong", "exit 4")
    report = await run_contract(text, on_row=lambda row: seen.append(row.check))
    assert [row.check for row in report] == ["slow", "fast", "wrong"]
    assert seen[-1] == "slow"
    assert [row.status for row in report] == ["pass", "pass", "fail"]
    assert [row.hint for row in report] == ["", "", "look at wrong"]
    assert report.rows[0].seconds >= 0.3
    assert report.subject == "desk:desk"


async def test_checks_run_side_by_side_up_to_the_limit(run_contract):
    sleepers = "".join(entry(f"s{i}", "sleep 0.5") for i in range(4))
    assert (await run_contract("version = 1\nconcurrency = 4\n" + sleepers)).seconds < 1.5
    assert (await run_contract("version = 1\nconcurrency = 2\n" + sleepers)).seconds >= 1.0


async def test_a_timeout_is_a_failure_and_ends_the_program(run_contract, tmp_path):
    alive = tmp_path / "alive"
    report = await run_contract(
        entry("hang", f"while true; do date >> {alive}; sleep 0.05; done", timeout=0.5)
    )
    (row,) = report
    assert (row.status, row.observed) == ("fail", "timed out after 0.5 s")
    assert row.hint == "look at hang"
    size = alive.stat().st_size
    await asyncio.sleep(0.3)
    assert alive.stat().st_size == size


async def test_every_kind_of_crash_is_a_failed_row(desk):
    async def ordinary():
        raise ZeroDivisionError("by nothing")

    async def ours():
        raise SandboxError("no such thing", hint="make one")

    async def grouped():
        raise ExceptionGroup("several", [ExceptionGroup("inner", [KeyError("name")])])

    async def cancelled():
        raise asyncio.CancelledError

    async def fine():
        return Outcome(True, "fine")

    behaviours = (ordinary, ours, grouped, cancelled, fine)
    checks = tuple(behaving(f.__name__, f) for f in behaviours)
    report = await run_checks(Contract(checks, 4), Context(desk))
    assert {row.check: (row.status, row.observed, row.hint) for row in report} == {
        "ordinary": ("fail", "crashed: ZeroDivisionError: by nothing", "h"),
        "ours": ("fail", "crashed: SandboxError: no such thing", "make one"),
        "grouped": ("fail", "crashed: KeyError: 'name'", "h"),
        "cancelled": ("fail", "crashed: it was cancelled from within", "h"),
        "fine": ("pass", "fine", ""),
    }


async def test_what_a_program_says_comes_without_credentials_and_control_characters(run_contract):
    said = "at http://user:pw12345@proxy.example\\033[31m glpat-0123456789abcdefghij"
    (row,) = await run_contract(entry("tells", f'printf "{said}"; exit 1'))
    assert "proxy.example" in row.observed
    assert "pw12345" not in row.observed
    assert "glpat-" not in row.observed
    assert row.observed.isprintable()


async def test_only_the_broken_thing_is_named(run_contract):
    text = (
        entry("first", "exit 1")
        + entry("second", "true", after='["first"]')
        + entry("third", "true", after='["second"]')
        + entry("other", "true")
    )
    report = await run_contract(text)
    assert [row.check for row in report.failures] == ["first"]
    assert [row.status for row in report] == ["fail", "n/a", "n/a", "pass"]
    assert report.rows[1].observed == "not tried: first did not pass"
    assert not report.ok


async def test_what_does_not_apply_stops_nobody(desk, run_contract):
    desk.isolated = False
    text = entry("image", "exit 1", image_only="true") + entry("next", "true", after='["image"]')
    report = await run_contract(text)
    assert [row.status for row in report] == ["n/a", "pass"]
    assert "the desk provider has none and isolates nothing" in report.rows[0].observed


async def test_a_check_for_other_providers_does_not_apply(run_contract):
    report = await run_contract(entry("docker", "exit 1", providers='["docker"]'))
    assert report.rows[0].status == "n/a"
    assert report.rows[0].observed == "holds for docker only; this is desk"
    assert not report.ok


async def test_the_workspace_is_left_as_it_was(desk, run_contract, tmp_path):
    script = "mkdir -p {scratch}/deep; echo x > {scratch}/deep/file; test -f {scratch}/deep/file"
    report = await run_contract(entry("write", script))
    assert report.ok, report.rows
    assert list((tmp_path / "app" / "workspace").iterdir()) == []
    assert report.notes == ()


async def test_a_sandbox_that_goes_fails_what_is_left(desk, run_contract):
    text = "version = 1\nconcurrency = 1\n" + entry("ends", "kill -9 $PPID; sleep 5") + entry("late", "true")
    report = await run_contract(text)
    assert [row.status for row in report] == ["fail", "fail"]
    assert "SandboxGone" in report.rows[1].observed
    assert "may be left" in report.notes[0]


async def test_a_cancelled_validation_leaves_nothing_running(desk, run_contract, tmp_path):
    alive = tmp_path / "alive"
    script = f"while true; do date >> {alive}; sleep 0.05; done"
    task = asyncio.ensure_future(run_contract(entry("long", script)))
    start = time.monotonic()
    while not alive.exists() and time.monotonic() - start < 10:
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    size = alive.stat().st_size
    await asyncio.sleep(0.3)
    assert alive.stat().st_size == size


async def test_a_checks_error_about_its_own_contract_is_a_row_too(run_contract):
    text = '[[check]]\nname = "m"\ngroup = "mcp"\nkind = "mcp_server"\nserver = "nowhere"\nhint = "h"\n'
    (row,) = await run_contract(text)
    assert row.status == "fail"
    assert "'nowhere'" in row.expected
    assert "'nowhere'" in row.observed


async def test_any_object_of_the_protocol_will_do(desk):
    report = await validate_sandbox(desk, groups=["config"])
    assert not report.ok
    assert {row.group for row in report} == {"config"}
