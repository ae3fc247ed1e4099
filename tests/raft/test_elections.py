"""Elections without PreVote and CheckQuorum."""

from __future__ import annotations

from random import Random

import pytest

from raft import ConfChange, ConfChangeType, Message, MessageType, ProposalDroppedError, StateType, encode_conf_change
from raft.types import Entry, HardState, Index, NodeId, Term
from tests.raft.kit import Member, Network, T, conf_state, entry, kinds, leader, member, network, of_kind, snapshot_at, storage_with


def test_member_starts_as_follower_of_nobody() -> None:
    found = member(1)
    assert (found.raw.state, found.raw.leader_id, found.raw.term) == (StateType.FOLLOWER, 0, 0)


@pytest.mark.parametrize("role", [StateType.FOLLOWER, StateType.CANDIDATE, StateType.LEADER])
def test_any_role_follows_a_higher_term(role: StateType) -> None:
    found = leader() if role is StateType.LEADER else member(1)
    if role is StateType.CANDIDATE:
        found.raw.campaign()
    found.step(T.APP, 2, term=Term(9))
    assert (found.raw.state, found.raw.term, found.raw.leader_id, found.raw.vote) == (StateType.FOLLOWER, 9, 2, 0)


def test_message_of_a_lower_term_is_dropped() -> None:
    found = member(1, terms=[3])
    assert found.step(T.APP, 2, term=Term(2), index=Index(1), log_term=Term(3), entries=[entry(2, 2)]) == []
    assert found.log_terms == [3]
    assert found.log.has("ignored a MsgApp message with lower term")


def test_follower_campaigns_after_its_timeout_and_votes_for_itself() -> None:
    found = member(1)
    assert found.tick(9) == []
    sent = found.tick()
    assert kinds(sent) == [T.VOTE, T.VOTE]
    assert (found.raw.state, found.raw.term, found.raw.vote) == (StateType.CANDIDATE, 1, 1)
    again = found.tick(10)
    assert kinds(again) == [T.VOTE, T.VOTE]
    assert found.raw.term == 2


def test_timeouts_are_drawn_from_one_to_two_election_timeouts() -> None:
    seen = set()
    for seed in range(200):
        found = member(1, random=Random(seed))
        ticks = 0
        while found.raw.state is StateType.FOLLOWER:
            found.raw.tick()
            ticks += 1
        seen.add(ticks)
    assert seen == set(range(10, 20))


def test_timeouts_of_members_rarely_coincide() -> None:
    collisions = 0
    for seed in range(100):
        members = [member(node, range(1, 6), random=Random(seed * 10 + node)) for node in range(1, 6)]
        while all(each.raw.state is StateType.FOLLOWER for each in members):
            for each in members:
                each.raw.tick()
        collisions += sum(each.raw.state is StateType.CANDIDATE for each in members) > 1
    assert collisions < 60


def test_message_from_the_leader_restarts_the_timer() -> None:
    found = member(1)
    found.tick(9)
    found.step(T.HEARTBEAT, 2, term=Term(1))
    assert found.tick(9) == []
    assert kinds(found.tick()) == [T.VOTE, T.VOTE]


@pytest.mark.parametrize(
    ("size", "votes", "state"),
    [
        (1, {}, StateType.LEADER),
        (3, {2: True, 3: True}, StateType.LEADER),
        (3, {2: True}, StateType.LEADER),
        (5, {2: True, 3: True, 4: True, 5: True}, StateType.LEADER),
        (5, {2: True, 3: True}, StateType.LEADER),
        (3, {2: False, 3: False}, StateType.FOLLOWER),
        (5, {2: False, 3: False, 4: False, 5: False}, StateType.FOLLOWER),
        (5, {2: True, 3: False, 4: False, 5: False}, StateType.FOLLOWER),
        (3, {}, StateType.CANDIDATE),
        (5, {2: True}, StateType.CANDIDATE),
        (5, {2: False, 3: False}, StateType.CANDIDATE),
        (5, {}, StateType.CANDIDATE),
    ],
)
def test_election_is_decided_by_a_majority(size: int, votes: dict[int, bool], state: StateType) -> None:
    found = member(1, range(1, size + 1))
    found.raw.campaign()
    found.drain()
    for node, granted in votes.items():
        found.step(T.VOTE_RESP, node, term=Term(1), reject=not granted)
    assert (found.raw.state, found.raw.term) == (state, 1)


def test_first_vote_of_a_member_counts() -> None:
    found = member(1, range(1, 6))
    found.raw.campaign()
    found.drain()
    for node, granted in ((2, False), (2, True), (2, True), (2, True)):
        found.step(T.VOTE_RESP, node, reject=not granted)
    assert found.raw.state is StateType.CANDIDATE


