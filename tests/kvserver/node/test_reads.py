"""Linearizable reads: shared rounds, re-sending, deadlines."""

from __future__ import annotations

import asyncio

import pytest

from kvserver.errors import CorruptError, NoLeaderError, RequestTimeoutError, StoppedError
from kvserver.node import reads as reads_module
from kvserver.node.reads import Reads
from raft.types import Index


class FakeSink:
    def __init__(self) -> None:
        self.contexts: list[bytes] = []
        self.asked_thrice = asyncio.Event()
        self.leader = True
        self.applied: dict[int, asyncio.Future[None]] = {}

    def has_leader(self) -> bool:
        return self.leader

    def request_read_index(self, context: bytes) -> None:
        self.contexts.append(context)
        if len(self.contexts) == 3:
            self.asked_thrice.set()

    def wait_applied(self, index: Index) -> asyncio.Future[None]:
        return self.applied.setdefault(index, asyncio.get_running_loop().create_future())


def make(sink: FakeSink, max_waiting: int = 100) -> Reads:
    return Reads(sink=sink, incarnation=5, max_waiting=max_waiting)


def begin(reads: Reads, delay_s: float = 5.0) -> asyncio.Task[None]:
    loop = asyncio.get_running_loop()
    return loop.create_task(reads.wait_linearizable(loop.time() + delay_s))


async def turn() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_read_waits_until_its_index_is_applied() -> None:
    sink = FakeSink()
    reads = make(sink)
    task = begin(reads)
    await turn()
    reads.resolve(sink.contexts[0], Index(12))
    await turn()
    assert not task.done()
    sink.applied[12].set_result(None)
    await task


async def test_reads_that_arrive_during_a_round_share_the_next() -> None:
    sink = FakeSink()
    reads = make(sink)
    first = begin(reads)
    await turn()
    later = [begin(reads) for _ in range(3)]
    await turn()
    assert len(sink.contexts) == 1
    sink.wait_applied(Index(1)).set_result(None)
    reads.resolve(sink.contexts[0], Index(1))
    await first
    assert [task.done() for task in later] == [False] * 3
    assert len(sink.contexts) == 2
    sink.wait_applied(Index(2)).set_result(None)
    reads.resolve(sink.contexts[1], Index(2))
    await asyncio.gather(*later)
    assert reads.waiting_count == 0


async def test_an_unanswered_round_is_sent_again_and_either_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads_module, "RESEND_S", 0.01)
    sink = FakeSink()
    reads = make(sink)
    task = begin(reads)
    async with asyncio.timeout(5):
        await sink.asked_thrice.wait()
    assert len(set(sink.contexts)) == len(sink.contexts)
    sink.wait_applied(Index(1)).set_result(None)
    reads.resolve(sink.contexts[0], Index(1))
    await task
    reads.resolve(sink.contexts[1], Index(1))  # the late second answer finds nobody


async def test_an_answer_that_nobody_asked_for_is_ignored() -> None:
    sink = FakeSink()
    reads = make(sink)
    task = begin(reads)
    await turn()
    reads.resolve(b"somebody else's", Index(1))
    await turn()
    assert not task.done()
    reads.stop()
    with pytest.raises(StoppedError):
        await task


async def test_a_new_leader_is_asked_at_once() -> None:
    sink = FakeSink()
    reads = make(sink)
    task = begin(reads)
    await turn()
    reads.note_leader()
    assert len(sink.contexts) == 2
    reads.stop()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(("leader", "error"), [(True, RequestTimeoutError), (False, NoLeaderError)])
async def test_a_deadline_ends_the_wait(leader: bool, error: type[Exception]) -> None:
    sink = FakeSink()
    sink.leader = leader
    reads = make(sink)
    with pytest.raises(error):
        await begin(reads, delay_s=0.01)


async def test_reads_over_the_bound_are_refused() -> None:
    sink = FakeSink()
    reads = make(sink, max_waiting=1)
    task = begin(reads)
    await turn()
    with pytest.raises(RequestTimeoutError):
        await begin(reads)
    reads.stop()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_confirmed_read_that_waits_for_apply_hears_of_the_stop() -> None:
    sink = FakeSink()
    reads = make(sink)
    task = begin(reads)
    await turn()
    reads.resolve(sink.contexts[0], Index(12))
    sink.applied[12].cancel()  # as the driver does when it stops
    with pytest.raises(StoppedError):
        await task


async def test_reads_stop_with_the_error_that_is_given_wherever_they_wait() -> None:
    sink = FakeSink()
    reads = make(sink)
    confirmed = begin(reads)
    await turn()
    reads.resolve(sink.contexts[0], Index(12))
    in_round = begin(reads)
    await turn()
    waiting = begin(reads)
    await turn()
    reads.stop(CorruptError)
    for task in (confirmed, in_round, waiting, begin(reads)):
        with pytest.raises(CorruptError):
            await task
    sink.applied[12].set_result(None)
    await turn()
