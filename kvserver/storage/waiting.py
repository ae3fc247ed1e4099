"""Waiting without leaving anything behind: for an event of the engine, a mark, a time, the end of a thread's work, a lock that threads
hold."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from threading import Lock
from typing import Any


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


class Due:
    """One call that is due later; at most one at a time."""

    __slots__ = ("_call", "_loop", "_timer")

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def after(self, delay_s: float) -> None:
        """Call then, unless a call is due already."""
        if self._timer is None:
            self._timer = self._loop.call_later(delay_s, self._fire)

    def cancel(self) -> None:
        """Don't."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        self._call()


class DurableMark:
    """The mark of what is committed and fsynced; 0 at first. Callers wait until it is high enough."""

    __slots__ = ("_waiting", "value")

    def __init__(self) -> None:
        self.value = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def advance(self, mark: int) -> None:
        """It is `mark` now."""
        self.value = mark
        waiting, self._waiting = self._waiting, []
        for wanted, waiter in waiting:
            if wanted > mark:
                self._waiting.append((wanted, waiter))
            elif not waiter.done():
                waiter.set_result(None)

    async def wait(self, mark: int) -> None:
        """Return when it may have reached `mark`, or after `give_up`."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((mark, waiter))
        try:
            await waiter
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove((mark, waiter))

    def give_up(self) -> None:
        """Let everyone who waits go on: it won't move any more."""
        waiting, self._waiting = self._waiting, []
        wake([waiter for _, waiter in waiting])


async def wait_end(future: asyncio.Future[Any]) -> bool:
    """Wait until `future` is done, also when cancelled meanwhile; answers whether that came, and the caller raises it in its own time.

    For what can't be undone half-way: the rename of a file, on a thread.
    """
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            cancelled = True
    return cancelled


@contextlib.asynccontextmanager
async def holding(lock: Lock) -> AsyncIterator[None]:
    """Hold a lock that threads hold for long. Cancelled while it waits, it lets go of the lock as soon as it gets it."""
    acquired = asyncio.get_running_loop().run_in_executor(None, lock.acquire)
    try:
        await asyncio.shield(acquired)
    except asyncio.CancelledError:
        acquired.add_done_callback(lambda _: lock.release())
        raise
    try:
        yield
    finally:
        lock.release()
