"""One record on disk: how its bytes are laid out, framed and checked.

All integers are little-endian. A record starts at a multiple of 8, so that no field of its header that is 8 bytes or shorter is ever torn
across two 512-byte sectors.

    offset  bytes  field
    0       4      length of the payload in bytes, 0 .. 64 MiB
    4       1      type (table in codec.py)
    5       3      mark: a6 57 52
    8       8      batch: the sync epoch, counted from 1 through the whole log
    16      4      batch start: the offset in this file of the batch's first record; a batch never spans two files
    20      4      CRC of the previous record (the field at 28 there); in a file's first record: of the last one in the file before
                   (0 if there is none)
    24      4      header CRC: CRC32C of bytes 0 .. 23, seeded with the segment's seed
    28      4      CRC: the header CRC continued over the payload
    32      n      payload
    32+n    0..7   zeros up to a multiple of 8

Purpose: one place that knows these bytes. `encode_record` writes them, `read_record` reads them and says in which way they are wrong.

Rules: the length is believed only behind a valid header CRC, and is bounded besides; so a flipped length never leads the reader astray.
The seed is the segment's own (segment.py): bytes copied from another segment, or a value made to look like a record, do not validate here.
`batch start` lets one valid record anywhere prove whether a bad record before it belongs to the same batch.

Source: durability.md. The header CRC and the batch start are additions to the fields named there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, Protocol

import google_crc32c

ALIGNMENT_BYTES: Final = 8
HEADER_BYTES: Final = 32
MAX_PAYLOAD_BYTES: Final = 64 * 1024 * 1024
MARK: Final = b"\xa6WR"
MARK_OFFSET: Final = 5
MAX_BATCH: Final = 2**63 - 1

_FIELDS: Final = struct.Struct("<IB3sQII")
_CHECKS: Final = struct.Struct("<II")
_HEADER: Final = struct.Struct("<IB3sQIIII")
_PADDINGS: Final = tuple(bytes(-count % ALIGNMENT_BYTES) for count in range(ALIGNMENT_BYTES))
_BLANK_HEADER: Final = bytes(HEADER_BYTES)


class RecordType(IntEnum):
    """What a record's payload is."""

    HEADER = 1
    ENTRY = 2
    HARD_STATE = 3
    MARKER = 4
    PROOF = 5
    SEAL = 6


CONTENT_TYPES: Final = frozenset({RecordType.ENTRY, RecordType.HARD_STATE, RecordType.MARKER})


class Source(Protocol):
    """Where `read_record` gets bytes from."""

    @property
    def path(self) -> Path:
        """The file, for messages."""

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """The bytes [offset, offset + length), fewer only at the end."""


@dataclass(slots=True, kw_only=True)
class Chain:
    """The place behind a record: what the next record must refer to. Mutable; owned by one reader or writer."""

    seed: int
    offset_bytes: int
    batch: int
    batch_start_bytes: int
    previous_crc: int


@dataclass(slots=True)
class Record:
    """One valid record."""

    type: int
    offset_bytes: int
    batch: int
    batch_start_bytes: int
    payload: bytes
    crc: int

    @property
    def end_bytes(self) -> int:
        """The offset behind the record and its padding."""
        return self.offset_bytes + record_bytes(len(self.payload))


@dataclass(slots=True, kw_only=True)
class BadRecord:
    """What stands where a record should be, and is none.

    `known_bytes` is how much of the record's extent is certain: all of it if the header is valid, else only the header. `torn_possible`
    is false if a crash can not have left this (a valid header that contradicts the chain, say).
    """

    offset_bytes: int
    known_bytes: int
    reason: str
    torn_possible: bool = True


def padding(length_bytes: int) -> bytes:
    """The zeros that bring a length up to a multiple of 8."""
    return _PADDINGS[length_bytes % ALIGNMENT_BYTES]


def record_bytes(payload_bytes: int) -> int:
    """How much of the file a record with such a payload takes."""
    return HEADER_BYTES + payload_bytes + (-payload_bytes % ALIGNMENT_BYTES)


