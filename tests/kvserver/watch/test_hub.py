"""The hub over a real store: one behaviour at a time. What holds in general is in test_model.py."""

from __future__ import annotations

import asyncio

import pytest

from kvserver.errors import StoppedError
from kvserver.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest
from kvserver.watch import KeyRange, WatchOptions
from tests.kvserver.watch.conftest import Make, Watching, events_of, revisions_of


async def test_ids_are_given_from_0_and_one_that_is_taken_is_refused(watching: Watching) -> None:
    stream = watching.open()
    keys = KeyRange(b"a", b"b")
    for watch_id in (0, 1, 7, 7, 0, 0):
        watching.hub.create(stream, WatchOptions(keys=keys, watch_id=watch_id))
    made = [await watching.next(stream) for _ in range(6)]
    assert [notice.watch_id for notice in made] == [0, 1, 7, -1, 2, 3]
    assert made[3].created
    assert made[3].canceled
    assert made[3].cancel_reason == "mvcc: duplicate watch ID provided on the WatchStream"


@pytest.mark.parametrize(
    ("lo", "hi", "start", "reason"),
    [
        (b"b", b"b", 0, "mvcc: watcher range is empty"),
        (b"b", b"a", 0, "mvcc: watcher range is empty"),
        (b"a", b"b", -1, "mvcc: watch start revision is negative"),
    ],
)
async def test_what_cant_be_watched_is_created_and_canceled(watching: Watching, lo: bytes, hi: bytes, start: int, reason: str) -> None:
    stream = watching.open()
    watching.watch(stream, lo, hi, start)
    notice = await watching.next(stream)
    assert (notice.watch_id, notice.created, notice.canceled, notice.cancel_reason) == (-1, True, True, reason)
    assert watching.hub.watcher_count == 0


async def test_cancelling_an_unknown_watcher_says_nothing(watching: Watching) -> None:
    stream = watching.open()
    watching.hub.cancel(stream, 5)
    assert await watching.until_told(stream) == []


async def test_a_watcher_from_below_the_compacted_revision_is_created_then_canceled(watching: Watching) -> None:
    for _ in range(5):
        watching.put(b"a")
    watching.machine.apply(CompactionRequest(revision=4))
    stream = watching.open()
    watching.watch(stream, b"a", b"b", 3)
    watching.watch(stream, b"a", b"b", 4)
    created, other = await watching.next(stream), await watching.next(stream)
    assert (created.created, created.canceled, other.created) == (True, False, True)
    rest = await watching.until_told(stream)
    assert [(notice.watch_id, notice.canceled, notice.compact_revision) for notice in rest if not notice.events] == [(0, True, 4)]
    assert revisions_of(rest) == [4, 5, 6]


async def test_a_quiet_watcher_outlives_compactions_also_when_it_falls_behind(watching: Watching) -> None:
    stream = watching.open()
    watching.watch(stream, b"a", b"b")
    for _ in range(5):
        watching.put(b"elsewhere")
    watching.machine.apply(CompactionRequest(revision=6))
    watching.hub.fall_behind_all()
    watching.put(b"a")
    assert revisions_of(await watching.until_told(stream)) == [7]


async def test_a_watcher_from_a_future_revision_waits_for_it(watching: Watching) -> None:
    stream = watching.open()
    watching.watch(stream, b"a", b"b", 4)
    watching.hub.fall_behind_all()
    for _ in range(4):
        watching.put(b"a")
    assert revisions_of(await watching.until_told(stream)) == [4, 5]


async def test_a_client_that_reads_nothing_costs_no_more_than_its_bound(make: Make) -> None:
    watching = await make(stream_bytes=64 << 10, total_bytes=1 << 20)
    slow, fast = watching.open(), watching.open()
    for stream in (slow, fast):
        watching.watch(stream, b"a", b"b")
        await watching.next(stream)
    for _ in range(200):
        watching.put(b"a", b"v" * 2000)
        assert revisions_of([await watching.next(fast)])
        assert slow.queued_bytes <= 64 << 10
    assert watching.hub.slow_count == 1
    assert revisions_of(await watching.until_told(slow)) == list(range(2, 202))
    assert watching.hub.slow_count == 0


async def test_slow_clients_together_cost_no_more_than_the_total(make: Make) -> None:
    watching = await make(stream_bytes=64 << 10, total_bytes=100 << 10)
    streams = [watching.open() for _ in range(10)]
    for stream in streams:
        watching.watch(stream, b"a", b"b")
    for _ in range(100):
        watching.put(b"a", b"v" * 2000)
        await asyncio.sleep(0)
    assert watching.hub.queued_bytes <= (100 << 10) + 10 * 3000  # and one message each
    for stream in streams:
        assert revisions_of(await watching.until_told(stream)) == list(range(2, 102))


async def test_a_slow_watcher_that_compaction_overtakes_is_cancelled_and_skips_nothing(make: Make) -> None:
    watching = await make(stream_bytes=64 << 10)
    stream = watching.open()
    watching.watch(stream, b"a", b"b")
    for _ in range(100):
        watching.put(b"a", b"v" * 2000)
    await asyncio.sleep(0.05)
    watching.machine.apply(CompactionRequest(revision=100))
    await watching.machine.store.wait_compacted(watching.machine.store.compacted_revision)
    notices = await watching.until_told(stream)
    told = revisions_of(notices)
    assert told == list(range(2, 2 + len(told)))
    assert len(told) < 99
    assert (notices[-1].canceled, notices[-1].compact_revision) == (True, 100)


