"""Linearizable reads."""

from __future__ import annotations

from typing import Any

import pytest

from raft import ConfChange, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfigError, InvalidMessageError, Message, ReadOnlyOption
from raft.describe import parse_changes
from raft.read_only import MAX_WAITING_READS
from raft.types import Index, NodeId, Term
from tests.raft.kit import Member, T, entry, leader, member, network, of_kind


def committed_leader(**options: Any) -> Member:
    """Member 1 of 3 as leader with its first entry committed."""
    found = leader(**options)
    found.step(T.APP_RESP, 2, index=Index(1))
    return found


def heartbeats(found: Member) -> list[Message]:
    """The heartbeats that the member sends now."""
    return of_kind(found.drain(), T.HEARTBEAT)


def test_read_is_confirmed_by_a_quorum_of_heartbeat_responses() -> None:
    found = committed_leader()
    found.raw.read_index(b"r1")
    sent = heartbeats(found)
    assert len(sent) == 2
    assert found.read_states == []
    found.step(T.HEARTBEAT_RESP, 2, context=sent[0].context)
    assert found.read_states == [(1, b"r1")]


def test_response_to_an_earlier_heartbeat_does_not_confirm_a_later_read() -> None:
    found = committed_leader()
    found.raw.read_index(b"r1")
    first = heartbeats(found)[0].context
    found.raw.read_index(b"r2")
    heartbeats(found)
    found.step(T.HEARTBEAT_RESP, 2, context=first)
    assert found.read_states == [(1, b"r1")]
    found.step(T.HEARTBEAT_RESP, 2)
    assert found.read_states == [(1, b"r1")]


def test_response_to_a_later_heartbeat_confirms_all_earlier_reads_in_order() -> None:
    found = committed_leader()
    for number in range(3):
        found.raw.read_index(b"r%d" % number)
    last = heartbeats(found)[-1].context
    found.step(T.HEARTBEAT_RESP, 3, context=last)
    assert [context for _, context in found.read_states] == [b"r0", b"r1", b"r2"]


def test_lost_heartbeats_are_made_good_by_the_next_ones() -> None:
    found = committed_leader()
    found.raw.read_index(b"r1")
    heartbeats(found)
    (later, _) = of_kind(found.tick(), T.HEARTBEAT)
    found.step(T.HEARTBEAT_RESP, 2, context=later.context)
    assert found.read_states == [(1, b"r1")]
    assert of_kind(found.tick(), T.HEARTBEAT)[0].context == b""


def test_repeated_request_is_answered_once_while_it_waits() -> None:
    found = committed_leader()
    for _ in range(3):
        found.raw.read_index(b"same")
    found.step(T.HEARTBEAT_RESP, 2, context=heartbeats(found)[-1].context)
    assert found.read_states == [(1, b"same")]
    found.raw.read_index(b"same")
    found.step(T.HEARTBEAT_RESP, 2, context=heartbeats(found)[-1].context)
    assert found.read_states == [(1, b"same")] * 2


def test_five_members_need_two_others() -> None:
    found = leader(range(1, 6))
    for node in (2, 3):
        found.step(T.APP_RESP, node, index=Index(1))
    found.raw.read_index(b"r")
    context = heartbeats(found)[0].context
    found.step(T.HEARTBEAT_RESP, 2, context=context)
    found.step(T.HEARTBEAT_RESP, 2, context=context)
    assert found.read_states == []
    found.step(T.HEARTBEAT_RESP, 3, context=context)
    assert found.read_states == [(1, b"r")]


def test_learners_do_not_confirm() -> None:
    net = network(3, learners=[4])
    net.campaign(1)
    net.cut(1, 2)
    net.cut(1, 3)
    net[1].raw.read_index(b"r")
    net.settle()
    assert net[1].read_states == []


def test_joint_configuration_needs_both_halves() -> None:
    found = committed_leader()
    found.raw.apply_conf_change(ConfChangeV2(transition=ConfChangeTransition.JOINT_EXPLICIT, changes=parse_changes("r2 r3 v4 v5")))
    found.raw.read_index(b"r")
    context = heartbeats(found)[0].context
    found.step(T.HEARTBEAT_RESP, 2, context=context)
    assert found.read_states == []
    found.step(T.HEARTBEAT_RESP, 4, context=context)
    assert found.read_states == [(1, b"r")]


