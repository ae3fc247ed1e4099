"""Copies of the store on their way to members that fell behind.

Purpose: one consistent file per need, shared by all who need it at the same time, gone when nobody does.

Rules
- The store is copied on a thread of its own (`make_copy`, which closes its read view before it returns), then synced, checksummed and
  renamed. Finished copies are removed on the thread that reads and writes chunks (`io`): a copy takes minutes, and nobody who has read
  one to its end waits for the next.
- `acquire(min_index)` shares the newest copy if it reaches `min_index`, otherwise takes a new one; takers wait for each other.
- Every `acquire` is ended by one `release`; the last one removes the file. `close` removes what is left.

Bounds: at most one copy is being taken; finished copies are at most as many as there are holders.
Errors: SnapshotCopyError for everything that `make_copy` or the file system raises; nothing is left behind then.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvserver.errors import KvError
from kvserver.snapshot import files as names
from kvserver.snapshot.errors import SnapshotCopyError
from kvserver.snapshot.outgoing import OutgoingFile
from kvserver.snapshot.plan import SnapshotOffer, content_id
from kvserver.snapshot.threads import run_to_end
from raft.types import Index, SnapshotMetadata
from wal import Files

MakeCopy = Callable[[Path], SnapshotMetadata]
"""Write a consistent copy of the store to a path that doesn't exist, and say what it covers. Blocking; called on the copying thread.

The one thing here that writes beside `wal.Files`: LMDB copies itself into a file of the system (docs/adr/0006). What it wrote is then read,
synced and renamed through `Files`."""

_HASH_BLOCK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotCopy:
    """A finished, durable copy: the file and what it covers."""

    path: Path
    size_bytes: int
    sha256: bytes
    metadata: SnapshotMetadata

    def offer(self, chunk_size_bytes: int) -> SnapshotOffer:
        """How this copy is announced."""
        return SnapshotOffer(
            id=content_id(self.sha256),
            size_bytes=self.size_bytes,
            sha256=self.sha256,
            chunk_size_bytes=chunk_size_bytes,
            metadata=self.metadata,
        )


class SnapshotCopies:
    """Takes copies and counts their holders. Used on one loop."""

    def __init__(
        self, directory: Path, make_copy: MakeCopy, executor: Executor, *, io: Executor | None = None, files: Files = names.OS_FILES
    ) -> None:
        """`executor` takes the copies; `io` removes them (None: the same one)."""
        self._files = files
        self._directory = directory
        self._make_copy = make_copy
        self._executor = executor
        self._io = executor if io is None else io
        self._lock = asyncio.Lock()
        self._holders: dict[SnapshotCopy, int] = {}
        self._newest: SnapshotCopy | None = None
        self._serial = 0
        self._is_closed = False

    @property
    def newest_metadata(self) -> SnapshotMetadata | None:
        """What the newest held copy covers; None if none is held. A snapshot message for this position needs no new copy."""
        return None if self._newest is None else self._newest.metadata

    async def acquire(self, min_index: Index) -> SnapshotCopy:
        """A copy that covers at least `min_index`, held until `release`. Raises SnapshotCopyError."""
        async with self._lock:
            copy = self._newest
            if copy is None or copy.metadata.index < min_index:
                copy = await self._take()
                if copy.metadata.index < min_index:
                    await run_to_end(self._io, lambda: names.discard(self._files, copy.path))
                    raise SnapshotCopyError(f"the store is at index {copy.metadata.index}, a snapshot at {min_index} is asked for")
                self._newest = copy
            self._holders[copy] = self._holders.get(copy, 0) + 1
            return copy

    def open(self, copy: SnapshotCopy) -> OutgoingFile:
        """Open a held copy for reading. Blocking. Raises SnapshotStorageError."""
        return OutgoingFile(copy.path, files=self._files)

    async def release(self, copy: SnapshotCopy) -> None:
        """End one holding; the file goes with the last. Finishes even when cancelled."""
        if self._is_closed:
            return
        holders = self._holders.get(copy, 0) - 1
        assert holders >= 0, "a snapshot copy was released twice"
        if holders:
            self._holders[copy] = holders
            return
        del self._holders[copy]
        if self._newest is copy:
            self._newest = None
        await run_to_end(self._io, lambda: names.discard(self._files, copy.path))

    async def close(self) -> None:
        """Remove every copy, whoever still holds it. `acquire` must not be called afterwards."""
        async with self._lock:
            self._is_closed = True
            paths = [copy.path for copy in self._holders]
            self._holders.clear()
            self._newest = None
            for path in paths:
                await run_to_end(self._io, lambda path=path: names.discard(self._files, path))  # type: ignore[misc]

    async def _take(self) -> SnapshotCopy:
        self._serial += 1
        serial = self._serial
        return await run_to_end(
            self._executor,
            lambda: take_copy(self._directory, serial, self._make_copy, self._files),
            discard=lambda copy: names.discard(self._files, copy.path),
        )


def take_copy(directory: Path, serial: int, make_copy: MakeCopy, files: Files) -> SnapshotCopy:
    """Take one copy: temporary name, sync, checksum, rename, sync the directory. Blocking. Raises SnapshotCopyError and leaves nothing
    behind.
    """
    path = names.taking_path(directory, serial)
    try:
        metadata = make_copy(path)
        names.sync_file(files, path)
        sha256, size_bytes = _checksum(files, path)
        if not size_bytes:
            raise SnapshotCopyError(f"{path}: the copy of the store is empty")
        final = names.outgoing_path(directory, serial, content_id(sha256))
        files.rename(path, final)
        path = final
        files.fsync_dir(directory)
    except OSError as error:
        names.discard(files, path)
        raise SnapshotCopyError(f"{path}: {error.strerror or error}") from error
    except KvError as error:
        names.discard(files, path)
        raise SnapshotCopyError(f"{path}: {error}") from error
    except BaseException:
        names.discard(files, path)
        raise
    return SnapshotCopy(path=path, size_bytes=size_bytes, sha256=sha256, metadata=metadata)


def _checksum(files: Files, path: Path) -> tuple[bytes, int]:
    """SHA-256 and size of the file."""
    digest = hashlib.sha256()
    size_bytes = 0
    file = files.open(path, writable=False)
    try:
        while block := file.pread(_HASH_BLOCK_BYTES, size_bytes):
            digest.update(block)
            size_bytes += len(block)
    finally:
        file.close()
    return digest.digest(), size_bytes
