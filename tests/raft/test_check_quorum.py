"""CheckQuorum: stepping down without a quorum, and the lease that protects a leader."""

from __future__ import annotations

from raft import ConfChange, ConfChangeType, StateType
from raft.types import Index, NodeId, Term
from tests.raft.kit import T, kinds, leader, member, network


def test_leader_without_a_quorum_steps_down_within_two_timeouts() -> None:
    found = leader(check_quorum=True)
    found.step(T.APP_RESP, 2, index=Index(1))
    found.tick(10)
    assert found.raw.is_leader
    found.tick(10)
    assert (found.raw.state, found.raw.leader_id, found.raw.term) == (StateType.FOLLOWER, 0, 1)


def test_leader_stays_while_a_quorum_answers() -> None:
    found = leader(check_quorum=True)
    for _ in range(5):
        found.step(T.HEARTBEAT_RESP, 2)
        found.tick(10)
    assert found.raw.is_leader


def test_learners_do_not_count_for_the_quorum() -> None:
    found = leader(check_quorum=True)
    found.raw.apply_conf_change(ConfChange(type=ConfChangeType.ADD_LEARNER_NODE, node_id=NodeId(4)))
    for _ in range(2):
        found.step(T.HEARTBEAT_RESP, 4)
        found.tick(10)
    assert not found.raw.is_leader


def test_without_check_quorum_a_leader_stays_and_activity_is_not_forgotten() -> None:
    found = leader()
    found.step(T.HEARTBEAT_RESP, 2)
    found.tick(100)
    assert found.raw.is_leader
    assert found.progress(2).is_recently_active


def test_vote_request_within_the_lease_is_ignored_and_its_term_with_it() -> None:
    found = member(1, check_quorum=True)
    found.step(T.HEARTBEAT, 2, term=Term(1))
    assert found.step(T.VOTE, 3, term=Term(9), index=Index(9), log_term=Term(9)) == []
    assert (found.raw.term, found.raw.leader_id) == (1, 2)
    assert found.log.has("lease is not expired (remaining ticks: 10)")


def test_vote_request_behind_the_lease_is_granted() -> None:
    found = member(1, check_quorum=True)
    found.step(T.HEARTBEAT, 2, term=Term(1))
    found.raw.override_election_timeout(19)
    found.tick(10)
    (answer,) = found.step(T.VOTE, 3, term=Term(9))
    assert not answer.reject


def test_transfer_overrides_the_lease() -> None:
    found = member(1, check_quorum=True)
    found.step(T.HEARTBEAT, 2, term=Term(1))
    (answer,) = found.step(T.VOTE, 3, term=Term(2), context=b"CampaignTransfer")
    assert not answer.reject
    assert found.raw.term == 2


def test_forgetting_the_leader_ends_the_lease_but_not_the_timer() -> None:
    found = member(1, check_quorum=True)
    found.step(T.HEARTBEAT, 2, term=Term(1))
    found.tick(9)
    found.raw.forget_leader()
    (answer,) = found.step(T.VOTE, 3, term=Term(2))
    assert not answer.reject
    other = member(1, check_quorum=True)
    other.step(T.HEARTBEAT, 2, term=Term(1))
    other.tick(9)
    other.raw.forget_leader()
    assert kinds(other.tick()) == [T.VOTE, T.VOTE]


def test_leader_of_a_lower_term_is_told_the_higher_one() -> None:
    # A candidate that lost contact raised its term within the lease of the others; only this answer can free it.
    for kind in (T.APP, T.HEARTBEAT):
        found = member(1, check_quorum=True, terms=[5])
        (answer,) = found.step(kind, 2, term=Term(3))
        assert (answer.type, answer.term, answer.index, answer.reject) == (T.APP_RESP, 5, 0, False)


def test_stuck_candidate_is_freed_by_the_leaders_heartbeat() -> None:
    net = network(3, check_quorum=True)
    net.campaign(1)
    net.isolate(3)
    for _ in range(2):
        net.campaign(3)
    net.heal()
    assert net[3].raw.term > net[1].raw.term
    net.campaign(3)
    assert net.leaders == [1]
    net.tick(1)
    assert net[1].raw.term == net[3].raw.term
    assert net.leaders == []
    net.campaign(1)
    assert net.leaders == [1]


def test_leader_is_superseded_after_its_followers_lost_it() -> None:
    net = network(3, check_quorum=True)
    net.campaign(1)
    net.isolate(1)
    net[2].raw.override_election_timeout(15)
    net[3].raw.override_election_timeout(10)
    for _ in range(10):
        net[2].raw.tick()
        net[3].raw.tick()
        net.settle()
    assert 3 in net.leaders
    net.heal()
    net.tick(3)
    assert net.leaders == [3]


def test_single_voter_never_steps_down() -> None:
    found = leader([1], check_quorum=True)
    found.tick(100)
    assert found.raw.is_leader
