"""A snapshot that is being received: the part file, its checksum, and the steps that make it whole. Blocking: call on a thread.

Rules
- Only verified chunks are written, in order: the part's size is how much of the content is at hand, and a later transfer of the same id
  goes on from there (the part is read once more for the checksum).
- `finish` verifies the whole, syncs the file, renames it, syncs the directory; only then does it return a path. A wrong checksum removes
  the part.
- Written data is pushed to the disk every `SYNC_INTERVAL_BYTES`, so that neither dirty pages nor the last sync grow with the snapshot.
- Of one sender at most one part is kept: that of the id it offered last.
- A whole file of the same position that is already there stays, and the new one is dropped: it was verified just as well, and may be about
  to be installed.
- After a SnapshotStorageError the part is worth nothing (a failed sync may have dropped pages): close with keep=False.

Errors: SnapshotStorageError for whatever the file system says; SnapshotOfferError for a chunk out of plan; SnapshotCorruptError from
`finish`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kvserver.snapshot import files as names
from kvserver.snapshot import plan
from kvserver.snapshot.errors import SnapshotCorruptError, SnapshotStorageError
from kvserver.snapshot.plan import SnapshotOffer
from raft.types import NodeId
from wal import File, Files

SYNC_INTERVAL_BYTES: Final = 32 * 1024 * 1024
_REREAD_BYTES: Final = 1024 * 1024


class IncomingFile:
    """One transfer's file. One owner, one call at a time; `close` is due in every case but after `finish`."""

    def __init__(self, files: Files, path: Path, file: File, offer: SnapshotOffer) -> None:
        self._files = files
        self._path = path
        self._file = file
        self._is_closed = False
        self._made: Path | None = None
        self._offer = offer
        self._hash = hashlib.sha256()
        self._unsynced_bytes = 0
        self.offset = 0

    @classmethod
    def open(cls, directory: Path, sender: NodeId, offer: SnapshotOffer, *, files: Files = names.OS_FILES) -> IncomingFile:
        """Begin, or go on with, the offered content; parts of other content from this sender are removed.

        `offset` then says from where the rest is wanted. Raises SnapshotStorageError, also when the disk has no room for the rest.
        """
        path = names.part_path(directory, sender, offer.id)
        with _storage_errors(path):
            parts = names.parts_of(files, directory, sender)
            for other in parts:
                if other != path:
                    files.remove(other)
            file = files.open(path, writable=True) if path in parts else files.create(path)
        incoming = cls(files, path, file, offer)
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
        keep = plan.resume_offset(self._file.size(), self._offer)
        self._file.truncate(keep)
        while self.offset < keep:
            block = self._file.pread(min(_REREAD_BYTES, keep - self.offset), self.offset)
            if not block:
                raise OSError(f"the file ended at offset {self.offset}, {keep} bytes were there")
            self._hash.update(block)
            self.offset += len(block)

    def _check_room(self, directory: Path) -> None:
        """Refuse early what can't fit; a disk that fills up later is reported by `write`."""
        missing, room = self._offer.size_bytes - self.offset, self._files.free_bytes(directory)
        if missing > room:
            raise SnapshotStorageError(
                f"{self._path}: {missing} bytes of the snapshot are missing, the disk has room for {room}: free some; the transfer is"
                " tried again by itself"
            )

    def write(self, offset: int, chunk: bytes) -> None:
        """Append a verified chunk, which must be the next of the plan."""
        plan.check_chunk(offset, len(chunk), self.offset, self._offer)
        with _storage_errors(self._path):
            self._file.pwritev([chunk], offset)
            self._unsynced_bytes += len(chunk)
            if self._unsynced_bytes >= SYNC_INTERVAL_BYTES:
                self._file.fdatasync()
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
            raise SnapshotCorruptError(
                f"{self._path}: SHA-256 is {self._hash.hexdigest()}, {self._offer.sha256.hex()} was announced: the file is removed, and "
                "the snapshot asked for again"
            )
        metadata = self._offer.metadata
        final = names.received_path(self._path.parent, metadata.index, metadata.term)
        try:
            with _storage_errors(self._path):
                if final.name in self._files.names(final.parent):
                    self.close(keep=False)
                    return final
                self._file.fsync()
                self._files.rename(self._path, final)
                self._made = final
                self._files.fsync_dir(final.parent)
        except SnapshotStorageError:
            # After a failed sync the pages may be marked clean: what a retry would read back proves nothing. Begin anew.
            self.close(keep=False)
            self.withdraw()
            raise
        self.close(keep=True)
        return final

    def withdraw(self) -> None:
        """Remove the final file if this transfer made it: nobody wants it."""
        if self._made is not None:
            names.discard(self._files, self._made)
            self._made = None

    def close(self, *, keep: bool) -> None:
        """Close the file; `keep` leaves the part for a later transfer, otherwise it is removed. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._file.close()
        if not keep:
            names.discard(self._files, self._path)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn the file system's refusals into SnapshotStorageError."""
    try:
        yield
    except OSError as error:
        raise SnapshotStorageError(f"{path}: {error.strerror or error}") from error