def test_read_before_the_first_commit_of_the_term_waits_for_it() -> None:
    found = leader()
    found.raw.read_index(b"early")
    assert found.drain() == []
    sent = found.step(T.APP_RESP, 2, index=Index(1))
    found.step(T.HEARTBEAT_RESP, 2, context=of_kind(sent, T.HEARTBEAT)[0].context)
    assert found.read_states == [(1, b"early")]


def test_read_that_waited_is_forgotten_with_the_leadership() -> None:
    found = leader()
    found.raw.read_index(b"early")
    found.step(T.HEARTBEAT, 2, term=Term(2))
    found.raw.campaign()
    found.drain()
    found.step(T.VOTE_RESP, 2)
    sent = found.step(T.APP_RESP, 2, index=found.raw.last_index)
    assert of_kind(sent, T.HEARTBEAT) == []


def test_follower_and_learner_ask_the_leader() -> None:
    for node in (2, 4):
        net = network(3, learners=[4])
        net.campaign(1)
        net.propose(1)
        net[node].raw.read_index(b"from %d" % node)
        net.settle()
        assert net[node].read_states == [(2, b"from %d" % node)]


def test_follower_without_leader_drops_the_read() -> None:
    found = member(1)
    found.raw.read_index(b"r")
    assert found.drain() == []
    assert found.log.has("dropping index reading msg")


def test_single_voter_answers_at_once() -> None:
    found = leader([1])
    found.raw.read_index(b"r")
    found.drain()
    assert found.read_states == [(1, b"r")]


def test_single_voter_waits_for_its_first_commit_too() -> None:
    found = member(1, [1], terms=[1, 1])
    found.raw.campaign()
    found.raw.ready()
    found.raw.advance()
    assert found.raw.is_leader
    found.raw.read_index(b"r")
    ready = found.raw.ready()
    assert (found.raw.commit_index, ready.read_states) == (0, [])
    found.storage.append(ready.entries)
    found.raw.advance()
    found.drain()
    assert found.read_states == [(3, b"r")]


def test_removed_leader_asks_the_single_voter_that_is_left() -> None:
    found = leader([1, 2])
    found.step(T.APP_RESP, 2, index=Index(1))
    found.raw.apply_conf_change(ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=NodeId(1)))
    found.raw.read_index(b"r")
    (heartbeat,) = heartbeats(found)
    assert found.read_states == []
    found.step(T.HEARTBEAT_RESP, 2, context=heartbeat.context)
    assert found.read_states == [(1, b"r")]


def test_leader_that_was_replaced_confirms_nothing() -> None:
    net = network(3)
    net.campaign(1)
    net.isolate(1)
    net.campaign(2)
    net.propose(2, b"new")
    net[1].raw.read_index(b"stale")
    net.settle()
    net.tick(1, 20)
    assert net[1].read_states == []


def test_lease_reads_are_answered_at_once_and_need_check_quorum() -> None:
    found = committed_leader(check_quorum=True, read_only=ReadOnlyOption.LEASE_BASED)
    found.raw.read_index(b"r")
    assert found.drain() == []
    assert found.read_states == [(1, b"r")]
    with pytest.raises(ConfigError):
        member(1, read_only=ReadOnlyOption.LEASE_BASED)


def test_lease_read_of_a_follower_is_answered_by_the_leader() -> None:
    net = network(3, check_quorum=True, read_only=ReadOnlyOption.LEASE_BASED)
    net.campaign(1)
    net[3].raw.read_index(b"r")
    net.settle()
    assert net[3].read_states == [(1, b"r")]


def test_waiting_reads_are_bounded() -> None:
    found = leader()
    for number in range(MAX_WAITING_READS + 10):
        found.raw.read_index(b"%d" % number)
    found.step(T.APP_RESP, 2, index=Index(1))
    context = of_kind(found.tick(), T.HEARTBEAT)[0].context
    found.step(T.HEARTBEAT_RESP, 2, context=context)
    assert len(found.read_states) == MAX_WAITING_READS


def test_context_that_nobody_sent_confirms_nothing() -> None:
    found = committed_leader()
    found.raw.read_index(b"r")
    heartbeats(found)
    for context in (b"", b"x", b"\xff" * 8, b"\x00" * 9):
        found.step(T.HEARTBEAT_RESP, 2, context=context)
    assert found.read_states == []


def test_read_request_without_its_context_entry_is_refused() -> None:
    found = committed_leader()
    for entries in ([], [entry(0, 0), entry(0, 0)]):
        with pytest.raises(InvalidMessageError):
            found.raw.step(Message(type=T.READ_INDEX, from_=NodeId(2), to=NodeId(1), entries=entries))
