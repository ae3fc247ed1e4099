"""Appends records to the newest segment, and begins the next one when it is full.

Purpose: the mechanics below `log.Wal`: pending buffers, one vectored write, the sync that ends a batch, the cut. It checks nothing: the
log has.

Rules: any exception from here but WalNoSpaceError leaves the disk in an unknown state; the log then lets nobody call again. That one comes
from a cut that could not begin: what was framed before it is durable in the old segment, which stays the current one.
Cut: sync the old segment; create the new one (durable before it has its name); then seal the old one and make a new spare. So a crash at
any step leaves a log that ends in a whole segment, and nothing is acknowledged in a segment whose predecessor lost something.

Invariants: a batch never spans two segments. `_flushed_bytes` <= chain.offset_bytes <= size of the current segment less its SEAL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from raft.types import Entry, Index
from wal.codec import ENTRY_PREFIX_BYTES, Metadata, SegmentHeader, entry_prefix
from wal.errors import WalNoSpaceError
from wal.files import File, Files
from wal.record import MAX_PAYLOAD_BYTES, Chain, RecordType, encode_record, padding, record_bytes
from wal.segment import SEAL_BYTES, NewSegment, Segment, create_segment, seal, supersede
from wal.spare import Spare
from wal.state import LogState

MAX_ENTRY_DATA_BYTES: Final = MAX_PAYLOAD_BYTES - ENTRY_PREFIX_BYTES
JOINED_DATA_BYTES: Final = 16 * 1024
"""Data up to this size is copied next to its header; larger data is written from where it is."""


class Writer:
    """The open end of a log. Owns the current file, its chain and the list of segments; shares the log's state."""

    def __init__(
        self,
        files: Files,
        directory: Path,
        metadata: Metadata,
        segment_size_bytes: int,
        state: LogState,
        segments: list[Segment],
        new: NewSegment,
        spare: Spare,
    ) -> None:
        self.segments = segments
        self.spare = spare
        self.on_sync: Callable[[float], None] | None = None
        self.on_spare_lost: Callable[[], None] | None = None
        self._files = files
        self._directory = directory
        self._metadata = metadata
        self._segment_size_bytes = segment_size_bytes
        self._state = state
        self._file: File = new.file
        self._chain: Chain = new.chain
        self._flushed_bytes = new.chain.offset_bytes
        self._pending: list[bytes] = []
        self._needs_proof = new.chain.batch != new.segment.header_batch
        self._has_unsynced = False
        self._open_batch()

    @property
    def path(self) -> Path:
        """The current segment, for messages."""
        return self.segments[-1].path

    def append_entries(self, entries: Sequence[Entry]) -> None:
        """Frame entries (at least one, checked by the caller); all but the last segment's worth is written.

        Raises WalNoSpaceError, which says how many of them are durable.
        """
        state, pending = self._state, self._pending
        if entries[0].index <= state.last_index:
            supersede(self.segments, entries[0].index)
        for position, entry in enumerate(entries):
            data = entry.data
            length_bytes = record_bytes(ENTRY_PREFIX_BYTES + len(data))
            if self._chain.offset_bytes + length_bytes > self._room_bytes:
                self._cut_before(position, length_bytes)
            prefix = entry_prefix(entry)
            if len(data) <= JOINED_DATA_BYTES:
                payload = prefix + data
                pending.append(encode_record(self._chain, RecordType.ENTRY, payload) + payload + padding(len(data)))
            else:
                header = encode_record(self._chain, RecordType.ENTRY, prefix, data)
                pending += (header + prefix, data, padding(len(data)))
            state.append(entry.index, entry.term)
            self.segments[-1].max_index = entry.index
            self._needs_proof = True

    def _cut_before(self, position: int, length_bytes: int) -> None:
        """Cut in front of the entry at this position of a save."""
        try:
            self._cut(length_bytes)
        except WalNoSpaceError as error:
            error.saved_entries = position
            raise

    def append(self, record_type: RecordType, payload: bytes) -> None:
        """Frame one small record."""
        self._reserve(record_bytes(len(payload)))
        self._put(record_type, payload)
        self._needs_proof = True

    def flush(self) -> None:
        """Write what is pending."""
        if self._pending:
            self._has_unsynced = True
            self._file.pwritev(self._pending, self._flushed_bytes)
            self._pending.clear()
            self._flushed_bytes = self._chain.offset_bytes
            self.segments[-1].end_bytes = self._flushed_bytes

    def sync(self) -> None:
        """Make everything written durable and begin the next batch; nothing to do if nothing was written."""
        if not self._has_unsynced:
            return
        started_s = time.monotonic()
        self._file.fdatasync()
        self._has_unsynced = False
        self._open_batch()
        if self.on_sync is not None:
            self.on_sync(time.monotonic() - started_s)

    def remove_segments(self, index: Index, retain_bytes: int) -> int:
        """Remove the oldest segments whose entries are all <= `index`, never the last; each removal is durable before the next.

        Of those that hold readable entries, the newest `retain_bytes` stay (closed ones, as long as they are on disk).
        """
        count = 0
        while len(self.segments) > 1 and self.segments[0].max_index <= index:
            oldest = self.segments[0]
            is_readable = oldest.max_index > self._state.start_index
            if is_readable and sum(segment.size_bytes for segment in self.segments[:-1]) <= retain_bytes:
                break
            self._files.remove(self.segments[0].path)
            self._files.fsync_dir(self._directory)
            del self.segments[0]
            count += 1
        return count

    def finish(self) -> None:
        """Sync, and leave a proof that this sync returned, so that the next open need not write the last batch again."""
        self.sync()
        if self._needs_proof and self._chain.offset_bytes + record_bytes(0) <= self._room_bytes:
            self._put(RecordType.PROOF, b"")
            self.flush()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _put(self, record_type: RecordType, payload: bytes) -> None:
        self._pending.append(encode_record(self._chain, record_type, payload) + payload + padding(len(payload)))

    def _reserve(self, length_bytes: int) -> None:
        """Make sure that the next record fits into the current segment, or begin a new one."""
        if self._chain.offset_bytes + length_bytes > self._room_bytes:
            self._cut(length_bytes)

    @property
    def _room_bytes(self) -> int:
        """Where the last record of the current segment has to end: its SEAL needs a place."""
        return self.segments[-1].size_bytes - SEAL_BYTES

    def _open_batch(self) -> None:
        """Begin the next batch at the chain's place: everything before it is durable."""
        self._chain.batch += 1
        self._chain.batch_start_bytes = self._chain.offset_bytes

    def _cut(self, length_bytes: int) -> None:
        """Go on in a new segment that has room for a record of this length. WalNoSpaceError: the old one is still the current one."""
        self.flush()
        self.sync()
        state, old, old_chain, old_file = self._state, self.segments[-1], self._chain, self._file
        header = SegmentHeader(
            metadata=self._metadata,
            sequence=old.sequence + 1,
            previous_end_bytes=old_chain.offset_bytes,
            first_index=Index(state.last_index + 1),
            previous_term=state.last_term,
            marker=state.marker,
            hard_state=state.hard_state,
        )
        new = create_segment(
            self._files,
            self._directory,
            header,
            batch=old_chain.batch,
            previous_crc=old_chain.previous_crc,
            size_bytes=self._segment_size_bytes,
            spare=self.spare,
            content_bytes=length_bytes,
        )
        self.segments.append(new.segment)
        self._file, self._chain = new.file, new.chain
        self._flushed_bytes = new.chain.offset_bytes
        self._needs_proof = False
        self._open_batch()
        old_file.close()
        old.size_bytes = seal(self._files, old.path, replace(old_chain, batch=old_chain.batch - 1))
        if not self.spare.refill() and self.on_spare_lost is not None:
            self.on_spare_lost()