@pytest.mark.parametrize(("first", "second", "granted"), [(2, 2, True), (3, 3, True), (2, 3, False), (3, 2, False)])
def test_one_vote_per_term_first_come_first_served(first: int, second: int, granted: bool) -> None:
    found = member(1)
    found.step(T.VOTE, first, term=Term(1))
    (answer,) = found.step(T.VOTE, second, term=Term(1))
    assert (answer.reject, answer.term, found.raw.vote) == (not granted, 1, first)


@pytest.mark.parametrize(
    ("log_terms", "log_term", "index", "granted"),
    [
        ([1], 1, 1, True), ([1], 1, 2, True), ([1, 1], 1, 1, False), ([1], 2, 1, True), ([1], 2, 2, True), ([1, 1], 2, 1, True),
        ([2], 1, 1, False), ([2], 1, 2, False), ([2, 1], 1, 1, False),
    ],
)  # fmt: skip
def test_vote_goes_only_to_a_log_that_is_as_good(log_terms: list[int], log_term: int, index: int, granted: bool) -> None:
    found = member(1, terms=sorted(log_terms))
    (answer,) = found.step(T.VOTE, 2, term=Term(3), log_term=Term(log_term), index=Index(index))
    assert answer.reject is not granted
    assert found.raw.term == 3


def test_vote_request_carries_the_end_of_the_log() -> None:
    found = member(1, terms=[1, 2])
    found.raw.campaign()
    requests = found.drain()
    assert [(each.to, each.index, each.log_term, each.term) for each in requests] == [(2, 2, 2, 3), (3, 2, 2, 3)]


def test_vote_is_not_granted_to_another_once_a_leader_is_known() -> None:
    found = member(1)
    found.step(T.HEARTBEAT, 2, term=Term(1))
    (answer,) = found.step(T.VOTE, 3, term=Term(1))
    assert answer.reject


def test_granting_a_vote_restarts_the_timer_rejecting_one_does_not() -> None:
    for index, next_ticks in ((1, 10), (0, 1)):
        found = member(1, terms=[1])
        found.step(T.HEARTBEAT, 3, term=Term(2))
        found.raw.override_election_timeout(10)
        found.raw.forget_leader()
        found.tick(9)
        (answer,) = found.step(T.VOTE, 2, index=Index(index), log_term=Term(index))
        assert answer.reject is (index == 0)
        assert found.tick(next_ticks - 1) == []
        assert kinds(found.tick()) == [T.VOTE, T.VOTE]


def test_vote_is_in_the_hard_state_of_the_ready_that_carries_the_answer() -> None:
    found = member(1)
    found.raw.step(Message(type=T.VOTE, from_=NodeId(2), to=NodeId(1), term=Term(1)))
    ready = found.raw.ready()
    assert ready.hard_state is not None
    assert (ready.hard_state.vote, ready.must_sync, kinds(ready.messages)) == (2, True, [T.VOTE_RESP])


def test_vote_alone_must_be_synced() -> None:
    found = member(1, terms=[1])
    found.raw.step(Message(type=T.VOTE, from_=NodeId(2), to=NodeId(1), term=Term(1), index=Index(1), log_term=Term(1)))
    ready = found.raw.ready()
    assert ready.must_sync
    assert ready.hard_state == HardState(term=Term(1), vote=NodeId(2))


def test_commit_alone_need_not_be_synced() -> None:
    found = member(1, terms=[1])
    found.raw.step(Message(type=T.HEARTBEAT, from_=NodeId(2), to=NodeId(1), term=Term(1), commit=Index(1)))
    ready = found.raw.ready()
    assert not ready.must_sync
    assert ready.hard_state == HardState(term=Term(1), commit=Index(1))


@pytest.mark.parametrize("kind", [T.APP, T.HEARTBEAT, T.SNAP])
def test_candidate_gives_way_to_a_leader_of_its_term(kind: MessageType) -> None:
    found = member(1)
    found.raw.campaign()
    found.drain()
    snapshot = snapshot_at(5, 1, conf_state([1, 2, 3])) if kind is T.SNAP else None
    found.step(kind, 2, snapshot=snapshot)
    assert (found.raw.state, found.raw.leader_id, found.raw.term) == (StateType.FOLLOWER, 2, 1)


def test_candidate_drops_proposals() -> None:
    found = member(1)
    found.raw.campaign()
    with pytest.raises(ProposalDroppedError):
        found.raw.propose(b"x")


def test_new_leader_opens_its_term_with_an_empty_entry() -> None:
    found = leader()
    assert (found.log_terms, found.raw.leader_id) == ([1], 1)
    for node in (2, 3):
        progress = found.progress(node)
        assert (progress.match_index, progress.is_recently_active, progress.is_flow_paused) == (0, False, True)


