"""Entries read back from the WAL: only right ones, within bounds, shared, at their pace; and what happens when they can't be read."""

from __future__ import annotations

import pytest

from kvserver.node import log_history
from kvserver.node.block_cache import MAX_BLOCKS, BlockCache
from kvserver.node.log_window import ENTRY_OVERHEAD_BYTES
from kvserver.node.term_runs import TermRuns
from raft.errors import UnavailableError
from raft.types import Entry, HardState, Index, Term
from tests.kvserver.node import history_model
from tests.kvserver.node.history_model import Life


@pytest.fixture(autouse=True)
def slow_reads(monkeypatch):
    monkeypatch.setattr(log_history, "RATE_BYTES_PER_S", history_model.RATE_BYTES_PER_S)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_served_is_what_the_log_holds_whatever_happens_meanwhile(seed):
    life = history_model.run(seed)
    assert life.served > 50


def behind(count: int = 100, size_bytes: int = 400, seed: int = 1) -> Life:
    """A log of `count` entries of which memory holds none, all in the WAL."""
    life = Life(seed)
    for first in range(1, count + 1, 5):
        life.save(first, 5, size_bytes)
    life.commit = life.last
    life.wal.save([], HardState(term=Term(1), commit=Index(life.last)), sync=True)
    life.window.compact(Index(life.last))
    return life


def pump(life: Life, member: int) -> int:
    """Feed one member until it has everything; how many reads that took."""
    before = life.metrics.wal_reads.value
    for _ in range(2_000):
        if life.cursors[member] > life.last:
            return life.metrics.wal_reads.value - before
        life.feed(member)
        life.thread.work()
        life.thread.deliver()
        life.clock.advance(0.02)
        life.check()
    raise AssertionError("it does not catch up")


def test_two_members_at_the_same_place_share_what_is_read():
    life = behind()
    reads = 0
    while life.cursors[0] <= life.last:
        before = life.metrics.wal_reads.value
        for member in (0, 1):
            life.feed(member)
        life.thread.work()
        life.thread.deliver()
        life.clock.advance(0.02)
        reads += life.metrics.wal_reads.value - before
    alone = behind()
    assert reads <= pump(alone, 0) + 1


def test_what_raft_asked_for_is_read_once_and_then_it_is_told():
    life = behind()
    for _ in range(5):
        with pytest.raises(UnavailableError):
            life.storage.entries(Index(1), Index(life.last + 1), 10_000)
    assert len(life.thread.waiting) == 1
    life.thread.work()
    assert life.ready == 0
    life.thread.deliver()
    assert life.ready == 1
    assert life.storage.entries(Index(1), Index(life.last + 1), 10_000)[0] == life.entries[1]


def test_one_answer_ends_where_memory_begins():
    life = behind(100)
    life.save(101, 20, 10)
    with pytest.raises(UnavailableError):
        life.storage.entries(Index(99), Index(121), 1 << 20)
    life.thread.work()
    life.thread.deliver()
    assert [entry.index for entry in life.storage.entries(Index(99), Index(121), 1 << 20)] == [99, 100]
    assert [entry.index for entry in life.storage.entries(Index(101), Index(121), 1 << 20)] == list(range(101, 121))


def test_reading_keeps_to_its_rate_and_goes_on_by_itself():
    life = behind(400)
    began_s = life.clock.now_s
    pump(life, 0)
    took_s = life.clock.now_s - began_s
    assert life.metrics.wal_read_bytes.value == 400 * 400
    assert took_s > 400 * 400 / history_model.RATE_BYTES_PER_S - 1


def test_the_wait_for_the_rate_is_a_timer_that_reads_when_it_ends():
    life = behind(100)
    life.feed(0)
    life.thread.work()
    life.thread.deliver()
    life.feed(0, 1 << 20)
    for _ in range(20):
        life.thread.work()
        life.thread.deliver()
    waiting = life.metrics.wal_reads.value
    assert not life.thread.waiting
    life.clock.advance(5.0)
    assert life.thread.waiting, "nobody asked again"
    life.thread.work()
    life.thread.deliver()
    assert life.metrics.wal_reads.value == waiting + 1


def segment_of(life: Life, index: int):
    return [info.path for info in life.wal.segments() if info.first_index <= index][-1]


