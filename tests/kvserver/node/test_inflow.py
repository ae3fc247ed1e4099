"""Entries from others wait while applying is behind: what passes, what is held, what is dropped, and that nothing waits for itself."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from kvserver.node.inflow import Inflow
from raft.messages import Message, MessageType
from raft.types import Entry, EntryType, Index, NodeId, Term

LEADER, SELF = NodeId(1), NodeId(2)
LIMIT, HELD = 1000, 5000
FLOOR = Index(3)


@dataclass
class Core:
    """A member that takes every entry, and applies when it is told to."""

    unapplied: deque[int] = field(default_factory=deque)
    stepped: list[int] = field(default_factory=list)
    contacts: int = 0
    most_bytes: int = 0

    @property
    def unapplied_bytes(self) -> int:
        return sum(self.unapplied)

    def step(self, message: Message, floor: Index) -> None:
        assert floor == FLOOR
        self.stepped.append(message.index)
        self.unapplied.extend(len(entry.data) for entry in message.entries)
        self.most_bytes = max(self.most_bytes, self.unapplied_bytes)

    def note_contact(self, peer: NodeId) -> None:
        assert peer == LEADER
        self.contacts += 1


@dataclass
class Counts:
    held: int = 0
    dropped: int = 0

    def note_held(self) -> None:
        self.held += 1

    def note_dropped(self) -> None:
        self.dropped += 1


def member() -> tuple[Core, Inflow, Counts]:
    core, counts = Core(), Counts()
    inflow = Inflow(core, limit_bytes=LIMIT, max_held_bytes=HELD, on_held=counts.note_held, on_dropped=counts.note_dropped)
    return core, inflow, counts


def message(number: int, size_bytes: int = 400, kind: MessageType = MessageType.APP) -> Message:
    """The message's number stands in its index."""
    entries = [Entry(index=Index(number), term=Term(1), type=EntryType.NORMAL, data=b"x" * size_bytes)] if size_bytes else []
    return Message(type=kind, from_=LEADER, to=SELF, term=Term(1), index=Index(number), entries=entries)


def test_below_the_limit_everything_passes_at_once() -> None:
    core, inflow, counts = member()
    for number in (1, 2, 3):
        inflow.take(message(number), FLOOR)
    assert (core.stepped, inflow.held_bytes, counts.held) == ([1, 2, 3], 0, 0)


def test_appends_over_the_limit_wait_in_order_until_entries_are_applied() -> None:
    core, inflow, counts = member()
    for number in range(1, 7):
        inflow.take(message(number), FLOOR)
    assert core.stepped == [1, 2, 3]
    assert inflow.held_bytes > 3 * 400
    assert (counts.held, core.contacts) == (3, 3)
    core.unapplied.popleft()
    inflow.release()
    assert core.stepped == [1, 2, 3, 4]
    core.unapplied.clear()
    inflow.release()
    assert core.stepped == [1, 2, 3, 4, 5, 6]
    assert inflow.held_bytes == 0


def test_heartbeats_votes_and_snapshots_pass_while_appends_are_held() -> None:
    core, inflow, _ = member()
    for number in range(1, 5):
        inflow.take(message(number), FLOOR)
    kinds = (MessageType.HEARTBEAT, MessageType.VOTE, MessageType.PRE_VOTE, MessageType.SNAP, MessageType.TIMEOUT_NOW)
    for number, kind in enumerate(kinds, start=10):
        inflow.take(message(number, 0, kind), FLOOR)
    assert core.stepped == [1, 2, 3, 10, 11, 12, 13, 14]


def test_an_empty_append_passes_unless_it_would_overtake() -> None:
    core, inflow, _ = member()
    core.unapplied.append(2 * LIMIT)
    inflow.take(message(1, 0), FLOOR)
    inflow.take(message(2), FLOOR)
    inflow.take(message(3, 0), FLOOR)
    assert core.stepped == [1]
    core.unapplied.clear()
    inflow.release()
    assert core.stepped == [1, 2, 3]


