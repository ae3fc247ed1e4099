"""One segment: a preallocated file that begins with a preamble and a header record.

    offset  bytes  field
    0       8      magic: "KVWALSEG"
    8       4      format version, little-endian: 1
    12      4      salt, random for each segment
    16      ..     the header record (type 1; codec.SegmentHeader), then records up to the end; blank (zero) behind the last one

The seed of every CRC in the file is the CRC32C of the 16 bytes of the preamble, which is a bijection of the salt.

Name: `<sequence>-<first index>.wal`, both as 16 hexadecimal digits; the header repeats both. Sequences have no gaps.

Rules: a segment appears whole or not at all: it is written under a temporary name (`.tmp`), synced, renamed, and the directory is synced.
So the first batch of a file was durable before the file had its name. When the next segment is durable the old one is sealed: a SEAL
record at its end, for which every segment keeps room, and the rest cut off, synced; a sealed newest segment therefore means that a
segment is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import google_crc32c

from raft.types import Index
from wal.codec import MAX_INDEX, MAX_SEQUENCE, PayloadError, SegmentHeader, decode_segment_header, encode_segment_header
from wal.errors import DamagedError, FormatVersionError, SegmentError, WalExistsError, WalNoSpaceError
from wal.files import File, Files
from wal.record import (
    HEADER_BYTES,
    BadRecord,
    Chain,
    Record,
    RecordType,
    encode_record,
    header_is_valid,
    padding,
    read_record,
    record_bytes,
)
from wal.spare import HELD_ERRNOS, Spare, allocate

MAGIC: Final = b"KVWALSEG"
FORMAT_VERSION: Final = 1
PREAMBLE_BYTES: Final = 16
SUFFIX: Final = ".wal"
TEMPORARY_SUFFIX: Final = ".tmp"
MIN_SEGMENT_BYTES: Final = 4 * 1024
MAX_SEGMENT_BYTES: Final = 1024 * 1024 * 1024
NO_INDEX: Final = Index(0)
SEAL_BYTES: Final = record_bytes(0)
CHUNK_BYTES: Final = 256 * 1024
_ZERO_CHUNK: Final = bytes(CHUNK_BYTES)


class ChunkedSource:
    """`record.Source` over a file: reads ahead by one chunk of 256 KiB, so that small records cost no system call each.

    Memory: one chunk, and the record asked for.
    """

    __slots__ = ("_chunk", "_chunk_start_bytes", "_file", "size_bytes")

    def __init__(self, file: File) -> None:
        self._file = file
        self._chunk = b""
        self._chunk_start_bytes = 0
        self.size_bytes = file.size()

    @property
    def path(self) -> Path:
        """The file, for messages."""
        return self._file.path

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """The bytes [offset, offset + length), fewer only at the end of the file."""
        start = offset_bytes - self._chunk_start_bytes
        if start >= 0 and start + length_bytes <= len(self._chunk):
            return self._chunk[start : start + length_bytes]
        if length_bytes > CHUNK_BYTES:
            return self._file.pread(length_bytes, offset_bytes)
        self._chunk = self._file.pread(CHUNK_BYTES, offset_bytes)
        self._chunk_start_bytes = offset_bytes
        return self._chunk[:length_bytes]

    def peek(self, offset_bytes: int, length_bytes: int) -> bytes:
        """As `read`, but past the chunk's end it asks the file and leaves the chunk as it is."""
        start = offset_bytes - self._chunk_start_bytes
        if start >= 0 and start + length_bytes <= len(self._chunk):
            return self._chunk[start : start + length_bytes]
        return self._file.pread(length_bytes, offset_bytes)

    def first_nonzero(self, offset_bytes: int) -> int | None:
        """The offset of the first byte at or behind `offset_bytes` that is not zero; None if there is none."""
        while offset_bytes < self.size_bytes:
            chunk = self._file.pread(CHUNK_BYTES, offset_bytes)
            if not chunk:
                return None
            if chunk != _ZERO_CHUNK[: len(chunk)]:
                return offset_bytes + len(chunk) - len(chunk.lstrip(b"\0"))
            offset_bytes += len(chunk)
        return None


@dataclass(slots=True, kw_only=True)
class Segment:
    """What is known of one segment file. Mutable: the writer and the reader keep `max_index` and `end_bytes` up to date.

    `max_index` is the highest index among the file's entries that still count (0 if none): it may be released through there. `end_bytes`
    is the offset behind the last record, `size_bytes` what the file takes on disk.
    """

    path: Path
    sequence: int
    first_index: Index
    header_batch: int
    max_index: Index = NO_INDEX
    end_bytes: int = 0
    size_bytes: int = 0


