"""The gate for bytes: its bound, its order, and that no taker is forgotten or counted twice, whatever is cancelled."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvserver.api import ByteGate
from kvserver.errors import TooManyRequestsError

BOUND = 100


def gate_of(max_bytes: int = BOUND, max_waiting: int = 10) -> ByteGate:
    return ByteGate(max_bytes=max_bytes, max_waiting=max_waiting)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_fits_is_taken_without_waiting_and_comes_back() -> None:
    gate = gate_of()
    await gate.take(60)
    assert gate.try_take(40)
    assert (gate.held_bytes, gate.waited) == (100, 0)
    gate.give(60)
    gate.give(40)
    assert gate.held_bytes == 0


async def test_what_does_not_fit_waits_until_it_does() -> None:
    gate = gate_of()
    await gate.take(60)
    waiting = asyncio.create_task(gate.take(50))
    await settle()
    assert (waiting.done(), gate.waiting_count, gate.held_bytes) == (False, 1, 60)
    gate.give(60)
    await waiting
    assert (gate.held_bytes, gate.waiting_count, gate.waited) == (50, 0, 1)


async def test_a_small_taker_does_not_pass_a_large_one_that_waits() -> None:
    gate = gate_of()
    await gate.take(60)
    large, small = asyncio.create_task(gate.take(100)), asyncio.create_task(gate.take(1))
    await settle()
    assert not gate.try_take(1)
    assert not small.done()
    gate.give(60)
    await settle()
    assert (large.done(), small.done()) == (True, False)
    gate.give(100)
    await small


async def test_more_than_the_whole_gate_passes_alone() -> None:
    gate = gate_of()
    await gate.take(1)
    huge = asyncio.create_task(gate.take(5 * BOUND))
    await settle()
    assert not huge.done()
    gate.give(1)
    await huge
    assert gate.held_bytes == 5 * BOUND
    assert not gate.try_take(1)


async def test_beyond_the_count_of_waiters_the_taker_is_refused_at_once() -> None:
    gate = gate_of(max_waiting=2)
    await gate.take(BOUND)
    waiting = [asyncio.create_task(gate.take(1)) for _ in range(2)]
    await settle()
    with pytest.raises(TooManyRequestsError):
        await gate.take(1)
    assert (gate.refused, gate.waiting_count, gate.held_bytes) == (1, 2, BOUND)
    gate.give(BOUND)
    await asyncio.gather(*waiting)


async def test_waiters_that_were_cancelled_leave_their_places() -> None:
    gate = gate_of(max_waiting=2)
    await gate.take(BOUND)
    first = asyncio.create_task(gate.take(BOUND))
    for _ in range(5):
        waiting = asyncio.create_task(gate.take(1))
        await settle()
        waiting.cancel()
        await asyncio.wait([waiting])
    assert (gate.waiting_count, gate.refused) == (1, 0)
    gate.give(BOUND)
    await first


async def test_a_cancelled_first_waiter_lets_the_next_pass() -> None:
    gate = gate_of()
    await gate.take(60)
    large, small = asyncio.create_task(gate.take(BOUND)), asyncio.create_task(gate.take(40))
    await settle()
    large.cancel()
    await small
    assert gate.held_bytes == 100


async def test_granted_and_cancelled_in_one_turn_goes_to_the_next() -> None:
    gate = gate_of()
    await gate.take(BOUND)
    first, second = asyncio.create_task(gate.take(BOUND)), asyncio.create_task(gate.take(BOUND))
    await settle()
    gate.give(BOUND)  # grants the first ...
    first.cancel()  # ... which is cancelled before it runs
    await second
    assert first.cancelled()
    assert gate.held_bytes == BOUND


async def test_a_cancelled_waiter_that_has_not_run_is_not_granted_anything() -> None:
    gate = gate_of()
    await gate.take(BOUND)
    first, second = asyncio.create_task(gate.take(BOUND)), asyncio.create_task(gate.take(BOUND))
    await settle()
    first.cancel()
    gate.give(BOUND)
    await second
    assert gate.held_bytes == BOUND


async def test_what_is_added_makes_others_wait_and_is_never_refused() -> None:
    gate = gate_of()
    gate.add(3 * BOUND)
    waiting = asyncio.create_task(gate.take(1))
    await settle()
    assert not waiting.done()
    gate.give(3 * BOUND)
    await waiting


# --- any order of events -----------------------------------------------------------------------------------------------------------------


@dataclass
class Model:
    """What happens to a gate, beside what should be true of it."""

    gate: ByteGate
    order: list[int] = field(default_factory=list)
    takers: list[asyncio.Task[None]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    given: set[int] = field(default_factory=set)

    async def take(self, number: int, size_bytes: int) -> None:
        await self.gate.take(size_bytes)
        self.order.append(number)

    def holding(self) -> list[int]:
        return [
            n for n, task in enumerate(self.takers) if n not in self.given and task.done() and not task.cancelled() and not task.exception()
        ]

    def check(self) -> None:
        held = [self.sizes[n] for n in self.holding()]
        assert self.gate.held_bytes == sum(held)
        assert sum(held) <= self.gate.max_bytes or len(held) == 1
        waiting = [n for n, task in enumerate(self.takers) if not task.done()]
        assert self.gate.waiting_count == len(waiting)
        if waiting:  # nobody waits who would fit: no wakeup was lost
            assert held
            assert sum(held) + self.sizes[waiting[0]] > self.gate.max_bytes
        assert self.order == sorted(self.order)


events = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 150)),
        st.tuples(st.just("give"), st.integers(0, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("turn"), st.just(0)),
    ),
    max_size=60,
)


@given(events)
@settings(max_examples=150, deadline=None)
def test_the_bound_the_order_and_the_count_hold_in_any_order_of_events(script: list[tuple[str, int]]) -> None:
    async def play() -> None:
        model = Model(gate_of(max_waiting=8))
        for event, number in script:
            waiting = [n for n, task in enumerate(model.takers) if not task.done()]
            holding = model.holding()
            if event == "take":
                model.sizes.append(number)
                model.takers.append(asyncio.create_task(model.take(len(model.takers), number)))
                await asyncio.sleep(0)  # it begins; what is given or cancelled from now on may meet it in the same turn
            elif event == "give" and holding:
                chosen = holding[number % len(holding)]
                model.given.add(chosen)
                model.gate.give(model.sizes[chosen])
            elif event == "cancel" and waiting:
                model.takers[waiting[number % len(waiting)]].cancel()
            elif event == "turn":
                await settle()
                model.check()
        await settle()
        model.check()
        while holding := model.holding():  # whoever waits passes in the end
            for chosen in holding:
                model.given.add(chosen)
                model.gate.give(model.sizes[chosen])
            await settle()
        assert all(task.done() for task in model.takers)
        assert (model.gate.held_bytes, model.gate.waiting_count) == (0, 0)
        assert model.gate.refused == sum(not task.cancelled() and task.exception() is not None for task in model.takers)

    asyncio.run(play())
