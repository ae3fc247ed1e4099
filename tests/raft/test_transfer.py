"""Handing leadership over."""

from __future__ import annotations

import pytest

from raft import ConfChange, ConfChangeType, ProposalDroppedError
from raft.types import Index, NodeId
from tests.raft.kit import T, kinds, leader, network, of_kind


def test_transfer_to_a_member_that_is_up_to_date_happens_at_once() -> None:
    net = network(3, check_quorum=True, pre_vote=True)
    net.campaign(1)
    net[1].raw.transfer_leader(NodeId(3))
    net.settle()
    assert net.leaders == [3]
    assert net[1].raw.leader_id == 3


def test_transfer_to_a_member_behind_waits_until_it_has_caught_up() -> None:
    net = network(3)
    net.campaign(1)
    net.isolate(3)
    net.propose(1, b"a")
    net.heal()
    net[1].raw.transfer_leader(NodeId(3))
    assert net[1].raw.lead_transferee == 3
    assert not of_kind(net[1].raw.ready().messages, T.TIMEOUT_NOW)
    net[1].raw.advance()
    net[1].step(T.HEARTBEAT_RESP, 3)
    net[1].step(T.APP_RESP, 3, index=Index(1), reject=True, reject_hint=Index(1), log_term=1)
    sent = net[1].step(T.APP_RESP, 3, index=net[1].raw.last_index)
    assert T.TIMEOUT_NOW in kinds(sent)


def test_transfer_after_a_snapshot() -> None:
    net = network(3)
    net.campaign(1)
    net.isolate(3)
    for _ in range(3):
        net.propose(1)
    leader_ = net[1]
    leader_.storage.create_snapshot(leader_.raw.applied_index, None, b"")
    leader_.storage.compact(leader_.raw.applied_index)
    net.heal()
    leader_.raw.transfer_leader(NodeId(3))
    net.tick(1)
    assert net.leaders == [3]


def test_transfer_to_oneself_or_to_nobody_known_is_ignored() -> None:
    net = network(3)
    net.campaign(1)
    for target in (1, 9):
        net[1].raw.transfer_leader(NodeId(target))
        net.settle()
        assert (net.leaders, net[1].raw.lead_transferee) == ([1], 0)


def test_transfer_to_a_learner_is_ignored() -> None:
    net = network(3, learners=[4])
    net.campaign(1)
    net[1].raw.transfer_leader(NodeId(4))
    net.settle()
    assert (net.leaders, net[1].raw.lead_transferee) == ([1], 0)


def test_follower_passes_the_request_on() -> None:
    net = network(3)
    net.campaign(1)
    net[2].raw.transfer_leader(NodeId(2))
    net.settle()
    assert net.leaders == [2]
    net[3].raw.transfer_leader(NodeId(1))
    net.settle()
    assert net.leaders == [1]


def test_proposals_are_dropped_during_a_transfer_which_ends_with_the_election_timeout() -> None:
    found = leader()
    found.raw.transfer_leader(NodeId(3))
    with pytest.raises(ProposalDroppedError):
        found.raw.propose(b"x")
    found.tick(9)
    assert found.raw.lead_transferee == 3
    found.tick(1)
    assert found.raw.lead_transferee == 0
    found.raw.propose(b"x")


def test_second_request_for_the_same_member_does_not_prolong_the_first() -> None:
    found = leader()
    found.raw.transfer_leader(NodeId(3))
    found.tick(5)
    found.raw.transfer_leader(NodeId(3))
    found.tick(5)
    assert found.raw.lead_transferee == 0


def test_second_request_for_another_member_replaces_the_first() -> None:
    found = leader()
    found.raw.transfer_leader(NodeId(3))
    found.tick(5)
    found.raw.transfer_leader(NodeId(2))
    assert found.raw.lead_transferee == 2
    found.tick(9)
    assert found.raw.lead_transferee == 2


def test_transfer_ends_when_its_target_is_removed_or_demoted() -> None:
    for kind in (ConfChangeType.REMOVE_NODE, ConfChangeType.ADD_LEARNER_NODE):
        found = leader()
        found.raw.transfer_leader(NodeId(3))
        found.raw.apply_conf_change(ConfChange(type=kind, node_id=NodeId(3)))
        assert found.raw.lead_transferee == 0


def test_transfer_ends_with_the_leadership() -> None:
    found = leader()
    found.raw.transfer_leader(NodeId(3))
    found.step(T.HEARTBEAT, 2, term=2)
    assert found.raw.lead_transferee == 0


def test_leadership_can_come_back() -> None:
    net = network(3)
    net.campaign(1)
    for target in (2, 1, 3):
        net[net.leaders[0]].raw.transfer_leader(NodeId(target))
        net.settle()
        assert net.leaders == [target]


def test_removed_member_ignores_timeout_now() -> None:
    net = network(3)
    net.campaign(1)
    net[2].raw.apply_conf_change(ConfChange(type=ConfChangeType.REMOVE_NODE, node_id=NodeId(2)))
    assert net[2].step(T.TIMEOUT_NOW, 1) == []
    assert net[2].log.has("is unpromotable")