def test_damage_is_logged_and_the_members_get_a_snapshot_and_nothing_behind_it():
    life = behind()
    path = segment_of(life, 50)
    file = life.disk.open(path, writable=True)
    (byte,) = file.pread(1, 2_000)
    file.pwritev([bytes([byte ^ 4])], 2_000)
    pump(life, 0)
    assert life.snapshots == 1
    assert 1 < life.served < 60
    assert life.metrics.wal_read_failures.value == 1
    lines = life.lines.getvalue()
    assert "the write-ahead log is damaged where another member needs it" in lines
    assert str(path) in lines
    life.save(101, 5, 100)
    assert pump(life, 0) == 0, "what is written later is served from memory as ever"


def test_a_disk_that_can_not_be_read_is_logged_and_the_members_get_a_snapshot(monkeypatch):
    life = behind()

    def fail(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(life.disk, "open", fail)
    pump(life, 0)
    assert (life.snapshots, life.served) == (1, 0)
    assert "can't be read where another member needs it" in life.lines.getvalue()
    assert "Too many open files" in life.lines.getvalue()


def test_a_segment_that_is_released_while_it_is_wanted_moves_the_floor_on():
    life = behind()
    life.feed(0)
    life.wal.release(Index(life.last))
    pump(life, 0)
    assert life.snapshots == 1
    assert not life.lines.getvalue()


def test_a_defect_of_the_reader_is_fatal(monkeypatch):
    life = behind()
    monkeypatch.setattr(life.history, "_reader", None)
    life.feed(0)
    life.thread.work()
    life.thread.deliver()
    assert isinstance(life.fatal[0], AttributeError)


def test_nothing_is_read_after_the_stop():
    life = behind()
    life.feed(0)
    life.history.stop()
    life.thread.work()
    life.thread.deliver()
    assert (life.ready, life.history.cached_bytes) == (0, 0)
    life.feed(0)
    assert not life.thread.waiting


def block(first: int, count: int, size_bytes: int) -> list[Entry]:
    return [Entry(term=Term(1), index=Index(first + n), data=bytes(size_bytes)) for n in range(count)]


def test_the_cache_drops_what_was_used_least_recently():
    cache = BlockCache(10 * (100 + ENTRY_OVERHEAD_BYTES))
    for first in (1, 6):
        cache.put(block(first, 5, 100))
    assert cache.take(Index(3), Index(100), 1 << 20)[0].index == 3
    cache.put(block(11, 5, 100))
    assert (cache.holds(Index(1)), cache.holds(Index(6)), cache.holds(Index(15))) == (True, False, True)
    assert cache.size_bytes == 10 * (100 + ENTRY_OVERHEAD_BYTES)


def test_the_cache_is_bounded_in_number_and_keeps_one_block_that_is_larger_than_its_bound():
    cache = BlockCache(1 << 20)
    for first in range(100):
        cache.put(block(first, 1, 1))
    assert len(cache) == MAX_BLOCKS
    cache.put(block(1_000, 1, 2 << 20))
    assert len(cache) == 1
    assert len(cache.take(Index(1_000), Index(1_001), 10)) == 1
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_an_answer_keeps_to_raft_s_size_limit_but_for_the_first_entry():
    cache = BlockCache(1 << 20)
    cache.put(block(1, 10, 100))
    assert len(cache.take(Index(2), Index(100), 3 * 124)) == 3
    assert len(cache.take(Index(2), Index(100), 0)) == 1
    assert len(cache.take(Index(2), Index(4), 1 << 20)) == 2
    assert cache.take(Index(11), Index(100), 1 << 20) == []


def test_terms_follow_overwrites_and_forget_what_is_released():
    terms = TermRuns([(Index(0), Term(0)), (Index(1), Term(1)), (Index(10), Term(3))])
    terms.note([Entry(term=Term(4), index=Index(8)), Entry(term=Term(5), index=Index(9))])
    assert [terms.term_at(index) for index in range(1, 12)] == [1] * 7 + [4] + [5] * 3
    terms.forget(Index(8))
    assert terms.start_index == 8
    assert [terms.term_at(index) for index in (8, 9)] == [4, 5]
    copy = terms.copy()
    terms.reset(Index(50), Term(7))
    assert (terms.term_at(50), len(terms), copy.term_at(8)) == (7, 1, 4)
