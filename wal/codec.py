"""What the payload of each record type is.

    type  name        payload
    1     HEADER      msgpack array, see SegmentHeader: the first record of every segment, and nowhere else
    2     ENTRY       0: index (8)   8: term (8)   16: entry type (1)   17: zeros (7)   24: the entry's data, raw to the end
    3     HARD_STATE  msgpack array [term, vote, commit]
    4     MARKER      msgpack array [index, term, hard state's term, vote, commit]: a snapshot was installed; one record, so that a crash
                      can not keep the marker without the commit index that makes it count
    5     PROOF       empty: everything before this record's batch was synced (written by a clean close)
    6     SEAL        empty: the log goes on in the next segment, which was durable before this was written

Rules: an entry's data is never re-encoded. Every number is bounded before it is used: indexes in [0, 2^63), terms in [0, 2^63), ids in
[0, 2^64). A payload that does not decode raises `PayloadError`, whose text says why; the reader adds where.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from raft.types import Entry, EntryType, HardState, Index, NodeId, Term

ENTRY_PREFIX: Final = struct.Struct("<QQB7x")
ENTRY_PREFIX_BYTES: Final = ENTRY_PREFIX.size
MAX_INDEX: Final = 2**63 - 1
MAX_TERM: Final = 2**63 - 1
MAX_ID: Final = 2**64 - 1
MAX_SEQUENCE: Final = 2**63 - 1
MAX_OFFSET: Final = 2**32 - 1
MAX_METADATA_PAYLOAD_BYTES: Final = 1_024
ENTRY_TYPES: Final = {int(entry_type): entry_type for entry_type in EntryType}


class PayloadError(Exception):
    """A payload is not what its type says; internal to this package."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Whose log this is: unsigned 64-bit ids, fixed for the life of a directory."""

    cluster_id: int
    member_id: int


@dataclass(frozen=True, slots=True)
class Marker:
    """A snapshot's position: everything up to `index`, inclusive, is in the snapshot."""

    index: Index
    term: Term


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentHeader:
    """The state of the log where a segment begins, so that releasing all the segments before it loses nothing.

    msgpack array in this order: cluster id, member id, sequence, previous end, first index, previous term, marker index, marker term, hard
    state's term, vote, commit. `previous_end_bytes` is where the segment before this one ends (0 if there is none): what lies behind it
    there was written again here. `first_index` - 1 and `previous_term` are the last position before this segment. Marker index 0 means
    none.
    """

    metadata: Metadata
    sequence: int
    previous_end_bytes: int
    first_index: Index
    previous_term: Term
    marker: Marker | None
    hard_state: HardState


def entry_prefix(entry: Entry) -> bytes:
    """The bytes of an ENTRY payload that stand before the data."""
    return ENTRY_PREFIX.pack(entry.index, entry.term, entry.type)


def decode_entry(payload: bytes) -> Entry:
    """The entry in an ENTRY payload."""
    if len(payload) < ENTRY_PREFIX_BYTES:
        raise PayloadError(f"an entry of {len(payload)} bytes is too short")
    index, term, type_number = ENTRY_PREFIX.unpack_from(payload)
    entry_type = ENTRY_TYPES.get(type_number)
    if entry_type is None:
        raise PayloadError(f"entry type {type_number} is unknown")
    if not 0 < index <= MAX_INDEX:
        raise PayloadError(f"entry index {index} is out of range")
    if not 0 < term <= MAX_TERM:
        raise PayloadError(f"entry term {term} is out of range")
    return Entry(term=term, index=index, type=entry_type, data=payload[ENTRY_PREFIX_BYTES:])


def encode_hard_state(hard_state: HardState) -> bytes:
    """The payload of a HARD_STATE record."""
    return _pack(hard_state.term, hard_state.vote, hard_state.commit)


def decode_hard_state(payload: bytes) -> HardState:
    """The hard state in a HARD_STATE payload."""
    return _hard_state(_unpack(payload, (MAX_TERM, MAX_ID, MAX_INDEX)))


def encode_marker(marker: Marker, hard_state: HardState) -> bytes:
    """The payload of a MARKER record."""
    return _pack(marker.index, marker.term, hard_state.term, hard_state.vote, hard_state.commit)


def decode_marker(payload: bytes) -> tuple[Marker, HardState]:
    """The marker, and the hard state in force with it, in a MARKER payload."""
    numbers = _unpack(payload, (MAX_INDEX, MAX_TERM, MAX_TERM, MAX_ID, MAX_INDEX))
    marker = _marker(numbers[0], numbers[1])
    if marker is None:
        raise PayloadError("a snapshot marker has index 0")
    return marker, _hard_state(numbers[2:])


def encode_segment_header(header: SegmentHeader) -> bytes:
    """The payload of a HEADER record."""
    marker = header.marker or Marker(Index(0), Term(0))
    hard_state = header.hard_state
    return _pack(
        header.metadata.cluster_id,
        header.metadata.member_id,
        header.sequence,
        header.previous_end_bytes,
        header.first_index,
        header.previous_term,
        marker.index,
        marker.term,
        hard_state.term,
        hard_state.vote,
        hard_state.commit,
    )


def decode_segment_header(payload: bytes) -> SegmentHeader:
    """The state in a HEADER payload."""
    limits = (MAX_ID, MAX_ID, MAX_SEQUENCE, MAX_OFFSET, MAX_INDEX, MAX_TERM, MAX_INDEX, MAX_TERM, MAX_TERM, MAX_ID, MAX_INDEX)
    numbers = _unpack(payload, limits)
    if numbers[4] == 0:
        raise PayloadError("the first index is 0")
    return SegmentHeader(
        metadata=Metadata(numbers[0], numbers[1]),
        sequence=numbers[2],
        previous_end_bytes=numbers[3],
        first_index=Index(numbers[4]),
        previous_term=Term(numbers[5]),
        marker=_marker(numbers[6], numbers[7]),
        hard_state=_hard_state(numbers[8:]),
    )


def _pack(*numbers: int) -> bytes:
    # Not packb: its buffer of 256 KiB would be mapped and unmapped for every save.
    packed: bytes = msgpack.Packer(buf_size=MAX_METADATA_PAYLOAD_BYTES).pack(numbers)
    return packed


def _unpack(payload: bytes, limits: tuple[int, ...]) -> list[int]:
    """Exactly as many unsigned integers as there are limits, none above its own."""
    if len(payload) > MAX_METADATA_PAYLOAD_BYTES:
        raise PayloadError(f"{len(payload)} bytes are too many for this type")
    try:
        decoded: Any = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise PayloadError(f"it does not decode ({error})") from error
    if not isinstance(decoded, list) or len(decoded) != len(limits):
        raise PayloadError(f"it is not an array of {len(limits)} numbers")
    for number, limit in zip(decoded, limits, strict=True):
        if type(number) is not int or not 0 <= number <= limit:
            raise PayloadError(f"the number {number!r} is out of range")
    return decoded


def _marker(index: int, term: int) -> Marker | None:
    return Marker(Index(index), Term(term)) if index else None


def _hard_state(numbers: list[int]) -> HardState:
    return HardState(term=Term(numbers[0]), vote=NodeId(numbers[1]), commit=Index(numbers[2]))
