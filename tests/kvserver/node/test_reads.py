"""Linearizable reads: shared rounds, re-sending, deadlines."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from kvserver.config import parse
from kvserver.errors import CorruptError, NoLeaderError, RequestTimeoutError, StoppedError, TooManyRequestsError
from kvserver.node import reads as reads_module
from kvserver.node.assembly import max_waiting_reads
from kvserver.node.reads import Reads
from kvserver.peer import MAX_REQUESTS
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
    return Reads(sink=sink, incarnation=5, max_waiting=lambda: max_waiting)


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
    with pytest.raises(TooManyRequestsError):
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
    assert sink.applied[12].cancelled(), "nobody waits for it"
    await turn()
    assert reads.waiting_count == 0


async def test_confirmed_reads_count_against_the_bound_until_they_are_answered() -> None:
    """With a full disk applying pauses: reads that have their index wait as well, and cost as much."""
    sink = FakeSink()
    reads = make(sink, max_waiting=3)
    tasks = [begin(reads) for _ in range(3)]
    await turn()
    reads.resolve(sink.contexts[0], Index(12))
    await turn()
    reads.resolve(sink.contexts[1], Index(13))
    await turn()
    assert reads.waiting_count == 3
    with pytest.raises(TooManyRequestsError):
        await begin(reads)
    sink.applied[12].set_result(None)
    await tasks[0]
    assert reads.waiting_count == 2
    tasks.append(begin(reads))
    await turn()
    assert not tasks[-1].done()
    reads.stop()
    await asyncio.gather(*tasks, return_exceptions=True)
    await turn()
    assert reads.waiting_count == 0


class PausedSink(FakeSink):
    """Every round is confirmed at once, and nothing is ever applied."""

    def __init__(self) -> None:
        super().__init__()
        self.confirm: Callable[[bytes, Index], None] = lambda context, index: None
        self.pending: list[asyncio.Future[None]] = []

    def request_read_index(self, context: bytes) -> None:
        asyncio.get_running_loop().call_soon(self.confirm, context, Index(10))

    def wait_applied(self, index: Index) -> asyncio.Future[None]:
        del index
        self.pending.append(asyncio.get_running_loop().create_future())
        return self.pending[-1]


def live_futures() -> int:
    gc.collect()
    return sum(type(each) is asyncio.Future for each in gc.get_objects())


async def test_ten_thousand_reads_that_time_out_while_nothing_is_applied_leave_nothing_behind() -> None:
    sink = PausedSink()
    reads = make(sink)
    sink.confirm = reads.resolve
    before = live_futures()
    first = begin(reads, 0.002)
    staying = begin(reads, 60.0)  # it shares the second round with reads that end: they must not stay with it
    for _ in range(103):
        results = await asyncio.gather(*(begin(reads, 0.002) for _ in range(98)), return_exceptions=True)
        assert [type(each) for each in results] == [RequestTimeoutError] * 98
        del results  # they know their frames
    await asyncio.gather(first, return_exceptions=True)
    await turn()  # the callback that woke this task knows results, too
    assert not staying.done()
    assert reads.waiting_count == 1
    assert sum(not each.done() for each in sink.pending) == 1, "the driver lets go of what is done"
    sink.pending = [each for each in sink.pending if not each.done()]
    assert live_futures() - before <= 3
    sink.pending[0].set_result(None)
    await staying
    assert reads.waiting_count == 0


async def test_who_wants_only_the_word_of_the_quorum_does_not_wait_for_apply() -> None:
    sink = FakeSink()
    reads = make(sink)
    loop = asyncio.get_running_loop()
    read = begin(reads)
    confirmed = [loop.create_task(reads.wait_confirmed(loop.time() + 5.0)) for _ in range(3)]
    await turn()
    reads.resolve(sink.contexts[0], Index(12))
    await turn()
    assert [task.done() for task in confirmed] == [False] * 3, "the round began before they came"
    reads.resolve(sink.contexts[1], Index(13))
    await asyncio.gather(*confirmed)
    assert not read.done()
    assert reads.waiting_count == 1
    assert sink.applied[13].cancelled(), "nobody waits for it"
    sink.applied[12].set_result(None)
    await read


async def test_what_other_members_ask_takes_no_place_of_the_reads_of_this_member() -> None:
    config = parse(["--data-dir=unused", "--max-concurrent-requests=10"], {}).config  # type: ignore[union-attr]
    sink = FakeSink()
    reads = Reads(sink=sink, incarnation=5, max_waiting=lambda: max_waiting_reads(config, members=3))
    asked = [begin(reads) for _ in range(2 * MAX_REQUESTS)]
    own = [begin(reads) for _ in range(10)]
    await turn()
    assert not any(task.done() for task in own)
    alone = Reads(sink=sink, incarnation=5, max_waiting=lambda: max_waiting_reads(config, members=1))
    more = [begin(alone) for _ in range(2 * MAX_REQUESTS)]
    await turn()
    assert any(task.done() for task in more), "nobody else asks there: the bound is lower"
    reads.stop()
    alone.stop()
    await asyncio.gather(*asked, *own, *more, return_exceptions=True)
