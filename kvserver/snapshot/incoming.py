"""A snapshot that is being received: the part file, its checksum, and the steps that make it whole. Blocking: call on a thread.

Rules
- Only verified chunks are written, in order: the part's size is how much of the content is at hand, and a later transfer of the same id
  goes on from there (the part is read once more for the checksum).
- `finish` verifies the whole, syncs the file, renames it, syncs the directory; only then does it return a path. A wrong checksum removes
  the part.
- Written data is pushed to the disk every `SYNC_INTERVAL_BYTES`, so that neither dirty pages nor the last sync grow with the snapshot.
- Of one sender at most one part is kept: that of the id it offered last.

- After a SnapshotStorageError the part is worth nothing (a failed sync may have dropped pages): close with keep=False.

Errors: SnapshotStorageError for whatever the file system says; SnapshotOfferError for a chunk out of plan; SnapshotCorruptError from
`finish`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kvserver.snapshot import files, plan
from kvserver.snapshot.errors import SnapshotCorruptError, SnapshotStorageError
from kvserver.snapshot.plan import SnapshotOffer
from raft.types import NodeId

SYNC_INTERVAL_BYTES: Final = 32 * 1024 * 1024
_REREAD_BYTES: Final = 1024 * 1024


class IncomingFile:
    """One transfer's file. One owner, one call at a time; `close` is due in every case but after `finish`."""

    def __init__(self, path: Path, descriptor: int, offer: SnapshotOffer) -> None:
        self._path = path
        self._descriptor = descriptor
        self._offer = offer
        self._hash = hashlib.sha256()
        self._unsynced_bytes = 0
        self.offset = 0

    @classmethod
    def open(cls, directory: Path, sender: NodeId, offer: SnapshotOffer) -> IncomingFile:
        """Begin, or go on with, the offered content; parts of other content from this sender are removed.

        `offset` then says from where the rest is wanted. Raises SnapshotStorageError, also when the disk has no room for the rest.
        """
        path = files.part_path(directory, sender, offer.id)
        with _storage_errors(path):
            for other in files.parts_of(directory, sender):
                if other != path:
                    other.unlink()
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        incoming = cls(path, descriptor, offer)
        try:
            with _storage_errors(path):
                incoming._take_up()
                incoming._check_room(directory)
        except SnapshotStorageError:
            incoming.close(keep=False)
            raise
        return incoming

    def _take_up(self) -> None:
        """Bring checksum and offset to the end of what is kept, cut to whole chunks."""
        keep = plan.resume_offset(os.fstat(self._descriptor).st_size, self._offer)
        os.ftruncate(self._descriptor, keep)
        while self.offset < keep:
            block = os.pread(self._descriptor, min(_REREAD_BYTES, keep - self.offset), self.offset)
            if not block:
                raise OSError(f"file ended at {self.offset}, {keep} bytes were there")
            self._hash.update(block)
            self.offset += len(block)

    def _check_room(self, directory: Path) -> None:
        """Refuse early what can't fit; a disk that fills up later is reported by `write`."""
        room = os.statvfs(directory)
        missing = self._offer.size_bytes - self.offset
        if missing > room.f_bavail * room.f_frsize:
            raise SnapshotStorageError(f"{self._path}: {missing} bytes are missing, the disk has room for {room.f_bavail * room.f_frsize}")

    def write(self, offset: int, chunk: bytes) -> None:
        """Append a verified chunk, which must be the next of the plan."""
        plan.check_chunk(offset, len(chunk), self.offset, self._offer)
        with _storage_errors(self._path):
            written = 0
            while written < len(chunk):
                written += os.pwrite(self._descriptor, memoryview(chunk)[written:], offset + written)
            self._unsynced_bytes += len(chunk)
            if self._unsynced_bytes >= SYNC_INTERVAL_BYTES:
                os.fdatasync(self._descriptor)
                self._unsynced_bytes = 0
        self._hash.update(chunk)
        self.offset += len(chunk)

    @property
    def is_complete(self) -> bool:
        """Every byte has arrived."""
        return self.offset == self._offer.size_bytes

    def finish(self) -> Path:
        """Verify the whole and make it durable under its final name, which is returned. The object is closed afterwards, also on an
        error.
        """
        assert self.is_complete
        if self._hash.digest() != self._offer.sha256:
            self.close(keep=False)
            raise SnapshotCorruptError(f"{self._path}: SHA-256 is {self._hash.hexdigest()}, {self._offer.sha256.hex()} was announced")
        metadata = self._offer.metadata
        final = files.received_path(self._path.parent, metadata.index, metadata.term)
        try:
            with _storage_errors(self._path):
                os.fsync(self._descriptor)
                self._path.rename(final)
                files.sync_directory(final.parent)
        except SnapshotStorageError:
            # After a failed sync the pages may be marked clean: what a retry would read back proves nothing. Begin anew.
            self.close(keep=False)
            final.unlink(missing_ok=True)
            raise
        self.close(keep=True)
        return final

    def close(self, *, keep: bool) -> None:
        """Close the file; `keep` leaves the part for a later transfer, otherwise it is removed. May be called twice."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        if not keep:
            self._path.unlink(missing_ok=True)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into SnapshotStorageError."""
    try:
        yield
    except OSError as error:
        raise SnapshotStorageError(f"{path}: {error.strerror or error}") from error
