"""Anything at all in a segment: the reader answers with a log or with a WalError, and with nothing else.

Two ways of making nonsense: bytes changed at will, which checksums notice; and records that are framed and checksummed as they should be,
of any type, batch and payload, which only the rules behind the checksums notice.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from raft.types import Index, Term
from wal import Marker, Wal, WalError
from wal.codec import encode_hard_state, encode_marker, entry_prefix
from wal.record import Chain, RecordType, encode_record, padding, record_bytes
from wal.segment import ChunkedSource, read_header

DIRECTORY = "/wal"


def make(kit):
    """A small log on a disk in memory; the disk, and the path of its only segment."""
    disk = kit.SimDisk(7)
    directory = kit.Path(DIRECTORY)
    wal = Wal.create(directory, kit.METADATA, files=disk, segment_size_bytes=4096)
    wal.save(kit.entries(1, 4, size=60), kit.state(commit=2), sync=True)
    wal.save(kit.entries(5, 8, size=100), kit.state(commit=5), sync=True)
    end = wal.segments()[0].used_bytes
    return disk, wal.segments()[0].path, end


def contents(disk, path):
    return disk.find(path)


def opens(kit, disk, applied):
    """Open the log; what the refusal says, None if it opened."""
    sink = kit.Collector()
    options = {"applied_index": Index(applied), "files": disk, "segment_size_bytes": 4096}
    try:
        wal, recovered = Wal.open(kit.Path(DIRECTORY), kit.METADATA, sink, **options)
    except WalError as error:
        return str(error)
    assert recovered.last_index >= max(applied, recovered.hard_state.commit)
    entries = sink.within(recovered)
    assert [entry.index for entry in entries] == list(range(recovered.first_index, recovered.last_index + 1))
    wal.close()
    return None


def check(kit, disk, applied):
    """The log opens and keeps the rules, or the refusal names the file."""
    refusal = opens(kit, disk, applied)
    assert refusal is None or refusal.startswith(DIRECTORY)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "write", "blank", "copy", "cut", "grow"]),
        st.integers(0, 4095),
        st.integers(0, 4095),
        st.binary(max_size=40),
    ),
    min_size=1,
    max_size=6,
)


def edit(data, edits):
    for kind, place, other, piece in edits:
        place %= max(1, len(data))
        if kind == "flip":
            data[place : place + 1] = bytes([(data[place] if data else 0) ^ (1 << other % 8)])
        elif kind == "write":
            data[place : place + len(piece)] = piece
        elif kind == "blank":
            data[place : place + other % 600] = bytes(min(other % 600, len(data) - place))
        elif kind == "copy":
            source = other % max(1, len(data)) // 8 * 8
            stretch = data[source : source + 200]
            data[place // 8 * 8 : place // 8 * 8 + len(stretch)] = stretch
        elif kind == "cut":
            del data[place:]
        else:
            data += piece


@settings(max_examples=100, deadline=None)
@given(edits=EDITS, applied=st.integers(0, 9))
def test_changed_bytes_give_a_log_or_a_wal_error(kit, edits, applied):
    disk, path, _ = make(kit)
    data = bytearray(contents(disk, path).content)
    edit(data, edits)
    contents(disk, path).content = data
    check(kit, disk, applied)


NUMBERS = st.one_of(st.integers(0, 20), st.sampled_from([2**32, 2**63 - 1, 2**63, 2**64 - 1]))
PAYLOADS = st.one_of(
    st.binary(max_size=60),
    st.tuples(NUMBERS, NUMBERS, st.integers(0, 4), st.binary(max_size=30)).map(
        lambda each: each[0].to_bytes(8, "little") + each[1].to_bytes(8, "little") + bytes([each[2]]) + bytes(7) + each[3]
    ),
)
RECORDS = st.lists(
    st.tuples(st.integers(0, 8), PAYLOADS, st.integers(-1, 2), st.booleans(), st.booleans()),
    min_size=1,
    max_size=5,
)


@settings(max_examples=250, deadline=None)
@given(records=RECORDS, applied=st.integers(0, 9))
def test_well_checksummed_nonsense_gives_a_log_or_a_wal_error(kit, records, applied):
    disk, path, end = make(kit)
    write_records(disk, path, end, records)
    check(kit, disk, applied)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["entry", "hard state", "marker"]), st.integers(1, 14), st.integers(1, 3), st.integers(0, 14)), max_size=8
    ),
    applied=st.integers(0, 12),
)
def test_any_sequence_of_well_formed_records_gives_a_log_that_keeps_the_rules_or_a_wal_error(kit, steps, applied):
    disk, path, end = make(kit)
    records = []
    for kind, index, term, commit in steps:
        if kind == "entry":
            payload = (RecordType.ENTRY, entry_prefix(kit.entry(index, term)) + b"data")
        elif kind == "hard state":
            payload = (RecordType.HARD_STATE, encode_hard_state(kit.state(term=term, commit=commit)))
        else:
            payload = (RecordType.MARKER, encode_marker(Marker(Index(index), Term(term)), kit.state(term=term, commit=commit)))
        records.append((*payload, 1, True, True))
    write_records(disk, path, end, records)
    check(kit, disk, applied)


def write_records(disk, path, end, records):
    """Put records behind the log's end: (type, payload, batch step, whether the batch start fits, whether the chain does)."""
    file = disk.open(path, writable=True)
    _, _, chain, _ = read_header(ChunkedSource(file))
    data = bytearray(contents(disk, path).content)
    chain = last_chain(data, chain, end)
    for kind, payload, step, fits, follows in records:
        if chain.offset_bytes + record_bytes(len(payload)) > len(data):
            break
        offset = chain.offset_bytes
        chain.batch = max(0, chain.batch + step)
        if step and fits:
            chain.batch_start_bytes = offset
        if not follows:
            chain.previous_crc ^= 1
        framed = encode_record(chain, kind, payload) + payload + padding(len(payload))
        data[offset : offset + len(framed)] = framed
    file.close()
    contents(disk, path).content = data


def last_chain(data, chain, end):
    """The chain behind the last record of a whole segment."""
    offset = chain.offset_bytes
    result = Chain(**{name: getattr(chain, name) for name in ("seed", "offset_bytes", "batch", "batch_start_bytes", "previous_crc")})
    while offset < end:
        length = int.from_bytes(data[offset : offset + 4], "little")
        result.batch = int.from_bytes(data[offset + 8 : offset + 16], "little")
        result.batch_start_bytes = int.from_bytes(data[offset + 16 : offset + 20], "little")
        result.previous_crc = int.from_bytes(data[offset + 28 : offset + 32], "little")
        offset += record_bytes(length)
    result.offset_bytes = offset
    return result
