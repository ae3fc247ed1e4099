"""Who waits until a compaction's removal is complete (a `physical` Compact).

Rules: a waiter ends by the removal reaching its revision, by damage that the removal can't pass, or by the store closing. One loop.
"""

from __future__ import annotations

import asyncio

from kvserver.errors import CorruptError
from kvserver.types import Revision


class RemovalWaiters:
    """The waiters, by revision."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Revision, asyncio.Future[None]]] = []
        self._is_stuck = False

    async def wait(self, revision: Revision) -> None:
        """Return when `advance` has reached `revision`. Raises CorruptError: damage is in the way."""
        if self._is_stuck:
            raise CorruptError
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((revision, waiter))
        await waiter

    def advance(self, finished: Revision) -> None:
        """The removal is complete through `finished`."""
        self._is_stuck = False
        waiting, self._waiting = self._waiting, []
        for revision, waiter in waiting:
            if revision > finished:
                self._waiting.append((revision, waiter))
            elif not waiter.done():
                waiter.set_result(None)

    def get_stuck(self) -> None:
        """Damage is in the way of the removal, until the store is replaced."""
        self._is_stuck = True
        waiting, self._waiting = self._waiting, []
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_exception(CorruptError())

    def cancel(self) -> None:
        """The store closes."""
        for _, waiter in self._waiting:
            waiter.cancel()
        self._waiting.clear()
