"""The periodic check of a running member's store: every page, every row, and that the tables agree, a little at a time.

Purpose: a bit that flips in data that nobody reads is found while the other members can still replace this one.

Theory of operation
- The work is cut into slices. Each slice holds a read view for a moment (which keeps the pages of its state as they are), reads in a thread
  of its own, and lets go: LMDB can reuse pages between slices, so the file doesn't grow.
- First the file is read page by page without LMDB (storage.pages), table by table, each slice going on behind the last key; then the tables
  are compared through LMDB (mvcc.integrity, lease_check). What a read of a client would have met, and what no read would notice, is found
  alike.
- After a slice of t seconds the check rests for `REST_FACTOR` times t: it takes a tenth of one core at most.

Rules: nothing is written. Damage goes to the store's `on_corrupt`, once for each place and run, `MAX_REPORTS` in a run. A slice whose view
expired, or whose state has gone, is done again. Counts of pages are not compared: they change between slices; `kvserver check` compares.

Source: the flag is etcd's `--corrupt-check-time`; etcd compares hashes between members and doesn't look at what a member has on its disk.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from kvserver.apply.lease_check import LeaseCheck
from kvserver.apply.store import Store
from kvserver.metrics import CheckProgress
from kvserver.mvcc import TABLES, Snapshot, describe_row
from kvserver.mvcc.integrity import CrossCheck
from kvserver.storage import ReadView, StateGoneError, StoreUnreadableError, ViewExpiredError
from kvserver.storage.pages import PageFile

SLICE_ROWS: Final = 1_000
SLICE_BYTES: Final = 4 << 20
COMPARED_ROWS: Final = 300
REST_FACTOR: Final = 9
MIN_REST_S: Final = 0.005
MAX_REPORTS: Final = 100


T = TypeVar("T")


class OnlineCheck:
    """Checks one store again and again. Used on the store's loop; `run` ends by being cancelled, `check_once` by itself."""

    def __init__(
        self, store: Store, *, interval_s: float, progress: CheckProgress | None = None, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._interval_s = interval_s
        self._wall_clock = wall_clock
        self._reported: set[str] = set()
        self.progress = progress or CheckProgress()

    async def run(self) -> None:
        """Check every `interval_s` seconds, for ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            await self.check_once()

    async def check_once(self) -> int:
        """One run over everything; returns how many places are damaged (`MAX_REPORTS` at most)."""
        self._reported.clear()
        with ThreadPoolExecutor(1, "corrupt-check") as thread:
            for table in range(len(TABLES)):
                await self._check_table(thread, table)
            if not self._reported:  # LMDB isn't led through pages that are known to be damaged
                await self._compare_tables(thread)
        self.progress.runs += 1
        self.progress.last_finished_s = self._wall_clock()
        return len(self._reported)

    async def _check_table(self, thread: ThreadPoolExecutor, table: int) -> None:
        start: bytes | None = b""
        while start is not None:
            start = await self._slice(thread, functools.partial(self._rows, table, start))

    async def _compare_tables(self, thread: ThreadPoolExecutor) -> None:
        check = CrossCheck(self._report)

        def compare(view: ReadView, state: Snapshot) -> bool:
            del view
            before = sum(check.rows.values())
            more = check.run_slice(state, COMPARED_ROWS)
            self.progress.rows += sum(check.rows.values()) - before
            return more

        while await self._slice(thread, compare):
            pass
        leases = LeaseCheck(self._report)

        def compare_leases(view: ReadView, state: Snapshot) -> bool:
            del view
            before = leases.rows
            more = leases.run_slice(state, COMPARED_ROWS)
            self.progress.rows += leases.rows - before
            return more

        while await self._slice(thread, compare_leases):
            pass

    async def _slice(self, thread: ThreadPoolExecutor, work: Callable[[ReadView, Snapshot], T]) -> T:
        """Run a piece of work on a view of its own, then rest."""
        while True:
            try:
                view, state = self._store.read_view()
            except ViewExpiredError:
                await asyncio.sleep(MIN_REST_S)  # a snapshot takes the store's place at this moment
                continue
            future = thread.submit(_on_view, work, view, state)
            try:
                result, took_s = await asyncio.wrap_future(future)
            except (ViewExpiredError, StateGoneError):
                await asyncio.sleep(MIN_REST_S)
                continue
            except asyncio.CancelledError:
                if future.cancelled():
                    view.close()  # the work never began; otherwise it closes the view itself
                raise
            await asyncio.sleep(max(MIN_REST_S, REST_FACTOR * took_s))
            return result

    def _rows(self, table: int, start: bytes, view: ReadView, state: Snapshot) -> bytes | None:
        """Read rows of one table from `start` on, page by page; where to go on, None at the end. Runs on the thread."""
        del state
        path = self._store.path

        def report(offset_bytes: int, reason: str) -> None:
            self._report(f"{path}: at offset {offset_bytes}: {reason}")

        size_bytes = 0
        try:
            with PageFile.at(path, view.file_txn_id, describe_row) as file:
                for done, row in enumerate(file.rows(file.trees(TABLES, report)[table], report, start=start), 1):
                    self.progress.rows += 1
                    size_bytes += len(row.value)
                    if done == SLICE_ROWS or size_bytes >= SLICE_BYTES:
                        return row.key + b"\x00"
        except (StoreUnreadableError, OSError) as error:
            self._report(str(error))
        return None

    def _report(self, text: str) -> None:
        if text not in self._reported and len(self._reported) < MAX_REPORTS:
            self._reported.add(text)
            self.progress.damaged += 1
            self._store.report_corrupt(text)


def _on_view(work: Callable[[ReadView, Snapshot], T], view: ReadView, state: Snapshot) -> tuple[T, float]:
    """Do the work, and end the view; also says how long it took."""
    began_s = time.monotonic()
    with view:
        return work(view, state), time.monotonic() - began_s
