"""A frozen state of the store that another thread may read while the loop goes on writing.

Rules: made on the loop, read by one thread at a time, closed by whoever asked for it. A view that is held stops LMDB from reusing pages,
so it expires after `MAX_AGE_S` (the engine's timer sets `is_too_old`); from then on reads raise ViewTooOldError. Closing the store waits
for open views; while it is replaced or closed no new ones are made (`OpenViews`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final

from kvserver.storage.errors import ViewExpiredError, ViewTooOldError
from kvserver.storage.reader import LayeredReader
from kvserver.storage.waiting import wait, wake

MAX_AGE_S: Final = 5.0


class ReadView:
    """A Reader with a limited life; use it as a context manager."""

    __slots__ = ("_on_closed", "_reader", "closed", "expired", "is_too_old")

    def __init__(self, reader: LayeredReader, on_closed: Callable[[ReadView], None]) -> None:
        self._reader = reader
        self._on_closed = on_closed
        self.expired = False  # ended, as the store is closed or replaced
        self.is_too_old = False
        self.closed = False

    def __enter__(self) -> ReadView:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def file_txn_id(self) -> int:
        """Which committed state of the file the view holds on to."""
        return self._reader.file_txn_id

    def close(self) -> None:
        """End the view; any thread, but not while another one reads it. Closing twice is fine."""
        if not self.closed:
            self.closed = True
            self._reader.close()
            self._on_closed(self)

    def get(self, table: int, key: bytes) -> bytes | None:
        """See Reader."""
        self._check()
        return self._reader.get(table, key)

    def get_view(self, table: int, key: bytes) -> memoryview | None:
        """See Reader."""
        self._check()
        return self._reader.get_view(table, key)

    def iterate(self, table: int, lo: bytes = b"", hi: bytes | None = None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """See Reader."""
        for item in self._reader.iterate(table, lo, hi, reverse=reverse):
            self._check()
            yield item

    def iterate_views(self, table: int, lo: bytes = b"", hi: bytes | None = None) -> Iterator[tuple[bytes, memoryview]]:
        """See Reader."""
        for item in self._reader.iterate_views(table, lo, hi):
            self._check()
            yield item

    def count(self, table: int, lo: bytes = b"", hi: bytes | None = None) -> int:
        """See Reader."""
        self._check()
        return self._reader.count(table, lo, hi)

    def _check(self) -> None:
        if self.expired or self.closed:
            raise ViewExpiredError
        if self.is_too_old:
            raise ViewTooOldError


class OpenViews:
    """The open views of one store. Belongs to a loop; the views themselves are read and closed in threads."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timers: dict[ReadView, asyncio.TimerHandle] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._is_ending = False

    def check(self) -> None:
        """Raise ViewExpiredError unless a view may be made now."""
        if self._is_ending:
            raise ViewExpiredError

    def add(self, reader: LayeredReader) -> ReadView:
        """A view over this reader, which it owns."""
        view = ReadView(reader, self._closed_in_thread)
        self._timers[view] = self._loop.call_later(MAX_AGE_S, _outlive, view)
        return view

    @contextlib.asynccontextmanager
    async def none_open(self) -> AsyncIterator[None]:
        """End all views; within the block none is open and none may be made."""
        try:
            await self.end()
            yield
        finally:
            self._is_ending = False

    async def end(self) -> None:
        """End all views and allow no new ones; return when none is open."""
        self._is_ending = True
        for view in self._timers:
            view.expired = True
        while self._timers:
            await wait(self._waiters)

    def _closed_in_thread(self, view: ReadView) -> None:
        self._loop.call_soon_threadsafe(self._forget, view)

    def _forget(self, view: ReadView) -> None:
        timer = self._timers.pop(view, None)
        if timer is not None:
            timer.cancel()
        if not self._timers:
            wake(self._waiters)


def _outlive(view: ReadView) -> None:
    view.is_too_old = True
