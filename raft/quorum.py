"""Quorum arithmetic: what a majority, and a pair of majorities (joint consensus), has acknowledged or voted.

Rules: pure functions of the voters and what is known of them. An empty majority agrees to everything, so that a joint configuration with an
empty second half behaves as its first half alone.

Source: Ongaro's thesis, 3.3 and 4.3.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from raft.types import Index, NodeId

INFINITE_INDEX: Final = Index(2**64 - 1)
"""What an empty majority has committed."""


class VoteResult(Enum):
    """The state of an election."""

    PENDING = "VotePending"
    """Neither won nor lost: more votes are needed."""
    LOST = "VoteLost"
    """A quorum can no longer be reached."""
    WON = "VoteWon"
    """A quorum voted yes."""


def majority_index(indexes: list[Index]) -> Index:
    """The highest index that a majority has reached, given what each voter has; the list is sorted in place."""
    if not indexes:
        return INFINITE_INDEX
    indexes.sort()
    return indexes[(len(indexes) - 1) // 2]


def majority_committed_index(voters: Collection[NodeId], acked: Mapping[NodeId, Index]) -> Index:
    """The highest index that a majority of `voters` has acknowledged; a voter missing from `acked` counts as 0."""
    return majority_index([acked.get(voter, Index(0)) for voter in voters])


def majority_vote_result(voters: Collection[NodeId], votes: Mapping[NodeId, bool]) -> VoteResult:
    """The election's state among `voters`; votes of others don't count."""
    if not voters:
        return VoteResult.WON
    granted = missing = 0
    for voter in voters:
        vote = votes.get(voter)
        if vote is None:
            missing += 1
        elif vote:
            granted += 1
    needed = len(voters) // 2 + 1
    if granted >= needed:
        return VoteResult.WON
    if granted + missing >= needed:
        return VoteResult.PENDING
    return VoteResult.LOST


@dataclass(frozen=True, slots=True)
class JointVoters:
    """The voters of a configuration: `incoming`, and `outgoing`, which is non-empty exactly while joint."""

    incoming: frozenset[NodeId] = frozenset()
    outgoing: frozenset[NodeId] = frozenset()

    def __contains__(self, node: object) -> bool:
        return node in self.incoming or node in self.outgoing

    def __iter__(self) -> Iterator[NodeId]:
        return iter(sorted(self.incoming | self.outgoing))

    def ids(self) -> frozenset[NodeId]:
        """Voters of either half."""
        return self.incoming | self.outgoing

    def committed_index(self, acked: Mapping[NodeId, Index]) -> Index:
        """The highest index that both halves have committed."""
        index = majority_committed_index(self.incoming, acked)
        if self.outgoing:
            return min(index, majority_committed_index(self.outgoing, acked))
        return index

    def vote_result(self, votes: Mapping[NodeId, bool]) -> VoteResult:
        """Won if both halves won, lost if one lost, else pending."""
        first = majority_vote_result(self.incoming, votes)
        if not self.outgoing:
            return first
        second = majority_vote_result(self.outgoing, votes)
        if first is second:
            return first
        if VoteResult.LOST in (first, second):
            return VoteResult.LOST
        return VoteResult.PENDING

    def __str__(self) -> str:
        text = _describe_ids(self.incoming)
        return f"{text}&&{_describe_ids(self.outgoing)}" if self.outgoing else text


NO_VOTERS: Final = JointVoters()


def _describe_ids(ids: frozenset[NodeId]) -> str:
    return "(" + " ".join(map(str, sorted(ids))) + ")"
