"""The bytes of records and payloads: exactly these, and nothing that is not one is taken for one."""

from __future__ import annotations

from contextlib import suppress

import google_crc32c
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.types import Entry, EntryType, HardState, Index, NodeId, Term
from wal import Marker, Metadata
from wal.codec import (
    PayloadError,
    SegmentHeader,
    decode_entry,
    decode_hard_state,
    decode_marker,
    decode_segment_header,
    encode_hard_state,
    encode_marker,
    entry_prefix,
)
from wal.record import BadRecord, Chain, Record, RecordType, encode_record, padding, read_record
from wal.segment import parse_segment_name, segment_name, start_segment


class BytesSource:
    """A `record.Source` over bytes."""

    path = "bytes"

    def __init__(self, data):
        self.data = data
        self.size_bytes = len(data)

    def read(self, offset_bytes, length_bytes):
        return self.data[offset_bytes : offset_bytes + length_bytes]


def chain(**changes):
    return Chain(**({"seed": 77, "offset_bytes": 0, "batch": 5, "batch_start_bytes": 0, "previous_crc": 0xABCD} | changes))


def framed(payload, tail=b""):
    return encode_record(chain(), RecordType.ENTRY, payload, tail) + payload + tail + padding(len(payload) + len(tail))


def test_record_bytes_are_as_the_table_says():
    data = framed(b"payload")
    fields = bytes.fromhex("0700000002a65752050000000000000000000000cdab0000")
    header_crc = google_crc32c.extend(77, fields)
    crc = google_crc32c.extend(header_crc, b"payload")
    assert data == fields + header_crc.to_bytes(4, "little") + crc.to_bytes(4, "little") + b"payload\0"


def test_checksum_is_crc32c():
    assert google_crc32c.value(b"123456789") == 0xE3069283


def test_segment_begins_as_the_table_says():
    header = SegmentHeader(
        metadata=Metadata(1, 2),
        sequence=3,
        previous_end_bytes=4,
        first_index=Index(5),
        previous_term=Term(6),
        marker=Marker(Index(4), Term(6)),
        hard_state=HardState(term=Term(7), vote=NodeId(8), commit=Index(4)),
    )
    head, behind = start_segment(0x04030201, header, 9, 0x55)
    assert head[:16] == b"KVWALSEG" + b"\1\0\0\0" + b"\1\2\3\4"
    assert behind.seed == google_crc32c.value(head[:16])
    assert head[16:40] == bytes.fromhex("0c00000001a6575209000000000000001000000055000000")
    assert head[48:] == bytes([0x9B, 1, 2, 3, 4, 5, 6, 4, 6, 7, 8, 4]) + bytes(4)
    assert decode_segment_header(head[48:60]) == header


def test_entry_bytes_are_as_the_table_says():
    entry = Entry(index=Index(0x0102), term=Term(3), type=EntryType.CONF_CHANGE_V2, data=b"data")
    payload = entry_prefix(entry) + entry.data
    assert payload == bytes.fromhex("020100000000000003000000000000000200000000000000") + b"data"
    assert decode_entry(payload) == entry


@given(payload=st.binary(max_size=100), tail=st.binary(max_size=100))
def test_record_comes_back_and_the_chain_follows(payload, tail):
    data = framed(payload, tail)
    reading, writing = chain(), chain()
    encode_record(writing, RecordType.ENTRY, payload, tail)
    record = read_record(BytesSource(data), reading)
    assert isinstance(record, Record)
    assert (record.payload, record.end_bytes) == (payload + tail, len(data))
    assert reading == writing
    assert len(data) % 8 == 0


def test_every_flipped_bit_of_a_record_is_noticed():
    data = framed(b"some payload")
    for position in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        assert isinstance(read_record(BytesSource(bytes(damaged)), chain()), BadRecord), position


def test_every_cut_of_a_record_is_noticed():
    data = framed(b"some payload")
    for length in range(1, len(data)):
        assert isinstance(read_record(BytesSource(data[:length]), chain()), BadRecord), length


def test_record_of_another_segment_is_none_here():
    assert isinstance(read_record(BytesSource(framed(b"x")), chain(seed=78)), BadRecord)


def test_blank_place_is_no_record():
    assert read_record(BytesSource(b""), chain()) is None
    assert read_record(BytesSource(bytes(7)), chain()) is None
    assert read_record(BytesSource(bytes(4096)), chain()) is None


INDEXES = st.integers(1, 2**63 - 1)
IDS = st.integers(0, 2**64 - 1)


@given(term=INDEXES, vote=IDS, commit=INDEXES, index=INDEXES, marker_term=INDEXES)
def test_state_and_marker_come_back(term, vote, commit, index, marker_term):
    state = HardState(term=Term(term), vote=NodeId(vote), commit=Index(commit))
    marker = Marker(Index(index), Term(marker_term))
    assert decode_hard_state(encode_hard_state(state)) == state
    assert decode_marker(encode_marker(marker, state)) == (marker, state)


@settings(max_examples=300)
@given(
    payload=st.binary(max_size=60)
    | st.binary(max_size=30).map(lambda tail: b"\x9b" + tail)
    | st.binary(max_size=20).map(lambda t: b"\x93" + t)
)
def test_any_bytes_decode_or_raise_payload_error(payload):
    for decode in (decode_entry, decode_hard_state, decode_marker, decode_segment_header):
        with suppress(PayloadError):
            decode(payload)


@pytest.mark.parametrize(
    "payload", [b"\x93\xc3\x00\x00", b"\x93\x01\x00\xff", b"\x92\x01\x00", b"\x93\x01\x00\xcb" + bytes(8), b"\x93\x01\x00\x00x"]
)
def test_odd_metadata_is_refused(payload):
    with pytest.raises(PayloadError):
        decode_hard_state(payload)


def test_segment_names_are_strict():
    name = segment_name(3, Index(0x1F))
    assert name == "0000000000000003-000000000000001f.wal"
    assert parse_segment_name(name) == (3, 0x1F)
    for odd in ("3-1f.wal", name.upper(), name + ".tmp", "x" + name, name.replace("-", "_"), "-0000000000000003-00000000000001f.wal"):
        assert parse_segment_name(odd) is None
