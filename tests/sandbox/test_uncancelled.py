from __future__ import annotations

import asyncio

import pytest

from harvest_nb.sandbox.uncancelled import to_the_end


async def test_the_result_and_the_error_come_through() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    async def fail() -> None:
        raise KeyError("x")

    assert await to_the_end(work) == 7
    with pytest.raises(KeyError):
        await to_the_end(fail)


@pytest.mark.parametrize("fails", [False, True])
async def test_it_is_done_however_often_the_caller_is_cancelled(fails: bool) -> None:
    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.set()
        if fails:
            raise KeyError("x")

    caller = asyncio.create_task(to_the_end(work))
    for _ in range(4):
        await asyncio.sleep(0.005)
        caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done.is_set()


async def test_it_is_begun_again_where_the_work_itself_is_cancelled() -> None:
    """As a loop that ends does to every task; `asyncio.run` then waits for what was begun anew."""
    begun, done = 0, asyncio.Event()

    async def work() -> None:
        nonlocal begun
        begun += 1
        await asyncio.sleep(0.05)
        done.set()

    before = asyncio.all_tasks()
    caller = asyncio.create_task(to_the_end(work))
    await asyncio.sleep(0.01)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (begun, done.is_set()) == (2, True)


async def test_work_that_is_always_cancelled_is_given_up() -> None:
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await to_the_end(work)
    assert begun == 3
