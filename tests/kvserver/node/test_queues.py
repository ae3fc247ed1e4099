"""The append queue (group commit, order, failure) and the apply queue (slices, backpressure, order)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from kvserver.node import append_queue
from kvserver.node.append_queue import AppendQueue
from kvserver.node.apply_queue import ApplyQueue
from kvserver.node.worker import Worker
from raft.messages import LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD, Message, MessageType
from raft.types import EMPTY_HARD_STATE, Entry, HardState, Index, NodeId, Term

SELF = NodeId(1)


def entries(lo: int, hi: int, term: int = 1) -> list[Entry]:
    return [Entry(index=Index(i), term=Term(term), data=b"d") for i in range(lo, hi)]


def response(index: int) -> Message:
    return Message(type=MessageType.STORAGE_APPEND_RESP, to=SELF, from_=LOCAL_APPEND_THREAD, index=Index(index))


def append(held: list[Entry], *, term: int = 0, commit: int = 0) -> Message:
    return Message(
        type=MessageType.STORAGE_APPEND,
        to=LOCAL_APPEND_THREAD,
        from_=SELF,
        entries=held,
        term=Term(term),
        commit=Index(commit),
        responses=[response(held[-1].index if held else 0)],
    )


class FakeWal:
    """Records saves; each waits for its permit, so that a test decides when the disk is done."""

    def __init__(self) -> None:
        self.saves: list[tuple[list[int], HardState | None, bool]] = []
        self.permits = threading.Semaphore(0)
        self.failure: Exception | None = None

    def save(self, held: Sequence[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        self.permits.acquire()
        if self.failure is not None:
            raise self.failure
        self.saves.append(([entry.index for entry in held], hard_state, sync))


class Bench:
    def __init__(self, worker: Worker) -> None:
        self.wal = FakeWal()
        self.window: list[int] = []
        self.responses: list[int] = []
        self.fatal: list[Exception] = []
        self.installed: list[int] = []
        self.queue = AppendQueue(
            wal=self.wal,
            window=self,
            worker=worker,
            hard_state=EMPTY_HARD_STATE,
            install=self.install,
            on_saved=lambda messages: self.responses.extend(m.index for m in messages),
            on_fatal=self.fatal.append,
        )

    def append(self, held: Sequence[Entry]) -> None:
        self.window.extend(entry.index for entry in held)

    async def install(self, message: Message, _: HardState) -> None:
        assert message.snapshot is not None
        self.installed.append(message.snapshot.metadata.index)


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    made = Worker("wal")
    yield made
    await made.stop()


async def test_everything_queued_during_one_save_shares_the_next(worker: Worker) -> None:
    bench = Bench(worker)
    bench.queue.submit(append(entries(1, 2), term=1))
    bench.queue.submit(append(entries(2, 4)))
    bench.queue.submit(append(entries(4, 5), term=1, commit=2))
    bench.wal.permits.release(2)
    await bench.queue.wait_idle()
    first, second = bench.wal.saves
    assert first == ([1], HardState(term=Term(1)), True)
    assert second == ([2, 3, 4], HardState(term=Term(1), commit=Index(2)), True)
    assert bench.responses == [1, 3, 4]
    assert bench.window == [1, 2, 3, 4]


def commit_only(commit: int) -> Message:
    return Message(type=MessageType.STORAGE_APPEND, to=LOCAL_APPEND_THREAD, from_=SELF, term=Term(1), commit=Index(commit))


async def test_a_commit_alone_rides_with_the_next_entries(worker: Worker) -> None:
    bench = Bench(worker)
    bench.wal.permits.release(2)
    bench.queue.submit(append(entries(1, 2), term=1))
    await bench.queue.wait_idle()
    bench.queue.submit(commit_only(1))
    assert bench.queue.is_idle
    bench.queue.submit(append(entries(2, 3)))
    await bench.queue.wait_idle()
    assert bench.wal.saves[1] == ([2], HardState(term=Term(1), commit=Index(1)), True)


async def test_a_commit_alone_is_saved_without_a_sync_when_nothing_follows(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(append_queue, "COMMIT_DELAY_S", 0.0)
    bench = Bench(worker)
    bench.wal.permits.release(2)
    bench.queue.submit(append(entries(1, 2), term=1))
    await bench.queue.wait_idle()
    bench.queue.submit(commit_only(1))
    async with asyncio.timeout(5):
        while bench.queue.saved_commit == 0:  # noqa: ASYNC110 - lets the timer and the thread run
            await asyncio.sleep(0)
    assert bench.wal.saves[1] == ([], HardState(term=Term(1), commit=Index(1)), False)


async def test_a_commit_that_waits_is_saved_before_the_end(worker: Worker) -> None:
    bench = Bench(worker)
    bench.wal.permits.release(2)
    bench.queue.submit(append(entries(1, 2), term=1))
    await bench.queue.wait_idle()
    bench.queue.submit(commit_only(1))
    await bench.queue.wait_idle()
    assert bench.wal.saves[1] == ([], HardState(term=Term(1), commit=Index(1)), False)


async def test_a_vote_is_synced_at_once(worker: Worker) -> None:
    bench = Bench(worker)
    bench.wal.permits.release(1)
    message = commit_only(0)
    message.vote = NodeId(2)
    bench.queue.submit(message)
    await bench.queue.wait_idle()
    assert bench.wal.saves == [([], HardState(term=Term(1), vote=NodeId(2)), True)]


async def test_nothing_is_acknowledged_before_the_save_returned(worker: Worker) -> None:
    bench = Bench(worker)
    bench.queue.submit(append(entries(1, 2), term=1))
    await asyncio.sleep(0)
    assert (bench.responses, bench.window, bench.queue.is_idle) == ([], [], False)
    bench.wal.permits.release()
    await bench.queue.wait_idle()
    assert bench.responses == [1]


async def test_an_overwrite_never_joins_what_it_overwrites(worker: Worker) -> None:
    bench = Bench(worker)
    bench.wal.permits.release(3)
    for message in (append(entries(1, 2), term=1), append(entries(2, 6)), append(entries(4, 6, term=2), term=2)):
        bench.queue.submit(message)
    await bench.queue.wait_idle()
    assert [saved for saved, _, _ in bench.wal.saves] == [[1], [2, 3, 4, 5], [4, 5]]


async def test_a_failed_save_is_fatal_and_acknowledges_nothing_ever_after(worker: Worker) -> None:
    bench = Bench(worker)
    bench.wal.failure = OSError("EIO")
    bench.wal.permits.release(2)
    bench.queue.submit(append(entries(1, 2), term=1))
    bench.queue.submit(append(entries(2, 3)))
    await bench.queue.wait_idle()
    bench.wal.failure = None
    bench.queue.submit(append(entries(3, 4)))
    await bench.queue.wait_idle()
    assert (len(bench.fatal), bench.responses, bench.wal.saves) == (1, [], [])


class FakeStore:
    def __init__(self) -> None:
        self.has_room = True
        self.room = asyncio.Event()

    async def wait_room(self) -> None:
        await self.room.wait()
        self.has_room = True


def apply(held: list[Entry]) -> Message:
    return Message(type=MessageType.STORAGE_APPLY, to=LOCAL_APPLY_THREAD, from_=SELF, entries=held, responses=[response(held[-1].index)])


async def test_entries_apply_in_order_and_answer_per_message() -> None:
    applied: list[int] = []
    answered: list[tuple[int, int]] = []
    queue = ApplyQueue(
        store=FakeStore(),
        apply_slice=lambda entry: applied.append(entry.index) is None,
        on_applied=lambda messages: answered.append((messages[0].index, len(applied))),
        on_fatal=lambda error: pytest.fail(str(error)),
    )
    queue.submit(apply(entries(1, 4)))
    queue.submit(apply(entries(4, 6)))
    await queue.wait_idle()
    assert applied == [1, 2, 3, 4, 5]
    assert answered == [(3, 3), (5, 5)]


async def test_a_long_batch_leaves_the_loop_free_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvserver.node import apply_queue

    clock = iter(range(1_000_000))
    monkeypatch.setattr(apply_queue, "perf_counter", lambda: next(clock))
    applied: list[int] = []
    queue = ApplyQueue(
        store=FakeStore(),
        apply_slice=lambda entry: applied.append(entry.index) is None,
        on_applied=lambda messages: None,
        on_fatal=lambda error: pytest.fail(str(error)),
    )
    queue.submit(apply(entries(1, 101)))
    assert len(applied) == 1
    await asyncio.sleep(0)
    assert 1 < len(applied) < 100
    await queue.wait_idle()
    assert applied == list(range(1, 101))


async def test_an_entry_in_slices_leaves_the_loop_free_and_waits_for_room_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvserver.node import apply_queue

    clock = iter(range(1_000_000))
    monkeypatch.setattr(apply_queue, "perf_counter", lambda: next(clock))
    store = FakeStore()
    slices: list[int] = []
    answered: list[int] = []

    def apply_slice(entry: Entry) -> bool:
        slices.append(entry.index)
        store.has_room = slices.count(2) != 3
        return entry.index != 2 or slices.count(2) == 6

    queue = ApplyQueue(
        store=store,
        apply_slice=apply_slice,
        on_applied=lambda messages: answered.append(messages[0].index),
        on_fatal=lambda error: pytest.fail(str(error)),
    )
    queue.submit(apply(entries(1, 4)))
    assert slices == [1]
    for _ in range(20):
        await asyncio.sleep(0)
    assert (slices, answered) == ([1, 2, 2, 2], [])
    store.room.set()
    await queue.wait_idle()
    assert (slices, answered) == ([1, 2, 2, 2, 2, 2, 2, 3], [3])


async def test_a_full_write_buffer_pauses_apply_until_there_is_room() -> None:
    store = FakeStore()
    applied: list[int] = []

    def apply_slice(entry: Entry) -> bool:
        applied.append(entry.index)
        store.has_room = entry.index != 2
        return True

    queue = ApplyQueue(
        store=store, apply_slice=apply_slice, on_applied=lambda messages: None, on_fatal=lambda error: pytest.fail(str(error))
    )
    queue.submit(apply(entries(1, 5)))
    await asyncio.sleep(0)
    assert applied == [1, 2]
    store.room.set()
    await queue.wait_idle()
    assert applied == [1, 2, 3, 4]


async def test_a_failing_apply_is_fatal_and_nothing_after_it_is_applied() -> None:
    applied: list[int] = []
    fatal: list[Exception] = []

    def apply_slice(entry: Entry) -> bool:
        if entry.index == 2:
            raise RuntimeError("not deterministic")
        applied.append(entry.index)
        return True

    queue = ApplyQueue(store=FakeStore(), apply_slice=apply_slice, on_applied=lambda messages: None, on_fatal=fatal.append)
    queue.submit(apply(entries(1, 4)))
    queue.submit(apply(entries(4, 6)))
    await queue.wait_idle()
    assert (applied, len(fatal)) == ([1], 1)
