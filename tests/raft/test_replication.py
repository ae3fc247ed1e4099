"""Replication: appending, acknowledging, committing, and bringing logs together."""

from __future__ import annotations

from itertools import permutations
from random import Random

import pytest

from raft import InvalidMessageError, Message, ProposalDroppedError, StateType
from raft.types import HardState, Index, NodeId, Term
from tests.raft.kit import Member, Network, T, conf_state, entry, kinds, leader, member, network, of_kind, storage_with


def test_proposal_is_stored_sent_and_committed_by_a_majority() -> None:
    found = leader()
    for node in (2, 3):
        found.step(T.APP_RESP, node, index=Index(1))
    sent = found.propose(b"a")
    assert [(each.to, each.index, each.log_term, each.commit) for each in of_kind(sent, T.APP)] == [(2, 1, 1, 1), (3, 1, 1, 1)]
    assert found.raw.commit_index == 1
    sent = found.step(T.APP_RESP, 2, index=Index(2))
    assert (found.raw.commit_index, found.applied_data) == (2, [b"a"])
    assert {each.commit for each in of_kind(sent, T.APP)} == {2}


@pytest.mark.parametrize(
    ("size", "acks", "commits"),
    [(1, 0, True), (3, 0, False), (3, 1, True), (3, 2, True), (5, 0, False), (5, 1, False), (5, 2, True), (5, 4, True)],
)
def test_entry_commits_with_a_majority_that_includes_the_leader(size: int, acks: int, commits: bool) -> None:
    found = leader(range(1, size + 1))
    for node in range(2, 2 + acks):
        found.step(T.APP_RESP, node, index=Index(1))
    assert (found.raw.commit_index == 1) is commits


def test_leader_does_not_count_itself_before_its_own_append_is_durable() -> None:
    found = leader([1, 2])
    found.step(T.APP_RESP, 2, index=Index(1))
    found.raw.propose(b"a")
    found.raw.ready()
    found.raw.step(Message(type=T.APP_RESP, from_=NodeId(2), to=NodeId(1), term=Term(1), index=Index(2)))
    assert found.raw.commit_index == 1
    found.raw.advance()
    assert found.raw.commit_index == 2


def test_own_acknowledgement_of_an_earlier_term_does_not_count() -> None:
    # The entry is replaced while the leader that appended it is no longer one; its late self-acknowledgement must not mean the new entry.
    found = member(1, [1, 2], async_storage_writes=True)
    found.raw.campaign()
    (append,) = [each for each in found.raw.ready().messages if each.type is T.STORAGE_APPEND]
    for response in append.responses:
        found.raw.step(response)
    found.raw.step(Message(type=T.VOTE_RESP, from_=NodeId(2), to=NodeId(1), term=Term(1)))
    (append,) = [each for each in found.raw.ready().messages if each.type is T.STORAGE_APPEND]
    found.raw.step(Message(type=T.APP, from_=NodeId(2), to=NodeId(1), term=Term(2), entries=[entry(2, 1)]))
    for response in append.responses:
        found.raw.step(response)
    assert found.raw.commit_index == 0
    assert [each.term for each in found.raw.ready().entries] == [2]


@pytest.mark.parametrize("log_terms", [[1], [2], [1, 2], [1, 1]])
def test_entries_of_earlier_terms_commit_with_the_first_of_ones_own(log_terms: list[int]) -> None:
    found = member(1, terms=log_terms)
    found.raw.campaign()
    found.drain()
    found.step(T.VOTE_RESP, 2)
    last = len(log_terms)
    found.step(T.APP_RESP, 2, index=Index(last))
    assert found.raw.commit_index == 0, "an entry of an earlier term must not commit by counting"
    found.step(T.APP_RESP, 2, index=Index(last + 1))
    assert found.raw.commit_index == last + 1


