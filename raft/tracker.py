"""The configuration in force and the progress of every member in it, with the votes of the election under way.

Rules: one tracker per core. A configuration is a frozen value; the progress map is replaced together with it (`install`). A node that is a
voter of the outgoing half and shall become a learner waits in `learners_next` until the joint configuration is left.

Invariants (checked by `raft.confchange`): every member of the configuration has a progress and nobody else; voters and learners are
disjoint.

Source: Ongaro's thesis, 4.2.1 (learners), 4.3 (joint consensus).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raft.inflights import Inflights
from raft.progress import Progress
from raft.quorum import NO_VOTERS, JointVoters, VoteResult, majority_index
from raft.types import ConfState, Index, NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerConfig:
    """Who is in the cluster and in which role."""

    voters: JointVoters = NO_VOTERS
    learners: frozenset[NodeId] = frozenset()
    learners_next: frozenset[NodeId] = frozenset()
    auto_leave: bool = False

    @property
    def is_joint(self) -> bool:
        """Two majorities are needed."""
        return bool(self.voters.outgoing)

    def conf_state(self) -> ConfState:
        """The configuration as it is stored."""
        return ConfState(
            voters=tuple(sorted(self.voters.incoming)),
            voters_outgoing=tuple(sorted(self.voters.outgoing)),
            learners=tuple(sorted(self.learners)),
            learners_next=tuple(sorted(self.learners_next)),
            auto_leave=self.auto_leave,
        )

    def __str__(self) -> str:
        text = f"voters={self.voters}"
        if self.learners:
            text += f" learners=({' '.join(map(str, sorted(self.learners)))})"
        if self.learners_next:
            text += f" learners_next=({' '.join(map(str, sorted(self.learners_next)))})"
        return text + " autoleave" if self.auto_leave else text


class Tracker:
    """Configuration, progress and votes. Mutable; owned by the core."""

    __slots__ = ("config", "ids", "max_inflight_bytes", "max_inflight_msgs", "progress", "votes")

    def __init__(self, max_inflight_msgs: int, max_inflight_bytes: int) -> None:
        self.max_inflight_msgs = max_inflight_msgs
        self.max_inflight_bytes = max_inflight_bytes
        self.config = TrackerConfig()
        self.progress: dict[NodeId, Progress] = {}
        self.ids: tuple[NodeId, ...] = ()
        """All members in ascending order: the order in which they are visited."""
        self.votes: dict[NodeId, bool] = {}

    def install(self, config: TrackerConfig, progress: Mapping[NodeId, Progress]) -> None:
        """Switch to another configuration; the votes stay."""
        self.config = config
        self.ids = tuple(sorted(progress))
        self.progress = {node: progress[node] for node in self.ids}

    def new_inflights(self) -> Inflights:
        """An empty window of the configured bounds."""
        return Inflights(self.max_inflight_msgs, self.max_inflight_bytes)

    @property
    def is_singleton(self) -> bool:
        """There is exactly one voter, and no joint configuration."""
        voters = self.config.voters
        return len(voters.incoming) == 1 and not voters.outgoing

    def committed_index(self) -> Index:
        """The highest index that a quorum has acknowledged."""
        progress, voters = self.progress, self.config.voters
        index = majority_index([progress[node].match_index for node in voters.incoming])
        if voters.outgoing:
            return min(index, majority_index([progress[node].match_index for node in voters.outgoing]))
        return index

    def is_quorum_active(self) -> bool:
        """A quorum of voters was heard from recently."""
        active = {node: progress.is_recently_active for node, progress in self.progress.items() if not progress.is_learner}
        return self.config.voters.vote_result(active) is VoteResult.WON

    def reset_votes(self) -> None:
        """Begin to count anew."""
        self.votes = {}

    def record_vote(self, node: NodeId, granted: bool) -> None:
        """Note a vote; the first one of a node counts."""
        self.votes.setdefault(node, granted)

    def tally_votes(self) -> tuple[int, int, VoteResult]:
        """Votes granted and rejected by voters, and what they amount to."""
        granted = rejected = 0
        for node, progress in self.progress.items():
            vote = None if progress.is_learner else self.votes.get(node)
            if vote is not None:
                granted += vote
                rejected += not vote
        return granted, rejected, self.config.voters.vote_result(self.votes)
