"""The append queue on a full disk: a save waits for space, in order, and nothing is acknowledged until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from kvserver.node import append_queue
from kvserver.node.append_queue import AppendQueue
from kvserver.node.worker import Worker
from raft.messages import LOCAL_APPEND_THREAD, Message, MessageType
from raft.types import EMPTY_HARD_STATE, Entry, HardState, Index, NodeId, Snapshot, SnapshotMetadata, Term
from wal import WalNoSpaceError

SELF = NodeId(1)


def append(index: int, *, term: int = 1, snapshot: bool = False) -> Message:
    message = Message(
        type=MessageType.STORAGE_APPEND,
        to=LOCAL_APPEND_THREAD,
        from_=SELF,
        term=Term(term),
        entries=[Entry(index=Index(index), term=Term(term), data=b"d")],
        responses=[Message(type=MessageType.STORAGE_APPEND_RESP, to=SELF, from_=LOCAL_APPEND_THREAD, index=Index(index))],
    )
    if snapshot:
        message.snapshot = Snapshot(metadata=SnapshotMetadata(index=Index(index - 1), term=Term(term)))
    return message


class Bench:
    """A queue over a WAL whose disk is full while `full` is set."""

    def __init__(self, worker: Worker) -> None:
        self.full = False
        self.attempts = 0
        self.saved: list[int] = []
        self.acknowledged: list[int] = []
        self.window: list[int] = []
        self.held: list[bool] = []
        self.worker = worker
        self.fatal: list[Exception] = []
        self.queue = AppendQueue(
            wal=self,
            window=self,
            worker=worker,
            hard_state=EMPTY_HARD_STATE,
            install=lambda message, hard_state: self.install(message, hard_state),  # noqa: PLW0108 - tests give it another one
            on_saved=lambda messages: self.acknowledged.extend(message.index for message in messages),
            on_fatal=self.fatal.append,
            on_held=lambda error: self.held.append(error is not None),
        )

    def save(self, entries: Sequence[Entry], hard_state: HardState | None, *, sync: bool) -> None:
        del hard_state, sync
        self.attempts += 1
        if self.full:
            raise WalNoSpaceError(Path("segment"), OSError(28, "full"))
        self.saved.extend(entry.index for entry in entries)

    def append(self, entries: Sequence[Entry]) -> None:
        self.window.extend(entry.index for entry in entries)

    async def install(self, message: Message, _: HardState) -> None:
        await self.queue.run_patiently(lambda: self.save([], None, sync=True))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - lets the timer and the thread run
                await asyncio.sleep(0.001)

    async def let_retries_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the loop's clock forward, so that every retry is due, and return when the worker has done what they gave it."""
        loop = asyncio.get_running_loop()
        now_s = loop.time
        monkeypatch.setattr(loop, "time", lambda: now_s() + 100 * append_queue.RETRY_S)
        await asyncio.sleep(0)  # the timers fire
        await asyncio.sleep(0)
        await self.worker.run(lambda: None)  # in its order: behind whatever they submitted


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(append_queue, "RETRY_S", 0.005)
    worker = Worker("wal")
    made = Bench(worker)
    yield made
    await asyncio.wait_for(made.queue.wait_idle(), 10)
    await worker.stop()
    assert made.fatal == []


async def test_a_save_is_held_and_repeated_until_there_is_space_and_what_follows_waits_behind_it(bench: Bench) -> None:
    bench.full = True
    bench.queue.submit(append(1))
    await bench.until(lambda: bench.attempts >= 3)
    bench.queue.submit(append(2))
    assert (bench.acknowledged, bench.window, bench.held) == ([], [], [True])
    assert not bench.queue.is_idle
    bench.full = False
    await bench.until(lambda: bench.acknowledged == [1, 2])
    assert (bench.saved, bench.window, bench.held) == ([1, 2], [1, 2], [True, False])


async def test_a_vote_behind_a_held_save_waits_as_well(bench: Bench) -> None:
    """A vote that leaves before the entries under it are durable could elect somebody on a promise that a crash breaks."""
    bench.full = True
    bench.queue.submit(append(1))
    await bench.until(lambda: bench.attempts >= 1)
    vote = Message(type=MessageType.STORAGE_APPEND, to=LOCAL_APPEND_THREAD, from_=SELF, term=Term(2), vote=NodeId(2))
    vote.responses = [Message(type=MessageType.VOTE_RESP, to=NodeId(2), from_=SELF, term=Term(2), index=Index(99))]
    bench.queue.submit(vote)
    attempts = bench.attempts
    await bench.until(lambda: bench.attempts >= attempts + 3)
    assert bench.acknowledged == []
    bench.full = False
    await bench.until(lambda: bench.acknowledged == [1, 99])


async def test_a_stop_gives_up_what_is_held(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.full = True
    bench.queue.submit(append(1))
    await bench.until(lambda: bench.attempts >= 1)
    await asyncio.wait_for(bench.queue.wait_idle(), 5)
    attempts = bench.attempts
    bench.full = False
    await bench.let_retries_run(monkeypatch)
    assert bench.attempts == attempts
    assert bench.acknowledged == []


async def test_a_stop_during_the_attempt_gives_it_up_too(bench: Bench) -> None:
    bench.full = True
    bench.queue.submit(append(1))
    await asyncio.wait_for(bench.queue.wait_idle(), 5)
    assert bench.acknowledged == []


@pytest.mark.parametrize("stop", [False, True])
async def test_an_install_waits_for_space_too(bench: Bench, stop: bool) -> None:
    bench.full = True
    bench.queue.submit(append(8, snapshot=True))
    await bench.until(lambda: bench.attempts >= 2)
    assert bench.held == [True]
    if not stop:
        bench.full = False
        await bench.until(lambda: bench.acknowledged == [8])
        assert bench.held == [True, False]


async def test_a_stop_cuts_an_install_short_that_waits_for_the_stores_space(bench: Bench) -> None:
    """The store waits for as long as there is no space, and says nothing of it to the queue."""
    waits = asyncio.Event()

    async def wait_for_ever(message: Message, _: HardState) -> None:
        waits.set()
        await asyncio.Event().wait()

    bench.install = wait_for_ever  # type: ignore[method-assign]
    bench.queue.submit(append(8, snapshot=True))
    bench.queue.submit(append(9))
    await asyncio.wait_for(waits.wait(), 10)
    await asyncio.wait_for(bench.queue.wait_idle(), 10)
    assert (bench.saved, bench.acknowledged, bench.window, bench.held) == ([], [], [], [])


async def test_an_install_that_can_not_be_stopped_is_waited_for_and_not_acknowledged(bench: Bench) -> None:
    """The exchange of the files goes to its end (swap.py): only then may they be closed."""
    begun, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def finish_first(message: Message, _: HardState) -> None:
        begun.set()
        try:
            await go.wait()
        except asyncio.CancelledError:
            await go.wait()
            ended.set()
            raise

    bench.install = finish_first  # type: ignore[method-assign]
    bench.queue.submit(append(8, snapshot=True))
    await asyncio.wait_for(begun.wait(), 10)
    stopping = asyncio.create_task(bench.queue.wait_idle())
    await asyncio.sleep(0.01)
    assert not stopping.done()
    go.set()
    await asyncio.wait_for(stopping, 10)
    assert ended.is_set()
    assert bench.acknowledged == []
