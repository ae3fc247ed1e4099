"""Who waits for a removal hears of its end, of damage, or of the store's end, and never waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from kvserver.apply.removal_waiters import RemovalWaiters
from kvserver.errors import CorruptError
from kvserver.types import Revision


async def started(waiters: RemovalWaiters, revision: int) -> asyncio.Task[None]:
    task = asyncio.ensure_future(waiters.wait(Revision(revision)))
    await asyncio.sleep(0)
    return task


async def test_a_waiter_ends_when_the_removal_reaches_its_revision() -> None:
    waiters = RemovalWaiters()
    near, far = await started(waiters, 5), await started(waiters, 9)
    waiters.advance(Revision(5))
    await near
    assert not far.done()
    waiters.advance(Revision(20))
    await far


async def test_damage_in_the_way_ends_who_waits_and_who_comes_until_the_store_is_replaced() -> None:
    waiters = RemovalWaiters()
    task = await started(waiters, 5)
    waiters.get_stuck()
    with pytest.raises(CorruptError):
        await task
    with pytest.raises(CorruptError):
        await waiters.wait(Revision(6))
    waiters.advance(Revision(3))
    later = await started(waiters, 6)
    assert not later.done()
    waiters.advance(Revision(6))
    await later


async def test_closing_cancels_who_waits() -> None:
    waiters = RemovalWaiters()
    task = await started(waiters, 5)
    waiters.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