async def test_one_revision_of_many_changes_comes_at_once_and_is_read_on_a_thread(watching: Watching) -> None:
    for number in range(3000):
        watching.put(b"a%04d" % number)
    stream = watching.open()
    watching.watch(stream, b"a", b"b", prev_kv=True)
    watching.machine.apply(DeleteRangeRequest(key=b"a", range_end=b"b"))
    _, *notices = await watching.until_told(stream)
    assert [len(events_of([notice])) for notice in notices] == [3000]
    assert all(event.prev_kv.value == b"v" for event in events_of(notices))
    assert watching.catch_up.thread_reads == 1


async def test_a_large_revision_comes_in_fragments_for_those_who_want_them(make: Make) -> None:
    watching = await make(fragment_bytes=5000)
    for number in range(300):
        watching.put(b"a%04d" % number, b"v" * 100)
    whole, pieces = watching.open(), watching.open()
    watching.watch(whole, b"a", b"b", prev_kv=True)
    watching.watch(pieces, b"a", b"b", prev_kv=True, fragment=True)
    watching.machine.apply(DeleteRangeRequest(key=b"a", range_end=b"b"))
    _, *one = await watching.until_told(whole)
    _, *many = await watching.until_told(pieces)
    assert len(one) == 1
    assert len(many) > 5
    assert [notice.fragment for notice in many] == [True] * (len(many) - 1) + [False]
    assert all(sum(map(len, notice.events)) < 5000 for notice in many)
    assert events_of(many) == events_of(one)


async def test_a_snapshot_over_the_running_store_loses_and_repeats_nothing(make: Make) -> None:
    here, ahead = await make(), await make()
    stream = here.open()
    here.watch(stream, b"a", b"b")
    for watching in (here, ahead):
        for _ in range(3):
            watching.put(b"a")
    before = await here.until_told(stream)
    for _ in range(5):
        ahead.put(b"a")
    await ahead.machine.flush()
    copy = here.machine.path.with_name("copy")
    await asyncio.to_thread(ahead.machine.store.copy_to, copy)
    await here.machine.store.install(copy)
    here.hub.note_replaced()
    here.put(b"a")
    assert revisions_of(before + await here.until_told(stream)) == list(range(2, 11))


async def test_a_snapshot_whose_history_is_compacted_cancels_those_who_need_it(make: Make) -> None:
    here, ahead = await make(), await make()
    stream = here.open()
    here.watch(stream, b"a", b"b")
    for _ in range(9):
        ahead.put(b"a")
    ahead.machine.apply(CompactionRequest(revision=6))
    await ahead.machine.flush()
    copy = here.machine.path.with_name("copy")
    await asyncio.to_thread(ahead.machine.store.copy_to, copy)
    await here.machine.store.install(copy)
    here.hub.note_replaced()
    _, *notices = await here.until_told(stream)
    assert [(notice.canceled, notice.compact_revision) for notice in notices] == [(True, 6)]


async def test_periodic_progress_skips_those_who_were_told_something(watching: Watching) -> None:
    stream = watching.open()
    watching.watch(stream, b"a", b"b", progress_notify=True)
    watching.watch(stream, b"b", b"c", progress_notify=True)
    watching.watch(stream, b"c", b"d")
    watching.put(b"a")
    await watching.until_told(stream)
    watching.hub.tick_progress(stream)
    watching.hub.tick_progress(stream)
    ticks = await watching.until_told(stream)
    assert [(notice.watch_id, notice.revision, notice.events) for notice in ticks] == [(1, 2, ()), (0, 2, ()), (1, 2, ())]


async def test_progress_waits_for_watchers_that_are_behind(make: Make) -> None:
    watching = await make(stream_bytes=64 << 10)
    for _ in range(100):
        watching.put(b"a", b"v" * 2000)
    stream = watching.open()
    watching.watch(stream, b"a", b"b", 2)
    watching.hub.request_progress(stream)
    watching.hub.request_progress(stream)
    notices = []
    while (notice := await watching.next(stream)).watch_id != -1:
        notices.append(notice)
    assert revisions_of(notices) == list(range(2, 102))
    assert await watching.until_told(stream) == []  # one answer for both


async def test_watchers_beyond_the_bound_are_refused(make: Make) -> None:
    watching = await make(max_watchers=2)
    stream = watching.open()
    for _ in range(3):
        watching.watch(stream, b"a", b"b")
    made = [await watching.next(stream) for _ in range(3)]
    assert [notice.cancel_reason for notice in made] == ["", "", "etcdserver: too many requests"]
    watching.hub.cancel(stream, 0)
    watching.watch(stream, b"a", b"b")
    assert [notice.watch_id for notice in await watching.until_told(stream)] == [0, 2]


async def test_a_stream_that_is_gone_leaves_nothing_behind(watching: Watching) -> None:
    for _ in range(100):
        watching.put(b"a", b"v" * 100_000)
    streams = [watching.open() for _ in range(4)]
    for stream in streams:
        watching.watch(stream, b"a", b"b", 2)
        watching.watch(stream, b"a", b"b")
        watching.hub.request_progress(stream)
    await asyncio.sleep(0.01)
    watching.put(b"a")
    for stream in streams:
        watching.hub.close_stream(stream)
    await asyncio.sleep(0.01)
    hub = watching.hub
    assert (hub.stream_count, hub.watcher_count, hub.slow_count, hub.queued_bytes, hub.held_bytes) == (0, 0, 0, 0, 0)


async def test_the_end_of_the_member_ends_streams_old_and_new(watching: Watching) -> None:
    stream = watching.open()
    waiting = asyncio.ensure_future(stream.wait_next())
    await asyncio.sleep(0)
    watching.hub.stop(StoppedError())
    with pytest.raises(StoppedError):
        await waiting
    with pytest.raises(StoppedError):
        await watching.open().wait_next()