@pytest.mark.parametrize("voters", [1, 2, 3, 4, 5])
def test_commit_index_is_the_median_whatever_the_order(voters: int) -> None:
    for order in permutations(range(2, voters + 1)):
        found = leader(range(1, voters + 1))
        for _ in range(voters):
            found.propose()
        for node in order:
            found.step(T.APP_RESP, node, index=Index(node))
        matches = sorted([voters + 1, *order], reverse=True)
        assert found.raw.commit_index == matches[voters // 2]


def test_follower_acknowledges_what_it_holds_and_commits_what_the_leader_says() -> None:
    found = member(1)
    (answer,) = found.step(T.APP, 2, term=Term(1), entries=[entry(1, 1, b"a"), entry(1, 2, b"b")], commit=Index(1))
    assert (answer.type, answer.index, answer.reject) == (T.APP_RESP, 2, False)
    assert found.applied_data == [b"a"]
    found.step(T.APP, 2, index=Index(2), log_term=Term(1), commit=Index(9))
    assert found.applied_data == [b"a", b"b"]


@pytest.mark.parametrize(
    ("prev", "reject", "hint"),
    [((0, 0), False, 0), ((1, 1), False, 0), ((2, 2), False, 0), ((2, 1), True, (1, 1)), ((3, 3), True, (2, 2)), ((3, 1), True, (1, 1))],
)
def test_append_is_rejected_unless_the_position_before_it_matches(prev: tuple[int, int], reject: bool, hint: tuple[int, int]) -> None:
    found = member(1, terms=[1, 2])
    (answer,) = found.step(T.APP, 2, term=Term(3), index=Index(prev[0]), log_term=Term(prev[1]))
    assert answer.reject is reject
    if reject:
        assert (answer.index, answer.reject_hint, answer.log_term) == (prev[0], *hint)
    else:
        assert answer.index == prev[0]


@pytest.mark.parametrize(
    ("prev", "new", "result", "unstable"),
    [
        ((2, 2), [3], [1, 2, 3], [3]),
        ((1, 1), [3, 4], [1, 3, 4], [3, 4]),
        ((0, 0), [1], [1, 2], []),
        ((0, 0), [3], [3], [3]),
    ],
)
def test_conflicting_tail_is_replaced_and_a_matching_one_kept(
    prev: tuple[int, int], new: list[int], result: list[int], unstable: list[int]
) -> None:
    found = member(1, terms=[1, 2])
    entries = [entry(term, prev[0] + 1 + position) for position, term in enumerate(new)]
    found.raw.step(
        Message(type=T.APP, from_=NodeId(2), to=NodeId(1), term=Term(9), index=Index(prev[0]), log_term=Term(prev[1]), entries=entries)
    )
    ready = found.raw.ready()
    assert [each.term for each in ready.entries] == unstable
    found.storage.append(ready.entries)
    found.raw.advance()
    stored = found.log_terms
    assert stored[: len(result)] == result


def test_append_below_the_commit_index_is_answered_with_the_commit_index() -> None:
    found = member(1, terms=[1, 1, 1])
    found.step(T.HEARTBEAT, 2, commit=Index(3))
    (answer,) = found.step(T.APP, 2, index=Index(1), log_term=Term(7), entries=[entry(1, 2)])
    assert (answer.index, answer.reject) == (3, False)


def test_heartbeat_moves_the_commit_index_forward_only() -> None:
    found = member(1, terms=[1, 1, 1])
    assert kinds(found.step(T.HEARTBEAT, 2, commit=Index(2))) == [T.HEARTBEAT_RESP]
    found.step(T.HEARTBEAT, 2, commit=Index(1))
    assert found.raw.commit_index == 2


def test_leader_sends_heartbeats_that_commit_no_more_than_matches() -> None:
    found = leader()
    found.propose()
    found.step(T.APP_RESP, 2, index=Index(2))
    sent = found.tick()
    assert [(each.to, each.commit) for each in of_kind(sent, T.HEARTBEAT)] == [(2, 2), (3, 0)]


FIGURE_7 = {
    "shorter": [1, 1, 1, 4, 4, 5, 5, 6, 6],
    "much shorter": [1, 1, 1, 4],
    "longer": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
    "longer, later term": [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
    "other tail": [1, 1, 1, 4, 4, 4, 4],
    "very other tail": [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
}


@pytest.mark.parametrize("terms", FIGURE_7.values(), ids=FIGURE_7)
def test_leader_makes_every_follower_of_figure_7_equal_to_itself(terms: list[int]) -> None:
    state = conf_state([1, 2, 3])
    lead = Member(1, storage_with(state, [1, 1, 1, 4, 4, 5, 5, 6, 6, 6], hard_state=HardState(term=Term(7))))
    follower = Member(2, storage_with(state, terms, hard_state=HardState(term=Term(7))))
    third = Member(3, storage_with(state, [], hard_state=HardState(term=Term(7))))
    net = Network([lead, follower, third])
    net.campaign(1)
    assert net.leaders == [1]
    net.propose(1)
    assert follower.log_terms == lead.log_terms == [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 8, 8]


def test_probing_skips_whole_terms_in_one_round_trip() -> None:
    state = conf_state([1, 2])
    lead = Member(1, storage_with(state, [1] * 5 + [5] * 50, hard_state=HardState(term=Term(9))))
    follower = Member(2, storage_with(state, [1] * 5 + [3] * 50, hard_state=HardState(term=Term(9))))
    net = Network([lead, follower])
    net.campaign(1)
    assert follower.log_terms == lead.log_terms
    assert sum(message.reject for message in net.delivered) == 1


def test_rejection_of_an_old_probe_is_stale() -> None:
    found = leader()
    found.step(T.APP_RESP, 2, index=Index(0), reject=True, reject_hint=Index(0))
    assert found.progress(2).next_index == 1
    assert found.step(T.APP_RESP, 2, index=Index(7), reject=True, reject_hint=Index(3)) == []


def test_rejection_in_replicate_falls_back_to_the_match() -> None:
    found = leader()
    found.step(T.APP_RESP, 2, index=Index(1))
    for _ in range(3):
        found.propose()
    (probe,) = found.step(T.APP_RESP, 2, index=Index(3), reject=True, reject_hint=Index(1), log_term=Term(1))
    assert (probe.index, len(probe.entries)) == (1, 3)
    assert str(found.progress(2)).startswith("StateProbe match=1 next=2 paused")
    assert found.step(T.APP_RESP, 2, index=Index(2), reject=True, reject_hint=Index(0)) == []


def test_unreachable_member_is_probed_again() -> None:
    found = leader()
    found.step(T.APP_RESP, 2, index=Index(1))
    found.propose()
    found.raw.report_unreachable(NodeId(2))
    assert str(found.progress(2)).startswith("StateProbe match=1 next=2")


def test_reordered_and_repeated_messages_do_no_harm() -> None:
    for seed in range(20):
        random = Random(seed)
        net = network(3)
        net.campaign(1)
        for number in range(10):
            net[1].raw.propose(b"%d" % number)
        for _ in range(60):
            for each in net.members.values():
                net.under_way.extend(each.drain())
            random.shuffle(net.under_way)
            kept = []
            for message in net.under_way:
                if random.random() < 0.6:
                    net.deliver(message)
                if random.random() < 0.3:
                    kept.append(message)
            net.under_way = kept
            net[1].raw.tick()
        net.under_way.clear()
        net.tick(1, 3)
        assert net.leaders == [1]
        expected = [b"%d" % number for number in range(10)]
        assert [each.applied_data for each in net.members.values()] == [expected] * 3, f"seed {seed}"


def test_follower_forwards_proposals_unless_told_not_to() -> None:
    net = network(3)
    net.campaign(1)
    net.propose(2, b"a")
    assert net[3].applied_data == [b"a"]
    found = member(1, disable_proposal_forwarding=True)
    found.step(T.HEARTBEAT, 2, term=Term(1))
    with pytest.raises(ProposalDroppedError):
        found.raw.propose(b"x")


def test_follower_without_leader_drops_proposals() -> None:
    with pytest.raises(ProposalDroppedError):
        member(1).raw.propose(b"x")


def test_forwarded_proposal_delivered_twice_becomes_two_entries_of_their_own() -> None:
    found = leader([1])
    message = Message(type=T.PROP, from_=NodeId(2), to=NodeId(1), entries=[entry(0, 0, b"a")])
    for _ in range(2):
        found.raw.step(message)
        found.drain()
    assert [(each.index, each.data) for each in found.applied] == [(1, b""), (2, b"a"), (3, b"a")]


def test_uncommitted_tail_is_bounded_but_empty_proposals_and_a_first_large_one_pass() -> None:
    found = leader(max_uncommitted_size_bytes=10)
    found.propose(b"x" * 50)
    with pytest.raises(ProposalDroppedError):
        found.raw.propose(b"y")
    found.propose(b"")
    found.step(T.APP_RESP, 2, index=found.raw.last_index)
    for _ in range(10):
        found.propose(b"z")
    with pytest.raises(ProposalDroppedError):
        found.raw.propose(b"z")


def test_batch_is_one_message_and_taken_or_dropped_as_a_whole() -> None:
    found = leader(max_uncommitted_size_bytes=10)
    found.step(T.APP_RESP, 2, index=Index(1))
    found.raw.propose_batch([b"a", b"b", b"c"])
    (message, *_) = of_kind(found.drain(), T.APP)
    assert [each.data for each in message.entries] == [b"a", b"b", b"c"]
    with pytest.raises(ProposalDroppedError):
        found.raw.propose_batch([b"x" * 5, b"y" * 5])
    assert found.raw.last_index == 4


def test_leader_cut_off_from_its_quorum_commits_nothing_and_bounds_its_tail() -> None:
    net = network(3, max_uncommitted_size_bytes=1_000)
    net.campaign(1)
    net.isolate(1)
    taken = 0
    for _ in range(100):
        try:
            net.propose(1, b"x" * 100)
        except ProposalDroppedError:
            continue
        taken += 1
    assert taken == 10
    assert net[1].raw.commit_index == 1


def test_restart_continues_from_the_storage() -> None:
    net = network(3)
    net.campaign(1)
    for number in range(3):
        net.propose(1, b"%d" % number)
    again = net[2].restart()
    assert (again.raw.term, again.raw.commit_index, again.raw.state) == (1, 4, StateType.FOLLOWER)
    again.drain()
    assert again.applied_data == [b"0", b"1", b"2"]


def test_restart_does_not_hand_out_again_what_was_applied() -> None:
    storage = storage_with(conf_state([1]), [1, 1, 1], hard_state=HardState(term=Term(1), commit=Index(3)))
    found = Member(1, storage, applied=Index(2))
    found.drain()
    assert [each.index for each in found.applied] == [3]


def test_committed_entries_come_in_pages_of_the_configured_size() -> None:
    storage = storage_with(conf_state([1]), [1] * 10, hard_state=HardState(term=Term(1), commit=Index(10)))
    found = Member(1, storage, max_committed_size_per_ready_bytes=25)
    pages = []
    while found.raw.has_ready():
        ready = found.raw.ready()
        pages.append([each.index for each in ready.committed_entries])
        found.raw.advance()
    assert pages == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_append_messages_are_cut_to_the_configured_size() -> None:
    found = leader(max_size_per_msg_bytes=30)
    found.raw.propose_batch([b"x" * 10] * 5)
    found.drain()
    sent = found.step(T.APP_RESP, 2, index=Index(1))
    assert [len(each.entries) for each in of_kind(sent, T.APP)] == [1, 1, 1, 1, 1]
    found = leader(max_size_per_msg_bytes=0)
    found.propose(b"x" * 10)
    assert all(len(each.entries) <= 1 for each in of_kind(found.step(T.APP_RESP, 2, index=Index(1)), T.APP))


def test_commit_index_is_told_once_per_follower() -> None:
    found = leader()
    for node in (2, 3):
        found.step(T.APP_RESP, node, index=Index(1))
    found.propose()
    first = found.step(T.APP_RESP, 2, index=Index(2))
    assert [(each.to, each.commit) for each in of_kind(first, T.APP)] == [(2, 2), (3, 2)]
    assert of_kind(found.step(T.APP_RESP, 3, index=Index(2)), T.APP) == []


def test_entries_with_a_gap_or_of_a_falling_term_are_refused() -> None:
    for entries in ([entry(1, 2)], [entry(1, 1), entry(1, 3)], [entry(2, 1), entry(1, 2)], [entry(9, 1)]):
        found = member(1)
        with pytest.raises(InvalidMessageError):
            found.step(T.APP, 2, term=Term(3), entries=entries)
        assert found.storage.last_index() == 0
        assert found.raw.last_index == 0
