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

    assert await to_the_end(work()) == 7
    with pytest.raises(KeyError):
        await to_the_end(fail())


@pytest.mark.parametrize("fails", [False, True])
async def test_it_is_done_however_often_the_caller_is_cancelled(fails: bool) -> None:
    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.set()
        if fails:
            raise KeyError("x")

    caller = asyncio.create_task(to_the_end(work()))
    for _ in range(4):
        await asyncio.sleep(0.005)
        caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done.is_set()
