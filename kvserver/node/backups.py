"""Copies of the store for clients that save it.

Purpose: what stands behind Maintenance.Snapshot: a copy in a file, made on the copying thread and read on that of the chunks, shared with
whoever needs one of the same state, gone as soon as nobody reads it.

Rules
- What was acknowledged before the call is in the copy: it is committed to the store's file first (it was only in the WAL and in memory).
- The store's own read view is held for as long as the copying takes, never for as long as a client takes: a long-lived view would keep LMDB
  from reusing pages.
- A copy is refused when it would leave less than `RESERVE_BYTES` of the disk: a backup must not be what fills it.

Bounds: `MAX_STREAMS` readers at a time, more are refused at once. So no more copies than that lie on the disk, each as large as what the
store has in use. A process that is killed leaves its copies to the next start, which removes them.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from kvserver.apply import ApplyMetDamageError
from kvserver.errors import CorruptError, FatalError, RequestTimeoutError, SnapshotFailedError, SnapshotNoRoomError, TooManyRequestsError
from kvserver.logs import Logger
from kvserver.snapshot import OutgoingFile, SnapshotCopies, SnapshotCopy, SnapshotCopyError, SnapshotStorageError, run_to_end
from kvserver.storage import StoreDamagedError
from raft.types import Index
from wal import Files

MAX_STREAMS: Final = 4
RESERVE_BYTES: Final = 128 << 20
"""What stays free: room for the log and the store to go on for a while."""

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class CopiedStore(Protocol):
    """What is asked of the store."""

    @property
    def applied_index(self) -> Index: ...

    @property
    def size_in_use_bytes(self) -> int: ...

    @property
    def buffered_bytes(self) -> int: ...

    async def commit(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCopy:
    """A copy being read by one client."""

    copy: SnapshotCopy
    file: OutgoingFile
    executor: Executor
    log: Logger

    @property
    def size_bytes(self) -> int:
        """Length of the content."""
        return self.copy.size_bytes

    @property
    def sha256(self) -> bytes:
        """Checksum of the content, from when the copy was made."""
        return self.copy.sha256

    async def read(self, offset: int, length_bytes: int) -> bytes:
        """Exactly `length_bytes` from `offset`. Raises SnapshotFailedError."""
        try:
            return await run_to_end(self.executor, lambda: self.file.read(offset, length_bytes))
        except SnapshotStorageError as error:
            self.log.error("reading the copy of the store for a client failed", reason=str(error))
            raise SnapshotFailedError from error


@dataclass(slots=True, kw_only=True)
class Backups:
    """Opens copies for clients. Used on one loop."""

    store: CopiedStore
    copies: SnapshotCopies
    executor: Executor
    directory: Path
    files: Files
    log: Logger
    open_count: int = 0

    @asynccontextmanager
    async def open(self, *, deadline_s: float) -> AsyncIterator[OpenCopy]:
        """A copy of everything acknowledged before the call, for the time of the block.

        Raises:
            TooManyRequestsError: `MAX_STREAMS` are open.
            SnapshotNoRoomError, SnapshotFailedError: none could be made; nothing is left of it.
            CorruptError: the store is damaged; the log says where.
            RequestTimeoutError: what is acknowledged isn't in the store's file by `deadline_s`.
        """
        if self.open_count >= MAX_STREAMS:
            raise TooManyRequestsError
        self.open_count += 1
        try:
            await self._check_room()
            copy = await self._acquire(deadline_s)
            try:
                file = await run_to_end(self.executor, lambda: self.copies.open(copy), discard=OutgoingFile.close)
                try:
                    self.log.info("sending database snapshot to client", total_bytes=copy.size_bytes, index=copy.metadata.index)
                    yield OpenCopy(copy=copy, file=file, executor=self.executor, log=self.log)
                finally:
                    await run_to_end(self.executor, file.close)
            except SnapshotStorageError as error:
                raise self._failed(error) from error
            finally:
                await self.copies.release(copy)
        finally:
            self.open_count -= 1

    async def _check_room(self) -> None:
        needed_bytes = self.store.size_in_use_bytes + self.store.buffered_bytes + RESERVE_BYTES
        try:
            free_bytes = await run_to_end(self.executor, lambda: self.files.free_bytes(self.directory))
        except OSError as error:
            raise self._failed(error) from error
        if free_bytes < needed_bytes:
            self.log.warning(
                "no room for a copy of the store", directory=str(self.directory), free_bytes=free_bytes, needed_bytes=needed_bytes
            )
            raise SnapshotNoRoomError

    async def _acquire(self, deadline_s: float) -> SnapshotCopy:
        index = self.store.applied_index
        try:
            async with asyncio.timeout_at(deadline_s):
                await self.store.commit()
        except TimeoutError:
            raise RequestTimeoutError from None
        except ApplyMetDamageError as error:
            raise CorruptError from error
        except FatalError as error:
            raise self._failed(error) from error
        try:
            return await self.copies.acquire(index)
        except SnapshotCopyError as error:
            cause = error.__cause__
            if isinstance(cause, StoreDamagedError):
                self.log.error("the store is damaged, it is not sent to a client", what=cause.place)
                raise CorruptError from error
            if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
                self.log.warning("no room for a copy of the store", reason=str(error))
                raise SnapshotNoRoomError from error
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> SnapshotFailedError:
        self.log.error("copying the store for a client failed", reason=str(error))
        return SnapshotFailedError()
