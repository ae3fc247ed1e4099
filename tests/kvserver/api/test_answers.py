"""The room of answers: who waits, what is counted, when it comes back; and reads of a real store that go by it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kvserver.api import Answers, ByteGate
from kvserver.api.answers import FORMS, FREE_BYTES
from kvserver.apply import Store, answering
from kvserver.pb.rpc_pb2 import PutRequest, RangeRequest, RequestOp, TxnRequest
from kvserver.types import ClusterId, ConfState, Index, Term

KIB, MIB = 1 << 10, 1 << 20
EVERYTHING = RangeRequest(key=b"\0", range_end=b"\0")


class OneCall:
    """A call that ends when the test says so."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []

    def on_done(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def end(self) -> None:
        for callback in self.callbacks:
            callback()


def gate_of(max_bytes: int = 4 * MIB) -> ByteGate:
    return ByteGate(max_bytes=max_bytes, max_waiting=100)


def open_slot(gate: ByteGate, *, patience_s: float = 30.0) -> tuple[Any, Any]:
    call: Any = OneCall()
    return call, Answers(gate, patience_s=patience_s).slot(call)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_small_answer_is_not_counted_and_never_waits() -> None:
    gate = gate_of()
    gate.add(8 * MIB)
    call, slot = open_slot(gate)
    assert slot.try_take(FREE_BYTES)
    assert (gate.held_bytes, call.callbacks) == (8 * MIB, [])


async def test_an_answer_counts_twice_until_its_call_is_over() -> None:
    gate = gate_of()
    call, slot = open_slot(gate)
    assert slot.try_take(MIB)
    assert gate.held_bytes == FORMS * MIB
    call.end()
    assert gate.held_bytes == 0


async def test_a_second_wait_gives_back_what_the_first_one_got() -> None:
    gate = gate_of()
    call, slot = open_slot(gate)
    assert await slot.wait(MIB) == MIB
    assert await slot.wait(2 * MIB) == 2 * MIB
    assert gate.held_bytes == 4 * MIB
    slot.settle(MIB + 1)
    assert gate.held_bytes == FORMS * (MIB + 1)
    call.end()
    assert gate.held_bytes == 0


async def test_what_is_larger_than_the_room_goes_alone_and_is_counted_as_it_is() -> None:
    gate = gate_of()
    first, slot = open_slot(gate)
    assert slot.try_take(MIB)
    second, other = open_slot(gate)
    waiting = asyncio.create_task(other.wait(100 * MIB))
    await settle()
    assert not waiting.done()
    first.end()
    assert await waiting > 1000 * MIB
    other.settle(120 * MIB)
    assert gate.held_bytes == FORMS * 120 * MIB
    second.end()
    assert gate.held_bytes == 0


async def test_a_read_that_is_cancelled_while_it_waits_holds_nothing() -> None:
    gate = gate_of()
    gate.add(4 * MIB)
    call, slot = open_slot(gate)
    waiting = asyncio.create_task(slot.wait(MIB))
    await settle()
    waiting.cancel()
    await asyncio.wait([waiting])
    call.end()
    assert (gate.held_bytes, gate.waiting_count) == (4 * MIB, 0)


async def test_an_answer_that_is_not_taken_gives_way_to_those_who_wait() -> None:
    gate = gate_of()
    stalled, slot = open_slot(gate, patience_s=0.02)
    assert slot.try_take(2 * MIB)
    call, other = open_slot(gate)
    async with asyncio.timeout(20):
        await other.wait(2 * MIB)
    assert gate.held_bytes == 4 * MIB
    stalled.end()
    call.end()
    assert gate.held_bytes == 0


async def test_the_answer_of_a_write_is_counted_without_waiting() -> None:
    gate = gate_of()
    gate.add(4 * MIB)
    call, slot = open_slot(gate)
    slot.add(MIB)
    assert gate.held_bytes == 6 * MIB
    call.end()
    assert gate.held_bytes == 4 * MIB


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
    gate = gate_of(64 * MIB)
    call, slot = open_slot(gate)
    found = await store.read(EVERYTHING, slot)
    assert len(found.kvs) == 41
    assert FORMS * found.ByteSize() <= gate.held_bytes <= FORMS * (found.ByteSize() + 41 * 500)
    call.end()
    assert gate.held_bytes == 0


@pytest.mark.parametrize("bound", [64 * MIB, 9 * MIB, 3 * MIB, 256 * KIB])
async def test_concurrent_large_ranges_are_all_answered_within_the_room(store: Store, bound: int) -> None:
    gate = gate_of(bound)
    most: list[int] = []

    async def one() -> int:
        call, slot = open_slot(gate)
        found = await store.read(EVERYTHING, slot)
        most.append(gate.held_bytes)
        await settle()
        call.end()
        return len(found.kvs)

    assert await asyncio.gather(*(one() for _ in range(12))) == [41] * 12
    single_bytes = FORMS * 41 * (100 * KIB + 500)
    assert max(most) <= max(bound, single_bytes)
    assert (gate.held_bytes, gate.waiting_count) == (0, 0)


async def test_values_on_the_loop_wait_for_room_too(store: Store) -> None:
    gate = gate_of(MIB)
    gate.add(MIB)
    call, slot = open_slot(gate)
    reading = asyncio.create_task(store.read(RangeRequest(key=b"k01"), slot))
    await settle()
    assert not reading.done()
    assert (await store.read(RangeRequest(key=b"small"), open_slot(gate)[1])).count == 1  # a small one passes
    gate.give(MIB)
    assert len((await reading).kvs[0].value) == 100 * KIB
    call.end()
    assert gate.held_bytes == 0


async def test_a_transaction_of_large_ranges_is_bounded_like_a_range(store: Store) -> None:
    request = TxnRequest(success=[RequestOp(request_range=EVERYTHING) for _ in range(3)])
    gate = gate_of(MIB)
    call, slot = open_slot(gate)
    answered = await store.read_txn(request, slot)
    assert [len(each.response_range.kvs) for each in answered.responses] == [41] * 3
    assert answered == store.mvcc.txn(request)
    assert gate.held_bytes >= FORMS * 3 * 40 * 100 * KIB
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
    gate, source = gate_of(MIB), OneAnswer(size_bytes)
    gate.add(10_000)
    call, slot = open_slot(gate)
    reading = asyncio.create_task(answering.answer(source, source.build, slot))
    await settle()
    assert (source.built, gate.waiting_count) == (1, 1)
    gate.give(10_000)
    assert await reading == size_bytes
    assert (source.built, gate.held_bytes) == (2, FORMS * size_bytes)
    call.end()
    assert gate.held_bytes == 0


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
        call, slot = open_slot(gate_of(16 * MIB))
        assert await store.read(request, slot) == store.range(request)
        call.end()