def encode_record(chain: Chain, record_type: RecordType, payload: bytes, tail: bytes = b"") -> bytes:
    """The header of a record whose payload is `payload + tail`; advances the chain over the whole record.

    The tail is there so that a large value is checked and written without being copied. The caller writes header, payload, tail, padding.
    """
    length_bytes = len(payload) + len(tail)
    fields = _FIELDS.pack(length_bytes, record_type, MARK, chain.batch, chain.batch_start_bytes, chain.previous_crc)
    header_crc = google_crc32c.extend(chain.seed, fields)
    crc = google_crc32c.extend(header_crc, payload)
    if tail:
        crc = google_crc32c.extend(crc, tail)
    chain.offset_bytes += record_bytes(length_bytes)
    chain.previous_crc = crc
    return fields + _CHECKS.pack(header_crc, crc)


def header_is_valid(seed: int, header: bytes) -> bool:
    """Whether 32 bytes are a record header of the segment with this seed."""
    return len(header) == HEADER_BYTES and google_crc32c.extend(seed, header[:24]) == int.from_bytes(header[24:28], "little")


def header_batch_start(header: bytes) -> int:
    """The batch start field of a valid header."""
    return int.from_bytes(header[16:20], "little")


def read_record(source: Source, chain: Chain) -> Record | BadRecord | None:
    """The record at the chain's place (which then moves behind it), what is wrong there, or None where the file ends or is blank.

    None promises only that the 32 bytes here are zero or missing; whether the rest of the file is blank too is the caller's to check.
    """
    offset = chain.offset_bytes
    header = source.read(offset, HEADER_BYTES)
    if header == _BLANK_HEADER:
        return None
    if len(header) < HEADER_BYTES:
        if not any(header):
            return None
        return BadRecord(offset_bytes=offset, known_bytes=HEADER_BYTES, reason="the file ends inside a record's header")
    length, record_type, mark, batch, batch_start, previous_crc, header_crc, crc = _HEADER.unpack(header)
    if google_crc32c.extend(chain.seed, header[:24]) != header_crc:
        return BadRecord(offset_bytes=offset, known_bytes=HEADER_BYTES, reason="a record header does not match its checksum")
    reason = _header_fault(chain, length, mark, batch, batch_start, previous_crc)
    if reason is not None:
        return BadRecord(offset_bytes=offset, known_bytes=HEADER_BYTES, reason=reason, torn_possible=False)
    whole_bytes = record_bytes(length)
    if offset + whole_bytes > source.size_bytes:
        return BadRecord(offset_bytes=offset, known_bytes=whole_bytes, reason="the file ends inside a record")
    payload = source.read(offset + HEADER_BYTES, length)
    if google_crc32c.extend(header_crc, payload) != crc:
        return BadRecord(offset_bytes=offset, known_bytes=whole_bytes, reason="a record's payload does not match its checksum")
    pad_bytes = whole_bytes - HEADER_BYTES - length
    if pad_bytes and any(source.read(offset + HEADER_BYTES + length, pad_bytes)):
        return BadRecord(offset_bytes=offset, known_bytes=whole_bytes, reason="the bytes behind a record are not zero", torn_possible=False)
    chain.offset_bytes = offset + whole_bytes
    chain.batch = batch
    chain.batch_start_bytes = batch_start
    chain.previous_crc = crc
    return Record(record_type, offset, batch, batch_start, payload, crc)


def _header_fault(chain: Chain, length: int, mark: bytes, batch: int, batch_start: int, previous_crc: int) -> str | None:
    """Why a header whose checksum is right can still not follow in this chain; None if it can."""
    if mark != MARK:
        return "a record header has the wrong mark"
    if length > MAX_PAYLOAD_BYTES:
        return f"a record claims {length} bytes, more than {MAX_PAYLOAD_BYTES}"
    if previous_crc != chain.previous_crc:
        return "a record does not follow the one before it"
    opens_batch = batch == chain.batch + 1 and batch_start == chain.offset_bytes
    joins_batch = batch == chain.batch and batch_start == chain.batch_start_bytes
    if batch > MAX_BATCH or not (opens_batch or joins_batch):
        return f"batch {batch} (from offset {batch_start}) can not follow batch {chain.batch}"
    return None
