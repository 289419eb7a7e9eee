"""Running a contract in a sandbox: checks side by side, and never a pass by accident."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from harvest_nb.checks.base import GROUPS, Check, Context, Outcome, shorten
from harvest_nb.checks.contract import Contract, load_contract
from harvest_nb.checks.report import Report, Row, Status
from harvest_nb.errors import HarvestError
from harvest_nb.sandbox.base import Sandbox

__all__ = ["describe", "run_contract", "validate_sandbox"]

_GRACE = 10.0  # seconds that a check which was told to stop may take for it


async def validate_sandbox(
    sandbox: Sandbox,
    *,
    contract: Path | None = None,
    groups: Iterable[str] | None = None,
    source_root: Path | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> Report:
    """Run the contract in `sandbox`, of whatever provider.

    Args:
        contract: a contract's file; by default `config/contract.toml`.
        groups: the groups to run; None for all.
        source_root: a checkout that the baked files are compared with.
        on_row: called with each row as its check ends.

    Raises:
        CheckError: the contract is malformed. What goes wrong in a check is a failed row instead.
    """
    chosen = load_contract(contract).only(groups)
    return await run_contract(chosen, Context(sandbox, source_root), on_row=on_row)


async def run_contract(
    contract: Contract, context: Context, *, on_row: Callable[[Row], None] | None = None
) -> Report:
    """The report of `contract` in `context`; the scratch folder is removed.

    Rows come by group, in a group in the contract's order: what others build upon stands first in the file.
    """
    start = time.monotonic()
    slots = asyncio.Semaphore(contract.concurrency)
    loop = asyncio.get_running_loop()
    # What others may wait for: the row, and whether it stands in the way of those that come after it.
    ended: dict[str, asyncio.Future[tuple[Row, bool]]] = {
        check.name: loop.create_future() for check in contract.checks
    }

    async def one(check: Check) -> None:
        # A prerequisite that was not chosen says nothing, and is not waited for.
        before = [await ended[name] for name in check.after if name in ended]
        row, stops = await _row(check, context, slots, [other.check for other, stops in before if stops])
        ended[check.name].set_result((row, stops))
        if on_row is not None:
            on_row(row)

    try:
        async with asyncio.TaskGroup() as group:
            for check in contract.checks:
                group.create_task(one(check), name=f"check {check.name}")
    finally:
        await _clean(context)
    rows = [ended[check.name].result()[0] for check in contract.checks]
    rows.sort(key=lambda row: GROUPS.index(row.group))
    subject = f"{context.sandbox.provider}:{context.sandbox.id}"
    return Report(rows, subject=subject, seconds=time.monotonic() - start, notes=context.notes)


async def _row(
    check: Check, context: Context, slots: asyncio.Semaphore, missing: list[str]
) -> tuple[Row, bool]:
    reason = check.not_applicable(context)
    # A check that does not apply here stops nobody; one that was not tried stops as what stopped it does.
    tried = f"not tried: {', '.join(missing)} did not pass" if missing and not reason else ""
    if reason or tried:
        return Row(check.name, check.group, _expected(check), reason or tried, "n/a", 0.0, ""), bool(tried)
    async with slots:
        start = time.monotonic()
        outcome = await _attempt(check, context)
        seconds = time.monotonic() - start
    hint = "" if outcome.ok else outcome.hint or check.hint
    status: Status = "pass" if outcome.ok else "fail"
    row = Row(
        check.name, check.group, _expected(check), shorten(outcome.observed), status, seconds, shorten(hint)
    )
    return row, not outcome.ok


async def _attempt(check: Check, context: Context) -> Outcome:
    """The check's outcome; a crash or a timeout is a failure that says so."""
    task = asyncio.ensure_future(check.observe(context))
    try:
        await asyncio.wait([task], timeout=check.timeout)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task], timeout=_GRACE)
        raise
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_GRACE)
        step = context.steps.get(check.name)
        return Outcome(False, f"timed out after {check.timeout:g} s{f', {step}' if step else ''}")
    if task.cancelled():
        return Outcome(False, "crashed: it was cancelled from within")
    error = task.exception()
    if error is None:
        return task.result()
    return Outcome(
        False, f"crashed: {describe(error)}", error.hint if isinstance(error, HarvestError) else ""
    )


def describe(error: BaseException) -> str:
    """An error on one line; of a group, its first real error."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    message = error.message if isinstance(error, HarvestError) else str(error)
    return shorten(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _expected(check: Check) -> str:
    """What the check asks for, or why it cannot say so: then the check fails for the same reason."""
    try:
        return check.expected()
    except HarvestError as error:
        return f"cannot be said: {error.message}"


async def _clean(context: Context) -> None:
    """Remove the scratch folder; a sandbox that has ended took it along."""
    try:
        await context.sandbox.run(["rm", "-rf", "--", str(context.scratch)], timeout=_GRACE)
    except (HarvestError, OSError, TimeoutError) as error:
        # The rows say already that the sandbox cannot be used; this adds where something may be left.
        context.notes.append(f"{context.scratch} may be left in the sandbox: {describe(error)}")
