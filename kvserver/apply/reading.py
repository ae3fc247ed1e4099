"""Reads of a store that leave the loop: ranges over many keys, and hashes.

Rules: at most `READ_THREADS` at a time, each on a view of its own, which is made when a thread is free for it, not before. A hash goes on
slice by slice, so that no view lives long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, TypeVar

from kvserver.errors import RangeTooSlowError, RequestTimeoutError
from kvserver.mvcc import Allowance, KvHash, Snapshot
from kvserver.storage import ReadView, ViewExpiredError, ViewTooOldError
from kvserver.types import Revision

READ_THREADS: Final = 2
HASH_SLICE: Final = 20_000

_Answer = TypeVar("_Answer")
MakeView = Callable[[], tuple[ReadView, Snapshot]]
"""The present state for another thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HashResult:
    """What HashKV answers: the hash, what it covers, and where the store stood."""

    hash: int
    revision: Revision
    compacted_revision: Revision
    current_revision: Revision


class ThreadedReads:
    """The reads of one store on its threads. Belongs to the store's loop."""

    def __init__(self, make_view: MakeView, threads: Executor) -> None:
        self._make_view = make_view
        self._threads = threads
        self._slots = asyncio.Semaphore(READ_THREADS)

    async def run(self, work: Callable[[Snapshot], _Answer], allowance: Allowance) -> _Answer:
        """Have a thread do `work` on a view of one state, not older than the call, within the allowance.

        Raises what `work` raises, and

            RangeTooSlowError: it takes longer than a view may live.
            RequestTimeoutError: the store is being closed or replaced.
        """
        loop = asyncio.get_running_loop()
        async with self._slots:
            try:
                view, state = self._make_view()
                return await loop.run_in_executor(self._threads, _run, view, state._replace(allowance=allowance), work)
            except ViewTooOldError as error:
                raise RangeTooSlowError from error
            except ViewExpiredError as error:
                raise RequestTimeoutError from error

    async def hash_kv(self, hasher: KvHash, current: Revision) -> HashResult:
        """Finish a hash that was begun when the store was at revision `current`.

        Raises:
            CompactedError: a compaction has passed meanwhile.
            CorruptError, StoppedError: damage was met.
            RequestTimeoutError: the store is being closed or replaced.
        """
        while await self.run(lambda state: hasher.run_slice(state, HASH_SLICE), Allowance()):
            pass
        return HashResult(
            hash=hasher.value,
            revision=Revision(hasher.revision),
            compacted_revision=Revision(hasher.compacted_revision),
            current_revision=current,
        )


def _run(view: ReadView, state: Snapshot, work: Callable[[Snapshot], _Answer]) -> _Answer:
    with view:
        return work(state)
