"""Damage at the end of the log: what a crash leaves is repaired, what it can't leave is refused.

"kept": the store is there; "lost": it is gone, and the WAL still reaches back to the first entry.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.durability.damage.member import (
    Acked,
    Directory,
    assert_boots,
    assert_refused,
    entry_index,
    hard_state,
    open_log,
    overwrite,
    put_entry,
    truncate,
    value_of,
)
from wal.codec import entry_prefix
from wal.record import RecordType

both = pytest.mark.parametrize("store", ["kept", "lost"])


def without_last(directory: Directory, count: int = 1) -> Acked:
    keys = sorted(directory.acked)[: len(directory.acked) - count]
    return {key: directory.acked[key] for key in keys}


@both
@pytest.mark.parametrize("keep_bytes", [1, 31, 33, 3000])
async def test_cut_inside_the_last_record(take, states, store, keep_bytes):
    """The entry that is cut was acknowledged here (no crash does that to it): only what covers it can tell."""
    directory = take(states.behind, store)
    record = directory.entries(directory.newest)[-1]
    assert entry_index(record) == directory.last_index
    truncate(directory.newest, record.offset_bytes + keep_bytes)
    lines = await assert_boots(directory, without_last(directory))
    assert any("repaired the end of the WAL" in line and f"offset {record.offset_bytes}" in line for line in lines)
    assert len(list(directory.wal.glob(f"*.{record.offset_bytes}.torn"))) == 1


@pytest.mark.parametrize("keep_bytes", [0, 1, 31, 33, 3000])
async def test_cut_inside_the_last_record_that_the_applied_index_covers(take, states, keep_bytes):
    directory = take(states.covered)
    record = directory.entries(directory.newest)[-1]
    truncate(directory.newest, record.offset_bytes + keep_bytes)
    last = directory.last_index
    await assert_refused(
        directory,
        directory.newest,
        f"offset {record.offset_bytes} with index {last - 1}",
        f"index {last} is known",
        "replace-a-dead-member",
    )


def sectors_of(offset_bytes: int, length_bytes: int) -> list[tuple[int, int]]:
    """The half-open pieces [begin, end) that the 512-byte sectors cut [offset, offset + length) into."""
    edges = [offset_bytes, *range(offset_bytes // 512 * 512 + 512, offset_bytes + length_bytes, 512), offset_bytes + length_bytes]
    return list(pairwise(edges))


@both
@pytest.mark.parametrize("lost", ["all", "first", "second", "last", "all but the first", "all but the last"])
async def test_torn_write_that_nobody_was_told_of(take, states, store, lost):
    """What a power cut does leave: one more save of which some sectors never got to the disk. Everything acknowledged is there."""
    directory = take(states.kept(store), store)
    entry = put_entry(directory.last_index + 1, directory.term, 500)
    begin = directory.append_record(RecordType.ENTRY, entry_prefix(entry) + entry.data)
    pieces = sectors_of(begin, directory.end_bytes() - begin)
    chosen = {
        "all": pieces,
        "first": pieces[:1],
        "second": pieces[1:2],
        "last": pieces[-1:],
        "all but the first": pieces[1:],
        "all but the last": pieces[:-1],
    }[lost]
    for first, end in chosen:
        overwrite(directory.newest, first, bytes(end - first))
    await assert_boots(directory)


@both
async def test_cut_exactly_at_a_records_end(take, states, store):
    directory = take(states.kept(store), store)
    truncate(directory.newest, directory.end_bytes())
    await assert_boots(directory)


@both
async def test_zero_filled_tail(take, states, store):
    directory = take(states.kept(store), store)
    truncate(directory.newest, 1 << 20)
    await assert_boots(directory)


@both
@pytest.mark.parametrize("distance_bytes", [0, 1, 8, 40])
async def test_any_other_tail(take, states, store, distance_bytes):
    directory = take(states.kept(store), store)
    overwrite(directory.newest, directory.end_bytes() + distance_bytes, b"\xff" * 600)
    await assert_refused(
        directory, f"{directory.newest}: damaged at offset {directory.end_bytes()}, behind index {directory.last_index}", "replace-a-dead"
    )


@both
async def test_garbage_behind_a_blank_sector_is_a_torn_write_to_any_reader(take, states, store):
    """The first sector of one more save never got to the disk, the others did: nothing acknowledged is in it; a copy is kept."""
    directory = take(states.kept(store), store)
    end = directory.end_bytes()
    overwrite(directory.newest, end // 512 * 512 + 512, b"\xff" * 600)
    await assert_boots(directory)
    assert len(list(directory.wal.glob(f"*.{end}.torn"))) == 1


@both
async def test_indexes_rewritten_with_a_higher_term_above_commit(take, states, store):
    directory = take(states.kept(store), store)
    last, term = directory.last_index, directory.term
    wal = open_log(directory)
    wal.save([put_entry(last + 1 + i, term + 1, 600 + i) for i in range(3)], hard_state(term + 1, last), sync=True)
    wal.save([put_entry(last + 2 + i, term + 2, 700 + i) for i in range(3)], hard_state(term + 2, last), sync=True)
    wal.close()
    revision = max(revision for _, revision in directory.acked.values())
    survivors = {b"k%04d" % number: number for number in (600, 700, 701, 702)}
    expected = {key: (value_of(number), revision + 1 + i) for i, (key, number) in enumerate(survivors.items())}
    await assert_boots(directory, {**directory.acked, **expected})


@both
async def test_rewritten_index_at_or_below_commit(take, states, store):
    directory = take(states.kept(store), store)
    rewritten = put_entry(directory.last_index - 5, directory.term + 1, 700)
    offset = directory.append_record(RecordType.ENTRY, entry_prefix(rewritten) + rewritten.data)
    await assert_refused(directory, f"damaged at offset {offset}", f"entry {directory.last_index - 5}", "overwrites a committed one")
