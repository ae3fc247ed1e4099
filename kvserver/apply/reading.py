"""Reads of a store that leave the loop: ranges over many keys, and hashes.

Rules: at most `READ_THREADS` at a time, each on a view of its own, which is made when a thread is free for it, not before. A hash goes on
slice by slice, so that no view lives long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from kvserver.errors import RequestTimeoutError
from kvserver.mvcc import KvHash, Snapshot, execute_range
from kvserver.pb.rpc_pb2 import RangeRequest, RangeResponse
from kvserver.storage import ReadView, ViewExpiredError
from kvserver.types import Revision

READ_THREADS: Final = 2
HASH_SLICE: Final = 20_000

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

    async def range(self, request: RangeRequest) -> RangeResponse:
        """Answer a range as of one state not older than the call. Raises as `execute_range`, and RequestTimeoutError: the view expired."""
        loop = asyncio.get_running_loop()
        async with self._slots:
            try:
                view, state = self._make_view()
                return await loop.run_in_executor(self._threads, _range, view, state, request)
            except ViewExpiredError as error:
                raise RequestTimeoutError from error

    async def hash_kv(self, hasher: KvHash, current: Revision) -> HashResult:
        """Finish a hash that was begun when the store was at revision `current`.

        Raises:
            CompactedError: a compaction has passed meanwhile.
            CorruptError, StoppedError: damage was met.
            RequestTimeoutError: the store is being closed or replaced.
        """
        loop = asyncio.get_running_loop()
        more = True
        while more:
            async with self._slots:
                try:
                    view, now = self._make_view()
                    more = await loop.run_in_executor(self._threads, _hash_slice, view, now, hasher)
                except ViewExpiredError as error:
                    raise RequestTimeoutError from error
        return HashResult(
            hash=hasher.value,
            revision=Revision(hasher.revision),
            compacted_revision=Revision(hasher.compacted_revision),
            current_revision=current,
        )


def _range(view: ReadView, state: Snapshot, request: RangeRequest) -> RangeResponse:
    with view:
        return execute_range(state, request)


def _hash_slice(view: ReadView, state: Snapshot, hasher: KvHash) -> bool:
    with view:
        return hasher.run_slice(state, HASH_SLICE)
