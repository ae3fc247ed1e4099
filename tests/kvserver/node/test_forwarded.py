"""Writes that others forward: they wait in order within their bound, and each is proposed once or told of once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvserver.node.forwarded import Forwarded
from raft.errors import InvalidMessageError, ProposalDroppedError, RaftError
from raft.messages import Message, MessageType
from raft.types import NO_NODE, Entry, Index, NodeId, Term

SELF, PEER, OTHER = NodeId(1), NodeId(2), NodeId(3)
ROOM = 3000
WAIT = 5


@dataclass
class Core:
    """Raft, which takes so many bytes; and who tells the senders."""

    room_bytes: int = 0
    leader_id: NodeId = SELF
    proposed: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    handed_back: list[int] = field(default_factory=list)
    invalid: list[int] = field(default_factory=list)
    held: int = 0

    @property
    def is_leader(self) -> bool:
        return self.leader_id == SELF

    def step(self, message: Message) -> None:
        if not message.entries:
            raise InvalidMessageError("empty")
        size_bytes = sum(len(entry.data) for entry in message.entries)
        if self.is_leader and size_bytes > self.room_bytes:
            raise ProposalDroppedError
        self.room_bytes -= size_bytes
        self.proposed.append(message.index)

    def refuse(self, message: Message) -> None:
        self.refused.append(message.index)

    def hand_back(self, message: Message) -> None:
        self.handed_back.append(message.index)

    def note_held(self) -> None:
        self.held += 1

    def note_invalid(self, message: Message, error: RaftError) -> None:
        self.invalid.append(message.index)


def leader(room_bytes: int = 0) -> tuple[Core, Forwarded]:
    core = Core(room_bytes)
    made = Forwarded(core, max_bytes=ROOM, max_wait_ticks=WAIT, senders=core, on_held=core.note_held, on_invalid=core.note_invalid)
    return core, made


def write(number: int, size_bytes: int = 488) -> Message:
    """The message's number stands in its index; with the overhead it counts 1,000 bytes."""
    entries = [Entry(index=Index(0), term=Term(0), data=b"x" * size_bytes)] if size_bytes else []
    return Message(type=MessageType.PROP, from_=PEER, to=SELF, index=Index(number), entries=entries)


def propose_all(forwarded: Forwarded) -> None:
    while forwarded.has_next and forwarded.propose_next():
        pass


def test_what_has_waited_for_as_long_as_its_client_does_is_refused() -> None:
    core, forwarded = leader()
    forwarded.take(write(1))
    for _ in range(WAIT - 1):
        forwarded.tick()
    forwarded.take(write(2))
    assert (core.refused, forwarded.held_bytes) == ([], 2000)
    forwarded.tick()
    assert (core.refused, forwarded.held_bytes) == ([1], 1000)
    core.room_bytes = 1000
    propose_all(forwarded)
    assert (core.proposed, forwarded.held_bytes) == ([2], 0)


def test_what_raft_does_not_take_waits_and_goes_on_in_order_when_it_does() -> None:
    core, forwarded = leader()
    for number in (1, 2, 3):
        forwarded.take(write(number))
    propose_all(forwarded)
    propose_all(forwarded)
    assert (core.proposed, forwarded.held_bytes, core.held) == ([], 3000, 1)
    core.room_bytes = 1000
    propose_all(forwarded)
    assert (core.proposed, forwarded.held_bytes) == ([1, 2], 1000)
    core.room_bytes = 10_000
    propose_all(forwarded)
    assert (core.proposed, forwarded.held_bytes) == ([1, 2, 3], 0)


def test_a_small_one_does_not_pass_a_large_one_that_waits() -> None:
    core, forwarded = leader(room_bytes=400)
    forwarded.take(write(1))
    forwarded.take(write(2, 10))
    propose_all(forwarded)
    assert core.proposed == []


