"""The room of answers: who waits, what is counted, when it comes back; and reads of a real store that go by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kvserver.api import Answers, ByteGate
from kvserver.api.answers import FORMS, FREE_BYTES, SMALL_BYTES, AnswerLimits
from kvserver.apply import Store, answering
from kvserver.pb.rpc_pb2 import PutRequest, RangeRequest, RequestOp, TxnRequest
from kvserver.types import ClusterId, ConfState, Index, Term

KIB, MIB = 1 << 10, 1 << 20
EVERYTHING = RangeRequest(key=b"\0", range_end=b"\0")


class Wire:
    """A connection that takes what the test says, and ends the call when it is hung up."""

    def __init__(self, call: OneCall) -> None:
        self.call = call
        self.taken: int | None = 0
        self.takes_more = False
        self.looks = 0
        self.closed = 0

    def taken_bytes(self) -> int | None:
        self.looks += 1
        if self.takes_more and self.taken is not None:
            self.taken += 1
        return self.taken

    def hang_up(self) -> bool:
        asyncio.get_running_loop().call_soon(self.call.end)
        return True

    def close(self) -> None:
        self.closed += 1


class OneCall:
    """A call that ends when the test says so."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.peer = "somebody"
        self.wire = Wire(self)

    def on_done(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def connection(self) -> Wire:
        return self.wire

    def end(self) -> None:
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()


PATIENT = AnswerLimits()
HASTY = AnswerLimits(stall_s=0.02, least_stall_s=0.02, patience_s=3600.0, look_s=0.005)


def answers_of(large_bytes: int = 4 * MIB, small_bytes: int = 256 * KIB, *, limits: AnswerLimits = PATIENT) -> Answers:
    """Answers with so much room for the large and the small."""
    made = Answers(max_bytes=large_bytes + small_bytes, max_waiting=100, on_cut_off=CUT_OFF.append, limits=limits)
    made.large = ByteGate(max_bytes=large_bytes, max_waiting=100)
    made.small = ByteGate(max_bytes=small_bytes, max_waiting=100)
    return made


CUT_OFF: list[str] = []


@pytest.fixture(autouse=True)
def nobody_cut_off() -> None:
    CUT_OFF.clear()


def open_slot(answers: Answers) -> tuple[Any, Any]:
    call: Any = OneCall()
    return call, answers.slot(call)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_reserve_is_a_part_of_all_the_room() -> None:
    made = Answers(max_bytes=16 * MIB, max_waiting=1, on_cut_off=CUT_OFF.append)
    assert (made.large.max_bytes, made.small.max_bytes) == (14 * MIB, 2 * MIB)
    least = Answers(max_bytes=MIB, max_waiting=1, on_cut_off=CUT_OFF.append)
    assert least.large.max_bytes + least.small.max_bytes == MIB
    assert least.small.max_bytes >= 2 * FORMS * SMALL_BYTES


async def test_what_costs_no_more_than_its_call_is_not_counted_and_never_waits() -> None:
    answers = answers_of()
    answers.large.add(8 * MIB)
    answers.small.add(8 * MIB)
    call, slot = open_slot(answers)
    assert slot.try_take(FREE_BYTES)
    assert (answers.held_bytes, call.callbacks) == (16 * MIB, [])


async def test_an_answer_counts_twice_until_its_call_is_over() -> None:
    answers = answers_of()
    call, slot = open_slot(answers)
    assert slot.try_take(MIB)
    assert answers.held_bytes == FORMS * MIB
    call.end()
    assert answers.held_bytes == 0


async def test_a_second_wait_gives_back_what_the_first_one_got() -> None:
    answers = answers_of()
    call, slot = open_slot(answers)
    assert await slot.wait(MIB) == MIB
    assert await slot.wait(2 * MIB) == 2 * MIB
    assert answers.held_bytes == 4 * MIB
    slot.settle(MIB + 1)
    assert answers.held_bytes == FORMS * (MIB + 1)
    call.end()
    assert answers.held_bytes == 0


async def test_what_is_larger_than_the_room_goes_alone_and_is_counted_as_it_is() -> None:
    answers = answers_of()
    first, slot = open_slot(answers)
    assert slot.try_take(MIB)
    second, other = open_slot(answers)
    waiting = asyncio.create_task(other.wait(100 * MIB))
    await settle()
    assert not waiting.done()
    first.end()
    assert await waiting > 1000 * MIB
    other.settle(120 * MIB)
    assert answers.held_bytes == FORMS * 120 * MIB
    second.end()
    assert answers.held_bytes == 0


async def test_a_read_that_is_cancelled_while_it_waits_holds_nothing() -> None:
    answers = answers_of()
    answers.large.add(4 * MIB)
    call, slot = open_slot(answers)
    waiting = asyncio.create_task(slot.wait(MIB))
    await settle()
    waiting.cancel()
    await asyncio.wait([waiting])
    call.end()
    assert (answers.held_bytes, answers.large.waiting_count) == (4 * MIB, 0)


async def test_the_answer_of_a_write_is_counted_without_waiting() -> None:
    answers = answers_of()
    answers.large.add(4 * MIB)
    answers.small.add(256 * KIB)
    call, slot = open_slot(answers)
    slot.add(MIB)
    little, other = open_slot(answers)
    other.add(SMALL_BYTES)
    assert (answers.large.held_bytes, answers.small.held_bytes) == (6 * MIB, 256 * KIB + FORMS * SMALL_BYTES)
    call.end()
    little.end()
    assert answers.held_bytes == 4 * MIB + 256 * KIB


# --- small ones --------------------------------------------------------------------------------------------------------------------------


async def test_a_small_answer_passes_large_ones_that_hold_all_and_those_that_wait() -> None:
    answers = answers_of()
    answers.large.add(4 * MIB)
    _, large = open_slot(answers)
    waiting = asyncio.create_task(large.wait(MIB))
    await settle()
    call, slot = open_slot(answers)
    assert slot.try_take(SMALL_BYTES)
    assert answers.small.held_bytes == FORMS * SMALL_BYTES
    _, slightly_larger = open_slot(answers)
    assert not slightly_larger.try_take(SMALL_BYTES + 1)
    call.end()
    assert (answers.small.held_bytes, waiting.done()) == (0, False)
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_small_answers_take_no_more_than_their_reserve_while_there_is_no_other_room() -> None:
    answers = answers_of()
    answers.large.add(4 * MIB)
    slots = [open_slot(answers) for _ in range(3)]
    assert [slot.try_take(SMALL_BYTES) for _, slot in slots] == [True, True, False]
    waiting = asyncio.create_task(slots[2][1].wait(SMALL_BYTES))
    await settle()
    assert not waiting.done()
    slots[0][0].end()
    assert await waiting == SMALL_BYTES


async def test_an_answer_of_unknown_size_takes_what_a_small_one_may_while_there_is_no_other_room() -> None:
    answers = answers_of()
    call, slot = open_slot(answers)
    assert await slot.wait_some(MIB) == MIB
    assert answers.large.held_bytes == FORMS * MIB
    answers.large.add(2 * MIB)
    other, unlucky = open_slot(answers)
    assert await unlucky.wait_some(MIB) == SMALL_BYTES
    assert answers.small.held_bytes == FORMS * SMALL_BYTES
    call.end()
    other.end()
    assert answers.held_bytes == 2 * MIB


# --- clients that don't take theirs ------------------------------------------------------------------------------------------------------


async def test_who_takes_nothing_while_others_wait_is_cut_off_and_counted_until_its_call_is_over() -> None:
    answers = answers_of(limits=HASTY)
    stalled, slot = open_slot(answers)
    assert slot.try_take(2 * MIB)
    hang_up, counted = stalled.wire.hang_up, []

    def note() -> bool:
        counted.append(answers.large.held_bytes)
        return bool(hang_up())

    stalled.wire.hang_up = note
    call, other = open_slot(answers)
    async with asyncio.timeout(20):
        await other.wait(2 * MIB)
    assert (CUT_OFF, counted) == (["somebody"], [4 * MIB]), "still counted when it was hung up"
    assert stalled.wire.closed == 1
    assert answers.held_bytes == 4 * MIB
    call.end()
    assert answers.held_bytes == 0


async def test_who_takes_some_all_along_is_left_alone_until_its_time_is_up() -> None:
    answers = answers_of(limits=AnswerLimits(stall_s=0.01, least_stall_s=0.01, patience_s=0.3, look_s=0.005))
    slow, slot = open_slot(answers)
    slow.wire.takes_more = True
    assert slot.try_take(2 * MIB)
    _, other = open_slot(answers)
    async with asyncio.timeout(20):
        await other.wait(2 * MIB)
    assert CUT_OFF == ["somebody"]
    assert slow.wire.looks >= 0.3 / 0.005


async def test_nobody_is_looked_at_or_cut_off_while_nobody_waits() -> None:
    answers = answers_of(limits=HASTY)
    idle, slot = open_slot(answers)
    assert slot.try_take(2 * MIB)
    await asyncio.sleep(0.1)
    assert (CUT_OFF, idle.wire.looks, answers.held_bytes) == ([], 0, 4 * MIB)
    idle.end()


async def test_of_whom_nothing_is_known_keeps_its_answer_and_its_place() -> None:
    answers = answers_of(limits=HASTY)
    unknown, slot = open_slot(answers)
    unknown.wire.taken = None
    assert slot.try_take(2 * MIB)
    _, other = open_slot(answers)
    waiting = asyncio.create_task(other.wait(2 * MIB))
    await asyncio.sleep(0.1)
    assert (CUT_OFF, waiting.done(), answers.held_bytes) == ([], False, 4 * MIB)
    unknown.end()
    await waiting


async def test_a_small_answer_that_is_not_taken_is_cut_off_for_small_ones_that_wait() -> None:
    answers = answers_of(limits=HASTY)
    answers.large.add(4 * MIB)
    for _ in range(2):
        assert open_slot(answers)[1].try_take(SMALL_BYTES)
    call, slot = open_slot(answers)
    async with asyncio.timeout(20):
        await slot.wait(SMALL_BYTES)
    assert CUT_OFF
    call.end()


# --- a store -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """40 keys of 100 KiB, so that a range of all of them is built on a thread; and a small one."""
    opened = Store.open(tmp_path / "db")
    opened.bootstrap(ClusterId(1), {}, ConfState())
    for number in range(40):
        opened.mvcc.put(PutRequest(key=b"k%02d" % number, value=b"v" * 100 * KIB))
        opened.end_entry(Index(number + 1), Term(1))
    opened.mvcc.put(PutRequest(key=b"small", value=b"v"))
    opened.end_entry(Index(41), Term(1))
    await opened.commit()
    yield opened
    await opened.close()


async def test_a_large_range_is_counted_as_what_it_is(store: Store) -> None:
    answers = answers_of(64 * MIB)
    call, slot = open_slot(answers)
    found = await store.read(EVERYTHING, slot)
    assert len(found.kvs) == 41
    assert FORMS * found.ByteSize() <= answers.held_bytes <= FORMS * (found.ByteSize() + 41 * 500)
    call.end()
    assert answers.held_bytes == 0


@pytest.mark.parametrize("bound", [64 * MIB, 9 * MIB, 3 * MIB, 256 * KIB])
async def test_concurrent_large_ranges_are_all_answered_within_the_room(store: Store, bound: int) -> None:
    answers = answers_of(bound)
    most: list[int] = []

    async def one() -> int:
        call, slot = open_slot(answers)
        found = await store.read(EVERYTHING, slot)
        most.append(answers.held_bytes)
        await settle()
        call.end()
        return len(found.kvs)

    assert await asyncio.gather(*(one() for _ in range(12))) == [41] * 12
    single_bytes = FORMS * 41 * (100 * KIB + 500)
    assert max(most) <= max(bound, single_bytes)
    assert (answers.held_bytes, answers.large.waiting_count) == (0, 0)


async def test_values_on_the_loop_wait_for_room_too(store: Store) -> None:
    answers = answers_of(MIB)
    answers.large.add(MIB)
    call, slot = open_slot(answers)
    reading = asyncio.create_task(store.read(RangeRequest(key=b"k01"), slot))
    await settle()
    assert not reading.done()
    assert (await store.read(RangeRequest(key=b"small"), open_slot(answers)[1])).count == 1  # a small one passes
    answers.large.give(MIB)
    assert len((await reading).kvs[0].value) == 100 * KIB
    call.end()
    assert answers.held_bytes == 0


async def test_a_transaction_of_large_ranges_is_bounded_like_a_range(store: Store) -> None:
    request = TxnRequest(success=[RequestOp(request_range=EVERYTHING) for _ in range(3)])
    answers = answers_of(MIB)
    call, slot = open_slot(answers)
    answered = await store.read_txn(request, slot)
    assert [len(each.response_range.kvs) for each in answered.responses] == [41] * 3
    assert answered == store.mvcc.txn(request)
    assert answers.held_bytes >= FORMS * 3 * 40 * 100 * KIB
    call.end()


class OneAnswer:
    """A source whose reads cost so many bytes each, and that counts them."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.built = 0

    def snapshot(self, allowance: Any) -> Any:
        return allowance

    async def run_on_view(self, work: Any, allowance: Any) -> Any:
        raise AssertionError("an answer that is built on the loop")

    def build(self, allowance: Any) -> int:
        self.built += 1
        assert self.built < 10, "built again and again without ever waiting"
        allowance.charge(self.size_bytes)
        return self.size_bytes


@pytest.mark.parametrize("size_bytes", [MIB // 2, MIB // 2 + 1, 600_000, answering.LOOP_ANSWER_BYTES])
async def test_with_the_least_room_that_can_be_set_an_answer_of_the_loop_waits_once_and_goes_alone(size_bytes: int) -> None:
    answers, source = answers_of(MIB), OneAnswer(size_bytes)
    answers.large.add(10_000)
    call, slot = open_slot(answers)
    reading = asyncio.create_task(answering.answer(source, source.build, slot))
    await settle()
    assert (source.built, answers.large.waiting_count) == (1, 1)
    answers.large.give(10_000)
    assert await reading == size_bytes
    assert (source.built, answers.held_bytes) == (2, FORMS * size_bytes)
    call.end()
    assert answers.held_bytes == 0


@pytest.mark.parametrize("scan_budget", [3, 500])
async def test_limits_and_sorting_are_the_same_within_an_allowance(store: Store, scan_budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "SCAN_BUDGET", scan_budget)  # with 3 keys a thread has to find out how large the answer is
    for request in (
        EVERYTHING,
        RangeRequest(key=b"\0", range_end=b"\0", limit=25),
        RangeRequest(key=b"\0", range_end=b"\0", keys_only=True),
        RangeRequest(key=b"\0", range_end=b"\0", count_only=True),
        RangeRequest(
            key=b"\0", range_end=b"\0", sort_order=RangeRequest.SortOrder.DESCEND, sort_target=RangeRequest.SortTarget.MOD, limit=30
        ),
        RangeRequest(key=b"k05", range_end=b"k30", revision=20),
    ):
        call, slot = open_slot(answers_of(16 * MIB))
        assert await store.read(request, slot) == store.range(request)
        call.end()


async def test_an_answer_smaller_than_the_room_that_was_taken_for_it_stays_in_its_lane() -> None:
    answers = Answers(max_bytes=4 << 20, max_waiting=10, on_cut_off=lambda client: None)
    call = OneCall()
    slot = answers.slot(call)  # type: ignore[arg-type]
    await slot.wait(1 << 20)
    slot.add(10_000)
    assert (answers.large.held_bytes, answers.small.held_bytes) == (FORMS * 10_000, 0)
    call.end()
    assert answers.held_bytes == 0
