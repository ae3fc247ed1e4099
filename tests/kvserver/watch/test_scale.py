"""Ten thousand watchers on a hundred streams. Time is this thread's own: others use the machine, too."""

from __future__ import annotations

import asyncio
import tracemalloc
from time import thread_time

from kvserver.watch.watcher import WATCHER_BYTES
from tests.kvserver.watch.conftest import Watching, revisions_of

STREAMS, EACH = 100, 100


async def longest_turn(until: asyncio.Event) -> float:
    """How long one turn of the loop took at most, in seconds."""
    longest_s = 0.0
    while not until.is_set():
        began_s = thread_time()
        await asyncio.sleep(0)
        longest_s = max(longest_s, thread_time() - began_s)
    return longest_s


async def test_ten_thousand_watchers_on_a_hundred_streams_are_all_told(watching: Watching) -> None:
    tracemalloc.start()
    before_bytes = tracemalloc.get_traced_memory()[0]
    streams = [watching.open() for _ in range(STREAMS)]
    for number, stream in enumerate(streams):
        for position in range(EACH - 1):
            name = b"key/%02d/%02d" % (number, position)
            watching.watch(stream, name, name + b"\x00" if position % 2 else name + b"0")
        watching.watch(stream, b"key/", b"key0")
        for _ in range(EACH):
            await watching.next(stream)
    assert watching.hub.watcher_count == STREAMS * EACH
    each_bytes = (tracemalloc.get_traced_memory()[0] - before_bytes) / (STREAMS * EACH)
    tracemalloc.stop()
    assert each_bytes < WATCHER_BYTES + 200

    done = asyncio.Event()
    lag = asyncio.create_task(longest_turn(done))
    puts_s = 0.0
    for number in range(STREAMS):
        began_s = thread_time()
        watching.put(b"key/%02d/01" % number)
        puts_s += thread_time() - began_s
        await asyncio.sleep(0)
    await asyncio.sleep(0.2)
    done.set()
    assert await lag < 0.05  # slices of 2 ms, and now and then a collection of garbage
    for number, stream in enumerate(streams):
        told = await watching.until_told(stream)
        assert len(told) == STREAMS + 1  # what everybody hears, and its own key
        assert sorted(revisions_of(told)) == sorted([*range(2, STREAMS + 2), number + 2])
    assert puts_s / STREAMS < 0.005  # matching a change is no walk over ten thousand watchers
    for stream in streams:
        watching.hub.close_stream(stream)
    await asyncio.sleep(0.05)
    assert watching.hub.held_bytes == 0


async def test_a_stream_of_ten_thousand_watchers_leaves_in_slices(watching: Watching) -> None:
    stream = watching.open()
    for number in range(10_000):
        name = b"key/%05d" % number
        watching.watch(stream, name, name + b"0")
    watching.hub.close_stream(stream)
    assert watching.hub.watcher_count > 0
    watching.put(b"key/00001")
    watching.hub.fall_behind_all()
    async with asyncio.timeout(20):
        while watching.hub.stream_count:  # noqa: ASYNC110 - the turns are what is waited for
            await asyncio.sleep(0)
    assert (watching.hub.watcher_count, watching.hub.slow_count, watching.hub.held_bytes) == (0, 0, 0)


async def test_ten_thousand_watchers_of_one_key_that_are_behind_are_caught_up_together(watching: Watching) -> None:
    for _ in range(20):
        watching.put(b"a")
    streams = [watching.open() for _ in range(STREAMS)]
    for stream in streams:
        for _ in range(EACH):
            watching.watch(stream, b"a", b"a\x00", 2)
    for stream in streams:
        told = await watching.until_told(stream)
        by_watcher: dict[int, list[int]] = {}
        for notice in told:
            by_watcher.setdefault(notice.watch_id, []).extend(revisions_of([notice]))
        assert len(by_watcher) == EACH
        assert all(revisions == list(range(2, 22)) for revisions in by_watcher.values())
    assert watching.catch_up.rounds < 300  # not one for each watcher