def test_beyond_the_room_the_sender_is_told_and_one_waits_however_large_it_is() -> None:
    core, forwarded = leader()
    forwarded.take(write(1, 10 * ROOM))
    forwarded.take(write(2, 1))
    assert (core.refused, forwarded.is_waiting) == ([2], True)
    core.room_bytes = 20 * ROOM
    propose_all(forwarded)
    assert (core.proposed, core.refused, core.handed_back) == ([1], [2], [])


def test_a_member_that_stops_leading_hands_back_what_waits() -> None:
    core, forwarded = leader()
    for number in (1, 2):
        forwarded.take(write(number))
    core.leader_id = OTHER
    forwarded.hand_back_all()
    assert (core.handed_back, core.proposed, forwarded.held_bytes, forwarded.is_waiting) == ([1, 2], [], 0, False)


def test_a_follower_passes_it_on_and_one_without_a_leader_hands_it_back() -> None:
    core, forwarded = leader()
    core.leader_id = OTHER
    forwarded.take(write(1))
    assert (core.proposed, forwarded.is_waiting) == ([1], False)
    core.leader_id = NO_NODE
    forwarded.take(write(2))
    assert (core.handed_back, core.proposed, forwarded.is_waiting) == ([2], [1], False)


def test_while_applying_is_behind_nothing_goes_on() -> None:
    core, forwarded = leader(room_bytes=10_000)
    forwarded.is_blocked = lambda: True
    forwarded.take(write(1))
    assert (forwarded.has_next, forwarded.is_waiting) == (False, True)
    forwarded.is_blocked = lambda: False
    propose_all(forwarded)
    assert core.proposed == [1]


def test_what_waited_is_admitted_when_it_is_proposed() -> None:
    """A store that has become full meanwhile takes none of one write, and the smaller part of another."""
    core, forwarded = leader()
    double = write(2)
    for message in (write(1, 1), replace(double, entries=(*double.entries, *double.entries)), write(3, 400)):
        forwarded.take(message)

    def admit(message: Message) -> Message | None:
        return None if message.index == 1 else replace(message, entries=message.entries[:1])

    forwarded.admit = admit
    propose_all(forwarded)
    assert (core.proposed, forwarded.held_bytes) == ([], 1912), "the first is gone, and half of the second"
    core.room_bytes = 888
    propose_all(forwarded)
    assert (core.proposed, core.room_bytes, forwarded.held_bytes) == ([2, 3], 0, 0)


def test_what_raft_refuses_for_what_it_says_does_not_hold_up_the_others() -> None:
    core, forwarded = leader(room_bytes=10_000)
    for message in (write(1, 0), write(2)):
        forwarded.take(message)
    propose_all(forwarded)
    assert (core.invalid, core.proposed, forwarded.held_bytes) == ([1], [2], 0)


def test_a_failing_core_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    core, forwarded = leader()

    def fail(message: Message) -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(core, "step", fail)
    forwarded.take(write(1))
    with pytest.raises(AssertionError, match="a defect"):
        forwarded.propose_next()


actions = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 2000)),
        st.tuples(st.just("room"), st.integers(1, 4000)),
        st.tuples(st.just("leader"), st.sampled_from((SELF, OTHER, NO_NODE))),
    ),
    max_size=60,
)


@given(actions)
def test_every_message_is_proposed_once_or_told_of_once_and_the_order_is_kept(script: list[tuple[str, int]]) -> None:
    core, forwarded = leader()
    number = 0
    for action, amount in script:
        if action == "take":
            number += 1
            forwarded.take(write(number, amount))
        elif action == "room":
            core.room_bytes = amount
        else:
            core.leader_id = NodeId(amount)
            if not core.is_leader:
                forwarded.hand_back_all()
        propose_all(forwarded)
        assert forwarded.held_bytes <= max(ROOM, 2512)
    core.room_bytes = 1 << 30
    propose_all(forwarded)
    assert sorted(core.proposed + core.refused + core.handed_back) == list(range(1, number + 1))
    assert core.proposed == sorted(core.proposed)
    assert forwarded.held_bytes == 0
