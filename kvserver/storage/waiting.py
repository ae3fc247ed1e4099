"""Futures that wait for one event of the engine: a list of them, and its two operations."""

from __future__ import annotations

import asyncio
import contextlib


async def wait(waiters: list[asyncio.Future[None]]) -> None:
    """Wait until `wake` is called for the list; leaves nothing in it, also when cancelled."""
    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    waiters.append(waiter)
    try:
        await waiter
    finally:
        with contextlib.suppress(ValueError):
            waiters.remove(waiter)


def wake(waiters: list[asyncio.Future[None]]) -> None:
    """Let everyone in the list go on."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
