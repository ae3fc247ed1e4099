"""Releasing WAL segments that nobody needs any more, on the WAL's own thread.

Rules
- A segment may go when all of its entries are below the log window, durable in the store, and committed in the WAL's own hard state. Of
  those that may go, the newest ones stay as long as the closed segments take no more than `retain_bytes`: members that are behind are fed
  from them (log_history.py). What such a member is being fed from stays as long as they take no more than twice that, and behind a snapshot
  as much as the snapshot has on top (wal_pins.py).
- What is retained takes at most half of the disk that would be free without it, and nothing while disk space is wanting.
- One release is under way at a time, and at most one begins every `INTERVAL_S`. What the WAL looks like on disk is noted on the way, for
  metrics, and `on_released` hears where the log begins now.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from kvserver.node.wal_pins import PIN_S, WalPin
from kvserver.node.worker import Worker
from raft.types import Index
from wal import SegmentInfo

INTERVAL_S: Final = 0.5


class ReleasableLog(Protocol):
    """What is needed of the WAL; the methods block and belong on its thread."""

    @property
    def first_index(self) -> Index: ...
    def release(self, index: Index, *, retain_bytes: int) -> int: ...
    def segments(self) -> Sequence[SegmentInfo]: ...


@dataclass(slots=True, kw_only=True)
class Retention:
    """What is kept for members that are behind; all of it is asked for each release, `free_bytes` on the WAL's thread.

    `retain_bytes`: of closed segments. `pinned`: what members are being fed from disk. `snapshot_bytes`: the size of one. `free_bytes`: on
    the log's disk.
    """

    retain_bytes: int = 0
    pinned: Callable[[], WalPin | None] = lambda: None
    snapshot_bytes: Callable[[], int] = lambda: 0
    is_short_of_space: Callable[[], bool] = lambda: False
    free_bytes: Callable[[], int] = lambda: 1 << 62
    on_released: Callable[[Index], None] = lambda first_index: None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """One release: everything through `index` may go, but for `pinned`, which stays up to `pinned_bytes`."""

    index: Index
    retain_bytes: int
    pinned: WalPin | None
    pinned_bytes: int

    def asks_more_than(self, done: _Order) -> bool:
        """It may remove what `done` left."""
        return self.index > done.index or self.retain_bytes < done.retain_bytes or self.pinned != done.pinned


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
        retention: Retention | None = None,
    ) -> None:
        self._wal = wal
        self._worker = worker
        self._limits = limits
        self._on_fatal = on_fatal
        self.retention = retention or Retention()
        self._loop = asyncio.get_running_loop()
        self._running: asyncio.Future[tuple[Index, int]] | None = None
        self._next_s = 0.0
        self._retry: asyncio.TimerHandle | None = None
        self._done = _Order(index=Index(0), retain_bytes=0, pinned=None, pinned_bytes=0)
        self.wal_first_index = wal.first_index
        self.wal_bytes = sum(segment.size_bytes for segment in wal.segments())

    def consider(self) -> None:
        """Release what may go, unless that was just done."""
        now_s = self._loop.time()
        if self._running is not None or now_s < self._next_s:
            self._consider_later(INTERVAL_S)
            return
        window_first, durable, committed = self._limits()
        retention = self.retention
        pinned = retention.pinned()
        order = _Order(
            index=Index(min(window_first - 1, durable, committed)),
            retain_bytes=0 if retention.is_short_of_space() else retention.retain_bytes,
            pinned=pinned,
            pinned_bytes=2 * retention.retain_bytes + (retention.snapshot_bytes() if pinned is not None and pinned.after_snapshot else 0),
        )
        if order.asks_more_than(self._done):
            self._next_s = now_s + INTERVAL_S
            self._done = order
            self._running = self._worker.run(partial(self._release, order))
            self._running.add_done_callback(self._finish)
        elif order.pinned is not None:
            self._consider_later(PIN_S)  # it ends without anybody saying so

    def _consider_later(self, delay_s: float) -> None:
        if self._retry is None and self._next_s != math.inf:
            self._retry = self._loop.call_later(delay_s, self._consider_again)

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

    def _release(self, order: _Order) -> tuple[Index, int]:
        """On the WAL's thread."""
        wal, index, retain_bytes = self._wal, order.index, order.retain_bytes
        if retain_bytes:
            closed_bytes = sum(segment.size_bytes for segment in wal.segments()[:-1])
            most_bytes = (self._free_bytes() + closed_bytes) // 2
            if order.pinned is not None:
                wal.release(Index(min(index, order.pinned.first_index - 1)), retain_bytes=min(retain_bytes, most_bytes))
                retain_bytes = order.pinned_bytes
            retain_bytes = min(retain_bytes, most_bytes)
        wal.release(index, retain_bytes=retain_bytes)
        return wal.first_index, sum(segment.size_bytes for segment in wal.segments())

    def _free_bytes(self) -> int:
        try:
            return self.retention.free_bytes()
        except OSError:
            return 0  # a disk that doesn't say gets less to hold: nothing that is retained is needed

    def _finish(self, done: asyncio.Future[tuple[Index, int]]) -> None:
        self._running = None
        if done.cancelled():
            return
        error = done.exception()
        if error is None:
            self.wal_first_index, self.wal_bytes = done.result()
            self.retention.on_released(self.wal_first_index)
            if self._done.pinned is not None:
                self._consider_later(PIN_S)
        else:
            self._on_fatal(error if isinstance(error, Exception) else RuntimeError(str(error)))
