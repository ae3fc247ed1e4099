"""Releasing WAL segments that nobody needs any more, on the WAL's own thread.

Rules: a segment goes when all of its entries are below the log window, durable in the store, and committed in the WAL's own hard state. One
release is under way at a time, and at most one begins every `INTERVAL_S`. What the WAL looks like on disk is noted on the way, for metrics.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from kvserver.node.worker import Worker
from raft.types import Index
from wal import SegmentInfo

INTERVAL_S: Final = 0.5


class ReleasableLog(Protocol):
    """What is needed of the WAL; the methods block and belong on its thread."""

    @property
    def first_index(self) -> Index: ...
    def release(self, index: Index) -> int: ...
    def segments(self) -> Sequence[SegmentInfo]: ...


class WalReleaser:
    """Keeps the WAL as short as the rule allows.

    `limits` answers (the window's first index, the store's durable index, the commit index saved in the WAL).
    """

    def __init__(
        self,
        *,
        wal: ReleasableLog,
        worker: Worker,
        limits: Callable[[], tuple[Index, Index, Index]],
        on_fatal: Callable[[Exception], None],
    ) -> None:
        self._wal = wal
        self._worker = worker
        self._limits = limits
        self._on_fatal = on_fatal
        self._loop = asyncio.get_running_loop()
        self._running: asyncio.Future[tuple[Index, int]] | None = None
        self._next_s = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._released_through = Index(0)
        self.wal_first_index = wal.first_index
        self.wal_bytes = sum(segment.size_bytes for segment in wal.segments())

    def consider(self) -> None:
        """Release what may go, unless that was just done."""
        now_s = self._loop.time()
        if self._running is not None or now_s < self._next_s:
            if self._retry is None and self._next_s != math.inf:
                self._retry = self._loop.call_later(INTERVAL_S, self._consider_again)
            return
        window_first, durable, committed = self._limits()
        index = Index(min(window_first - 1, durable, committed))
        if index <= self._released_through:
            return
        self._next_s = now_s + INTERVAL_S
        self._released_through = index
        self._running = self._worker.run(partial(self._release, index))
        self._running.add_done_callback(self._finish)

    def _consider_again(self) -> None:
        self._retry = None
        self.consider()

    def hold(self) -> None:
        """Begin no release any more."""
        self._next_s = math.inf
        if self._retry is not None:
            self._retry.cancel()

    async def wait_idle(self) -> None:
        """Return when no release is under way, and begin none any more (before the files are closed)."""
        self.hold()
        while self._running is not None:
            await asyncio.wait([self._running])

    def _release(self, index: Index) -> tuple[Index, int]:
        self._wal.release(index)
        return self._wal.first_index, sum(segment.size_bytes for segment in self._wal.segments())

    def _finish(self, done: asyncio.Future[tuple[Index, int]]) -> None:
        self._running = None
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self.wal_first_index, self.wal_bytes = done.result()
        else:
            self._on_fatal(error if isinstance(error, Exception) else RuntimeError(str(error)))
