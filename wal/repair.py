"""What to do about the end of the last segment: judge it, and make it whole again.

The torn-tail rule. At a place where a record should stand and none does (or where a blank header is followed by anything but blanks):
1. If a valid header anywhere behind it belongs to a batch that began behind it, the sync of the bad record's batch had returned: the
   bytes were durable and have changed since. Damage; refuse.
2. Otherwise a crash in the middle of the batch may have left it so, but only if the file ends inside the record, or if some 512-byte
   sector never got its version with this record: from the record's first byte in that sector up to the sector's end all is zero, as
   preallocation left it. Then it is torn: nothing in it was acknowledged.
3. Anything else is damage; refuse.
Only as much of the record counts as is certain: the whole of it behind a valid header, otherwise only the 32 bytes of the header.

Repair: the log goes on in a new segment; nothing is ever written where a torn record stood. The torn bytes are copied to
`<segment>.<offset>.torn`, synced. The last batch before them reads well, yet nothing says that its sync returned (it may be in the page
cache only, the more so after a failed sync): it is written again into the new segment, which is synced and named before the old one is
cut and sealed. Each step can be repeated after a crash: until the new segment has its name the old one is as it was; from then on what lies
behind `previous_end_bytes` there is not read.

Caveats: no reader can tell a torn record from a damaged one in the last batch where the value itself holds zeros up to a sector's end
(docs/architecture/wal.md lists such cases).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from raft.types import HardState, Index, Term
from wal.codec import Marker, Metadata, SegmentHeader
from wal.errors import DamagedError
from wal.files import File, Files
from wal.record import (
    ALIGNMENT_BYTES,
    CONTENT_TYPES,
    HEADER_BYTES,
    MARK,
    MARK_OFFSET,
    BadRecord,
    Chain,
    Record,
    RecordType,
    encode_record,
    header_batch_start,
    header_is_valid,
    padding,
    read_record,
)
from wal.segment import CHUNK_BYTES, ChunkedSource, NewSegment, Segment, create_segment, seal
from wal.spare import Spare

SECTOR_BYTES: Final = 512
BACKUP_SUFFIX: Final = ".torn"
TEMPORARY_BACKUP_SUFFIX: Final = ".torn.tmp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Torn:
    """A record that a crash left incomplete: where it begins, and what is wrong with it."""

    offset_bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStart:
    """The log's state before the last batch began: what the header of a segment that holds this batch again must say.

    `batch` is the last batch's own number, `previous_crc` that of the record before it.
    """

    offset_bytes: int
    previous_crc: int
    batch: int
    first_index: Index
    previous_term: Term
    marker: Marker | None
    hard_state: HardState


def judge(source: ChunkedSource, offset_bytes: int, bad: BadRecord | None, seed: int, last_index: Index) -> Torn | None:
    """What the end of the log is: None if blank, a `Torn` that may be cut off; raises DamagedError otherwise.

    `bad` is what `read_record` found there (None: a blank header or the file's end).
    """
    if bad is None:
        if source.first_nonzero(offset_bytes) is None:
            return None
        bad = BadRecord(offset_bytes=offset_bytes, known_bytes=HEADER_BYTES, reason="a blank record header is followed by data")
    if not bad.torn_possible:
        raise DamagedError(source.path, offset_bytes, last_index, bad.reason)
    later = _later_batch(source, offset_bytes, seed)
    if later is not None:
        raise DamagedError(source.path, offset_bytes, last_index, f"{bad.reason}, and records of a later batch follow at offset {later}")
    if offset_bytes + bad.known_bytes <= source.size_bytes and not _has_blank_sector(source, bad):
        raise DamagedError(source.path, offset_bytes, last_index, f"{bad.reason}, and no crash leaves it so")
    return Torn(offset_bytes=offset_bytes, reason=bad.reason)


def _later_batch(source: ChunkedSource, offset_bytes: int, seed: int) -> int | None:
    """The offset of the first valid header behind `offset_bytes` whose batch also began behind it; None if there is none."""
    position = offset_bytes + ALIGNMENT_BYTES
    while position < source.size_bytes:
        chunk = source.read(position, CHUNK_BYTES)
        if not chunk:
            return None
        found = chunk.find(MARK)
        while found >= 0:
            start = position + found - MARK_OFFSET
            if start > offset_bytes and start % ALIGNMENT_BYTES == 0:
                header = source.peek(start, HEADER_BYTES)
                if header_is_valid(seed, header) and header_batch_start(header) > offset_bytes:
                    return start
            found = chunk.find(MARK, found + 1)
        # A mark never lies across two chunks unseen: the next one begins with this one's last bytes.
        position += len(chunk) - (len(MARK) - 1) if len(chunk) >= CHUNK_BYTES else len(chunk)
    return None


def _has_blank_sector(source: ChunkedSource, bad: BadRecord) -> bool:
    """Whether some sector never got its version with this record."""
    end = bad.offset_bytes + bad.known_bytes
    start = bad.offset_bytes
    while start < end:
        sector_end = start - start % SECTOR_BYTES + SECTOR_BYTES
        if not any(source.read(start, min(sector_end, source.size_bytes) - start)):
            return True
        start = sector_end
    return False


def back_up(files: Files, path: Path, offset_bytes: int) -> Path:
    """Copy a segment's bytes from the offset on to a file beside it, durably; blank chunks become holes."""
    target = path.with_name(f"{path.name}.{offset_bytes}{BACKUP_SUFFIX}")
    temporary = path.with_name(f"{path.name}.{offset_bytes}{TEMPORARY_BACKUP_SUFFIX}")
    if temporary.name in files.names(path.parent):
        files.remove(temporary)
    segment = files.open(path, writable=False)
    try:
        backup = files.create(temporary)
        try:
            _copy(segment, offset_bytes, backup)
            backup.fsync()
        finally:
            backup.close()
    finally:
        segment.close()
    files.rename(temporary, target)
    files.fsync_dir(path.parent)
    return target


def _copy(segment: File, offset_bytes: int, backup: File) -> None:
    position = offset_bytes
    while chunk := segment.pread(CHUNK_BYTES, position):
        if any(chunk):
            backup.pwritev([chunk], position - offset_bytes)
        position += len(chunk)


def cut_tail(files: Files, path: Path, offset_bytes: int, size_bytes: int) -> None:
    """Cut a segment at the offset and make it blank again up to its size, durably."""
    file = files.open(path, writable=True)
    try:
        file.truncate(offset_bytes)
        file.preallocate(size_bytes)
        file.fsync()
    finally:
        file.close()


def rewrite_batch(
    files: Files, metadata: Metadata, last: Segment, start: BatchStart, seed: int, segment_size_bytes: int, spare: Spare
) -> NewSegment:
    """Write the batch [start, last.end_bytes) of the last segment again, into a new one; then seal the old one before it."""
    before = Chain(seed=seed, offset_bytes=start.offset_bytes, batch=start.batch - 1, batch_start_bytes=0, previous_crc=start.previous_crc)
    header = SegmentHeader(
        metadata=metadata,
        sequence=last.sequence + 1,
        previous_end_bytes=start.offset_bytes,
        first_index=start.first_index,
        previous_term=start.previous_term,
        marker=start.marker,
        hard_state=start.hard_state,
    )
    old = files.open(last.path, writable=False)
    try:

        def fill(file: File, chain: Chain) -> None:
            _reframe(ChunkedSource(old), replace(before), last.end_bytes, file, chain)

        new = create_segment(
            files,
            last.path.parent,
            header,
            batch=start.batch,
            previous_crc=start.previous_crc,
            size_bytes=segment_size_bytes,
            spare=spare,
            content_bytes=last.end_bytes - start.offset_bytes,
            fill=fill,
        )
    finally:
        old.close()
    seal_before = Chain(
        seed=seed, offset_bytes=start.offset_bytes, batch=start.batch - 1, batch_start_bytes=0, previous_crc=start.previous_crc
    )
    last.size_bytes = seal(files, last.path, seal_before)
    last.end_bytes = start.offset_bytes
    return new


def _reframe(source: ChunkedSource, chain: Chain, end_bytes: int, target: File, new_chain: Chain) -> None:
    """Copy the content records in [chain, end) behind the new chain, one write each."""
    while chain.offset_bytes < end_bytes:
        offset = chain.offset_bytes
        record = read_record(source, chain)
        if not isinstance(record, Record):
            raise DamagedError(source.path, offset, Index(0), "a record changed while it was read")
        if record.type in CONTENT_TYPES:
            position = new_chain.offset_bytes
            header = encode_record(new_chain, RecordType(record.type), record.payload)
            target.pwritev([header, record.payload, padding(len(record.payload))], position)