def segment_name(sequence: int, first_index: Index) -> str:
    """The name of a segment file."""
    return f"{sequence:016x}-{first_index:016x}{SUFFIX}"


def parse_segment_name(name: str) -> tuple[int, Index] | None:
    """Sequence and first index from a file's name; None if it is not exactly such a name."""
    sequence_text, dash, index_text = name.removesuffix(SUFFIX).partition("-")
    try:
        sequence, first_index = int(sequence_text, 16), int(index_text, 16)
    except ValueError:
        return None
    if not dash or sequence > MAX_SEQUENCE or first_index > MAX_INDEX or name != segment_name(sequence, Index(first_index)):
        return None
    return sequence, Index(first_index)


def start_segment(salt: int, header: SegmentHeader, batch: int, previous_crc: int) -> tuple[bytes, Chain]:
    """The first bytes of a new segment (preamble and header record), and the chain behind them."""
    preamble = MAGIC + FORMAT_VERSION.to_bytes(4, "little") + salt.to_bytes(4, "little")
    chain = Chain(
        seed=google_crc32c.value(preamble),
        offset_bytes=PREAMBLE_BYTES,
        batch=batch,
        batch_start_bytes=PREAMBLE_BYTES,
        previous_crc=previous_crc,
    )
    payload = encode_segment_header(header)
    record = encode_record(chain, RecordType.HEADER, payload)
    return preamble + record + payload + padding(len(payload)), chain


@dataclass(slots=True, kw_only=True)
class NewSegment:
    """A segment that has just become durable: its open file (owned by the caller), its account, and the chain behind its content."""

    file: File
    segment: Segment
    chain: Chain


def create_segment(
    files: Files,
    directory: Path,
    header: SegmentHeader,
    *,
    batch: int,
    previous_crc: int,
    size_bytes: int,
    spare: Spare | None = None,
    content_bytes: int = 0,
    fill: Callable[[File, Chain], None] | None = None,
) -> NewSegment:
    """Write a segment under a temporary name, sync it, give it its name and sync the directory.

    `fill` writes the first records (`content_bytes` of them) in the header's own batch. The file is longer than `size_bytes` if they and
    a SEAL need it. Raises WalNoSpaceError when the file can't be allocated or named for want of space: nothing was begun then. Any other
    OSError is the caller's.
    """
    path = directory / segment_name(header.sequence, header.first_index)
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with _no_space(path):  # a list needs a descriptor, too
        left_behind = temporary.name in files.names(directory)
    if left_behind:
        files.remove(temporary)
    head, chain = start_segment(files.random_u32(), header, batch, previous_crc)
    size_bytes = max(size_bytes, len(head) + content_bytes + SEAL_BYTES)
    with _no_space(path):
        file = spare.allocate(temporary, size_bytes) if spare is not None else allocate(files, temporary, size_bytes)
    try:
        file.pwritev([head], 0)
        if fill is not None:
            fill(file, chain)
        file.fsync()
        with _no_space(path):
            files.rename(temporary, path)
        files.fsync_dir(directory)
    except WalNoSpaceError:
        file.close()
        files.remove(temporary)
        raise
    except BaseException:
        file.close()
        raise
    segment = Segment(
        path=path,
        sequence=header.sequence,
        first_index=header.first_index,
        header_batch=batch,
        end_bytes=chain.offset_bytes,
        size_bytes=size_bytes,
    )
    return NewSegment(file=file, segment=segment, chain=chain)


def create_directory(files: Files, directory: Path, header: SegmentHeader, segment_size_bytes: int) -> NewSegment:
    """Make the directory with its first segment, under a temporary name first. Raises WalExistsError if it holds anything."""
    if files.is_directory(directory) and files.names(directory):
        raise WalExistsError(directory)
    temporary = directory.with_name(directory.name + TEMPORARY_SUFFIX)
    if files.is_directory(temporary):
        for name in files.names(temporary):
            files.remove(temporary / name)
        files.remove_directory(temporary)
    files.make_directory(temporary)
    new = create_segment(files, temporary, header, batch=1, previous_crc=0, size_bytes=segment_size_bytes)
    new.segment.path = directory / new.segment.path.name
    try:
        files.rename(temporary, directory)
        files.fsync_dir(directory.parent)
    except BaseException:
        new.file.close()
        raise
    return new