def test_single_voter_leads_at_once_and_commits_alone() -> None:
    found = leader([1])
    assert found.raw.commit_index == 1
    found.propose(b"a")
    assert found.applied_data == [b"a"]


def test_leader_ignores_a_request_to_campaign() -> None:
    found = leader()
    found.raw.campaign()
    assert found.raw.is_leader
    assert found.log.has("ignoring MsgHup because already leader")


def test_learner_does_not_campaign_but_votes() -> None:
    found = member(4, learners=[4])
    assert found.tick(50) == []
    (answer,) = found.step(T.VOTE, 2, term=Term(2), index=Index(11), log_term=Term(1))
    assert not answer.reject
    found.raw.campaign()
    assert found.log.has("is unpromotable")


def test_learners_vote_does_not_count() -> None:
    found = member(1, learners=[4])
    found.raw.campaign()
    found.drain()
    found.step(T.VOTE_RESP, 4)
    assert found.raw.state is StateType.CANDIDATE
    found.step(T.VOTE_RESP, 2)
    assert found.raw.is_leader


def test_promoted_learner_may_campaign() -> None:
    found = member(4, learners=[4])
    found.raw.apply_conf_change(ConfChange(type=ConfChangeType.ADD_NODE, node_id=NodeId(4)))
    assert kinds(found.tick(20))[:3] == [T.VOTE] * 3


def test_member_with_an_unapplied_conf_change_does_not_campaign() -> None:
    found = member(1)
    kind, data = encode_conf_change(ConfChange(type=ConfChangeType.ADD_NODE, node_id=NodeId(4)))
    change = Entry(term=Term(1), index=Index(1), type=kind, data=data)
    found.raw.step(Message(type=T.APP, from_=NodeId(2), to=NodeId(1), term=Term(1), entries=[change, entry(1, 2)], commit=Index(2)))
    found.raw.campaign()
    assert found.raw.state is StateType.FOLLOWER
    assert found.log.has("still pending configuration changes")
    found.drain()
    found.raw.campaign()
    assert found.raw.state is StateType.CANDIDATE


def test_member_that_installs_a_snapshot_does_not_campaign() -> None:
    found = member(1)
    snapshot = snapshot_at(5, 1, conf_state([1, 2, 3]))
    found.raw.step(Message(type=T.SNAP, from_=NodeId(2), to=NodeId(1), term=Term(1), snapshot=snapshot))
    found.raw.campaign()
    assert found.raw.state is StateType.FOLLOWER
    found.drain()
    found.raw.campaign()
    assert found.raw.state is StateType.CANDIDATE


def test_dueling_candidates_end_with_one_leader_and_the_better_log() -> None:
    net = network(3)
    net.cut(1, 3)
    net.campaign(1)
    net.campaign(3)
    assert net.leaders == [1]
    net.heal()
    net.campaign(3)
    # Member 3 has the higher term but the shorter log: nobody leads, and member 1's term is overtaken.
    assert net.leaders == []
    net.campaign(1)
    assert net.leaders == [1]
    assert {each.raw.term for each in net.members.values()} == {net[1].raw.term}


def test_new_leader_overwrites_what_others_did_not_commit() -> None:
    # Members 1 and 2 hold an entry of term 1; member 3 won term 2 by the votes of 4 and 5 and failed before it sent its first entry.
    voted = HardState(term=Term(2), vote=NodeId(3))
    terms: dict[int, list[int]] = {1: [1], 2: [1], 3: [2], 4: [], 5: []}
    state = conf_state(range(1, 6))
    net = Network(Member(node, storage_with(state, log_terms, hard_state=voted if node > 3 else None)) for node, log_terms in terms.items())
    net.campaign(1)
    assert (net.leaders, net[1].raw.term) == ([], 2)
    net.campaign(1)
    assert (net.leaders, net[1].raw.term) == ([1], 3)
    assert [each.log_terms for each in net.members.values()] == [[1, 3]] * 5


def test_leader_that_was_cut_off_follows_when_it_returns() -> None:
    net = network(3)
    net.campaign(1)
    net.isolate(1)
    net.campaign(2)
    net.propose(2, b"new")
    net[1].raw.propose(b"lost")
    net.settle()
    net.heal()
    net.tick(2)
    assert net.leaders == [2]
    assert [each.applied_data for each in net.members.values()] == [[b"new"]] * 3


def test_votes_are_sent_only_to_voters() -> None:
    found = member(1, learners=[4])
    found.raw.campaign()
    assert {each.to for each in of_kind(found.drain(), T.VOTE)} == {2, 3}
