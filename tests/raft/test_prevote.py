"""Elections with PreVote."""

from __future__ import annotations

import pytest

from raft import StateType
from raft.types import Index, Term
from tests.raft.kit import Network, T, kinds, member, network


def test_pre_vote_asks_for_the_next_term_without_raising_its_own() -> None:
    found = member(1, pre_vote=True, terms=[1])
    sent = found.tick(10)
    assert kinds(sent) == [T.PRE_VOTE, T.PRE_VOTE]
    assert {each.term for each in sent} == {2}
    assert (found.raw.state, found.raw.term, found.raw.vote) == (StateType.PRE_CANDIDATE, 1, 0)


def test_won_pre_vote_leads_to_a_real_election() -> None:
    found = member(1, pre_vote=True)
    found.raw.campaign()
    found.drain()
    sent = found.step(T.PRE_VOTE_RESP, 2, term=Term(1))
    assert kinds(sent) == [T.VOTE, T.VOTE]
    assert (found.raw.state, found.raw.term) == (StateType.CANDIDATE, 1)


def test_lost_pre_vote_changes_nothing() -> None:
    found = member(1, pre_vote=True, terms=[1])
    found.raw.campaign()
    found.drain()
    for node in (2, 3):
        found.step(T.PRE_VOTE_RESP, node, reject=True)
    assert (found.raw.state, found.raw.vote, found.raw.term) == (StateType.FOLLOWER, 0, 1)


def test_granting_a_pre_vote_records_nothing_and_keeps_the_timer() -> None:
    found = member(1, pre_vote=True)
    found.tick(9)
    (answer,) = found.step(T.PRE_VOTE, 2, term=Term(5))
    assert (answer.term, answer.reject) == (5, False)
    assert (found.raw.term, found.raw.vote) == (0, 0)
    (second,) = found.step(T.PRE_VOTE, 3, term=Term(5))
    assert not second.reject
    assert kinds(found.tick()) == [T.PRE_VOTE, T.PRE_VOTE]


@pytest.mark.parametrize("log_term", [0, 1])
def test_pre_vote_of_a_shorter_log_is_rejected_with_ones_own_term(log_term: int) -> None:
    found = member(1, pre_vote=True, terms=[1, 1])
    (answer,) = found.step(T.PRE_VOTE, 2, term=Term(9), log_term=Term(log_term), index=Index(1))
    assert (answer.reject, answer.term, found.raw.term) == (True, 1, 1)


def test_rejection_of_a_higher_term_makes_the_pre_candidate_follow_it() -> None:
    found = member(1, pre_vote=True)
    found.raw.campaign()
    found.drain()
    found.step(T.PRE_VOTE_RESP, 2, term=Term(7), reject=True)
    assert (found.raw.state, found.raw.term) == (StateType.FOLLOWER, 7)


def test_pre_vote_of_a_lower_term_is_answered_so_that_the_asker_catches_up() -> None:
    found = member(1, pre_vote=True, terms=[5])
    (answer,) = found.step(T.PRE_VOTE, 2, term=Term(3))
    assert (answer.type, answer.reject, answer.term) == (T.PRE_VOTE_RESP, True, 5)


def test_member_that_was_cut_off_does_not_disturb_when_it_returns() -> None:
    net = network(3, pre_vote=True, check_quorum=True)
    net.campaign(1)
    term = net[1].raw.term
    net.isolate(3)
    net.tick(3, 100)
    assert net[3].raw.term == term
    net.heal()
    net.tick(3, 30)
    net.tick(1)
    assert (net.leaders, {each.raw.term for each in net.members.values()}) == ([1], {term})


def test_two_pre_candidates_with_equal_logs_end_with_one_leader() -> None:
    net = network(3, pre_vote=True)
    net[1].raw.campaign()
    net[2].raw.campaign()
    net.settle()
    if not net.leaders:
        net.campaign(1)
    assert len(net.leaders) == 1


def test_cluster_in_which_one_member_came_without_pre_vote_elects_again() -> None:
    # Members 1 and 2 use PreVote already; member 3 does not, was cut off, and comes back with a higher term and a shorter log.
    old = member(3, pre_vote=False)
    new = [member(node, pre_vote=True) for node in (1, 2)]
    net = Network([*new, old])
    net.campaign(1)
    net.isolate(3)
    for _ in range(3):
        net.campaign(3)
    net.propose(1, b"more")
    net.heal()
    assert net[3].raw.term > net[1].raw.term
    net.campaign(3)
    for _ in range(3):
        net.tick(1, 20)
        net.tick(2, 20)
    assert len(net.leaders) == 1
    assert net.leaders[0] in (1, 2)
    net.propose(net.leaders[0], b"last")
    assert net[3].applied_data == [b"more", b"last"]


def test_transfer_skips_the_pre_vote() -> None:
    found = member(1, pre_vote=True)
    found.step(T.HEARTBEAT, 2, term=Term(1))
    sent = found.step(T.TIMEOUT_NOW, 2)
    assert kinds(sent) == [T.VOTE, T.VOTE]
    assert {each.context for each in sent} == {b"CampaignTransfer"}


def test_granted_pre_vote_that_comes_late_is_ignored() -> None:
    found = member(1, pre_vote=True)
    found.step(T.HEARTBEAT, 2, term=Term(1))
    assert found.step(T.PRE_VOTE_RESP, 3, term=Term(2)) == []
    assert (found.raw.state, found.raw.term) == (StateType.FOLLOWER, 1)
