"""Damage where acknowledged entries follow: never taken for a torn tail, always refused with file, offset and index."""

from __future__ import annotations

import pytest

from kvserver.__main__ import run
from tests.durability.damage.member import Directory, assert_boots, assert_refused, entry_index, flip, overwrite
from wal.record import Record, RecordType

both = pytest.mark.parametrize("store", ["kept", "lost"])
anywhere = pytest.mark.parametrize("which", ["first segment", "middle segment", "newest segment"])
PASSED_OVER = 1
"""What a start with the least log window does not read, if the store holds all: neither the first (the term changes), nor recent."""
SEGMENTS = {"first segment": 0, "middle segment": 2, "newest segment": -1}


def chosen(directory: Directory, which: str) -> tuple[object, Record]:
    """A segment, and one of its entries that has others behind it."""
    path = directory.segments[SEGMENTS[which]]
    entries = directory.entries(path)
    return path, entries[len(entries) // 2]


def assert_shown(directory: Directory, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The inspectors tell the damage, and that it depends on the log window whether a start meets it."""
    path, _, what = damage.partition(": ")
    for command in ("wal", "check"):
        assert run([command, str(directory.root)]) == 1
        said = capsys.readouterr().out
        assert path.rpartition("/")[2] in said
        assert what in said
        assert "would refuse to start (with a --log-window-bytes below the default" in said


def place(path: object, record: Record) -> str:
    return f"{path}: damaged at offset {record.offset_bytes}, behind index {entry_index(record) - 1}"


@both
@anywhere
@pytest.mark.parametrize("field_bytes", [0, 4, 8, 16, 24, 32, 1000])
async def test_bit_flip_in_data(take, states, store, which, field_bytes):
    directory = take(states.kept(store), store)
    path, record = chosen(directory, which)
    flip(path, record.offset_bytes + field_bytes, bit=field_bytes % 8)
    await assert_refused(directory, place(path, record), "replace-a-dead-member")


@both
async def test_bit_flip_in_the_last_record(take, states, store):
    """Its values hold no zeros, so it can't be taken for a torn one."""
    directory = take(states.kept(store), store)
    record = directory.entries(directory.newest)[-1]
    flip(directory.newest, record.offset_bytes + 500, bit=3)
    await assert_refused(directory, place(directory.newest, record))


@both
@anywhere
@pytest.mark.parametrize("offset_bytes", [0, 9, 13, 36])
async def test_bit_flip_in_a_segments_header(take, states, store, which, offset_bytes):
    directory = take(states.kept(store), store)
    path = directory.segments[SEGMENTS[which]]
    flip(path, offset_bytes, bit=2)
    await assert_refused(directory, path)


@both
@anywhere
async def test_high_bit_of_a_length_in_the_middle(take, states, store, which):
    directory = take(states.kept(store), store)
    path, record = chosen(directory, which)
    flip(path, record.offset_bytes + 3, bit=7)
    await assert_refused(directory, place(path, record))


@both
@anywhere
async def test_length_zeroed_in_the_middle(take, states, store, which):
    directory = take(states.kept(store), store)
    path, record = chosen(directory, which)
    overwrite(path, record.offset_bytes, bytes(4))
    await assert_refused(directory, place(path, record))


@both
@anywhere
async def test_sector_zeroed_in_the_middle(take, states, store, which):
    directory = take(states.kept(store), store)
    path, record = chosen(directory, which)
    overwrite(path, record.offset_bytes // 512 * 512 + 1024, bytes(512))
    await assert_refused(directory, place(path, record))


@both
@anywhere
async def test_page_zeroed_in_the_middle(take, states, store, which):
    directory = take(states.kept(store), store)
    path, record = chosen(directory, which)
    begin = record.offset_bytes // 4096 * 4096
    overwrite(path, begin, bytes(4096))
    await assert_refused(directory, f"{path}: damaged at offset", "behind index")


@both
@pytest.mark.parametrize("field_bytes", [0, 24, 1000])
async def test_bit_flip_in_a_segment_that_is_only_retained(take, states, store, field_bytes, capsys):
    directory = take(states.kept(store), store).retaining()
    path = directory.segments[PASSED_OVER]
    record = directory.entries(path)[10]
    flip(path, record.offset_bytes + field_bytes, bit=field_bytes % 8)
    if store == "lost":
        await assert_refused(directory, place(path, record), "replace-a-dead-member")
    else:
        assert_shown(directory, place(path, record), capsys)
        await assert_boots(directory)


@both
@pytest.mark.parametrize("what", ["high bit of a length", "length zeroed", "sector zeroed"])
async def test_bytes_lost_in_a_segment_that_is_only_retained(take, states, store, what, capsys):
    directory = take(states.kept(store), store).retaining()
    path = directory.segments[PASSED_OVER]
    record = directory.entries(path)[10]
    if what == "high bit of a length":
        flip(path, record.offset_bytes + 3, bit=7)
    elif what == "length zeroed":
        overwrite(path, record.offset_bytes, bytes(4))
    else:
        overwrite(path, record.offset_bytes // 512 * 512 + 1024, bytes(512))
    if store == "lost":
        await assert_refused(directory, place(path, record), "replace-a-dead-member")
    else:
        assert_shown(directory, place(path, record), capsys)
        await assert_boots(directory)


@both
async def test_bit_flip_in_the_header_of_a_segment_that_is_only_retained(take, states, store):
    """Headers are read always: they say where the log stands."""
    directory = take(states.kept(store), store).retaining()
    path = directory.segments[PASSED_OVER]
    flip(path, 36, bit=2)
    await assert_refused(directory, path)


@both
async def test_index_of_two_to_the_63(take, states, store):
    from wal.codec import ENTRY_PREFIX

    directory = take(states.kept(store), store)
    offset = directory.append_record(RecordType.ENTRY, ENTRY_PREFIX.pack(2**63, 1, 0) + b"data")
    await assert_refused(directory, f"damaged at offset {offset}", "entry index 9223372036854775808 is out of range")


@both
@pytest.mark.parametrize("length_bytes", [2**26 + 1, 2**31, 2**32 - 1])
async def test_length_beyond_the_limit(take, states, store, length_bytes):
    """A length of 2^55 has no place in the field (4 bytes); what has is bounded before it is used."""
    directory = take(states.kept(store), store)
    offset = directory.append_record(RecordType.ENTRY, b"x" * 64, length_bytes=length_bytes)
    await assert_refused(directory, f"damaged at offset {offset}", f"claims {length_bytes} bytes")
