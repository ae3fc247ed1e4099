"""Quorum arithmetic against brute force."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from raft.quorum import INFINITE_INDEX, JointVoters, VoteResult, majority_committed_index, majority_vote_result
from raft.types import Index, NodeId

nodes = st.integers(1, 7).map(NodeId)
voter_sets = st.frozensets(nodes, max_size=7)
acks = st.dictionaries(nodes, st.integers(0, 12).map(Index))
votes = st.dictionaries(nodes, st.booleans())


def quorums(voters: frozenset[NodeId]) -> list[frozenset[NodeId]]:
    """Every smallest set of voters that is a majority."""
    return [frozenset(each) for each in combinations(sorted(voters), len(voters) // 2 + 1)]


def committed_by_force(voters: frozenset[NodeId], acked: dict[NodeId, Index]) -> int:
    """The best that some majority has in common."""
    if not voters:
        return INFINITE_INDEX
    return max(min(acked.get(node, 0) for node in quorum) for quorum in quorums(voters))


def result_by_force(voters: frozenset[NodeId], cast: dict[NodeId, bool]) -> VoteResult:
    """Won if some majority is all yes; lost if none can become so."""
    if not voters or any(all(cast.get(node, False) for node in quorum) for quorum in quorums(voters)):
        return VoteResult.WON
    if any(all(cast.get(node, True) for node in quorum) for quorum in quorums(voters)):
        return VoteResult.PENDING
    return VoteResult.LOST


@given(voter_sets, acks)
def test_majority_commits_what_some_majority_has(voters: frozenset[NodeId], acked: dict[NodeId, Index]) -> None:
    assert majority_committed_index(voters, acked) == committed_by_force(voters, acked)


@given(voter_sets, voter_sets, acks)
def test_joint_pair_commits_what_both_halves_have(
    incoming: frozenset[NodeId], outgoing: frozenset[NodeId], acked: dict[NodeId, Index]
) -> None:
    expected = min(committed_by_force(incoming, acked), committed_by_force(outgoing, acked))
    assert JointVoters(incoming, outgoing).committed_index(acked) == expected
    assert JointVoters(outgoing, incoming).committed_index(acked) == expected


@given(voter_sets, votes)
def test_majority_vote_is_decided_when_no_further_vote_can_change_it(voters: frozenset[NodeId], cast: dict[NodeId, bool]) -> None:
    assert majority_vote_result(voters, cast) is result_by_force(voters, cast)


@given(voter_sets, voter_sets, votes)
def test_joint_vote_needs_both_halves_and_fails_with_one(
    incoming: frozenset[NodeId], outgoing: frozenset[NodeId], cast: dict[NodeId, bool]
) -> None:
    halves = {result_by_force(incoming, cast), result_by_force(outgoing, cast)}
    if VoteResult.LOST in halves:
        expected = VoteResult.LOST
    elif VoteResult.PENDING in halves:
        expected = VoteResult.PENDING
    else:
        expected = VoteResult.WON
    assert JointVoters(incoming, outgoing).vote_result(cast) is expected


@given(voter_sets, acks, nodes, st.integers(0, 12).map(Index))
def test_committed_index_never_falls_when_somebody_acknowledges_more(
    voters: frozenset[NodeId], acked: dict[NodeId, Index], node: NodeId, index: Index
) -> None:
    more = {**acked, node: max(index, acked.get(node, Index(0)))}
    assert majority_committed_index(voters, more) >= majority_committed_index(voters, acked)


def test_joint_voters_read_as_both_halves() -> None:
    voters = JointVoters(frozenset(map(NodeId, (3, 1))), frozenset(map(NodeId, (2, 1))))
    assert str(voters) == "(1 3)&&(1 2)"
    assert list(voters) == [1, 2, 3]
    assert 2 in voters
    assert 4 not in voters