def test_forwarded_writes_pass_they_wait_elsewhere_while_the_way_in_is_full() -> None:
    core, inflow, _ = member()
    assert not inflow.is_full
    core.unapplied.append(2 * LIMIT)
    assert inflow.is_full
    inflow.take(message(1), FLOOR)
    inflow.take(message(2, kind=MessageType.PROP), FLOOR)
    assert core.stepped == [2]
    inflow.let_pass()
    assert (core.stepped, inflow.is_full) == ([2, 1], False)


def test_any_message_looks_whether_there_is_room_again() -> None:
    core, inflow, _ = member()
    core.unapplied.append(2 * LIMIT)
    inflow.take(message(1), FLOOR)
    assert core.stepped == []
    core.unapplied.clear()
    inflow.take(message(2, 0, MessageType.HEARTBEAT), FLOOR)
    assert core.stepped == [1, 2]


def test_more_than_may_be_held_is_dropped() -> None:
    core, inflow, counts = member()
    core.unapplied.append(2 * LIMIT)
    for number in range(1, 21):
        inflow.take(message(number), FLOOR)
    assert inflow.held_bytes <= HELD
    assert counts.held + counts.dropped == 20
    assert counts.dropped > 5


def test_one_message_is_held_however_large_it_is() -> None:
    core, inflow, counts = member()
    core.unapplied.append(2 * LIMIT)
    inflow.take(message(1, 10 * HELD), FLOOR)
    core.unapplied.clear()
    inflow.release()
    assert (core.stepped, counts.dropped) == ([1], 0)


def test_applying_within_a_step_does_not_begin_another() -> None:
    core, inflow, _ = member()
    core.unapplied.append(2 * LIMIT)
    for number in (1, 2, 3):
        inflow.take(message(number), FLOOR)
    plain = core.step

    def step_and_apply(taken: Message, floor: Index) -> None:
        core.unapplied.clear()
        inflow.release()  # in the middle of a step
        plain(taken, floor)

    core.step = step_and_apply  # type: ignore[method-assign]
    core.unapplied.clear()
    inflow.release()
    assert core.stepped == [1, 2, 3]


def test_in_a_halt_what_is_held_goes_on_in_order_and_nothing_waits_any_more() -> None:
    core, inflow, counts = member()
    core.unapplied.append(2 * LIMIT)
    for number in (1, 2, 3):
        inflow.take(message(number), FLOOR)
    assert core.stepped == []
    inflow.let_pass()
    assert (core.stepped, inflow.held_bytes) == ([1, 2, 3], 0)
    for number in range(4, 30):
        inflow.take(message(number), FLOOR)
    assert core.stepped == list(range(1, 30))
    assert (counts.held, counts.dropped) == (3, 0)


def test_a_halt_that_begins_within_a_step_lets_the_rest_pass_in_order() -> None:
    core, inflow, _ = member()
    core.unapplied.append(2 * LIMIT)
    for number in range(1, 6):
        inflow.take(message(number), FLOOR)
    plain = core.step

    def step_and_halt(taken: Message, floor: Index) -> None:
        plain(taken, floor)
        inflow.let_pass()

    core.step = step_and_halt  # type: ignore[method-assign]
    core.unapplied.popleft()
    core.unapplied.append(LIMIT - 1)
    inflow.release()
    assert core.stepped == [1, 2, 3, 4, 5]


actions = st.lists(st.one_of(st.tuples(st.just("take"), st.integers(0, 900)), st.tuples(st.just("apply"), st.integers(1, 3))), max_size=80)


@given(actions)
def test_the_tail_is_bounded_the_order_kept_and_everything_held_arrives(script: list[tuple[str, int]]) -> None:
    core, inflow, counts = member()
    number = 0
    for action, amount in script:
        if action == "take":
            number += 1
            inflow.take(message(number, amount), FLOOR)
        else:
            for _ in range(min(amount, len(core.unapplied))):
                core.unapplied.popleft()
            inflow.release()
        assert core.stepped == sorted(core.stepped)
        assert core.most_bytes < LIMIT + 900
        assert inflow.held_bytes <= HELD
        assert not inflow.held_bytes or core.unapplied_bytes >= LIMIT  # there is always something to apply that lets it go on
    while core.unapplied or inflow.held_bytes:
        assert core.unapplied, "held, and nothing to apply"
        core.unapplied.popleft()
        inflow.release()
    assert len(core.stepped) + counts.dropped == number