@contextmanager
def _no_space(path: Path) -> Iterator[None]:
    """Tell want of space, or of descriptors, from other failures, at a step that changes nothing when it fails."""
    try:
        yield
    except OSError as error:
        if error.errno in HELD_ERRNOS:
            raise WalNoSpaceError(path, error) from error
        raise


def supersede(segments: list[Segment], index: Index) -> None:
    """Note that entries above `index` in these segments no longer count: overwritten, or behind a marker."""
    for segment in segments:
        if segment.max_index > index:
            segment.max_index = index


def read_header(source: ChunkedSource) -> tuple[SegmentHeader, Record, Chain, int]:
    """A segment's header, its record, the chain behind it, and the previous segment's last CRC.

    Raises FormatVersionError, SegmentError (an empty or foreign file) or DamagedError; never repairs: a segment gets its name only with a
    durable header, so a bad one is damage. It is told at offset 0: a bit of the preamble's salt shows in the record's checksum only.
    """
    path = source.path
    preamble = source.read(0, PREAMBLE_BYTES)
    if source.size_bytes == 0:
        raise SegmentError(path, "the segment file is empty")
    if len(preamble) < PREAMBLE_BYTES or preamble[:8] != MAGIC:
        raise SegmentError(path, "the file does not begin as a WAL segment", 0)
    before = _index_before(path)
    version = int.from_bytes(preamble[8:12], "little")
    if version != FORMAT_VERSION:
        raise FormatVersionError(path, version)
    seed = google_crc32c.value(preamble)
    raw = source.read(PREAMBLE_BYTES, HEADER_BYTES)
    if not header_is_valid(seed, raw):
        raise DamagedError(path, 0, before, "the segment's header record does not match its checksum")
    batch, previous_crc = int.from_bytes(raw[8:16], "little"), int.from_bytes(raw[20:24], "little")
    chain = Chain(seed=seed, offset_bytes=PREAMBLE_BYTES, batch=batch - 1, batch_start_bytes=0, previous_crc=previous_crc)
    record = read_record(source, chain)
    if record is None or isinstance(record, BadRecord):
        reason = "it is blank" if record is None else record.reason
        raise DamagedError(path, 0, before, f"the segment's header record is bad: {reason}")
    if record.type != RecordType.HEADER:
        raise DamagedError(path, 0, before, f"the segment begins with a record of type {record.type}")
    try:
        header = decode_segment_header(record.payload)
    except PayloadError as error:
        raise DamagedError(path, 0, before, f"the segment's header record: {error}") from error
    return header, record, chain, previous_crc


def _index_before(path: Path) -> Index:
    """The index before the segment's first one, as its name has it; 0 if the name says nothing."""
    parsed = parse_segment_name(path.name)
    return NO_INDEX if parsed is None or not parsed[1] else Index(parsed[1] - 1)


def seal(files: Files, path: Path, chain: Chain) -> int:
    """Write a SEAL at a closed segment's end, cut the file behind it, sync; return its size. The chain stands behind its last record.

    The next segment must be durable already. Sealing again does no harm. Written before the cut, the record stands where space is reserved:
    on a full disk a block that the cut gave back could be gone.
    """
    file = files.open(path, writable=True)
    try:
        end_bytes = chain.offset_bytes
        sealing = Chain(
            seed=chain.seed, offset_bytes=end_bytes, batch=chain.batch + 1, batch_start_bytes=end_bytes, previous_crc=chain.previous_crc
        )
        file.pwritev([encode_record(sealing, RecordType.SEAL, b"")], end_bytes)
        file.truncate(sealing.offset_bytes)
        file.fsync()
        return sealing.offset_bytes
    finally:
        file.close()


def is_sealed(source: ChunkedSource, chain: Chain) -> bool:
    """Whether a closed segment ends with its SEAL record, directly behind the chain."""
    if source.size_bytes != chain.offset_bytes + SEAL_BYTES:
        return False
    probe = Chain(
        seed=chain.seed,
        offset_bytes=chain.offset_bytes,
        batch=chain.batch,
        batch_start_bytes=chain.batch_start_bytes,
        previous_crc=chain.previous_crc,
    )
    record = read_record(source, probe)
    return isinstance(record, Record) and record.type == RecordType.SEAL
